"""What a run says as it goes: records of the standard ``logging`` under ``wsi_meta``, and how much is done.

Nothing is shown unless it was asked for: by ``progress=True`` in Python, or by the handlers that the command line attaches
while a command runs. A record that tells an event keeps its facts, plain JSON values, as ``record.facts``.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from wsi_meta.errors import truth
from wsi_meta.logs import is_quiet, on_terminal, show_lines, shown_line
from wsi_meta.words import duration, printable

__all__ = ["Progress", "ProgressBar", "counted_cells", "note", "progress_bar", "tell"]

Progress = bool | Callable[[Any, int, int], None]
"""True shows bars and notes on stderr; a function is told slide, cells done and cells in all, from several threads in turn."""

FIRST_S, TELL_S = 10.0, 60.0
"""Where there is no terminal, a line tells after so many seconds how much is done: a first one, and each further one."""
logger = logging.getLogger("wsi_meta")


def tell(text: str, *, show: bool = False, level: int = logging.INFO, **facts: Any) -> None:
    """Log one line, with the facts of an event. Where `show` and the host's logging leaves it out, show it on stderr.

    Parameters
    ----------
    facts : plain JSON values; ``event`` names what happened
    """
    if show and level >= logging.INFO and not _is_shown_by_logging(level):
        show_lines(shown_line(text, level))
    logger.log(level, "%s", printable(text), extra={"facts": facts})  # which any handler of the host can write


def note(text: str, *, enabled: bool) -> None:
    """Log one line and show it as :func:`tell` does; nothing where not `enabled`, as in all processes but the first."""
    if truth("progress", enabled):
        tell(text, show=True)


class ProgressBar:
    """Counts work as it is done: on a bar where stderr is a terminal, elsewhere by lines. Threads may count.

    Parameters
    ----------
    total : how much there is to do
    unit : of what, in the plural
    description : what stands before the figures
    show : on stderr; else only records tell it
    clock : seconds that pass
    facts : of the event ``<unit> done``
    """

    def __init__(
        self,
        total: int,
        unit: str,
        description: str,
        *,
        show: bool,
        clock: Callable[[], float] = time.monotonic,
        **facts: Any,
    ) -> None:
        self.total, self.unit, self.description = total, unit, printable(description)
        self._show, self._clock, self._facts = show, clock, facts
        self._bar = self._draw() if show and on_terminal() and not is_quiet() else None
        self._lock, self.done = threading.Lock(), 0
        self._begun, self._due = clock(), clock() + FIRST_S

    def update(self, count: int) -> None:
        """Say that so many more are done; a negative number takes some back."""
        with self._lock:
            self.done += count
            if self._bar is not None:
                self._bar.update(count)
            now = self._clock()
            if due := now >= self._due and self.done < self.total:  # the end has a line of its own
                self._due = now + TELL_S
        if due:
            self._tell(now - self._begun)

    def set_postfix(self, **values: str) -> None:
        """Show figures behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix(refresh=False, **values)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _draw(self) -> Any:
        from tqdm import tqdm

        return tqdm(
            total=self.total,
            unit=f" {self.unit}",
            desc=self.description,
            file=sys.stderr,
            smoothing=0.1,
            dynamic_ncols=True,
            leave=False,
        )

    def _tell(self, passed_s: float) -> None:
        done, unit = self.done, self.unit
        rate = done / passed_s if passed_s > 0 else 0.0
        left_s = (self.total - done) / rate if done >= self.total / 20 and rate > 0 else None  # the first ones are slow
        share = f"{done / self.total:.0%}" if self.total else "all"
        left = f", {duration(left_s)} left" if left_s is not None else ""
        text = f"{self.description}: {done:,} of {self.total:,} {unit} ({share}), {rate:,.0f} {unit}/s{left}"
        figures: dict[str, Any] = {
            "done": done,
            "of": self.total,
            "per_s": round(rate, 1),
            "left_s": left_s and round(left_s, 1),
        }
        tell(text, show=self._show and self._bar is None, event=f"{unit} done", **self._facts, **figures)


class _Uncounted(ProgressBar):
    """Counts nothing and says nothing."""

    def __init__(self) -> None:
        super().__init__(0, "", "", show=False)

    def update(self, count: int) -> None:
        del count


def progress_bar(total: int, unit: str, description: str, *, enabled: bool) -> ProgressBar:
    """Return what counts and shows progress; it does neither where not `enabled`."""
    return ProgressBar(total, unit, description, show=True) if truth("progress", enabled) else _Uncounted()


@contextmanager
def counted_cells(slide: Any, total: int, progress: Progress, name: str, place: str = "") -> Iterator[Callable[[int], None]]:
    """Count a slide's cells as they are done, on a bar or for a function; several threads may count.

    Parameters
    ----------
    name : of the slide, on the bar
    place : which slide of how many, ``[3/12]``

    Yields
    ------
    A function to call with how many more are done; a negative number takes some back.
    """
    lock = threading.Lock()
    with ProgressBar(total, "cells", f"{place} {name}".strip(), show=progress is True, slide=str(slide), place=place) as bar:

        def count(cells: int) -> None:
            with lock:
                bar.update(cells)
                if callable(progress):
                    progress(slide, bar.done, total)

        yield count


def _is_shown_by_logging(level: int) -> bool:
    """Tell whether the host takes our notes, or else whether ``logging`` itself shows the record: what is severe, to nobody."""
    if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
        return True
    return level >= logging.WARNING and not logger.hasHandlers()
