"""What runs beside what: the threads of one scanner, and the scans of a stream.

On a CPU one thread computes, others read ahead. Scans are in a relay: one is prepared while the one before is computed, and
begins when that one's last blocks are in work.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from wsi_meta.heatmaps.effort import Meter, ScanEffort

__all__ = ["PIECES_AHEAD", "Stop", "Threads", "Turn", "Visits", "interrupt_all"]

PIECES_AHEAD = 2
"""Pieces of a block's image that are read while another is computed."""

T = TypeVar("T")


class Stop:
    """Ends a scan early; any thread may ask for it."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def set(self) -> None:
        """Let the scan fail at its next check, within a fraction of a second."""
        self._asked.set()

    def check(self) -> None:
        """Raise InterruptedError when the scan is to end."""
        if self._asked.is_set():
            raise InterruptedError("the scan was stopped; what is finished is kept, scanning again goes on from there")


@dataclass(eq=False)
class Turn:
    """A scan's place in a stream of several; alone by default. Threads may share it.

    A scan calls :meth:`prepare`, :meth:`begin`, then :meth:`take_block` as each of its blocks begins, and :meth:`end` however
    it ended; the scan after it waits for that.
    """

    before: Turn | None = None
    """The turn before this one."""
    ahead: int = 1
    """How many scans may be prepared, or are, while the blocks of one before them have not begun."""
    stop: Stop = field(default_factory=Stop)
    """Ends this scan early."""
    place: str = ""
    """Which slide of how many it is, ``[3/12]``."""
    meter: Meter = field(default_factory=Meter)
    """Gathers what this run of the scan takes."""
    _begun: threading.Event = field(default_factory=threading.Event)
    _ending: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _left: int = 0
    _awaited: Turn | None = None

    def __post_init__(self) -> None:
        self._awaited = self.before
        for _ in range(self.ahead - 1):
            self._awaited = self._awaited and self._awaited.before

    def prepare(self) -> None:
        """Wait until the blocks of the scan before, or of the one :attr:`ahead` places before, begin."""
        if self._awaited is not None:
            self._wait(self._awaited._begun)
            self._awaited = None

    def begin(self, blocks: int) -> None:
        """Wait until the last blocks of the scan before are in work, then begin with this one's."""
        if self.before is not None:
            with self.meter.timed("-passed_s"):
                self._wait(self.before._ending)
        self.meter.begin_work()
        self._left = blocks
        self._begun.set()

    def take_block(self) -> None:
        """Say that one more block is in work."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._ending.set()

    def stop_meter(self) -> ScanEffort:
        """Return what this run of the scan took, its waiting for the scan before left out; no more time passes."""
        return self.meter.stop(None if self.before is None else self.before.meter)

    def end(self) -> None:
        """Let the next scan go on, but not before the scan before this one lets this one go on."""
        if self.before is not None:
            self.before._ending.wait()
        self.before = self._awaited = None
        self._begun.set()
        self._ending.set()

    def interrupt(self) -> None:
        """Let this scan fail soon, wherever it is, and the next one not wait for it."""
        self.stop.set()
        self._begun.set()
        self._ending.set()

    def _wait(self, event: threading.Event) -> None:
        event.wait()
        self.stop.check()


def interrupt_all(turns: Iterable[Turn]) -> None:
    """Let scans fail soon, wherever they are. All are told before any is woken: what one lets go on must know that it ends."""
    turns = list(turns)
    for turn in turns:
        turn.stop.set()
    for turn in turns:
        turn.interrupt()


class Visits:
    """The threads that are in scans at the moment, of a scanner that is closed when they have left."""

    def __init__(self) -> None:
        self._changed, self._inside = threading.Condition(), list[int]()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count this thread."""
        here = threading.get_ident()
        with self._changed:
            self._inside.append(here)
        try:
            yield
        finally:
            with self._changed:
                self._inside.remove(here)
                self._changed.notify_all()

    def counted(self, tell: Callable[..., None]) -> Callable[..., None]:
        """Return a function of the program's that counts the thread of a scan which calls it."""

        def told(*now: object) -> None:
            with self.inside():
                tell(*now)

        return told

    def ended(self) -> bool:
        """Wait until no thread is in a scan; return False at once in one that is, in a handler of signals: it is not over."""
        with self._changed:
            return threading.get_ident() not in self._inside and self._changed.wait_for(lambda: not self._inside)


class Threads:
    """A computing thread and reading threads. They start when they are first needed and end with :meth:`close`.

    OpenMP gives helpers of their own to each thread that computes, and lets all of them sleep between two steps of a network
    where they are more than the cores: a scan then takes an eighth longer (docs/benchmarks.md). So one thread computes.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._computing = ThreadPoolExecutor(1, "computing")
        self._reading = ThreadPoolExecutor(os.cpu_count(), "reading")

    def _submit(self, work: Callable[[], T], *, reads: bool = False) -> Future[T]:
        """Begin some work; in a process that was forked off, which has none of the threads, in new ones."""
        if self._process != os.getpid():
            self._start()
        return (self._reading if reads else self._computing).submit(work)

    def begin(self, work: Callable[[], T]) -> Future[T]:
        """Begin some work in the computing thread."""
        return self._submit(work)

    def compute(self, device: str, work: Callable[[], T]) -> T:
        """Do some work with a network: on a CPU in the computing thread, on a GPU in the calling one."""
        return work() if device != "cpu" else self._submit(work).result()

    def read_ahead(self, reads: Iterable[Callable[[], T]], stop: Stop) -> Iterator[T]:
        """Return what is read, one after the other. Other threads read, from now on, :data:`PIECES_AHEAD` of what was taken.

        Raises
        ------
        InterruptedError
            from the iterator, when `stop` is set.
        """
        left = iter(reads)

        def begin(count: int) -> list[Future[T]]:
            return [self._submit(read, reads=True) for read in islice(left, count)]

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
        here = self._process == os.getpid()
        self._computing.shutdown(wait=here)
        self._reading.shutdown(wait=here)
