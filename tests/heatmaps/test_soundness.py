"""Damage in a store is told, and mended block by block."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from stores import write_block, write_store

from wsi_meta.errors import HeatmapError
from wsi_meta.heatmaps.lesions import find_lesions
from wsi_meta.heatmaps.score_model import score_heatmap
from wsi_meta.heatmaps.soundness import clear_damage, damaged_blocks, open_sound
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.metadata import info
from wsi_meta.pictures.overlay import draw_overlay

CELLS = (150, 200)
"""Three rows of four blocks, less at the edges."""


@pytest.fixture(scope="module")
def tissue() -> NDArray[np.bool_]:
    found = np.zeros(CELLS, bool)
    found[10:140, 10:190] = True
    return found


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory: pytest.TempPathFactory, tissue: NDArray[np.bool_]) -> Path:
    values = np.random.default_rng(0).random(CELLS, np.float32) / 4  # no two alike; but few lesions, which take time
    values[20:40, 100:140] += 0.7
    return write_store(tmp_path_factory.mktemp("whole") / "h.zarr", np.where(tissue, values, np.nan).astype(np.float32)).path


@pytest.fixture
def store(tmp_path: Path, whole_store: Path) -> Path:
    return Path(shutil.copytree(whole_store, tmp_path / "h.zarr"))


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
    assert clear_damage(heatmap, tissue) is heatmap
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


@pytest.mark.parametrize(
    ("file", "array"), [("0/c/1/2", "probability"), ("status/c/1/2", "probability"), ("status/c/1/2", "status")]
)
def test_arrays_lack_nothing_that_was_scanned(store: Path, file: str, array: str) -> None:
    heatmap = Heatmap.open(store)
    (store / file).unlink()
    with pytest.raises(HeatmapError, match=r"h\.zarr: damaged: scanned cells are missing; .*run its scan again"):
        getattr(heatmap, array)


@pytest.mark.parametrize(("file", "damage"), DAMAGE)
def test_a_scan_mends_the_damaged_block_alone(
    store: Path, file: str, damage: Callable[[Path], None], tissue: NDArray[np.bool_], caplog: pytest.LogCaptureFixture
) -> None:
    whole = Heatmap.open(store).probability
    damage(store / file)
    with caplog.at_level(logging.WARNING):
        heatmap = clear_damage(Heatmap.open(store), tissue)
    assert "values are missing in 1 of 12 blocks" in caplog.text
    assert not heatmap.finished
    assert not Heatmap.open(store).finished
    (block,) = heatmap.open_blocks(heatmap.status)
    assert [str(block.row // 60), str(block.col // 60)] == file.split("/")[2:]
    np.testing.assert_array_equal(heatmap.status != Status.BACKGROUND, tissue)
    assert np.isnan(heatmap.probability[block.cells]).all()
    state = np.where(tissue[block.cells], Status.SCANNED, Status.BACKGROUND).astype(np.uint8)
    write_block(heatmap, block, whole[block.cells], state)
    np.testing.assert_array_equal(Heatmap.open(store).probability, whole)
    assert damaged_blocks(Heatmap.open(store), tissue) == []


def test_killed_while_it_was_mended_the_block_is_mended_again(store: Path, tissue: NDArray[np.bool_]) -> None:
    """Without its file a block's status reads as pending, also where there is no tissue."""
    Heatmap.open(store).reopen()
    (store / "status" / "c" / "0" / "0").unlink()
    assert damaged_blocks(Heatmap.open(store)) == [], "so it may be without tissue's word"
    heatmap = clear_damage(Heatmap.open(store), tissue)
    np.testing.assert_array_equal(heatmap.status != Status.BACKGROUND, tissue)


def test_what_a_killed_block_left_is_no_damage(store: Path, tissue: NDArray[np.bool_]) -> None:
    """Values without a status, as a kill between the two writes leaves them."""
    heatmap = Heatmap.open(store).reopen()
    block = heatmap.grid.blocks()[0]
    values = heatmap.probability[block.cells]
    heatmap.clear_block(block, tissue[block.cells])
    array = heatmap.group["0"]
    assert isinstance(array, zarr.Array)
    array[block.cells] = values
    assert damaged_blocks(heatmap, tissue) == []


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(("name", "places"), [("0", ("1/1", "1/2")), ("status", ("0/1", "1/1"))])
def test_blocks_that_changed_places_are_told_and_scanned_again(
    store: Path, name: str, places: tuple[str, str], finished: bool, tissue: NDArray[np.bool_]
) -> None:
    """Each of them is whole; only the checksums kept with them, or at the end, say that they are not where they belong."""
    if not finished:
        Heatmap.open(store).reopen()
    one, other = (store / name / "c" / place for place in places)
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    with pytest.raises(HeatmapError, match=r"damaged: .* in 2 of 12 blocks"):
        score_heatmap(store)
    heatmap = clear_damage(Heatmap.open(store), tissue)
    assert len(heatmap.open_blocks(heatmap.status)) == 2


def test_a_block_without_its_checksum_is_believed_and_a_torn_one_scanned_again(store: Path, tissue: NDArray[np.bool_]) -> None:
    """After a loss of power a small file may be gone or empty."""
    heatmap = Heatmap.open(store).reopen()
    (store / "checksums/c/0/1").unlink()
    assert damaged_blocks(heatmap, tissue) == []
    (store / "checksums/c/0/1").write_bytes(b"")
    assert damaged_blocks(heatmap, tissue) == [heatmap.grid.blocks()[1]]
    heatmap = clear_damage(heatmap, tissue)
    assert heatmap.open_blocks(heatmap.status) == [heatmap.grid.blocks()[1]]
    assert damaged_blocks(heatmap, tissue) == []


def test_a_store_without_checksums_goes_on_without(store: Path, tissue: NDArray[np.bool_]) -> None:
    """As 0.1.0 made it."""
    shutil.rmtree(store / "checksums")
    heatmap = Heatmap.open(store).reopen()
    assert damaged_blocks(heatmap, tissue) == []
    block, values = heatmap.grid.blocks()[0], heatmap.probability
    state = np.where(tissue[block.cells], Status.SCANNED, Status.BACKGROUND).astype(np.uint8)
    write_block(heatmap, block, values[block.cells], state)
    assert damaged_blocks(Heatmap.open(store), tissue) == []


@pytest.mark.parametrize("name", ["0", "status", "checksums"])
@pytest.mark.parametrize("left", ["", "[]", '{"node_type": "array", "shape": [-1]}', None])
def test_a_lost_array_is_one_line(store: Path, name: str, left: str | None) -> None:
    Heatmap.open(store).reopen()  # then all three are read
    (store / name / "zarr.json").unlink()
    if left is not None:
        (store / name / "zarr.json").write_text(left)
    with pytest.raises(HeatmapError, match=f"its array '{name}' is missing or damaged"):
        open_sound(store)


def test_an_array_of_another_shape_is_one_line(store: Path) -> None:
    text = (store / "0" / "zarr.json").read_text()
    (store / "0" / "zarr.json").write_text(text.replace("150", "149"))
    with pytest.raises(HeatmapError, match=r"its array '0' is not float32 \(150, 200\)"):
        open_sound(store)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('"shape":[150,200]', '"shape":[150,0.5]', "is missing or damaged"),
        ('"chunk_shape":[60,60]', '"chunk_shape":[60,50]', r"is not stored in blocks of 60 x 60 cells"),
        ('"fill_value":"NaN"', '"fill_value":0.0', "is not stored in blocks of 60 x 60 cells, or what it lacks is not nan"),
        ('"name":"zstd"', '"name":"zzz"', "is missing or damaged"),
        ('"level":0', '"level":-1000000000000000000000000000000', "is not compressed as a scan does it"),
    ],
)
def test_an_array_that_is_described_otherwise_is_one_line(store: Path, before: str, after: str, told: str) -> None:
    text = json.dumps(json.loads((store / "0" / "zarr.json").read_text()), separators=(",", ":"))
    assert before in text
    (store / "0" / "zarr.json").write_text(text.replace(before, after))
    with pytest.raises(HeatmapError, match=f"its array '0' {told}"):
        open_sound(store)


def _change_record(store: Path, *keys: str, value: object) -> None:
    content = json.loads((store / "zarr.json").read_text())
    part = content["attributes"]["wsi_meta"]
    for key in keys[:-1]:
        part = part[key]
    assert part[keys[-1]] != value
    part[keys[-1]] = value
    (store / "zarr.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("keys", "value"),
    [(("result", "score"), 0.1), (("model", "thresholds", "default"), 0.4), (("slide", "name"), "other"), (("lesions",), None)],
)
def test_a_record_that_was_changed_is_refused(store: Path, keys: tuple[str, ...], value: object) -> None:
    _change_record(store, *keys, value=value)
    assert not Heatmap.open(store).intact
    with pytest.raises(HeatmapError, match=r"h\.zarr: damaged: the record of its scan is not as it was written .*run its scan"):
        open_sound(store)


def test_a_record_without_a_seal_is_believed(store: Path) -> None:
    """Older versions wrote none."""
    content = json.loads((store / "zarr.json").read_text())
    del content["attributes"]["wsi_meta_seal"]
    (store / "zarr.json").write_text(json.dumps(content))
    assert open_sound(store).blocks is None


@pytest.mark.parametrize("seal", ["x", {}, {"sha256": "0", "blocks": ["x"]}, {"blocks": [1]}, 0])
def test_a_damaged_seal_is_no_seal(store: Path, seal: object) -> None:
    content = json.loads((store / "zarr.json").read_text())
    content["attributes"]["wsi_meta_seal"] = seal
    (store / "zarr.json").write_text(json.dumps(content))
    with pytest.raises(HeatmapError, match="not as it was written"):
        open_sound(store)


def test_a_fitted_score_is_sealed_too(store: Path) -> None:
    heatmap = Heatmap.open(store).write_fitted_score({"score": 0.5, "file": "s.json", "sha256": "0"})
    assert open_sound(heatmap.path).record.result == heatmap.result
    assert open_sound(heatmap.path).blocks == heatmap.blocks
    assert heatmap.blocks is not None


def test_an_array_that_cannot_be_unpacked_is_one_line(store: Path) -> None:
    _cut(store / "0" / "c" / "1" / "2", 100)
    with pytest.raises(HeatmapError, match="its array '0' is damaged") as caught:
        _ = Heatmap.open(store).probability
    assert "\n" not in str(caught.value)
