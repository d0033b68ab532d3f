"""The pieces of tissue on a glass, which often holds several nodes.

Cells that touch by a side or a corner are one piece. The mask that is found bridges gaps of up to 80 um before, so tissue that
is farther apart than 0.1 mm is in different pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SPECK", "SPECK_MM2", "TissuePiece", "label_pieces", "measure_pieces"]

SPECK_MM2 = 0.1
"""Smaller pieces are specks: dust, loose cells, bits of fat. They are scanned like all tissue, but not numbered."""
SPECK = -1
"""Label of a speck's cells."""


@dataclass(frozen=True)
class TissuePiece:
    """One piece of tissue; positions are level-0 pixels."""

    piece: int
    """From 1: by the left edge, of equal ones by the upper edge."""
    line: str
    """The piece in words."""
    x: int
    """Upper left corner of its bounding box."""
    y: int
    """Upper left corner of its bounding box."""
    width: int
    height: int
    area_mm2: float
    """Of its cells, which reach over the edges of the tissue."""


def label_pieces(cells: NDArray[np.bool_], cell_um: float) -> NDArray[np.int32]:
    """Return the number of the piece of tissue that each cell is part of; pieces are numbered from the left.

    Parameters
    ----------
    cells : bool (rows, cols), True where there is tissue
    cell_um : side of a cell

    Returns
    -------
    int32 (rows, cols): 0 where there is no tissue, -1 on specks, else the number of the piece.
    """
    from scipy.ndimage import find_objects, label

    near, count = label(cells, np.ones((3, 3)))
    areas = np.bincount(near.ravel(), minlength=count + 1) * (cell_um / 1000) ** 2
    large = {number: box for number, box in enumerate(find_objects(near), 1) if areas[number] >= SPECK_MM2}
    numbers = np.full(count + 1, SPECK, np.int32)
    numbers[0] = 0
    for place, number in enumerate(sorted(large, key=lambda number: (large[number][1].start, large[number][0].start)), 1):
        numbers[number] = place
    return np.asarray(numbers[near])


def measure_pieces(
    labels: NDArray[np.int32], cell_um: float, cell_l0: float, slide_px: tuple[int, int]
) -> tuple[TissuePiece, ...]:
    """Return place and area of the numbered pieces of :func:`label_pieces`.

    Parameters
    ----------
    labels, cell_um : of :func:`label_pieces`
    cell_l0 : side of a cell, level-0 pixels
    slide_px : width and height of the slide, level-0 pixels, beyond which no piece is told to reach
    """
    from scipy.ndimage import find_objects

    found = []
    for number, (rows, cols) in enumerate(find_objects(np.maximum(labels, 0)), 1):
        y, x, bottom, right = (round(edge * cell_l0) for edge in (rows.start, cols.start, rows.stop, cols.stop))
        right, bottom = min(right, slide_px[0]), min(bottom, slide_px[1])
        area = int((labels[rows, cols] == number).sum()) * (cell_um / 1000) ** 2
        line = f"{number}: {area:.2f} mm2 of cells at x {x}, y {y}, {right - x} x {bottom - y} px"
        found.append(TissuePiece(number, line, x, y, right - x, bottom - y, area))
    return tuple(found)
