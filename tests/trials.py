"""Trials of the fuzzer that go wrong in every way that it must notice, by their number."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fuzzing.counts import Finding, Outcome

RIGHT, DIES, HANGS, TAKES_MEMORY, RAISES = range(5)


def go_wrong(seed: int, number: int, folder: Path) -> Finding:
    """Do what the number says."""
    (folder / "file").write_text(str(seed))
    if number == DIES:
        os.abort()
    if number == HANGS:
        time.sleep(60)
    if number == TAKES_MEMORY:
        taken = bytearray(150_000_000)
        del taken
    if number == RAISES:
        raise ValueError("a mistake in the trial")
    return Finding(number, Outcome.RIGHT)
