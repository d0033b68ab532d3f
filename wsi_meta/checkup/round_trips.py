"""A map in every form that other programs read: written, and read back."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import missing_libraries
from wsi_meta.words import from_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_meta.heatmaps.store import Heatmap

    Map = NDArray[np.floating[Any]]

__all__ = ["READERS", "lesion_cells", "placed", "read_back", "read_outlines"]

Reader = Callable[["Heatmap", Path], "Map"]
DICOM = ("dicom-seg", "dicom-map")
"""Forms that are left out where the library of their extra is missing."""


def read_back(heatmap: Heatmap, folder: Path, threshold: float) -> dict[str, tuple[Map, Map]]:
    """Write a heatmap in every form, and read each file.

    Parameters
    ----------
    heatmap : finished, of a slide without bounds
    folder : for the files; they stay
    threshold : of the lesions, for the forms that hold lesions and not the map

    Returns
    -------
    dict
        of each form: the map that was read and the one that was written, float (rows, cols), NaN where it says nothing. Of
        forms that hold lesions both are 1 within lesions and 0 elsewhere, of ``camelyon`` each lesion's peak.
    """
    from wsi_meta.exports.export import USED_BY, export

    written = heatmap.probability
    lesions = lesion_cells(heatmap, threshold)
    found = {}
    for form, (ending, read) in READERS.items():
        if form in DICOM and missing_libraries("dicom"):
            continue
        out = folder / f"{form}{ending}"
        level = threshold if form in USED_BY["threshold"] else None
        export(heatmap, out, form=form, threshold=level, peak=level, smooth=False)
        found[form] = (np.asarray(read(heatmap, out), float), lesions if form in OF_LESIONS else written)
    return found


def lesion_cells(heatmap: Heatmap, threshold: float) -> Map:
    """Return 1 in the cells of at least `threshold`, and 0 elsewhere."""
    return (np.nan_to_num(heatmap.probability, nan=-1) >= threshold).astype(float)


def _ome_tiff(_heatmap: Heatmap, path: Path) -> Map:
    import tifffile

    with tifffile.TiffFile(path) as file:
        return np.asarray(file.series[0].levels[0].asarray())


def _ome_zarr(heatmap: Heatmap, path: Path) -> Map:
    import zarr

    return np.asarray(zarr.open_array(path / "0", mode="r")[...]).reshape(heatmap.grid.shape)


def read_outlines(heatmap: Heatmap, path: Path) -> Map:
    """Return 1 in the cells within the outlines of a file, and 0 elsewhere."""
    from wsi_meta.annotations.outlines import read_annotations

    return read_annotations(path).mask(heatmap.grid.shape, heatmap.grid.cell_l0).astype(float)


def _detections(heatmap: Heatmap, path: Path) -> Map:
    features = from_json(path.read_text(encoding="utf-8"))["features"]
    corners = [np.min(feature["geometry"]["coordinates"][0], axis=0) + 0.5 for feature in features]
    values = [feature["properties"]["measurements"]["Probability"] for feature in features]
    return placed(heatmap, corners, values)


def _table(heatmap: Heatmap, path: Path) -> Map:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["probability"]]
    return placed(heatmap, [(float(row["x"]), float(row["y"])) for row in rows], [float(row["probability"]) for row in rows])


def _peaks(heatmap: Heatmap, path: Path) -> Map:
    from wsi_meta.annotations.detections import read_detections

    found = read_detections(path)
    return placed(heatmap, list(zip(found.x, found.y, strict=True)), found.scores.tolist())


def _segmentation(_heatmap: Heatmap, path: Path) -> Map:
    import highdicom

    return np.asarray(highdicom.seg.segread(path).get_total_pixel_matrix(combine_segments=True) > 0, float)


def _parametric_map(_heatmap: Heatmap, path: Path) -> Map:
    import highdicom

    return np.asarray(highdicom.pm.ParametricMap.from_file(path).get_total_pixel_matrix())


READERS: dict[str, tuple[str, Reader]] = {
    "ome-tiff": (".ome.tif", _ome_tiff),
    "ome-zarr-0.4": (".ome.zarr", _ome_zarr),
    "qupath": (".geojson", read_outlines),
    "qupath-cells": (".geojson", _detections),
    "asap": (".xml", read_outlines),
    "cells": (".csv", _table),
    "camelyon": (".csv", _peaks),
    "dicom-seg": (".dcm", _segmentation),
    "dicom-map": (".dcm", _parametric_map),
}
"""Of each form that holds a map or lesions: an ending, and what reads it."""
OF_LESIONS = ("qupath", "asap", "dicom-seg")


def placed(heatmap: Heatmap, places: list[Any], values: list[float]) -> Map:
    """Return values in the cells that hold the places, level-0 pixels x and y; NaN elsewhere."""
    cells = np.full(heatmap.grid.shape, np.nan)
    for (x, y), value in zip(places, values, strict=True):
        cells[int(y // heatmap.grid.cell_l0), int(x // heatmap.grid.cell_l0)] = value
    return cells
