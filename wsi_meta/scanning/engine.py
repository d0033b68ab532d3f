"""What runs a scanner's blocks: the one thing that differs between this machine and a dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.inference.options import InferenceOptions, InferencePlan
from wsi_meta.scanning.crashes import Journal
from wsi_meta.scanning.options import ScanPlan
from wsi_meta.scanning.relay import Turn
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.grid import Block

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Engine", "SlideScan", "Todo"]

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
