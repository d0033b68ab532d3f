"""Where records of the standard ``logging`` go while a command runs: to stderr, above any bar, and into log files.

A record that tells an event keeps its facts, plain JSON values, as ``record.facts``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsi_meta.errors import OutputExistsError, OutputPathError
from wsi_meta.outputs.checks import check_output
from wsi_meta.words import printable

__all__ = ["Console", "LogFile", "is_quiet", "on_terminal", "show_lines", "shown_line"]

LOG_BEGINS = {
    True: re.compile(rb'\{"time": "\d{4}-'),
    False: re.compile(rb"\d{4}-\d\d-\d\dT[\d:.]+Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) "),
}
"""How a log of JSON, and one of text, begins."""

logger = logging.getLogger("wsi_meta")


class Console(logging.Handler):
    """Shows records on stderr, above any bar, and escapes what a terminal would obey in them.

    Attached to the package's logger with a level above INFO, it also keeps bars away.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, unless it only counts what a bar shows; nobody may be there to read it."""
        if not (_event_of(record).endswith(" done") and on_terminal()):
            show_lines(shown_line(record.getMessage(), record.levelno), *_trace_of(record))


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
                show_lines(shown_line(f"{self._path}: a log that lacks lines from here on ({error.strerror})", logging.WARNING))
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


def shown_line(text: str, level: int) -> str:
    """Return a record as stderr shows it: one line, that says where it is an error."""
    return printable(f"Error: {text}" if level >= logging.ERROR else text)


def show_lines(*lines: str) -> None:
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


def on_terminal() -> bool:
    """Tell whether stderr is a terminal that a bar fits on; one of no width, as programs open, shows none."""
    on_one = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    with suppress(OSError, ValueError):
        return on_one and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    return on_one


def is_quiet() -> bool:
    """Tell whether the command line was asked to show warnings and errors only."""
    return any(isinstance(handler, Console) and handler.level > logging.INFO for handler in logger.handlers)
