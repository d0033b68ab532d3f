"""From a heatmap to its lesions, and to the files that list them."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.annotations.corrected import corrections_beside
from wsi_meta.annotations.detections import Detections, write_detections
from wsi_meta.annotations.outline_files import TUMOR, closed, collection, feature
from wsi_meta.errors import HeatmapError, OptionsError, OutputPathError, all_of, number, numbers
from wsi_meta.heatmaps.record import UNKNOWN, ScanRecord, Status
from wsi_meta.heatmaps.regions import Lesion, at_least, label_regions, measure_regions
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.checks import check_output, refuse_one_name
from wsi_meta.outputs.writing import written_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "MEND_UNREAD",
    "coverage",
    "default_threshold",
    "drawn_lesion",
    "find_lesions",
    "lesion_facts",
    "lesion_thresholds",
    "lesions_at",
    "lesions_of",
    "qupath_origin",
    "to_detections",
    "warn_if_corrected",
    "warn_if_unfinished",
    "write_lesions",
]

logger = logging.getLogger(__name__)

PEAK = "specificity_99"
"""Operating point of the card that a lesion's highest cell must reach, where the card has it and it is the higher one."""
ENDINGS = (".csv", ".geojson")
LESIONS = "lesions, as find_lesions returns them"
MEND_UNREAD = "copy the slide again, or scan again if a network or disk failed"


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

    Hysteresis (Canny 1986): a lesion is a region of cells, joined by sides or corners. All of them have at least `threshold`,
    and one of them has at least `peak`. A lesion is then as large as what looks like tumor, and exists only where a cell is
    surely tumor. Cells that were not scanned belong to no lesion and join none; a lesion that touches one that is pending or
    unreadable is ``cut``. A heatmap that is not complete, or in which no cell was scanned, gives a warning.

    The diameter is the longest distance between midpoints of the cells' sides. It was measured on drawn shapes, where a cell
    is tumor if its centre is: discs of 3 to 60 cells come out between 0.9 cells too short and 1.0 too long (0.65 too long on
    average), ellipses half as wide between 1.8 too short and 1.0 too long. A single cell has the length of its side.

    Parameters
    ----------
    heatmap : store, or path of one
    threshold : calibrated probability that all cells of a lesion have at least; None takes the operating point ``default`` of
        the model that made the heatmap
    peak : calibrated probability that one of its cells has at least; None takes the model's ``specificity_99`` where that is
        higher than `threshold`, else `threshold`. Equal to `threshold` it also keeps unsure lesions, which a FROC curve ranks
    min_area : mm2; smaller lesions are left out
    out : file to write, a table (.csv) or outlines for QuPath (.geojson). In a table positions are level-0 pixels, as OpenSlide
        counts them. Outlines are in QuPath's frame: the corner of :attr:`wsi_meta.Slide.bounds` is taken off, and the file
        says so (member ``wsi_meta``, beside :func:`coverage`), so that :func:`wsi_meta.read_annotations` adds it again
    detections : file to write in Camelyon16's format: a line ``probability,x,y`` with the peak of each lesion. An empty file
        says that there is none, so it is refused where no cell was scanned
    overwrite : replace these files if they exist

    Returns
    -------
    Lesions, the largest first; none found is an empty tuple.

    Raises
    ------
    HeatmapError, OutputExistsError, OutputPathError
    OptionsError
        unless 0 < `threshold` <= `peak` <= 1.
    """
    for path in (path for path in (out, detections) if path is not None):
        check_output(path, overwrite=overwrite)
    if out is not None:
        _refuse_ending(Path(out))
    refuse_one_name(out, detections, "--out and --detections")
    min_area = number("min_area", min_area, "0 mm2 or more", least=0)
    heatmap = open_sound(heatmap)
    found = lesions_of(heatmap, threshold, peak, min_area, as_detections=detections is not None)
    if out is not None:
        write_lesions(out, found, origin=qupath_origin(heatmap, Path(out)), known=coverage(heatmap), overwrite=overwrite)
    if detections is not None:
        write_detections(detections, to_detections(found), overwrite=overwrite)
    return found


def lesions_of(
    heatmap: Heatmap, threshold: float | None, peak: float | None, min_area: float, *, as_detections: bool = False
) -> tuple[Lesion, ...]:
    """Return what :func:`find_lesions` finds in a heatmap that is known to be sound; `as_detections`: for a file of these."""
    thresholds, probability = lesion_thresholds(heatmap.record, threshold, peak), heatmap.probability
    if as_detections and np.isnan(probability).all():
        told = "no cell was scanned, so there are no detections: an empty file would say that nothing is there"
        raise HeatmapError(f"{heatmap.path}: {told}; look at the slide, or scan it to the end")
    warn_if_unfinished(heatmap)
    warn_if_corrected(heatmap)
    return _find(heatmap.record, probability, heatmap.status, thresholds, min_area)


def default_threshold(heatmap: Heatmap) -> float:
    """Return the operating point ``default`` of the model that made a heatmap."""
    return heatmap.record.model.thresholds["default"]


def lesion_thresholds(record: ScanRecord, threshold: float | None = None, peak: float | None = None) -> tuple[float, float]:
    """Return the `threshold` and `peak` that :func:`find_lesions` goes by where it is given these: the model's own for None.

    Raises
    ------
    OptionsError
        when they do not go together.
    """
    thresholds = record.model.thresholds
    threshold = thresholds["default"] if threshold is None else number("threshold", threshold)
    peak = max(threshold, thresholds.get(PEAK, 0.0)) if peak is None else number("peak", peak)
    if not 0 < threshold <= peak <= 1:
        raise OptionsError(f"threshold {threshold}, peak {peak}; expected 0 < threshold <= peak <= 1")
    return threshold, peak


def lesions_at(
    record: ScanRecord, probability: NDArray[np.float32], status: NDArray[np.uint8], threshold: float | None = None
) -> tuple[tuple[Lesion, ...], float]:
    """Return the lesions that :func:`find_lesions` finds at a threshold, and the peak that the model then asks for.

    Parameters
    ----------
    record, probability, status : of the heatmap, as for :func:`lesion_facts`
    threshold : as for :func:`find_lesions`
    """
    thresholds = lesion_thresholds(record, threshold)
    return _find(record, probability, status, thresholds), thresholds[1]


def lesion_facts(record: ScanRecord, probability: NDArray[np.float32], status: NDArray[np.uint8]) -> dict[str, Any]:
    """Return what a store keeps of its lesions: those found by the defaults, and the thresholds that were used.

    Parameters
    ----------
    record : of the heatmap
    probability, status : of the heatmap, float32 and uint8 (rows, cols)

    Returns
    -------
    dict of plain JSON values: ``threshold``, ``peak``, ``min_area_mm2``, and ``found``: for each lesion what
    :meth:`Lesion.to_dict` returns, and its ``outlines``: polygons, each a list of closed rings of x, y in level-0 pixels.
    """
    threshold, peak = lesion_thresholds(record)
    lesions = _find(record, probability, status, (threshold, peak))
    return {"threshold": threshold, "peak": peak, "min_area_mm2": 0.0, "found": [drawn_lesion(lesion) for lesion in lesions]}


def drawn_lesion(lesion: Lesion) -> dict[str, Any]:
    """Return a lesion as :func:`lesion_facts` holds it."""
    return lesion.to_dict() | {"outlines": _polygons(lesion)}


def to_detections(lesions: Sequence[Lesion]) -> Detections:
    """Return one point per lesion, its peak, for :func:`wsi_meta.froc`."""
    lesions = all_of("lesions", lesions, Lesion, LESIONS)
    return Detections(
        np.array([lesion.max_probability for lesion in lesions], np.float64),
        np.array([lesion.peak_x for lesion in lesions], np.int64),
        np.array([lesion.peak_y for lesion in lesions], np.int64),
    )


def write_lesions(
    out: str | Path,
    lesions: Sequence[Lesion],
    *,
    origin: tuple[int, int] | None = None,
    known: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write lesions as a table (.csv) or as GeoJSON with outlines, which QuPath reads (.geojson). Returns the file.

    Parameters
    ----------
    lesions : as :func:`find_lesions` returns them; an empty file says that none was found
    origin : x and y of the level-0 pixel that QuPath counts from, the corner of :attr:`wsi_meta.Slide.bounds`: taken off in
        GeoJSON. None leaves level-0 pixels. The file says which. A table is always in level-0 pixels
    known : what GeoJSON says of how much of the tissue was read, plain JSON values

    Raises
    ------
    OutputExistsError
    OutputPathError
        when the file cannot be written, or has another ending.
    """
    target, lesions = check_output(out, overwrite=overwrite), all_of("lesions", lesions, Lesion, LESIONS)
    origin = None if origin is None else numbers("origin", origin, 2, "x and y")
    _refuse_ending(target)
    rows = [lesion.to_dict() for lesion in lesions]
    with written_whole(target, overwrite=overwrite) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        if target.suffix.lower() == ".csv":
            names = (name for name in Lesion.__dataclass_fields__ if name not in ("number", "outlines"))
            writer = csv.DictWriter(file, ["lesion", "size_class", *names], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        else:
            features = [_feature(lesion.counted_from(*(origin or (0, 0)))) for lesion in lesions]
            json.dump(collection(features, origin, **(known or {})), file)
    return target


def _refuse_ending(out: Path) -> None:
    if out.suffix.lower() not in ENDINGS:
        raise OutputPathError(f"{out}: ending '{out.suffix}'; expected {' or '.join(ENDINGS)}")


def warn_if_unfinished(heatmap: Heatmap, lost: str = "lesions may be missing or cut") -> None:
    """Warn of a heatmap that is not complete, or empty; `lost` says in words what of one that is not may be missing."""
    mend = "scan it again to continue" if heatmap.result is None else MEND_UNREAD
    if heatmap.record.nothing_scanned:
        lost, mend = "that no lesion is found says nothing", "look at the slide, or at its tissue"
    if (why := heatmap.record.why_incomplete) is not None:
        logger.warning("%s: %s; %s; %s", heatmap.path, why, lost, mend)


def coverage(heatmap: Heatmap) -> dict[str, Any]:
    """Return how far results go: ``complete``, the ``verdict``, how many cells are ``scanned``, ``unreadable``, ``pending``."""
    status = heatmap.status
    told = [(state.name.lower(), int((status == state).sum())) for state in (Status.SCANNED, Status.UNREADABLE, Status.PENDING)]
    verdict = heatmap.record.verdict
    return {"complete": heatmap.finished, "verdict": verdict and verdict.to_dict()} | dict(told)


def warn_if_corrected(heatmap: Heatmap) -> None:
    """Warn of corrections beside a heatmap whose lesions are taken from the map alone."""
    if (path := corrections_beside(heatmap.path)).exists():
        told = "%s: %s lies beside it and is not applied here; froc --corrections and sample --mine apply it"
        logger.warning(told, heatmap.path, path.name)


def _find(
    record: ScanRecord,
    probability: NDArray[np.float32],
    status: NDArray[np.uint8],
    thresholds: tuple[float, float],
    min_area: float = 0.0,
) -> tuple[Lesion, ...]:
    regions = label_regions(probability, *thresholds)
    return measure_regions(probability, regions, record.grid, min_area, np.isin(status, UNKNOWN))


def qupath_origin(heatmap: Heatmap, out: Path) -> tuple[int, int] | None:
    """Return the corner of what QuPath shows of a slide; None, with a warning, where an older store does not say."""
    corner = heatmap.record.slide.corner
    if corner is None and out.suffix.lower() == ".geojson":
        told = "%s: does not say which part of the slide QuPath shows, so %s is in level-0 pixels; scan again for it"
        logger.warning(told, heatmap.path, out)
    return corner


def _polygons(lesion: Lesion) -> list[list[list[list[float]]]]:
    """Return a lesion's outlines as GeoJSON's coordinates of a MultiPolygon; rings are closed."""
    return [[closed(ring.tolist()) for ring in (outline.vertices, *outline.holes)] for outline in lesion.outlines]


def _feature(lesion: Lesion) -> dict[str, Any]:
    """Return a lesion as GeoJSON with QuPath's properties."""
    measured = {name: +value for name, value in lesion.to_dict().items() if isinstance(value, (int, float))}
    properties = {
        "objectType": "annotation",
        "name": f"lesion {lesion.number}: {at_least(lesion.size_class, cut=lesion.cut)}",
        "classification": TUMOR,
        "measurements": measured,
    }
    return feature("MultiPolygon", _polygons(lesion), properties)
