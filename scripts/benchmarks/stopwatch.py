"""How long a command takes from start to end, and how much memory all of its processes hold."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Timing", "time_command"]

SAMPLE_SECONDS = 0.05
"""Between two samples of the memory of a command's processes."""
QUOTED_LINES = 15
"""Last lines of a failed command's output that are shown."""


@dataclass(frozen=True)
class Timing:
    """A command that has run."""

    began: float
    """Seconds since the epoch, just before its process was started."""
    seconds: float
    """Until its process had ended."""
    peak_bytes: int
    """Most that all of its processes together held (resident; memory that they share counts for each)."""
    output: str
    """What it wrote to stdout."""


def time_command(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Timing:
    """Run a command, watch the memory of its processes, and wait for its end.

    Parameters
    ----------
    command : program and arguments
    env : its environment; this process's if None
    cwd : folder to run it in

    Raises
    ------
    RuntimeError
        when it fails; with the last lines of what it wrote to stderr.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began, start = time.time(), time.perf_counter()
        process = subprocess.Popen([str(word) for word in command], env=env, cwd=cwd, stdout=out, stderr=err, text=True)
        watch = _MemoryWatch(process.pid)
        try:
            code = process.wait()
        finally:
            seconds = time.perf_counter() - start
            if process.poll() is None:
                process.kill()
            watch.stop()
        out.seek(0)
        err.seek(0)
        if code:
            told = "\n".join(err.read().splitlines()[-QUOTED_LINES:])
            raise RuntimeError(f"{' '.join(str(word) for word in command)}\nfailed with {code}:\n{told}")
        return Timing(began, seconds, watch.peak_bytes, out.read())


class _MemoryWatch:
    """Adds up the resident memory of a process and its descendants, again and again, in a thread of its own."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid, self._ended = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        while not self._ended.is_set():
            total = 0
            try:
                root = psutil.Process(self._pid)
                for process in (root, *root.children(recursive=True)):
                    try:
                        total += process.memory_info().rss
                    except psutil.NoSuchProcess:
                        continue  # it ended between the two calls
            except psutil.NoSuchProcess:
                return
            self.peak_bytes = max(self.peak_bytes, total)
            self._ended.wait(SAMPLE_SECONDS)
