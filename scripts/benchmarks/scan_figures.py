"""Figures of a measured scan: from the clock of its process, and from the times at which its store was written."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from scan_limits import Limits, block_name
from stopwatch import Timing

from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.tiling.grid import Block

__all__ = ["Commit", "MeasuredScan", "Timeline", "figures", "scan_timeline", "share_of_limit", "table"]

MEGA, GIGA = 1e6, 1e9

T = TypeVar("T")


@dataclass(frozen=True)
class Commit:
    """A block of a scan that was written."""

    block: Block
    cells: int
    """Scanned cells in it."""
    at: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class Timeline:
    """When a scan did what, seconds from the start of its process."""

    ready: float
    """The store was made: program and model loaded, tissue found."""
    first: float
    """The first block was written."""
    last: float
    """The last block was written."""
    cells: int
    """Scanned cells."""
    steady: tuple[Commit, ...]
    """Blocks whose prediction began after the first block was written, as far as the store shows."""

    @property
    def steady_cells_per_second(self) -> float:
        """Scanned cells a second from the first block written to the last; nan where there are too few blocks."""
        return sum(commit.cells for commit in self.steady) / (self.last - self.first) if self.steady else float("nan")


@dataclass(frozen=True)
class MeasuredScan:
    """A scan in a process of its own."""

    timing: Timing
    timeline: Timeline
    tiles: Mapping[str, int] | None
    """Stored tiles ``needed`` for its blocks, each counted once, and ``decoded``; None where the reader does not count."""


def scan_timeline(store: Path, began: float, workers: int) -> Timeline:
    """Read from a finished store's files when they were written: a block's status is its commit mark.

    The scan itself does nothing for it, so measuring changes nothing. When the first block is written, up to ``workers - 1``
    others are being predicted on a GPU; as many of the next blocks are left out of the steady ones. On a CPU one block is
    predicted at a time: the second one begins some milliseconds before the first is written.

    Parameters
    ----------
    store : written by a single run of `scan`
    began : when its process was started, seconds since the epoch
    workers : blocks that were in work at the same time
    """
    heatmap = Heatmap.open(store)
    status, side = heatmap.status, heatmap.grid.block_cells
    commits = []
    for block in heatmap.grid.blocks():
        cells = int((status[block.cells] == Status.SCANNED).sum())
        if cells:
            chunk = store / "status" / "c" / str(block.row // side) / str(block.col // side)
            commits.append(Commit(block, cells, chunk.stat().st_mtime))
    commits.sort(key=lambda commit: commit.at)
    return Timeline(
        ready=(store / "0" / "zarr.json").stat().st_mtime - began,
        first=commits[0].at - began,
        last=commits[-1].at - began,
        cells=sum(commit.cells for commit in commits),
        steady=tuple(commits[1 if heatmap.record.identity.device == "cpu" else max(1, workers) :]),
    )


def figures(
    cold: MeasuredScan,
    warm: Sequence[MeasuredScan],
    limits: Sequence[Limits],
    cold_ready_seconds: float,
    stride_px: int,
) -> dict[str, float | None]:
    """Condense the measurements of one slide scanned one way.

    Parameters
    ----------
    cold : the scan that found no compiled kernels of an earlier process
    warm : scans that found them; figures are medians over these
    limits : reading alone and the network alone, on the same blocks, measured after each warm scan
    cold_ready_seconds : time to make the network ready with an empty cache
    stride_px : side of a cell, pixels at the model's mpp

    Returns
    -------
    By name; None where it cannot be known.
    """
    tiles = warm[0].tiles
    return {
        **_times(cold, warm),
        "network made ready, s": _median(limits, lambda limit: limit.ready_seconds),
        "network made ready, nothing compiled before, s": cold_ready_seconds,
        **_rates(warm, limits, stride_px),
        "tiles decoded / needed": tiles["decoded"] / tiles["needed"] if tiles else None,
        "peak memory, GB": max(scan.timing.peak_bytes for scan in (cold, *warm)) / GIGA,
    }


def _times(cold: MeasuredScan, warm: Sequence[MeasuredScan]) -> dict[str, float]:
    return {
        "tissue cells": warm[0].timeline.cells,
        "end to end, s": _median(warm, lambda scan: scan.timing.seconds),
        "end to end, nothing compiled before, s": cold.timing.seconds,
        "start-up until tissue is found, s": _median(warm, lambda scan: scan.timeline.ready),
        "first cells written after, s": _median(warm, lambda scan: scan.timeline.first),
        "after the last block, s": _median(warm, lambda scan: scan.timing.seconds - scan.timeline.last),
    }


def _rates(warm: Sequence[MeasuredScan], limits: Sequence[Limits], stride_px: int) -> dict[str, float]:
    steady = _median(warm, lambda scan: scan.timeline.steady_cells_per_second)
    shares = [share_of_limit(scan.timeline, limit) for scan, limit in zip(warm, limits, strict=True)]
    return {
        "cells/s, end to end": warm[0].timeline.cells / _median(warm, lambda scan: scan.timing.seconds),
        "cells/s, first block to last": steady,
        "Mpx/s of tissue, first block to last": steady * stride_px**2 / MEGA,
        "cells/s, reading alone": limits[0].cells / _median(limits, lambda limit: limit.read_seconds),
        "cells/s, network alone": limits[0].cells / _median(limits, lambda limit: limit.model_seconds),
        "share of the network's limit": statistics.median(shares),
    }


def _median(measured: Sequence[T], figure: Callable[[T], float]) -> float:
    return statistics.median(figure(one) for one in measured)


def share_of_limit(timeline: Timeline, limits: Limits) -> float:
    """Return the network's time alone for the steady blocks as a share of the scan's time; nan if there are none."""
    if not timeline.steady:
        return float("nan")
    alone = sum(limits.predict_seconds[block_name(commit.block)] for commit in timeline.steady)
    return alone / (timeline.last - timeline.first)


def table(columns: Mapping[str, Mapping[str, float | None]]) -> Iterator[str]:
    """Return the lines of a table in Markdown: a row per figure, a column per measured case."""
    yield "| | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        yield f"| {name} | " + " | ".join(_shown(column.get(name)) for column in columns.values()) + " |"


def _shown(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
