"""Which TIFFs are plain: levels of JPEG tiles side by side; and where in the file each tile lies, also of others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wsi_meta.files.image_series import ome_root
from wsi_meta.readers.tiff_reader import CHECKED, JPEG2000, PlacedTiles, TiledLevel, TileForm
from wsi_meta.tiffs.codestreams import tables_of
from wsi_meta.tiffs.sparse_tiles import lacks_tiles
from wsi_meta.tiffs.tags import CONTIGUOUS, DIFFERENCES, JPEG, RGB, SEPARATE, YCBCR
from wsi_meta.words import first_line

__all__ = ["NotPlainError", "find_checked", "find_levels", "head_of", "name_of", "tiles_of"]

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
    sparse : whether tiles may be left out, whatever OpenSlide draws there, and be JPEG 2000

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
            levels = {level: _level(page, also=JPEG2000 if sparse else ()) for level, page in matched.items()}
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


def find_checked(
    path: Path, vendor: str, level_dimensions: tuple[tuple[int, int], ...], usable: Collection[int]
) -> dict[int, list[PlacedTiles]]:
    """Find the tiles of OpenSlide's levels whose bytes show damage that it passes over; no levels where that is not known.

    Parameters
    ----------
    path, vendor, level_dimensions, usable : as for :func:`find_levels`
    """
    import tifffile

    found: dict[int, list[PlacedTiles]] = {}
    try:
        with tifffile.TiffFile(path) as file:
            everything: Iterable[Any] = file.pages
            pages = [page for page in everything if page.is_tiled]
            if vendor in VENDORS:
                matched = _match(pages, vendor, level_dimensions, usable)
                places = [(level, page, (0, 0)) for level, page in matched.items()]
            else:
                places = list(_leica(file, level_dimensions, usable)) if vendor == "leica" else []
            for level, page, corner in places:
                if int(page.compression) in CHECKED and page.samplesperpixel in (1, 3) and page.imagedepth == 1:
                    size = int(page.imagewidth), int(page.imagelength)
                    found.setdefault(level, []).append(PlacedTiles(tiles_of(page), size, *corner))
    except Exception:  # tifffile raises whatever odd tags lead to
        return {}
    return found


def _leica(
    file: Any, level_dimensions: tuple[tuple[int, int], ...], usable: Collection[int]
) -> Iterator[tuple[int, Any, tuple[int, int]]]:
    """Yield level, page and corner of the scanned areas of an SCN, as OpenSlide puts them together; its overview is none."""
    root = ome_root(file.pages[0].description)
    for collection in () if root is None else root.iterfind("{*}collection"):
        glass = _numbers(collection, "sizeX", "sizeY")
        for image in collection.iterfind("{*}image"):
            if (view := image.find("{*}view")) is None or _numbers(view, "sizeX", "sizeY") == glass:
                continue
            for stored in image.iterfind("{*}pixels/{*}dimension"):
                nm_per_px = _numbers(view, "sizeX")[0] / _numbers(stored, "sizeX")[0]
                size = np.array(glass) / nm_per_px
                page = file.pages[int(stored.attrib["ifd"])]
                corner = [int(offset / nm_per_px) for offset in _numbers(view, "offsetX", "offsetY")]
                for level in usable if stored.get("z", "0") == "0" else ():
                    if (np.abs(size - level_dimensions[level]) < 2).all():
                        yield level, page, (corner[0], corner[1])


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
    head = head_of(page, page.photometric) if compression == JPEG else b""
    form = TileForm(page.tilewidth, page.tilelength, compression, head, differences, page.samplesperpixel // planes)
    return TiledLevel(page.tilewidth, page.tilelength, columns, lengths.reshape(planes, -1), offsets.reshape(planes, -1), form)


def head_of(page: Any, colours: int) -> bytes:
    """Return the first bytes of every tile's JPEG, whose Adobe marker states the colours: RGB or YCBCR.

    Remarks beside the shared tables do not count, as for OpenSlide.
    """
    try:
        tables = tables_of(bytes(page.jpegtables or b"\xff\xd8\xff\xd9"))
    except ValueError as error:
        raise NotPlainError(str(error)) from error
    return b"\xff\xd8\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([colours == YCBCR]) + tables


def name_of(value: Any) -> str:
    """Return the name of a tag's value; its number where it has none."""
    return str(getattr(value, "name", f"number {value}"))
