"""What a page of a TIFF must be like before its pixels are read as labels; tifffile decodes them."""

from __future__ import annotations

import math
from typing import Any

from wsi_meta.tiffs.codestreams import check_lzw
from wsi_meta.tiffs.pixel_form import UNSAID
from wsi_meta.tiffs.tags import LZW, MAX_TILE_PX, PHOTOMETRIC

__all__ = ["MOST_PACKED", "check_page", "refuse_larger"]

MOST_PACKED = 1100
"""Largest ratio of pixels to bits in a file that is believed: deflate reaches 1,032."""
HEAD_BYTES = 8
"""Every TIFF begins with so many bytes that are no pixels."""
REVERSED = 2
"""FillOrder of bytes whose first bit is the lowest."""


def refuse_larger(first: Any, later: Any) -> None:
    """Raise ValueError when a later picture of a TIFF is as large as the first, or larger: it may be the one that is meant."""
    sizes = [(page.imagewidth, page.imagelength) for page in (first, later)]
    if math.prod(sizes[1]) >= math.prod(sizes[0]):
        told = [f"{width} x {height} px" for width, height in sizes]
        raise ValueError(f"its first picture has {told[0]}, a later one {told[1]}; put the largest first, or keep one alone")


def check_page(page: Any, size: int) -> None:
    """Look at a page in a file of so many bytes, and let it look at each LZW tile before that is decoded.

    ValueError where it declares more pixels than its tiles or the file can hold, or does not say where they lie, or what its
    values mean, which tifffile takes for white-is-zero.
    """
    declared, stored = math.prod(page.chunked), len(page.dataoffsets)
    tile = math.prod(page.chunks)
    if declared > stored or tile > max(MAX_TILE_PX, 8 * MOST_PACKED * size):
        raise ValueError(f"{page.imagewidth} x {page.imagelength} px in {stored} tiles or strips of {tile}: damaged")
    places = zip(page.dataoffsets, page.databytecounts, strict=False)
    if any((offset < HEAD_BYTES) == (length > 0) for offset, length in places):  # tifffile takes it for one left out: zeros
        raise ValueError("a tile or strip with a length but no place, or with a place but no length: damaged")
    if PHOTOMETRIC not in page.tags:
        raise ValueError(UNSAID)
    if page.compression == LZW:
        decode = page.decode

        def decode_sound(stored: bytes | None, index: int, **told: Any) -> Any:
            if stored is not None:
                check_lzw(stored, _bytes_of(page, index), reversed_bits=page.fillorder == REVERSED)
            return decode(stored, index, **told)

        page.decode = decode_sound


def _bytes_of(page: Any, index: int) -> int:
    """Return how many bytes a page's tile or strip has that is not compressed; the last strip may be a shorter one."""
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    if not page.is_tiled:
        rows = min(rows, page.imagelength - index % -(-page.imagelength // rows) * rows)
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    return int(rows * -(-columns * samples * page.bitspersample // 8))
