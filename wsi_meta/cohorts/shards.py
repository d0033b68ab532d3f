"""A part of many slides for each of several commands that know nothing of each other, as in a batch system's job array."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from wsi_meta.errors import OptionsError, numbers, whole_number

__all__ = ["Shard"]


@dataclass(frozen=True)
class Shard:
    """One of several equal parts of the slides: every so many-th of them, in the order of their names.

    Which slides these are depends on the list of all slides only: all shards must be given the same one.

    Raises
    ------
    OptionsError
        when there is no such part.
    """

    number: int
    """Counted from 0."""
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise OptionsError(f"shard {self.number}/{self.of}; expected I/N with I from 0 to N - 1, such as 0/3, 1/3 and 2/3")

    @classmethod
    def read(cls, given: str | tuple[int, int]) -> Shard:
        """Return the shard that ``I/N``, or the two numbers, mean; OptionsError where they mean none."""
        if not isinstance(given, str):
            expected = "I/N, or two whole numbers"
            return cls(*(whole_number("shard", one, expected) for one in numbers("shard", given, 2, expected)))
        if (found := re.fullmatch(r"(\d+)/(\d+)", given.strip())) is None:
            raise OptionsError(f"shard '{given}'; expected I/N with I from 0 to N - 1, such as 0/3")
        return cls(int(found[1]), int(found[2]))

    def places_of(self, names: Sequence[str]) -> list[int]:
        """Return at which places of a list of all slides' names its own ones stand, in the order of the list."""
        return sorted(sorted(range(len(names)), key=names.__getitem__)[self.number :: self.of])
