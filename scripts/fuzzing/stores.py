"""Damaged heatmap stores: refused in one line, or what was changed has no effect; scanning again mends or refuses them."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from slide_files import write_slide

from fuzzing.commands import Ended, judged, run_command
from fuzzing.counts import Counts, Finding, Outcome
from fuzzing.damage import damage_blindly
from fuzzing.json_damage import damage_json
from fuzzing.pool import run_trials
from fuzzing.sound import draw_tissue
from fuzzing.standin import HashPredictor, scan_command
from wsi_meta.heatmaps.store import Heatmap

__all__ = ["TRIALS", "run", "trial"]

TRIALS = 1000
BLOCK_PX = 160
"""Five cells a side: the slide of 14 x 16 cells has twelve blocks."""
OPEN_BLOCKS = 5
"""Blocks that an interrupted scan had not come to."""
FOREIGN = ("notes.txt", ".DS_Store", "0/c/99/99", "status/notes/text", "5/zarr.json")

Rng = np.random.Generator


def run(trials: int, seed: int, folder: Path, *, until: float = math.inf) -> Counts:
    """Make trials; see :class:`fuzzing.counts.Part`."""
    return run_trials("stores", trial, trials, seed, folder, until=until)


@dataclass(frozen=True)
class Answers:
    """What the commands say of a store."""

    ended: tuple[Ended, ...]
    picture: Path

    def differences(self, sound: Answers) -> list[str]:
        """Return which commands went well and say something else than of the sound store."""
        said = [
            mine.words[0]
            for mine, theirs in zip(self.ended, sound.ended, strict=True)
            if "--json" in mine.words and mine.code == 0 and (theirs.code or _without_path(mine) != _without_path(theirs))
        ]
        pictures = [np.asarray(Image.open(one.picture)) for one in (self, sound) if one.picture.exists()]
        drawn = self.picture.exists() and not (len(pictures) == 2 and np.array_equal(pictures[0], pictures[1]))
        return said + ["overlay"] * drawn


def trial(seed: int, number: int, folder: Path) -> Finding:
    """Damage a store, ask all commands about it, then scan again."""
    rng = np.random.default_rng([seed, number])
    slide, sound, before = _sound_store(folder.parent, unfinished=rng.random() < 0.3)
    store = Path(shutil.copytree(sound, folder / sound.name))
    finished = Heatmap.open(sound).finished
    did = _damage(store, rng)
    after = _ask(store)
    undone = not finished and did.startswith("status/c") and did.endswith("removed")  # as if those blocks were still to come
    if not undone and (different := after.differences(before)):
        return Finding(number, Outcome.WRONG, f"{did}: other answers than before: {', '.join(different)}")
    scanned = _scan(slide, store)
    outcome, how = judged(*after.ended, scanned)
    if not outcome.failed and scanned.code == 0 and (wrong := _other_map(store, sound.with_name("whole.zarr"))):
        return Finding(number, Outcome.WRONG, f"{did}: {wrong} after the scan")
    return Finding(number, outcome, f"{did}: {how}")


def _sound_store(folder: Path, *, unfinished: bool) -> tuple[Path, Path, Answers]:
    """Return a slide, its store and what the commands say of it; made once in a folder, since it is always the same.

    Beside the store, ``whole.zarr`` holds the whole map.
    """
    there = folder / f"sound-{unfinished}"
    if not there.exists():
        made = Path(tempfile.mkdtemp(dir=folder))
        _write_store(made, unfinished=unfinished)
        with suppress(OSError):  # another process was faster
            made.rename(there)
    answers: Answers = pickle.loads((there / "answers").read_bytes())
    return there / "slide.tif", there / "heat.zarr", replace(answers, picture=there / "heat.png")


def _write_store(folder: Path, *, unfinished: bool) -> None:
    slide = write_slide(folder / "slide.tif", draw_tissue(np.random.default_rng(0)))
    whole = folder / "whole.zarr"
    ended = _scan(slide, whole)
    if ended.code:
        raise RuntimeError(ended.told())
    store = Path(shutil.copytree(whole, folder / "heat.zarr"))
    if unfinished:
        heatmap = Heatmap.open(store).reopen()
        for block in heatmap.grid.blocks()[-OPEN_BLOCKS:]:
            heatmap.clear_block(block, np.ones((block.rows, block.cols), bool))
    (folder / "answers").write_bytes(pickle.dumps(_ask(store)))


def _scan(slide: Path, out: Path) -> Ended:
    return run_command("scan", slide, out, "--tissue-mask", "none", line=scan_command(HashPredictor(), block_px=BLOCK_PX))


def _ask(store: Path) -> Answers:
    """Run every command that reads a store."""
    picture = store.with_suffix(".png")
    ended = (
        run_command("info", "--json", store),
        run_command("score", "--json", store),
        run_command("lesions", "--json", store, "--out", store.with_suffix(".geojson")),
        run_command("overlay", store, "--out", picture, "--max-side", 100, "--slide", "none"),
    )
    return Answers(ended, picture)


def _without_path(ended: Ended) -> Any:
    return {name: value for name, value in ended.result.items() if name not in ("path", "heatmap")}


def _other_map(store: Path, whole: Path) -> str:
    """Return in what a store differs from the one that was never damaged; empty where in nothing."""
    one, other = Heatmap.open(store), Heatmap.open(whole)
    if not np.array_equal(one.status, other.status):
        return "other status"
    if not np.array_equal(one.probability, other.probability, equal_nan=True):
        return "other values"
    return "" if (one.result, one.record.lesions) == (other.result, other.record.lesions) else "another result"


def _damage(store: Path, rng: Rng) -> str:
    ways = [_damage_record] * 4 + [_damage_array_json] * 3 + [_damage_bytes] * 2 + [_damage_chunk] * 5 + [_add_foreign, _remove]
    ways += [_swap_chunks] * 3
    return ways[int(rng.integers(len(ways)))](store, rng)


def _any_file(store: Path, rng: Rng, pattern: str) -> Path:
    found = sorted(path for path in store.glob(pattern) if path.is_file())
    return found[int(rng.integers(len(found)))]


def _edit(path: Path, store: Path, rng: Rng) -> str:
    content = json.loads(path.read_text())
    did = damage_json(content, rng)
    path.write_text(json.dumps(content))
    return f"{path.relative_to(store)}: {did}"


def _damage_record(store: Path, rng: Rng) -> str:
    return _edit(store / "zarr.json", store, rng)


def _damage_array_json(store: Path, rng: Rng) -> str:
    return _edit(_any_file(store, rng, "*/zarr.json"), store, rng)


def _damage_bytes(store: Path, rng: Rng) -> str:
    path = _any_file(store, rng, "**/*")
    content = bytearray(path.read_bytes())
    did = damage_blindly(content, rng)
    path.write_bytes(content)
    return f"{path.relative_to(store)}: {did}"


def _damage_chunk(store: Path, rng: Rng) -> str:
    path = _any_file(store, rng, "*/c/*/*")
    content = bytearray(path.read_bytes())
    way = int(rng.integers(4))
    if way == 0:
        path.unlink()
        return f"{path.relative_to(store)}: removed"
    if way == 1:
        path.write_bytes(b"")
        return f"{path.relative_to(store)}: emptied"
    if way == 2:
        path.write_bytes(content[: int(rng.integers(len(content)))])
        return f"{path.relative_to(store)}: cut"
    at = int(rng.integers(len(content)))
    content[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    return f"{path.relative_to(store)}: a bit flipped at {at}"


def _swap_chunks(store: Path, rng: Rng) -> str:
    one, other = _any_file(store, rng, "*/c/*/*"), _any_file(store, rng, "*/c/*/*")
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    if rng.random() < 0.3:
        return f"{one.relative_to(store)} written over with {other.relative_to(store)}"
    other.write_bytes(contents[0])
    return f"{one.relative_to(store)} and {other.relative_to(store)} swapped"


def _add_foreign(store: Path, rng: Rng) -> str:
    path = store / FOREIGN[int(rng.integers(len(FOREIGN)))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rng.bytes(int(rng.integers(100))))
    return f"{path.relative_to(store)} added"


def _remove(store: Path, rng: Rng) -> str:
    path = sorted(path for path in store.rglob("*"))[int(rng.integers(len(list(store.rglob("*")))))]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return f"{path.relative_to(store)} removed"
