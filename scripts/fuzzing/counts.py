"""What came of trials, and how it is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Protocol

__all__ = ["Counts", "Finding", "Outcome", "Part", "table"]


class Outcome(StrEnum):
    """What came of a trial; in this order the later one is the worse."""

    RIGHT = "right"
    REFUSED = "refused in one line"
    TRACEBACK = "traceback"
    HANG = "hang"
    DEATH = "death"
    MEMORY = "over memory"
    WRONG = "silently wrong"

    @property
    def failed(self) -> bool:
        """Whether no program may do this."""
        return self not in (Outcome.RIGHT, Outcome.REFUSED)


@dataclass(frozen=True)
class Finding:
    """What came of one trial."""

    number: int
    """Of the trial in its part: with the seed it says all that the trial did."""
    outcome: Outcome
    told: str = ""
    """One line on what was tried and what happened."""


@dataclass(frozen=True)
class Counts:
    """What came of a part's trials."""

    part: str
    findings: tuple[Finding, ...]

    @property
    def trials(self) -> int:
        """How many trials were made."""
        return len(self.findings)

    @property
    def failed(self) -> tuple[Finding, ...]:
        """Those that no program may do, by their number."""
        return tuple(sorted((found for found in self.findings if found.outcome.failed), key=lambda found: found.number))

    def of(self, outcome: Outcome) -> int:
        """Return how many trials ended so."""
        return Counter(found.outcome for found in self.findings)[outcome]

    def line(self) -> str:
        """Return one line: the part, and each outcome that there was."""
        told = (f"{self.of(outcome)} {outcome}" for outcome in Outcome if self.of(outcome) or outcome is Outcome.RIGHT)
        return f"{self.part}: {self.trials} trials: {', '.join(told)}"


class Part(Protocol):
    """A module that makes the trials of one part."""

    TRIALS: int
    """How many trials are made when nobody says."""

    def run(self, trials: int, seed: int, folder: Path, *, until: float = inf) -> Counts:
        """Make trials 0, 1, ... below `trials`, each a function of the seed and its number alone, with files in a folder.

        No trial begins after `until`, a time of ``time.monotonic()``: then there are fewer.
        """
        ...


def table(counts: Sequence[Counts]) -> str:
    """Return a table: a row for each part, a column for each outcome."""
    rows = [["part", "trials", *Outcome]]
    rows += [[part.part, str(part.trials), *(str(part.of(outcome)) for outcome in Outcome)] for part in counts]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(_row(row, widths) for row in rows)


def _row(row: Sequence[str], widths: Sequence[int]) -> str:
    numbers = (text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))
    return "  ".join([row[0].ljust(widths[0]), *numbers])
