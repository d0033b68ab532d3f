"""A batch of 30 slides with 8 bad ones of 8 kinds: 22 right maps, 8 rows that say why; run again, nothing is repeated."""

from __future__ import annotations

import csv
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from slide_files import texture, write_slide

from fuzzing.commands import Ended
from fuzzing.counts import Counts, Finding, Outcome
from fuzzing.scans import SIDE_PX, end_of, fork, in_fork, left_beside, read_store, scan, scan_well, write_slides
from fuzzing.standin import HashPredictor
from wsi_meta.files.address import name_in
from wsi_meta.words import printable

__all__ = ["TRIALS", "run", "trial"]

TRIALS = 1
GOOD = 22
LONGEST_S = 300.0
STARTS = 4
"""A user starts it again after a crash, but not for ever."""


def _bare(path: Path, mpp: float | None = 0.972, **options: Any) -> None:
    """Write a TIFF that is no slide of ours in one way."""
    known = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, texture(SIDE_PX, SIDE_PX), tile=(256, 256), photometric="rgb", metadata=None, **(known | options))


def _cut(path: Path) -> None:
    content = write_slide(path, texture(SIDE_PX, SIDE_PX)).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _dark(path: Path, part: int) -> None:
    write_slide(path, texture(SIDE_PX, SIDE_PX) // part)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (_cut, "copy it again"),
    "no_mpp": (lambda path: _bare(path, None), "does not say how large its pixels are"),
    "wrong_unit": (lambda path: _bare(path, 0.0097), "cannot be"),
    "text": (lambda path: path.write_text("no slide at all"), "not a slide"),
    "memory": (lambda path: _dark(path, 4), "out of memory"),
    "abort": (lambda path: _dark(path, 2), "an earlier scan died (Aborted)"),
    "caf\udce9": (lambda path: path.write_bytes(b"II*\0 and nothing more"), r"caf\xe9.tif: "),
    "webp": (lambda path: _bare(path, compression="webp", compressionargs={"lossless": True}), "compression"),
}
"""The name of each bad slide, what writes it, and what its row says."""


class Failing(HashPredictor):
    """Has no memory for very dark slides, and takes its process with it on dark ones."""

    def predict_block(self, pieces: Any, *others: Any) -> NDArray[np.float32]:
        (image,) = pieces
        if (brightness := np.median(image)) < 50:
            raise MemoryError
        if brightness < 90:
            os.abort()
        return super().predict_block([image], *others)


def run(trials: int, seed: int, folder: Path, *, until: float = math.inf) -> Counts:
    """Make trials; see :class:`fuzzing.counts.Part`. Each takes longer than a trial of other parts may."""
    findings = []
    for number in range(trials):
        if time.monotonic() < until:
            (own := folder / str(number)).mkdir()
            findings.append(trial(seed, number, own))
    return Counts("batch", tuple(findings))


def trial(seed: int, number: int, folder: Path) -> Finding:
    """Scan the batch, start it again as long as it crashes, and then once more."""
    rng = np.random.default_rng([seed, number])
    names = [f"good{at}" for at in range(GOOD)]
    good = in_fork(lambda: write_slides(folder / "slides", names, 100 * number), LONGEST_S)
    bad = [folder / "slides" / f"{name}.tif" for name in BAD]
    in_fork(lambda: [write(path) for path, (write, _) in zip(bad, BAD.values(), strict=True)] and None)
    slides, out = [[*good, *bad][at] for at in rng.permutation(GOOD + len(bad))], folder / "out"
    codes: list[int] = []
    while len(codes) < STARTS and (not codes or codes[-1] < 0):
        code, ended = end_of(fork(lambda: scan(Failing(), *slides, "--out", out)), LONGEST_S)
        codes.append(ended.code if ended else code)
    died, last = codes[:-1], codes[-1]
    if died != [-signal.SIGABRT] * len(died) or last != 1 or not (ended and ended.foreseen):  # each bad slide has a line
        return Finding(number, Outcome.WRONG, f"it ended with {codes}: {ended and ended.stderr.splitlines()[-1:]}")
    if wrong := _wrong_rows(out, good) or _wrong_maps(out, good, folder) or _wrong_again(out, slides):
        return Finding(number, Outcome.WRONG, wrong)
    return Finding(number, Outcome.RIGHT, f"{GOOD} maps, {len(BAD)} rows with errors, ended with {codes}")


def _wrong_rows(out: Path, good: list[Path]) -> str:
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = {Path(name_in(row["slide"])).stem: row for row in csv.DictReader(file)}
    lacking = [path.stem for path in good if rows.get(path.stem, {}).get("complete") != "True" or rows[path.stem]["error"]]
    errors = {name: rows.get(name, {}).get("error", "no row") for name in BAD}
    others = [f"{printable(name)}: {errors[name]}" for name, (_, told) in BAD.items() if told not in errors[name]]
    return "; ".join([f"no whole row: {lacking}"] * bool(lacking) + others)


def _wrong_maps(out: Path, good: list[Path], folder: Path) -> str:
    def differs(path: Path) -> bool:
        there = read_store(out / f"{path.stem}.zarr")
        return not there.same_map(scan_well(HashPredictor(), path, folder / f"{path.stem}.zarr"))

    others = in_fork(lambda: [path.stem for path in good if differs(path)], LONGEST_S)
    return f"other maps: {others}" if others else ""


def _wrong_again(out: Path, slides: list[Path]) -> str:
    """Return what is wrong when the batch is run once more: something is computed, or a store is changed."""
    before = _changed(out)

    def again() -> tuple[Ended, int]:
        predictor = Failing()
        return scan(predictor, *slides, "--out", out), len(predictor.seen)

    code, result = end_of(fork(again), LONGEST_S)
    if code or result[0].code != 1:
        return f"run again, it ends with {code or result[0].told()}"
    if result[1] or (changed := set(_changed(out).items()) ^ set(before.items())):
        return f"run again, {result[1]} cells are computed; changed: {sorted(changed)[:4]}"
    journals = [name for name in left_beside(out) if name.endswith(".running")]
    return "" if len(journals) == 1 else f"journals of crashes: {journals}"


def _changed(out: Path) -> dict[str, int]:
    """Return when each file of each store was changed."""
    return {str(path): path.stat().st_mtime_ns for store in out.glob("good*.zarr") for path in (store, *store.rglob("*"))}
