"""What a TIFF says of itself, read before OpenSlide opens it: some of it would end the process."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from wsi_meta.errors import SlideReadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ImpossibleTiles", "check_tiff", "codecs_of", "has_sub_pages", "is_plain_picture", "is_tiff", "pages_of"]
__all__ += ["structure_of"]

WIDTH, HEIGHT, COMPRESSION, PLANES, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_LENGTHS = 256, 257, 259, 284, 322, 323, 324, 325
STRIP_OFFSETS, SAMPLES, SEPARATE, SUB_PAGES, HAMAMATSU = 273, 277, 2, 330, 65420
"""TIFF 6.0's tags and planar configuration; the tag by which NDPI is known, whose offsets are wider than TIFF's."""
MAX_TILE_PX = 2**26
"""Pixels of the largest tile that is read, 8,192 x 8,192: OpenSlide needs four bytes for each, and aborts when it gets none."""
MOST_BYTES_PER_PX, HEADER_BYTES = 16, 1 << 20
"""A tile is not longer than this for each pixel, and a header: OpenSlide takes as much memory as the file says, or aborts."""
MAX_HASHED_BYTES = 5 << 20
"""OpenSlide's quickhash covers the pixels of the smallest level, where they take no more than this."""
ORIENTATION = 274
MAX_PAGES = 1000
"""Pages that are looked at."""
MAX_TAGS = 1000
"""A page with more tags is no page."""
BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 11: 4, 13: 4, 16: 8, 17: 8, 18: 8, 5: 8, 10: 8, 12: 8}
"""Size of one value of each type."""
NUMBERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
"""Types of unsigned numbers, in numpy's notation."""
CODECS = {
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG (DNG)",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
}
"""Names of compressions that some writers use and some builds of OpenSlide do not read."""
COMMON_CODECS = {1: "none", 5: "LZW", 7: "JPEG", 8: "deflate", 32946: "deflate", 33003: "JPEG 2000", 33005: "JPEG 2000"}
"""Names of those that OpenSlide reads."""


@dataclass(frozen=True)
class ImpossibleTiles:
    """Tiles of one page that are longer than a tile, or than the file. OpenSlide must not be asked for them."""

    size: tuple[int, int]
    """Width and height of the page."""
    tile: tuple[int, int]
    """Width and height of a tile."""
    places: NDArray[np.int64]
    """Row and column of each: shape (tiles, 2)."""

    def touch(self, left: int, top: int, width: int, height: int) -> bool:
        """Tell whether a rectangle of the page reaches into one of them."""
        first = np.array([top, left]) // self.tile[::-1]
        last = np.array([top + height - 1, left + width - 1]) // self.tile[::-1]
        return bool(((self.places >= first) & (self.places <= last)).all(1).any())


@dataclass(frozen=True)
class _Tag:
    count: int
    form: str
    """Type of its values in numpy's notation; empty where they are no unsigned numbers."""
    inline: bytes
    """The values, where they stand in the page itself."""
    start: int
    end: int
    """Where in the file the values stand; 0 where they stand in the page itself."""

    def values(self, file: BinaryIO) -> NDArray[np.uint64]:
        """Return the values; fewer than `count` where the file ends before."""
        if not self.form:
            return np.zeros(0, np.uint64)
        length, stored = self.count * np.dtype(self.form).itemsize, self.inline
        if self.end:
            file.seek(self.start)
            stored = file.read(length)
        whole = len(stored[:length]) // np.dtype(self.form).itemsize
        return np.frombuffer(stored, self.form, whole).astype(np.uint64)


_Page = dict[int, _Tag]


def check_tiff(path: Path) -> list[ImpossibleTiles]:
    """Check the sizes of a TIFF's tiles. Any other file is left to OpenSlide, and so is what is not understood.

    Returns
    -------
    For each page the tiles that OpenSlide must not be asked for; only pages that have some.

    Raises
    ------
    SlideReadError
        when a tile is too large to be one, or the file has fewer tiles than its size in pixels needs.
    """
    found = []
    with path.open("rb") as file:
        pages = list(_pages(file))
        if any(HAMAMATSU in page for page in pages):
            return []
        for number, page in enumerate(pages):
            sizes = [_number(page, tag) for tag in (WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT)]
            if not all(sizes):
                continue
            size, tile = (sizes[0] or 0, sizes[1] or 0), (sizes[2] or 0, sizes[3] or 0)
            if (turned := _number(page, ORIENTATION) or 1) != 1:
                raise SlideReadError(
                    f"{path}: page {number} is to be turned (Orientation {turned}), which is done tile by tile, each where it "
                    "lies; expected Orientation 1; convert the slide so that its pixels are stored upright"
                )
            if problem := _problem(page, size, tile, path.stat().st_size):
                raise SlideReadError(
                    f"{path}: page {number} {problem}; the file is damaged; copy the slide again, or convert it"
                )
            if len(places := _impossible(page, size, tile, file)):
                found.append(ImpossibleTiles(size, tile, places))
    return found


def codecs_of(path: Path) -> list[str]:
    """Return the compressions of a TIFF's tiles, those that have a name here; empty for any other file."""
    with path.open("rb") as file:
        pages = [page for page in _pages(file) if TILE_WIDTH in page]
    return sorted({CODECS[number] for page in pages if (number := _number(page, COMPRESSION)) in CODECS})


def pages_of(path: Path) -> list[dict[str, Any]]:
    """Return what each page of a TIFF says of itself, ``width``, ``height``, ``tile`` and ``compression``; None where nothing.

    Empty for any other file.
    """
    with path.open("rb") as file:
        return [
            {
                "width": _number(page, WIDTH),
                "height": _number(page, HEIGHT),
                "tile": [_number(page, TILE_WIDTH), _number(page, TILE_HEIGHT)] if TILE_WIDTH in page else None,
                "compression": _codec(_number(page, COMPRESSION)),
            }
            for page in _pages(file)
        ]


def is_tiff(head: bytes) -> bool:
    """Tell whether a file that begins so is a TIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_plain_picture(path: Path) -> bool:
    """Tell whether the first page of a TIFF is stored in strips, not in tiles."""
    with path.open("rb") as file:
        page = next(_pages(file), {})
    return STRIP_OFFSETS in page and TILE_WIDTH not in page


def has_sub_pages(path: Path) -> bool:
    """Tell whether the first page of a TIFF, which is stored in tiles, has others within it, as OME-TIFF keeps its pyramid."""
    with path.open("rb") as file:
        page = next(_pages(file), {})
    return SUB_PAGES in page and TILE_WIDTH in page


def structure_of(file: BinaryIO) -> list[tuple[int, int]]:
    """Return where the bytes of a TIFF lie that tell all but its pixels, and those of its smallest tiled page's pixels.

    Parameters
    ----------
    file : open at its beginning; its pages are read meanwhile, those within pages as well

    Returns
    -------
    Offset and length of each part beside the pages themselves.
    """
    pages, parts = list(_pages(file)), list[tuple[int, int]]()
    for page in [*pages]:
        if SUB_PAGES in page:
            pages += _pages_at(file, page[SUB_PAGES].values(file).tolist())
    smallest: tuple[int, list[tuple[int, int]]] = (0, [])
    for page in pages:
        parts += [(tag.start, tag.end - tag.start) for tag in page.values() if tag.end]
        width = _number(page, WIDTH) or 0
        if TILE_OFFSETS in page and TILE_LENGTHS in page and (not smallest[0] or width < smallest[0]):
            stored = (page[code].values(file).tolist() for code in (TILE_OFFSETS, TILE_LENGTHS))
            smallest = width, list(zip(*stored, strict=False))
    return parts + (smallest[1] if sum(length for _, length in smallest[1]) <= MAX_HASHED_BYTES else [])


def _pages_at(file: BinaryIO, places: list[int]) -> Iterator[_Page]:
    """Yield the pages at some places of a TIFF, with those that follow each."""
    file.seek(0)
    order, big = _kind(file.read(16)) or ("<", False)
    for place in places[:MAX_PAGES]:
        yield from _chain(file, place, order, big=big)


def _codec(number: int | None) -> str | None:
    return None if number is None else (COMMON_CODECS | CODECS).get(number, f"number {number}")


def _number(page: _Page, code: int) -> int | None:
    """Return a tag's value, where it is one unsigned number that stands in the page itself."""
    tag = page.get(code)
    if tag is None or tag.count != 1 or not tag.form or tag.end:
        return None
    return int(np.frombuffer(tag.inline, tag.form, 1)[0])


def _problem(page: _Page, size: tuple[int, int], tile: tuple[int, int], file_bytes: int) -> str | None:
    """Return what is impossible about a page; None when nothing is."""
    if tile[0] * tile[1] > MAX_TILE_PX:
        return f"says that its tiles are {tile[0]} x {tile[1]} px; expected at most {MAX_TILE_PX:,} pixels"
    separate = _number(page, PLANES) == SEPARATE
    needed = -(-size[0] // tile[0]) * -(-size[1] // tile[1]) * ((_number(page, SAMPLES) or 1) if separate else 1)
    for code, what in ((TILE_OFFSETS, "places"), (TILE_LENGTHS, "lengths")):
        if code in page and page[code].count < needed:
            return (
                f"says that it is {size[0]} x {size[1]} px, but has the {what} of {page[code].count} tiles; expected {needed}"
            )
        if code in page and page[code].end > file_bytes:
            return f"has its tiles' {what} behind the end of the file"
    return None


def _impossible(page: _Page, size: tuple[int, int], tile: tuple[int, int], file: BinaryIO) -> NDArray[np.int64]:
    """Return row and column of the tiles of impossible length."""
    if TILE_LENGTHS not in page:
        return np.zeros((0, 2), np.int64)
    lengths = page[TILE_LENGTHS].values(file)
    most = min(file.seek(0, os.SEEK_END), MOST_BYTES_PER_PX * tile[0] * tile[1] + HEADER_BYTES)
    columns, rows = -(-size[0] // tile[0]), -(-size[1] // tile[1])
    numbers = np.flatnonzero(lengths > most) % (columns * rows)  # planes that are stored apart follow each other
    return np.stack(np.divmod(numbers, columns), -1)


def _pages(file: BinaryIO) -> Iterator[_Page]:
    """Yield the tags of each page; end early where the file is no TIFF, or stops making sense."""
    head = file.read(16)
    if (kind := _kind(head)) is None:
        return
    order, big = kind
    at = struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0]
    yield from _chain(file, at, order, big=big)


def _kind(head: bytes) -> tuple[str, bool] | None:
    """Return the byte order of a TIFF, and whether it is a BigTIFF; None where it is none."""
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return None
    version = struct.unpack(order + "H", head[2:4])[0]
    return (order, version == 43) if version in (42, 43) else None


def _chain(file: BinaryIO, at: int, order: str, *, big: bool) -> Iterator[_Page]:
    """Yield the page at a place and those that follow it."""
    seen: set[int] = set()
    while at and at not in seen and len(seen) < MAX_PAGES:
        seen.add(at)
        try:
            page, at = _read_page(file, at, order, big=big)
        except (struct.error, OSError, OverflowError, ValueError):
            return
        yield page


def _read_page(file: BinaryIO, at: int, order: str, *, big: bool) -> tuple[_Page, int]:
    """Return a page's tags and the place of the next page; struct.error or ValueError when there is none."""
    counted, entry, wide = ("Q", 20, "Q") if big else ("H", 12, "I")
    file.seek(at)
    count = struct.unpack(order + counted, file.read(struct.calcsize(counted)))[0]
    if not 0 < count <= MAX_TAGS:
        raise ValueError("no page")
    stored = file.read(count * entry)
    following = struct.unpack(order + wide, file.read(struct.calcsize(wide)))[0]
    return dict(_read_tag(stored[place : place + entry], order, wide) for place in range(0, count * entry, entry)), following


def _read_tag(entry: bytes, order: str, wide: str) -> tuple[int, _Tag]:
    code, kind = struct.unpack(order + "HH", entry[:4])
    inline = struct.calcsize(wide)
    count, start = (struct.unpack(order + wide, entry[at : at + inline])[0] for at in (4, 4 + inline))
    form = order + NUMBERS[kind] if kind in NUMBERS else ""
    length = count * BYTES.get(kind, 1)
    if length > inline:
        return code, _Tag(count, form, b"", start, start + length)
    return code, _Tag(count, form, entry[4 + inline :], 0, 0)
