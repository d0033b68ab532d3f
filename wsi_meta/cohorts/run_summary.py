"""What a run says at its end: where the time went, and what would make it faster."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_meta.heatmaps.effort import ScanEffort
from wsi_meta.inference.device import cpu_supports
from wsi_meta.progress import tell
from wsi_meta.scanning.scanner import Scanner
from wsi_meta.words import counted, duration, one_line
from wsi_meta.worklist.summary import INCOMPLETE

__all__ = ["Run", "closing_line", "failures", "logged_run", "what_limits"]

WORK = {"reading": "reading_s", "computing": "computing_s", "writing": "writing_s", "finding tissue": "tissue_s"}
"""Kinds of work, with the fields of an effort that hold their seconds."""
MOST = 0.5
"""What takes at least so much dominates."""
LITTLE_WAITING = 0.2
"""A network that waits for pixels for no more of its time is not held up by reading."""


@dataclass
class Run:
    """What is known of a run as it goes."""

    slides: int
    efforts: list[ScanEffort] = field(default_factory=list)
    """Of those slides that were scanned, this run only."""
    failed: int = 0
    incomplete: int = 0
    """Slides of which cells could not be read: they have a score."""
    staged: bool = False
    """Whether slides are copied to a fast disk first."""
    scanner: Scanner | None = None
    """The one at work."""

    def add(self, effort: ScanEffort, error_kind: str | None) -> None:
        """Count a slide, and what its row says of its error; threads may do so."""
        self.efforts.append(effort)
        self.failed += error_kind not in (None, INCOMPLETE)
        self.incomplete += error_kind == INCOMPLETE


@contextmanager
def logged_run(slides: int, out: Path, *, staged: bool = False) -> Iterator[Run]:
    """Tell the begin of a run and, however it ends, what it took.

    Parameters
    ----------
    slides : how many there are
    out : where they go
    staged : whether they are copied to a fast disk first
    """
    run, begun = Run(slides, staged=staged), time.perf_counter()
    level = logging.INFO if slides > 1 else logging.DEBUG
    _tell(run, f"{counted(slides, 'slide')} to scan into {out}", level, event="run begun", slides=slides, out=str(out))
    error = None
    try:
        yield run
    except BaseException as caught:
        error = one_line(caught) or type(caught).__name__
        raise
    finally:
        _log_end(run, time.perf_counter() - begun, error)


def failures(failed: int, incomplete: int) -> str:
    """Return how many slides failed, and how many were not wholly read; empty where all is well."""
    counts = {"failed": failed, "incomplete": incomplete}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count)


def closing_line(effort: ScanEffort, *, slides: int, failed: int, passed_s: float, limit: str, incomplete: int = 0) -> str:
    """Return one line on where a run's time went.

    Parameters
    ----------
    effort : what all slides took together
    slides, failed, incomplete : how many there were, how many of them failed, and of how many cells could not be read
    passed_s : seconds from the run's begin to its end
    limit : as :func:`what_limits` says it
    """
    bad = failures(failed, incomplete)
    told = f"{counted(slides, 'slide')} in {duration(passed_s)}{f', {bad}' if bad else ''}"
    if not effort.cells:
        return f"{told}: nothing was left to scan" if not failed else f"{told}: nothing was scanned"
    work = {name: getattr(effort, seconds) for name, seconds in WORK.items()}
    total = sum(work.values())
    shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in work.items()) if total > 0 else "no work"
    waited = f"; the network waited for pixels {_waiting(effort):.0%} of its time"
    rate = f"{effort.cells:,} cells, {effort.cells / passed_s:,.0f} cells/s" if passed_s > 0 else f"{effort.cells:,} cells"
    return f"{told}, {rate}: {shares}{waited}" + (f". {limit}" if limit else "")


def what_limits(
    effort: ScanEffort, passed_s: float, *, device: str, precision: str, views: int, staged: bool = False, int8: bool = True
) -> str:
    """Return what held a run up and what would make it faster, by its figures alone; empty where nothing dominates.

    Parameters
    ----------
    effort : what all slides took together
    passed_s : seconds from the run's begin to its end
    device, precision, views : what computed, ``cpu`` or ``cuda``; in what arithmetic; how many views of each patch
    staged : whether slides were copied to a fast disk first
    int8 : whether the CPU can compute in int8
    """
    work = {name: getattr(effort, seconds) for name, seconds in WORK.items()}
    stage = "" if staged else ", or --stage to copy slides to a local disk"
    total, waiting = sum(work.values()), _waiting(effort)
    if effort.computing_s + effort.waiting_s + effort.writing_s + effort.tissue_s < MOST * passed_s:
        return "Starting is what took most of the time: scan more slides with one command"
    if work["writing"] >= MOST * total:
        return "Writing is what limits; try an --out on a faster disk"
    if work["finding tissue"] >= MOST * total:
        return f"Finding tissue is what limits; try --tissue-mask{stage}"
    if waiting >= MOST:
        return f"Reading is what limits; try more --workers{stage}"
    if waiting <= LITTLE_WAITING and work["computing"] >= MOST * total:
        ways = ["a GPU" if device == "cpu" else "more GPUs (--gpus)"]
        ways += ["--precision int8, which is less exact"] if device == "cpu" and precision != "int8" and int8 else []
        ways += [f"fewer than {views} views"] if views > 1 else []
        return f"Computing is what limits; try {', or '.join(ways)}"
    return ""


def _waiting(effort: ScanEffort) -> float:
    """Return for how much of its time the network waited for pixels."""
    busy = effort.computing_s + effort.waiting_s
    return effort.waiting_s / busy if busy > 0 else 0.0


def _log_end(run: Run, passed_s: float, error: str | None) -> None:
    effort = ScanEffort().with_others(*run.efforts)
    limit = ""
    if effort.cells and run.scanner is not None:
        plan, int8 = run.scanner.plan, cpu_supports("vnni")
        machine: dict[str, Any] = {"device": plan.inference.device_kind, "precision": plan.inference.precision, "int8": int8}
        limit = what_limits(effort, passed_s, **machine, views=plan.views, staged=run.staged)
    counts = {"slides": run.slides, "failed": run.failed, "incomplete": run.incomplete}
    line = closing_line(effort, **counts, passed_s=passed_s, limit=limit)
    facts = effort.to_facts()
    del facts["runs"]
    facts |= {"passed_s": round(passed_s, 3), **counts, "limit": limit}
    level = logging.DEBUG if error and not effort.cells else logging.INFO
    _tell(run, f"ended early after {line}" if error else line, level, event="run finished", **facts, error=error)


def _tell(run: Run, text: str, level: int, **facts: Any) -> None:
    """Tell by the scanner, which knows whether notes are shown; before there is one, to the logs alone."""
    if run.scanner is not None:
        run.scanner.note(text, level=level, **facts)
    else:
        tell(text, level=level, **facts)
