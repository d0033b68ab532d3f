"""What a run says as it goes: records of the standard ``logging`` under ``wsi_meta``, and how much is done.

Nothing is shown unless it was asked for: by ``progress=True`` in Python, or by the handlers that the command line attaches
while a command runs. A record that tells an event keeps its facts, plain JSON values, as ``record.facts``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsi_meta.errors import OutputExistsError, OutputPathError, printable

__all__ = ["Console", "LogFile", "Progress", "ProgressBar", "counted_cells", "duration", "note", "progress_bar", "tell"]

Progress = bool | Callable[[Any, int, int], None]
"""True shows bars and notes on stderr; a function is told slide, cells done and cells in all, from several threads in turn."""

FIRST_S, TELL_S = 10.0, 60.0
"""Where there is no terminal, a line tells after so many seconds how much is done: a first one, and each further one."""
LOG_BEGINS = {
    True: re.compile(rb'\{"time": "\d{4}-'),
    False: re.compile(rb"\d{4}-\d\d-\d\dT[\d:.]+Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) "),
}
"""How a log of JSON, and one of text, begins."""

logger = logging.getLogger("wsi_meta")


def tell(text: str, *, show: bool = False, level: int = logging.INFO, **facts: Any) -> None:
    """Log one line, with the facts of an event. Where `show` and the host's logging leaves it out, show it on stderr.

    Parameters
    ----------
    facts : plain JSON values; ``event`` names what happened
    """
    if show and level >= logging.INFO and not _is_shown_by_logging(level):
        _show(_shown_line(text, level))
    logger.log(level, "%s", printable(text), extra={"facts": facts})  # which any handler of the host can write


def note(text: str, *, enabled: bool) -> None:
    """Log one line and show it as :func:`tell` does; nothing where not `enabled`, as in all processes but the first."""
    if enabled:
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
        self._bar = self._draw() if show and _on_terminal() and not _is_quiet() else None
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
    return ProgressBar(total, unit, description, show=True) if enabled else _Uncounted()


@contextmanager
def counted_cells(slide: Any, total: int, progress: Progress, place: str = "") -> Iterator[Callable[[int], None]]:
    """Count a slide's cells as they are done, on a bar or for a function; several threads may count.

    Parameters
    ----------
    place : which slide of how many, ``[3/12]``

    Yields
    ------
    A function to call with how many more are done; a negative number takes some back.
    """
    lock, named = threading.Lock(), f"{place} {slide.stem}".strip()
    with ProgressBar(total, "cells", named, show=progress is True, slide=str(slide), place=place) as bar:

        def count(cells: int) -> None:
            with lock:
                bar.update(cells)
                if callable(progress):
                    progress(slide, bar.done, total)

        yield count


class Console(logging.Handler):
    """Shows records on stderr, above any bar, and escapes what a terminal would obey in them.

    Attached to the package's logger with a level above INFO, it also keeps bars away.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, unless it only counts what a bar shows; nobody may be there to read it."""
        if not (_event_of(record).endswith(" done") and _on_terminal()):
            _show(_shown_line(record.getMessage(), record.levelno), *_trace_of(record))


class LogFile(logging.Handler):
    """Adds records to a file, each at once, so that a process that dies leaves no half line. Processes may share the file.

    Parameters
    ----------
    path : made if it does not exist; a log that is there is gone on with
    as_json : a JSON object on each line instead of a time, a level and a text

    Raises
    ------
    OutputPathError, OutputExistsError
        when it cannot be written, or is something else than such a log.
    """

    def __init__(self, path: Path, *, as_json: bool) -> None:
        from wsi_meta.outputs.checks import check_output

        super().__init__()
        self._path, self._as_json, self._lost = path, as_json, False
        if not path.exists() or path.is_dir():
            check_output(path, overwrite=True)
        try:
            if path.is_file() and path.stat().st_size:
                with path.open("rb") as file:
                    if not LOG_BEGINS[as_json].match(file.read(100)):
                        kind = "JSON log" if as_json else "log"
                        raise OutputExistsError(f"{path}: exists and is no {kind} of wsi-meta; choose another name for it")
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OutputExistsError:
            raise
        except OSError as error:
            raise OutputPathError(f"{path}: cannot be written ({error.strerror}); choose another name for the log") from error

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. Where there is no room for it the work goes on without, which is told once."""
        line = self._line(record).encode(errors="backslashreplace") + b"\n"
        try:
            if (written := os.write(self._file, line)) < len(line):
                os.ftruncate(self._file, os.fstat(self._file).st_size - written)
                raise OSError(0, "the disk is full")
        except OSError as error:
            if not self._lost:
                _show(_shown_line(f"{self._path}: a log that lacks lines from here on ({error.strerror})", logging.WARNING))
            self._lost = True

    def close(self) -> None:
        """Let go of the file."""
        super().close()
        os.close(self._file)

    def _line(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        text, trace = record.getMessage(), _trace_of(record)
        if not self._as_json:
            return "\n    ".join([f"{when} {record.levelname} {printable(text)}", *trace])
        told: dict[str, Any] = {"time": when, "event": "message", "level": record.levelname.lower(), "text": text}
        return json.dumps(told | ({"trace": trace} if trace else {}) | getattr(record, "facts", {}), default=str)


def duration(seconds: float) -> str:
    """Return a time in words: to the minute from an hour on, to a tenth of a second below ten."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    counts = [(hours, "h"), (minutes, "min")] if hours else [(minutes, "min"), (rest, "s")]
    return " ".join(f"{count} {unit}" for count, unit in counts if count or (unit == "min" and hours))


def _shown_line(text: str, level: int) -> str:
    return printable(f"Error: {text}" if level >= logging.ERROR else text)


def _show(*lines: str) -> None:
    """Write lines to stderr, above any bar; no harm is done where nobody reads them."""
    from tqdm import tqdm

    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            tqdm.write("\n".join(lines), file=sys.stderr)


def _trace_of(record: logging.LogRecord) -> list[str]:
    """Return the lines of the traceback that a record holds."""
    told = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
    return [printable(line) for line in told.splitlines()]


def _event_of(record: logging.LogRecord) -> str:
    return str(getattr(record, "facts", {}).get("event", ""))


def _on_terminal() -> bool:
    """Tell whether stderr is a terminal that a bar fits on; one of no width, as programs open, shows none."""
    on_one = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    with suppress(OSError, ValueError):
        return on_one and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    return on_one


def _is_quiet() -> bool:
    """Tell whether the command line was asked to show warnings and errors only."""
    return any(isinstance(handler, Console) and handler.level > logging.INFO for handler in logger.handlers)


def _is_shown_by_logging(level: int) -> bool:
    """Tell whether the host takes our notes, or else whether ``logging`` itself shows the record: what is severe, to nobody."""
    if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
        return True
    return level >= logging.WARNING and not logger.hasHandlers()
