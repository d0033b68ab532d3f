"""The two limits of a scan: the time to read its blocks alone, and the time to predict them alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.inference.allocator import tuned_memory
from wsi_meta.inference.options import runs_in_bands
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.model import Model
from wsi_meta.slides.slide import Slide, open_slide
from wsi_meta.tiling.grid import Block, PatchGrid

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Limits", "Window", "block_name", "block_windows", "measure_limits", "memory_of_scan", "predictor_of_scan"]

HELD_BLOCKS = 8
"""Blocks that are in memory at the same time, read before the clock runs."""
Window = tuple[int, int, int, int]
"""x, y, width and height at the model's mpp."""


@dataclass(frozen=True)
class Limits:
    """Seconds that the blocks of one scan take."""

    read_seconds: float
    """To read all blocks, on as many threads as the scan had workers."""
    predict_seconds: dict[str, float]
    """To predict each block, by :func:`block_name`."""
    ready_seconds: float
    """To make the predictor (fold and compile the network), and the additional time of its first block."""
    cells: int
    """Scanned cells in those blocks."""

    @property
    def model_seconds(self) -> float:
        """To predict all blocks."""
        return sum(self.predict_seconds.values())


def block_name(block: Block) -> str:
    """Return a block's key in :attr:`Limits.predict_seconds`."""
    return f"{block.row},{block.col}"


def predictor_of_scan(store: str | Path, model: Model, *, device: str = "auto", batch_size: int = 64) -> Predictor:
    """Make the predictor that a scan had: its mode, its precision, compiled or not, as the store says.

    Parameters
    ----------
    store : a heatmap
    model : the model that it was scanned with
    device, batch_size : as they were given to :func:`wsi_meta.scan`
    """
    identity = Heatmap.open(store).record.identity
    return Predictor(
        model,
        device=device,
        precision=identity.precision,
        batch_size=batch_size,
        tta=identity.test_time_averaging,
        dense=identity.mode == "dense",
        compiled=identity.compiled,
    )


def memory_of_scan(store: str | Path) -> AbstractContextManager[None]:
    """Tune this process's memory as the command line does for such a scan; enter it before there are other threads."""
    identity = Heatmap.open(store).record.identity
    if identity.device != "cpu":
        return nullcontext()
    return tuned_memory(in_bands=runs_in_bands("cpu", dense=identity.mode == "dense", compiled=identity.compiled))


def block_windows(predictor: Predictor, grid: PatchGrid, block: Block, wanted: NDArray[np.bool_]) -> list[Window]:
    """Return the windows that a predictor needs for the wanted cells of a block, in the order in which it needs them."""
    x, y, _, _ = grid.window(block, predictor.halo_px)
    return [
        (x + cols.start, y + rows.start, cols.stop - cols.start, rows.stop - rows.start)
        for rows, cols in predictor.pieces(wanted, grid.stride_px)
    ]


def measure_limits(
    store: str | Path,
    slide: str | Path,
    make_predictor: Callable[[], Predictor],
    *,
    workers: int = 2,
    first_only: bool = False,
) -> Limits:
    """Read all blocks of a finished scan without predicting them; then predict them from memory.

    Call it in a process of its own: a network that is in use elsewhere changes its times.

    Parameters
    ----------
    store, slide : a finished heatmap and its slide
    make_predictor : makes the predictor; its time is part of ``ready_seconds``
    workers : as it was given to :func:`wsi_meta.scan`
    first_only : measure only the first block, to learn what compiling costs
    """
    heatmap = Heatmap.open(store)
    grid, status = heatmap.grid, heatmap.status
    wanted = {block: status[block.cells] == Status.SCANNED for block in grid.blocks()}
    blocks = [block for block in grid.blocks() if wanted[block].any()][: 1 if first_only else None]
    start = time.perf_counter()
    predictor = make_predictor()
    made_seconds = time.perf_counter() - start
    with open_slide(slide) as opened:
        scan = _Scan(opened, predictor, grid, {block: wanted[block] for block in blocks})
        read_seconds = _time_reading(scan, blocks, workers)
        pieces = scan.read(blocks[0])
        first, *again = (scan.time_predicting(blocks[0], pieces) for _ in range(3))
        predict_seconds = {} if first_only else _time_predicting(scan, blocks)
    return Limits(
        read_seconds=read_seconds,
        predict_seconds={block_name(block): seconds for block, seconds in predict_seconds.items()},
        ready_seconds=made_seconds + max(0.0, first - statistics.median(again)),
        cells=int(sum(np.count_nonzero(wanted[block]) for block in blocks)),
    )


class _Scan:
    """What a scan reads and predicts, block by block."""

    def __init__(self, slide: Slide, predictor: Predictor, grid: PatchGrid, wanted: dict[Block, NDArray[np.bool_]]) -> None:
        self.slide, self.predictor, self.grid, self.wanted = slide, predictor, grid, wanted
        self.windows = {block: block_windows(predictor, grid, block, cells) for block, cells in wanted.items()}

    def read(self, block: Block) -> list[NDArray[np.uint8]]:
        return [self.slide.read_at(self.grid.mpp, *window) for window in self.windows[block]]

    def time_predicting(self, block: Block, pieces: Sequence[NDArray[np.uint8]]) -> float:
        start = time.perf_counter()
        self.predictor.predict_block(iter(pieces), self.wanted[block], self.grid.stride_px)
        return time.perf_counter() - start


def _time_reading(scan: _Scan, blocks: list[Block], workers: int) -> float:
    scan.slide.expect(scan.grid.mpp, [window for block in blocks for window in scan.windows[block]])
    start = time.perf_counter()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for _ in pool.map(lambda block: len(scan.read(block)), blocks):
            pass
    return time.perf_counter() - start


def _time_predicting(scan: _Scan, blocks: list[Block]) -> dict[Block, float]:
    seconds: dict[Block, float] = {}
    for start in range(0, len(blocks), HELD_BLOCKS):
        held = [(block, scan.read(block)) for block in blocks[start : start + HELD_BLOCKS]]
        for block, pieces in held:
            seconds[block] = scan.time_predicting(block, pieces)
    return seconds
