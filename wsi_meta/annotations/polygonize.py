"""Borders of regions of cells, along the cells' sides. Pure numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["trace_cells"]

Corner = tuple[int, int]
"""Row and column of a cell's corner."""
STEPS = np.array([(-1, 0), (0, -1), (0, 1), (1, 0)])
"""Rows and columns from a side's first corner to its last: upwards, to the left, to the right, downwards."""
RIGHT, LEFT = np.array([2, 0, 3, 1]), np.array([1, 3, 0, 2])
"""The direction in STEPS after a turn to the right, or left, by direction."""


def trace_cells(region: NDArray[np.bool_]) -> list[list[NDArray[np.float64]]]:
    """Return the borders of a region as valid polygons (OGC simple features): rings touch each other only in single points.

    Cells that meet only at a corner are in different polygons.

    Parameters
    ----------
    region : bool (rows, cols)

    Returns
    -------
    list of polygons, each a list of rings: the outer one, then the holes. A ring is float64 (n, 2), x (col) and y (row) of
    its corners in cells from the region's corner: only those where it turns; the last corner is joined to the first.
    """
    from scipy.ndimage import find_objects, label

    parts, _ = label(region)  # joined by sides, not corners
    polygons = []
    for number, (rows, cols) in enumerate(find_objects(parts), 1):
        walked = _walk(_sides(parts[rows, cols] == number))
        rings = [_straighten(simple) + np.array([cols.start, rows.start]) for ring in walked for simple in _split(ring)]
        polygons.append(sorted(rings, key=_signed_area, reverse=True))  # the outer ring alone runs clockwise
    return polygons


def _sides(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the sides between region and rest, with the region on their right: bool (first corner's row, col, direction)."""
    padded = np.pad(region, 1)
    above_left, above, left, here = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]  # of a corner
    return np.stack([above & ~above_left, above_left & ~left, here & ~above, left & ~here], -1)


def _walk(sides: NDArray[np.bool_]) -> list[list[Corner]]:
    """Join sides to closed rings; where two cells meet at a corner, turn right, to the next side of the same cell."""
    rows, cols, directions = np.nonzero(sides)
    ends = rows + STEPS[directions, 0], cols + STEPS[directions, 1]
    marked = np.flatnonzero(sides)  # in the order of `rows`; an array of all numbers would take gigabytes of a whole slide
    turns = [
        _numbers(marked, np.ravel_multi_index((*ends, turned), sides.shape))
        for turned in (RIGHT[directions], directions, LEFT[directions])
    ]
    onwards = np.where(turns[0] >= 0, turns[0], np.maximum(turns[1], turns[2])).tolist()
    corners = list(zip(rows.tolist(), cols.tolist(), strict=True))
    rings, walked = [], bytearray(len(corners))
    for first in range(len(corners)):
        ring, side = [], first
        while not walked[side]:
            walked[side] = True
            ring.append(corners[side])
            side = onwards[side]
        if ring:
            rings.append(ring)
    return rings


def _numbers(marked: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where in the ascending `marked` each wanted number stands; -1 for those that do not."""
    places = np.searchsorted(marked, wanted).clip(max=max(0, len(marked) - 1))
    return np.where(marked[places] == wanted, places, -1) if len(marked) else places


def _split(ring: list[Corner]) -> list[list[Corner]]:
    """Cut a ring wherever it returns to a corner, so that no part passes a corner twice."""
    if len(set(ring)) == len(ring):
        return [ring]
    parts, path, place = [], list[Corner](), dict[Corner, int]()
    for corner in ring:
        if corner in place:
            parts.append(path[place[corner] :])
            for passed in parts[-1]:
                del place[passed]
            del path[len(path) - len(parts[-1]) :]
        place[corner] = len(path)
        path.append(corner)
    return [*parts, path]


def _straighten(ring: list[Corner]) -> NDArray[np.float64]:
    """Return x and y of the corners where a ring turns."""
    corners = np.array(ring, np.float64)[:, ::-1]
    steps = np.diff(corners, axis=0, prepend=corners[-1:])
    return np.asarray(corners[(steps != np.roll(steps, -1, axis=0)).any(1)])


def _signed_area(ring: NDArray[np.float64]) -> float:
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
