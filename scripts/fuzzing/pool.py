"""Trials in processes of their own, watched: one that dies, hangs or takes all memory is counted, and the others go on."""

from __future__ import annotations

import math
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fuzzing.counts import Counts, Finding, Outcome

__all__ = ["HANG_S", "MOST_BYTES", "Trial", "run_trials"]

CHILDREN = 2
HANG_S = 30.0
MOST_BYTES = 2 << 30
"""A trial may need this much more memory than its process had before."""
SPARE_BYTES = 1 << 30
"""Address space that is more than this over what a trial may need is refused to a child, so that the machine lives on."""
PRELOADED = ["torch", "zarr", "dask.delayed", "matplotlib.figure", "skimage.color", "openslide", "imagecodecs"]
"""Loaded once, before the children are forked."""

Trial = Callable[[int, int, Path], Finding]
"""Called with the seed, the number of the trial and an empty folder for its files."""


@dataclass
class _Child:
    process: Any
    pipe: Connection
    number: int | None = None
    """Of the trial that it works on; None while it is idle."""
    since: float = 0.0


def run_trials(
    part: str,
    trial: Trial,
    trials: int,
    seed: int,
    folder: Path,
    *,
    until: float = math.inf,
    hang_s: float = HANG_S,
    most_bytes: int = MOST_BYTES,
    preloaded: Sequence[str] = PRELOADED,
) -> Counts:
    """Make the trials 0, 1, ... of a part in child processes.

    Parameters
    ----------
    trial : a function of a module
    until : no trial begins after this time of ``time.monotonic()``
    hang_s : a trial that has no answer after so many seconds hangs
    most_bytes : memory that a trial may need beyond what its process had before
    preloaded : modules to load once for all children
    """
    work = partial(_in_folder, trial, seed, folder)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preloaded))
    todo, findings = iter(range(trials)), list[Finding]()
    children = [_start(context, work, most_bytes) for _ in range(min(CHILDREN, trials))]
    while children:
        for child in [child for child in children if child.number is None]:
            number = next(todo, None) if time.monotonic() < until else None
            if number is None:
                children.remove(child)
                _end(child)
            else:
                child.number, child.since = number, time.monotonic()
                child.pipe.send(number)
        wait([child.pipe for child in children], timeout=0.5)
        for at, child in enumerate(children):
            found = _look(child, hang_s)
            if found is not None:
                findings.append(found)
                child.number = None
                if not child.process.is_alive():
                    children[at] = _start(context, work, most_bytes)
    return Counts(part, tuple(findings))


def _start(context: Any, work: Callable[[int], Finding], most_bytes: int) -> _Child:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work, most_bytes), daemon=True)
    process.start()
    theirs.close()
    return _Child(process, ours)


def _end(child: _Child) -> None:
    child.pipe.close()
    child.process.join(HANG_S)
    child.process.kill()


def _look(child: _Child, hang_s: float) -> Finding | None:
    """Return what came of a child's trial; None while it is at work. One that hangs is killed."""
    number = child.number
    assert number is not None
    if child.pipe.poll():
        try:
            found: Finding = child.pipe.recv()
            return found
        except (EOFError, OSError):
            child.process.join()
            return Finding(number, Outcome.DEATH, f"its process ended with {child.process.exitcode}")
    if time.monotonic() - child.since < hang_s:
        return None
    child.process.kill()
    child.process.join()
    return Finding(number, Outcome.HANG, f"no answer after {hang_s:g} s")


def _serve(pipe: Connection, work: Callable[[int], Finding], most_bytes: int) -> None:
    """Make trials as they are asked for, until nobody asks any more."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + most_bytes + SPARE_BYTES,) * 2)
    with suppress(EOFError):
        while True:
            number: int = pipe.recv()
            before = _reset_peak()
            found = work(number)
            taken = _memory("VmHWM") - before
            if taken > most_bytes and found.outcome is not Outcome.WRONG:
                found = Finding(number, Outcome.MEMORY, f"{taken / 2**30:.1f} GiB; {found.told}")
            pipe.send(found)


def _in_folder(trial: Trial, seed: int, folder: Path, number: int) -> Finding:
    """Make a trial in a folder of its own, which is removed."""
    own = Path(tempfile.mkdtemp(prefix=f"{number}-", dir=folder))
    try:
        return trial(seed, number, own)
    except Exception as error:  # of the trial itself: what a command raises is caught where it is called
        return Finding(number, Outcome.TRACEBACK, f"the trial failed: {type(error).__name__}: {error}")
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _reset_peak() -> int:
    """Let the process's peak of memory begin anew; return what it has now, bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    lines: Iterator[str] = iter(Path("/proc/self/status").read_text().splitlines())
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
