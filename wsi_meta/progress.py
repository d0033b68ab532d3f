"""Progress on stderr, the same for every command; or told to a function of the caller's."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsi_meta.errors import printable

__all__ = ["Progress", "counted_cells", "note", "progress_bar"]

Progress = bool | Callable[[Path, int, int], None]
"""True shows bars and notes on stderr; a function is told slide, cells done and cells in all, from several threads in turn."""


def progress_bar(total: int, unit: str, description: str, *, enabled: bool) -> Any:
    """Make a ``tqdm`` bar with rate and time left; silent when not `enabled`."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        unit=f" {unit}",
        desc=description,
        disable=not enabled,
        file=sys.stderr,
        smoothing=0.1,
        dynamic_ncols=True,
        leave=False,
    )


@contextmanager
def counted_cells(slide: Path, total: int, progress: Progress) -> Iterator[Callable[[int], None]]:
    """Count a slide's cells as they are done, on a bar or for a function; several threads may count.

    Yields
    ------
    A function to call with how many more are done; a negative number takes some back.
    """
    lock, done = threading.Lock(), 0
    with progress_bar(total, "cells", "scanning", enabled=progress is True) as bar:

        def count(cells: int) -> None:
            nonlocal done
            with lock:
                done += cells
                bar.update(cells)
                if callable(progress):
                    progress(slide, done, total)

        yield count


def note(text: str, *, enabled: bool) -> None:
    """Print one line on stderr, above any bar; what a terminal would obey in it is escaped."""
    if enabled:
        print(printable(text), file=sys.stderr, flush=True)
