"""Which page of a TIFF holds each of OpenSlide's levels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsi_meta.tiffs.pages import Page, number_of, pages_in
from wsi_meta.tiffs.tags import HEIGHT, KIND, REDUCED, TILE_HEIGHT, TILE_WIDTH, WIDTH

__all__ = ["REDRAWN", "VENDORS", "is_tiled", "level_pages"]

REDRAWN = ("aperio", "huron")
"""OpenSlide's names of formats of which it draws coarser tiles from level 0 where they, or what they show, were left out."""
VENDORS = ("generic-tiff", "philips", "argos", *REDRAWN)
"""And of all that keep each level in a page, tiles edge to edge from the corner of the slide."""


def level_pages(path: Path, vendor: str, level_dimensions: Sequence[tuple[int, int]]) -> list[int | None]:
    """Return the number of the page of each level, by OpenSlide's rules.

    Levels are the pages with tiles, in their order; of several focal planes, as Argos has them, one is read, and which is not
    told here. Of a plain TIFF they are the first page and those that say that they are coarser, by their width; other pages,
    whatever their size, are no levels.

    Parameters
    ----------
    path : TIFF file that OpenSlide opened
    vendor : OpenSlide's name of its format
    level_dimensions : width and height of each level, by OpenSlide

    Returns
    -------
    For each level the number of its page; None where that has another size than the level, and for other formats.
    """
    unknown: list[int | None] = [None] * len(level_dimensions)
    if vendor not in VENDORS:
        return unknown
    with path.open("rb") as file:
        sizes = {number: _size_of(page) for number, page in enumerate(pages_in(file)) if _may_be_level(number, page, vendor)}
    numbers = sorted(sizes, key=lambda number: -sizes[number][0]) if vendor == "generic-tiff" else list(sizes)
    if len(numbers) != len(level_dimensions):
        return unknown
    return [
        number if _fits(sizes[number], size, padded=vendor == "philips") else None
        for number, size in zip(numbers, level_dimensions, strict=True)
    ]


def is_tiled(page: Page) -> bool:
    """Tell whether OpenSlide and libtiff take a page for one with tiles."""
    return TILE_WIDTH in page and TILE_HEIGHT in page


def _size_of(page: Page) -> tuple[int, int]:
    """Return width and height of a page; 0 for what it does not say."""
    return number_of(page, WIDTH) or 0, number_of(page, HEIGHT) or 0


def _may_be_level(number: int, page: Page, vendor: str) -> bool:
    coarser = vendor != "generic-tiff" or number == 0 or bool((number_of(page, KIND) or 0) & REDUCED)
    return coarser and is_tiled(page)


def _fits(stored: tuple[int, int], shown: tuple[int, int], *, padded: bool) -> bool:
    """Tell whether a page has the size of a level; Philips' are padded to whole tiles, which OpenSlide cuts off."""
    return stored == shown or (padded and stored[0] >= shown[0] and stored[1] >= shown[1])
