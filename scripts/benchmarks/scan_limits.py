"""What bounds a scan: reading alone, and predicting alone, on the very blocks that the scan had."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.model import load_model, model_path
from wsi_meta.scanning.worker import Worker
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.grid import Block

__all__ = ["Limits", "block_name", "measure_limits"]

HELD_BLOCKS = 8
"""Blocks that are in memory at the same time, read before the clock runs."""


@dataclass(frozen=True)
class Limits:
    """Seconds for all blocks of a scan, one after the other."""

    read_seconds: float
    """To read all blocks, on as many threads as the scan had workers."""
    predict_seconds: dict[str, float]
    """To predict each block, by :func:`block_name`."""
    ready_seconds: float
    """To fold and compile the loaded network, and what its first block took longer than the same block again."""
    cells: int
    """Scanned cells in those blocks."""

    @property
    def model_seconds(self) -> float:
        """To predict all blocks."""
        return sum(self.predict_seconds.values())


def block_name(block: Block) -> str:
    """Return a block's key in :attr:`Limits.predict_seconds`."""
    return f"{block.row},{block.col}"


def measure_limits(
    store: str | Path,
    slide: str | Path,
    *,
    model: str | Path | None = None,
    device: str = "auto",
    workers: int = 2,
    batch_size: int = 64,
    first_only: bool = False,
) -> Limits:
    """Read all blocks of a finished scan, predicting nothing; then predict them, already in memory.

    The predictor is the scan's: mode, precision and whether it is compiled are taken from the store. To be called in a process
    of its own.

    Parameters
    ----------
    store, slide : a finished heatmap and its slide
    model, device, workers, batch_size : as they were given to :func:`wsi_meta.scan`
    first_only : only the first block, to learn what compiling costs
    """
    heatmap = Heatmap.open(store)
    identity, grid, status = heatmap.facts["identity"], heatmap.grid, heatmap.status
    wanted = {block: status[block.cells] == Status.SCANNED for block in grid.blocks()}
    blocks = [block for block in grid.blocks() if wanted[block].any()][: 1 if first_only else None]
    loaded, start = load_model(model_path(model)), time.perf_counter()
    predictor = Predictor(
        loaded,
        device=device,
        precision=identity["precision"],
        batch_size=batch_size,
        tta=identity["test_time_averaging"],
        dense=identity["mode"] == "dense",
        compiled=identity["compiled"],
    )
    made_seconds = time.perf_counter() - start
    with open_slide(slide) as opened:
        worker = Worker(opened, predictor)
        windows = {block: worker.windows(grid, block, wanted[block]) for block in blocks}

        def read(block: Block) -> list[Any]:
            return [opened.read_at(grid.mpp, *window) for window in windows[block]]

        def predict(block: Block, pieces: list[Any]) -> None:
            predictor.predict_block(iter(pieces), wanted[block], grid.stride_px)

        opened.expect(grid.mpp, chain.from_iterable(windows.values()))
        read_seconds = _time_reading(read, blocks, workers)
        pieces = read(blocks[0])
        first, *again = (_seconds(predict, blocks[0], pieces) for _ in range(3))
        predict_seconds = {} if first_only else _time_predicting(read, predict, blocks)
    return Limits(
        read_seconds=read_seconds,
        predict_seconds={block_name(block): seconds for block, seconds in predict_seconds.items()},
        ready_seconds=made_seconds + max(0.0, first - statistics.median(again)),
        cells=int(sum(np.count_nonzero(wanted[block]) for block in blocks)),
    )


def _time_reading(read: Callable[[Block], Any], blocks: list[Block], workers: int) -> float:
    start = time.perf_counter()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for _ in pool.map(lambda block: len(read(block)), blocks):
            pass
    return time.perf_counter() - start


def _time_predicting(
    read: Callable[[Block], Any], predict: Callable[[Block, Any], None], blocks: list[Block]
) -> dict[Block, float]:
    seconds: dict[Block, float] = {}
    for start in range(0, len(blocks), HELD_BLOCKS):
        held = [(block, read(block)) for block in blocks[start : start + HELD_BLOCKS]]
        for block, pieces in held:
            seconds[block] = _seconds(predict, block, pieces)
    return seconds


def _seconds(function: Callable[..., None], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start
