"""Damaged slides through ``info`` and ``scan``: whatever is in the file, no cell is shown other pixels than lie there."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from fuzzing.commands import judged, run_command
from fuzzing.counts import Counts, Finding, Outcome
from fuzzing.damage import damage_slide
from fuzzing.judge import pictures_of, what_is_wrong
from fuzzing.pool import run_trials
from fuzzing.sound import write_sound
from fuzzing.standin import HashPredictor, scan_command
from wsi_meta.heatmaps.store import Heatmap

__all__ = ["TRIALS", "run", "trial"]

TRIALS = 2000


def run(trials: int, seed: int, folder: Path, *, until: float = math.inf) -> Counts:
    """Make trials; see :class:`fuzzing.counts.Part`."""
    return run_trials("slides", trial, trials, seed, folder, until=until)


def trial(seed: int, number: int, folder: Path) -> Finding:
    """Damage a slide, and look at what the commands make of it."""
    rng = np.random.default_rng([seed, number])
    slide = write_sound(folder / "slide", rng)
    content = bytearray(slide.path.read_bytes())
    (whole := folder / slide.path.name).write_bytes(content)
    did = damage_slide(content, slide.parts, rng)
    slide.path.write_bytes(content)
    mask = ["--tissue-mask", "none"] * int(rng.integers(2))
    predictor, out = HashPredictor(apart=True), folder / "heat.zarr"
    told = run_command("info", "--json", slide.path)
    scanned = run_command("scan", slide.path, out, *mask, line=scan_command(predictor))
    outcome, how = judged(told, scanned)
    about = f"{slide.kind}, {slide.mpp} um, {did}"
    if not outcome.failed and out.exists():
        sound = pictures_of(whole)
        if wrong := what_is_wrong(Heatmap.open(out), predictor.seen, sound, pictures_of(slide.path, sound)):
            return Finding(number, Outcome.WRONG, f"{about}: {wrong}")
    return Finding(number, outcome, f"{about}: {how}")
