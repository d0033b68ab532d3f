"""What is seen through a window on a slide: its tissue, and the map blended over it, pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.errors import OptionsError, numbers
from wsi_meta.heatmaps.record import ScanRecord
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.pictures.colours import HATCHED, blend, colour_cells
from wsi_meta.pictures.pooling import TUMOR, Side, pool, side_of
from wsi_meta.slides.overview import read_in_parts
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.grid import PatchGrid

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DARKER", "UNSEEN", "UNSEEN_WORDS", "Map", "Window", "hatch", "read_ground", "read_window", "window_of_region"]

UNSEEN = ((255, 255, 255), (205, 150, 155))
"""Colours, RGB, of the stripes where the slide's pixels could not be read."""
UNSEEN_WORDS = "slide's pixels cannot be read"
BAND_PX = 256
"""Rows that are blended at a time: RGBA of a whole large picture would take gigabytes."""
STRIPE_PX = 5
DARKER = 0.45
"""Share of a colour that is left in the dark stripes over it."""


@dataclass(frozen=True)
class Window:
    """A rectangle of a slide, level-0 pixels; it may reach over the slide's edge."""

    x: float
    y: float
    width: float
    height: float

    def pixels(self, longer_side: int) -> tuple[int, int]:
        """Return (rows, cols) of a picture of it whose longer side has so many pixels."""
        scale = longer_side / max(self.width, self.height)
        return max(1, round(self.height * scale)), max(1, round(self.width * scale))


@dataclass(frozen=True, eq=False)
class Map:
    """What is drawn of a heatmap, and how; see :func:`wsi_meta.draw_overlay`."""

    record: ScanRecord
    values: NDArray[np.float32]
    """Of the layer, (rows, cols)."""
    status: NDArray[np.uint8]
    layer: str
    alpha: float | None
    """None: no tissue lies beneath, and known cells are opaque."""
    threshold: float

    @property
    def grid(self) -> PatchGrid:
        """Where the cells lie."""
        return self.record.identity.grid

    def cells(self, window: Window, shape: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the row of the cell under each row of pixels of a picture, and the column under each column.

        -1 where there is no cell: beyond the slide's edge.
        """
        grid = self.grid
        return (
            _under(_centres(window.y, window.height, shape[0]), grid.height, grid.cell_l0, self.values.shape[0]),
            _under(_centres(window.x, window.width, shape[1]), grid.width, grid.cell_l0, self.values.shape[1]),
        )

    def sides(self, window: Window, shape: tuple[int, int]) -> tuple[Side, Side] | None:
        """Return which cells are under the rows and under the columns of a picture; None where there are none."""
        grid, (rows, cols) = self.grid, self.cells(window, shape)
        down = side_of(window.y, window.height, rows, grid.height, grid.cell_l0, self.values.shape[0])
        across = side_of(window.x, window.width, cols, grid.width, grid.cell_l0, self.values.shape[1])
        return None if down is None or across is None else (down, across)

    def over(self, ground: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
        """Return a picture of the tissue of a window, uint8 RGB (rows, cols, 3), with the map blended over it."""
        if (sides := self.sides(window, (ground.shape[0], ground.shape[1]))) is None:
            return ground
        rows, cols = sides[0].under, sides[1].under
        values, status = self._pooled(sides)
        colours = colour_cells(values, status, self.layer, self.alpha, self.threshold)
        hatched = np.isin(status, HATCHED)
        picture = np.empty_like(ground)
        inside = np.maximum(cols, 0)
        for top in range(0, len(rows), BAND_PX):
            band = slice(top, top + BAND_PX)
            under = np.maximum(rows[band], 0)
            shown = colours[under[:, None], inside[None]]
            shown[rows[band] < 0] = 0
            shown[:, cols < 0] = 0
            picture[band] = blend(ground[band], hatch(shown, hatched[under[:, None], inside[None]], top))
        return picture

    def striped(self, window: Window, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return which pixels of a picture show stripes of cells that may hold anything; bool (rows, cols)."""
        if (sides := self.sides(window, shape)) is None:
            return np.zeros(shape, bool)
        rows, cols = sides[0].under[:, None], sides[1].under[None]
        hatched = np.isin(self._pooled(sides)[1], HATCHED)
        return np.asarray(hatched[np.maximum(rows, 0), np.maximum(cols, 0)] & (rows >= 0) & (cols >= 0))

    def _pooled(self, sides: tuple[Side, Side]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return values and status of the squares of cells that a picture shows."""
        part, hot = (sides[0].cells, sides[1].cells), TUMOR if self.layer == "probability" else None
        return pool(self.values[part], self.status[part], (sides[0].starts, sides[1].starts), hot)


def stripes(shape: tuple[int, int], top: int = 0) -> NDArray[np.bool_]:
    """Return oblique stripes: every other one True; bool (rows, cols) of the rows from `top` on."""
    rows, cols = np.ogrid[top : top + shape[0], : shape[1]]
    return np.asarray((rows + cols) // STRIPE_PX % 2 == 1)


def hatch(colours: NDArray[np.float64], where: NDArray[np.bool_], top: int = 0) -> NDArray[np.float64]:
    """Return colours of pixels (RGBA, from the row `top` on) with dark stripes where a picture knows nothing, in place."""
    colours[where & stripes((where.shape[0], where.shape[1]), top), :3] *= DARKER
    return colours


def window_of_region(region: tuple[int, int, int, int], heatmap: Heatmap) -> Window:
    """Return a region of a slide as a window.

    Raises
    ------
    OptionsError
        unless it lies on the slide.
    """
    x, y, width, height = numbers("region", region, 4, "X,Y,WIDTH,HEIGHT")
    grid = heatmap.grid
    if width <= 0 or height <= 0 or x < 0 or y < 0 or x + width > grid.width or y + height > grid.height:
        raise OptionsError(
            f"region {x},{y},{width},{height}; expected X,Y,WIDTH,HEIGHT within the slide, {grid.width} x {grid.height} "
            f"level-0 pixels ({heatmap.record.slide.file})"
        )
    return Window(x, y, width, height)


def read_ground(slide: Slide | None, window: Window, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return what :func:`read_window` does; without a slide white pixels, all of them readable."""
    if slide is not None:
        return read_window(slide, window, shape)
    return np.full((*shape, 3), 255, np.uint8), np.ones(shape, bool)


def read_window(slide: Slide, window: Window, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read a window of a slide as a picture of exactly this shape: averaged down, or enlarged where the slide has no more.

    Parts that cannot be read are made smaller until only the damage is left.

    Parameters
    ----------
    shape : (rows, cols) of the picture

    Returns
    -------
    uint8 (rows, cols, 3), RGB, and bool (rows, cols): False where it could not be read; striped there. Beyond the slide's edge
    it has the slide's background colour.
    """
    from PIL import Image

    mpp = max(slide.mpp, slide.mpp * min(window.height / shape[0], window.width / shape[1]))
    l0_per_px = float(slide.check_resolution(mpp))
    left, top = window.x / l0_per_px, window.y / l0_per_px
    right, bottom = left + window.width / l0_per_px, top + window.height / l0_per_px
    corner_x, corner_y = floor(left), floor(top)
    plane = max(1, ceil(bottom - 1e-9) - corner_y), max(1, ceil(right - 1e-9) - corner_x)

    def read(x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        return slide.read_at(mpp, corner_x + x, corner_y + y, width, height)

    image, readable, _ = read_in_parts(read, plane, slide.tile_px_at(mpp) / 2, slide.background)
    box = (left - corner_x, top - corner_y, min(right - corner_x, plane[1]), min(bottom - corner_y, plane[0]))
    size = shape[1], shape[0]
    shown = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, box))
    seen = np.asarray(Image.fromarray(readable.astype(np.uint8)).resize(size, Image.Resampling.NEAREST, box)) > 0
    if not seen.all():
        pale, dark = np.array(UNSEEN, np.uint8)
        shown[~seen] = np.where(stripes(shape)[~seen, None], dark, pale)
    return shown, seen


def _centres(start: float, length: float, pixels: int) -> NDArray[np.float64]:
    return np.asarray(start + (np.arange(pixels) + 0.5) * length / pixels)


def _under(places: NDArray[np.float64], end: int, cell_l0: float, cells: int) -> NDArray[np.int64]:
    """Return the number of the cell under each place along one side; -1 outside the slide and the map."""
    found = np.floor(places / cell_l0).astype(np.int64)
    return np.where((places >= 0) & (places < end) & (found < cells), found, -1)
