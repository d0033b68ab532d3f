"""The same marks through every door: how far from their place other programs show them, in cells.

    PYTHONPATH=tests python scripts/benchmarks/doors.py

A map with four single cells of tumor is written as a store and as each export, and asked back from the programs themselves,
where they are installed: ome-zarr, napari with napari-ome-zarr, xarray, spatialdata, ngff-zarr, neuroglancer in a Chromium,
tifffile, highdicom. What is not installed is told as such and never counts as passed. Where a program is not asked itself
(Bio-Formats, QuPath, ASAP), its documented rule is applied to the file. Exits with 1 where a door that is not known to be wrong
is half a cell or more off.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from neuroglancer_door import drawn_cells
from numpy.typing import NDArray
from stores import write_store

from wsi_meta.exports.export import export
from wsi_meta.exports.napari_reader import read_layers
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.readers.reader import Bounds

Places = NDArray[np.float64]
"""Where the marks are, micrometres from the slide's corner: (n, 2), y and x."""
SHAPE = (150, 200)
MARKS = {(3, 5): 0.6, (40, 131): 0.7, (77, 60): 0.8, (149, 199): 0.9}
"""Cells that are tumor, and their probability, by which a reader's array is searched."""
BOUNDS = Bounds(1000, 2000, 20000, 15000)
LIMIT = 0.5


@dataclass(frozen=True)
class Doors:
    """The same map in every form."""

    store: Heatmap
    bounded: Heatmap
    """The same, of a slide that states bounds."""
    folder: Path


@dataclass(frozen=True)
class Door:
    """One way to look at the map."""

    name: str
    libraries: tuple[str, ...]
    """Distributions that must be installed."""
    ask: Callable[[Doors], Places]
    level: int = 0
    """The level that is looked at; an element there is as many cells as 2 to its power."""
    known: str = ""
    """Why it is off, where that is known and not ours to mend."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        doors = write_doors(Path(folder))
        rows = [judge(door, doors) for door in DOORS]
    print("| door | program | off by, cells | |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row[:4]) + " |")
    sys.exit(any(row[4] for row in rows))


def write_doors(folder: Path) -> Doors:
    """Write a map with marks in every form."""
    values = np.full(SHAPE, 0.02, np.float32)
    values[:2] = np.nan
    for cell, probability in MARKS.items():
        values[cell] = probability
    return Doors(write_store(folder / "map.zarr", values), write_store(folder / "bounded.zarr", values, bounds=BOUNDS), folder)


def judge(door: Door, doors: Doors) -> tuple[str, str, str, str, bool]:
    """Return a door's row of the table, and whether it fails."""
    try:
        programs = ", ".join(f"{library} {version(library)}" for library in door.libraries) or "its documented rule"
    except PackageNotFoundError as error:
        return door.name, str(error.name), "-", "not installed", False
    try:
        off = float(np.abs(door.ask(doors) - true_places(doors.store, door.level)).max()) / doors.store.grid.cell_um
    except Exception as error:
        return door.name, programs, "-", f"fails: {type(error).__name__}: {str(error).splitlines()[0]}", True
    told = door.known if off >= LIMIT else ""
    return door.name, programs, f"{off:.3f}", told or ("" if off < LIMIT else "WRONG"), off >= LIMIT and not door.known


def true_places(heatmap: Heatmap, level: int = 0) -> Places:
    """Return where the centres of the elements that hold the marks are."""
    return np.asarray((np.array([*MARKS]) // 2**level + 0.5) * 2**level * heatmap.grid.cell_um)


def found_cells(values: Any) -> NDArray[np.float64]:
    """Return row and column of each mark in what a reader gives."""
    cells = np.asarray(values)
    cells = cells.reshape(cells.shape[-2:])
    return np.array([np.argwhere(np.isclose(cells, probability))[0] for probability in MARKS.values()], np.float64)


# OME-Zarr


def by_ome_zarr(path: Path, level: int = 0) -> Places:
    """Return places by ome-zarr-py: all transformations of the level, one after the other."""
    node = next(iter(_call("ome_zarr.reader", "Reader", _call("ome_zarr.io", "parse_url", path))()))
    return _transformed(found_cells(node.data[level]), node.metadata["coordinateTransformations"][level])


def lesion_labels(doors: Doors) -> Places:
    """Return the centres of the lesions' labels by ome-zarr-py."""
    path = doors.store.path / "labels" / "lesions"
    nodes = [*_call("ome_zarr.reader", "Reader", _call("ome_zarr.io", "parse_url", path))()]
    node = next(node for node in nodes if node.zarr.basename() == "lesions")
    labels, facts = np.asarray(node.data[0]), node.metadata["properties"]
    numbers = [min(facts, key=lambda n: abs(facts[n]["max_probability"] - probability)) for probability in MARKS.values()]
    cells = np.array([np.argwhere(labels == number).mean(0) for number in numbers])
    return _transformed(cells, node.metadata["coordinateTransformations"][0])


def by_ngff_zarr(doors: Doors) -> Places:
    image = _call("ngff_zarr", "from_ngff_zarr", str(doors.store.path)).images[0]
    scale, translation = ([getattr(image, part)[axis] for axis in "yx"] for part in ("scale", "translation"))
    return np.asarray(found_cells(image.data.compute()) * scale + translation)


def by_napari_ome_zarr(doors: Doors) -> Places:
    """Return places by napari's own model of a viewer, which needs no display."""
    viewer = _viewer()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        layer = viewer.open(str(doors.store.path), plugin="napari-ome-zarr")[0]
    return _of_layer(layer)


def by_our_napari_reader(doors: Doors) -> Places:
    viewer = _viewer()
    layers = [
        getattr(viewer, f"add_{kind}")(levels, **settings) for levels, settings, kind in read_layers(str(doors.store.path))
    ]
    return _of_layer(layers[0])


def by_xarray(doors: Doors) -> Places:
    """Return places by the coordinates that xarray gives each cell."""
    cells = _call("xarray", "open_zarr", doors.store.path, consolidated=False)["0"]
    return np.array([(float(cells.y[int(row)]), float(cells.x[int(col)])) for row, col in found_cells(cells.values)])


def by_xarray_level(doors: Doors) -> Places:
    """Return where a coarser level has the marks: the centres of its elements, which are twice as large."""
    cells = _call("xarray", "open_zarr", doors.store.path, group="1", consolidated=False)["probability"]
    return np.array([(float(cells.y[int(row)]), float(cells.x[int(col)])) for row, col in found_cells(cells.values)])


def by_neuroglancer(doors: Doors) -> Places:
    """Return places by neuroglancer's picture of the store, to half a pixel of the screen."""
    return drawn_cells(doors.store.path, MARKS) * doors.store.grid.cell_um


def by_spatialdata(doors: Doors) -> Places:
    """Return places by spatialdata, given the array and a scale: its own frame counts from the corner of cell (0, 0)."""
    cells = _call("xarray", "open_zarr", doors.store.path, consolidated=False)["0"]
    side = doors.store.grid.cell_um
    scale = _call("spatialdata.transformations", "Scale", [side, side], axes=("y", "x"))
    model = import_module("spatialdata.models").Image2DModel
    image = model.parse(cells.drop_vars(["y", "x"]).expand_dims("c"), transformations={"global": scale})
    centres = np.array([(float(image.y[int(row)]), float(image.x[int(col)]), 1.0) for row, col in found_cells(image.values)])
    told = _call("spatialdata.transformations", "get_transformation", image, to_coordinate_system="global")
    return np.asarray((centres @ told.to_affine_matrix(("y", "x"), ("y", "x")).T)[:, :2])


# files


def by_tifffile(doors: Doors) -> Places:
    """Return places by the resolution tags that tifffile reads: pixels a centimetre, from the corner."""
    with _call("tifffile", "TiffFile", export(doors.store, doors.folder / "map.ome.tif", overwrite=True)) as file:
        page = file.series[0].levels[0].pages[0]
        count, unit = page.tags["XResolution"].value
        return np.asarray((found_cells(page.asarray()) + 0.5) * 1e4 * unit / count)


def by_bio_formats(doors: Doors) -> Places:
    """Return places by OME-XML, as Bio-Formats and QuPath do: physical sizes, and a plane's position in the same unit."""
    with _call("tifffile", "TiffFile", export(doors.store, doors.folder / "map.ome.tif", overwrite=True)) as file:
        cells, text = found_cells(file.series[0].levels[0].pages[0].asarray()), str(file.ome_metadata)
    pixels = next(element for element in ElementTree.fromstring(text).iter() if element.tag.endswith("Pixels"))
    plane = next(element for element in pixels if element.tag.endswith("Plane"))
    assert pixels.get("PhysicalSizeXUnit") == plane.get("PositionXUnit") == "µm"
    size, corner = (
        [float(part.get(name + axis, "nan")) for axis in "YX"] for part, name in ((pixels, "PhysicalSize"), (plane, "Position"))
    )
    return (cells + 0.5) * size + corner


def by_ome_zarr_04(doors: Doors) -> Places:
    return by_ome_zarr(export(doors.store, doors.folder / "map.ome.zarr", overwrite=True))


def by_geojson(heatmap: Heatmap, folder: Path) -> Places:
    """Return the centres of lesions as QuPath draws them: it counts from the corner of the slide's bounds."""
    text = export(heatmap, folder / "lesions.geojson", overwrite=True).read_text(encoding="utf-8")
    bounds = heatmap.record.slide.bounds
    corner = np.array([bounds.x, bounds.y]) if bounds else np.zeros(2)
    shapes = [
        (
            feature["properties"]["measurements"],
            np.concatenate([np.array(ring[:-1]) for part in _parts(feature) for ring in part]),
        )
        for feature in json.loads(text)["features"]
    ]
    ordered = [min(shapes, key=lambda shape: abs(_highest(shape[0]) - probability))[1] for probability in MARKS.values()]
    return np.array([_middle(shape + corner) for shape in ordered]) * heatmap.grid.slide_mpp


def by_asap(doors: Doors) -> Places:
    """Return the centres of ASAP's outlines, level-0 pixels; the nearest to each mark."""
    root = ElementTree.parse(export(doors.store, doors.folder / "lesions.xml", overwrite=True)).getroot()
    middles = [
        _middle(
            np.array([(float(corner.get("X", "nan")), float(corner.get("Y", "nan"))) for corner in drawn.iter("Coordinate")])
        )
        for drawn in root.iter("Annotation")
    ]
    return _nearest(np.array(middles) * doors.store.grid.slide_mpp, doors.store)


def by_dicom_map(doors: Doors) -> Places:
    """Return places by highdicom's reader of the Parametric Map."""
    path = export(doors.store, doors.folder / "map.dcm", form="dicom-map", overwrite=True)
    image = import_module("highdicom.pm").ParametricMap.from_file(path)
    return _in_frame(image, found_cells(image.get_total_pixel_matrix()), doors.store)


def by_dicom_segmentation(doors: Doors) -> Places:
    """Return places by highdicom's reader of the Segmentation: the one cell of each lesion."""
    image = _call("highdicom.seg", "segread", export(doors.store, doors.folder / "lesions.dcm", overwrite=True))
    cells = np.argwhere(image.get_total_pixel_matrix(combine_segments=True)).astype(np.float64)
    return _nearest(_in_frame(image, cells, doors.store), doors.store)


def _in_frame(image: Any, cells: Places, heatmap: Heatmap) -> Places:
    """Return where cells lie on the slide by their places, mm, in the frame that was made: its axes run against the slide's."""
    place = import_module("highdicom.spatial").PixelToReferenceTransformer.for_image(image, for_total_pixel_matrix=True)
    millimetres = place(cells[:, ::-1].astype(np.int64))[:, :2]
    size = np.array([heatmap.grid.height, heatmap.grid.width]) * heatmap.grid.slide_mpp
    return np.asarray(size - 1000 * millimetres)


def _nearest(places: Places, heatmap: Heatmap) -> Places:
    """Return the place nearest to each mark."""
    assert len(places) == len(MARKS)
    apart = np.abs(places[None] - true_places(heatmap)[:, None]).max(-1)
    return np.asarray(places[apart.argmin(1)])


def _call(module: str, name: str, *arguments: Any, **settings: Any) -> Any:
    """Call something of a library that may be missing."""
    return getattr(import_module(module), name)(*arguments, **settings)


def _viewer() -> Any:
    _call("napari.plugins", "_initialize_plugins")
    return _call("napari.components", "ViewerModel")


def _of_layer(layer: Any) -> Places:
    return np.array([layer.data_to_world(cell)[-2:] for cell in found_cells(layer.data[0])])


def _transformed(cells: Places, transformations: Iterable[dict[str, Any]]) -> Places:
    for one in transformations:
        cells = cells * one["scale"][-2:] if one["type"] == "scale" else cells + one["translation"][-2:]
    return cells


def _parts(feature: dict[str, Any]) -> list[Any]:
    coordinates = feature["geometry"]["coordinates"]
    return [coordinates] if feature["geometry"]["type"] == "Polygon" else list(coordinates)


def _highest(measurements: dict[str, float]) -> float:
    return next(value for name, value in measurements.items() if "max" in name.lower() and "prob" in name.lower())


def _middle(corners: Places) -> Places:
    """Return y and x of the middle of a box round corners (x, y)."""
    return np.asarray(((corners.min(0) + corners.max(0)) / 2)[::-1])


UPSTREAM = "wrong in napari-ome-zarr from 0.9.0: it leaves out the translation; right in 0.8.2"
DOORS = (
    Door("store: map", ("ome-zarr",), lambda doors: by_ome_zarr(doors.store.path)),
    Door("store: map, level 1", ("ome-zarr",), lambda doors: by_ome_zarr(doors.store.path, 1), level=1),
    Door("store: labels/lesions", ("ome-zarr",), lesion_labels),
    Door("store: map", ("ngff-zarr",), by_ngff_zarr),
    Door("store: map", ("napari", "napari-ome-zarr"), by_napari_ome_zarr, known=UPSTREAM),
    Door("store: map, wsi-meta's reader", ("napari",), by_our_napari_reader),
    Door("store: open_zarr", ("xarray",), by_xarray),
    Door("store: open_zarr, level 1", ("xarray",), by_xarray_level, level=1),
    Door("store: Image2DModel of open_zarr", ("spatialdata",), by_spatialdata),
    Door("store: map, its picture", ("neuroglancer", "playwright"), by_neuroglancer),
    Door("export: OME-Zarr 0.4", ("ome-zarr",), by_ome_zarr_04),
    Door("export: OME-TIFF, resolution", ("tifffile",), by_tifffile),
    Door("export: OME-TIFF, Bio-Formats", (), by_bio_formats),
    Door("export: GeoJSON, QuPath", (), lambda doors: by_geojson(doors.store, doors.folder)),
    Door("export: GeoJSON, QuPath, bounds", (), lambda doors: by_geojson(doors.bounded, doors.folder)),
    Door("export: ASAP XML", (), by_asap),
    Door("export: DICOM Parametric Map", ("highdicom",), by_dicom_map),
    Door("export: DICOM Segmentation", ("highdicom",), by_dicom_segmentation),
)

if __name__ == "__main__":
    main()
