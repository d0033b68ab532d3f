"""One block after another: read in pieces, predicted, written. Damage costs the cells that would show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from wsi_meta.heatmaps.effort import Meter
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.dihedral import mean_over_views, spread_over_views
from wsi_meta.quality.cell_measures import BlockMeasures
from wsi_meta.readers.reader import UnreadableRegionError
from wsi_meta.scanning.threads import Stop, Threads
from wsi_meta.slides.overview import read_in_parts
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.grid import Block, PatchGrid

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BlockWorker", "all_true"]

FIRST_PART_PX = 512
"""What cannot be read whole is read in parts of this side, and those that cannot be read in smaller ones."""
TILE_SHARE = 8
"""The smallest parts are so many times smaller than a stored tile, or half a cell: a failure costs OpenSlide a new handle."""
SMALL_READS_AT_FIRST = 20
"""Reads of smaller parts as long as nothing of a block was read: then there is little hope."""

Report = Callable[[int], None]
"""Told how many more cells are done; a negative number takes some back."""
Show = Callable[[int, int, "NDArray[np.uint8]"], None]
"""Shown the pieces of a block's image as they are read: top, left, pixels. Several threads show different pieces."""


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
    meter: Meter = field(default_factory=Meter)
    """Gathers what the work takes."""
    is_wanted: Callable[[Block], bool] = lambda _block: True
    """Asked before a block is written, whether it still may be."""

    def scan(self, heatmap: Heatmap, block: Block, report: Report | None = None) -> int:
        """Read, predict and write one block; return the number of its cells that were dealt with.

        A block whose cells could not all be read is scanned again. What was known of it stays known, should the slide give
        less this time.
        """
        self.working()
        calibration = self.predictor.model.card.calibration
        before = heatmap.read_block(block)
        wanted = before != Status.BACKGROUND
        beyond_px = (self.grid.patch_px - self.grid.stride_px) // 2 + self.predictor.halo_px
        measured = BlockMeasures(wanted.shape, self.grid.stride_px, beyond_px)
        logits = self.predict(block, wanted, report, measured.add if heatmap.record.measures else None)
        # the mean of logits, not of probabilities: the calibration then leads from the stored value back to it
        probability = calibration.to_probability(mean_over_views(logits))
        scanned = np.isfinite(probability)
        values = {"0": probability} | (measured.of(scanned) if heatmap.record.measures else {})
        if heatmap.has_uncertainty:
            values["uncertainty"] = spread_over_views(calibration.to_probability(logits))
        known = (before == Status.SCANNED) & ~scanned
        if known.any():
            values = {name: np.where(known, heatmap.read_block(block, name), found) for name, found in values.items()}
        status = np.where(scanned | known, Status.SCANNED, np.where(wanted, Status.UNREADABLE, Status.BACKGROUND))
        with self.meter.timed("writing_s"):
            if self.is_wanted(block):
                heatmap.write_block(block, values | {"status": status.astype(np.uint8)})
        self.meter.add(cells=int(scanned.sum()))
        self.meter.count_here()
        return int(wanted.sum())

    def predict(
        self, block: Block, wanted: NDArray[np.bool_], report: Report | None = None, show: Show | None = None
    ) -> NDArray[np.float32]:
        """Return the logits (rows, cols, views) of a block's wanted cells, NaN elsewhere and where the slide cannot be read.

        Raises
        ------
        SlideReplacedError
        """
        told: list[int] = []

        def tell(cells: int) -> None:
            self.stop.check()
            told.append(cells)
            if report is not None:
                report(cells)

        try:
            reads = (partial(self._read_and_show, show, block, *window) for window in self.windows(block, wanted))
            return self._compute(self.threads.read_ahead(reads, self.stop), wanted, tell)
        except UnreadableRegionError:
            tell(-sum(told))
            return self._predict_readable(block, wanted, tell, show)

    def windows(self, block: Block, wanted: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
        """Return what is read for a block's wanted cells, as (x, y, width, height) at the model's mpp, in that order."""
        x, y, _, _ = self.grid.window(block, self.predictor.halo_px)
        return [
            (x + cols.start, y + rows.start, cols.stop - cols.start, rows.stop - rows.start)
            for rows, cols in self.predictor.pieces(wanted, self.grid.stride_px)
        ]

    def _predict_readable(
        self, block: Block, wanted: NDArray[np.bool_], report: Report, show: Show | None
    ) -> NDArray[np.float32]:
        """Return the logits of those cells of which everything that the network sees of them can be read."""
        x, y, width, height = self.grid.window(block, self.predictor.halo_px)
        least_px = max(self.grid.stride_px / 2, self.slide.tile_px_at(self.grid.mpp) / TILE_SHARE)
        image, readable, _ = read_in_parts(
            lambda left, top, *sides: self._read(x + left, y + top, *sides),
            (height, width),
            least_px,
            self.slide.background,
            part_px=FIRST_PART_PX,
            small_reads_at_first=SMALL_READS_AT_FIRST,
        )
        if show is not None:
            show(0, 0, image)
        seen_px = self.grid.patch_px + 2 * self.predictor.halo_px
        wanted = wanted & all_true(readable, seen_px, self.grid.stride_px)
        if not wanted.any():
            return np.full((*wanted.shape, self.predictor.views), np.nan, np.float32)
        pieces = (image[piece] for piece in self.predictor.pieces(wanted, self.grid.stride_px))
        return self._compute(pieces, wanted, report)

    def _compute(self, pieces: Iterable[NDArray[np.uint8]], wanted: NDArray[np.bool_], report: Report) -> NDArray[np.float32]:
        def predict() -> NDArray[np.float32]:
            self.working()
            with self.meter.timed("computing_s"):
                return self.predictor.predict_block(self.meter.awaited(pieces), wanted, self.grid.stride_px, report)

        return self.threads.compute(self.predictor.device, predict)

    def _read_and_show(self, show: Show | None, block: Block, *window: int) -> NDArray[np.uint8]:
        pixels = self._read(*window)
        if show is not None:
            x, y, _, _ = self.grid.window(block, self.predictor.halo_px)
            show(window[1] - y, window[0] - x, pixels)
        return pixels

    def _read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        self.working()
        self.stop.check()
        with self.meter.timed("reading_s"):
            return self.slide.read_at(self.grid.mpp, x, y, width, height)


def all_true(mask: NDArray[np.bool_], side: int, stride: int) -> NDArray[np.bool_]:
    """Tell of each square of a mask whether all of it is True.

    Parameters
    ----------
    mask : bool (height, width)
    side, stride : of the squares, and from one to the next; the first one lies in the upper left corner

    Returns
    -------
    bool array (rows, cols) of the squares that lie within the mask.
    """
    rows = sliding_window_view(mask, side, axis=0)[::stride].all(-1)
    return np.asarray(sliding_window_view(rows, side, axis=1)[:, ::stride].all(-1))
