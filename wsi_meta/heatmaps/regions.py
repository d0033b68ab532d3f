"""Regions of a map that look like tumor: found, outlined, measured. Pure numpy and scipy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.annotations.outlines import Outline
from wsi_meta.annotations.polygonize import trace_cells

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_meta.tiling.grid import PatchGrid

__all__ = [
    "NODE_OF_CLASS",
    "SIZE_CLASSES",
    "SIZE_COLOURS",
    "Lesion",
    "at_least",
    "label_regions",
    "largest_lesion",
    "longest_distance",
    "measure_regions",
    "numbered",
    "peak_cell",
]

SIZE_CLASSES = (("macrometastasis", 2.0), ("micrometastasis", 0.2), ("isolated tumor cells", 0.0))
"""Names and the diameter, mm, that must be exceeded (AJCC)."""
NODE_OF_CLASS = {"macrometastasis": "macro", "micrometastasis": "micro", "isolated tumor cells": "itc"}
"""CAMELYON17's label of a lymph node by the size class of its largest lesion."""
SIZE_COLOURS = {"macrometastasis": (178, 24, 43), "micrometastasis": (239, 138, 98), "isolated tumor cells": (253, 219, 120)}
"""Red, green and blue of each size class."""


@dataclass(frozen=True, eq=False)
class Lesion:
    """A connected region of cells that look like tumor; positions are level-0 pixels."""

    number: int
    """From 1, the largest area first."""
    x: float
    """Centroid; that of a bent lesion may lie outside it."""
    y: float
    """Centroid."""
    peak_x: int
    """Centre of the cell with the highest probability; of several such cells, the one with the highest surroundings."""
    peak_y: int
    """Centre of that cell."""
    area_mm2: float
    diameter_mm: float
    """Longest distance within the convex hull; see :func:`wsi_meta.find_lesions`."""
    max_probability: float
    mean_probability: float
    cells: int
    outlines: tuple[Outline, ...] = field(repr=False)
    """Along the cells' sides, with holes; several where parts touch only at a corner."""
    cut: bool = False
    """Whether it touches a cell that is pending or unreadable: it may be larger than what was seen of it, never smaller."""

    @property
    def size_class(self) -> str:
        """Macrometastasis over 2 mm, micrometastasis over 0.2 mm, isolated tumor cells below."""
        return next((name for name, limit in SIZE_CLASSES if self.diameter_mm > limit), SIZE_CLASSES[-1][0])

    @property
    def mark(self) -> str:
        """What tells it from all others of the same map, whatever thresholds and numbers they have: its peak and its size."""
        return f"lesion {self.peak_x} {self.peak_y} {self.cells}"

    def to_dict(self) -> dict[str, Any]:
        """Return all but the outlines as plain JSON values."""
        fields = {name: value for name, value in vars(self).items() if name != "outlines"}
        return {"lesion": fields.pop("number"), "size_class": self.size_class, **fields}

    def counted_from(self, x: int, y: int) -> Lesion:
        """Return the lesion with positions that count from this level-0 pixel."""
        outlines = (
            Outline(outline.vertices - (x, y), tuple(hole - (x, y) for hole in outline.holes), outline.name)
            for outline in self.outlines
        )
        peak_x, peak_y = self.peak_x - x, self.peak_y - y
        return replace(self, x=self.x - x, y=self.y - y, peak_x=peak_x, peak_y=peak_y, outlines=tuple(outlines))


def at_least(told: str, *, cut: bool | None) -> str:
    """Return a lesion's size class, or its diameter, in words; of one that is cut it is the least that it can be.

    Parameters
    ----------
    told : the class, or a number with its unit
    cut : as :attr:`Lesion.cut`; None where that is not known
    """
    if not cut or told == SIZE_CLASSES[0][0]:  # there is no class above
        return told
    return f"at least {told}" if told in dict(SIZE_CLASSES) else f"≥ {told}"


def label_regions(probability: NDArray[np.float32], threshold: float, peak: float) -> NDArray[np.int32]:
    """Label connected regions by hysteresis; thresholds as :func:`wsi_meta.find_lesions`.

    Parameters
    ----------
    probability : float32 (rows, cols); NaN where not scanned

    Returns
    -------
    int32 (rows, cols); 0 is no region
    """
    from scipy.ndimage import label

    regions, count = label(probability >= threshold, structure=np.ones((3, 3)))
    sure = np.zeros(count + 1, bool)
    sure[regions[probability >= peak]] = True
    sure[0] = False
    return np.asarray((np.cumsum(sure) * sure)[regions], np.int32)


def numbered(regions: NDArray[np.int32], found: list[dict[str, Any]], grid: PatchGrid) -> NDArray[np.uint32]:
    """Return the regions of :func:`label_regions` under the numbers of their lesions; 0 is no lesion.

    Parameters
    ----------
    regions : int32 (rows, cols)
    found : what :meth:`Lesion.to_dict` returns of each
    grid : where the cells lie
    """
    numbers = np.zeros(int(regions.max(initial=0)) + 1, np.uint32)
    for lesion in found:
        numbers[regions[peak_cell(lesion, grid)]] = lesion["lesion"]
    numbers[0] = 0
    return np.asarray(numbers[regions], np.uint32)


def peak_cell(lesion: dict[str, Any], grid: PatchGrid) -> tuple[int, int]:
    """Return row and column of the cell with a lesion's peak: its centre, but for a last cell that is less than half there."""
    rows, cols = grid.shape
    row = rows - 1 if lesion["peak_y"] >= grid.height - 1 else int(lesion["peak_y"] // grid.cell_l0)
    col = cols - 1 if lesion["peak_x"] >= grid.width - 1 else int(lesion["peak_x"] // grid.cell_l0)
    return row, col


def largest_lesion(found: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the lesion of the longest diameter, which its size class goes by, not its area; None where there are none.

    Parameters
    ----------
    found : what :meth:`Lesion.to_dict` returns of each
    """
    return max(found, key=lambda lesion: float(lesion["diameter_mm"]), default=None)


def measure_regions(
    probability: NDArray[np.float32],
    regions: NDArray[np.int32],
    grid: PatchGrid,
    min_area: float,
    unknown: NDArray[np.bool_] | None = None,
) -> tuple[Lesion, ...]:
    """Measure each region of :func:`label_regions`.

    Parameters
    ----------
    probability : float32 (rows, cols)
    regions : int32 (rows, cols)
    grid : where the cells lie
    min_area : mm2; smaller regions are left out
    unknown : bool (rows, cols), cells that are pending or unreadable; None where there are none

    Returns
    -------
    Lesions, the largest first.
    """
    from scipy.ndimage import binary_dilation, find_objects, uniform_filter

    density = uniform_filter(np.nan_to_num(probability).astype(np.float64), 3, mode="constant")
    found = []
    for number, window in enumerate(find_objects(regions), 1):
        region = regions[window] == number
        corner = np.array([part.start for part in window])
        outlines = _outlines(region, corner, grid)
        area = sum(outline.area for outline in outlines) * grid.slide_mpp**2 / 1e6
        if area >= min_area:
            cells, values = np.argwhere(region) + corner, probability[window][region].astype(np.float64)
            found.append((area, outlines, cells, values, cells[np.lexsort((density[window][region], values))[-1]]))
    found.sort(key=lambda parts: -parts[0])
    beside = None if unknown is None or not unknown.any() else binary_dilation(unknown, np.ones((3, 3)))
    cuts = (beside is not None and bool(beside[tuple(cells.T)].any()) for _, _, cells, _, _ in found)
    return tuple(replace(_lesion(n, *parts, grid), cut=cut) for n, (parts, cut) in enumerate(zip(found, cuts, strict=True), 1))


def _lesion(
    number: int,
    area_mm2: float,
    outlines: tuple[Outline, ...],
    cells: NDArray[np.intp],
    values: NDArray[np.float64],
    peak: NDArray[np.intp],
    grid: PatchGrid,
) -> Lesion:
    y, x = ((cells.mean(0) + 0.5) * grid.cell_l0).tolist()
    peak_y, peak_x = ((peak + 0.5) * grid.cell_l0).astype(int).tolist()
    return Lesion(
        number=number,
        x=min(x, grid.width),
        y=min(y, grid.height),
        peak_x=min(peak_x, grid.width - 1),
        peak_y=min(peak_y, grid.height - 1),
        area_mm2=area_mm2,
        diameter_mm=longest_distance(cells) * grid.cell_um / 1000,
        max_probability=float(values.max()),
        mean_probability=float(values.mean()),
        cells=len(cells),
        outlines=outlines,
    )


def _outlines(region: NDArray[np.bool_], corner: NDArray[np.intp], grid: PatchGrid) -> tuple[Outline, ...]:
    """Return a region's borders in level-0 pixels; cells that extend over the slide's edge are cut at it."""
    limits = (grid.width, grid.height)
    polygons = [[np.minimum((ring + corner[::-1]) * grid.cell_l0, limits) for ring in rings] for rings in trace_cells(region)]
    return tuple(Outline(rings[0], tuple(rings[1:]), "tumor") for rings in polygons)


def longest_distance(cells: NDArray[np.intp]) -> float:
    """Return the longest distance between midpoints of sides, in cells, of cells (n, 2)."""
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist

    # the four points round a cell's centre span an area, so a hull exists even for one cell
    sides = np.array([(0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5)])
    points = (cells[:, None] + sides).reshape(-1, 2)
    return float(pdist(points[ConvexHull(points).vertices]).max())
