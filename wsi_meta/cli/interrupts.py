"""Ctrl-C: it ends a command wherever it comes, and each time in the same way."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["never_lost", "was_interrupted"]

_under_way: set[weakref.ref[_Interrupt]] = set()
"""The interrupts that nobody has answered yet."""


class _Interrupt(KeyboardInterrupt):
    """Ctrl-C in a command. One that dies unanswered was dropped on its way, and comes again."""

    def __init__(self) -> None:
        super().__init__()
        _under_way.add(weakref.ref(self, _come_again))


def _come_again(dead: weakref.ref[_Interrupt]) -> None:
    """Send another one, from another thread: in this place it would be dropped too."""
    if dead in _under_way:
        _under_way.remove(dead)
        _thread.start_new_thread(_thread.interrupt_main, ())


@contextmanager
def never_lost() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt for a while, and raise it again where that is dropped before it is answered.

    Python drops whatever is raised in ``__del__`` or in a callback of a weak reference, and C code what is raised in a callback
    of its own: a scan then went on as if nothing had been asked. What it left half made says nothing when it goes. Where Ctrl-C
    means something else already, it keeps that.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    show_dropped, pressed = sys.unraisablehook, False

    def interrupt(*_: object) -> None:
        nonlocal pressed
        pressed = True
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        raise _Interrupt  # kept by no frame of ours, or it would outlive its being dropped

    def show_others(dropped: Any) -> None:
        if not pressed:
            show_dropped(dropped)

    sys.unraisablehook = show_others
    signal.signal(signal.SIGINT, interrupt)
    try:
        with warnings.catch_warnings():  # noqa: TID251  (around the whole command: all other threads end before it)
            yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = show_dropped
        _under_way.clear()


def was_interrupted(error: BaseException) -> bool:
    """Tell whether Ctrl-C is what ended a command, itself or by another error that came of it; then it is answered."""
    found, left = False, [error]
    seen: set[int] = set()
    while left:
        error = left.pop()
        if id(error) not in seen:
            seen.add(id(error))
            left += [cause for cause in (error.__cause__, error.__context__) if cause is not None]
            if isinstance(error, KeyboardInterrupt):
                found = True
                _under_way.difference_update(weakref.getweakrefs(error))
    return found
