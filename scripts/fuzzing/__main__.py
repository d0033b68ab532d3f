"""Makes trials and prints what came of them; exits with 1 if something happened that no program may do.

A trial is a function of the seed and its number. To repeat one and keep its files:
`PYTHONPATH=scripts:tests .venv/bin/python -c "from fuzzing.slides import *; print(trial(0, 17, Path('files')))"`
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from math import inf
from pathlib import Path
from typing import cast

from fuzzing.counts import Counts, Part, table

PARTS = {
    "slides": "damaged and odd slides through info and scan",
    "stores": "damaged stores through info, overlay, lesions, score, scan",
    "models": "damaged models and score models",
    "drawn": "damaged annotations, masks and tables",
    "races": "two runs into one output at the same time",
    "kills": "runs that are killed, and run again",
    "torn": "stores as a loss of power leaves them",
    "batch": "batches with bad slides among good ones",
}
"""What each part tries; each is a module of this package (:class:`fuzzing.counts.Part`)."""


def main(words: Sequence[str] | None = None) -> int:
    """Make the trials that were asked for; return the exit code."""
    asked = _parse(words)
    ends = time.monotonic() + asked.seconds
    done: list[Counts] = []
    with tempfile.TemporaryDirectory(prefix="wsi-meta-fuzz-") as folder:
        for name in asked.parts or PARTS:
            began = time.monotonic()
            done.append(_run(name, asked, Path(folder), ends))
            print(f"{done[-1].line()} ({time.monotonic() - began:.0f} s)", flush=True)
            for found in done[-1].failed:
                print(f"  {name} {found.number}: {found.outcome}: {found.told}", flush=True)
    print(f"\n{table(done)}")
    return int(any(counts.failed for counts in done))


def _run(name: str, asked: argparse.Namespace, folder: Path, ends: float) -> Counts:
    part = cast(Part, import_module(f"fuzzing.{name}"))
    (own := folder / name).mkdir()
    return part.run(part.TRIALS if asked.trials is None else asked.trials, asked.seed, own, until=ends)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    told = "\n".join(f"  {name:<8} {what}" for name, what in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description=f"parts:\n{told}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="what to try; all of it when nothing is named")
    parser.add_argument("--trials", type=int, help="of each part; each has a number of its own else")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=inf, help="after which no more trials begin")
    asked = parser.parse_args(words)
    if unknown := sorted(set(asked.parts) - set(PARTS)):
        parser.error(f"no part '{unknown[0]}'; expected {', '.join(PARTS)}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
