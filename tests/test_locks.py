"""Locks that are held for an instant, and were left by processes that cannot be seen from here."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from wsi_meta.errors import OutputExistsError
from wsi_meta.files.locks import SIGNED, Holder, lock_path, locked

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
