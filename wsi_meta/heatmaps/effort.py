"""What a scan took: seconds, tiles, memory, and where."""

from __future__ import annotations

import resource
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from wsi_meta.words import duration

__all__ = ["Meter", "ScanEffort"]

T = TypeVar("T")

SUMMED = ("passed_s", "tissue_s", "reading_s", "computing_s", "writing_s", "waiting_s", "cells")
"""Fields that are added where two efforts are put together."""


@dataclass(frozen=True)
class ScanEffort:
    """What the scan of one slide took, all its runs together where it was interrupted.

    Reading, computing and writing overlap, on several threads or machines: their sum may exceed the time that passed. A run
    that was killed is not among them, nor are the cells that it predicted.
    """

    passed_s: float = 0.0
    """Seconds from the slide's opening to its result, waiting for its turn left out."""
    tissue_s: float = 0.0
    """Seconds in which tissue was sought."""
    reading_s: float = 0.0
    """Thread seconds in which pixels were read and decoded."""
    computing_s: float = 0.0
    """Thread seconds in which the network ran."""
    writing_s: float = 0.0
    """Thread seconds in which blocks were written to the store."""
    cells: int = 0
    """Cells that were predicted."""
    tiles_decoded: int | None = None
    """Stored tiles that were decoded; None where the reader does not count them."""
    peak_memory_bytes: int = 0
    """Most resident memory of a process that computed, since that process began."""
    hosts: tuple[str, ...] = ()
    """Machines that computed."""
    runs: int = 1
    """1, or more where the scan was interrupted and continued."""
    waiting_s: float = 0.0
    """Thread seconds in which the network had to wait for pixels."""

    def with_others(self, *others: ScanEffort) -> ScanEffort:
        """Return all that was done in the same run."""
        every = (self, *others)
        counted = [effort.tiles_decoded for effort in every if effort.tiles_decoded is not None]
        return ScanEffort(
            tiles_decoded=sum(counted) if counted else None,
            peak_memory_bytes=max(effort.peak_memory_bytes for effort in every),
            hosts=tuple(sorted({host for effort in every for host in effort.hosts})),
            runs=self.runs,
            **{name: sum(getattr(effort, name) for effort in every) for name in SUMMED},
        )

    def after(self, earlier: ScanEffort | None) -> ScanEffort:
        """Return what this run and the earlier ones took together."""
        return self if earlier is None else replace(earlier.with_others(self), runs=earlier.runs + self.runs)

    @property
    def cells_per_s(self) -> float | None:
        """Cells a second from the slide's opening on; None where no time passed."""
        return self.cells / self.passed_s if self.passed_s > 0 else None

    @property
    def summary(self) -> str:
        """Cells, time and rate in words."""
        rate = f" ({self.cells_per_s:,.0f} cells/s)" if self.cells_per_s else ""
        return f"{self.cells:,} cells in {duration(self.passed_s)}{rate}"

    def to_facts(self) -> dict[str, Any]:
        """Return the fields as plain JSON values, seconds to the millisecond; no memory where nothing was computed."""
        rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}
        return rounded | {"hosts": list(self.hosts), "peak_memory_bytes": self.peak_memory_bytes or None}


class Meter:
    """Gathers what one run of a scan takes, from all threads that work for it. Whole pieces are timed, so it costs nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._so_far = ScanEffort()
        self._begun: float | None = None
        self._at_work = self._stopped = 0.0
        self._tiles_seen = 0

    def start(self) -> None:
        """Let time pass from now on, until :meth:`stop`."""
        self._begun = time.perf_counter()

    def begin_work(self) -> None:
        """Note that the first block begins: the last ones of the scan before may be in work still."""
        self._at_work = time.perf_counter()

    def stop(self, before: Meter | None = None) -> ScanEffort:
        """Return what the run took; no more time passes.

        Parameters
        ----------
        before : of the scan before in a stream; while that one's last blocks were in work, this one waited for its turn
        """
        if self._begun is not None:
            self._stopped = time.perf_counter()
            waited = max(0.0, before._stopped - self._at_work) if before is not None and self._at_work else 0.0
            self.add(passed_s=self._stopped - self._begun - waited)
            self._begun = None
        return self._so_far

    def add(self, **parts: float) -> None:
        """Add to some of the fields of :class:`ScanEffort` that are sums."""
        self.include(ScanEffort(**parts))  # type: ignore[arg-type]

    def include(self, effort: ScanEffort) -> None:
        """Add what others did for the same run."""
        with self._lock:
            self._so_far = self._so_far.with_others(effort)

    @contextmanager
    def timed(self, field: str) -> Iterator[None]:
        """Add the seconds within the context to a field; what is negative there takes time out: ``-passed_s``."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - begun
            self.add(**{field.removeprefix("-"): -passed if field.startswith("-") else passed})

    def awaited(self, pieces: Iterable[T]) -> Iterator[T]:
        """Return the same pieces; the time until each comes is waiting, not computing. None of them is kept here."""
        return _Awaited(self, pieces)

    def count_tiles(self, decoded: int | None, *, before: bool = False) -> None:
        """Count the tiles that a slide has decoded since this was called last; with `before`, they were decoded for others."""
        if decoded is not None:
            with self._lock:
                more, self._tiles_seen = decoded - self._tiles_seen, decoded
                told = ScanEffort(tiles_decoded=0 if before else more)
                self._so_far = self._so_far.with_others(told)

    def count_here(self) -> None:
        """Note that this process computes."""
        self.include(ScanEffort(hosts=(socket.gethostname(),), peak_memory_bytes=_peak_memory_bytes()))

    def take(self) -> ScanEffort:
        """Return what was gathered since this was called last, to be included elsewhere."""
        with self._lock:
            taken, self._so_far = self._so_far, ScanEffort()
            return taken


class _Awaited(Iterator[T]):
    def __init__(self, meter: Meter, pieces: Iterable[T]) -> None:
        self._meter, self._pieces = meter, iter(pieces)

    def __next__(self) -> T:
        begun = time.perf_counter()
        try:
            return next(self._pieces)
        finally:
            waited = time.perf_counter() - begun
            self._meter.add(waiting_s=waited, computing_s=-waited)


def _peak_memory_bytes() -> int:
    """Return the most resident memory that this process had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
