"""Damage in stored tiles: looked for before another library, which passes over it, decodes them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import numpy as np

from wsi_meta.files.same_file import OpenFile, WatchedFile
from wsi_meta.stored_tiles.tile_form import TiledLevel, read_part

__all__ = ["Checked", "PlacedTiles", "TileCheck"]

NUMBER = re.compile(r"0x[0-9a-f]+|\d[\d,]*")


@dataclass(frozen=True)
class PlacedTiles:
    """The tiles of a page, and where in its level the page lies."""

    tiles: TiledLevel
    size: tuple[int, int]
    """Width and height of the page."""
    file: WatchedFile
    """Which holds it."""
    left: int = 0
    top: int = 0
    shrunk: int = 1
    """By how much smaller the level shows it."""

    def touched(self, left: int, top: int, width: int, height: int) -> Iterator[tuple[int, int]]:
        """Return row and column of the stored tiles that a rectangle of the level touches."""
        left, top, width, height = (self.shrunk * number for number in (left, top, width, height))
        first = max(0, left - self.left), max(0, top - self.top)
        last = min(self.size[0], left + width - self.left), min(self.size[1], top + height - self.top)
        if first[0] < last[0] and first[1] < last[1]:
            rows, cols = self.tiles.touched(*first, last[0] - first[0], last[1] - first[1])
            for row, col in product(range(rows.start, rows.stop), range(cols.start, cols.stop)):
                if self.tiles.lengths[self.tiles.number(row, col)]:
                    yield row, col

    def shown(self, left: int, top: int, width: int, height: int) -> tuple[int, int, int, int]:
        """Return where the level shows a rectangle of the page, in whole pixels within it."""
        first = -(-left // self.shrunk), -(-top // self.shrunk)
        return *first, (left + width) // self.shrunk - first[0], (top + height) // self.shrunk - first[1]


Checked: TypeAlias = tuple[dict[int, list[PlacedTiles]], dict[int, str]]
"""The tiles of each level that can be looked at, and why those of other levels cannot."""


class TileCheck:
    """Looks strictly at stored tiles before another library, which passes over damage, decodes them. Threads may share it.

    Parameters
    ----------
    levels : the tiles of each level that is checked
    """

    def __init__(self, levels: Mapping[int, Sequence[PlacedTiles]]) -> None:
        self._levels = levels
        self._opened: dict[int, OpenFile] = {}
        self._passed: set[str] = set()
        self._sound = {level: [np.zeros(len(page.tiles.lengths), bool) for page in pages] for level, pages in levels.items()}

    def refuse_damaged(self, level: int, left: int, top: int, width: int, height: int) -> None:
        """Refuse a rectangle of a level that touches a damaged tile; ValueError, or OSError. A sound tile is read once."""
        for page, sound in zip(self._levels.get(level, ()), self._sound.get(level, ()), strict=True):
            for row, col in page.touched(left, top, width, height):
                if not sound[number := page.tiles.number(row, col)]:
                    self._check(page, row, col)
                    sound[number] = True

    def pass_over(self, errors: Iterable[Exception], least: int) -> None:
        """From now on pass over what so many of these say of tiles, or else any of them; other damage is refused as before."""
        said = Counter(_complaint(str(error).partition(": ")[2]) for error in errors if isinstance(error, ValueError))
        self._passed = {told for told, count in said.items() if count >= least} or set(said)

    def samples(self, most: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Return where some of the busier tiles of each page lie: level, left, top, width, height."""
        for level, pages in self._levels.items():
            for page in pages:
                tiles, busiest_first = page.tiles, np.argsort(-page.tiles.lengths, kind="stable")
                stored = int((tiles.lengths > 0).sum())
                count = max(stored // 2, min(stored, most))
                for rank in np.unique(np.linspace(0, count - 1, most).astype(int)) if count else ():
                    row, col = divmod(int(busiest_first[rank]), tiles.columns)
                    left, top = col * tiles.tile_width, row * tiles.tile_height
                    sides = min(tiles.tile_width, page.size[0] - left), min(tiles.tile_height, page.size[1] - top)
                    yield level, *page.shown(page.left + left, page.top + top, *sides)

    def close(self) -> None:
        """Close the files as soon as the reads of other threads have ended. A later read opens them again."""
        self._opened = {}

    def _check(self, page: PlacedTiles, row: int, col: int) -> None:
        opened, key = self._opened, id(page.file)
        if (file := opened.get(key)) is None:
            opened[key] = file = page.file.opened()
        for part in page.tiles.parts(row, col):
            stored = read_part(page.tiles.form, page.file, file, part)
            try:
                page.tiles.form.check(stored)
            except ValueError as error:
                if _complaint(str(error)) not in self._passed:
                    raise ValueError(f"tile at row {row}, column {col}: {error}") from error


def _complaint(told: str) -> str:
    """Return what an error says, without its numbers."""
    return NUMBER.sub("", told)
