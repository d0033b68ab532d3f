"""Which TIFFs are plain: levels of JPEG tiles side by side; and where in the file each tile lies."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from wsi_meta.stored_tiles.tile_form import JPEG2000, TiledLevel, TileForm
from wsi_meta.tiffs.codestreams import tables_of
from wsi_meta.tiffs.level_pages import REDRAWN, VENDORS, level_pages
from wsi_meta.tiffs.pixel_form import other_order
from wsi_meta.tiffs.sparse_tiles import lacks_tiles
from wsi_meta.tiffs.tags import ALPHA_MULTIPLIED, CONTIGUOUS, DIFFERENCES, JPEG, RGB, SEPARATE, YCBCR
from wsi_meta.words import first_line

__all__ = ["NotPlainError", "find_levels", "name_of", "tables_in", "tiles_of"]


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
    if vendor in REDRAWN and not sparse and lacks_tiles(levels):
        raise NotPlainError("tiles left out, which OpenSlide draws in its own way")
    return levels


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
