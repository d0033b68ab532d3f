"""Borders of regions of cells, along the cells' sides. Pure numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["trace_cells"]

Corner = tuple[int, int]
"""Row and column of a cell's corner."""
Side = tuple[Corner, Corner]
"""A side of a cell, from corner to corner."""


def trace_cells(region: NDArray[np.bool_]) -> list[list[NDArray[np.float64]]]:
    """Give the borders of a region as valid polygons (OGC simple features): rings that touch in points at most.

    Cells that meet only at a corner are in different polygons.

    Parameters
    ----------
    region : bool (rows, cols)

    Returns
    -------
    list of polygons, each a list of rings: the outer one, then the holes. A ring is float64 (n, 2), x (col) and y (row) of
    its corners in cells from the region's corner, only where it turns; the last corner is joined to the first.
    """
    from scipy.ndimage import find_objects, label

    parts, _ = label(region)  # joined by sides, not corners
    polygons = []
    for number, (rows, cols) in enumerate(find_objects(parts), 1):
        sides = _sides(parts[rows, cols] == number)
        rings = [_straighten(simple) + np.array([cols.start, rows.start]) for ring in _walk(sides) for simple in _split(ring)]
        polygons.append(sorted(rings, key=_signed_area, reverse=True))  # the outer ring alone runs clockwise
    return polygons


def _sides(region: NDArray[np.bool_]) -> set[Side]:
    """Give the sides between region and rest, the region on their right."""
    padded = np.pad(region, 1)
    sides: set[Side] = set()
    for neighbour, start, end in (
        (padded[:-2, 1:-1], (0, 0), (0, 1)),
        (padded[1:-1, 2:], (0, 1), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (1, 0)),
        (padded[1:-1, :-2], (1, 0), (0, 0)),
    ):
        cells = np.argwhere(region & ~neighbour).tolist()
        sides.update(((row + start[0], col + start[1]), (row + end[0], col + end[1])) for row, col in cells)
    return sides


def _walk(sides: set[Side]) -> list[list[Corner]]:
    """Join sides to closed rings; where two cells meet at a corner, turn right, which stays at the same cell."""
    onwards: dict[Corner, list[Corner]] = {}
    for start, end in sides:
        onwards.setdefault(start, []).append(end)
    rings, left = [], set(sides)
    for side in sorted(sides):
        ring = []
        while side in left:
            left.remove(side)
            ring.append(side[0])
            (row, col), here = side
            right = (here[0] + here[1] - col, here[1] - here[0] + row)
            side = (here, right if right in onwards[here] else onwards[here][0])
        if ring:
            rings.append(ring)
    return rings


def _split(ring: list[Corner]) -> list[list[Corner]]:
    """Cut a ring where it comes to the same corner again, so that each part is there once."""
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
    """Give x and y of the corners where a ring turns."""
    corners = np.array(ring, np.float64)[:, ::-1]
    steps = np.diff(corners, axis=0, prepend=corners[-1:])
    return np.asarray(corners[(steps != np.roll(steps, -1, axis=0)).any(1)])


def _signed_area(ring: NDArray[np.float64]) -> float:
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
