"""Two scans, or two batches, into one place at the same time: nothing is lost or broken, and who holds it is named."""

from __future__ import annotations

import csv
import math
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fuzzing.commands import Ended
from fuzzing.counts import Counts, Finding, Outcome
from fuzzing.pool import run_trials
from fuzzing.scans import Stored, end_of, fork, in_fork, left_beside, read_store, scan, scan_well, write_slides
from fuzzing.standin import HashPredictor

__all__ = ["TRIALS", "run", "trial"]

TRIALS = 60
OF_BATCHES = 3
"""Every third trial is a pair of batches."""
SPREAD = 1.2
"""The second of two begins up to so much later, in times of what the first one takes alone."""
STRIDES = (32, 64)
HELD = re.compile(r"is being written by process (\d+) on host (\S+);")


@dataclass(frozen=True)
class Pair:
    """How two scans into one store differ, and what stands there before."""

    strides: tuple[int, int]
    overwrite: tuple[bool, bool]
    standing: int | None
    """The stride of a finished store; None where there is none."""
    later: float
    """When the second one begins, in times of what the first one takes alone."""

    @property
    def told(self) -> str:
        """Return it in words."""
        words = [
            f"{stride} px{' --overwrite' * overwrite}" for stride, overwrite in zip(self.strides, self.overwrite, strict=True)
        ]
        return f"{' and '.join(words)} {self.later:.2f} later, {self.standing or 'nothing'} there"


def run(trials: int, seed: int, folder: Path, *, until: float = math.inf) -> Counts:
    """Make trials; see :class:`fuzzing.counts.Part`."""
    return run_trials("races", trial, trials, seed, folder, until=until)


def trial(seed: int, number: int, folder: Path) -> Finding:
    """Let two run at the same time, and look at what stands there then."""
    later = float(np.random.default_rng([seed, number]).uniform(0, SPREAD))
    if number % OF_BATCHES == OF_BATCHES - 1:
        found = _two_batches(folder, number, later)
        return Finding(number, Outcome.WRONG if found else Outcome.RIGHT, f"batches, the second {later:.2f} later: {found}")
    way = number - number // OF_BATCHES
    overwrite = [(False, False), (False, True), (True, False), (True, True)][way // 2 % 4]
    pair = Pair((STRIDES[0], STRIDES[way % 2]), overwrite, [None, *STRIDES][way // 8 % 3], later)
    found = _two_scans(folder, number, pair)
    return Finding(number, Outcome.WRONG if found else Outcome.RIGHT, f"{pair.told}: {found}")


def _at_once(commands: list[list[object]], later_s: float) -> list[tuple[int, int, Ended | None]]:
    """Run two commands at the same time; return the process, exit code and end of each."""
    begin, let_go = os.pipe()

    def work(at: int) -> Ended:
        predictor = HashPredictor()
        os.close(let_go)
        os.read(begin, 1)  # until the other one is ready as well
        time.sleep(later_s * at)
        return scan(predictor, *commands[at])

    children = [fork(lambda at=at: work(at)) for at in range(2)]  # type: ignore[misc]
    for end in (begin, let_go):
        os.close(end)
    return [(child.pid, *end_of(child)) for child in children]


def _two_scans(folder: Path, number: int, pair: Pair) -> str:
    """Return what is wrong; empty when nothing is."""
    place, slides = folder / "out", folder / "slides"
    slide, out = slides / "s.tif", place / "heat.zarr"
    place.mkdir()

    def before() -> tuple[float, dict[int, Stored]]:
        write_slides(slides, "s", number)
        took_s = _time_alone(slide, folder / "timed.zarr")
        if pair.standing:
            scan_well(HashPredictor(), slide, out, "--stride", pair.standing)
        return took_s, {
            stride: scan_well(HashPredictor(), slide, folder / f"{stride}.zarr", "--stride", stride) for stride in STRIDES
        }

    took_s, alone = in_fork(before)
    words = [
        [slide, "--out", out, "--stride", stride, *["--overwrite"] * overwrite]
        for stride, overwrite in zip(pair.strides, pair.overwrite, strict=True)
    ]
    ends = _at_once(words, pair.later * took_s)
    if wrong := "; ".join(filter(None, (_ended_badly(ends[at], ends[1 - at], pair, at) for at in range(2)))):
        return wrong
    if beside := left_beside(place, "heat.zarr"):
        return f"left beside it: {beside}"
    done = {stride for stride, (_, _, end) in zip(pair.strides, ends, strict=True) if end is not None and end.code == 0}
    there = in_fork(lambda: read_store(out))
    if there.stride_px not in done and (done or there.stride_px != pair.standing):
        return f"a scan of {there.stride_px} px stands there; succeeded: {sorted(done)}"
    return "" if there.same_map(alone[there.stride_px]) else "the map is another one"


def _ended_badly(this: tuple[int, int, Ended | None], other: tuple[int, int, Ended | None], pair: Pair, at: int) -> str:
    """Return how a scan ended if none may end so; empty else."""
    _, died, end = this
    if died or end is None:
        return f"died with {died}"
    if end.code == 0:
        return ""
    if end.outcome is not Outcome.REFUSED:
        return end.told()
    if (held := HELD.search(end.stderr)) and (int(held[1]), held[2]) == (other[0], socket.gethostname()):
        return ""
    differs = {pair.standing, pair.strides[1 - at]} - {None, pair.strides[at]}
    return "" if differs and not pair.overwrite[at] and "holds another scan" in end.stderr else end.told()


def _time_alone(slide: Path, out: Path) -> float:
    """Scan a slide alone; return the seconds that it takes in a process that has scanned nothing yet."""
    began = time.monotonic()
    scan_well(HashPredictor(), slide, out)
    return time.monotonic() - began


def _two_batches(folder: Path, number: int, later: float) -> str:
    """Return what is wrong after two batches that share one slide; empty when nothing is."""
    slides, out = [folder / "slides" / f"{name}.tif" for name in "abcde"], folder / "out"
    in_fork(lambda: write_slides(folder / "slides", "abcde", number) and None)
    later_s = later * in_fork(lambda: _time_alone(slides[0], folder / "timed.zarr"))
    ends = _at_once([[*slides[:3], "--out", out], [*reversed(slides[2:]), "--out", out]], later_s)
    for at, (_, died, end) in enumerate(ends):
        held = end is not None and HELD.search(end.stderr)
        named = held and int(held[1]) == ends[1 - at][0]
        if died or end is None or (end.code and not named):
            return end.told() if end else f"died with {died}"
    with (out / "summary.csv").open(newline="") as file:
        rows = {Path(row["slide"]).stem: row for row in csv.DictReader(file)}
    if missing := [slide.stem for slide in slides if slide.stem not in rows or rows[slide.stem]["complete"] != "True"]:
        return f"no row, or not of the finished store: {missing}"
    if beside := left_beside(out, "summary.csv", "summary.json", "report", *(f"{slide.stem}.zarr" for slide in slides)):
        return f"left in the folder: {beside}"

    def differs(slide: Path) -> bool:
        there = read_store(out / f"{slide.stem}.zarr")
        return not there.same_map(scan_well(HashPredictor(), slide, folder / f"{slide.stem}.zarr"))

    others = in_fork(lambda: [slide.stem for slide in slides if differs(slide)])
    return f"other maps: {others}" if others else ""
