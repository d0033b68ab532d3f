"""Stores as a loss of power leaves them, one file empty or cut: run again, they are made whole, or refused in one line."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuzzing.commands import Ended
from fuzzing.counts import Counts, Finding, Outcome
from fuzzing.pool import run_trials
from fuzzing.scans import SpreadPredictor, Stored, end_of, fork, in_fork, left_beside, read_store, scan, scan_well, write_slides

__all__ = ["TRIALS", "run", "trial"]

TRIALS = 48
WORDS = ("--uncertainty",)
PATTERNS = {
    "the record": "out/heat.zarr/zarr.json",
    "0's description": "out/heat.zarr/0/zarr.json",
    "status's description": "out/heat.zarr/status/zarr.json",
    "uncertainty's description": "out/heat.zarr/uncertainty/zarr.json",
    "a block of 0": "out/heat.zarr/0/c/*/*",
    "a block of status": "out/heat.zarr/status/c/*/*",
    "a block of uncertainty": "out/heat.zarr/uncertainty/c/*/*",
    "a temporary record": "out/heat.zarr/zarr.json.*.partial",
    "the lock": "out/.heat.zarr.lock",
    "the journal": "out/.wsi-meta.*.running",
    "a temporary store's record": "out/.heat.zarr.*.new/zarr.json",
    "a temporary file": "out/heat.zarr/0/c/0/*.partial",
}
"""The files that are torn, by what they are."""
BLOCKS = 9


class Stopped(SpreadPredictor):
    """Kills its process at a block."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self._left = blocks

    def predict_block(self, *arguments: Any, **named: Any) -> NDArray[np.float32]:
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1
        return super().predict_block(*arguments, **named)


def run(trials: int, seed: int, folder: Path, *, until: float = math.inf) -> Counts:
    """Make trials; see :class:`fuzzing.counts.Part`."""
    return run_trials("torn", trial, trials, seed, folder, until=until)


def trial(seed: int, number: int, folder: Path) -> Finding:
    """Stop a scan after some blocks, or none; tear one file; run it again, with ``--overwrite`` where it is refused."""
    rng = np.random.default_rng([seed, number])
    what, pattern = list(PATTERNS.items())[number // 2 % len(PATTERNS)]
    blocks = int(rng.integers(1, BLOCKS)) if rng.random() < 0.6 else BLOCKS
    slide, place = folder / "slides" / "s.tif", folder / "out"
    place.mkdir()
    out = place / "heat.zarr"

    def before() -> Stored:
        write_slides(slide.parent, "s", number)
        return scan_well(SpreadPredictor(), slide, folder / "alone.zarr", *WORDS)

    alone = in_fork(before)
    end_of(fork(lambda: scan(Stopped(blocks), slide, "--out", out, *WORDS)))
    _leave_temporaries(place, rng)
    files = sorted(folder.glob(pattern))
    if not files:
        blocks, files = _again_until_there(slide, out, pattern, folder)
    torn = files[int(rng.integers(len(files)))]
    content = torn.read_bytes()
    torn.write_bytes(content[: len(content) // 2] if number % 2 else b"")
    about = f"after {blocks} of {BLOCKS} blocks, {what} ({torn.relative_to(folder)}) {'cut' if number % 2 else 'empty'}"
    return _run_again(
        Finding(number, Outcome.RIGHT, about),
        lambda *more: scan(SpreadPredictor(), slide, "--out", out, *WORDS, *more),
        place,
        alone,
    )


def _run_again(found: Finding, again: Callable[..., Ended], place: Path, alone: Stored) -> Finding:
    """Run a scan again, with ``--overwrite`` where it is refused; the map is bit-equal then, and nothing lies beside it."""
    end = in_fork(again)
    refused = end.outcome is Outcome.REFUSED
    told = f"{found.told}: {end.told()}"
    if end.outcome.failed:
        return Finding(found.number, end.outcome, told)
    if refused and (second := in_fork(lambda: again("--overwrite"))).code:
        return Finding(found.number, Outcome.WRONG, f"{told}; with --overwrite: {second.told()}")
    if beside := left_beside(place, "heat.zarr"):
        return Finding(found.number, Outcome.WRONG, f"{told}; left beside it: {beside}")
    same = in_fork(lambda: read_store(place / "heat.zarr")).same_map(alone)
    return Finding(found.number, end.outcome if same else Outcome.WRONG, told)


def _leave_temporaries(place: Path, rng: np.random.Generator) -> None:
    """Leave what a kill amid the making of a store, or of a block, leaves."""
    new = place / f".heat.zarr.{rng.bytes(6).hex()}.new"
    new.mkdir()
    (new / "zarr.json").write_bytes((place / "heat.zarr" / "zarr.json").read_bytes())
    (place / "heat.zarr" / f"zarr.json.{rng.bytes(6).hex()}.partial").write_bytes(rng.bytes(100))
    (place / "heat.zarr" / "0" / "c" / "0").mkdir(parents=True, exist_ok=True)
    (place / "heat.zarr" / "0" / "c" / "0" / f"0.{rng.bytes(16).hex()}.partial").write_bytes(rng.bytes(100))


def _again_until_there(slide: Path, out: Path, pattern: str, folder: Path) -> tuple[int, list[Path]]:
    """Bring a scan to where a file of the pattern is there: finish it, or let another one be killed."""
    in_fork(lambda: scan(SpreadPredictor(), slide, "--out", out, *WORDS))
    if not (files := sorted(folder.glob(pattern))):  # a lock or a journal: only of one that was killed
        end_of(fork(lambda: scan(Stopped(0), slide, "--out", out, *WORDS, "--overwrite")))
        return 0, sorted(folder.glob(pattern))
    return BLOCKS, files
