"""Scans that are killed at each of their file operations in turn, and run again: the map is bit-equal, nothing is left over."""

from __future__ import annotations

import builtins
import io
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzzing.counts import Counts, Finding, Outcome
from fuzzing.pool import run_trials
from fuzzing.scans import Stored, end_of, fork, in_fork, left_beside, read_store, scan, scan_well, write_slides
from fuzzing.standin import HashPredictor

__all__ = ["TRIALS", "run", "trial"]

TRIALS = 40
WRITING = os.O_WRONLY | os.O_RDWR
CHANGES = frozenset(("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"))
"""What Python's audit reports before it changes a folder."""
GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it, without their whole parts, are spread evenly, however many there are."""


class Operations:
    """Counts this process's file operations inside a folder, and kills it at one of them; for a forked process only."""

    def __init__(self, folder: Path, last: float = math.inf) -> None:
        self.folder, self.last, self.done = str(folder), last, 0
        self._lock = threading.Lock()
        sys.addaudithook(self._audit)
        open_file = io.open

        def opened(file: Any, mode: str = "r", *others: Any, **named: Any) -> Any:
            result = open_file(file, mode, *others, **named)
            if set(mode) & set("wax+") and self._here(file):
                self.count()  # it is there, and still empty
            return result

        io.open = builtins.open = opened
        os.write, os.fsync = self._counted(os.write), self._counted(os.fsync)

    def count(self) -> None:
        """Count one; if it is the last one, die."""
        with self._lock:
            self.done += 1
            if self.done >= self.last:
                os.kill(os.getpid(), signal.SIGKILL)

    def _audit(self, event: str, values: tuple[Any, ...]) -> None:
        if (event in CHANGES or (event == "open" and int(values[2] or 0) & WRITING)) and self._here(values[0]):
            self.count()

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*values: Any) -> Any:
            self.count()
            return call(*values)

        return counted

    def _here(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)


def run(trials: int, seed: int, folder: Path, *, until: float = math.inf) -> Counts:
    """Make trials; see :class:`fuzzing.counts.Part`."""
    return run_trials("kills", trial, trials, seed, folder, until=until)


def trial(seed: int, number: int, folder: Path) -> Finding:
    """Kill a scan, every second time one that replaces an old store; run the same command again."""
    overwrite = bool(number % 2)
    share = (seed + number // 2) * GOLDEN % 1
    place, counted, slide = folder / "out", folder / "counted", folder / "slides" / "s.tif"
    for parent in (place, counted):
        parent.mkdir()
    out, words = place / "heat.zarr", [slide, *["--overwrite"] * overwrite, "--out"]

    def before() -> Stored:
        write_slides(slide.parent, "s", number)
        for parent in (place, counted) if overwrite else ():
            scan_well(HashPredictor(), slide, parent / "heat.zarr", "--stride", 64)
        return scan_well(HashPredictor(), slide, folder / "alone.zarr")

    alone = in_fork(before)
    of = in_fork(lambda: _counting(counted, *words, counted / "heat.zarr"))
    last = 1 + int(share * of)
    code, _ = end_of(fork(lambda: _counting(place, *words, out, last=last)))
    about = f"{'replaced an old store' if overwrite else 'new'}, killed at operation {last} of {of}"
    if code != -signal.SIGKILL:
        return Finding(number, Outcome.WRONG, f"{about}: ended with {code} instead")
    end = in_fork(lambda: scan(HashPredictor(), *words, out))
    if end.outcome is not Outcome.RIGHT:
        return Finding(number, end.outcome if end.outcome.failed else Outcome.WRONG, f"{about}: {end.told()}")
    if beside := left_beside(place, "heat.zarr"):
        return Finding(number, Outcome.WRONG, f"{about}: left beside it: {beside}")
    right = in_fork(lambda: read_store(out)).same_map(alone)
    return Finding(number, Outcome.RIGHT if right else Outcome.WRONG, about)


def _counting(folder: Path, *words: object, last: float = math.inf) -> int:
    """Scan; return the number of file operations."""
    operations = Operations(folder, last)
    if (end := scan(HashPredictor(), *words)).code:
        raise RuntimeError(end.told())
    return operations.done
