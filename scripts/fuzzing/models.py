"""Damaged models through ``info`` and ``scan``, damaged score models through ``score``: refused, or numbers that can be."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from slide_files import write_slide
from stores import write_store

from fuzzing.commands import Ended, judged, run_command
from fuzzing.counts import Counts, Finding, Outcome
from fuzzing.damage import damage_blindly
from fuzzing.json_damage import damage_json
from fuzzing.pool import run_trials
from fuzzing.sound import draw_tissue
from wsi_meta.heatmaps.score_model import FEATURES, FORMAT
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.models.model import DEFAULT_MODEL

__all__ = ["TRIALS", "run", "trial"]

TRIALS = 300
SHAPE = (64, 64)
"""Pixels of the slide that is scanned: four cells."""
SCORE_MODEL: dict[str, Any] = {
    "format": FORMAT,
    "mean": dict.fromkeys(FEATURES, 0.3),
    "scale": dict.fromkeys(FEATURES, 0.2),
    "coefficients": dict.fromkeys(FEATURES, 0.7),
    "intercept": -0.4,
    "validation": {"auc": 0.9, "slides": 10},
}
NUMBERS = {"F16": (np.float16, "<f2"), "F32": (np.float32, "<f4"), "I64": (np.int64, "<i8")}
"""Types of tensors in a model file."""

Rng = np.random.Generator


def run(trials: int, seed: int, folder: Path, *, until: float = math.inf) -> Counts:
    """Make trials; see :class:`fuzzing.counts.Part`."""
    return run_trials("models", trial, trials, seed, folder, until=until)


def trial(seed: int, number: int, folder: Path) -> Finding:
    """Damage a model, or for every second number a score model, and use it."""
    rng = np.random.default_rng([seed, number])
    return _score_model(folder, rng, number) if number % 2 else _model(folder, rng, number)


def _score_model(folder: Path, rng: Rng, number: int) -> Finding:
    content = json.loads(json.dumps(SCORE_MODEL))
    did = damage_json(content, rng) if rng.random() < 0.8 else ""
    stored = bytearray(json.dumps(content).encode())
    did = did or damage_blindly(stored, rng)
    (path := folder / "score.json").write_bytes(stored)
    values = np.full((6, 7), 0.2, np.float32)
    values[2:4, 3:5] = 0.9
    store = write_store(folder / "heat.zarr", values).path
    ended = run_command("score", store, "--score-model", path, "--json")
    return _found(number, f"score model, {did}", [ended], _odd_score(ended))


def _odd_score(ended: Ended) -> str:
    if ended.code:
        return ""
    score = ended.result["fitted_score"]
    return "" if isinstance(score, float) and 0 <= score <= 1 else f"a score of {score}"


def _model(folder: Path, rng: Rng, number: int) -> Finding:
    content = bytearray(DEFAULT_MODEL.read_bytes())
    did = _damage_model(content, rng)
    (path := folder / "model.safetensors").write_bytes(content)
    slide = write_slide(folder / "slide.tif", draw_tissue(np.random.default_rng(0), SHAPE))
    store = folder / "heat.zarr"
    told = run_command("info", path, "--json")
    scanned = run_command("scan", slide, "--out", store, "--model", path, "--tissue-mask", "none", "--compiled", "no")
    return _found(number, f"model, {did}", [told, scanned], _odd_map(store) if store.exists() else "")


def _odd_map(store: Path) -> str:
    heatmap = Heatmap.open(store)
    values = heatmap.probability[heatmap.status == Status.SCANNED]
    return "" if (np.isfinite(values) & (values >= 0) & (values <= 1)).all() else f"probabilities {values[:5]}"


def _found(number: int, about: str, ended: list[Ended], odd: str) -> Finding:
    outcome, how = judged(*ended)
    if odd and not outcome.failed:
        return Finding(number, Outcome.WRONG, f"{about}: {odd}")
    return Finding(number, outcome, f"{about}: {how}")


def _damage_model(content: bytearray, rng: Rng) -> str:
    """Damage the card, the table of tensors, weights, or the file."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    way = rng.random()
    if way < 0.4:
        card = json.loads(header["__metadata__"]["wsi_meta"])
        did = f"card: {damage_json(card, rng)}"
        header["__metadata__"]["wsi_meta"] = json.dumps(card)
    elif way < 0.6:
        names = list(header)
        name = names[int(rng.integers(len(names)))]
        did = f"table: {name}: {damage_json(header[name] if rng.random() < 0.7 else header, rng)}"
    elif way < 0.8:
        return _damage_weights(content, header, 8 + length, rng)
    else:
        return damage_blindly(content, rng) if way < 0.95 else _damage_start(content, rng)
    stored = json.dumps(header).encode()
    content[: 8 + length] = struct.pack("<Q", len(stored)) + stored
    return did


def _damage_weights(content: bytearray, header: dict[str, Any], start: int, rng: Rng) -> str:
    """Put numbers into a tensor that no training gives."""
    names = [name for name in header if name != "__metadata__"]
    name = names[int(rng.integers(len(names)))]
    kind, form = NUMBERS[header[name]["dtype"]]
    first, end = (start + at for at in header[name]["data_offsets"])
    odd = (0, 1, -1, 127) if kind is np.int64 else (np.nan, np.inf, -np.inf, 6e4, -6e4, 0, 1e-7)
    value = odd[int(rng.integers(len(odd)))]
    count = (end - first) // np.dtype(form).itemsize
    count = count if rng.random() < 0.5 else 1
    stored = np.full(count, value, kind).astype(form).tobytes()
    content[first : first + len(stored)] = stored
    return f"{name}: {count} values became {value}"


def _damage_start(content: bytearray, rng: Rng) -> str:
    """Change the length that the file gives for its header."""
    value = int(rng.choice(np.array([0, 1, 2**20, 2**31, 2**40, 2**63, 2**64 - 1], object)))
    content[:8] = struct.pack("<Q", value)
    return f"the header's length became {value}"
