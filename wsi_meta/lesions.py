"""From a heatmap to lesions: where they are, how large, how sure. Pure numpy and scipy on the calibrated map."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.benchmark.annotations import Outline
from wsi_meta.benchmark.detections import Detections, write_detections
from wsi_meta.contours import trace_cells
from wsi_meta.errors import OutputPathError
from wsi_meta.heatmap import Heatmap
from wsi_meta.outputs import check_output, written_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_meta.grid import PatchGrid

__all__ = [
    "SIZE_CLASSES",
    "Lesion",
    "LesionOptionsError",
    "default_threshold",
    "find_lesions",
    "label_regions",
    "to_detections",
    "write_lesions",
]

logger = logging.getLogger(__name__)

SIZE_CLASSES = (("macrometastasis", 2.0), ("micrometastasis", 0.2), ("isolated tumor cells", 0.0))
"""Names and the diameter, mm, that must be exceeded (AJCC; CAMELYON17's labels macro, micro and itc)."""
PEAK = "specificity_99"
"""Operating point of the card that a lesion's highest cell must reach, where the card has it and it is the stricter."""
ENDINGS = (".csv", ".geojson")


class LesionOptionsError(ValueError):
    """Thresholds that contradict each other."""


@dataclass(frozen=True, eq=False)
class Lesion:
    """A connected region of cells that look like tumor; positions are level-0 pixels."""

    number: int
    """From 1, the largest area first."""
    x: float
    """Centroid; in a bent lesion it may lie outside."""
    y: float
    """Centroid."""
    peak_x: int
    """Centre of the cell with the highest probability, in the densest place where several have it."""
    peak_y: int
    """Centre of that cell."""
    area_mm2: float
    diameter_mm: float
    """Longest distance within the convex hull; see :func:`find_lesions`."""
    max_probability: float
    mean_probability: float
    cells: int
    outlines: tuple[Outline, ...]
    """Along the cells' sides, with holes; several where parts touch only at a corner."""

    @property
    def size_class(self) -> str:
        """Macrometastasis over 2 mm, micrometastasis over 0.2 mm, isolated tumor cells below."""
        return next((name for name, limit in SIZE_CLASSES if self.diameter_mm > limit), SIZE_CLASSES[-1][0])

    def to_dict(self) -> dict[str, Any]:
        """Give all but the outlines as plain JSON values."""
        fields = {name: value for name, value in vars(self).items() if name != "outlines"}
        return {"lesion": fields.pop("number"), "size_class": self.size_class, **fields}


def find_lesions(
    heatmap: str | Path | Heatmap,
    *,
    threshold: float | None = None,
    peak: float | None = None,
    min_area: float = 0.0,
    out: str | Path | None = None,
    detections: str | Path | None = None,
    overwrite: bool = False,
) -> tuple[Lesion, ...]:
    """Find the lesions of a heatmap.

    Hysteresis (Canny 1986): a lesion is a region of cells, joined by sides or corners, that all have at least `threshold` and
    one of which at least `peak`: as large as what looks like tumor, but only where something surely does. Cells that were not
    scanned belong to none and join none; a heatmap that is not complete gives a warning.

    The diameter is the longest distance between midpoints of the cells' sides. Where cells are tumor whose centre is, discs
    of 3 to 60 cells come out 0.9 cells too short to 1.0 too long, 0.65 too long on average; ellipses half as wide 1.8 too
    short to 1.0 too long (measured). Corners of cells would add up to 0.7 cells to that, centres take 0.7 to 1 away. A single
    cell has the length of its side.

    Parameters
    ----------
    heatmap : store, or path of one
    threshold : calibrated probability that all cells of a lesion have; None takes the operating point ``default`` of the
        model, which the store keeps
    peak : calibrated probability that one of its cells has; None takes the model's ``specificity_99`` where that is higher
        than `threshold`, else `threshold`. Equal to `threshold` it keeps unsure lesions too, which a FROC curve can rank
    min_area : mm2; smaller lesions are left out
    out : file to write, a table (.csv) or outlines for QuPath (.geojson)
    detections : file to write in Camelyon16's format: a line ``probability,x,y`` per lesion, its peak
    overwrite : replace these files if they exist

    Returns
    -------
    Lesions, the largest first; none found is an empty tuple.

    Raises
    ------
    HeatmapError, OutputExistsError, OutputPathError
    LesionOptionsError
        unless 0 < `threshold` <= `peak` <= 1.
    """
    files = [Path(path) for path in (out, detections) if path is not None]
    for path in files:
        check_output(path, overwrite=overwrite)
    if out is not None and Path(out).suffix.lower() not in ENDINGS:
        raise OutputPathError(f"{out}: ending '{Path(out).suffix}'; expected {' or '.join(ENDINGS)}")
    heatmap = heatmap if isinstance(heatmap, Heatmap) else Heatmap.open(heatmap)
    threshold = default_threshold(heatmap) if threshold is None else threshold
    peak = max(threshold, heatmap.facts["model"]["thresholds"].get(PEAK, 0.0)) if peak is None else peak
    if not 0 < threshold <= peak <= 1:
        raise LesionOptionsError(f"threshold {threshold}, peak {peak}; expected 0 < threshold <= peak <= 1")
    if not heatmap.finished:
        logger.warning("%s: not scanned to the end; lesions may be missing or cut; scan it again to go on", heatmap.path)
    probability = heatmap.probability
    found = _measure(probability, label_regions(probability, threshold, peak), heatmap.grid, min_area)
    if out is not None:
        write_lesions(out, found, overwrite=overwrite)
    if detections is not None:
        write_detections(detections, to_detections(found), overwrite=overwrite)
    return found


def default_threshold(heatmap: Heatmap) -> float:
    """Give the operating point ``default`` of the model that made a heatmap."""
    return float(heatmap.facts["model"]["thresholds"]["default"])


def label_regions(probability: NDArray[np.float32], threshold: float, peak: float) -> NDArray[np.int32]:
    """Label connected regions by hysteresis; parameters as :func:`find_lesions`.

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


def to_detections(lesions: Sequence[Lesion]) -> Detections:
    """Give one point per lesion, its peak, as :func:`wsi_meta.froc` judges them."""
    return Detections(
        np.array([lesion.max_probability for lesion in lesions], np.float64),
        np.array([lesion.peak_x for lesion in lesions], np.int64),
        np.array([lesion.peak_y for lesion in lesions], np.int64),
    )


def write_lesions(out: str | Path, lesions: Sequence[Lesion], *, overwrite: bool = False) -> Path:
    """Write lesions as a table (.csv) or as GeoJSON with outlines, which QuPath reads (.geojson).

    Raises
    ------
    OutputExistsError, OutputPathError
    """
    target = check_output(out, overwrite=overwrite)
    rows = [lesion.to_dict() for lesion in lesions]
    with written_whole(target) as partial, partial.open("w", newline="") as file:
        if target.suffix.lower() == ".csv":
            names = [
                "lesion",
                "size_class",
                *(name for name in Lesion.__dataclass_fields__ if name not in ("number", "outlines")),
            ]
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        else:
            features = [_feature(lesion) for lesion in lesions]
            json.dump({"type": "FeatureCollection", "features": features}, file)
    return target


def _measure(
    probability: NDArray[np.float32], regions: NDArray[np.int32], grid: PatchGrid, min_area: float
) -> tuple[Lesion, ...]:
    """Measure each region; the largest first, those smaller than `min_area` (mm2) left out."""
    from scipy.ndimage import find_objects, uniform_filter

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
    return tuple(_lesion(number, *parts, grid) for number, parts in enumerate(found, 1))


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
        diameter_mm=_longest(cells) * grid.cell_um / 1000,
        max_probability=float(values.max()),
        mean_probability=float(values.mean()),
        cells=len(cells),
        outlines=outlines,
    )


def _outlines(region: NDArray[np.bool_], corner: NDArray[np.intp], grid: PatchGrid) -> tuple[Outline, ...]:
    """Give a region's borders in level-0 pixels; cells that reach over the slide's edge are cut there."""
    limits = (grid.width, grid.height)
    polygons = [[np.minimum((ring + corner[::-1]) * grid.cell_l0, limits) for ring in rings] for rings in trace_cells(region)]
    return tuple(Outline(rings[0], tuple(rings[1:]), "tumor") for rings in polygons)


def _longest(cells: NDArray[np.intp]) -> float:
    """Give the longest distance between midpoints of sides, in cells, of cells (n, 2)."""
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist

    # four points round each centre span an area, so there is always a hull
    sides = np.array([(0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5)])
    points = (cells[:, None] + sides).reshape(-1, 2)
    return float(pdist(points[ConvexHull(points).vertices]).max())


def _feature(lesion: Lesion) -> dict[str, Any]:
    """Give a lesion as GeoJSON with QuPath's properties; rings are closed."""
    polygons = [
        [[*ring.tolist(), ring[0].tolist()] for ring in (outline.vertices, *outline.holes)] for outline in lesion.outlines
    ]
    measured = {name: value for name, value in lesion.to_dict().items() if isinstance(value, (int, float))}
    return {
        "type": "Feature",
        "geometry": {"type": "MultiPolygon", "coordinates": polygons},
        "properties": {
            "objectType": "annotation",
            "name": f"lesion {lesion.number}: {lesion.size_class}",
            "classification": {"name": "Tumor", "color": [200, 0, 0]},
            "measurements": measured,
        },
    }
