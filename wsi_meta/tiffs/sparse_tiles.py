"""Tiles that a file left out, which readers paint as glass: are they glass, or were they lost? The other levels tell.

A writer that leaves out glass leaves it out of every level. So a tile is in doubt where another level has stored what lies
there, and lost where that level shows colour. What all levels left out is glass, and so is what another level shows as such:
a speck of dust may keep a tile in one level only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LeftOut", "TileGrid", "lacks_tiles"]

GLASS, LOST, TORN, FIRST_LEVEL = 0, 1, 2, 3
"""What is known of a tile that was left out; from the last on the number, over it, of the level to look at."""
EDGE_PX = 1.0
"""Borders of tiles of two levels that lie together by less than this, pixels of the coarser level, count as one."""
SURE_PX, LEAST_PX = 32, 16
"""Sides of a tile as a coarser level shows it: the coarsest level that has as many pixels of it is looked at, else fewer."""
PARTS = 8
"""Parts along a side of what is looked at, each averaged: noise and single specks count little."""
PART_PX = 256
"""Of a larger part the middle is looked at."""
MIN_SATURATION, MIN_VALUE, MIN_SHARE = 0.07, 51, 0.05
"""Saturation and brightness of what is tissue to the tissue mask, and share of such parts."""
TINT, EVEN, EVEN_PX, EVEN_PARTS = 0.12, 1, 0.9, 0.3
"""Glass that a writer left out may have a tint below this saturation. It is even within so many grey levels in such a share of
the pixels of a part, and in such a share of the parts: JPEG disturbs those beside tissue and dust. Tissue is not as even."""
MIN_DIFFERENCE = 10
"""Grey levels by which tissue is not such a tint, nor the colour that the file gives to what is left out."""

Edges = NDArray[np.int64]
Look = Callable[[int, int, int, int, int], NDArray[np.uint8]]
"""Returns the pixels of level, left, top, width, height; raises where they cannot be decoded."""


@dataclass(frozen=True)
class TileGrid:
    """How a level is cut into tiles, row by row from its corner; all tiles have the same size, also those at the far edges."""

    tile_width: int
    tile_height: int
    columns: int
    plane_lengths: NDArray[np.int64]
    """Bytes of each tile, 0 where the file left it out: (3, tiles) where each colour has tiles of its own, else (1, tiles)."""

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Bytes of each tile; 0 where the file says that it left the tile out. Of several colours the most of one."""
        return np.asarray(self.plane_lengths[0] if len(self.plane_lengths) == 1 else self.plane_lengths.max(0))

    def number(self, row: int, col: int) -> int:
        """Return a tile's place in the list of tiles."""
        return row * self.columns + col

    @property
    def stored(self) -> NDArray[np.bool_]:
        """Whether each tile is stored, (rows, cols)."""
        return np.asarray(self.lengths.reshape(-1, self.columns) > 0)

    @property
    def torn(self) -> NDArray[np.bool_]:
        """Of which tiles only some colours are stored, (rows, cols)."""
        return np.asarray(self.stored & (self.plane_lengths == 0).any(0).reshape(-1, self.columns))

    def touched(self, left: int, top: int, width: int, height: int) -> tuple[slice, slice]:
        """Return the rows and columns of the tiles that a rectangle touches."""
        rows = slice(top // self.tile_height, -(-(top + height) // self.tile_height))
        return rows, slice(left // self.tile_width, -(-(left + width) // self.tile_width))


def lacks_tiles(grids: Mapping[int, TileGrid]) -> bool:
    """Tell whether tiles of some level are left out, or colours of them."""
    return any(not grid.plane_lengths.all() for grid in grids.values())


class LeftOut:
    """What is known of the tiles that a file left out. Threads may share it.

    Parameters
    ----------
    size : width and height of level 0
    grids : the tiles of each level that may be read
    downsamples : true factor of every level relative to level 0
    background : RGB of what is left out
    """

    def __init__(
        self,
        size: tuple[int, int],
        grids: Mapping[int, TileGrid],
        downsamples: Sequence[float],
        background: tuple[int, ...],
    ) -> None:
        self._size, self._grids, self._downsamples, self._background = size, grids, downsamples, np.array(background)
        self._stored = {level: grid.stored for level, grid in sorted(grids.items())}
        sparse = (level for level in self._stored if not grids[level].plane_lengths.all())
        self._doubtful = {level: self._judge(level) for level in sparse}

    def is_glass(self, level: int, left: int, top: int, width: int, height: int) -> bool:
        """Tell whether all tiles of a rectangle are left out, and none of them is in doubt."""
        touched = self._grids[level].touched(left, top, width, height)
        known = level in self._doubtful and not self._stored[level][touched].any()
        return known and not self._doubtful[level][touched].any()

    def refuse_lost(self, rectangle: tuple[int, int, int, int, int], look: Look) -> None:
        """Refuse a rectangle of a level (level, left, top, width, height) that touches a tile which was lost.

        Raises
        ------
        ValueError
            and whatever `look` raises.
        """
        level, *place = rectangle
        if (doubtful := self._doubtful.get(level)) is None:
            return
        rows, cols = self._grids[level].touched(*place)
        for row, col in np.argwhere(doubtful[rows, cols]) + np.array([rows.start, cols.start]):
            if doubtful[row, col] >= FIRST_LEVEL:
                other = int(doubtful[row, col]) - FIRST_LEVEL
                doubtful[row, col] = LOST if self._shows_tissue(level, row, col, other, look) else GLASS
            if doubtful[row, col] == TORN:
                raise ValueError(f"the tile at row {row}, column {col} lacks some of its colours")
            if doubtful[row, col] == LOST:
                raise ValueError(f"the tile at row {row}, column {col} was lost: other levels hold what lies there")

    def _judge(self, level: int) -> NDArray[np.uint8]:
        """Return what byte counts tell of each tile of a level: glass, or which level to look at."""
        missing = ~self._stored[level]
        found = np.where(self._grids[level].torn, np.uint8(TORN), np.uint8(GLASS))
        for finer in self._finer(level):
            found[missing & self._is_stored_in(finer, level)] = FIRST_LEVEL + finer
        for coarser in self._coarser(level):
            rows, cols = (
                np.clip(((np.arange(count) + 0.5) * step).astype(int), 0, most - 1)
                for count, step, most in zip(
                    missing.shape, self._ratios(level, coarser), self._stored[coarser].shape, strict=True
                )
            )
            there = self._stored[coarser][rows[:, None], cols[None]]
            found[missing & (found == GLASS) & there] = FIRST_LEVEL + coarser
        return found

    def _coarser(self, level: int) -> list[int]:
        """Return the levels that can show what lies under a tile of a level, the best first."""
        grid, sides = self._grids[level], dict[int, float]()
        for coarser in self._stored:
            scale = self._downsamples[level] / self._downsamples[coarser]
            if scale < 1 and (side := min(grid.tile_width, grid.tile_height) * scale) >= LEAST_PX:
                sides[coarser] = side
        return sorted(sides, key=lambda coarser: (sides[coarser] < SURE_PX, abs(sides[coarser] - SURE_PX)))

    def _ratios(self, level: int, other: int) -> tuple[float, float]:
        """Return height and width of a level's tiles in tiles of another level."""
        scale, grid, tile = self._downsamples[level] / self._downsamples[other], self._grids[level], self._grids[other]
        return grid.tile_height * scale / tile.tile_height, grid.tile_width * scale / tile.tile_width

    def _finer(self, level: int) -> list[int]:
        """Return the levels that are finer than a level, the finest first."""
        finer = [other for other in self._stored if self._downsamples[other] < self._downsamples[level]]
        return sorted(finer, key=lambda other: self._downsamples[other])

    def _is_stored_in(self, finer: int, level: int) -> NDArray[np.bool_]:
        """Return of which tiles of a level a finer one has stored what lies there: a tile of which this level has nothing."""
        rows, cols = self._stored[level].shape
        marks = np.zeros((rows + 1, cols + 1), np.int64)
        (top, bottom), (left, right) = self._under(finer, level)
        lost = self._stored[finer] & (self._held(finer, level) == 0) & (bottom > top) & (right > left)
        for row, col, sign in ((top, left, 1), (bottom, right, 1), (top, right, -1), (bottom, left, -1)):
            np.add.at(marks, (np.broadcast_to(row, lost.shape)[lost], np.broadcast_to(col, lost.shape)[lost]), sign)
        return np.asarray(marks.cumsum(0).cumsum(1)[:-1, :-1] > 0)

    def _held(self, level: int, other: int) -> NDArray[np.int64]:
        """Return how many tiles of another level are stored of those that each tile of a level touches."""
        counts = np.pad(self._stored[other].astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        (top, bottom), (left, right) = self._under(level, other)
        return np.asarray(counts[bottom, right] - counts[top, right] - counts[bottom, left] + counts[top, left])

    def _under(self, level: int, other: int) -> tuple[tuple[Edges, Edges], tuple[Edges, Edges]]:
        """Return which tiles of another level each tile of a level touches: first row and the one after the last; columns."""
        edge = EDGE_PX * max(1.0, self._downsamples[level] / self._downsamples[other])  # pixels of the other level
        spans = []
        for axis, side in enumerate((self._grids[other].tile_height, self._grids[other].tile_width)):
            numbers, step = np.arange(self._stored[level].shape[axis]), self._ratios(level, other)[axis] * side
            end = np.minimum((numbers + 1) * step, self._size[1 - axis] / self._downsamples[other])
            start = np.minimum(numbers * step, end)
            middle = (start + end) / 2
            first = np.floor(np.minimum(start + edge, middle) / side).astype(np.int64)
            last = np.ceil(np.maximum(end - edge, middle) / side).astype(np.int64)
            last = np.where(end > start, np.minimum(last, self._stored[other].shape[axis]), first)
            spans.append((np.minimum(first, last), last))
        (top, bottom), (left, right) = spans
        return (top[:, None], bottom[:, None]), (left[None], right[None])

    def _shows_tissue(self, level: int, row: int, col: int, other: int, look: Look) -> bool:
        """Tell whether another level shows colour in a tile of a level: a coarser one but for the pixels at its edge."""
        grid, scale = self._grids[level], self._downsamples[level] / self._downsamples[other]
        edge = EDGE_PX if scale < 1 else 0.0
        spans = []
        for axis, (number, side) in enumerate(((col, grid.tile_width), (row, grid.tile_height))):
            shown = self._stored[other].shape[1 - axis] * (self._grids[other].tile_width, self._grids[other].tile_height)[axis]
            end = min((number + 1) * side * scale - edge, self._size[axis] / self._downsamples[other], shown)
            start = ceil(number * side * scale + edge)
            spans.append((start, int(end) - start))
        (left, wide), (top, high) = spans
        if wide <= 0 or high <= 0:
            return False
        looks = [look(other, x, y, width, height) for y, height in _parts(top, high) for x, width in _parts(left, wide)]
        return _hold_tissue(looks, self._background)


def _hold_tissue(looks: list[NDArray[np.uint8]], background: NDArray[np.int64]) -> bool:
    """Tell whether parts of a tile, each (height, width, 3), show what is tissue to the tissue mask, and no tint of glass."""
    parts = np.array([look.mean((0, 1), np.float32) for look in looks])
    value, lowest = parts.max(1), parts.min(1)
    coloured = (value - lowest >= MIN_SATURATION * value) & (value > MIN_VALUE) & _unlike(parts, background)
    if coloured.any():
        tint = np.median(parts[coloured], axis=0)
        even = [
            np.mean(np.abs(look - tint).max(2) <= EVEN) > EVEN_PX
            for look, counts in zip(looks, coloured, strict=True)
            if counts
        ]
        if np.mean(even) > EVEN_PARTS and np.ptp(tint) < TINT * tint.max():
            coloured &= _unlike(parts, tint)
    return bool(coloured.mean() > MIN_SHARE)


def _unlike(parts: NDArray[np.float32], colour: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(np.abs(parts - colour).max(1) > MIN_DIFFERENCE)


def _parts(start: int, length: int) -> list[tuple[int, int]]:
    """Return start and length of the parts of a stretch that are looked at: of long ones the middle."""
    edges = np.unique(np.linspace(start, start + length, PARTS + 1).astype(int))
    shown = [(int(first), int(last)) for first, last in pairwise(edges)]
    return [((first + last - min(PART_PX, last - first)) // 2, min(PART_PX, last - first)) for first, last in shown]
