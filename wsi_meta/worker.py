"""What a worker does: opens slide and model once, then reads, predicts and writes block after block."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.grid import Block, PatchGrid
from wsi_meta.heatmap import Heatmap, Status
from wsi_meta.model import Model, load_model
from wsi_meta.predictor import Predictor
from wsi_meta.scan_options import NetworkChoice, compiler_at_hand
from wsi_meta.slide import Slide, open_slide
from wsi_meta.views import mean_over_views, spread_over_views

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Job", "Worker", "begin_loading", "forget", "scan_block"]

LEAST_READ_PX = 480
"""Side of what is not tried in quarters any more, pixels at the model's mpp: what is lost round a damaged tile."""

T = TypeVar("T")
_opening = threading.Lock()


@dataclass(frozen=True)
class Job:
    """What a worker needs to open slide and model by itself; travels instead of pixels."""

    slide: str
    mpp: float | None
    reader: str
    network: NetworkChoice

    def open_slide(self) -> Slide:
        """Open the slide, once per process."""
        with _opening:
            return _open_slide(self.slide, self.mpp, self.reader)

    def open(self) -> Worker:
        """Open slide and predictor, once per process, whatever the number of blocks."""
        slide = self.open_slide()
        with _opening:
            return Worker(slide, _make_predictor(self.network))


@dataclass(frozen=True)
class Worker:
    """A job's opened slide and predictor."""

    slide: Slide
    predictor: Predictor

    def predict(
        self, grid: PatchGrid, block: Block, wanted: NDArray[np.bool_], report: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Give the logits (rows, cols, views) of a block's wanted cells, NaN elsewhere and where the slide cannot be read.

        A block that cannot be read whole is tried in quarters, and they again, so that damage costs little round it.
        """
        logits = np.full((*wanted.shape, self.predictor.views), np.nan, np.float32)
        if not wanted.any():
            return logits
        part, place = block.shrunk(wanted)
        try:
            image = self.slide.read_at(grid.mpp, *grid.window(part, self.predictor.halo_px))
        except SlideReadError:
            for quarter, inside in part.quarters() if max(part.rows, part.cols) * grid.stride_px > LEAST_READ_PX else ():
                logits[place][inside] = self.predict(grid, quarter, wanted[place][inside], report)
            return logits
        predict, device = self.predictor.predict_block, self.predictor.device
        logits[place] = _compute(device, lambda: predict(image, wanted[place], grid.stride_px, report))
        return logits


def scan_block(job: Job, store: Path, block: Block, report: Callable[[int], None] | None = None) -> int:
    """Read, predict and write one block; give the number of its cells that were dealt with."""
    worker, heatmap = job.open(), Heatmap.open(store)
    calibration = worker.predictor.model.card.calibration
    wanted = heatmap.read_status(block) != Status.BACKGROUND
    logits = worker.predict(heatmap.grid, block, wanted, report)
    # the mean of logits, not of probabilities: the calibration then leads from the stored value back to it
    probability = calibration.to_probability(mean_over_views(logits))
    uncertainty = spread_over_views(calibration.to_probability(logits)) if heatmap.has_uncertainty else None
    found = np.where(np.isfinite(probability), Status.SCANNED, Status.UNREADABLE)
    heatmap.write_block(block, probability, np.where(wanted, found, Status.BACKGROUND).astype(np.uint8), uncertainty)
    return int(wanted.sum())


def begin_loading(job: Job) -> Future[Model]:
    """Load the job's model in the computing thread; it is then there for the predictor too."""
    return _computing_thread().submit(_load, job.network.model)


def forget() -> None:
    """Let go of the slides, models and predictors that scans of this process keep open for their blocks."""
    _computing_thread().shutdown()  # what it is still loading would be kept
    for kept in (_computing_thread, _open_slide, _load, _make_predictor, compiler_at_hand):
        kept.cache_clear()


def _compute(device: str, work: Callable[[], T]) -> T:
    """Do some work with a network: on a CPU in this process's one computing thread, on a GPU here.

    OpenMP gives helpers of their own to each thread that computes, and lets all of them sleep between two steps of a network
    where they are more than the cores: a scan then takes an eighth longer (docs/benchmarks.md).
    """
    return work() if device != "cpu" else _computing_thread().submit(work).result()


@lru_cache(maxsize=1)
def _computing_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "computing")


@lru_cache(maxsize=2)
def _open_slide(path: str, mpp: float | None, reader: str) -> Slide:
    """Open a slide; in a stream, the next one as well."""
    return open_slide(path, mpp=mpp, reader=reader)


@lru_cache(maxsize=1)
def _load(path: str) -> Model:
    return load_model(path)


@lru_cache(maxsize=2)
def _make_predictor(network: NetworkChoice) -> Predictor:
    """Make a predictor, compiled or not: a stream may hold slides of both kinds."""

    def make() -> Predictor:
        return Predictor(
            _load(network.model),
            device=network.device,
            precision=network.precision,
            batch_size=network.batch_size,
            tta=network.tta,
            dense=network.mode == "dense",
            compiled=network.compiled == "yes",
        )

    return _compute(network.device, make)
