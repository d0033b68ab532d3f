"""The slide that a heatmap was made from: opened, and checked to be that one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wsi_meta.annotations.outline_files import Origin
from wsi_meta.errors import HeatmapError, SlideReadError
from wsi_meta.files.address import Address, slide_path
from wsi_meta.files.fingerprints import may_be_one
from wsi_meta.heatmaps.ownership import is_heatmap_path
from wsi_meta.heatmaps.record import ScanRecord
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.readers.choice import READERS
from wsi_meta.slides.slide import Slide, open_slide

__all__ = [
    "SlideFrame",
    "frame_of",
    "is_scan_of",
    "is_scanned_slide",
    "open_as_scanned",
    "open_scanned_slide",
    "slide_test_and_corner",
]


@dataclass(frozen=True)
class SlideFrame:
    """How large a slide is, and from where QuPath counts."""

    extent: tuple[int, int]
    """Width and height, level-0 pixels."""
    corner: Origin | None
    """Of what QuPath shows, level-0 pixels; None where an older heatmap does not say."""


def frame_of(path: Path) -> SlideFrame:
    """Return the frame of a slide, by its file or by its heatmap.

    Raises
    ------
    SlideReadError, HeatmapError
    """
    if is_heatmap_path(path):
        scanned = Heatmap.open(path).record.slide
        return SlideFrame((scanned.width, scanned.height), scanned.corner)
    with open_slide(path) as slide:
        return SlideFrame((slide.width, slide.height), slide.bounds.corner)


def open_as_scanned(record: ScanRecord, slide: str | Path | Address) -> Slide:
    """Open what may be the slide of a scan, by the reader that scanned it: a fingerprint covers the levels that one sees.

    Where that reader cannot open it, the one that fits does. At an address there is no choice. Its pixels are as large as in
    the scan; where the file says something else, the scan told so, and of another slide it would mean nothing.

    Raises
    ------
    SlideReadError
    """
    path, mpp, reader = slide_path(slide), record.grid.slide_mpp, record.identity.reader
    if reader in READERS and not isinstance(path, Address):
        with suppress(SlideReadError):
            return Slide(path, mpp, reader)
    return Slide(path, mpp)


def open_scanned_slide(heatmap: Heatmap, slide: str | Path | Address) -> Slide:
    """Open the slide that a heatmap was made from; close it after use.

    Raises
    ------
    HeatmapError
        when it is another slide.
    SlideReadError
    """
    opened = open_as_scanned(heatmap.record, slide)
    if not opened.has_fingerprint(heatmap.record.identity.slide):
        opened.close()
        scanned, other = heatmap.record.slide.file, slide_path(slide)
        raise HeatmapError(f"{heatmap.path}: made from {scanned}, not from {other}; pass that slide, or none")
    return opened


def is_scanned_slide(heatmap: Heatmap, slide: str | Path | Address) -> bool | None:
    """Tell whether a slide is the one that a heatmap was made from; None where it cannot be opened."""
    try:
        with open_as_scanned(heatmap.record, slide) as opened:
            return opened.has_fingerprint(heatmap.record.identity.slide)
    except Exception:  # whatever a file brings that was refused before: a question never ends a batch
        return None


def is_scan_of(heatmap: Heatmap, slide: Slide) -> bool:
    """Tell whether a heatmap was made from an open slide, whichever reader opened it now."""
    identity = heatmap.record.identity
    if slide.has_fingerprint(identity.slide):
        return True
    return slide.reader != identity.reader and bool(is_scanned_slide(heatmap, slide.path))


def slide_test_and_corner(store: Path) -> tuple[Callable[[str], bool], Origin | None]:
    """Return what tells whether a fingerprint is that of a heatmap's slide, and the corner of what QuPath shows of it.

    Where there is no heatmap, any fingerprint is taken, and the corner is not known, nor where an older one does not say it.

    Raises
    ------
    HeatmapError
        when the store is damaged.
    """
    if not store.exists():
        return lambda _told: True, None
    record = Heatmap.open(store).record
    return partial(may_be_one, record.identity.slide), record.slide.corner
