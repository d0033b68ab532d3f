"""Which TIFFs are plain: levels of JPEG tiles side by side; and where in the file each tile lies, also of others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wsi_meta.files.image_series import ome_root
from wsi_meta.readers.tiff_reader import CHECKED, JPEG2000, PlacedTiles, TiledLevel, TileForm
from wsi_meta.tiffs.codestreams import tables_of
from wsi_meta.tiffs.level_pages import VENDORS, level_pages
from wsi_meta.tiffs.pixel_form import other_order
from wsi_meta.tiffs.sparse_tiles import lacks_tiles
from wsi_meta.tiffs.tags import ALPHA_MULTIPLIED, CONTIGUOUS, DIFFERENCES, JPEG, RGB, SEPARATE, YCBCR
from wsi_meta.words import first_line

__all__ = ["NotPlainError", "find_checked", "find_levels", "name_of", "tables_in", "tiles_of"]


class NotPlainError(ValueError):
    """Why a file's tiles cannot be read directly; handled inside the modules that read, never raised to a user."""


def find_levels(
    path: Path, vendor: str, level_dimensions: tuple[tuple[int, int], ...], usable: Collection[int], *, sparse: bool = False
) -> dict[int, TiledLevel]:
    """Find the tiles of OpenSlide's levels.

    Parameters
    ----------
    path : TIFF file that OpenSlide opened
    vendor, level_dimensions : what OpenSlide says of it
    usable : the levels that are needed
    sparse : whether tiles may be left out, whatever OpenSlide draws there, and be JPEG 2000

    Raises
    ------
    NotPlainError
        with the reason, when a level is anything but JPEG tiles in RGB or YCbCr with 8 bits, or is not found.
    """
    import tifffile

    if vendor not in VENDORS:
        raise NotPlainError(f"{vendor} is laid out in its own way")
    pages = level_pages(path, vendor, level_dimensions)
    numbers = {level: number for level in usable if (number := pages[level]) is not None}
    if len(numbers) < len(usable):
        raise NotPlainError("a level whose page is not known")
    try:
        with tifffile.TiffFile(path) as file:
            levels = {level: _level(file.pages[number], JPEG2000 if sparse else ()) for level, number in numbers.items()}
    except NotPlainError:
        raise
    except Exception as error:  # tifffile raises whatever odd tags lead to
        raise NotPlainError(f"its tags are odd: {first_line(error)}") from error
    if vendor != "generic-tiff" and not sparse and lacks_tiles(levels):
        raise NotPlainError("tiles left out, which OpenSlide draws in its own way")
    return levels


def find_checked(
    path: Path, vendor: str, level_dimensions: tuple[tuple[int, int], ...], usable: Collection[int]
) -> tuple[dict[int, list[PlacedTiles]], dict[int, str]]:
    """Find the tiles of OpenSlide's levels whose bytes show damage that it passes over.

    Parameters
    ----------
    path, vendor, level_dimensions, usable : as for :func:`find_levels`

    Returns
    -------
    The tiles of each level, and why those of other levels cannot be looked at: of formats whose tiles lie in pages of a TIFF.
    """
    import tifffile

    if vendor not in (*VENDORS, "leica"):
        return {}, {}
    found: dict[int, list[PlacedTiles]] = {level: [] for level in usable}
    reasons: dict[int, str] = {}
    places: Iterable[tuple[int, int | None, tuple[int, int]]] = ()
    try:
        with tifffile.TiffFile(path) as file:
            if vendor == "leica":
                places = list(_leica(file, level_dimensions, usable))
            else:
                numbers = level_pages(path, vendor, level_dimensions)
                places = ((level, numbers[level], (0, 0)) for level in usable)
            for level, number, corner in places:
                try:
                    found[level].append(_placed(file, number, corner))
                except Exception as error:  # tifffile raises whatever odd tags lead to
                    reasons[level] = first_line(error)
    except Exception as error:
        return {}, dict.fromkeys(usable, first_line(error))
    return {level: pages for level, pages in found.items() if pages}, reasons


def _placed(file: Any, number: int | None, corner: tuple[int, int]) -> PlacedTiles:
    """Return the tiles of a page, and where in its level it lies; NotPlainError where their damage cannot be seen."""
    if number is None:
        raise NotPlainError("its page is not known")
    page = file.pages[number]
    if int(page.compression) not in CHECKED:
        raise NotPlainError(f"tiles compressed with {name_of(page.compression)}")
    if page.imagedepth != 1 or (page.compression == JPEG and page.samplesperpixel not in (1, 3)):
        raise NotPlainError(f"{page.samplesperpixel} samples a pixel, depth {page.imagedepth}")
    return PlacedTiles(tiles_of(page), (int(page.imagewidth), int(page.imagelength)), *corner)


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


def _level(page: Any, also: Collection[int]) -> TiledLevel:
    """Return a page's tiles; NotPlainError when they are not plain, nor RGB in one of some other compressions."""
    if page.compression != JPEG and not (page.compression in also and page.photometric == RGB):
        raise NotPlainError(f"tiles compressed with {name_of(page.compression)}, not JPEG")
    if page.photometric not in (RGB, YCBCR):
        raise NotPlainError(f"colours stored as {name_of(page.photometric)}, not RGB or YCbCr")
    layout = (page.bitspersample, page.samplesperpixel, page.planarconfig, page.imagedepth)
    if layout != (8, 3, CONTIGUOUS, 1):
        raise NotPlainError("samples that are not three interleaved bytes a pixel")
    return tiles_of(page)


def tiles_of(page: Any) -> TiledLevel:
    """Return a page's tiles, however they are compressed; NotPlainError where they are not as many as its size needs."""
    planes = page.samplesperpixel if page.planarconfig == SEPARATE else 1
    columns, rows = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    offsets, lengths = (np.array(numbers, np.int64) for numbers in (page.dataoffsets, page.databytecounts))
    if len(offsets) != columns * rows * planes or len(lengths) != len(offsets):
        raise NotPlainError(f"{len(offsets)} tiles; expected {columns * rows * planes}")
    compression, differences = int(page.compression), page.predictor == DIFFERENCES
    if (told := other_order(compression, page.predictor, page.fillorder)) is not None:
        raise NotPlainError(told)
    shape, samples = (int(page.tilewidth), int(page.tilelength)), page.samplesperpixel // planes
    multiplied = ALPHA_MULTIPLIED in page.extrasamples
    form = TileForm(*shape, compression, tables_in(page), int(page.photometric), differences, samples, multiplied)
    return TiledLevel(*shape, columns, lengths.reshape(planes, -1), offsets.reshape(planes, -1), form)


def tables_in(page: Any) -> bytes:
    """Return the tables that a page's JPEGs share, without remarks beside them, which do not count for OpenSlide either."""
    try:
        return tables_of(bytes(page.jpegtables)) if page.compression == JPEG and page.jpegtables else b""
    except ValueError as error:
        raise NotPlainError(str(error)) from error


def name_of(value: Any) -> str:
    """Return the name of a tag's value; its number where it has none."""
    return str(getattr(value, "name", f"number {value}"))
