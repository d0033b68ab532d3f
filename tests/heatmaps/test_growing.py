"""Whoever reads a store while a scan writes into it sees one moment: a block is there with its values, or not yet at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image
from stores import make_record, write_block, write_store

from wsi_meta.errors import HeatmapError
from wsi_meta.exports.export import export
from wsi_meta.heatmaps.inspection import check_heatmaps
from wsi_meta.heatmaps.lesions import coverage, find_lesions
from wsi_meta.heatmaps.score_model import score_heatmap
from wsi_meta.heatmaps.soundness import damaged_blocks, open_sound
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.pictures.overlay import draw_overlay
from wsi_meta.tiling.grid import Block, PatchGrid
from wsi_meta.viewer.shown_map import ShownMap

BLOCK, READS = 100, range(1, 8)
"""Cells of a block. After which reading of an array the scan writes its next block; the last are after the end."""
Interrupt = Callable[[int, Callable[[], None]], None]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two blocks of tumor, of which the first one is scanned."""
    grid = PatchGrid(640, 320, 0.972, 0.972, 96, 32, block_px=320)
    heatmap = Heatmap.create(tmp_path / "h.zarr", make_record(grid), np.ones(grid.shape, bool), overwrite=False)
    _scan(heatmap, grid.blocks()[0])
    return heatmap.path


def _scan(heatmap: Heatmap, block: Block) -> None:
    cells = block.rows, block.cols
    write_block(heatmap, block, np.full(cells, 0.95, np.float32), np.full(cells, Status.SCANNED, np.uint8))


def _scan_on(store: Path) -> Callable[[], None]:
    heatmap = Heatmap.open(store)
    return lambda: _scan(heatmap, heatmap.grid.blocks()[1])


@pytest.fixture
def after_read(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Takes a number and what is to happen right after so many readings of arrays."""

    def prepare(number: int, happens: Callable[[], None]) -> None:
        numbers, plain = count(1), zarr.Array.__getitem__

        def read(array: zarr.Array[Any], part: Any) -> Any:
            found = plain(array, part)
            if next(numbers) == number:
                happens()
            return found

        monkeypatch.setattr(zarr.Array, "__getitem__", read)

    return prepare


@pytest.mark.parametrize("number", READS)
def test_lesions_end_where_the_scan_does(store: Path, after_read: Interrupt, number: int) -> None:
    after_read(number, _scan_on(store))
    (lesion,) = find_lesions(store)
    assert (lesion.cells, lesion.cut) in {(BLOCK, True), (2 * BLOCK, False)}
    (lesion,) = find_lesions(Heatmap.open(store))
    assert (lesion.cells, lesion.cut) == (2 * BLOCK, False)


@pytest.mark.parametrize("number", READS)
def test_an_export_says_how_many_cells_it_is_of(store: Path, after_read: Interrupt, number: int, tmp_path: Path) -> None:
    after_read(number, _scan_on(store))
    told = json.loads(export(store, tmp_path / "l.geojson").read_text())
    (lesion,) = told["features"]
    assert lesion["properties"]["measurements"]["Num Cells of map"] == told["wsi_meta"]["scanned"]


@pytest.mark.parametrize("number", READS)
def test_a_score_and_its_pieces_are_of_the_same_cells(store: Path, after_read: Interrupt, number: int) -> None:
    after_read(number, _scan_on(store))
    scored = score_heatmap(store)
    assert scored.features["log_area"] == pytest.approx(np.log1p(sum(piece.lesion_mm2 for piece in scored.pieces)))


@pytest.mark.parametrize("number", READS)
def test_a_picture_is_that_of_before_or_that_of_after(store: Path, after_read: Interrupt, number: int, tmp_path: Path) -> None:
    def draw(name: str) -> bytes:
        with Image.open(draw_overlay(store, tmp_path / name, max_side=100, lesions=True)) as picture:
            return picture.tobytes()

    before = draw("before.png")
    after_read(number, _scan_on(store))
    between = draw("between.png")
    after = draw("after.png")
    assert before != after
    assert between in (before, after)


@pytest.mark.parametrize("number", READS)
def test_a_sound_store_that_grows_is_not_called_damaged(store: Path, after_read: Interrupt, number: int) -> None:
    after_read(number, _scan_on(store))
    (check,) = check_heatmaps(store)
    assert check.state == "unfinished", check.line


@pytest.mark.parametrize(
    ("number", "read"), [(1, open_sound), *((number, read) for number in (1, 2, 3) for read in (find_lesions, score_heatmap))]
)
def test_a_store_that_another_scan_replaces_is_told(
    after_read: Interrupt, number: int, read: Callable[[Path], object], tmp_path: Path
) -> None:
    """Its values are no longer those of the record that was read before; nor is it damaged."""
    heatmap = write_store(tmp_path / "h.zarr", np.full((12, 12), 0.9, np.float32), slide="first")
    another = make_record(heatmap.grid, slide="second")

    def replace_it() -> None:
        Heatmap.create(heatmap.path, another, np.ones(heatmap.grid.shape, bool), overwrite=True)

    after_read(number, replace_it)
    with pytest.raises(HeatmapError, match=r"h\.zarr: another scan replaced it while it was read; run this again"):
        read(heatmap.path)


def test_lesions_of_a_page_are_of_the_map_that_it_shows(store: Path) -> None:
    state = ShownMap(store).state()
    _scan_on(store)()
    (lesion,) = state.lesions(0.5)["lesions"]
    assert (lesion["cells"], lesion["cut"]) == (BLOCK, True)


def test_a_store_as_of_now_stays_as_it_is(store: Path) -> None:
    heatmap = open_sound(store)
    known, blocks = coverage(heatmap), heatmap.grid.blocks()
    _scan_on(store)()
    assert open_sound(heatmap) is heatmap.as_of_now() is heatmap
    assert coverage(heatmap) == known
    assert np.isfinite(heatmap.probability).sum() == (heatmap.status == Status.SCANNED).sum() == BLOCK
    assert np.isnan(heatmap.read_block(blocks[1], "0")).all()
    assert heatmap.open_blocks(heatmap.status) == blocks[1:]
    assert np.isfinite(Heatmap.open(store).probability).all()


def test_a_block_that_is_scanned_again_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of it could not be read; it is looked at after each array that the scan writes."""
    values = np.full((60, 60), 0.3, np.float32)
    values[:5] = np.nan
    heatmap = write_store(tmp_path / "h.zarr", values, unreadable=np.isnan(values)).reopen()
    (block,), looks, plain = heatmap.grid.blocks(), list[list[Block]](), zarr.Array.__setitem__

    def write(array: zarr.Array[Any], part: Any, written: Any) -> None:
        plain(array, part, written)
        looks.append(damaged_blocks(heatmap))

    monkeypatch.setattr(zarr.Array, "__setitem__", write)
    _scan(heatmap, block)
    assert len(looks) > 2
    assert not any(looks)
    assert (Heatmap.open(heatmap.path).status == Status.SCANNED).all()
