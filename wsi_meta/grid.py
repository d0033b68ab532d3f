"""Cells, blocks and where they lie. Pure arithmetic, no pixels.

A **cell** is one element of the heatmap: a square of `stride_px` at the model's mpp. Cell (row, col) is
``[col*s, (col+1)*s) x [row*s, (row+1)*s)`` from the slide's level-0 corner; its patch has the same centre. A **block** is
a rectangle of cells, the unit of reading, predicting, writing and resuming.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from math import ceil, inf
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.resampling import exact_ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BLOCK_PX", "STRIDES", "Block", "PatchGrid", "covering_boxes", "covering_strips"]

STRIDES = tuple(range(8, 97, 8))
"""Allowed sides of a cell, pixels at the model's mpp."""

BLOCK_PX = 3840
"""Side of a full block without its halo, pixels at the model's mpp (rounded down to whole cells). The larger, the less is
computed twice at its edges in dense mode (a sixth), and the more is lost where a scan is interrupted (some seconds)."""

PASS_COST = 60
"""What one more pass of dense mode costs by itself, in cells."""

SLIVER = Fraction(1, 1000)
"""A last cell that holds less of the slide than this is none: files store mpp rounded (0.24300000001 for 0.243)."""


@dataclass(frozen=True)
class Block:
    """A rectangle of cells: first row and column, and how many of each."""

    row: int
    col: int
    rows: int
    cols: int

    @property
    def cells(self) -> tuple[slice, slice]:
        """Index of the block's cells in the heatmap."""
        return slice(self.row, self.row + self.rows), slice(self.col, self.col + self.cols)

    def quarters(self) -> list[tuple[Block, tuple[slice, slice]]]:
        """Give its upper and lower halves' left and right halves, those that are not empty, and their places in it."""
        halves = [[(0, side // 2), (side // 2, side)] for side in (self.rows, self.cols)]
        return [
            (Block(self.row + top, self.col + left, end - top, right - left), (slice(top, end), slice(left, right)))
            for top, end in halves[0]
            for left, right in halves[1]
            if end > top and right > left
        ]


@dataclass(frozen=True)
class PatchGrid:
    """The cells that cover one slide at one model's resolution."""

    width: int
    """Slide, level-0 pixels."""
    height: int
    """Slide, level-0 pixels."""
    slide_mpp: float
    """Micrometres per level-0 pixel."""
    mpp: float
    """Micrometres per pixel of the model."""
    patch_px: int
    stride_px: int
    block_px: int = BLOCK_PX

    @property
    def shape(self) -> tuple[int, int]:
        """Cells (rows, cols): enough to cover the slide, the last ones may reach over its edge."""
        cell = exact_ratio(self.mpp, self.slide_mpp) * self.stride_px
        return ceil(self.height / cell - SLIVER), ceil(self.width / cell - SLIVER)

    @property
    def block_cells(self) -> int:
        """Cells along one side of a full block."""
        return max(1, self.block_px // self.stride_px)

    @property
    def cell_um(self) -> float:
        """Side of a cell, micrometres."""
        return float(exact_ratio(self.mpp, 1) * self.stride_px)

    @property
    def cell_l0(self) -> float:
        """Side of a cell, level-0 pixels."""
        return float(exact_ratio(self.mpp, self.slide_mpp) * self.stride_px)

    def blocks(self) -> list[Block]:
        """Give all blocks, row by row; those at the right and lower edge are smaller."""
        rows, cols = self.shape
        side = self.block_cells
        return [
            Block(row, col, min(side, rows - row), min(side, cols - col))
            for row in range(0, rows, side)
            for col in range(0, cols, side)
        ]

    def window(self, block: Block, halo_px: int = 0) -> tuple[int, int, int, int]:
        """Give the pixels that a block's patches cover, and `halo_px` more on each side.

        Returns
        -------
        x, y, width, height at the model's mpp; x, y may be negative.
        """
        margin = (self.patch_px - self.stride_px) // 2 + halo_px
        x, y = block.col * self.stride_px - margin, block.row * self.stride_px - margin
        return x, y, block.cols * self.stride_px + 2 * margin, block.rows * self.stride_px + 2 * margin

    def cell_at(self, x: float, y: float) -> tuple[int, int]:
        """Give (row, col) of the cell that holds a level-0 position."""
        cell = exact_ratio(self.mpp, self.slide_mpp) * self.stride_px
        return int(y // cell), int(x // cell)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as plain JSON values."""
        return asdict(self)


def covering_boxes(wanted: NDArray[np.bool_], margin: int) -> list[tuple[slice, slice]]:
    """Give rectangles of cells that hold all wanted ones and are cheap to compute densely.

    A rectangle costs its cells and a margin round it. It is cut in two, at the best of all straight cuts, wherever the parts,
    each shrunk to its wanted cells, cost less than the whole.

    Parameters
    ----------
    wanted : bool (rows, cols)
    margin : rows and columns that a rectangle needs beyond its own, both sides together

    Returns
    -------
    Rows and columns of each rectangle; none where nothing is wanted.
    """
    if not wanted.any():
        return []
    rows, cols = _extents(wanted)
    inner = wanted[rows, cols]
    axis, place, cost = min((_best_cut(inner, axis, margin) for axis in (0, 1)), key=lambda cut: cut[2])
    if cost >= (inner.shape[0] + margin) * (inner.shape[1] + margin) + PASS_COST:
        return [(rows, cols)]
    corners = ((0, 0), (place, 0) if axis == 0 else (0, place))
    return [
        (_shifted(box[0], rows.start + corner[0]), _shifted(box[1], cols.start + corner[1]))
        for corner, part in zip(corners, np.split(inner, [place], axis), strict=True)
        for box in covering_boxes(part, margin)
    ]


def covering_strips(wanted: NDArray[np.bool_], rows: int) -> list[tuple[slice, slice]]:
    """Give strips of up to `rows` rows of cells, each shrunk to its wanted cells, that hold all of them; from top to bottom."""
    strips = []
    for top in range(0, len(wanted), rows):
        strip = wanted[top : top + rows]
        if strip.any():
            held, cols = _extents(strip)
            strips.append((_shifted(held, top), cols))
    return strips


def _best_cut(inner: NDArray[np.bool_], axis: int, margin: int) -> tuple[int, int, float]:
    """Give axis, place and cost of the best straight cut across an axis; all four edges hold wanted cells."""
    lines = inner if axis == 0 else inner.T
    if len(lines) < 2:
        return axis, 0, inf
    costs = _costs_before(lines, margin) + _costs_before(lines[::-1], margin)[::-1]
    place = int(costs.argmin()) + 1
    return axis, place, float(costs[place - 1])


def _costs_before(lines: NDArray[np.bool_], margin: int) -> NDArray[np.int64]:
    """Give what the wanted cells before each cut cost in one box: its features with their margin, and a fixed price."""
    count, width = lines.shape
    held = lines.any(1)
    height = np.maximum.accumulate(np.where(held, np.arange(1, count + 1), 0))
    left = np.minimum.accumulate(np.where(held, lines.argmax(1), width))
    right = np.maximum.accumulate(np.where(held, width - lines[:, ::-1].argmax(1), 0))
    costs: NDArray[np.int64] = (height + margin) * (right - left + margin) + PASS_COST
    return costs[:-1]


def _extents(wanted: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Give the rows and columns from the first to the last True."""
    rows, cols = (np.flatnonzero(np.any(wanted, axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def _shifted(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)
