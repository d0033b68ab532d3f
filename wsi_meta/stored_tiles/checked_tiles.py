"""Which stored tiles can be looked at for damage before OpenSlide decodes them, and where they lie."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsi_meta.files.image_series import ome_root
from wsi_meta.files.same_file import SameFile, WatchedFile
from wsi_meta.stored_tiles.dicom_tiles import find_frames
from wsi_meta.stored_tiles.jpeg_tiff import NotPlainError, name_of, tiles_of
from wsi_meta.stored_tiles.ndpi_tiles import ndpi_pages, ndpi_tiles
from wsi_meta.stored_tiles.tile_check import Checked, PlacedTiles
from wsi_meta.stored_tiles.tile_form import CHECKED
from wsi_meta.tiffs.level_pages import VENDORS, level_pages
from wsi_meta.tiffs.tags import JPEG, is_tiff
from wsi_meta.words import first_line

__all__ = ["find_checked", "tell_unchecked"]

NDPI = "hamamatsu"
"""OpenSlide's name of the maker of NDPI."""


def find_checked(
    path: Path, file: WatchedFile, vendor: str, level_dimensions: tuple[tuple[int, int], ...], usable: Collection[int]
) -> Checked:
    """Find the tiles of OpenSlide's levels whose bytes show damage that it passes over.

    Parameters
    ----------
    path, vendor, level_dimensions, usable : as for :func:`wsi_meta.stored_tiles.jpeg_tiff.find_levels`
    file : where the tiles are read from

    Returns
    -------
    The tiles of each level, and why those of other levels cannot be looked at: of DICOM, NDPI, and formats whose
    tiles lie in pages of a TIFF.
    """
    if vendor == "dicom" and isinstance(file, SameFile):
        return find_frames((file, *file.beside), level_dimensions, usable)
    if vendor in (*VENDORS, "leica") or (vendor == NDPI and _is_one_tiff(path)):
        return _find_in_tiff(path, file, vendor, level_dimensions, usable)
    return {}, {}


def tell_unchecked(reasons: Mapping[int, str]) -> Iterator[str]:
    """Yield a line for each reason why tiles of some levels cannot be looked at."""
    for reason in dict.fromkeys(reasons.values()):
        levels = [str(level) for level, told in sorted(reasons.items()) if told == reason]
        named = f"level{'s' * (len(levels) > 1)} {', '.join(levels)}"
        yield f"damaged tiles of {named} may show as tissue: {reason}"


def _is_one_tiff(path: Path) -> bool:
    """Tell whether a slide of Hamamatsu's is one TIFF; others name several files."""
    with path.open("rb") as file:
        return is_tiff(file.read(4))


def _find_in_tiff(
    path: Path, file: WatchedFile, vendor: str, level_dimensions: tuple[tuple[int, int], ...], usable: Collection[int]
) -> Checked:
    import tifffile

    found: dict[int, list[PlacedTiles]] = {level: [] for level in usable}
    reasons: dict[int, str] = {}
    try:
        with tifffile.TiffFile(path, is_ndpi=vendor == NDPI) as opened:
            for level, find in _finders(opened, path, file, vendor, level_dimensions, usable):
                try:
                    found[level].append(find())
                except Exception as error:  # tifffile raises whatever odd tags lead to
                    reasons[level] = first_line(error)
    except Exception as error:
        return {}, dict.fromkeys(usable, first_line(error))
    return {level: pages for level, pages in found.items() if pages}, reasons


def _finders(
    opened: Any,
    path: Path,
    file: WatchedFile,
    vendor: str,
    level_dimensions: tuple[tuple[int, int], ...],
    usable: Collection[int],
) -> Iterator[tuple[int, Callable[[], PlacedTiles]]]:
    """Yield levels, each with what finds the tiles of one of its pages."""
    if vendor == NDPI:
        for level, number, shrunk in ndpi_pages(opened, level_dimensions, usable):
            yield level, partial(ndpi_tiles, opened, number, file, shrunk)
    elif vendor == "leica":
        for level, number, corner in _leica(opened, level_dimensions, usable):
            yield level, partial(_placed, opened, number, file, corner)
    else:
        numbers = level_pages(path, vendor, level_dimensions)
        for level in usable:
            yield level, partial(_placed, opened, numbers[level], file, (0, 0))


def _placed(opened: Any, number: int | None, file: WatchedFile, corner: tuple[int, int]) -> PlacedTiles:
    """Return the tiles of a page, and where in its level it lies; NotPlainError where their damage cannot be seen."""
    if number is None:
        raise NotPlainError("its page is not known")
    page = opened.pages[number]
    if int(page.compression) not in CHECKED:
        raise NotPlainError(f"tiles compressed with {name_of(page.compression)}")
    if page.imagedepth != 1 or (page.compression == JPEG and page.samplesperpixel not in (1, 3)):
        raise NotPlainError(f"{page.samplesperpixel} samples a pixel, depth {page.imagedepth}")
    return PlacedTiles(tiles_of(page), (int(page.imagewidth), int(page.imagelength)), file, *corner)


def _leica(
    file: Any, level_dimensions: tuple[tuple[int, int], ...], usable: Collection[int]
) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Yield level, number of page and corner of an SCN's scanned areas, as OpenSlide composes them; its overview is none."""
    root = ome_root(file.pages[0].description)
    for collection in () if root is None else root.iterfind("{*}collection"):
        glass = _numbers(collection, "sizeX", "sizeY")
        for image in collection.iterfind("{*}image"):
            if (view := image.find("{*}view")) is None or _numbers(view, "sizeX", "sizeY") == glass:
                continue
            for stored in image.iterfind("{*}pixels/{*}dimension"):
                nm_per_px = _numbers(view, "sizeX")[0] / _numbers(stored, "sizeX")[0]
                size = np.array(glass) / nm_per_px
                corner = [int(offset / nm_per_px) for offset in _numbers(view, "offsetX", "offsetY")]
                for level in usable if stored.get("z", "0") == "0" else ():
                    if (np.abs(size - level_dimensions[level]) < 2).all():
                        yield level, int(stored.attrib["ifd"]), (corner[0], corner[1])


def _numbers(element: Any, *names: str) -> tuple[float, ...]:
    return tuple(float(element.attrib[name]) for name in names)
