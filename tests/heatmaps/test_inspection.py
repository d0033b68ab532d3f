"""What ``wsi-meta check`` says of whole, unfinished and damaged stores."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from json_output import results_of
from numpy.typing import NDArray
from stores import write_store

from wsi_meta import check_heatmaps
from wsi_meta.cli import main
from wsi_meta.errors import HeatmapError, OptionsError
from wsi_meta.exports.export import export
from wsi_meta.heatmaps.inspection import contradictions
from wsi_meta.heatmaps.lesions import lesion_facts
from wsi_meta.heatmaps.scoring import sum_up
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.scanning.identity import continue_or_refuse, find_store

CELLS = (150, 200)


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rows of four blocks, two coarser levels, some lesions."""
    tissue = np.zeros(CELLS, bool)
    tissue[10:140, 10:190] = True
    values = np.random.default_rng(0).random(CELLS, np.float32) / 3
    values[30:40, 30:50] += 0.6
    return write_store(tmp_path_factory.mktemp("whole") / "h.zarr", np.where(tissue, values, np.nan).astype(np.float32)).path


@pytest.fixture
def store(tmp_path: Path, whole_store: Path) -> Path:
    return Path(shutil.copytree(whole_store, tmp_path / "h.zarr"))


def _line(store: Path) -> str:
    (checked,) = check_heatmaps(store)
    assert "\n" not in checked.line
    return checked.line.removeprefix(f"{store}: ")


def _edit(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a store's record says."""
    text = json.loads((store / "zarr.json").read_text())
    change(text["attributes"])
    (store / "zarr.json").write_text(json.dumps(text))


def _write(store: Path, name: str, values: NDArray[Any]) -> None:
    array = zarr.open_group(store, mode="r+")[name]
    assert isinstance(array, zarr.Array)
    array[...] = values


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


CONTRADICTIONS: list[tuple[str, Callable[[Path], object]]] = [
    (r"coarser levels \(1\) do", lambda store: (store / "1" / "probability" / "c" / "0" / "0").unlink()),
    (r"coarser levels \(2\) do", lambda store: _cut(store / "2" / "probability" / "c" / "0" / "0")),
    (r"coarser levels \(1\) do", lambda store: (store / "1" / "probability" / "zarr.json").unlink()),
    (r"coarser levels \(1\) do", lambda store: (store / "1" / "zarr.json").unlink()),
    (r"coarser levels \(2\) do", lambda store: _write(store, "2/probability", np.zeros((38, 50), np.float32))),
    (r"coarser levels \(their list\) do", lambda store: _edit(store, lambda parts: parts["ome"]["multiscales"][0].clear())),
    (r"places or labels \(y\) do", lambda store: (store / "y" / "c" / "0").unlink()),
    (r"places or labels \(lesions\) do", lambda store: _cut(store / "labels" / "lesions" / "1" / "c" / "0" / "0")),
    (r"places or labels \(status\) do", lambda store: _cut(store / "labels" / "status" / "zarr.json")),
    (r"places or labels \(.*their list\) do", lambda store: _cut(store / "labels" / "zarr.json")),
    ("score or counts are", lambda store: _edit(store, lambda parts: parts["wsi_meta"]["result"].update(score=0.2))),
    ("score or counts are", lambda store: _edit(store, lambda parts: parts["wsi_meta"]["result"]["cells"].update(scanned=7))),
    ("score or counts are", lambda store: _edit(store, lambda parts: parts["wsi_meta"]["result"].update(complete=False))),
    ("the lesions are", lambda store: _edit(store, lambda parts: parts["wsi_meta"]["lesions"]["found"].pop())),
    ("the lesions are", lambda store: _edit(store, lambda parts: parts["wsi_meta"]["lesions"].pop("found"))),
]


def test_a_whole_store_is_sound(store: Path) -> None:
    assert _line(store) == "sound"
    assert contradictions(Heatmap.open(store)) == []


@pytest.mark.parametrize("file", ["0/c/1/2", "status/c/1/2"])
def test_damage_is_told_with_its_place_and_how_to_mend_it(store: Path, file: str) -> None:
    (store / file).unlink()
    assert _line(store).startswith(
        "damaged: values are missing or torn in 1 of 12 blocks, 3,600 cells, 12.0% of the map (rows 60-119 cols 120-179); copy"
    )
    (checked,) = check_heatmaps(store)
    assert checked.to_dict()["damaged"] == [{"row": 60, "col": 120, "rows": 60, "cols": 60}]


def test_many_damaged_blocks_are_counted(store: Path) -> None:
    for chunk in (store / "0" / "c").glob("*/*"):
        _cut(chunk)
    assert "in 12 of 12 blocks, 30,000 cells, 100.0% of the map (rows 0-59 cols 0-59; " in _line(store)
    assert "; 9 more);" in _line(store)


@pytest.mark.parametrize(("told", "damage"), CONTRADICTIONS)
def test_what_contradicts_the_blocks_is_told_and_mended(
    store: Path, told: str, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    damage(store)
    (checked,) = check_heatmaps(store)
    assert checked.state == "damaged"
    assert re.match(told, checked.found)
    assert contradictions(Heatmap.open(store)) == [checked.found.partition(";")[0]]
    with caplog.at_level(logging.WARNING):
        there = Heatmap.open(store)
        tissue = there.status > 1
        heatmap = continue_or_refuse(there, there.record, tissue)
    assert "that is made anew" in caplog.text
    assert heatmap.result is None
    assert heatmap.open_blocks(heatmap.status) == [], "no block is scanned again"
    probability = heatmap.probability
    heatmap.finalise(sum_up(heatmap.status, probability), lesion_facts(heatmap.record, probability, heatmap.status))
    assert _line(store) == "sound"


def test_a_value_where_nothing_was_scanned_is_damage(store: Path) -> None:
    values = Heatmap.open(store).probability
    values[0, 0] = 0.5
    _write(store, "0", values)
    assert "in 1 of 12 blocks" in _line(store)


def test_an_unfinished_scan_is_no_damage(store: Path) -> None:
    heatmap = Heatmap.open(store).reopen()
    block = heatmap.grid.blocks()[5]
    heatmap.clear_block(block, np.ones((60, 60), bool))
    assert _line(store) == "not scanned to the end: 1 of 12 blocks are left; run its scan again, which goes on"
    (checked,) = check_heatmaps(store)
    assert (checked.state, checked.blocks_left) == ("unfinished", 1)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            lambda store: _edit(store, lambda parts: parts["wsi_meta"]["identity"].pop("grid")),
            "the record of its scan is damaged",
        ),
        (lambda store: _edit(store, lambda parts: parts.clear()), "a zarr group, but not from wsi-meta"),
        (lambda store: (store / "zarr.json").write_text("{"), "its record, zarr.json, is missing, empty or cut"),
        (lambda store: (store / "0" / "zarr.json").unlink(), "its array '0' is missing"),
        (
            lambda store: (store / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes_": {}}'),
            "its record, zarr.json, is missing, empty or cut",
        ),
        (
            lambda store: (store / "zarr.json").write_text((store / "zarr.json").read_text().replace("{", '{"later": {}, ', 1)),
            "zarr does not read its record, zarr.json (",
        ),
        (lambda store: _edit(store, lambda parts: parts.update(wsi_meta=["identity"])), "a zarr group, but not from wsi-meta"),
    ],
)
def test_a_record_that_is_not_whole_is_damage(store: Path, damage: Callable[[Path], object], told: str) -> None:
    damage(store)
    assert _line(store).startswith(f"damaged: {told}")


def test_a_store_of_a_newer_format_is_no_damage(store: Path) -> None:
    _edit(store, lambda parts: parts["wsi_meta"].update(format_version=99))
    assert _line(store) == "unreadable: heatmap format 99 is newer than 1; update wsi-meta"


def test_what_the_disk_does_not_give_is_no_damage(store: Path) -> None:
    """It may be whole, and nobody should scan again, or choose another name, for a network that is away."""
    (store / "zarr.json").unlink()
    (store / "zarr.json").symlink_to("zarr.json")  # a loop
    with pytest.raises(OSError, match=r"zarr\.json"):
        find_store(store)
    assert _line(store).startswith("unreadable: ")
    assert _line(store).endswith("try again when it can be read")


def test_what_is_no_heatmap_is_not_called_damaged(store: Path, tmp_path: Path) -> None:
    slide = tmp_path / "a.tif"
    slide.write_bytes(b"II*")
    picture = tmp_path / "picture.ome.zarr"
    assert [check.state for check in check_heatmaps(slide, export(store, picture), store)] == ["no heatmap"] * 2 + ["sound"]
    assert _line(slide) == "no heatmap: not a folder; expected a heatmap from 'wsi-meta scan'"


def test_a_list_is_refused_as_one_store(store: Path) -> None:
    with pytest.raises(OptionsError, match="heatmap: is of type list; expected paths, each by itself"):
        check_heatmaps([store])  # type: ignore[arg-type]


def test_the_command_takes_stores_and_folders(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a", "b", "c"):
        write_store(folder / f"{name}.zarr", np.full((4, 5), 0.25, np.float32))
    Heatmap.open(folder / "b.zarr").reopen()
    run = CliRunner()
    assert run.invoke(main, ["check", str(store), str(folder / "a.zarr")]).exit_code == 0
    result = run.invoke(main, ["check", str(store), str(folder)])
    assert result.exit_code == 1
    assert [line.split(": ")[1] for line in result.stdout.splitlines()] == ["sound", "sound", "not scanned to the end", "sound"]
    assert result.stderr == "Error: 1 of 4 are not sound, whole heatmaps\n"
    states = results_of(run.invoke(main, ["check", str(folder), "--json"]).stdout)
    assert [(Path(part["heatmap"]).name, part["state"]) for part in states] == [
        ("a.zarr", "sound"),
        ("b.zarr", "unfinished"),
        ("c.zarr", "sound"),
    ]


def test_no_store_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HeatmapError, match="no such store"):
        check_heatmaps(tmp_path / "none.zarr")
    with pytest.raises(HeatmapError, match="no heatmap in this folder"):
        check_heatmaps(tmp_path)
