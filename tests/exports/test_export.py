from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
import zarr
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from shapely.geometry import Polygon, shape
from slide_files import write_slide
from stores import write_store

from wsi_meta.annotations.detections import read_detections
from wsi_meta.annotations.outlines import Outline, read_annotations
from wsi_meta.annotations.polygonize import trace_cells
from wsi_meta.cli import main
from wsi_meta.errors import DeviceError, OptionsError, OutputExistsError, OutputPathError
from wsi_meta.exports.export import FORMATS, export
from wsi_meta.exports.ome_tiff import is_exported_tiff
from wsi_meta.exports.smooth import smoothed
from wsi_meta.heatmaps.lesions import find_lesions
from wsi_meta.heatmaps.pyramid import coarser_levels
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.pictures.overlay import draw_overlay
from wsi_meta.readers.reader import Bounds

CELL_L0, CELL_UM = 128.0, 31.104
BOUNDS = Bounds(1000, 2000, 9000, 7000)


@pytest.fixture(scope="module")
def heatmap(tmp_path_factory: pytest.TempPathFactory) -> Heatmap:
    """Two lesions, the larger one with a hole in which a third one lies; a strip that was not scanned."""
    values = np.full((90, 110), 0.1, np.float32)
    values[:10] = np.nan
    values[20:40, 30:60] = 0.9
    values[25:35, 40:50] = 0.2
    values[29:31, 44:46] = 0.8
    values[-1, -1] = 0.95  # reaches over the slide's edge
    return write_store(tmp_path_factory.mktemp("exports") / "s.zarr", values, cut=40, bounds=BOUNDS)


def _features(path: Path) -> list[dict[str, Any]]:
    collection: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    known = {"complete": True, "verdict": None, "scanned": 8800, "unreadable": 0, "pending": 0}
    assert collection["wsi_meta"] == {"frame": "qupath", "origin_x": BOUNDS.x, "origin_y": BOUNDS.y} | known
    return list(collection["features"])


def test_an_ome_tiff_holds_the_map_where_it_lies(heatmap: Heatmap, tmp_path: Path) -> None:
    out = export(heatmap, tmp_path / "map.ome.tif")
    with tifffile.TiffFile(out) as file:
        levels = [level.asarray() for level in file.series[0].levels]
        ome, first = str(file.ome_metadata), file.pages.first
        assert first.tags["XResolution"].value[0] / first.tags["XResolution"].value[1] == pytest.approx(1e4 / CELL_UM)
    wanted = [heatmap.probability, *coarser_levels(heatmap.probability)]
    assert len(wanted) == len(levels) > 1
    assert all(np.array_equal(*both, equal_nan=True) for both in zip(levels, wanted, strict=True))
    assert f'PhysicalSizeX="{CELL_UM}"' in ome
    assert 'PositionX="0.0"' in ome


@pytest.mark.parametrize("name", ["caf\udce9", "a\x01b", "a\uffffb", 'zeile\nü <x> & "q"'])
def test_an_ome_tiff_is_xml_whatever_the_slide_is_called(tmp_path: Path, name: str) -> None:
    store = write_store(tmp_path / f"{name}.zarr", np.full((5, 5), 0.2, np.float32))
    with tifffile.TiffFile(export(store, tmp_path / "o.ome.tif")) as file:
        root = ElementTree.fromstring(file.ome_metadata or "")
    (image,) = root.iter("{http://www.openmicroscopy.org/Schemas/OME/2016-06}Image")
    assert image.attrib["Name"].isprintable()
    assert is_exported_tiff(tmp_path / "o.ome.tif")


def test_lesions_for_qupath_are_smooth_and_measured(heatmap: Heatmap, tmp_path: Path) -> None:
    features = _features(export(heatmap, tmp_path / "lesions.geojson"))
    lesions = find_lesions(heatmap)
    assert len(features) == len(lesions) == 3
    for feature, lesion in zip(features, lesions, strict=True):
        drawn = shape(feature["geometry"])
        assert drawn.is_valid
        assert drawn.area * 0.243**2 == pytest.approx(lesion.area_mm2 * 1e6, rel=1e-3)
        assert (drawn.centroid.x + BOUNDS.x, drawn.centroid.y + BOUNDS.y) == pytest.approx(
            (lesion.x, lesion.y), abs=CELL_L0 / 2
        )
        assert feature["properties"]["measurements"]["Max diameter µm"] == lesion.diameter_mm * 1000
    ids = [feature["id"] for feature in features]
    assert len(set(ids)) == 3
    again = _features(export(heatmap, tmp_path / "again.geojson", smooth=False))
    assert [feature["id"] for feature in again] == ids, "the same lesion has the same id"
    assert len(again[0]["geometry"]["coordinates"][0]) == 5, "along the cells' sides"


def test_lesions_of_other_thresholds_have_other_ids_where_they_differ(heatmap: Heatmap, tmp_path: Path) -> None:
    """At 0.15 the largest one has no hole, and the one that lay in it is a part of it; the last one is the same."""
    own, other = (
        {feature["properties"]["measurements"]["Num Cells of map"]: feature["id"] for feature in _features(path)}
        for path in (export(heatmap, tmp_path / f"{least}.geojson", threshold=least, peak=0.7) for least in (0.5, 0.15))
    )
    assert set(own) == {500, 4, 1}
    assert set(other) == {600, 1}
    assert own[500] != other[600]
    assert own[1] == other[1]


def test_outlines_read_back_fill_the_same_cells(heatmap: Heatmap, tmp_path: Path) -> None:
    tumor = heatmap.probability >= 0.5
    tumor[-1, -1] = False  # its centre lies beyond the slide's edge, where outlines are cut
    for name, options in (("a.xml", {}), ("b.geojson", {"smooth": False})):
        drawn = read_annotations(export(heatmap, tmp_path / name, **options))  # type: ignore[arg-type]
        assert np.array_equal(drawn.mask(tumor.shape, CELL_L0)[:-1, :-1], tumor[:-1, :-1]), name


def test_cells_for_qupath(heatmap: Heatmap, tmp_path: Path) -> None:
    features = _features(export(heatmap, tmp_path / "cells.geojson", form="qupath-cells", least=0.5))
    found = {feature["properties"]["name"]: feature for feature in features}
    assert len(found) == (heatmap.probability >= 0.5).sum()
    cell = found["cell 20, 30"]
    assert cell["properties"]["objectType"] == "detection"
    assert cell["properties"]["measurements"]["Probability"] == pytest.approx(0.9)
    assert cell["geometry"]["coordinates"][0][0] == [30 * CELL_L0 - BOUNDS.x, 20 * CELL_L0 - BOUNDS.y]
    last = shape(found["cell 89, 109"]["geometry"]).bounds
    assert last[2:] == (heatmap.grid.width - BOUNDS.x, heatmap.grid.height - BOUNDS.y), "cut at the slide's edge"


@pytest.mark.parametrize("form", ["qupath", "qupath-cells"])
def test_level_0_pixels_for_qupath_are_told(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heatmap = write_store(tmp_path / "s.zarr", np.full((4, 5), 0.9, np.float32))
    out = export(heatmap, tmp_path / "s.geojson", form=form)
    assert caplog.text.count(f"does not say which part of the slide QuPath shows, so {out} is in level-0 pixels") == 1


def test_a_table_of_cells(heatmap: Heatmap, tmp_path: Path) -> None:
    with export(heatmap, tmp_path / "cells.csv", form="cells").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == np.isfinite(heatmap.probability).sum()
    (row,) = [row for row in rows if (row["row"], row["col"]) == ("20", "30")]
    assert (float(row["x"]), float(row["y"])) == (30.5 * CELL_L0, 20.5 * CELL_L0)
    assert np.float32(row["probability"]) == np.float32(0.9)
    assert row["status"] == "scanned"


def test_cells_that_could_not_be_read_are_rows_without_a_probability(tmp_path: Path) -> None:
    values = np.full((4, 5), 0.3, np.float32)
    values[2, 3] = np.nan
    heatmap = write_store(tmp_path / "u.zarr", values, complete=False)
    status = heatmap.status
    with export(heatmap, tmp_path / "cells.csv").open() as file:
        unread = [row for row in csv.DictReader(file) if row["status"] == "unreadable"]
    assert len(unread) == (status == 3).sum()
    assert all(row["probability"] == "" for row in unread)


def test_peaks_for_camelyon(heatmap: Heatmap, tmp_path: Path) -> None:
    read = read_detections(export(heatmap, tmp_path / "s.csv", form="camelyon"))
    assert read.x.tolist() == [lesion.peak_x for lesion in find_lesions(heatmap)]


def test_parquet_needs_its_library_or_holds_the_same(heatmap: Heatmap, tmp_path: Path) -> None:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        with pytest.raises(DeviceError, match=r"pip install 'wsi-meta\[parquet\]'"):
            export(heatmap, tmp_path / "cells.parquet")
        assert not list(tmp_path.iterdir())
    else:
        table = pq.read_table(export(heatmap, tmp_path / "cells.parquet"))
        assert table.num_rows == np.isfinite(heatmap.probability).sum()


def test_what_cannot_be_written_is_one_line(heatmap: Heatmap, tmp_path: Path) -> None:
    with pytest.raises(OutputPathError, match=r"ending '.png'; expected one of .ome.tif"):
        export(heatmap, tmp_path / "map.png")
    with pytest.raises(OutputPathError, match=r"expected .ome.tif or .ome.tiff for ome-tiff"):
        export(heatmap, tmp_path / "map.csv", form="ome-tiff")
    with pytest.raises(OptionsError, match="expected one of ome-tiff"):
        export(heatmap, tmp_path / "map.csv", form="jpeg")
    kept = tmp_path / "lesions.geojson"
    kept.write_text("mine")
    with pytest.raises(OutputExistsError):
        export(heatmap, kept)
    assert kept.read_text() == "mine"


def test_a_tiff_that_was_not_written_here_is_never_replaced(heatmap: Heatmap, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "case.ome.tif", np.full((64, 64, 3), 200, np.uint8))
    before = slide.read_bytes()
    with pytest.raises(OutputExistsError, match=r"case\.ome\.tif: 'wsi-meta export' did not write it"):
        export(heatmap, slide, overwrite=True)
    other = tmp_path / "other.ome.tiff"
    other.write_text("mine")
    with pytest.raises(OutputExistsError, match="did not write it"):
        export(heatmap, other, overwrite=True)
    assert (slide.read_bytes(), other.read_text()) == (before, "mine")
    ours = export(heatmap, tmp_path / "ours.ome.tif")
    assert export(heatmap, ours, overwrite=True) == ours


def test_the_command_writes_every_form(heatmap: Heatmap, tmp_path: Path) -> None:
    for form, (ending, *_) in FORMATS.items():
        if form == "qupath-project":
            continue  # needs a slide: see its own test
        out = tmp_path / f"{form}{ending}"
        result = CliRunner().invoke(main, ["export", str(heatmap.path), "--out", str(out), "--as", form])
        if form.startswith("dicom"):
            if find_spec("highdicom") is None:
                assert (result.exit_code, "pip install 'wsi-meta[dicom]'" in result.output) == (1, True)
                continue
            assert "the frame of reference is made" in result.stderr
            assert result.stdout.strip() == f"file: {out}"
            continue
        assert result.output.strip() == f"file: {out}", result.output
        assert out.stat().st_size


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12)), st.sampled_from([1.0, 128.0, 124.416]))
def test_smooth_outlines_are_valid_and_keep_their_area(region: NDArray[np.bool_], cell_l0: float) -> None:
    for exterior, *holes in trace_cells(region):
        outline = Outline(exterior * cell_l0, tuple(hole * cell_l0 for hole in holes))
        drawn = smoothed(outline, cell_l0)
        assert drawn.area == pytest.approx(outline.area)
        polygon, before = Polygon(drawn.vertices, drawn.holes), Polygon(outline.vertices, outline.holes)
        assert polygon.is_valid
        assert polygon.hausdorff_distance(before) < cell_l0 / 2


@pytest.mark.parametrize("name", ["o.ome.tif", "o.csv", "o.geojson", "o.png"])
def test_an_unfinished_map_is_told(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heatmap = write_store(tmp_path / "h.zarr", np.full((6, 8), 0.25, np.float32)).reopen()
    if name.endswith(".png"):
        draw_overlay(heatmap, tmp_path / name)
    else:
        export(heatmap, tmp_path / name)
    assert caplog.text.count("not scanned to the end") == 1


def test_files_of_an_unfinished_map_say_so(tmp_path: Path) -> None:
    """Who is handed the file alone sees no warning."""
    whole = write_store(tmp_path / "h.zarr", np.full((6, 8), 0.9, np.float32))
    for heatmap, complete in ((whole, True), (whole.reopen(), False)):
        with tifffile.TiffFile(export(heatmap, tmp_path / "o.ome.tif", overwrite=True)) as file:
            assert f'<M K="complete">{complete}</M>' in str(file.ome_metadata)
        for form in ("qupath", "qupath-cells"):
            written = export(heatmap, tmp_path / "o.geojson", form=form, overwrite=True)
            assert json.loads(written.read_text())["wsi_meta"]["complete"] is complete
        drawn = export(heatmap, tmp_path / "o.xml", overwrite=True)
        assert ("<!-- wsi-meta: not scanned to the end; lesions may be missing" in drawn.read_text()) is not complete
        assert len(read_annotations(drawn).tumor) == 1


class _Counted:
    """A store's group that counts how often each of its arrays is opened."""

    def __init__(self, group: zarr.Group) -> None:
        self.group, self.opened = group, Counter[str]()

    def __getitem__(self, name: str) -> Any:
        self.opened[name] += 1
        return self.group[name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.group, name)


def test_a_store_is_checked_for_damage_once(heatmap: Heatmap, tmp_path: Path) -> None:
    """Each check opens the arrays anew; what reads them afterwards opens each once more."""
    for name in ("lesions.geojson", "lesions.xml", "map.csv"):
        group: Any = _Counted(heatmap.group)
        export(replace(heatmap, group=group), tmp_path / name)
        assert group.opened["status"] == 2, name
