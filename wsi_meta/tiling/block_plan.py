"""What a block is seen in: rectangles round its wanted cells, and the pieces of its image that they need. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BAND_PX", "LEAST_BAND_ROWS", "BlockCut", "band_rows", "covering_boxes", "covering_strips"]

PIECE_PX = 1 << 20
"""Pixels of a piece of a block's image, where it need not be in one piece."""
BAND_PX = 1 << 17
"""Pixels of a band in dense mode: its activations are megabytes."""
LEAST_BAND_ROWS = 32
"""Pixel rows of a band of a wide image."""
PASS_COST = 60
"""What one more pass of dense mode costs by itself, in cells."""

Box = tuple[slice, slice]
"""Rows and columns, of cells or of pixels."""


@dataclass(frozen=True)
class BlockCut:
    """How a predictor has the blocks cut that it is to see."""

    patch_px: int
    halo_px: int
    """Pixels that are seen beyond a rectangle's patches on each side."""
    dense: bool
    """Whether rectangles are seen whole, and not patch by patch."""
    from_top: bool
    """Whether rectangles are seen from top to bottom, in bands."""

    def boxes(self, wanted: NDArray[np.bool_], stride_px: int) -> list[Box]:
        """Return the rectangles of cells that a block is seen in.

        Parameters
        ----------
        wanted : bool (rows, cols), the block's cells that are to be predicted
        stride_px : side of a cell, pixels at the model's mpp
        """
        if self.dense:
            return covering_boxes(wanted, self._beyond_px(stride_px) // stride_px)
        return covering_strips(wanted, max(1, PIECE_PX // (wanted.shape[1] * stride_px**2)))

    def pieces(self, box: Box, stride_px: int) -> list[Box]:
        """Return the pixels of a rectangle of cells, in the block's image with halo: one piece, or from top to bottom."""
        rows, cols = (slice(ends.start * stride_px, ends.stop * stride_px + self._beyond_px(stride_px)) for ends in box)
        if not self.from_top:
            return [(rows, cols)]
        width = cols.stop - cols.start
        step = band_rows(width) * max(1, PIECE_PX // (band_rows(width) * width))
        return [(slice(top, min(top + step, rows.stop)), cols) for top in range(rows.start, rows.stop, step)]

    def _beyond_px(self, stride_px: int) -> int:
        """Return what a rectangle needs beyond its cells, both sides together."""
        return 2 * self.halo_px + self.patch_px - stride_px


def band_rows(width_px: int) -> int:
    """Return the pixel rows of a band of an image that is so wide."""
    return max(LEAST_BAND_ROWS, BAND_PX // width_px // 32 * 32)


def covering_boxes(wanted: NDArray[np.bool_], margin: int) -> list[Box]:
    """Return rectangles of cells that hold all wanted ones and are cheap to compute densely.

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
    """Return axis, place and cost of the best straight cut across an axis; all four edges hold wanted cells."""
    lines = inner if axis == 0 else inner.T
    if len(lines) < 2:
        return axis, 0, inf
    costs = _costs_before(lines, margin) + _costs_before(lines[::-1], margin)[::-1]
    place = int(costs.argmin()) + 1
    return axis, place, float(costs[place - 1])


def _costs_before(lines: NDArray[np.bool_], margin: int) -> NDArray[np.int64]:
    """Return what the wanted cells before each cut cost in one rectangle."""
    count, width = lines.shape
    held = lines.any(1)
    height = np.maximum.accumulate(np.where(held, np.arange(1, count + 1), 0))
    left = np.minimum.accumulate(np.where(held, lines.argmax(1), width))
    right = np.maximum.accumulate(np.where(held, width - lines[:, ::-1].argmax(1), 0))
    costs: NDArray[np.int64] = _cost(height, right - left, margin)
    return costs[:-1]


def _cost(height: Any, width: Any, margin: int) -> Any:
    """Return what rectangles of that many cells cost: their features with the margin, and a fixed price."""
    return (height + margin) * (width + margin) + PASS_COST


def _extents(wanted: NDArray[np.bool_]) -> Box:
    """Return the rows and columns from the first to the last True."""
    rows, cols = (np.flatnonzero(np.any(wanted, axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def _shifted(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)
