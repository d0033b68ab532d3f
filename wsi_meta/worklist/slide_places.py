"""Where the slide of a heatmap may lie: beside its store, or where the table of its folder says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeGuard, TypeVar

from wsi_meta.errors import OptionsError, SlideReadError, WsiMetaError
from wsi_meta.files.address import Address, SlidePath, name_in, slide_path
from wsi_meta.heatmaps.record import ScanRecord
from wsi_meta.heatmaps.scanned_slide import is_scanned_slide
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.zarr_folder import is_zarr_image
from wsi_meta.words import printable
from wsi_meta.worklist.table import open_table

__all__ = ["find_slide", "given_slide", "lies_near", "refuse_one_slide", "slide_places"]

Place = TypeVar("Place", Path, SlidePath)


def find_slide(heatmap: Heatmap) -> Path | None:
    """Return the file of the slide that a heatmap was made from; None where it is not found on this machine's disks."""
    places = (place for place in slide_places(heatmap.path, heatmap.record) if isinstance(place, Path))
    return next((place for place in places if is_scanned_slide(heatmap, place)), None)


def lies_near(store: Path, slide: SlidePath) -> bool:
    """Tell whether a slide is where it is looked for first: beside its store, or beside that one's folder."""
    return isinstance(slide, Path) and slide.absolute().parent in _near(store)


def given_slide(record: ScanRecord, given: Place) -> Place:
    """Return the slide of a store where it, or a folder of slides, was given."""
    return given / Path(record.slide.file).name if _is_folder_of_slides(given) else given


def refuse_one_slide(given: SlidePath | None, heatmaps: int) -> None:
    """Refuse one slide for several heatmaps, OptionsError, and a folder that is not there, SlideReadError."""
    if given is not None and heatmaps > 1 and not _is_folder_of_slides(given):
        if isinstance(given, Path) and not given.exists():
            raise SlideReadError(f"{given}: no such folder; expected one with the slides of {heatmaps} heatmaps")
        raise OptionsError(f"slide {given}: one file for {heatmaps} heatmaps; expected a folder of their slides")


def _is_folder_of_slides(given: SlidePath) -> TypeGuard[Path]:
    """Tell whether a folder of slides was given, and no slide that is a folder itself, as OME-Zarr is."""
    return isinstance(given, Path) and given.is_dir() and not is_zarr_image(given)


def _near(store: Path) -> tuple[Path, ...]:
    return tuple(store.absolute().parents[:2])


def slide_places(store: Path, record: ScanRecord) -> Iterator[SlidePath]:
    """Yield what may be the slide of a store: files beside it, beside its folder and of the folder's table, then addresses."""
    name, folder = Path(record.slide.file).name, store.absolute().parent
    places = [near / name for near in _near(store)]
    addresses: list[SlidePath] = []
    shown = [printable(store.name), printable(name)]
    with suppress(WsiMetaError, OSError, ValueError):  # the table is not ours, or cannot be read
        for row in open_table(folder).rows:
            if [printable(name_in(row[column] or "")) for column in ("heatmap", "slide")] == shown:
                slide = slide_path(row["slide"])
                if isinstance(slide, Address):
                    addresses.append(slide)
                    continue
                places.append((folder / slide).with_name(name))  # an absolute path stays one
                places.append(slide.with_name(name))
    yield from (place for place in dict.fromkeys(places) if os.path.exists(place))  # noqa: PTH110  (False where nobody may look)
    yield from addresses
