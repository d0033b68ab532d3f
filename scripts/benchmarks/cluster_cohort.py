"""A small drawn cohort, scanned on this machine alone, and what tells whether another run gave the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from slide_files import texture, write_slide

from wsi_meta.cohorts.batch import scan_slides
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.inference.allocator import tuned_memory

__all__ = ["SETTINGS", "Cohort", "running"]

SETTINGS: dict[str, Any] = {"stride_px": 96, "precision": "auto", "device": "cpu", "block_px": 192, "batch_size": 4}
"""Blocks of four patches, which take a moment."""
ENDS_S = 20.0


@dataclass(frozen=True)
class Cohort:
    """Slides, and the folder of their maps by a run in this process."""

    slides: tuple[Path, ...]
    alone: Path

    @classmethod
    def drawn(cls, folder: Path, count: int, sides_px: tuple[int, int]) -> Cohort:
        """Draw slides (height, width at the model's mpp) and scan them here."""
        (folder / "slides").mkdir()
        slides = tuple(write_slide(folder / "slides" / f"{at:02}.tif", texture(*sides_px, at)) for at in range(count))
        with tuned_memory(in_bands=False):
            scan_slides(slides, folder / "alone", **SETTINGS)
        return cls(slides, folder / "alone")

    def differences(self, out: Path) -> list[str]:
        """Return a line for each slide whose store in `out` is missing, not sound, not whole, or has other bits."""
        found = []
        for slide in self.slides:
            name = f"{slide.stem}.zarr"
            try:
                here, there = open_sound(self.alone / name), open_sound(out / name)
            except ValueError as error:
                found.append(str(error))
                continue
            same = np.array_equal(here.probability, there.probability, equal_nan=True)
            if not (there.finished and same and np.array_equal(here.status, there.status)):
                found.append(f"{there.path}: {'another map' if there.finished else 'not finished'}")
        return found

    def told(self, out: Path) -> str:
        """Return in words whether all stores in `out` are bit-equal."""
        wrong = self.differences(out)
        return "\n".join(wrong) if wrong else f"{len(self.slides)} stores, bit-equal to the run in one process"


@contextmanager
def running(words: Sequence[object], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command that prints to a file, with this process's Python path; end it in the end."""
    path = os.pathsep.join(filter(None, sys.path))
    variables = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment
    with log.open("ab") as file, subprocess.Popen([*map(str, words)], stdout=file, stderr=file, env=variables) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(ENDS_S)
                except subprocess.TimeoutExpired:
                    process.kill()
