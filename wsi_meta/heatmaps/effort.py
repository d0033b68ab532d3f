"""What a scan took: seconds, tiles, memory, and where."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ScanEffort"]


@dataclass(frozen=True)
class ScanEffort:
    """What the scan of one slide took, all its runs together where it was interrupted.

    Reading, computing and writing overlap, on several threads or machines: their sum may exceed the time that passed.
    """

    passed_s: float
    """Seconds from the slide's opening to its result, waiting for its turn left out."""
    tissue_s: float
    """Seconds in which tissue was sought."""
    reading_s: float
    """Thread seconds in which pixels were read and decoded."""
    computing_s: float
    """Thread seconds in which the network ran."""
    writing_s: float
    """Thread seconds in which blocks were written to the store."""
    cells: int
    """Cells that were predicted."""
    tiles_decoded: int | None
    """Stored tiles that were decoded; None where the reader does not count them."""
    peak_memory_bytes: int
    """Most resident memory of a process that computed."""
    hosts: tuple[str, ...]
    """Machines that computed."""
    runs: int = 1
    """1, or more where the scan was interrupted and continued."""
