"""Scans in forked processes that may be killed or die, with a stand-in for the network; and what is read from their stores.

The process that forks reads and scans nothing itself: a fork has none of its parent's threads. It has loaded all that a scan
loads, so that two forks scan at the same time, not one while the other loads.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
import distributed  # noqa: F401
import numpy as np
import skimage.measure  # noqa: F401
import torch  # noqa: F401
import zarr.codecs  # noqa: F401
from dask.delayed import delayed  # noqa: F401
from numpy.typing import NDArray
from slide_files import texture, write_slide

from fuzzing.commands import Ended, run_command
from fuzzing.standin import HashPredictor
from wsi_meta.cli import main
from wsi_meta.cohorts.batch import scan_slides
from wsi_meta.heatmaps.layout import foreign_part
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.scanning.crashes import noted_crashes
from wsi_meta.scanning.scanner import Scanner
from wsi_meta.worklist.summary import summarise

__all__ = [
    "SIDE_PX",
    "Child",
    "SpreadPredictor",
    "Stored",
    "end_of",
    "fork",
    "in_fork",
    "left_beside",
    "read_store",
    "scan",
    "scan_well",
    "write_slides",
]

SIDE_PX = 300
BLOCK_PX = 128
"""Small blocks, so that a small slide has nine."""
LONGEST_S = 25.0

T = TypeVar("T")


class SpreadPredictor(HashPredictor):
    """Has eight views of each patch, whose logits differ."""

    def __init__(self) -> None:
        super().__init__()
        self.plan, self.views = replace(self.plan, views=8), 8

    def predict_block(self, *arguments: Any, **named: Any) -> NDArray[np.float32]:
        views = np.arange(8, dtype=np.float32) / np.float32(8)
        return np.asarray(super().predict_block(*arguments, **named) + views, np.float32)


@dataclass(frozen=True)
class Stored:
    """What stands at a path."""

    stride_px: int
    files: tuple[str, ...]
    arrays: dict[str, bytes]
    finished: bool

    def same_map(self, other: Stored) -> bool:
        """Tell whether all values of all cells are the same, and the files too."""
        return self.finished and other.finished and (self.arrays, self.files) == (other.arrays, other.files)


@dataclass
class Child:
    """A forked process."""

    pid: int
    pipe: int
    """Where its result comes from, pickled."""


def scan(predictor: HashPredictor, *words: object) -> Ended:
    """Run a command as ``wsi-meta scan``, with a stand-in for the network and small blocks.

    Parameters
    ----------
    words : slides, ``--out``, and ``--overwrite``, ``--stride``, ``--uncertainty``, ``--retry-crashed``
    """
    group = type(main)("wsi-meta", params=main.params, callback=main.callback)

    @group.command("scan")
    @click.argument("slides", nargs=-1, type=click.Path(path_type=Path))
    @click.option("--out", type=click.Path(path_type=Path))
    @click.option("--overwrite", is_flag=True)
    @click.option("--stride", "stride_px", type=int, default=32)
    @click.option("--uncertainty", is_flag=True)
    @click.option("--retry-crashed", is_flag=True)
    def command(slides: Sequence[Path], out: Path, overwrite: bool, retry_crashed: bool, **settings: Any) -> None:
        one = len(slides) == 1
        beside = out.absolute().parent if one else out
        with (
            noted_crashes(beside, slides, retry=retry_crashed) as journal,
            Scanner(predictor=predictor, block_px=BLOCK_PX, workers=1, journal=journal, **settings) as scanner,
        ):
            if one:
                rows = [summarise(slides[0], scanner.scan(slides[0], out, overwrite=overwrite))]
            else:
                rows = scan_slides(slides, out, scanner=scanner, overwrite=overwrite)
        if errors := [row for row in rows if row["error"]]:
            raise click.ClickException(f"{len(errors)} of {len(rows)} slides failed; the first: {errors[0]['error']}")

    return run_command("scan", *words, line=group)


def fork(work: Callable[[], Any]) -> Child:
    """Begin some work in a forked process."""
    ours, theirs = os.pipe()
    if pid := os.fork():
        os.close(theirs)
        return Child(pid, ours)
    code = 1
    try:
        os.close(ours)
        result = pickle.dumps(work())
        with os.fdopen(theirs, "wb") as pipe:
            pipe.write(result)
        code = 0
    finally:
        os._exit(code)


def end_of(child: Child, seconds: float = LONGEST_S) -> tuple[int, Any]:
    """Wait for a forked process; return its exit code, below 0 where a signal ended it, and its result.

    One that takes too long is killed, and has the exit code of an alarm.
    """
    os.set_blocking(child.pipe, False)
    content, ends, state = b"", time.monotonic() + seconds, (0, 0)
    while not state[0]:
        state = os.waitpid(child.pid, os.WNOHANG)
        while part := _some(child.pipe):
            content += part
        if time.monotonic() > ends:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            os.close(child.pipe)
            return -signal.SIGALRM, None
        time.sleep(0.002)
    os.close(child.pipe)
    code = os.waitstatus_to_exitcode(state[1])
    return code, pickle.loads(content) if code == 0 else None


def in_fork(work: Callable[[], T], seconds: float = LONGEST_S) -> T:
    """Do some work in a forked process; RuntimeError where that dies."""
    code, result = end_of(fork(work), seconds)
    if code:
        raise RuntimeError(f"a forked process ended with {code}")
    done: T = result
    return done


def write_slides(folder: Path, names: Sequence[str], seed: int) -> list[Path]:
    """Write small slides of tissue; in a forked process."""
    folder.mkdir(exist_ok=True)
    return [write_slide(folder / f"{name}.tif", texture(SIDE_PX, SIDE_PX, seed + at)) for at, name in enumerate(names)]


def scan_well(predictor: HashPredictor, slide: Path, out: Path, *words: object) -> Stored:
    """Scan a slide and read the store; RuntimeError where that fails; in a forked process."""
    if (end := scan(predictor, slide, "--out", out, *words)).code:
        raise RuntimeError(end.told())
    return read_store(out)


def read_store(path: Path) -> Stored:
    """Read a store, and make sure that it is sound; HeatmapError or RuntimeError where it is not; in a forked process."""
    heatmap = open_sound(path)
    if (part := foreign_part(path)) is not None:
        raise RuntimeError(f"{path}: holds {part}")
    names = ("0", "status", "uncertainty") if heatmap.has_uncertainty else ("0", "status")
    group: Any = heatmap.group
    arrays = {name: np.asarray(group[name][...]).tobytes() for name in names}
    files = sorted(entry.relative_to(path).as_posix() for entry in path.rglob("*"))
    return Stored(heatmap.grid.stride_px, tuple(files), arrays, heatmap.finished)


def left_beside(folder: Path, *expected: str) -> list[str]:
    """Return the names of what else lies in a folder."""
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in expected)


def _some(pipe: int) -> bytes:
    try:
        return os.read(pipe, 1 << 16)
    except BlockingIOError:
        return b""
