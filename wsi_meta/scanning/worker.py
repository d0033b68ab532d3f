"""What a worker does: opens slide and model once, then reads, predicts and writes block after block."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.inference.allocator import give_back_memory
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.dihedral import mean_over_views, spread_over_views
from wsi_meta.models.model import Model, load_model
from wsi_meta.scanning.options import NetworkChoice, compiler_at_hand
from wsi_meta.slides.slide import Slide, open_slide
from wsi_meta.tiling.grid import Block, PatchGrid

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Job", "Worker", "begin_loading", "forget", "scan_block"]

LEAST_READ_PX = 480
"""Side of what is not tried in quarters any more, pixels at the model's mpp: what is lost round a damaged tile."""
PIECES_AHEAD = 2
"""Pieces of a block's image that are read while another is computed."""

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
        """Return the logits (rows, cols, views) of a block's wanted cells, NaN elsewhere and where the slide cannot be read.

        A block that cannot be read whole is tried in quarters, and they again, so that damage costs little round it.
        """
        told: list[int] = []

        def tell(cells: int) -> None:
            told.append(cells)
            if report is not None:
                report(cells)

        try:
            return self._predict_whole(grid, block, wanted, tell)
        except SlideReadError:
            tell(-sum(told))
        logits = np.full((*wanted.shape, self.predictor.views), np.nan, np.float32)
        for quarter, inside in block.quarters() if max(block.rows, block.cols) * grid.stride_px > LEAST_READ_PX else ():
            logits[inside] = self.predict(grid, quarter, wanted[inside], report)
        return logits

    def windows(self, grid: PatchGrid, block: Block, wanted: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
        """Return what is read for a block's wanted cells, as (x, y, width, height) at the model's mpp, in that order."""
        x, y, _, _ = grid.window(block, self.predictor.halo_px)
        return [
            (x + cols.start, y + rows.start, cols.stop - cols.start, rows.stop - rows.start)
            for rows, cols in self.predictor.pieces(wanted, grid.stride_px)
        ]

    def _predict_whole(
        self, grid: PatchGrid, block: Block, wanted: NDArray[np.bool_], report: Callable[[int], None]
    ) -> NDArray[np.float32]:
        pieces = _read_ahead(partial(self.slide.read_at, grid.mpp, *window) for window in self.windows(grid, block, wanted))
        predict, device = self.predictor.predict_block, self.predictor.device
        return _compute(device, lambda: predict(pieces, wanted, grid.stride_px, report))


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
    _reading_threads().shutdown()
    for kept in (_computing_thread, _reading_threads, _open_slide, _load, _make_predictor, compiler_at_hand):
        kept.cache_clear()
    give_back_memory()  # torch's libraries need a hundred megabytes more for an instant when the process ends


def _read_ahead(reads: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Return what is read, one after the other. Other threads read, from now on, and stay PIECES_AHEAD of what was given."""
    left = iter(reads)

    def begin(count: int) -> list[Future[T]]:
        return [_reading_threads().submit(read) for read in islice(left, count)]

    def give() -> Iterator[T]:
        while ahead:
            done = [ahead.popleft().result()]
            ahead.extend(begin(1))
            yield done.pop()  # not kept here

    ahead = deque(begin(PIECES_AHEAD))
    return give()


def _compute(device: str, work: Callable[[], T]) -> T:
    """Do some work with a network: on a CPU in this process's one computing thread, on a GPU here.

    OpenMP gives helpers of their own to each thread that computes, and lets all of them sleep between two steps of a network
    where they are more than the cores: a scan then takes an eighth longer (docs/benchmarks.md).
    """
    return work() if device != "cpu" else _computing_thread().submit(work).result()


@lru_cache(maxsize=1)
def _computing_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "computing")


@lru_cache(maxsize=1)
def _reading_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "reading")


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
