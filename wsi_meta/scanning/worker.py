"""One block after another: read in pieces, predicted, written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.dihedral import mean_over_views, spread_over_views
from wsi_meta.scanning.relay import Stop
from wsi_meta.scanning.threads import Threads
from wsi_meta.slides.slide import Slide
from wsi_meta.slides.slide_file import SlideReplacedError
from wsi_meta.tiling.grid import Block, PatchGrid

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BlockWorker"]

TILE_SHARE = 2
"""What cannot be read is tried again in parts until these are this many times smaller than a stored tile, or a cell."""
FAILURES_AT_MOST = 100
"""Failed reads after which a block is given up where nothing of it was read: all its parts of 480 px, and some more."""
FAILURES_PER_PART = 8
"""Failed reads that each part which was read makes up for: around damage smaller parts are worth their time."""

Report = Callable[[int], None]
"""Told how many more cells are done; a negative number takes some back."""


@dataclass(frozen=True)
class BlockWorker:
    """Reads, predicts and writes the blocks of one slide's heatmap. Threads may share it."""

    slide: Slide
    predictor: Predictor
    threads: Threads
    grid: PatchGrid
    stop: Stop = field(default_factory=Stop)
    working: Callable[[], None] = lambda: None
    """Called in each thread when it begins to work for the slide."""

    def scan(self, heatmap: Heatmap, block: Block, report: Report | None = None) -> int:
        """Read, predict and write one block; return the number of its cells that were dealt with."""
        self.working()
        calibration = self.predictor.model.card.calibration
        wanted = heatmap.read_status(block) != Status.BACKGROUND
        logits = self.predict(block, wanted, report)
        # the mean of logits, not of probabilities: the calibration then leads from the stored value back to it
        probability = calibration.to_probability(mean_over_views(logits))
        uncertainty = spread_over_views(calibration.to_probability(logits)) if heatmap.has_uncertainty else None
        found = np.where(np.isfinite(probability), Status.SCANNED, Status.UNREADABLE)
        heatmap.write_block(block, probability, np.where(wanted, found, Status.BACKGROUND).astype(np.uint8), uncertainty)
        return int(wanted.sum())

    def predict(self, block: Block, wanted: NDArray[np.bool_], report: Report | None = None) -> NDArray[np.float32]:
        """Return the logits (rows, cols, views) of a block's wanted cells, NaN elsewhere and where the slide cannot be read.

        A block that cannot be read whole is tried in quarters, and those again, large ones first, so that little more is lost
        than what needs a damaged tile.

        Raises
        ------
        SlideReplacedError
        """
        logits = np.full((*wanted.shape, self.predictor.views), np.nan, np.float32)
        least_px = max(self.grid.stride_px, self.slide.tile_px_at(self.grid.mpp) / TILE_SHARE)
        parts, failed, allowed = deque([(block, (slice(0, block.rows), slice(0, block.cols)))]), 0, FAILURES_AT_MOST
        while parts and failed < allowed:
            part, inside = parts.popleft()
            if not wanted[inside].any():
                continue
            if (found := self._try_whole(part, wanted[inside], report)) is not None:
                logits[inside], allowed = found, allowed + FAILURES_PER_PART
                continue
            failed += 1
            if max(part.rows, part.cols) * self.grid.stride_px > least_px:
                parts.extend((quarter, _within(inside, place)) for quarter, place in part.quarters())
        return logits

    def windows(self, block: Block, wanted: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
        """Return what is read for a block's wanted cells, as (x, y, width, height) at the model's mpp, in that order."""
        x, y, _, _ = self.grid.window(block, self.predictor.halo_px)
        return [
            (x + cols.start, y + rows.start, cols.stop - cols.start, rows.stop - rows.start)
            for rows, cols in self.predictor.pieces(wanted, self.grid.stride_px)
        ]

    def _try_whole(self, part: Block, wanted: NDArray[np.bool_], report: Report | None) -> NDArray[np.float32] | None:
        """Return a part's logits; None when it cannot be read whole, with what was reported of it taken back."""
        told: list[int] = []

        def tell(cells: int) -> None:
            self.stop.check()
            told.append(cells)
            if report is not None:
                report(cells)

        try:
            return self._predict_whole(part, wanted, tell)
        except SlideReplacedError:
            raise
        except SlideReadError:
            tell(-sum(told))
            return None

    def _predict_whole(self, block: Block, wanted: NDArray[np.bool_], report: Report) -> NDArray[np.float32]:
        reads = (partial(self._read, *window) for window in self.windows(block, wanted))
        pieces = self.threads.read_ahead(reads, self.stop)

        def predict() -> NDArray[np.float32]:
            self.working()
            return self.predictor.predict_block(pieces, wanted, self.grid.stride_px, report)

        return self.threads.compute(self.predictor.device, predict)

    def _read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        self.working()
        return self.slide.read_at(self.grid.mpp, x, y, width, height)


def _within(outer: tuple[slice, slice], inner: tuple[slice, slice]) -> tuple[slice, slice]:
    """Return the place of a part of a part."""
    rows, cols = (slice(a.start + b.start, a.start + b.stop) for a, b in zip(outer, inner, strict=True))
    return rows, cols
