"""Scans in a relay: one is prepared while the one before is computed, and begins when that one's last blocks are in work."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

__all__ = ["Stop", "Turn"]


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
    stop: Stop = field(default_factory=Stop)
    """Ends this scan early."""
    _begun: threading.Event = field(default_factory=threading.Event)
    _ending: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _left: int = 0

    def prepare(self) -> None:
        """Wait until the scan before is prepared and its blocks begin."""
        if self.before is not None:
            self._wait(self.before._begun)

    def begin(self, blocks: int) -> None:
        """Wait until the last blocks of the scan before are in work, then begin with this one's."""
        if self.before is not None:
            self._wait(self.before._ending)
        self._left = blocks
        self._begun.set()

    def take_block(self) -> None:
        """Say that one more block is in work."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._ending.set()

    def end(self) -> None:
        """Let the next scan go on, but not before the scan before this one lets this one go on."""
        if self.before is not None:
            self.before._ending.wait()
        self.before = None
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
