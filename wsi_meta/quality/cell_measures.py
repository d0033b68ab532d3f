"""What the pixels of each cell are like: how sharp, and how dark.

Sharp or not, two pixels four apart differ by what the tissue is; two neighbours differ much less where the picture is blurred.
So the ratio of both depends neither on the stain nor on its strength. All sums are of integers: a cell's value depends on its
own pixels alone, not on the piece of the slide in which they were read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MEASURES", "BlockMeasures", "measure_cells"]

MEASURES = ("focus", "darkness")
"""The measures of a cell, by their names in a store."""
NEAR_PX, FAR_PX = 1, 4
"""Pixels at the model's mpp between those that are compared."""
GREEN = 1
"""Haematoxylin and eosin both absorb green most."""
LEAST_CONTRAST = 5.0
"""Mean difference of pixels four apart, in grey levels, below which a cell has nothing that could be sharp (glass, fat)."""


def measure_cells(image: NDArray[np.uint8], cell_px: int) -> dict[str, NDArray[np.float32]]:
    """Return what the cells of an image are like.

    Parameters
    ----------
    image : uint8 (height, width, 3), RGB at the model's mpp; what is beyond the last whole cell is not looked at
    cell_px : side of a cell, 8 to 96

    Returns
    -------
    For each of :data:`MEASURES` a float32 array (rows, cols). ``focus``: mean difference of neighbouring pixels divided by that
    of pixels four apart, about 0.5 to 0.8 in focus; NaN where there is too little contrast to tell. ``darkness``: how far green
    lies below 255 on average, 0 to 255.
    """
    rows, cols = (side // cell_px for side in image.shape[:2])
    green = np.ascontiguousarray(image[: rows * cell_px, : cols * cell_px, GREEN])
    near, far = (_mean_difference(green, cell_px, apart) for apart in (NEAR_PX, FAR_PX))
    measurable = far >= LEAST_CONTRAST
    focus = np.where(measurable, near / np.where(measurable, far, 1), np.nan)
    darkness = 255 - _by_cell(_down(green.reshape(rows, cell_px, -1)), cell_px) / cell_px**2
    return {"focus": focus.astype(np.float32), "darkness": darkness.astype(np.float32)}


def _mean_difference(green: NDArray[np.uint8], cell_px: int, apart: int) -> NDArray[np.float64]:
    """Return the mean absolute difference of the pixels of each cell that lie so far apart, down and across."""
    width = green.shape[1]
    stacked = green.reshape(-1, cell_px, width)
    down = _by_cell(_down(_difference(stacked[:, apart:], stacked[:, :-apart])), cell_px)
    across = np.zeros((len(stacked), width), np.uint16)
    across[:, : width - apart] = _down(_difference(stacked[..., apart:], stacked[..., : width - apart]))
    # the last pairs of each cell reach into the next one
    sums = down + _by_cell(across, cell_px, cell_px - apart)
    return np.asarray(sums / (2 * cell_px * (cell_px - apart)))


def _difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(np.maximum(one, other) - np.minimum(one, other))


def _down(values: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Return the sums along the middle axis, of at most 96 values."""
    return np.asarray(values.sum(1, dtype=np.uint16))


def _by_cell(sums: NDArray[np.uint16], cell_px: int, counted: int | None = None) -> NDArray[np.int64]:
    """Return the sums of the first `counted` columns of each cell; None counts all."""
    return np.asarray(sums.reshape(len(sums), -1, cell_px)[..., :counted].sum(-1, dtype=np.int64))


class BlockMeasures:
    """What a block's cells are like, from the pieces of its image as they come. Threads may add different pieces.

    Parameters
    ----------
    shape : rows and columns of the block's cells
    cell_px : side of a cell, pixels at the model's mpp
    margin_px : pixels of the block's image before its first cell, on each side
    """

    def __init__(self, shape: tuple[int, int], cell_px: int, margin_px: int) -> None:
        self._values = {name: np.full(shape, np.nan, np.float32) for name in MEASURES}
        self._shape, self._cell_px, self._margin_px = shape, cell_px, margin_px

    def add(self, top: int, left: int, image: NDArray[np.uint8]) -> None:
        """Measure the cells that lie wholly in a piece whose corner is at (top, left) of the block's image."""
        side = self._cell_px
        rows, cols = (
            self._whole_cells(start, length, cells)
            for start, length, cells in zip((top, left), image.shape[:2], self._shape, strict=True)
        )
        if rows.stop <= rows.start or cols.stop <= cols.start:
            return
        y, x = (self._margin_px + cells.start * side - start for cells, start in ((rows, top), (cols, left)))
        inner = image[y : y + (rows.stop - rows.start) * side, x : x + (cols.stop - cols.start) * side]
        for name, found in measure_cells(inner, side).items():
            self._values[name][rows, cols] = found

    def of(self, cells: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
        """Return the measures of these cells, NaN elsewhere; also where no piece showed a cell."""
        return {name: np.where(cells, values, np.float32(np.nan)) for name, values in self._values.items()}

    def _whole_cells(self, start: int, length: int, cells: int) -> slice:
        """Return the cells that lie wholly in a piece, along one axis."""
        before = start - self._margin_px
        return slice(max(0, -(-before // self._cell_px)), min(cells, (before + length) // self._cell_px))
