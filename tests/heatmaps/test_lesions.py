from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from json_output import result_of
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from shapely.geometry import Point, Polygon
from stores import SLIDE_MPP, write_block, write_store

from wsi_meta.annotations.detections import read_detections
from wsi_meta.annotations.outlines import Annotations, read_annotations
from wsi_meta.annotations.polygonize import trace_cells
from wsi_meta.challenges.camelyon16 import froc
from wsi_meta.cli import main
from wsi_meta.errors import HeatmapError, OptionsError, OutputExistsError, OutputPathError
from wsi_meta.exports.export import export
from wsi_meta.heatmaps.lesions import (
    find_lesions,
    lesion_facts,
    to_detections,
    write_lesions,
)
from wsi_meta.heatmaps.record import ScanResult
from wsi_meta.heatmaps.regions import label_regions, longest_distance, measure_regions
from wsi_meta.heatmaps.scoring import kept_lesions
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.pictures.overlay import draw_overlay
from wsi_meta.quality.verdict import pronounce
from wsi_meta.readers.reader import Bounds
from wsi_meta.tiling.grid import PatchGrid

CELL_UM = 31.104


def _map(rows: int, cols: int, *rectangles: tuple[int, int, int, int, float]) -> NDArray[np.float32]:
    probability = np.zeros((rows, cols), np.float32)
    for row, col, height, width, value in rectangles:
        probability[row : row + height, col : col + width] = value
    return probability


# borders


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_borders_are_valid_polygons_of_the_same_area(region: NDArray[np.bool_]) -> None:
    polygons = [Polygon(rings[0], rings[1:]) for rings in trace_cells(region)]
    assert all(polygon.is_valid for polygon in polygons)
    assert sum(polygon.area for polygon in polygons) == region.sum()
    for row, col in np.argwhere(region):
        assert any(polygon.contains(Point(col + 0.5, row + 0.5)) for polygon in polygons)


def test_borders_of_a_ring_of_cells() -> None:
    region = np.ones((4, 5), bool)
    region[1:3, 1] = False
    (rings,) = trace_cells(region)
    assert [sorted(map(tuple, ring.tolist())) for ring in rings] == [
        [(0, 0), (0, 4), (5, 0), (5, 4)],
        [(1, 1), (1, 3), (2, 1), (2, 3)],
    ]
    assert trace_cells(np.zeros((3, 3), bool)) == []
    assert len(trace_cells(np.eye(3, dtype=bool))) == 3, "corners do not join polygons"


# regions


def test_hysteresis() -> None:
    probability = _map(8, 20, (2, 1, 3, 4, 0.3), (3, 2, 1, 1, 0.6), (2, 8, 3, 4, 0.4), (2, 14, 3, 4, 0.2), (3, 15, 1, 1, 0.9))
    regions = label_regions(probability, 0.25, 0.5)
    assert regions.max() == 2
    assert (regions == 1).sum() == 12, "as far as the threshold reaches"
    assert (regions == 2).sum() == 1, "only the peak"
    assert label_regions(probability, 0.25, 0.95).max() == 0
    assert label_regions(np.array([[0.5]], np.float32), 0.5, 0.5).max() == 1, "at the threshold is over it"


def test_cells_that_were_not_scanned_never_join() -> None:
    probability = _map(3, 9, (0, 0, 3, 9, 0.9))
    assert label_regions(probability, 0.25, 0.5).max() == 1
    probability[:, 4] = np.nan
    regions = label_regions(probability, 0.25, 0.5)
    assert regions.max() == 2
    assert (regions[:, 4] == 0).all()
    assert label_regions(np.full((2, 2), np.nan, np.float32), 0.25, 0.5).max() == 0
    assert label_regions(np.array([[0.9, 0], [0, 0.9]], np.float32), 0.25, 0.5).max() == 1, "cells join at corners"


# measures


def test_measures(tmp_path: Path) -> None:
    probability = _map(40, 60, (5, 10, 4, 6, 0.75), (6, 12, 1, 1, 1.0), (20, 30, 1, 1, 0.5), (30, 2, 2, 2, 0.25))
    first, second = find_lesions(write_store(tmp_path / "h.zarr", probability))
    cell = 128
    assert (first.x, first.y) == pytest.approx((13 * cell, 7 * cell))
    assert (first.peak_x, first.peak_y) == (round(12.5 * cell), round(6.5 * cell))
    assert first.area_mm2 == pytest.approx(24 * (CELL_UM / 1000) ** 2)
    assert first.max_probability == 1
    assert first.mean_probability == pytest.approx((23 * 0.75 + 1) / 24)
    assert (first.number, first.cells) == (1, 24)
    assert [outline.vertices.tolist() for outline in first.outlines] == [
        [[10 * cell, 5 * cell], [16 * cell, 5 * cell], [16 * cell, 9 * cell], [10 * cell, 9 * cell]]
    ]
    assert (second.number, second.cells, second.max_probability) == (2, 1, 0.5)
    assert second.diameter_mm == pytest.approx(CELL_UM / 1000), "one cell is one side long"
    assert second.size_class == "isolated tumor cells"


@pytest.mark.parametrize(
    ("cells", "size_class"),
    [(4, "isolated tumor cells"), (9, "micrometastasis"), (62, "micrometastasis"), (67, "macrometastasis")],
)
def test_size_classes(tmp_path: Path, cells: int, size_class: str) -> None:
    """0.2 mm is 6.4 cells, 2 mm 64.3."""
    probability = _map(70, 70, (1, 1, 1, cells, 0.9))
    (lesion,) = find_lesions(write_store(tmp_path / "h.zarr", probability))
    assert lesion.diameter_mm == pytest.approx(cells * CELL_UM / 1000)
    assert lesion.size_class == size_class


@given(st.floats(3, 90), st.floats(0.5, 1), st.floats(0, np.pi), st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)))
def test_diameter_of_discs_within_one_cell_and_of_ellipses_within_two(
    diameter: float, ratio: float, angle: float, offset: tuple[float, float]
) -> None:
    """On the perfect map: a cell is tumor where its centre is."""
    side = int(diameter) + 8
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2 - np.reshape(offset, (2, 1, 1))
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    for wide, allowed in ((1.0, 1.0), (ratio, 2.0)):
        cells = np.argwhere(along**2 + (across / wide) ** 2 <= diameter**2 / 4)
        assert abs(longest_distance(cells) - diameter) <= allowed


def test_the_peak_lies_in_the_densest_place_of_equals(tmp_path: Path) -> None:
    probability = _map(20, 20, (2, 2, 1, 8, 1.0), (3, 2, 5, 5, 1.0))
    (lesion,) = find_lesions(write_store(tmp_path / "h.zarr", probability))
    row, col = lesion.peak_y // 128, lesion.peak_x // 128
    assert (probability[row - 1 : row + 2, col - 1 : col + 2] == 1).all()


def test_other_resolutions_and_the_edge_of_the_slide(tmp_path: Path) -> None:
    """At 0.25 um a cell is 124.416 level-0 pixels; the last cells reach over the edge."""
    heatmap = write_store(tmp_path / "h.zarr", _map(30, 30, (25, 25, 5, 5, 0.9)), mpp=0.25, cut=100)
    (lesion,) = find_lesions(heatmap)
    (outline,) = lesion.outlines
    assert outline.vertices.max(0).tolist() == [heatmap.grid.width, heatmap.grid.height]
    assert outline.vertices.min(0) == pytest.approx([25 * 124.416] * 2)
    assert lesion.area_mm2 == pytest.approx(outline.area * 0.25**2 / 1e6)
    assert lesion.x <= heatmap.grid.width


@given(st.integers(0, 2**32 - 1))
def test_every_cell_of_a_region_and_no_other_lies_in_its_outlines(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probability = ndimage.gaussian_filter(rng.random((24, 30)), 1.2).astype(np.float32)
    probability[rng.random(probability.shape) < 0.05] = np.nan
    regions = label_regions(probability, 0.5, 0.55)
    grid = PatchGrid(30 * 128, 24 * 128, SLIDE_MPP, 0.972, 96, 32)
    lesions = measure_regions(probability, regions, grid, 0)
    drawn = sum(Annotations(lesion.outlines).mask(probability.shape, 128).astype(int) for lesion in lesions)
    np.testing.assert_array_equal(drawn, regions > 0)
    assert len(lesions) == regions.max()
    assert [lesion.area_mm2 for lesion in lesions] == sorted((lesion.area_mm2 for lesion in lesions), reverse=True)


def test_thresholds(tmp_path: Path) -> None:
    probability = _map(20, 20, (2, 2, 4, 4, 0.35), (10, 10, 2, 2, 0.8), (15, 3, 1, 1, 0.9))
    heatmap = write_store(tmp_path / "h.zarr", probability, default=0.7)
    assert len(find_lesions(heatmap)) == 2, "the model's own threshold"
    assert len(find_lesions(heatmap, threshold=0.3)) == 3
    assert len(find_lesions(heatmap, threshold=0.3, peak=0.85)) == 1
    assert len(find_lesions(heatmap, min_area=0.003)) == 1
    assert find_lesions(heatmap, threshold=1.0) == ()
    strict = write_store(tmp_path / "s.zarr", probability, default=0.3, specificity_99=0.75)
    assert [lesion.max_probability for lesion in find_lesions(strict)] == pytest.approx([0.8, 0.9]), "and its stricter one"
    assert len(find_lesions(strict, peak=0.3)) == 3
    loose = write_store(tmp_path / "l.zarr", probability, default=0.7, specificity_99=0.1)
    assert len(find_lesions(loose)) == 2, "which cannot be the laxer"
    wrong: tuple[dict[str, Any], ...] = ({"threshold": 0.6, "peak": 0.5}, {"threshold": 1.5}, {"threshold": 0.0})
    for settings in wrong:
        with pytest.raises(OptionsError, match="expected 0 < threshold <= peak <= 1"):
            find_lesions(heatmap, **settings)


def test_a_scan_that_is_not_complete_gives_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    find_lesions(write_store(tmp_path / "whole.zarr", _map(4, 4)))
    assert not caplog.records
    part = write_store(tmp_path / "part.zarr", _map(4, 4))
    find_lesions(part.finalise(ScanResult(0.1, complete=False, cells={"unreadable": 7}), None))
    assert (
        "part.zarr: 7 cells could not be read; lesions may be missing or cut; copy the slide again, or scan again if"
        in caplog.text
    )
    find_lesions(part.reopen())
    assert "part.zarr: not scanned to the end; lesions may be missing" in caplog.text


def test_where_no_cell_was_scanned_no_lesion_is_no_finding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An empty file of detections means that there are none, to froc as to others."""
    heatmap = write_store(tmp_path / "blank.zarr", np.full((4, 4), np.nan, np.float32))
    assert find_lesions(heatmap, out=tmp_path / "l.geojson") == ()
    assert "blank.zarr: no cell was scanned; that no lesion is found says nothing; look at the slide" in caplog.text
    assert json.loads((tmp_path / "l.geojson").read_text())["wsi_meta"]["scanned"] == 0
    printed = result_of(CliRunner().invoke(main, ["lesions", str(heatmap.path), "--json"]).stdout)
    assert (printed["slide"], printed["scanned"], printed["lesions"]) == ("blank", 0, None)
    for call in (
        lambda: find_lesions(heatmap, out=tmp_path / "l.csv", detections=tmp_path / "d.csv"),
        lambda: export(heatmap, tmp_path / "d.csv", form="camelyon"),
    ):
        with pytest.raises(HeatmapError, match=r"blank\.zarr: no cell was scanned, so there are no detections: an empty file"):
            call()
    assert not [*tmp_path.glob("*.csv")]


def test_what_is_printed_and_written_says_how_much_was_read(tmp_path: Path) -> None:
    heatmap = write_store(tmp_path / "part.zarr", _map(10, 10, (5, 5, 3, 3, 0.9)), specificity_99=0.8).reopen()
    probability, status = heatmap.probability, heatmap.status
    status[0, :3], status[1, 0] = Status.PENDING, Status.UNREADABLE
    write_block(heatmap, heatmap.grid.blocks()[0], np.where(status == Status.SCANNED, probability, np.nan), status)
    known = {"complete": False, "verdict": None, "scanned": 96, "unreadable": 1, "pending": 3}
    command = ["lesions", str(heatmap.path), "--json", "--out", str(tmp_path / "l.geojson")]
    printed = result_of(CliRunner().invoke(main, command).stdout)
    assert {name: printed[name] for name in known} == known
    assert (printed["threshold"], printed["peak"], len(printed["lesions"])) == (0.5, 0.8, 1)
    assert json.loads((tmp_path / "l.geojson").read_text())["wsi_meta"] == {"frame": "level-0"} | known
    for name, out in (("export", "l.xml"), ("overlay", "o.png")):
        printed = result_of(CliRunner().invoke(main, [name, str(heatmap.path), "--out", str(tmp_path / out), "--json"]).stdout)
        assert {name: printed[name] for name in known} == known


# files and commands


@pytest.fixture
def heatmap(tmp_path: Path) -> Heatmap:
    probability = _map(60, 90, (5, 5, 20, 30, 0.9), (10, 10, 5, 5, 0.05), (40, 60, 8, 8, 0.7), (50, 10, 2, 3, 0.6))
    probability[:3] = np.nan
    return write_store(tmp_path / "node.zarr", probability)


def test_table_and_outlines(heatmap: Heatmap, tmp_path: Path) -> None:
    found = find_lesions(heatmap, out=tmp_path / "l.csv")
    with (tmp_path / "l.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["size_class"] for row in rows] == [lesion.size_class for lesion in found]
    assert [float(row["diameter_mm"]) for row in rows] == [lesion.diameter_mm for lesion in found]
    assert list(rows[0]) == list(found[0].to_dict())
    write_lesions(tmp_path / "l.geojson", found)
    back = read_annotations(tmp_path / "l.geojson")
    assert sum(outline.area for outline in back.tumor) == pytest.approx(
        sum(lesion.area_mm2 for lesion in found) / 0.243**2 * 1e6
    )
    assert len(back.tumor[0].holes) == 1
    ring = json.loads((tmp_path / "l.geojson").read_text())["features"][0]["geometry"]["coordinates"][0][0]
    assert ring[0] == ring[-1], "GeoJSON closes its rings"


def test_a_file_of_another_ending_is_refused(heatmap: Heatmap, tmp_path: Path) -> None:
    for name in ("l.txt", "l", "l.json"):
        with pytest.raises(OutputPathError, match=r"expected \.csv or \.geojson"):
            write_lesions(tmp_path / name, ())
        with pytest.raises(OutputPathError, match=r"expected \.csv or \.geojson"):
            find_lesions(heatmap, out=tmp_path / name)
    assert not list(tmp_path.glob("l*"))


def test_none_found_is_an_empty_table(tmp_path: Path) -> None:
    heatmap = write_store(tmp_path / "h.zarr", _map(4, 4))
    assert find_lesions(heatmap, out=tmp_path / "l.csv", detections=tmp_path / "d.csv") == ()
    assert len((tmp_path / "l.csv").read_text().splitlines()) == 1
    assert (tmp_path / "d.csv").read_text() == ""
    find_lesions(heatmap, out=tmp_path / "l.geojson")
    assert read_annotations(tmp_path / "l.geojson").tumor == ()


def test_the_chain_ends_in_a_perfect_score(heatmap: Heatmap, tmp_path: Path) -> None:
    """What is found, judged against its own outlines: each lesion is hit by its peak."""
    (tmp_path / "found").mkdir()
    (tmp_path / "truth").mkdir()
    found = find_lesions(heatmap, out=tmp_path / "truth" / "node.geojson", detections=tmp_path / "found" / "node.csv")
    (tmp_path / "found" / "normal.csv").write_text("0.01,5,5\n")
    points = read_detections(tmp_path / "found" / "node.csv")
    assert points.scores.tolist() == to_detections(found).scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    result = froc(tmp_path / "found", tmp_path / "truth")
    assert (result.score, result.lesions + result.isolated) == (1.0, 3)


def test_what_a_store_keeps_is_what_is_found(heatmap: Heatmap, tmp_path: Path) -> None:
    kept = json.loads(json.dumps(lesion_facts(heatmap.record, heatmap.probability, heatmap.status)))
    found = find_lesions(heatmap, out=tmp_path / "l.geojson")
    assert (kept["threshold"], kept["peak"], kept["min_area_mm2"]) == (0.5, 0.5, 0)
    features = json.loads((tmp_path / "l.geojson").read_text())["features"]
    assert [lesion.pop("outlines") for lesion in kept["found"]] == [part["geometry"]["coordinates"] for part in features]
    assert kept["found"] == [lesion.to_dict() for lesion in found]
    again = find_lesions(heatmap, threshold=kept["threshold"], peak=kept["peak"], min_area=kept["min_area_mm2"])
    assert [lesion.to_dict() for lesion in again] == kept["found"]


def test_the_verdict_stands_beside_every_number(tmp_path: Path) -> None:
    """Skin was printed as 0.98 and a micrometastasis, without a word."""
    verdict = pronounce({"unlikeness": 1.094})
    heatmap = write_store(tmp_path / "skin.zarr", _map(10, 10, (2, 2, 6, 6, 0.9)), verdict=verdict)
    out = tmp_path / "l.geojson"
    export(heatmap, tmp_path / "q.geojson")
    for words in (["score"], ["lesions", "--out", str(out)], ["info"], ["summary"]):
        at = str(heatmap.path) if words[0] != "summary" else str(tmp_path)
        text = CliRunner().invoke(main, [words[0], at, *words[1:]]).stdout
        assert "verdict: unlike training (1.09; usual is up to 0.90)\n" in text, words
        assert "verdict_figures" not in text
    told = {"words": ["unlike training"], "figures": verdict.figures}
    for path in (out, tmp_path / "q.geojson"):
        assert json.loads(path.read_text())["wsi_meta"]["verdict"] == told
    for name in ("score", "lesions"):
        assert result_of(CliRunner().invoke(main, [name, str(heatmap.path), "--json"]).stdout)["verdict"] == told


def test_a_lesion_beside_cells_that_were_not_read_is_at_least_as_large(tmp_path: Path) -> None:
    """One lesion of 1.3 mm, of which damage left two ends, was told as two plain ones."""
    probability = _map(30, 60, (5, 5, 4, 40, 0.9), (20, 20, 3, 3, 0.9))
    probability[5:9, 8:43] = np.nan
    probability[19, 20] = np.nan
    unreadable = np.isnan(probability)
    unreadable[19, 20] = False
    heatmap = write_store(tmp_path / "h.zarr", probability, unreadable=unreadable)

    found = find_lesions(heatmap, out=tmp_path / "l.csv", threshold=0.5, peak=0.5)

    assert [lesion.cut for lesion in found] == [True, False, True], "glass cuts nothing"
    with (tmp_path / "l.csv").open(newline="") as file:
        assert [row["cut"] for row in csv.DictReader(file)] == ["True", "False", "True"]
    write_lesions(tmp_path / "l.geojson", found)
    first, second, _ = json.loads((tmp_path / "l.geojson").read_text())["features"]
    assert first["properties"]["name"] == "lesion 1: at least isolated tumor cells"
    assert (first["properties"]["measurements"]["cut"], second["properties"]["measurements"]["cut"]) == (1, 0)
    text = CliRunner().invoke(main, ["lesions", str(heatmap.path)]).stdout
    assert text.count("size_class: at least isolated tumor cells") == text.count("diameter_mm: ≥ 0.1") == 2


@pytest.mark.parametrize("cut", [False, True])
def test_older_stores_do_not_say_which_lesions_are_cut(tmp_path: Path, cut: bool) -> None:
    probability = _map(6, 6, (2, 2, 2, 2, 0.9))
    probability[1, 1] = np.nan
    heatmap = write_store(tmp_path / "h.zarr", probability, unreadable=np.full((6, 6), cut))
    assert heatmap.record.lesions is not None
    older = [{name: value for name, value in lesion.items() if name != "cut"} for lesion in heatmap.record.lesions["found"]]
    kept = kept_lesions(replace(heatmap, record=replace(heatmap.record, lesions=heatmap.record.lesions | {"found": older})))
    assert kept is not None
    assert [lesion["cut"] for lesion in kept["found"]] == [cut]


def test_refusals(heatmap: Heatmap, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("mine")
    taken: tuple[dict[str, Any], ...] = (
        {"out": tmp_path / "l.csv"},
        {"detections": tmp_path / "l.csv", "out": tmp_path / "new.csv"},
    )
    for settings in taken:
        with pytest.raises(OutputExistsError, match="--overwrite"):
            find_lesions(heatmap, **settings)
    assert not (tmp_path / "new.csv").exists()
    with pytest.raises(OutputPathError, match="is to be written twice, as --out and --detections"):
        find_lesions(heatmap, out=tmp_path / "new.csv", detections=tmp_path / "new.csv")
    with pytest.raises(OutputPathError, match=r"ending '\.txt'; expected \.csv or \.geojson"):
        find_lesions(heatmap, out=tmp_path / "l.txt")
    for nothing in (float("nan"), float("inf"), -1):
        with pytest.raises(OptionsError, match="expected 0 mm2 or more"):
            find_lesions(heatmap, min_area=nothing)
    for word in ("nan", "inf"):
        result = CliRunner().invoke(main, ["lesions", str(heatmap.path), "--min-area", word])
        assert (result.exit_code, f"{word} is no number" in result.stderr) == (2, True)
    with pytest.raises(HeatmapError, match="no such store"):
        find_lesions(tmp_path / "gone.zarr")
    find_lesions(heatmap, out=tmp_path / "l.csv", overwrite=True)
    assert (tmp_path / "l.csv").read_text().startswith("lesion,size_class,x,y")


def test_command(heatmap: Heatmap, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["lesions", str(heatmap.path), "--json"])
    assert result_of(result.stdout)["lesions"] == [lesion.to_dict() for lesion in find_lesions(heatmap)]
    text = CliRunner().invoke(main, ["lesions", str(heatmap.path)]).stdout
    assert text.count("size_class:") == 3
    assert "- lesion: 1\n  size_class: micrometastasis" in text
    wrong = CliRunner().invoke(main, ["lesions", str(heatmap.path), "--threshold", "0.4", "--peak", "0.2"])
    assert (wrong.exit_code, "expected 0 < threshold" in wrong.output) == (2, True)
    gone = CliRunner().invoke(main, ["lesions", str(tmp_path / "gone.zarr")])
    assert (gone.exit_code, "no such store" in gone.output) == (1, True)


def test_overlay_outlines_and_numbers_lesions(heatmap: Heatmap, tmp_path: Path) -> None:
    plain, outlined = (
        np.asarray(
            Image.open(draw_overlay(heatmap, tmp_path / f"{drawn}.png", lesions=drawn, max_side=900)).convert("RGB")
        ).astype(int)
        for drawn in (False, True)
    )
    assert plain.shape == outlined.shape
    changed = np.abs(plain - outlined).sum(-1) > 60
    assert 0.002 < changed.mean() < 0.1, "lines, not areas"
    assert (outlined[changed] < 60).all(-1).any(), "dark"
    assert (outlined[changed] > 200).all(-1).any(), "on light"


# the frame of QuPath


def test_qupaths_outlines_count_from_the_bounds_and_are_found_again(tmp_path: Path) -> None:
    probability = _map(30, 40, (5, 5, 6, 6, 0.9), (7, 7, 2, 2, 0.05), (20, 30, 2, 2, 0.7))
    heatmap = write_store(tmp_path / "h.zarr", probability, bounds=Bounds(501, 33, 4000, 3000))
    assert heatmap.record.slide.bounds == Bounds(501, 33, 4000, 3000)
    found = find_lesions(heatmap, out=tmp_path / "l.geojson", detections=tmp_path / "d.csv")
    content = json.loads((tmp_path / "l.geojson").read_text())
    known = {"complete": True, "verdict": None, "scanned": 1200, "unreadable": 0, "pending": 0}
    assert content["wsi_meta"] == {"frame": "qupath", "origin_x": 501, "origin_y": 33} | known
    corner: Any = np.array([501, 33])
    write_lesions(tmp_path / "again.geojson", found, origin=corner)
    assert json.loads((tmp_path / "again.geojson").read_text())["features"] == content["features"]
    for lesion, feature in zip(found, content["features"], strict=True):
        ring = feature["geometry"]["coordinates"][0][0]
        np.testing.assert_array_equal(ring[:-1], lesion.outlines[0].vertices - corner)
        measured = feature["properties"]["measurements"]
        assert (measured["x"], measured["peak_y"]) == (lesion.x - 501, lesion.peak_y - 33)
    assert (read_detections(tmp_path / "d.csv").x == [lesion.peak_x for lesion in found]).all(), "level-0 pixels"
    grid = heatmap.grid
    shape = (grid.shape[0] * 32, grid.shape[1] * 32)
    masks = [read_annotations(tmp_path / "l.geojson").mask(shape, grid.cell_l0 / 32)]
    content.pop("wsi_meta")  # as QuPath would export it
    (tmp_path / "q.geojson").write_text(json.dumps(content))
    masks.append(read_annotations(tmp_path / "q.geojson", origin=(501, 33)).mask(shape, grid.cell_l0 / 32))
    expected = np.kron(probability >= 0.5, np.ones((32, 32), bool))
    for mask in masks:
        np.testing.assert_array_equal(mask, expected)


def test_corrections_that_are_not_applied_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By all that lists lesions; what draws or writes the map alone has nothing to tell."""
    store = write_store(tmp_path / "h.zarr", _map(4, 4, (1, 1, 2, 2, 0.9))).path
    (tmp_path / "h.corrections.geojson").touch()
    draw_overlay(store, tmp_path / "map.png", max_side=100)
    assert not caplog.records
    find_lesions(store)
    export(store, tmp_path / "h.xml")
    draw_overlay(store, tmp_path / "h.png", lesions=True, max_side=100)
    assert caplog.text.count("h.zarr: h.corrections.geojson lies beside it and is not applied here; froc") == 3


def test_an_older_store_says_that_it_does_not_know_qupaths_frame(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heatmap = write_store(tmp_path / "h.zarr", _map(10, 10, (5, 5, 3, 3, 0.9)))
    attributes: Any = heatmap.group.attrs["wsi_meta"]
    assert "bounds" not in attributes["slide"]
    assert heatmap.record.slide.bounds is None
    find_lesions(heatmap, out=tmp_path / "l.csv")
    assert not caplog.records
    find_lesions(heatmap, out=tmp_path / "l.geojson")
    assert "h.zarr: does not say which part of the slide QuPath shows" in caplog.text
    assert json.loads((tmp_path / "l.geojson").read_text())["wsi_meta"]["frame"] == "level-0"
    attributes["slide"]["bounds"] = {"x": "1", "y": 2, "width": 3, "height": 4}
    heatmap.group.attrs["wsi_meta"] = attributes
    with pytest.raises(HeatmapError, match=r"damaged \(TypeError: x is '1'"):
        Heatmap.open(tmp_path / "h.zarr")
