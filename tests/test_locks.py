"""Locks that are held for an instant, and were left by processes that cannot be seen from here."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from wsi_meta.errors import OutputExistsError, OutputPathError
from wsi_meta.files import locks
from wsi_meta.files.locks import SIGNED, Holder, lock_path, locked, own_file
from wsi_meta.outputs.writing import ABANDONED_S

WAIT_S = 0.1


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output that a process of another machine holds."""
    path = tmp_path / "summary.csv"
    lock_path(path).write_bytes(SIGNED + json.dumps(asdict(replace(Holder.here(), host="another"))).encode())
    return path


def test_a_lock_that_stands_unchanged_for_longer_than_any_is_held_was_left(output: Path) -> None:
    with locked(output, wait_s=WAIT_S):
        assert b"another" not in lock_path(output).read_bytes()
    assert not lock_path(output).exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder here that never takes files")
def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    """Not every command that locks something has an --out."""
    with (
        pytest.raises(OutputPathError, match=r"; let its folder be written to, or choose another$"),
        locked(Path("/proc/self/a")),
    ):
        pass
    with (
        locked(tmp_path / "a"),
        pytest.raises(OutputExistsError, match=r"has ended, or choose another place$"),
        locked(tmp_path / "a"),
    ):
        pass


def test_a_lock_that_may_be_held_for_hours_is_not_taken_over(output: Path) -> None:
    told = "on host another; whether that still runs cannot be seen from here"
    with pytest.raises(OutputExistsError, match=told), locked(output):
        pass


def test_a_lock_that_is_let_go_and_taken_again_meanwhile_is_not_left(output: Path) -> None:
    lock = lock_path(output)
    content, taken_again = lock.read_bytes(), threading.Event()

    def take_again() -> None:
        while not taken_again.wait(WAIT_S / 4):
            lock.with_suffix(".new").write_bytes(content)
            lock.with_suffix(".new").replace(lock)

    other = threading.Thread(target=take_again)
    other.start()
    try:
        with pytest.raises(OutputExistsError, match="on host another"), locked(output, wait_s=WAIT_S):
            pass
    finally:
        taken_again.set()
        other.join()


def test_a_folder_without_a_name_has_a_lock_too() -> None:
    assert lock_path(Path("/")) == Path("/..lock")


def _not_here(_number: int, _how: int) -> None:
    raise OSError(errno.ENOLCK, "no locks available")


@pytest.mark.parametrize("told_apart", [True, False])
def test_a_processs_own_file_is_signed_and_the_unsigned_ones_of_killed_processes_go(
    told_apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system locks a folder, nobody is just making one; else the old ones alone are known to be left."""
    if not told_apart:
        monkeypatch.setattr(fcntl, "flock", _not_here)
    left, young = (tmp_path / f".wsi-meta.running.{number:012x}.partial" for number in range(2))
    for path in (left, young):
        path.touch()
    os.utime(left, (0, left.stat().st_mtime - ABANDONED_S - 1))
    path, number = own_file(tmp_path, "running", "ours: ")
    os.write(number, b"more")
    os.close(number)
    assert sorted(tmp_path.iterdir()) == sorted([path] if told_apart else [young, path])
    first, second = path.read_text().splitlines()
    assert Holder(**json.loads(first.removeprefix("ours: "))) == Holder.here()
    assert second == "more"


def test_nothing_is_left_of_an_own_file_that_cannot_be_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="no space left"):
        own_file(tmp_path, "running", "ours: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("hidden", ["process", "all of /proc"])
def test_a_process_that_is_hidden_from_this_user_is_not_taken_for_dead(
    hidden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Holder.here()
    lock_path(tmp_path / "a").write_bytes(SIGNED + json.dumps(asdict(here)).encode())

    def refused(pid: int, signal: int) -> None:
        raise PermissionError(pid, signal)

    if hidden == "process":
        monkeypatch.setattr(os, "kill", refused)
    monkeypatch.setattr(locks, "_start_of", lambda _pid: "")
    assert not here.is_dead
    with pytest.raises(OutputExistsError, match="is being written by process"), locked(tmp_path / "a"):
        pass


def test_machines_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "machine-id").write_text("one\n")
    monkeypatch.setattr(locks, "MACHINE", tmp_path / "machine-id")
    dead = replace(Holder.here(), start="another boot 1")
    assert dead.is_dead
    (tmp_path / "machine-id").write_text("two\n")
    assert not replace(dead).is_near
    assert not replace(dead).is_dead
    older = replace(dead, space=dead.space.partition(" on machine ")[0])
    assert older.is_near, "a lock of before names no machine"
    (tmp_path / "machine-id").unlink()
    assert older.is_near
    assert not dead.is_near
