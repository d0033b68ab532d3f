"""The threads of one scanner: on a CPU one computes, others read ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from wsi_meta.scanning.relay import Stop

__all__ = ["PIECES_AHEAD", "Threads"]

PIECES_AHEAD = 2
"""Pieces of a block's image that are read while another is computed."""

T = TypeVar("T")


class Threads:
    """A computing thread and reading threads. They start when they are first needed and end with :meth:`close`.

    OpenMP gives helpers of their own to each thread that computes, and lets all of them sleep between two steps of a network
    where they are more than the cores: a scan then takes an eighth longer (docs/benchmarks.md). So one thread computes.
    """

    def __init__(self) -> None:
        self._computing = ThreadPoolExecutor(1, "computing")
        self._reading = ThreadPoolExecutor(os.cpu_count(), "reading")

    def begin(self, work: Callable[[], T]) -> Future[T]:
        """Begin some work in the computing thread."""
        return self._computing.submit(work)

    def compute(self, device: str, work: Callable[[], T]) -> T:
        """Do some work with a network: on a CPU in the computing thread, on a GPU in the calling one."""
        return work() if device != "cpu" else self._computing.submit(work).result()

    def read_ahead(self, reads: Iterable[Callable[[], T]], stop: Stop) -> Iterator[T]:
        """Return what is read, one after the other. Other threads read, from now on, :data:`PIECES_AHEAD` of what was taken.

        Raises
        ------
        InterruptedError
            from the iterator, when `stop` is set.
        """
        left = iter(reads)

        def begin(count: int) -> list[Future[T]]:
            return [self._reading.submit(read) for read in islice(left, count)]

        def take() -> Iterator[T]:
            while ahead:
                stop.check()
                done = [ahead.popleft().result()]
                ahead.extend(begin(1))
                yield done.pop()  # not kept here

        ahead = deque(begin(PIECES_AHEAD))
        return take()

    def close(self) -> None:
        """End the threads, once what they are doing is done."""
        self._computing.shutdown()
        self._reading.shutdown()
