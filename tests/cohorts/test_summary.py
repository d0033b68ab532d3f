"""The table of a folder of heatmaps is derived from them, whoever writes it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from stores import write_store

from wsi_meta.cohorts.summary import COLUMNS, add_row, failed, summarise, summarise_folder
from wsi_meta.errors import HeatmapError, OutputExistsError
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.locks import locked

MAP = np.full((3, 4), 0.75, np.float32)


def _read(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_it_is_made_anew_from_the_stores(tmp_path: Path) -> None:
    for name in "ab":
        add_row(
            tmp_path, summarise(f"slides/{name}.tif", write_store(tmp_path / f"{name}.zarr", MAP)), tmp_path / f"{name}.zarr"
        )
    add_row(tmp_path, failed("slides/gone.tif", "no such file"), tmp_path / "gone.zarr")
    before = _read(tmp_path)
    assert summarise_folder(tmp_path)[0]["score"] == pytest.approx(0.75)
    assert _read(tmp_path) == before
    (tmp_path / "summary.csv").unlink()
    write_store(tmp_path / "c.zarr", MAP).unfinished()
    (tmp_path / "notes.zarr").mkdir()
    rows = summarise_folder(tmp_path)
    assert [row["slide"] for row in rows] == ["a.tif", "b.tif", "c.tif"]
    assert [row["complete"] for row in rows] == [True, True, False]
    assert "not scanned to the end" in rows[2]["error"]
    assert rows[2]["score"] is None
    assert [tuple(row) for row in rows] == [COLUMNS] * 3


def test_a_damaged_store_has_a_row_that_says_so(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr", MAP)
    text = (tmp_path / "a.zarr" / "zarr.json").read_text()
    (tmp_path / "a.zarr" / "zarr.json").write_text(text.replace('"reader"', '"rider"'))
    (row,) = summarise_folder(tmp_path)
    assert "the record of its scan is damaged" in row["error"]
    assert row["score"] is None


def test_a_failed_scan_leaves_the_row_of_a_finished_store(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", MAP).path
    add_row(tmp_path, failed("x/a.tif", "holds another scan"), store)
    (row,) = _read(tmp_path)
    assert (row["slide"], row["error"]) == ("x/a.tif", "")
    assert float(row["score"]) == pytest.approx(0.75)
    add_row(tmp_path, failed("x/a.tif", "holds another scan"), store)
    assert _read(tmp_path) == [row]
    add_row(tmp_path, failed("y/a.tif", "holds another scan"), store)
    assert [(row["slide"], row["error"]) for row in _read(tmp_path)] == [("x/a.tif", ""), ("y/a.tif", "holds another scan")]
    add_row(tmp_path, summarise("y/a.tif", Heatmap.open(store)), store)
    assert [(row["slide"], row["error"]) for row in _read(tmp_path)] == [("y/a.tif", "")], "one row for one heatmap"


def test_a_failed_scan_does_not_take_anothers_store_for_its_own(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", MAP).path
    add_row(tmp_path, failed("a.svs", "holds another scan"), store)
    assert [row["error"] for row in _read(tmp_path)] == ["holds another scan"]


def test_many_processes_write_one_table(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from wsi_meta.cohorts.summary import add_row, failed\n"
        "for number in range(10): add_row(Path('.'), failed(f'{sys.argv[1]}{number}.tif', 'bad'), Path('none.zarr'))"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, name], cwd=tmp_path) for name in "abc"]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert {row["slide"] for row in _read(tmp_path)} == {f"{name}{number}.tif" for name in "abc" for number in range(10)}
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.csv"]


def test_it_waits_for_another_writer(tmp_path: Path) -> None:
    with locked(tmp_path / "summary.csv"):
        waiting = threading.Thread(target=add_row, args=(tmp_path, failed("a.tif", "bad"), tmp_path / "a.zarr"))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        assert not (tmp_path / "summary.csv").exists()
    waiting.join()
    assert len(_read(tmp_path)) == 1


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n\x1b[31m.tif")
    for _ in range(2):
        add_row(tmp_path, failed(name, f"{name}: bad"), tmp_path / "a.zarr")
    (row,) = _read(tmp_path)
    assert (row["slide"], row["error"]) == (r"caf\xe9\n\x1b[31m.tif", r"caf\xe9\n\x1b[31m.tif: bad")


def test_what_is_no_folder_of_heatmaps(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a.zarr", MAP).path
    with pytest.raises(HeatmapError, match=r"a\.zarr: a heatmap store; expected a folder of heatmaps"):
        summarise_folder(store)
    with pytest.raises(HeatmapError, match="no such folder"):
        summarise_folder(tmp_path / "gone")
    (tmp_path / "summary.csv").write_text("mine\n")
    with pytest.raises(OutputExistsError, match="not a summary of scans"):
        summarise_folder(tmp_path)
    assert (tmp_path / "summary.csv").read_text() == "mine\n"
