"""What the figures of a slide come to, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BLURRED",
    "FEWEST_CELLS",
    "FOLDED",
    "LIMITS",
    "MEANINGS",
    "NO_TISSUE",
    "OK",
    "Verdict",
    "blurred_share",
    "folded_share",
    "pronounce",
]

OK = "ok"
NO_TISSUE = "no tissue"
"""Said of a slide without a cell to scan."""
FEWEST_CELLS = 16
"""Fewer cells, or patches, say nothing of a slide."""
BLURRED = 0.36
"""Focus below which a cell is out of focus: 1 % of sharp cells, 60 % at a blur of 1 px (docs/benchmarks.md)."""
FOLDED = 1.6
"""A cell is folded when it absorbs so many times what the slide's denser cells do: two layers absorb twice as much as one."""
DENSE_QUANTILE = 0.75
"""The denser cells of a slide absorb more than this share of its cells."""


@dataclass(frozen=True)
class Limit:
    """From where on a figure is worth a word."""

    word: str
    least: float
    most: float
    """Usual figures lie between them; both are usual."""
    told: str
    """How the figure is told."""
    meaning: str
    """What follows from it, one sentence."""


LIMITS = {
    "unread": Limit(
        "incomplete", 0, 0, "{:.1%} of the tissue unread", "The score is of what was read; lesions may be missing."
    ),
    "blurred": Limit(
        "blurred", 0, 0.25, "{:.0%} of the cells with contrast", "Probabilities mean less where it is out of focus."
    ),
    "inked": Limit(
        "inked", 0, 0.02, "{:.0%} of the tissue", "Tissue under ink may not have been scanned: look there yourself."
    ),
    "folded": Limit("folded", 0, 0.05, "{:.0%} of the cells", "Probabilities mean less where tissue lies double."),
    "pixel_size": Limit(
        "pixel size doubtful", 0.6, 1.6, "{:.1f} times what the file says", "If that is so, score and lesions mean nothing."
    ),
    "unlikeness": Limit(
        "unlike training",
        0,
        0.9,
        "{:.2f}; usual is up to 0.90",
        "The tissue does not look like that of the training slides: score and lesions mean little.",
    ),
}
"""What is usual of each figure, in the order of the words; how they were chosen: docs/benchmarks.md, "Verdicts"."""


MEANINGS = {limit.word: limit.meaning for limit in LIMITS.values()}
"""What follows from each word, one sentence; nothing of ``ok`` and ``no tissue``."""


@dataclass(frozen=True)
class Verdict:
    """What may be wrong with a scanned slide."""

    words: tuple[str, ...]
    """``ok`` alone, or some of ``no tissue``, ``incomplete``, ``blurred``, ``inked``, ``folded``, ``pixel size doubtful`` and
    ``unlike training``."""
    figures: dict[str, float | None] = field(default_factory=dict)
    """What each word rests on; None where it could not be measured. ``unread``, ``blurred``, ``inked``, ``folded``: shares of
    the tissue. ``pixel_size``: by the picture, as a multiple of what the file says. ``unlikeness``: median over patches, see
    :mod:`wsi_meta.models.features`."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found; what could not be measured was not."""
        return self.words == (OK,)

    @property
    def summary(self) -> str:
        """The words in one line."""
        return ", ".join(self.words)

    @property
    def summary_with_figures(self) -> str:
        """The words in one line, each with the figure that it rests on."""
        told = {limit.word: (limit.told, self.figures.get(name)) for name, limit in LIMITS.items()}
        parts = ((word, *told.get(word, ("", None))) for word in self.words)
        return ", ".join(word if value is None else f"{word} ({text.format(value)})" for word, text, value in parts)

    @property
    def explained(self) -> str:
        """The words with their figures, then what follows from them, in sentences."""
        meanings = [MEANINGS[word] for word in self.words if word in MEANINGS]
        return ". ".join([self.summary_with_figures, " ".join(meanings)]) if meanings else self.summary

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, as a store keeps them."""
        return {"words": list(self.words), "figures": self.figures}


def pronounce(figures: Mapping[str, float | None], *, tissue: bool = True) -> Verdict:
    """Return what figures come to; one that is None says nothing.

    A blurred picture looks as one of smaller pixels does, so nothing is said of its pixel size.

    Parameters
    ----------
    figures : by the names of :data:`LIMITS`
    tissue : whether there was a cell to scan
    """
    rounded = {name: None if (value := figures.get(name)) is None else float(f"{value:.3g}") for name in LIMITS}
    if (rounded["blurred"] or 0) > LIMITS["blurred"].most:
        rounded["pixel_size"] = None
    usual = {name: value is None or LIMITS[name].least <= value <= LIMITS[name].most for name, value in rounded.items()}
    words = (*(() if tissue else (NO_TISSUE,)), *(LIMITS[name].word for name in LIMITS if not usual[name]))
    return Verdict(words or (OK,), rounded)


def blurred_share(focus: NDArray[np.float32]) -> float | None:
    """Return the share of cells that are out of focus, of those that can tell; None of too few.

    Parameters
    ----------
    focus : as :func:`wsi_meta.quality.cell_measures.measure_cells` returns it; NaN where not scanned
    """
    measured = focus[np.isfinite(focus)]
    return float((measured < BLURRED).mean()) if len(measured) >= FEWEST_CELLS else None


def folded_share(darkness: NDArray[np.float32]) -> float | None:
    """Return the share of cells that are as dark as two layers of tissue; None of too few.

    Parameters
    ----------
    darkness : as :func:`wsi_meta.quality.cell_measures.measure_cells` returns it; NaN where not scanned
    """
    measured = darkness[np.isfinite(darkness)]
    if len(measured) < FEWEST_CELLS:
        return None
    density = -np.log((256 - measured.astype(np.float64)) / 256)
    return float((density > FOLDED * np.quantile(density, DENSE_QUANTILE)).mean())
