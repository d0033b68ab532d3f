"""What the figures of a slide come to, in words."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Verdict"]


@dataclass(frozen=True)
class Verdict:
    """What may be wrong with a scanned slide."""

    words: tuple[str, ...]
    """``ok`` alone, or some of ``incomplete blurred inked folded``, ``pixel size doubtful``, ``unlike training``."""
    figures: dict[str, float | None] = field(default_factory=dict)
    """What each word rests on; None where it could not be measured."""

    @property
    def told(self) -> str:
        """The words in one line."""
        return ", ".join(self.words)
