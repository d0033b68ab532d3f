"""Progress on stderr, the same for every command."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["note", "progress_bar"]


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


def note(text: str, *, enabled: bool) -> None:
    """Print one line on stderr, above any bar."""
    if enabled:
        print(text, file=sys.stderr, flush=True)
