from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsi_meta.errors import HeatmapError, OutputExistsError, OutputPathError
from wsi_meta.heatmaps.store import Heatmap, Status, _halve
from wsi_meta.tiling.grid import Block, PatchGrid

GRID = PatchGrid(200 * 128, 150 * 128, 0.243, 0.972, 96, 32, block_px=1920)


def _create(path: Path, *, uncertainty: bool = False, overwrite: bool = False) -> Heatmap:
    tissue = np.zeros(GRID.shape, bool)
    tissue[10:140, 10:190] = True
    facts = {"identity": {"slide": "abc"}, "slide": {"name": "s", "file": "s.tif"}}
    return Heatmap.create(path, GRID, tissue, facts, uncertainty=uncertainty, overwrite=overwrite)


def _fill(heatmap: Heatmap, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for block in heatmap.open_blocks():
        wanted = heatmap.read_status(block) != Status.BACKGROUND
        probability = np.where(wanted, rng.random(wanted.shape), np.nan).astype(np.float32)
        heatmap.write_block(block, probability, np.where(wanted, Status.SCANNED, Status.BACKGROUND).astype(np.uint8))


def test_a_new_store_knows_nothing(tmp_path: Path) -> None:
    heatmap = _create(tmp_path / "h.zarr")
    assert np.isnan(heatmap.probability).all()
    assert heatmap.probability.dtype == np.float32
    assert heatmap.probability.shape == heatmap.status.shape == (150, 200)
    assert set(np.unique(heatmap.status)) == {Status.PENDING, Status.BACKGROUND}
    assert not heatmap.finished
    assert heatmap.result is None
    assert heatmap.grid == GRID


def test_a_blocks_status_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two writes, a block stays open."""
    heatmap = _create(tmp_path / "h.zarr", uncertainty=True)
    block = heatmap.open_blocks()[0]
    order: list[str] = []
    array_of = Heatmap._array

    def noted(self: Heatmap, name: str) -> Any:
        order.append(name)
        return array_of(self, name)

    monkeypatch.setattr(Heatmap, "_array", noted)
    shape = (block.rows, block.cols)
    values, status = np.zeros(shape, np.float32), np.full(shape, Status.SCANNED, np.uint8)
    heatmap.write_block(block, values, status)
    assert order == ["0", "status"]
    heatmap.write_block(block, values, status, values)
    assert order[2:] == ["0", "uncertainty", "status"]


def test_uncertainty_is_a_map_beside_the_pyramid(tmp_path: Path) -> None:
    assert _create(tmp_path / "without.zarr").uncertainty is None
    assert not (tmp_path / "without.zarr" / "uncertainty").exists()
    heatmap = _create(tmp_path / "h.zarr", uncertainty=True)
    block = heatmap.open_blocks()[0]
    spread = np.random.default_rng(0).random((block.rows, block.cols), np.float32)
    heatmap.write_block(block, spread[::-1], np.full(spread.shape, Status.SCANNED, np.uint8), spread)
    heatmap.finalise({"score": 0.5, "complete": True})
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
    assert [level["path"] for level in ome["multiscales"][0]["datasets"]] == ["0", "1", "2"]


def test_open_blocks_shrink_as_they_are_written(tmp_path: Path) -> None:
    heatmap = _create(tmp_path / "h.zarr")
    todo = heatmap.open_blocks()
    assert len(todo) == len(GRID.blocks()) == 12
    shape = (todo[0].rows, todo[0].cols)
    heatmap.write_block(todo[0], np.zeros(shape, np.float32), np.full(shape, Status.SCANNED, np.uint8))
    assert Heatmap.open(tmp_path / "h.zarr").open_blocks() == todo[1:]
    shape = (todo[1].rows, todo[1].cols)
    heatmap.write_block(todo[1], np.full(shape, np.nan, np.float32), np.full(shape, Status.UNREADABLE, np.uint8))
    assert todo[1] in heatmap.open_blocks(), "unreadable cells are tried again"


def test_a_block_of_zeros_is_committed(tmp_path: Path) -> None:
    """zarr leaves out chunks of the fill value; probabilities of 0 and NaN must both survive."""
    heatmap = _create(tmp_path / "h.zarr")
    block = Block(60, 60, 60, 60)
    heatmap.write_block(block, np.zeros((60, 60), np.float32), np.full((60, 60), Status.SCANNED, np.uint8))
    again = Heatmap.open(tmp_path / "h.zarr")
    assert (again.probability[block.cells] == 0).all()
    assert block not in again.open_blocks()


def test_finished_store(tmp_path: Path) -> None:
    heatmap = _create(tmp_path / "h.zarr")
    _fill(heatmap)
    leftover = tmp_path / "h.zarr" / "0" / "x.partial"
    leftover.touch()
    heatmap.finalise({"score": 0.5, "complete": True})
    again = Heatmap.open(tmp_path / "h.zarr")
    assert again.finished
    assert again.result == {"score": 0.5, "complete": True}
    assert not leftover.exists()
    group = zarr.open_group(tmp_path / "h.zarr", mode="r")
    for name in ("0", "1", "2", "status"):
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert array.metadata.dimension_names == ("y", "x")  # type: ignore[union-attr]
    assert "3" not in group
    assert len(list((tmp_path / "h.zarr").rglob("*"))) < 100


def test_ome_zarr_opens_it_in_place(tmp_path: Path) -> None:
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    heatmap = _create(tmp_path / "h.zarr")
    _fill(heatmap)
    heatmap.finalise({"score": None, "complete": True})
    (node,) = Reader(parse_url(tmp_path / "h.zarr"))()
    assert [level.shape for level in node.data] == [(150, 200), (75, 100), (38, 50)]
    assert [axis["name"] for axis in node.metadata["axes"]] == ["y", "x"]
    assert {axis["unit"] for axis in node.metadata["axes"]} == {"micrometer"}
    np.testing.assert_array_equal(np.asarray(node.data[0]), heatmap.probability)
    for level, (scale, translation) in enumerate(node.metadata["coordinateTransformations"]):
        side_um = 31.104 * 2**level
        assert scale["scale"] == pytest.approx([side_um] * 2)
        assert translation["translation"] == pytest.approx([side_um / 2] * 2), "its corner lies on the slide's corner"


@given(arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 0.25, 1, np.nan])))
def test_coarser_levels_never_lose_the_highest(level: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> None:
    half = _halve(level)
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


def test_what_is_no_heatmap(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    zarr.create_group(tmp_path / "other.zarr", zarr_format=3)
    _create(tmp_path / "newer.zarr")
    text = (tmp_path / "newer.zarr" / "zarr.json").read_text()
    content = json.loads(text)
    content["attributes"]["wsi_meta"]["format_version"] = 99
    (tmp_path / "newer.zarr" / "zarr.json").write_text(json.dumps(content))
    for name, found in [
        ("missing", "no such store"),
        ("file", "not a folder"),
        ("folder", "not a heatmap store"),
        ("other.zarr", "not from wsi-meta"),
        ("newer.zarr", "newer than 1; update"),
    ]:
        with pytest.raises(HeatmapError, match=found) as caught:
            Heatmap.open(tmp_path / name)
        assert name in str(caught.value)
