from __future__ import annotations

import csv
from pathlib import Path

import pytest
from fakes import DarknessPredictor
from slide_files import damage_tile, texture, write_slide

from wsi_meta.errors import DataError, OutputExistsError, OutputPathError
from wsi_meta.models.model import load_model
from wsi_meta.scanning.batch import COLUMNS, scan_slides


@pytest.fixture
def darkness(model_file: Path) -> DarknessPredictor:
    return DarknessPredictor(load_model(model_file))


def test_a_store_each_and_one_table(tmp_path: Path, darkness: DarknessPredictor) -> None:
    slides = [write_slide(tmp_path / f"{name}.tif", texture(300, 300, seed)) for seed, name in enumerate("ab")]
    torn = write_slide(tmp_path / "torn.tif", texture(256, 2200))
    damage_tile(torn, 0)
    rows = scan_slides([slides[0], tmp_path / "gone.tif", torn, slides[1]], tmp_path / "out", predictor=darkness)
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [Path(row["slide"]).stem for row in table] == ["a", "gone", "torn", "b"]
    assert [row["complete"] for row in table] == ["True", "False", "False", "True"]
    assert tuple(table[0]) == COLUMNS
    assert table[1]["score"] == "", "unknown is empty, never 0"
    assert "no such file" in table[1]["error"]
    assert "could not be read" in table[2]["error"]
    assert int(table[2]["unreadable"]) > 0
    assert float(table[3]["score"]) == rows[3]["score"]
    assert (tmp_path / "out" / "a.zarr").is_dir()
    assert not (tmp_path / "out" / "gone.zarr").exists()


def test_bad_calls(tmp_path: Path, darkness: DarknessPredictor) -> None:
    slide = write_slide(tmp_path / "a.tif", texture(300, 300))
    (tmp_path / "x").mkdir()
    twin = write_slide(tmp_path / "x" / "a.tif", texture(300, 300))
    with pytest.raises(DataError, match="the name of several slides"):
        scan_slides([slide, twin], tmp_path / "out", predictor=darkness)
    (tmp_path / "file").touch()
    with pytest.raises(OutputPathError, match="expected a folder"):
        scan_slides([slide, tmp_path / "b.tif"], tmp_path / "file", predictor=darkness)


def test_a_second_run_keeps_the_rows_of_the_first(tmp_path: Path, darkness: DarknessPredictor) -> None:
    slides = [write_slide(tmp_path / f"{name}.tif", texture(300, 300, seed)) for seed, name in enumerate("abc")]
    scan_slides(slides[:2], tmp_path / "out", predictor=darkness)
    scan_slides(slides[1:], tmp_path / "out", predictor=darkness)
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        assert [Path(row["slide"]).stem for row in csv.DictReader(file)] == ["a", "b", "c"]


def test_a_foreign_summary_is_never_replaced(tmp_path: Path, darkness: DarknessPredictor) -> None:
    slides = [write_slide(tmp_path / f"{name}.tif", texture(300, 300)) for name in "ab"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.csv").write_text("my,own,table\n1,2,3\n")
    with pytest.raises(OutputExistsError, match="not a summary of scans"):
        scan_slides(slides, tmp_path / "out", predictor=darkness)
    assert (tmp_path / "out" / "summary.csv").read_text() == "my,own,table\n1,2,3\n"
