"""What runs a scanner's blocks: the one thing that differs between this machine, which is here, and a dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.inference.options import InferenceOptions, InferencePlan, compiler_found, resolve_inference
from wsi_meta.scanning.crashes import Journal
from wsi_meta.scanning.networks import Networks
from wsi_meta.scanning.options import ScanOptions, ScanPlan
from wsi_meta.scanning.threads import Threads, Turn
from wsi_meta.scanning.worker import BlockWorker
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.grid import Block

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Engine", "LocalEngine", "SlideScan", "Todo"]

Todo = Mapping[Block, "NDArray[np.bool_]"]
"""The blocks that are still to be scanned, in order, each with its cells that hold tissue: bool (rows, cols)."""


@dataclass(frozen=True)
class SlideScan:
    """One slide's scan: what is read, where the values go, how, its place among other scans, and who notes that it is open."""

    slide: Slide
    heatmap: Heatmap
    plan: ScanPlan
    turn: Turn
    journal: Journal


class Engine(Protocol):
    """Where the blocks of a scanner are computed."""

    def resolve(self, options: InferenceOptions) -> InferencePlan:
        """Return what the options come to where the blocks are computed; DeviceError when something is missing there."""

    def compiler_found(self, device: str) -> bool:
        """Tell whether the compiler that ``torch.compile`` needs is there."""

    def run(self, scan: SlideScan, todo: Todo, report: Callable[[int], None]) -> None:
        """Scan blocks and write them; `report` is told how many cells are done, as they are."""

    def close(self) -> None:
        """Let go of all that is kept."""


class LocalEngine:
    """Runs a scanner's blocks in this process; see :class:`Engine`."""

    def __init__(self, options: ScanOptions, networks: Networks, threads: Threads) -> None:
        self._options, self._networks, self._threads = options, networks, threads

    def resolve(self, options: InferenceOptions) -> InferencePlan:
        """Return what the options come to on this machine."""
        return resolve_inference(options)

    def compiler_found(self, device: str) -> bool:
        """Tell whether this machine has the compiler that ``torch.compile`` needs."""
        return compiler_found(device)

    def run(self, scan: SlideScan, todo: Todo, report: Callable[[int], None]) -> None:
        """Scan blocks on as many threads as the options say."""
        grid = scan.heatmap.grid
        predictor = self._networks.predictor(scan.plan, compiled=scan.heatmap.record.identity.compiled)
        working = partial(scan.journal.working, scan.slide.path)
        worker = BlockWorker(scan.slide, predictor, self._threads, grid, scan.turn.stop, working, scan.turn.meter)
        scan.slide.expect(grid.mpp, chain.from_iterable(worker.windows(block, wanted) for block, wanted in todo.items()))

        def run(block: Block) -> None:
            scan.turn.take_block()
            worker.scan(scan.heatmap, block, report)

        self._compute(run, list(todo), scan.turn)

    def close(self) -> None:
        """Keep nothing: what was opened is the scanner's."""

    def _compute(self, run: Callable[[Block], None], blocks: Sequence[Block], turn: Turn) -> None:
        from dask.base import compute
        from dask.delayed import delayed

        task = delayed(run, pure=False, traverse=False)
        # dask takes tasks by the order of their names: neighbours follow each other and share stored tiles
        tasks = [task(block, dask_key_name=f"block-{number:08d}") for number, block in enumerate(blocks)]
        with ThreadPoolExecutor(max(1, self._options.workers), "scanning") as pool:
            try:
                compute(*tasks, scheduler=self._options.scheduler, pool=pool, optimize_graph=False)
            except BaseException:
                turn.stop.set()  # or blocks that are in work would be waited for to their end
                raise
