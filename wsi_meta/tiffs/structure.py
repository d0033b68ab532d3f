"""What a TIFF says of itself, read before OpenSlide opens it: some of it would end the process."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.tiffs.codestreams import stated_colours
from wsi_meta.tiffs.level_pages import is_tiled, level_pages
from wsi_meta.tiffs.pages import MAX_PAGES, Page, Tag, few_of, number_of, pages_at, pages_in
from wsi_meta.tiffs.pixel_form import refuse_other_colours, refuse_other_form, spread
from wsi_meta.tiffs.sparse_tiles import TileGrid
from wsi_meta.tiffs.tags import (
    CODECS,
    COMMON_CODECS,
    COMPRESSION,
    FORM,
    HEIGHT,
    IS_MASK,
    JPEG,
    KIND,
    LENGTHS,
    MAX_TILE_PX,
    OFFSETS,
    PHOTOMETRIC,
    PLANES,
    REDUCED,
    SAMPLES,
    SEPARATE,
    STRIP_OFFSETS,
    SUB_PAGES,
    TILE_HEIGHT,
    TILE_LENGTHS,
    TILE_OFFSETS,
    TILE_WIDTH,
    WIDTH,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "DamagedPagesError",
    "ImpossibleTiles",
    "check_forms",
    "check_tiff",
    "codecs_of",
    "has_sub_pages",
    "is_plain_picture",
    "pages_of",
    "structure_of",
    "tile_grids",
]

IMPOSSIBLE_BYTES_PER_PX, HEADER_BYTES = 16, 1 << 20
"""A tile is not longer than this for each pixel, and a header: OpenSlide takes as much memory as the file says, or aborts."""
MAX_HASHED_BYTES = 5 << 20
"""OpenSlide's quickhash covers the pixels of the smallest level, where they take no more than this."""


class DamagedPagesError(SlideReadError):
    """A TIFF whose pages cannot be as they say, wherever it lies."""


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


def check_tiff(path: Path) -> list[ImpossibleTiles]:
    """Check the sizes of a TIFF's tiles.

    Any other file is left to OpenSlide, and so are pages without tiles, such as NDPI's.

    Returns
    -------
    For each page the tiles that OpenSlide must not be asked for; only pages that have some.

    Raises
    ------
    DamagedPagesError
        when a tile is too large to be one, the file has fewer tiles than its size in pixels needs, or what a page with tiles
        says of its sizes is not understood.
    """
    found: dict[tuple[int, int], ImpossibleTiles] = {}
    with path.open("rb") as file:
        for number, page in enumerate(pages_in(file)):
            if number + 1 == MAX_PAGES:
                raise DamagedPagesError(f"{path}: has {MAX_PAGES:,} pages or more; expected the few of a slide; convert it")
            if not is_tiled(page):
                continue
            width, height, *tile = (number_of(page, tag) or 0 for tag in (WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT))
            size, shape = (width, height), (tile[0], tile[1])
            problem = _problem(page, size, shape, path.stat().st_size)
            if problem is None and len(places := _impossible(page, size, shape, file)):
                problem = "and another one of its size have tiles longer than the file" if size in found else None
                found[size] = ImpossibleTiles(size, shape, places)
            if problem is not None:
                raise DamagedPagesError(
                    f"{path}: page {number} {problem}; the file is damaged; copy the slide again, or convert it"
                )
    return list(found.values())


def check_forms(path: Path, vendor: str, level_dimensions: Sequence[tuple[int, int]], usable: Collection[int]) -> None:
    """Check how the pixels of a TIFF's levels are stored; its labels and the like may be of any form.

    Parameters
    ----------
    vendor, level_dimensions : what OpenSlide says of it
    usable : the levels that are read

    Raises
    ------
    OtherFormError
        when OpenSlide decodes them to something else.
    """
    numbers = level_pages(path, vendor, level_dimensions)
    levels = {numbers[level] for level in usable}
    with path.open("rb") as file:
        for number, page in enumerate(pages_in(file)):
            if is_tiled(page) and (number == 0 or number in levels or (None in levels and _says_level(page))):
                refuse_other_form(path, number, {code: few_of(page, code, file) for code in FORM})
                if number_of(page, COMPRESSION) == JPEG:
                    refuse_other_colours(path, number_of(page, PHOTOMETRIC), stated_colours(_tiles_of(page, file)))


def _tiles_of(page: Page, file: BinaryIO) -> Iterator[bytes]:
    """Yield the beginnings of a few tiles of a page that are stored."""
    tags = _last_of(page, OFFSETS), _last_of(page, LENGTHS)
    offsets, lengths = (np.zeros(0, np.uint64) if tag is None else tag.values(file) for tag in tags)
    stored = np.flatnonzero(lengths[: len(offsets)])
    for number in stored[spread(len(stored))]:
        if offsets[number] < file.seek(0, os.SEEK_END):
            file.seek(int(offsets[number]))
            yield file.read(min(int(lengths[number]), HEADER_BYTES))


def _last_of(page: Page, codes: tuple[int, int]) -> Tag | None:
    """Return the last of two tags, the one that counts: libtiff keeps the places of tiles and of strips as one."""
    return next((page[code] for code in reversed(page) if code in codes), None)


def _says_level(page: Page) -> bool:
    return (number_of(page, KIND) or 0) & (REDUCED | IS_MASK) == REDUCED


def tile_grids(path: Path, numbers: Sequence[int | None]) -> list[TileGrid | None]:
    """Return the tiles of pages of a TIFF, by their numbers; None for None, for a page without tiles, and in any other file."""
    found = dict[int, TileGrid]()
    with path.open("rb") as file:
        for number, page in enumerate(pages_in(file)) if any(asked is not None for asked in numbers) else ():
            if number not in numbers:
                continue
            width, height, *tile = (number_of(page, tag) or 0 for tag in (WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT))
            if not all((width, height, *tile)) or TILE_LENGTHS not in page:
                continue
            columns, rows = -(-width // tile[0]), -(-height // tile[1])
            planes = (number_of(page, SAMPLES) or 1) if number_of(page, PLANES) == SEPARATE else 1
            lengths = page[TILE_LENGTHS].values(file).astype(np.int64)[: planes * columns * rows]
            if len(lengths) == planes * columns * rows:
                found[number] = TileGrid(tile[0], tile[1], columns, lengths.reshape(planes, -1))
    return [None if number is None else found.get(number) for number in numbers]


def codecs_of(path: Path) -> list[str]:
    """Return the compressions of a TIFF's tiles that not every OpenSlide reads and have a name; empty for any other file."""
    with path.open("rb") as file:
        pages = [page for page in pages_in(file) if TILE_WIDTH in page]
    numbers = {number_of(page, COMPRESSION) for page in pages}
    return sorted({CODECS[number] for number in numbers - COMMON_CODECS if number in CODECS})


def pages_of(path: Path) -> list[dict[str, Any]]:
    """Return what each page of a TIFF says of itself, ``width``, ``height``, ``tile`` and ``compression``; None where nothing.

    Empty for any other file.
    """
    with path.open("rb") as file:
        return [
            {
                "width": number_of(page, WIDTH),
                "height": number_of(page, HEIGHT),
                "tile": [number_of(page, TILE_WIDTH), number_of(page, TILE_HEIGHT)] if TILE_WIDTH in page else None,
                "compression": _codec(number_of(page, COMPRESSION)),
            }
            for page in pages_in(file)
        ]


def is_plain_picture(path: Path) -> bool:
    """Tell whether the first page of a TIFF is stored in strips, not in tiles."""
    with path.open("rb") as file:
        page = next(pages_in(file), {})
    return STRIP_OFFSETS in page and TILE_WIDTH not in page


def has_sub_pages(path: Path) -> bool:
    """Tell whether the first page of a TIFF, which is stored in tiles, has others within it, as OME-TIFF keeps its pyramid."""
    with path.open("rb") as file:
        page = next(pages_in(file), {})
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
    pages, parts = list(pages_in(file)), list[tuple[int, int]]()
    for page in [*pages]:
        if SUB_PAGES in page:
            pages += pages_at(file, page[SUB_PAGES].values(file).tolist())
    smallest: tuple[int, list[tuple[int, int]]] = (0, [])
    for page in pages:
        parts += [(tag.start, tag.end - tag.start) for tag in page.values() if tag.end]
        width = number_of(page, WIDTH) or 0
        if TILE_OFFSETS in page and TILE_LENGTHS in page and (not smallest[0] or width < smallest[0]):
            stored = (page[code].values(file).tolist() for code in (TILE_OFFSETS, TILE_LENGTHS))
            smallest = width, list(zip(*stored, strict=False))
    return parts + (smallest[1] if sum(length for _, length in smallest[1]) <= MAX_HASHED_BYTES else [])


def _codec(number: int | None) -> str | None:
    return None if number is None else CODECS.get(number, f"number {number}")


def _problem(page: Page, size: tuple[int, int], tile: tuple[int, int], file_bytes: int) -> str | None:
    """Return what is impossible about a page; None when nothing is."""
    if not all((*size, *tile)):
        return "has tiles, but says in no way that is known how large it and they are"
    if tile[0] * tile[1] > MAX_TILE_PX:
        return f"says that its tiles are {tile[0]} x {tile[1]} px; expected at most {MAX_TILE_PX:,} pixels"
    separate = number_of(page, PLANES) == SEPARATE
    needed = -(-size[0] // tile[0]) * -(-size[1] // tile[1]) * ((number_of(page, SAMPLES) or 1) if separate else 1)
    for tag, what in ((_last_of(page, OFFSETS), "places"), (_last_of(page, LENGTHS), "lengths")):
        if tag is not None and tag.count < needed:
            return f"says that it is {size[0]} x {size[1]} px, but has the {what} of {tag.count} tiles; expected {needed}"
        if tag is not None and tag.end > file_bytes:
            return f"has its tiles' {what} behind the end of the file"
    return None


def _impossible(page: Page, size: tuple[int, int], tile: tuple[int, int], file: BinaryIO) -> NDArray[np.int64]:
    """Return row and column of the tiles of impossible length."""
    if (tag := _last_of(page, LENGTHS)) is None:
        return np.zeros((0, 2), np.int64)
    most = min(file.seek(0, os.SEEK_END), IMPOSSIBLE_BYTES_PER_PX * tile[0] * tile[1] + HEADER_BYTES)
    columns, rows = -(-size[0] // tile[0]), -(-size[1] // tile[1])
    numbers = np.flatnonzero(tag.values(file) > most) % (columns * rows)  # planes that are stored apart follow each other
    return np.stack(np.divmod(numbers, columns), -1)
