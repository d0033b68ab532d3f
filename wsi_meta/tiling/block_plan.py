"""Which parts of a block are shown to a network: rectangles around its wanted cells, and the pieces of its image for them.

Pure arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MEASURED_SIZES", "BlockCut", "PieceSizes", "covering_boxes", "covering_strips"]

PASS_COST = 60
"""Cost of one more pass of dense mode, whatever its size, in cells."""

Box = tuple[slice, slice]
"""Rows and columns, of cells or of pixels."""


@dataclass(frozen=True)
class PieceSizes:
    """How large the parts are in which an image is read and computed. Memory and speed depend on them.

    Results depend on them by rounding at most.
    """

    piece_px: int = 1 << 20
    """Pixels of one piece of a block's image, where the image may come in pieces."""
    band_px: int = 1 << 17
    """Pixels of one band in dense mode. Its activations take megabytes."""
    least_band_rows: int = 32
    """Fewest pixel rows of a band, however wide the image is."""

    def band_rows(self, width_px: int) -> int:
        """Return the pixel rows of a band of an image of this width."""
        return max(self.least_band_rows, self.band_px // width_px // 32 * 32)

    def piece_rows(self, width_px: int) -> int:
        """Return the pixel rows of a piece of an image of this width: a whole number of bands."""
        rows = self.band_rows(width_px)
        return rows * max(1, self.piece_px // (rows * width_px))


MEASURED_SIZES = PieceSizes()
"""The sizes that a scan uses, chosen by measurement (docs/benchmarks.md)."""


@dataclass(frozen=True)
class BlockCut:
    """How a predictor wants blocks to be cut."""

    patch_px: int
    halo_px: int
    """Pixels that the network sees beyond a rectangle's patches on each side."""
    dense: bool
    """Whether the network sees a rectangle whole, not patch by patch."""
    from_top: bool
    """Whether the network sees a rectangle from top to bottom, in bands."""
    sizes: PieceSizes = MEASURED_SIZES

    def boxes(self, wanted: NDArray[np.bool_], stride_px: int) -> list[Box]:
        """Return the rectangles of cells into which a block is cut.

        Parameters
        ----------
        wanted : bool (rows, cols), the block's cells that are to be predicted
        stride_px : side of a cell, pixels at the model's mpp
        """
        if self.dense:
            return covering_boxes(wanted, self.beyond_px(stride_px) // stride_px)
        return covering_strips(wanted, max(1, self.sizes.piece_px // (wanted.shape[1] * stride_px**2)))

    def pieces(self, box: Box, stride_px: int) -> list[Box]:
        """Return the pixels of a rectangle of cells, in the block's image with halo, in one piece or several from the top."""
        rows, cols = (slice(ends.start * stride_px, ends.stop * stride_px + self.beyond_px(stride_px)) for ends in box)
        if not self.from_top:
            return [(rows, cols)]
        step = self.sizes.piece_rows(cols.stop - cols.start)
        return [(slice(top, min(top + step, rows.stop)), cols) for top in range(rows.start, rows.stop, step)]

    def beyond_px(self, stride_px: int) -> int:
        """Return the pixels that a rectangle needs beyond its cells, both sides together."""
        return 2 * self.halo_px + self.patch_px - stride_px


def covering_boxes(wanted: NDArray[np.bool_], margin: int) -> list[Box]:
    """Return rectangles of cells that hold all wanted cells and are cheap to compute in dense mode.

    The cost of a rectangle is its cells with a margin around them, and :data:`PASS_COST`. A rectangle is cut in two, at the
    best of all straight cuts, if the two parts, each shrunk to its wanted cells, cost less than the whole.

    Parameters
    ----------
    wanted : bool (rows, cols)
    margin : rows and columns that a rectangle needs beyond its own cells, both sides together

    Returns
    -------
    Rows and columns of each rectangle; an empty list if no cell is wanted.
    """
    if not wanted.any():
        return []
    rows, cols = _extents(wanted)
    inner = wanted[rows, cols]
    axis, place, cost = min((_best_cut(inner, axis, margin) for axis in (0, 1)), key=lambda cut: cut[2])
    if cost >= _cost(inner.shape[0], inner.shape[1], margin):
        return [(rows, cols)]
    corners = ((0, 0), (place, 0) if axis == 0 else (0, place))
    return [
        (_shifted(box[0], rows.start + corner[0]), _shifted(box[1], cols.start + corner[1]))
        for corner, part in zip(corners, np.split(inner, [place], axis), strict=True)
        for box in covering_boxes(part, margin)
    ]


def covering_strips(wanted: NDArray[np.bool_], rows: int) -> list[Box]:
    """Return strips of up to `rows` rows of cells, each shrunk to its wanted cells, from top to bottom."""
    strips = []
    for top in range(0, len(wanted), rows):
        strip = wanted[top : top + rows]
        if strip.any():
            held, cols = _extents(strip)
            strips.append((_shifted(held, top), cols))
    return strips


def _best_cut(inner: NDArray[np.bool_], axis: int, margin: int) -> tuple[int, int, float]:
    """Return axis, place and cost of the best straight cut across an axis. All four edges must hold wanted cells."""
    lines = inner if axis == 0 else inner.T
    if len(lines) < 2:
        return axis, 0, inf
    costs = _costs_before(lines, margin) + _costs_before(lines[::-1], margin)[::-1]
    place = int(costs.argmin()) + 1
    return axis, place, float(costs[place - 1])


def _costs_before(lines: NDArray[np.bool_], margin: int) -> NDArray[np.int64]:
    """Return, for each cut, the cost of one rectangle around the wanted cells before it."""
    count, width = lines.shape
    held = lines.any(1)
    height = np.maximum.accumulate(np.where(held, np.arange(1, count + 1), 0))
    left = np.minimum.accumulate(np.where(held, lines.argmax(1), width))
    right = np.maximum.accumulate(np.where(held, width - lines[:, ::-1].argmax(1), 0))
    costs: NDArray[np.int64] = _cost(height, right - left, margin)
    return costs[:-1]


def _cost(height: Any, width: Any, margin: int) -> Any:
    """Return the cost of rectangles of so many cells: their features with the margin, and the price of a pass."""
    return (height + margin) * (width + margin) + PASS_COST


def _extents(wanted: NDArray[np.bool_]) -> Box:
    """Return the rows and columns from the first to the last True."""
    rows, cols = (np.flatnonzero(np.any(wanted, axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def _shifted(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)
