"""One scan at a time writes a store, and only what is ours is ever removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import make_record, write_block, write_store

from wsi_meta.errors import HeatmapError, OutputExistsError, OutputPathError
from wsi_meta.files.locks import SIGNED, Holder, lock_path, locked
from wsi_meta.heatmaps.layout import FORMS, foreign_part
from wsi_meta.heatmaps.ownership import claimed, is_store, put_in_place, remove_store, stores_in, temporary_store
from wsi_meta.heatmaps.soundness import damaged_blocks
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.outputs.kept_files import refuse_inside_store
from wsi_meta.outputs.writing import written_whole
from wsi_meta.quality.cell_measures import MEASURES
from wsi_meta.scanning.identity import find_store
from wsi_meta.tiling.grid import PatchGrid

MAP = np.full((3, 4), 0.75, np.float32)


def _left(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _write_lock(path: Path, holder: Holder) -> None:
    lock_path(path).write_bytes(SIGNED + json.dumps(asdict(holder)).encode())


def _ended_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_second_scan_is_told_who_is_at_work(tmp_path: Path) -> None:
    path = tmp_path / "h.zarr"
    with claimed(path, overwrite=False):
        told = "h.zarr: is being written by this process, in another thread; wait"
        with pytest.raises(OutputExistsError, match=told), claimed(path, overwrite=True):
            pass
        with claimed(tmp_path / "other.zarr", overwrite=False):
            pass
    with claimed(path, overwrite=False):
        pass
    assert _left(tmp_path) == []


def test_a_link_to_a_store_has_the_stores_lock(tmp_path: Path) -> None:
    write_store(tmp_path / "h.zarr", MAP)
    (tmp_path / "link.zarr").symlink_to("h.zarr")
    with (
        claimed(tmp_path / "h.zarr", overwrite=False),
        pytest.raises(OutputExistsError, match="is being written"),
        claimed(tmp_path / "link.zarr", overwrite=False),
    ):
        pass


def test_a_lock_is_let_go_when_the_scan_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "h.zarr"):
        raise KeyboardInterrupt
    assert _left(tmp_path) == []


@pytest.mark.parametrize("change", [{"pid": None}, {"start": "another boot 17"}])
def test_a_dead_holder_on_this_host_is_replaced(tmp_path: Path, change: dict[str, str | None]) -> None:
    here = Holder.here()
    dead = replace(here, pid=_ended_process()) if "pid" in change else replace(here, start="another boot 17")
    _write_lock(tmp_path / "h.zarr", dead)
    with locked(tmp_path / "h.zarr"):
        pass
    assert _left(tmp_path) == []


def test_a_killed_scans_lock_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from wsi_meta.files.locks import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path / "h.zarr"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(OutputExistsError, match=f"process {child.pid} on host"), locked(tmp_path / "h.zarr"):
            pass
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, though its parent has not asked for its exit code
        with locked(tmp_path / "h.zarr"):
            assert _left(tmp_path) == [".h.zarr.lock"]
        child.wait()
    assert _left(tmp_path) == []


@pytest.mark.parametrize("place", [{"host": "elsewhere"}, {"space": "pid:[1]"}])
def test_a_holder_elsewhere_is_named_and_stays(tmp_path: Path, place: dict[str, Any]) -> None:
    _write_lock(tmp_path / "h.zarr", replace(Holder.here(), pid=_ended_process(), **place))
    with (
        pytest.raises(OutputExistsError, match=r"cannot be seen from here.*remove .*\.h\.zarr\.lock"),
        locked(tmp_path / "h.zarr"),
    ):
        pass
    assert _left(tmp_path) == [".h.zarr.lock"]


NOBODY = json.dumps(asdict(Holder.here()) | {"pid": "7"}).encode()


CUT = {
    "empty": b"",
    "zeros": bytes(80),
    "no holder": SIGNED,
    "half a holder": SIGNED + b'{"host": "a',
    "no such holder": SIGNED + NOBODY,
}


@pytest.mark.parametrize("content", CUT.values(), ids=CUT)
def test_a_lock_cut_by_a_loss_of_power_is_replaced(tmp_path: Path, content: bytes) -> None:
    lock_path(tmp_path / "h.zarr").write_bytes(content)
    with locked(tmp_path / "h.zarr"):
        pass
    assert _left(tmp_path) == []


def test_somebody_elses_file_of_a_locks_name_stays(tmp_path: Path) -> None:
    (tmp_path / ".h.zarr.lock").write_text("mine")
    with pytest.raises(OutputExistsError, match="not wsi-meta's"), locked(tmp_path / "h.zarr"):
        pass
    assert (tmp_path / ".h.zarr.lock").read_text() == "mine"


@pytest.mark.parametrize(
    ("put", "named"),
    [
        (lambda store: (store / "outlines_by_hand").mkdir(), "outlines_by_hand"),
        (lambda store: (store / "notes.txt").write_text("mine"), "notes.txt"),
        (lambda store: (store / "notes.partial").write_text("mine"), "notes.partial"),
        (lambda store: (store / "0" / "c" / "mine").write_text("mine"), "0/c/mine"),
        (lambda store: (store / "7").symlink_to("/etc"), "7"),
        (lambda store: write_store(store.parent / "x.zarr", MAP).path.rename(store / "x.zarr"), "x.zarr"),
    ],
)
def test_a_store_that_holds_what_is_not_ours_is_not_replaced(tmp_path: Path, put: Callable[[Path], object], named: str) -> None:
    path = write_store(tmp_path / "h.zarr", MAP).path
    put(path)
    before = sorted(path.rglob("*"))
    with pytest.raises(OutputExistsError, match=f"h.zarr: holds '{named}', which wsi-meta did not write"):
        write_store(path, MAP)
    with pytest.raises(OutputExistsError, match=f"holds '{named}'"), claimed(path, overwrite=True):
        pass
    assert sorted(path.rglob("*")) == before
    assert _left(tmp_path) == ["h.zarr"]
    remove_store(path)
    assert path.joinpath(named).exists(), "what is removed is ours alone"
    assert not is_store(path)


def test_a_store_of_ours_holds_nothing_foreign(tmp_path: Path) -> None:
    path = write_store(tmp_path / "h.zarr", np.full((200, 300), 0.5, np.float32)).path
    (path / "0" / "c" / "0" / f"0.{'a' * 32}.partial").touch()
    (path / f"zarr.{'a' * 32}.partial").touch()
    (path / f"zarr.json.{'a' * 12}.partial").touch()
    assert foreign_part(path) is None
    remove_store(path)
    assert _left(tmp_path) == []


def test_every_array_that_a_scan_may_make_is_ours(tmp_path: Path) -> None:
    grid = PatchGrid(7000, 9000, 0.243, 0.972, 96, 32, block_px=1920)
    record = replace(make_record(grid, uncertainty=True), measures=MEASURES)
    heatmap = Heatmap.create(tmp_path / "h.zarr", record, np.ones(grid.shape, np.bool_), overwrite=False)
    values, scanned = np.full(grid.shape, 0.5, np.float32), np.full(grid.shape, Status.SCANNED, np.uint8)
    for block in grid.blocks():
        others = {name: values[block.cells] for name in record.arrays if name not in ("0", "status")}
        write_block(heatmap, block, values[block.cells], scanned[block.cells], **others)
    made = {path.parents[2].name for path in heatmap.path.glob("*/c/0/0")}
    assert made == {*record.arrays, "checksums"} == set(FORMS)
    assert foreign_part(heatmap.path) is None
    assert damaged_blocks(heatmap) == []
    remove_store(heatmap.path)
    assert _left(tmp_path) == []


def test_a_folder_of_a_temporary_name_stays(tmp_path: Path) -> None:
    for name in (".h.zarr.partial", ".h.zarr.0123456789ab.new", ".h.zarr.0123456789ab.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    before = _left(tmp_path)
    with claimed(tmp_path / "h.zarr", overwrite=False):
        write_store(tmp_path / "h.zarr", MAP)
    with claimed(tmp_path / "h.zarr", overwrite=True):
        write_store(tmp_path / "h.zarr", MAP)
    assert _left(tmp_path) == sorted([*before, "h.zarr"])
    assert all((tmp_path / name / "notes.txt").read_text() == "mine" for name in before)


def test_what_a_killed_scan_left_is_put_in_order(tmp_path: Path) -> None:
    """Killed between the two renames the older store is put back; killed later, the newer one stays."""
    path = write_store(tmp_path / "h.zarr", MAP).path
    for state in ("new", "gone"):
        write_store(tmp_path / "left.zarr", MAP).path.rename(temporary_store(path, state))
    (temporary_store(path) / "0").mkdir(parents=True)
    path.rename(temporary_store(path, "old"))
    with claimed(path, overwrite=False):
        assert Heatmap.open(path).finished
    assert _left(tmp_path) == ["h.zarr"]
    write_store(tmp_path / "left.zarr", MAP).path.rename(temporary_store(path, "old"))
    with claimed(path, overwrite=False):
        assert Heatmap.open(path).finished
    assert _left(tmp_path) == ["h.zarr"]


@pytest.mark.parametrize("found", [Status.PENDING, Status.UNREADABLE, None])
def test_a_store_that_waits_stands_again_for_one_that_says_nothing(tmp_path: Path, found: Status | None) -> None:
    """As after a kill before the first block that could be read. In doubt, as where the disk fails, both stay."""
    path, grid = tmp_path / "h.zarr", PatchGrid(96, 64, 0.972, 0.972, 96, 32, block_px=1920)
    heatmap = Heatmap.create(path, make_record(grid), np.ones(grid.shape, bool), overwrite=False)
    if found == Status.UNREADABLE:
        write_block(heatmap, grid.blocks()[0], np.full(grid.shape, np.nan), np.full(grid.shape, found, np.uint8))
    if found is None:
        (path / "status" / "zarr.json").write_text("cut")
    old = write_store(tmp_path / "old.zarr", MAP).path.rename(temporary_store(path, "old"))
    with claimed(path, overwrite=False):
        assert Heatmap.open(path).finished is (found is not None)
    assert _left(tmp_path) == (["h.zarr"] if found is not None else [old.name, "h.zarr"])


@pytest.mark.parametrize("state", ["new", "old", "gone"])
def test_a_removal_that_was_killed_is_finished(tmp_path: Path, state: str) -> None:
    path = write_store(tmp_path / "h.zarr", MAP).path
    left = write_store(tmp_path / "left.zarr", MAP).path.rename(temporary_store(path, state))
    killed = (
        "import os, signal, sys; from pathlib import Path; from wsi_meta.heatmaps.ownership import remove_store\n"
        "os.rmdir = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "remove_store(Path(sys.argv[1]))"
    )
    assert subprocess.run([sys.executable, "-c", killed, left], check=False).returncode == -signal.SIGKILL
    assert len(_left(tmp_path)) == 2
    with claimed(path, overwrite=False):
        assert _left(tmp_path) == [".h.zarr.lock", "h.zarr"]


def test_what_a_killed_scan_left_in_a_store_is_removed(tmp_path: Path) -> None:
    path = write_store(tmp_path / "h.zarr", MAP).path
    before = sorted(path.rglob("*"))
    for leftover in (f"0/c/0/0.{'a' * 32}.partial", f"zarr.json.{'a' * 12}.partial"):
        (path / leftover).touch()
    with claimed(path, overwrite=False):
        assert sorted(path.rglob("*")) == before


@pytest.mark.parametrize("share", [0, 0.5, None])
def test_a_store_whose_record_is_cut_or_lost_is_replaced_when_asked(tmp_path: Path, share: float | None) -> None:
    path = write_store(tmp_path / "h.zarr", MAP).path
    record = path / "zarr.json"
    if share is None:
        record.unlink()
    else:
        record.write_bytes(record.read_bytes()[: int(share * record.stat().st_size)])
    with pytest.raises(
        HeatmapError, match=r"h\.zarr: damaged: its record, zarr\.json, is missing, empty or cut; copy it again"
    ):
        Heatmap.open(path)
    with pytest.raises(OutputPathError, match="lies inside the heatmap store"):
        refuse_inside_store(path / "a.csv")
    with pytest.raises(OutputExistsError) as refused:
        find_store(path)
    assert str(refused.value) == (
        f"{path}: a heatmap store whose record, zarr.json, is missing, empty or cut; "
        "choose another --out, or pass --overwrite to replace it"
    )
    (path / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="never replaced"), claimed(path, overwrite=True):
        pass
    (path / "notes.txt").unlink()
    with claimed(path, overwrite=True):
        assert write_store(path, MAP).finished
    assert _left(tmp_path) == ["h.zarr"]


def test_a_record_is_whole_while_it_is_written(tmp_path: Path) -> None:
    """Two names, one file: what is written goes into a new file, which then takes the old one's name."""
    heatmap = write_store(tmp_path / "h.zarr", MAP)
    record = heatmap.path / "zarr.json"
    before = record.read_text()
    (tmp_path / "same.json").hardlink_to(record)
    heatmap.write_fitted_score({"score": 0.5, "file": "f", "sha256": "0"})
    assert (tmp_path / "same.json").read_text() == before != record.read_text()
    assert Heatmap.open(heatmap.path).group.attrs["ome"] == heatmap.group.attrs["ome"]


@pytest.mark.parametrize("other", ["folder", "file"])
def test_what_appears_meanwhile_is_never_replaced(tmp_path: Path, other: str) -> None:
    new = write_store(tmp_path / "new.zarr", MAP).path
    path = tmp_path / "h.zarr"
    if other == "folder":
        path.mkdir()
    else:
        path.write_text("mine")
    with pytest.raises(OutputExistsError, match="something else was written there"):
        put_in_place(new, path)
    assert path.is_dir() if other == "folder" else path.read_text() == "mine"


def test_no_store_lies_in_another_one(tmp_path: Path) -> None:
    write_store(tmp_path / "h.zarr", MAP)
    for inside in ("a.zarr", "0/a.zarr"):
        with (
            pytest.raises(OutputPathError, match="lies inside the heatmap store"),
            claimed(tmp_path / "h.zarr" / inside, overwrite=False),
        ):
            pass


def test_a_temporary_file_of_another_write_stays(tmp_path: Path) -> None:
    path, old, new = tmp_path / "a.csv", tmp_path / f"a.csv.{'0' * 12}.partial", tmp_path / f"a.csv.{'1' * 12}.partial"
    (tmp_path / "a.csv.partial").write_text("mine")
    for other in (old, new):
        other.write_text("half")
    os.utime(old, (0, 0))
    with written_whole(path) as partial:
        partial.write_text("whole")
    assert _left(tmp_path) == ["a.csv", new.name, "a.csv.partial"]
    assert path.read_text() == "whole"


def test_a_link_to_a_store_beside_it_is_no_second_one(tmp_path: Path) -> None:
    path = write_store(tmp_path / "h.zarr", MAP).path
    (tmp_path / "a.zarr").symlink_to(path.name)
    (tmp_path / "away.zarr").symlink_to(write_store(tmp_path.with_name("b.zarr"), MAP).path)
    assert [store.name for store in stores_in(tmp_path)] == ["away.zarr", "h.zarr"]
