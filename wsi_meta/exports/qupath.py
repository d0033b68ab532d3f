"""GeoJSON that QuPath reads: lesions as annotations, or cells as detections, in the frame of what QuPath shows of a slide."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import UUID, uuid5

import numpy as np

from wsi_meta.annotations.outline_files import TUMOR, closed, collection, feature
from wsi_meta.exports.smooth import smoothed
from wsi_meta.heatmaps.lesions import coverage
from wsi_meta.heatmaps.regions import SIZE_COLOURS, Lesion, at_least
from wsi_meta.heatmaps.store import Heatmap

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CELLS_OF_LESION", "write_annotations", "write_cell_detections"]

Origin = tuple[int, int] | None
"""Corner of what QuPath shows, level-0 pixels; None where it is not known, and positions are level-0 pixels."""
NAMESPACE = UUID("6f2b7f43-9a0e-4c52-8e0c-0d5f4f2a1c77")
"""Ids are made of this, the slide's fingerprint and what is named: the same lesion of the same scan has the same id."""
CELLS_OF_LESION = "Num Cells of map"
"""Name of a measurement that all lesions of ours have, and no other object."""
DECIMALS = 2
"""Of a position, level-0 pixels: a hundredth is some nanometres."""


def write_annotations(heatmap: Heatmap, lesions: Sequence[Lesion], origin: Origin, file: Path, *, smooth: bool) -> None:
    """Write lesions as annotations with ids, colours of their size classes, and measurements named as QuPath names them.

    Parameters
    ----------
    origin : as :func:`wsi_meta.heatmaps.lesions.qupath_origin` returns it for the file that this one will become
    """
    with file.open("w", encoding="utf-8") as text:
        drawn = (_lesion_feature(heatmap, lesion, origin or (0, 0), smooth=smooth) for lesion in lesions)
        _write(text, collection([], origin, **coverage(heatmap)), drawn)


def write_cell_detections(heatmap: Heatmap, origin: Origin, file: Path, *, least: float) -> None:
    """Write the scanned cells whose probability is at least `least` as detections, for QuPath's measurement maps.

    Parameters
    ----------
    origin : as for :func:`write_annotations`
    """
    with file.open("w", encoding="utf-8") as text:
        _write(text, collection([], origin, **coverage(heatmap)), _cell_features(heatmap, origin or (0, 0), least))


def _write(text: IO[str], empty: dict[str, Any], features: Iterator[dict[str, Any]]) -> None:
    """Write a collection one feature a line: a slide has hundreds of thousands of cells."""
    text.write(json.dumps(empty).removesuffix("]}"))
    between = "\n"
    for one in features:
        text.write(between + json.dumps(one))
        between = ",\n"
    text.write("\n]}\n")


def _lesion_feature(heatmap: Heatmap, lesion: Lesion, origin: tuple[int, int], *, smooth: bool) -> dict[str, Any]:
    cell_l0 = heatmap.grid.cell_l0
    outlines = [smoothed(outline, cell_l0) if smooth else outline for outline in lesion.outlines]
    rings = [[_rounded(ring - origin) for ring in (outline.vertices, *outline.holes)] for outline in outlines]
    properties = {
        "objectType": "annotation",
        "name": f"lesion {lesion.number}: {at_least(lesion.size_class, cut=lesion.cut)}",
        "color": SIZE_COLOURS[lesion.size_class],
        "classification": TUMOR,
        "isLocked": True,
        "measurements": {
            "Area µm^2": lesion.area_mm2 * 1e6,
            "Max diameter µm": lesion.diameter_mm * 1000,
            "Probability: Max": lesion.max_probability,
            "Probability: Mean": lesion.mean_probability,
            CELLS_OF_LESION: lesion.cells,
            "Cut by unread cells": int(lesion.cut),
        },
    }
    kind = "Polygon" if len(rings) == 1 else "MultiPolygon"
    return feature(kind, rings[0] if len(rings) == 1 else rings, properties, _id(heatmap, lesion.mark))


def _cell_features(heatmap: Heatmap, origin: tuple[int, int], least: float) -> Iterator[dict[str, Any]]:
    grid, probability, uncertainty = heatmap.grid, heatmap.probability, heatmap.uncertainty
    limits = np.array([grid.width, grid.height])
    for row, col in np.argwhere(probability >= least).tolist():
        measured = {"Probability": float(probability[row, col])}
        if uncertainty is not None:
            measured["Uncertainty"] = float(uncertainty[row, col])
        corners = np.array([(col, row), (col + 1, row), (col + 1, row + 1), (col, row + 1)]) * grid.cell_l0
        properties = {"objectType": "detection", "name": f"cell {row}, {col}", "measurements": measured}
        yield feature(
            "Polygon", [_rounded(np.minimum(corners, limits) - origin)], properties, _id(heatmap, f"cell {row} {col}")
        )


def _rounded(ring: NDArray[np.float64]) -> list[list[float]]:
    return closed(np.round(ring, DECIMALS).tolist())


def _id(heatmap: Heatmap, what: str) -> str:
    identity = heatmap.record.identity
    return str(uuid5(NAMESPACE, f"{identity.slide} {identity.model} {identity.grid.stride_px} {what}"))
