"""Maps of more cells than a picture has pixels: what is unknown, and what is high, is never hidden by what lies beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from wsi_meta.heatmaps.record import Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TUMOR", "Side", "pool", "side_of"]

TUMOR = 0.5
"""Where many cells share a pixel, one of at least this probability is shown before one that is not known."""
WORST_LAST = (Status.BACKGROUND, Status.SCANNED, Status.PENDING, Status.UNREADABLE)


class Side(NamedTuple):
    """Which cells are under the pixels along one side of a picture."""

    cells: slice
    """Those of the map that are seen."""
    under: NDArray[np.int64]
    """Of each pixel the number of its group of cells; -1 where there is none."""
    starts: NDArray[np.int64] | None = None
    """The first cell of each group, from the first that is seen on; None where each cell is a group."""


def side_of(start: float, length: float, under: NDArray[np.int64], end: int, cell_l0: float, cells: int) -> Side | None:
    """Return which cells are under the pixels of a picture; None where there are none.

    Where a pixel is smaller than a cell it shows the one under its centre. Else it shows all whose centres lie in it, and
    those at the edges that are seen in part.

    Parameters
    ----------
    start, length : of what is seen, level-0 pixels
    under : the number of the cell under the centre of each pixel; -1 where there is none
    end, cell_l0, cells : length of the slide and of a cell, level-0 pixels; number of cells
    """
    pixel = length / len(under)
    if pixel <= cell_l0:
        inside = under[under >= 0]
        if not len(inside):
            return None
        first = int(inside.min())
        return Side(slice(first, int(inside.max()) + 1), np.where(under >= 0, under - first, -1))
    first, last = max(0, int(start // cell_l0)), min(cells, int(-((start + length) // -cell_l0)))
    if last <= first or start >= end or start + length <= 0:
        return None
    centres = np.minimum((np.arange(first, last) + 0.5) * cell_l0, end - 0.5)
    pixels = np.clip((centres - start) // pixel, 0, len(under) - 1)
    shown, starts = np.unique(pixels, return_index=True)
    groups = np.searchsorted(shown, np.arange(len(under)), side="right") - 1
    groups[int(shown[-1]) + 1 :] = -1
    return Side(slice(first, last), groups, starts.astype(np.int64))


def pool(
    values: NDArray[np.float32],
    status: NDArray[np.uint8],
    starts: tuple[NDArray[np.int64] | None, NDArray[np.int64] | None],
    hot: float | None,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the highest value and the worst status of groups of cells.

    Parameters
    ----------
    values, status : of the cells, (rows, cols)
    starts : the first row and column of each group; None where each is a group
    hot : a value from which on a cell is shown before what is not known; None for none
    """
    if starts[0] is None and starts[1] is None:
        return values, status

    def highest(array: NDArray[Any]) -> NDArray[Any]:
        for axis, at in enumerate(starts):
            array = array if at is None else np.maximum.reduceat(array, at, axis)
        return array

    pooled = highest(np.nan_to_num(values, nan=-1.0))
    found = np.full(pooled.shape, Status.BACKGROUND, np.uint8)
    for state in WORST_LAST[1:]:
        found[highest(status == state)] = state
    if hot is not None:
        found[pooled >= hot] = Status.SCANNED
    return np.where(pooled < 0, np.nan, pooled).astype(np.float32), found
