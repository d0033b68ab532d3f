"""A heatmap as DICOM: lesions as a Segmentation, probabilities as a Parametric Map, by highdicom."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta import __version__
from wsi_meta.errors import OptionsError, require
from wsi_meta.exports.dicom_frame import (
    MADE,
    MAKER,
    made_placement,
    made_source,
    made_uid,
    read_level0,
    source_of,
    stated_placement,
)
from wsi_meta.heatmaps.record import UNKNOWN
from wsi_meta.heatmaps.regions import Lesion, at_least, label_regions, numbered
from wsi_meta.heatmaps.scoring import none_found
from wsi_meta.heatmaps.store import Heatmap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_meta.tiling.grid import PatchGrid

__all__ = ["segment_cells", "write_parametric_map", "write_segmentation"]

logger = logging.getLogger(__name__)

TILE_CELLS = 256
"""Side of a frame: the map is stored in frames of so many cells."""
MOST_SEGMENTS = 65_000
"""DICOM counts segments with 16 bits."""
NOT_READ = "not read: may hold tumor"


def write_segmentation(
    heatmap: Heatmap,
    lesions: Sequence[Lesion],
    thresholds: tuple[float, float],
    file: Path,
    *,
    min_area: float = 0.0,
    slide: str | Path | None,
) -> None:
    """Write each lesion as a segment of its own, in cells; one more holds the cells that could not be read or wait.

    Parameters
    ----------
    lesions, thresholds, min_area : as :func:`wsi_meta.find_lesions` finds them by this threshold, peak and least area, mm2
    slide : where it is a DICOM slide that says where it lies, the file is in its frame of reference, patient and study

    Raises
    ------
    HeatmapError
        when `slide` is another one.
    DeviceError
        without highdicom.
    OptionsError
        for more lesions than DICOM can hold.
    """
    hd, _ = _load()
    if len(lesions) > MOST_SEGMENTS:
        raise OptionsError(f"{len(lesions)} lesions; DICOM holds {MOST_SEGMENTS} at most; leave small ones out by --min-area")
    common = _make(heatmap, slide, "lesions")
    cells = segment_cells(heatmap.probability, heatmap.status, lesions, thresholds, heatmap.grid)
    descriptions = _describe(heatmap, lesions, thresholds, min_area, unknown=bool((cells > len(lesions)).any()))
    segmentation = hd.seg.Segmentation(
        pixel_array=cells[None],
        segmentation_type="BINARY",
        segment_descriptions=descriptions,
        content_label="LESIONS",
        content_description="lesions found by wsi-meta; research use only",
        series_number=1001,
        omit_empty_frames=bool(cells.any()),  # else highdicom warns
        **common,
    )
    segmentation.save_as(file)


def write_parametric_map(heatmap: Heatmap, file: Path, *, slide: str | Path | None) -> None:
    """Write the probability of each cell as a 32-bit float; NaN is a cell that was not scanned.

    Parameters and errors are those of :func:`write_segmentation`.
    """
    hd, codes = _load()
    common = _make(heatmap, slide, "probability")
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="PROBABILITY",
        lut_explanation="probability of tumor; NaN: not scanned",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.DCM.ProbabilityOfCancer,
    )
    parametric_map = hd.pm.ParametricMap(
        pixel_array=heatmap.probability[None],
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
        contains_recognizable_visual_features=False,
        content_label="TUMOR",
        content_description="probability of tumor by wsi-meta; research use only",
        series_number=1002,
        **common,
    )
    parametric_map.save_as(file)


def segment_cells(
    probability: NDArray[np.float32],
    status: NDArray[np.uint8],
    lesions: Sequence[Lesion],
    thresholds: tuple[float, float],
    grid: PatchGrid,
) -> NDArray[np.uint16]:
    """Return the number of the lesion of each cell, 0 where there is none; one more than the last where any may be.

    Parameters
    ----------
    probability, status : (rows, cols)
    lesions, thresholds : found by this threshold and peak
    grid : where the cells lie
    """
    regions = label_regions(probability, *thresholds)
    cells = numbered(regions, [lesion.to_dict() for lesion in lesions], grid).astype(np.uint16)
    cells[np.isin(status, UNKNOWN)] = len(lesions) + 1
    return cells


def _describe(
    heatmap: Heatmap, lesions: Sequence[Lesion], thresholds: tuple[float, float], min_area: float, *, unknown: bool
) -> list[Any]:
    """Return what a Segmentation says of its segments: one for each lesion, one for what is `unknown`, one at least."""
    hd, codes = _load()
    tumor, record = codes.SCT.NeoplasmMetastatic, heatmap.record
    labels = [
        (f"lesion {lesion.number}: {at_least(lesion.size_class, cut=lesion.cut)}", tumor, lesion.mark) for lesion in lesions
    ]
    labels += [(NOT_READ, codes.SCT.Unknown, NOT_READ)] * unknown
    if not labels:
        least = f" ({min_area:g} mm2 or more)" if min_area and not record.nothing_scanned else ""
        labels = [(none_found(record) + least, codes.SCT.Unknown if record.nothing_scanned else tumor, "none")]
    algorithm = hd.AlgorithmIdentificationSequence(
        "wsi-meta",
        codes.DCM.ArtificialIntelligence,
        __version__,
        parameters={
            "threshold": f"{thresholds[0]:g}",
            "peak": f"{thresholds[1]:g}",
            "min_area_mm2": f"{min_area:g}",
            "model": record.identity.model,
        },
    )
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=kind,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=made_uid(heatmap, f"{record.identity.model} {mark}"),
            tracking_id=label,
        )
        for number, (label, kind, mark) in enumerate(labels, 1)
    ]


def _load() -> tuple[Any, Any]:
    """Return highdicom and pydicom's codes."""
    require("dicom", "DICOM", instead="; or choose another form, such as .ome.tif or .geojson")
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom, codes


def _make(heatmap: Heatmap, slide: str | Path | None, what: str) -> dict[str, Any]:
    """Return what both kinds of file have in common: keyword arguments of highdicom's classes."""
    hd, _ = _load()
    level0 = None if slide is None else read_level0(heatmap, slide)
    stated = None if level0 is None else stated_placement(level0)
    placement = stated or made_placement(heatmap)
    if stated is None:
        why = "no DICOM slide was given" if level0 is None else f"{slide} does not say where it lies"
        logger.warning("%s: %s; the frame of reference is made, and fits no other image", heatmap.path, why)
    grid = heatmap.grid
    position = hd.PlanePositionSequence("SLIDE", placement.first_cell(grid), (1, 1))
    return {
        "source_images": [made_source(heatmap, placement) if stated is None else source_of(level0)],
        "series_instance_uid": hd.UID(),
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": MAKER,
        "manufacturer_model_name": "wsi-meta",
        "software_versions": __version__,
        "device_serial_number": heatmap.record.identity.model[:16],
        "series_description": f"wsi-meta: {what}" if stated is not None else MADE,
        "pixel_measures": hd.PixelMeasuresSequence(placement.cell_spacing(grid), slice_thickness=0.0),
        "plane_orientation": hd.PlaneOrientationSequence("SLIDE", placement.orientation),
        "plane_positions": [position],
        "tile_pixel_array": True,
        "tile_size": (TILE_CELLS, TILE_CELLS),
    }
