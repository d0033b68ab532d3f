"""Which TIFFs are plain: levels of JPEG tiles side by side, and where in the file each tile lies."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from wsi_meta.errors import first_line
from wsi_meta.readers.tiff_reader import JPEG, TiledLevel, TileForm
from wsi_meta.tiffs.sparse_tiles import lacks_tiles
from wsi_meta.tiffs.tags import CONTIGUOUS, RGB, YCBCR

__all__ = ["NotPlainError", "find_levels", "head_of", "name_of"]

VENDORS = ("generic-tiff", "aperio", "philips")
"""OpenSlide's names of the formats that lay tiles edge to edge from the corner of the slide."""


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
    sparse : whether tiles may be left out, whatever OpenSlide draws there

    Raises
    ------
    NotPlainError
        with the reason, when a level is anything but JPEG tiles in RGB or YCbCr with 8 bits, or is not found.
    """
    import tifffile

    if vendor not in VENDORS:
        raise NotPlainError(f"{vendor} is laid out in its own way")
    try:
        with tifffile.TiffFile(path) as file:
            everything: Iterable[Any] = file.pages
            pages = [page for page in everything if page.is_tiled]
            matched = _match(pages, vendor, level_dimensions, usable)
            levels = {level: _level(page) for level, page in matched.items()}
    except NotPlainError:
        raise
    except Exception as error:  # tifffile raises whatever odd tags lead to
        raise NotPlainError(f"its tags are odd: {first_line(error)}") from error
    if vendor != "generic-tiff" and not sparse and lacks_tiles(levels):
        raise NotPlainError("tiles left out, which OpenSlide draws in its own way")
    return levels


def _match(
    pages: list[Any], vendor: str, level_dimensions: tuple[tuple[int, int], ...], usable: Collection[int]
) -> dict[int, Any]:
    """Return the page of each level that is needed."""
    if vendor == "philips":  # stored with padding up to whole tiles that OpenSlide cuts off
        padded = all(
            page.imagewidth >= width and page.imagelength >= height
            for page, (width, height) in zip(pages, level_dimensions, strict=False)
        )
        if len(pages) != len(level_dimensions) or not padded:
            raise NotPlainError(f"{len(pages)} tiled pages for {len(level_dimensions)} levels, or of other sizes")
        return {level: pages[level] for level in usable}
    found = {
        level: [page for page in pages if (page.imagewidth, page.imagelength) == level_dimensions[level]] for level in usable
    }
    if any(len(fitting) != 1 for fitting in found.values()):
        raise NotPlainError("pages that cannot be told apart by their size")
    return {level: fitting[0] for level, fitting in found.items()}


def _level(page: Any) -> TiledLevel:
    """Return a page's tiles; NotPlainError when they are not plain."""
    if page.compression != JPEG:
        raise NotPlainError(f"tiles compressed with {name_of(page.compression)}, not JPEG")
    if page.photometric not in (RGB, YCBCR):
        raise NotPlainError(f"colours stored as {name_of(page.photometric)}, not RGB or YCbCr")
    layout = (page.bitspersample, page.samplesperpixel, page.planarconfig, page.imagedepth)
    if layout != (8, 3, CONTIGUOUS, 1):
        raise NotPlainError("samples that are not three interleaved bytes a pixel")
    columns, rows = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    offsets, lengths = (np.array(numbers, np.int64) for numbers in (page.dataoffsets, page.databytecounts))
    if len(offsets) != columns * rows or len(lengths) != columns * rows:
        raise NotPlainError(f"{len(offsets)} tiles; expected {columns * rows}")
    form = TileForm(page.tilewidth, page.tilelength, JPEG, head_of(page))
    return TiledLevel(page.tilewidth, page.tilelength, columns, lengths, offsets, form)


def head_of(page: Any) -> bytes:
    """Return the first bytes of every tile's JPEG. An Adobe marker states the colours by the TIFF's tag, as OpenSlide does."""
    tables = page.jpegtables or b"\xff\xd8\xff\xd9"
    if tables[:2] != b"\xff\xd8" or tables[-2:] != b"\xff\xd9":
        raise NotPlainError("shared JPEG tables that are damaged")
    colours = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([page.photometric == YCBCR])
    return b"\xff\xd8" + colours + bytes(tables[2:-2])


def name_of(value: Any) -> str:
    """Return the name of a tag's value; its number where it has none."""
    return str(getattr(value, "name", f"number {value}"))
