from __future__ import annotations

import json
import pickle
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from stores import make_record, write_block, write_store

from wsi_meta.errors import HeatmapError, OutputExistsError, OutputPathError
from wsi_meta.exports.export import export
from wsi_meta.heatmaps.lesions import find_lesions
from wsi_meta.heatmaps.ownership import is_torn_store
from wsi_meta.heatmaps.pyramid import halve
from wsi_meta.heatmaps.record import ScanRecord, ScanResult
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.tiling.grid import Block, PatchGrid

GRID = PatchGrid(200 * 128, 150 * 128, 0.243, 0.972, 96, 32, block_px=1920)
RESULT = ScanResult(0.5, complete=True, cells={"pending": 0, "background": 6600, "scanned": 23400, "unreadable": 0})


def _create(path: Path, *, uncertainty: bool = False, overwrite: bool = False) -> Heatmap:
    tissue = np.zeros(GRID.shape, bool)
    tissue[10:140, 10:190] = True
    return Heatmap.create(path, make_record(GRID, uncertainty=uncertainty), tissue, overwrite=overwrite)


def _fill(heatmap: Heatmap, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for block in heatmap.open_blocks(heatmap.status):
        wanted = heatmap.read_block(block) != Status.BACKGROUND
        probability = np.where(wanted, rng.random(wanted.shape), np.nan).astype(np.float32)
        write_block(heatmap, block, probability, np.where(wanted, Status.SCANNED, Status.BACKGROUND).astype(np.uint8))


def test_a_new_store_knows_nothing(tmp_path: Path) -> None:
    heatmap = _create(tmp_path / "h.zarr")
    assert np.isnan(heatmap.probability).all()
    assert heatmap.probability.dtype == np.float32
    assert heatmap.probability.shape == heatmap.status.shape == (150, 200)
    assert set(np.unique(heatmap.status)) == {Status.PENDING, Status.BACKGROUND}
    assert not heatmap.finished
    assert heatmap.result is None
    assert heatmap.grid == GRID


@dataclass
class NotingGroup:
    """A group that notes which of its arrays are opened and in which order they are written."""

    group: zarr.Group
    opened: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> NotingArray:
        self.opened.append(name)
        return NotingArray(name, self.group[name], self.written)


@dataclass
class NotingArray:
    name: str
    array: Any
    written: list[str]

    def __getitem__(self, part: Any) -> Any:
        return self.array[part]

    def __setitem__(self, part: Any, values: Any) -> None:
        self.written.append(self.name)
        self.array[part] = values


def test_a_store_stays_open_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _create(tmp_path / "h.zarr")
    monkeypatch.chdir(tmp_path)
    heatmap = Heatmap.open("h.zarr")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(heatmap.status, made.status)
    assert heatmap.write_record(replace(heatmap.record, versions={})).record.versions == {}
    (tmp_path / "h.zarr").rename(tmp_path / "moved.zarr")
    with pytest.raises(HeatmapError, match=r"^h\.zarr: no such store any more"):
        _ = Heatmap.open(tmp_path / "moved.zarr").probability, heatmap.probability


def test_a_blocks_status_is_written_last(tmp_path: Path) -> None:
    """Killed between the two writes, a block stays open."""
    made = _create(tmp_path / "h.zarr", uncertainty=True)
    noting: Any = NotingGroup(made.group)
    heatmap, block = Heatmap(made.path, made.record, noting, made.root), GRID.blocks()[0]
    shape = (block.rows, block.cols)
    values, status = np.zeros(shape, np.float32), np.full(shape, Status.SCANNED, np.uint8)
    write_block(heatmap, block, values, status, uncertainty=values)
    assert noting.written == ["0", "uncertainty", "checksums", "status"]


def test_each_array_is_opened_once_whatever_the_number_of_threads(tmp_path: Path) -> None:
    made = _create(tmp_path / "h.zarr")
    noting: Any = NotingGroup(made.group)
    heatmap = Heatmap(made.path, made.record, noting, made.root)
    rng = np.random.default_rng(0)
    expected = rng.random(GRID.shape, np.float32)

    def write(block: Block) -> None:
        found = np.where(heatmap.read_block(block) == Status.PENDING, Status.SCANNED, Status.BACKGROUND)
        write_block(heatmap, block, expected[block.cells], found.astype(np.uint8))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, GRID.blocks()))
    assert sorted(noting.opened) == ["0", "checksums", "status"]
    again = Heatmap.open(made.path)
    np.testing.assert_array_equal(again.probability, expected)
    assert set(np.unique(again.status)) == {Status.SCANNED, Status.BACKGROUND}


def test_a_pickled_heatmap_opens_the_store_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also where the other process works in another folder."""
    monkeypatch.chdir(tmp_path)
    heatmap = _create(Path("h.zarr"))
    _fill(heatmap)
    sent = pickle.dumps(heatmap)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    arrived = pickle.loads(sent)
    assert (arrived.path, arrived.record) == (tmp_path / "h.zarr", heatmap.record)
    block = GRID.blocks()[0]
    write_block(arrived, block, np.zeros((60, 60), np.float32), np.full((60, 60), Status.SCANNED, np.uint8))
    monkeypatch.chdir(tmp_path)
    assert (heatmap.probability[block.cells] == 0).all()


def test_uncertainty_is_a_map_beside_the_pyramid(tmp_path: Path) -> None:
    assert _create(tmp_path / "without.zarr").uncertainty is None
    assert not (tmp_path / "without.zarr" / "uncertainty").exists()
    heatmap = _create(tmp_path / "h.zarr", uncertainty=True)
    block = GRID.blocks()[0]
    spread = np.random.default_rng(0).random((block.rows, block.cols), np.float32)
    write_block(heatmap, block, spread[::-1], np.full(spread.shape, Status.SCANNED, np.uint8), uncertainty=spread)
    heatmap.finalise(replace(RESULT, complete=False), None)
    again = Heatmap.open(tmp_path / "h.zarr")
    assert again.has_uncertainty
    uncertainty = again.uncertainty
    assert uncertainty is not None
    np.testing.assert_array_equal(uncertainty[block.cells], spread)
    np.testing.assert_array_equal(np.isnan(uncertainty), np.isnan(again.probability))
    first, beside = again.group["0"], again.group["uncertainty"]
    assert isinstance(first, zarr.Array)
    assert isinstance(beside, zarr.Array)
    assert (beside.shape, beside.chunks, beside.dtype) == (first.shape, first.chunks, first.dtype)
    assert beside.metadata.dimension_names == ("y", "x")  # type: ignore[union-attr]
    ome: Any = again.group.attrs["ome"]
    assert [level["path"] for level in ome["multiscales"][0]["datasets"]] == ["0", "1/probability", "2/probability"]


def test_open_blocks_shrink_as_they_are_written(tmp_path: Path) -> None:
    heatmap = _create(tmp_path / "h.zarr")
    todo = heatmap.open_blocks(heatmap.status)
    assert len(todo) == len(GRID.blocks()) == 12
    shape = (todo[0].rows, todo[0].cols)
    write_block(heatmap, todo[0], np.zeros(shape, np.float32), np.full(shape, Status.SCANNED, np.uint8))
    assert heatmap.open_blocks(Heatmap.open(tmp_path / "h.zarr").status) == todo[1:]
    shape = (todo[1].rows, todo[1].cols)
    write_block(heatmap, todo[1], np.full(shape, np.nan, np.float32), np.full(shape, Status.UNREADABLE, np.uint8))
    assert todo[1] in heatmap.open_blocks(heatmap.status), "unreadable cells are tried again"


def test_a_block_of_zeros_is_committed(tmp_path: Path) -> None:
    """zarr leaves out chunks of the fill value; probabilities of 0 and NaN must both survive."""
    heatmap = _create(tmp_path / "h.zarr")
    block = Block(60, 60, 60, 60)
    write_block(heatmap, block, np.zeros((60, 60), np.float32), np.full((60, 60), Status.SCANNED, np.uint8))
    again = Heatmap.open(tmp_path / "h.zarr")
    assert (again.probability[block.cells] == 0).all()
    assert block not in again.open_blocks(again.status)


def test_finished_store(tmp_path: Path) -> None:
    heatmap = _create(tmp_path / "h.zarr")
    _fill(heatmap)
    leftover = tmp_path / "h.zarr" / "0" / "x.partial"
    leftover.touch()
    lesions = {"threshold": 0.5, "peak": 0.5, "min_area_mm2": 0.0, "found": []}
    finished = heatmap.finalise(RESULT, lesions)
    again = Heatmap.open(tmp_path / "h.zarr")
    assert again.finished
    assert again.result == RESULT
    assert again.record == finished.record == heatmap.record.ended_with(RESULT, lesions)
    assert heatmap.result is None, "nothing mutates"
    assert not leftover.exists()
    group = zarr.open_group(tmp_path / "h.zarr", mode="r")
    for name in ("0", "1/probability", "2/probability", "status"):
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert array.metadata.dimension_names == ("y", "x")  # type: ignore[union-attr]
    assert "3" not in group
    assert sum(path.is_file() for path in (tmp_path / "h.zarr").rglob("*")) < 100


def test_a_fitted_score_joins_the_result(tmp_path: Path) -> None:
    heatmap = _create(tmp_path / "h.zarr")
    fitted = {"score": 0.75, "file": "score.json", "sha256": "2" * 64}
    with pytest.raises(HeatmapError, match="not scanned to the end, so there is no score"):
        heatmap.write_fitted_score(fitted)
    finished = heatmap.finalise(RESULT, None)
    scored = finished.write_fitted_score(fitted)
    assert scored.result == Heatmap.open(tmp_path / "h.zarr").result == replace(RESULT, fitted_score=fitted)
    assert finished.result == RESULT


def test_the_record_on_disk(tmp_path: Path) -> None:
    """Other programs read it: its keys are part of the format."""
    heatmap = write_store(tmp_path / "h.zarr", np.full((3, 4), 0.9, np.float32), specificity_99=0.8)
    parts: Any = json.loads((tmp_path / "h.zarr" / "zarr.json").read_text())["attributes"]["wsi_meta"]
    assert " ".join(parts) == "format_version grid identity slide tissue model device versions result lesions"
    assert parts["format_version"] == 1
    assert parts["grid"] == parts["identity"]["grid"] == heatmap.grid.to_dict()
    assert " ".join(parts["identity"]) == (
        "slide reader model mode halo_px grid tissue device precision compiled test_time_averaging uncertainty"
    )
    assert parts["slide"] == {
        "file": "h.tif",
        "name": "h",
        "width": 512,
        "height": 384,
        "mpp": 0.243,
        "stated_mpp": None,
        "reader_reason": "",
    }
    assert parts["tissue"] == {"source": "found", "fraction": 1.0}
    assert parts["model"]["thresholds"] == {"default": 0.5, "specificity_99": 0.8}
    assert parts["result"] == {
        "score": pytest.approx(0.9),
        "complete": True,
        "cells": {"pending": 0, "background": 0, "scanned": 12, "unreadable": 0},
        "fitted_score": None,
    }
    assert (parts["lesions"]["peak"], len(parts["lesions"]["found"])) == (0.8, 1)
    assert ScanRecord.from_dict(parts | {"of another version": 1}) == heatmap.record


def _damaged(parts: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """The record with another value at a place, or without it (None)."""
    first, _, rest = place.partition(".")
    if rest:
        return parts | {first: _damaged(parts[first], rest, value)}
    return parts | {first: value} if value is not None else {name: part for name, part in parts.items() if name != first}


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("identity", "abc", "the record of its scan is damaged"),
        ("identity.reader", None, "reader"),
        ("identity.grid", None, "KeyError: 'grid'"),
        ("identity.grid.width", "wide", "width is 'wide'; expected int"),
        ("identity.compiled", 1, "compiled is 1; expected bool"),
        ("slide.name", None, "name"),
        ("slide.mpp", "0.25", "mpp is '0.25'; expected float"),
        ("tissue", None, "KeyError: 'tissue'"),
        ("model.thresholds", None, "missing: thresholds"),
        ("result", None, "KeyError: 'result'"),
        ("result", [], "damaged"),
        ("result.complete", "yes", "complete is 'yes'; expected bool"),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path: Path, place: str, value: Any, told: str) -> None:
    path = write_store(tmp_path / "h.zarr", np.zeros((3, 4), np.float32)).path
    group = zarr.open_group(path)
    parts: Any = group.attrs["wsi_meta"]
    group.attrs["wsi_meta"] = _damaged(parts, place, value)
    with pytest.raises(HeatmapError, match=r"h\.zarr: the record of its scan is damaged \(") as caught:
        Heatmap.open(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert write_store(path, np.ones((3, 4), np.float32)).finished, "and may be replaced: it bears our mark"


def test_ome_zarr_opens_it_in_place(tmp_path: Path) -> None:
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    heatmap = _create(tmp_path / "h.zarr")
    _fill(heatmap)
    heatmap.finalise(replace(RESULT, score=None), None)
    node, *labels = Reader(parse_url(tmp_path / "h.zarr"))()
    assert [label.zarr.basename() for label in labels] == ["labels", "status"]
    assert [level.shape for level in node.data] == [(150, 200), (75, 100), (38, 50)]
    assert [axis["name"] for axis in node.metadata["axes"]] == ["y", "x"]
    assert {axis["unit"] for axis in node.metadata["axes"]} == {"micrometer"}
    np.testing.assert_array_equal(np.asarray(node.data[0]), heatmap.probability)
    for level, (scale, translation) in enumerate(node.metadata["coordinateTransformations"]):
        side_um = 31.104 * 2**level
        assert scale["scale"] == pytest.approx([side_um] * 2)
        assert translation["translation"] == pytest.approx([side_um / 2] * 2), "its corner lies on the slide's corner"
    exported, *_ = Reader(parse_url(export(tmp_path / "h.zarr", tmp_path / "h.ome.zarr")))()
    assert [axis["name"] for axis in exported.metadata["axes"]] == ["c", "y", "x"]
    assert exported.metadata["channel_names"] == node.metadata["channel_names"] == ["tumor probability"]
    for mine, theirs in zip(
        node.metadata["coordinateTransformations"], exported.metadata["coordinateTransformations"], strict=True
    ):
        assert mine[0]["scale"] == theirs[0]["scale"][1:]
        assert mine[1]["translation"] == theirs[1]["translation"][1:]
    np.testing.assert_array_equal(np.asarray(exported.data[0])[0], heatmap.probability)


@given(arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 0.25, 1, np.nan])))
def test_coarser_levels_never_lose_the_highest(level: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> None:
    half = halve(level)
    assert half.shape == ((level.shape[0] + 1) // 2, (level.shape[1] + 1) // 2)
    for row in range(half.shape[0]):
        for col in range(half.shape[1]):
            four = level[2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
            known = four[~np.isnan(four)]
            assert np.isnan(half[row, col]) if known.size == 0 else half[row, col] == known.max()


def test_existing_outputs_are_safe(tmp_path: Path) -> None:
    _create(tmp_path / "h.zarr")
    with pytest.raises(OutputExistsError, match="exists; choose another"):
        _create(tmp_path / "h.zarr")
    _create(tmp_path / "h.zarr", overwrite=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data.txt").write_text("years of work")
    (tmp_path / "file").write_text("more of it")
    for name in ("precious", "file"):
        with pytest.raises(OutputExistsError, match="never replaced"):
            _create(tmp_path / name, overwrite=True)
    assert (tmp_path / "precious" / "data.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "more of it"
    with pytest.raises(OutputPathError, match="there is no folder"):
        _create(tmp_path / "nowhere" / "h.zarr")


def test_what_is_printed_of_a_heatmap_is_a_line(tmp_path: Path) -> None:
    heatmap = write_store(tmp_path / "a.zarr", np.full((6, 9), 0.91, np.float32))
    assert repr(heatmap) == f"Heatmap('{heatmap.path}', a, 9 x 6 cells, score 0.910)"
    assert "not scanned to the end" in repr(heatmap.reopen())
    (lesion,) = find_lesions(heatmap)
    assert "cells=54" in repr(lesion)
    assert repr(lesion.outlines) == "(Outline(4 corners, 'tumor'),)"
    assert len(repr(lesion)) < 300


def test_what_is_no_heatmap(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    zarr.create_group(tmp_path / "other.zarr", zarr_format=3)
    _create(tmp_path / "newer.zarr")
    text = (tmp_path / "newer.zarr" / "zarr.json").read_text()
    content = json.loads(text)
    content["attributes"]["wsi_meta"]["format_version"] = 99
    (tmp_path / "newer.zarr" / "zarr.json").write_text(json.dumps(content))
    _create(tmp_path / "torn.zarr")
    group = '{"zarr_format": 3, "node_type": "group", "attributes": {}, "of_a_later_version": {}}'
    for name, text in {"array": "3", "deep": "[" * 100_000, "unknown": group, "torn": "3"}.items():
        (tmp_path / f"{name}.zarr").mkdir(exist_ok=True)
        (tmp_path / f"{name}.zarr" / "zarr.json").write_text(text)
    assert [path.stem for path in sorted(tmp_path.iterdir()) if is_torn_store(path)] == ["torn"]
    for name, found in [
        ("missing", "no such store"),
        ("file", "not a folder"),
        ("folder", "a folder without heatmaps"),
        ("other.zarr", "not from wsi-meta"),
        ("newer.zarr", "newer than 1; update"),
        ("array.zarr", r"not a heatmap store \(AttributeError\)"),
        ("deep.zarr", r"not a heatmap store \(RecursionError\)"),
        ("unknown.zarr", r"not a heatmap store \(TypeError\)"),
        ("torn.zarr", "its record, zarr.json, is missing, empty or cut; copy it again, or scan it again with --overwrite"),
    ]:
        with pytest.raises(HeatmapError, match=found) as caught:
            Heatmap.open(tmp_path / name)
        assert name in str(caught.value)


def test_a_lack_of_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_values: object, **_settings: object) -> None:
        raise MemoryError

    path = write_store(tmp_path / "a.zarr", np.full((6, 9), 0.91, np.float32)).path
    monkeypatch.setattr(zarr, "open_group", fail)
    with pytest.raises(MemoryError):
        Heatmap.open(path)


@contextmanager
def _full_disk() -> Iterator[None]:
    """Let no file become longer than a byte, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("step", ["create", "write_block", "clear_block", "finalise", "reopen"])
def test_a_full_disk_is_told_with_the_store_and_a_remedy(step: str, tmp_path: Path) -> None:
    heatmap = write_store(tmp_path / "h.zarr", np.random.default_rng(0).random((70, 70), np.float32))
    tissue, block = np.ones((70, 70), bool), heatmap.grid.blocks()[0]
    result, path, status = RESULT, heatmap.path, heatmap.status
    values = heatmap.probability[block.cells], status[block.cells]
    steps: dict[str, Callable[[], object]] = {
        "create": lambda: Heatmap.create(path, heatmap.record, tissue, overwrite=True),
        "write_block": lambda: write_block(heatmap, block, *values),
        "clear_block": lambda: heatmap.clear_block(block, ~tissue[block.cells]),
        "finalise": lambda: heatmap.finalise(result, None),
        "reopen": heatmap.reopen,
    }
    told = r"h\.zarr(/zarr\.json)?: cannot be written \(File too large\); make room"
    with _full_disk(), pytest.raises(OutputPathError, match=told):
        steps[step]()
    if step == "clear_block":
        status[block.cells] = Status.PENDING
    assert np.array_equal(Heatmap.open(path).reopen().status, status), "the mark of what is done stays"
    assert [entry.name for entry in tmp_path.iterdir()] == ["h.zarr"]
