"""What was evaluated, its figures, and how well another way to compute a model agrees with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from wsi_meta.annotations.tables import read_table
from wsi_meta.datasets.patches import Patches
from wsi_meta.errors import DataError
from wsi_meta.evaluation.metrics import auc_of, bootstrap_intervals, figures_of, reliability
from wsi_meta.evaluation.robustness import Robustness
from wsi_meta.models.card import Calibration, ModelCard
from wsi_meta.models.model import Model
from wsi_meta.words import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Agreement", "Evaluation", "Subject", "history_path", "read_losses", "read_rows"]

T = TypeVar("T")

LOSSES = ("epoch", "train_loss", "valid_loss")
"""Columns of a history that a report shows."""
CHANCE_DRAWS = 20
"""Draws of labels that :attr:`Evaluation.ece_noise` is the mean of."""
NOT_FIGURES = ("probabilities", "logits", "intervals", "robustness", "contents", "known_patches", "all_patches_known")
"""Fields of an :class:`Evaluation` that its dict holds otherwise, or not."""


@dataclass(frozen=True)
class Agreement:
    """How well another way to compute a model, dense mode or int8, agrees with the usual one on the same patches."""

    usual_auc: float
    other_auc: float
    mean_difference: float
    """Mean absolute difference of the calibrated probabilities."""
    rare_difference: float
    """The difference that one patch in a thousand exceeds."""
    same_decision: float
    """Share of patches on the same side of 0.5."""

    @property
    def holds(self) -> bool:
        """Whether the other way may be asked for: AUC within 0.004, the same decision on at least 97 %."""
        return abs(self.usual_auc - self.other_auc) <= 0.004 and self.same_decision >= 0.97

    def to_metrics(self, other: str) -> dict[str, float]:
        """Return the figures of the other way under the names that a card uses, which begin with ``<other>_``."""
        return {
            f"{other}_auc": self.other_auc,
            f"{other}_mean_difference": self.mean_difference,
            f"{other}_rare_difference": self.rare_difference,
            f"{other}_same_decision": self.same_decision,
        }

    @classmethod
    def of(
        cls, usual: NDArray[np.float32], other: NDArray[np.float32], labels: NDArray[np.uint8], calibration: Calibration
    ) -> Agreement:
        """Compare logits of the same patches, before calibration, shapes (n,), by what the calibration makes of them."""
        shown, others = calibration.to_probability(usual), calibration.to_probability(other)
        differences = np.abs(shown.astype(np.float64) - others)
        return cls(
            usual_auc=auc_of(usual, labels),
            other_auc=auc_of(other, labels),
            mean_difference=float(differences.mean()),
            rare_difference=float(np.quantile(differences, 0.999)),
            same_decision=float(((shown >= 0.5) == (others >= 0.5)).mean()),
        )


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model on one set of patches, as :func:`wsi_meta.evaluation.metrics.figures_of` defines them.

    A decision is tumor where the calibrated probability is at least 0.5; in the figures that end in ``_at_threshold``,
    at least `threshold`.
    """

    n: int
    auc: float
    average_precision: float
    accuracy: float
    sensitivity: float
    specificity: float
    f1: float
    threshold: float
    """The card's default operating point, which was not chosen on these patches."""
    accuracy_at_threshold: float
    sensitivity_at_threshold: float
    specificity_at_threshold: float
    f1_at_threshold: float
    log_loss: float
    brier: float
    ece: float
    """Expected calibration error of the probability of tumor, 15 equal bins. Chance adds to it: :attr:`ece_noise`."""
    probabilities: NDArray[np.float32]
    """Calibrated probability of each patch, in the order of the patches; shape (n,)."""
    logits: NDArray[np.float32]
    """Logit of each patch before calibration, with test-time averaging the mean over its views; shape (n,)."""
    intervals: dict[str, tuple[float, float]] | None = None
    """95 % bootstrap interval (low, high) of figures, see :func:`.bootstrap_intervals`; None where none were computed."""
    robustness: Robustness | None = None
    """The figures under shifts and by clusters of stains; None where these were not asked for."""
    contents: NDArray[np.uint8] | None = None
    """SHA-1 of each patch's pixels, as `Patches.contents` has them; None where they were not read."""
    known_patches: dict[str, int] | None = None
    """How many of the patches the model was made with, by what they were for (``train``, ``valid``, ``calibrated_on``); None
    where its file does not say."""
    all_patches_known: bool = True
    """Whether its file says all patches that it was made with; else others may be among them."""

    @classmethod
    def of(
        cls,
        logits: NDArray[np.float32],
        labels: NDArray[np.uint8],
        card: ModelCard,
        *,
        groups: NDArray[np.str_] | None = None,
        intervals: bool = False,
    ) -> Evaluation:
        """Return the figures of logits with a card's calibration and threshold.

        Parameters
        ----------
        logits, labels : shapes (n,)
        card : of the model
        groups : patient or slide of each patch, shape (n,), for a bootstrap over these; None for one over patches
        intervals : compute the bootstrap's intervals as well
        """
        probabilities, threshold = card.calibration.to_probability(logits), card.thresholds["default"]
        odds = card.calibration.to_log_odds(logits)
        found = bootstrap_intervals(probabilities, labels, threshold, groups, log_odds=odds) if intervals else None
        return cls(
            n=len(labels),
            threshold=threshold,
            **figures_of(probabilities, labels, threshold, log_odds=odds),
            probabilities=probabilities,
            logits=logits,
            intervals=found,
            robustness=None,
            contents=None,
            known_patches=None,
            all_patches_known=True,
        )

    @property
    def ece_noise(self) -> float:
        """The :attr:`ece` that these probabilities would show if they were perfectly calibrated; it falls with their number.

        The mean over some seeded draws of labels, each tumor with its probability (the consistency resampling of Bröcker &
        Smith 2007).
        """
        shown, rng = self.probabilities, np.random.default_rng(0)
        drawn = (reliability(shown, (rng.random(self.n) < shown).astype(np.uint8)).error for _ in range(CHANCE_DRAWS))
        return float(np.mean(list(drawn)))

    def to_dict(self) -> dict[str, Any]:
        """Return the figures without the patches' values: flat, an interval as ``<name>_ci``: [low, high].

        Where shifts were asked for, their figures stand under ``shifts``, as :meth:`.Robustness.to_dict` has them.
        """
        intervals = self.intervals or {}
        found: dict[str, Any] = {}
        for name, value in vars(self).items():
            if name not in NOT_FIGURES:
                found[name] = value
            if name in intervals:
                found[f"{name}_ci"] = list(intervals[name])
            if name == "ece":
                found["ece_noise"] = self.ece_noise
        if self.known_patches is not None:
            found["known_patches"] = self.known_patches
        if not self.all_patches_known:
            found["all_patches_known"] = False
        return found if self.robustness is None else found | {"shifts": self.robustness.to_dict()}

    def to_lines(self) -> dict[str, Any]:
        """Return what :meth:`to_dict` returns, for a person: the shifts as one sentence each."""
        return self.to_dict() if self.robustness is None else self.to_dict() | {"shifts": self.robustness.to_lines()}


@dataclass(frozen=True)
class Subject:
    """What was evaluated."""

    model: Model
    patches: Patches
    data: str
    """The folders, as the caller named them."""
    split: str
    tta: bool | int
    """Views of each patch that were averaged, as they were asked for."""
    losses: dict[str, list[Any]] | None
    """Losses of the model's training; None where there is no history of it beside the model file."""

    @classmethod
    def of(cls, model: Model, patches: Patches, *, data: str, split: str, tta: bool | int) -> Subject:
        """Return the subject with the history beside the model file; DataError when that cannot be read."""
        losses = read_losses(model.path)
        return cls(model, patches, data, split, tta, losses if losses and _are_of(losses, model.card) else None)


def _are_of(losses: dict[str, list[Any]], card: ModelCard) -> bool:
    """Tell whether losses are of a card's training, by the epoch that it holds; older cards know its number alone."""
    number = card.training.get("best_epoch")
    if number not in losses["epoch"]:
        return False
    best = losses["epoch"].index(number)
    known = card.training.get("best_losses")
    known = known if isinstance(known, dict) else {}
    return all(losses[name][best] == known.get(name, losses[name][best]) for name in ("train_loss", "valid_loss"))


def history_path(out: Path) -> Path:
    """Return the path of the history of the model file `out`."""
    return out.with_suffix(".history.csv")


def read_rows(
    out: Path, columns: Sequence[str], parse: Callable[[dict[str, str]], T], mend: str, *, optional: Sequence[str] = ()
) -> list[T]:
    """Return what `parse` makes of each row of a model file's history; DataError that says to `mend` it where it is none.

    It is read as :func:`wsi_meta.annotations.tables.read_table` reads the tables of users: a spreadsheet may have saved it.
    """
    path = history_path(out)
    try:
        table = read_table(path, columns, "epochs", optional=optional)
        if rows := [parse(dict(zip((*columns, *optional), row, strict=True))) for row in table]:
            return rows
        raise ValueError("no epoch in it")
    except ValueError as error:
        told = first_line(error).removeprefix(f"{path}: ")
        raise DataError(f"{path}: cannot be read as a training's history ({told}); {mend}") from error


def read_losses(out: Path) -> dict[str, list[Any]] | None:
    """Read the losses from the history beside the model file `out`; None where there is none.

    Returns
    -------
    dict of ``epoch``, ``train_loss``, ``valid_loss`` and ``stage`` (``all`` where there is no such column), each with a value
    for each row. Other columns are ignored.

    Raises
    ------
    DataError
        when the file is no such table.
    """
    if not history_path(out).exists():
        return None
    mend = "expected epoch, train_loss and valid_loss in each row; remove or restore it"
    rows = read_rows(out, LOSSES, _losses_of, mend, optional=("stage",))
    return {name: [row[name] for row in rows] for name in rows[0]}


def _losses_of(row: dict[str, str]) -> dict[str, Any]:
    losses = {name: float(row[name]) for name in LOSSES}
    if not all(map(isfinite, losses.values())):
        raise ValueError("a value that is not finite")
    return losses | {"stage": row["stage"] or "all"}
