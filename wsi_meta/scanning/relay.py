"""Slides in a relay: one is prepared while the one before is computed, and begins when that one's last blocks are in work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Turn"]


@dataclass
class Turn:
    """A slide's place in a stream of several; alone by default. Threads may share it.

    A scan calls :meth:`prepare`, :meth:`begin`, then :meth:`take_block` as each of its blocks begins, and :meth:`end` however
    it ended; the slide after it waits for that.
    """

    before: Turn | None = None
    """The slide whose turn it is before this one."""
    stop: Callable[[], None] | None = None
    """Ends what is in work for this slide; for :meth:`interrupt`."""
    _begun: threading.Event = field(default_factory=threading.Event)
    _ending: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _left: int = 0
    _interrupted: bool = False

    def prepare(self) -> None:
        """Wait until the slide before is prepared and its blocks begin."""
        if self.before is not None:
            self._wait(self.before._begun)

    def begin(self, blocks: int) -> None:
        """Wait until the last blocks of the slide before are in work, then begin with this one's."""
        if self.before is not None:
            self._wait(self.before._ending)
        self._left = blocks
        self._begun.set()

    def take_block(self) -> None:
        """Tell that one more block is in work."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._ending.set()

    def end(self) -> None:
        """Let the next slide go on; never before the one before this one has let it."""
        if self.before is not None:
            self.before._ending.wait()
        self.before = None
        self._begun.set()
        self._ending.set()

    def interrupt(self) -> None:
        """Let this slide fail soon, wherever it is."""
        self._interrupted = True
        self._begun.set()
        self._ending.set()
        if self.stop is not None:
            self.stop()

    def _wait(self, event: threading.Event) -> None:
        event.wait()
        if self._interrupted:
            raise InterruptedError("the stream was interrupted")
