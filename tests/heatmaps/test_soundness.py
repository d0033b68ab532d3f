"""Damage in a store is told, and mended block by block."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from stores import write_store

from wsi_meta.errors import HeatmapError
from wsi_meta.heatmaps.lesions import find_lesions
from wsi_meta.heatmaps.overlay import draw_overlay
from wsi_meta.heatmaps.score_model import score_heatmap
from wsi_meta.heatmaps.soundness import damaged_blocks, mended, open_sound
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.metadata import info

CELLS = (150, 200)
"""Three rows of four blocks, less at the edges."""


@pytest.fixture
def tissue() -> NDArray[np.bool_]:
    found = np.zeros(CELLS, bool)
    found[10:140, 10:190] = True
    return found


@pytest.fixture
def store(tmp_path: Path, tissue: NDArray[np.bool_]) -> Path:
    values = np.random.default_rng(0).random(CELLS, np.float32)
    return write_store(tmp_path / "h.zarr", np.where(tissue, values, np.nan).astype(np.float32)).path


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _flip(path: Path) -> None:
    """Another bit in the middle: such a file may well be unpacked."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE: list[tuple[str, Callable[[Path], None]]] = [
    ("0/c/1/2", Path.unlink),
    ("0/c/1/2", lambda path: _cut(path, 0)),
    ("0/c/1/2", lambda path: _cut(path, 100)),
    ("0/c/1/2", _flip),
    ("0/c/2/3", lambda path: _cut(path, 100)),
    ("status/c/1/2", Path.unlink),
    ("status/c/1/2", lambda path: _cut(path, 0)),
    ("status/c/1/2", lambda path: _cut(path, 6)),
    ("status/c/2/3", lambda path: _cut(path, 6)),
    ("status/c/2/3", Path.unlink),
]


def test_a_whole_store_is_sound(store: Path, tissue: NDArray[np.bool_], caplog: pytest.LogCaptureFixture) -> None:
    heatmap = open_sound(store)
    assert open_sound(heatmap) is heatmap
    assert mended(heatmap, tissue) is heatmap
    assert caplog.records == []


@pytest.mark.parametrize(("file", "damage"), DAMAGE)
def test_damage_is_refused_where_results_are_read(
    store: Path, file: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    damage(store / file)
    commands: list[Callable[[], object]] = [
        lambda: score_heatmap(store),
        lambda: find_lesions(store),
        lambda: info(store),
        lambda: draw_overlay(store, out=tmp_path / "o.png"),
        lambda: find_lesions(Heatmap.open(store)),
    ]
    for command in commands:
        with pytest.raises(HeatmapError, match=r"h\.zarr: damaged: .* in 1 of 12 blocks; .*run its scan again") as caught:
            command()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("file", "damage"), DAMAGE)
def test_a_scan_mends_the_damaged_block_alone(
    store: Path, file: str, damage: Callable[[Path], None], tissue: NDArray[np.bool_], caplog: pytest.LogCaptureFixture
) -> None:
    whole = Heatmap.open(store).probability
    damage(store / file)
    with caplog.at_level(logging.WARNING):
        heatmap = mended(Heatmap.open(store), tissue)
    assert "values are missing in 1 of 12 blocks" in caplog.text
    assert not heatmap.finished
    assert not Heatmap.open(store).finished
    (block,) = heatmap.open_blocks(heatmap.status)
    assert [str(block.row // 60), str(block.col // 60)] == file.split("/")[2:]
    np.testing.assert_array_equal(heatmap.status != Status.BACKGROUND, tissue)
    assert np.isnan(heatmap.probability[block.cells]).all()
    state = np.where(tissue[block.cells], Status.SCANNED, Status.BACKGROUND).astype(np.uint8)
    heatmap.write_block(block, whole[block.cells], state)
    np.testing.assert_array_equal(Heatmap.open(store).probability, whole)
    assert damaged_blocks(Heatmap.open(store), tissue) == []


def test_killed_while_it_was_mended_the_block_is_mended_again(store: Path, tissue: NDArray[np.bool_]) -> None:
    """Without its file a block's status reads as pending, also where there is no tissue."""
    Heatmap.open(store).unfinished()
    (store / "status" / "c" / "0" / "0").unlink()
    assert damaged_blocks(Heatmap.open(store)) == [], "so it may be without tissue's word"
    heatmap = mended(Heatmap.open(store), tissue)
    np.testing.assert_array_equal(heatmap.status != Status.BACKGROUND, tissue)


def test_what_a_killed_block_left_is_no_damage(store: Path, tissue: NDArray[np.bool_]) -> None:
    """Values without a status, as a kill between the two writes leaves them."""
    heatmap = Heatmap.open(store).unfinished()
    block = heatmap.grid.blocks()[0]
    values = heatmap.probability[block.cells]
    heatmap.clear_block(block, tissue[block.cells])
    array = heatmap.group["0"]
    assert isinstance(array, zarr.Array)
    array[block.cells] = values
    assert damaged_blocks(heatmap, tissue) == []


@pytest.mark.parametrize("name", ["0", "status"])
def test_a_lost_array_is_one_line(store: Path, name: str) -> None:
    (store / name / "zarr.json").unlink()
    with pytest.raises(HeatmapError, match=f"its array '{name}' is missing or damaged"):
        open_sound(store)


def test_an_array_of_another_shape_is_one_line(store: Path) -> None:
    text = (store / "0" / "zarr.json").read_text()
    (store / "0" / "zarr.json").write_text(text.replace("150", "149"))
    with pytest.raises(HeatmapError, match=r"its array '0' is not float32 \(150, 200\)"):
        open_sound(store)


def test_an_array_that_cannot_be_unpacked_is_one_line(store: Path) -> None:
    _cut(store / "0" / "c" / "1" / "2", 100)
    with pytest.raises(HeatmapError, match="its array '0' is damaged") as caught:
        _ = Heatmap.open(store).probability
    assert "\n" not in str(caught.value)
