"""Figures of merit of tumor probabilities, and their confidence intervals.

Every figure has one implementation, with a weight for each patch. With weights of 1 it is the figure itself; with the counts of
a bootstrap resample it is the figure of that resample. Patches are sorted once; a resample only changes the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ECE_BINS", "Bins", "auc_of", "bootstrap_intervals", "delong", "figures_of", "losses_of", "reliability"]

ECE_BINS = 15
"""Number of equal bins of the probability of tumor, as in Guo et al. 2017."""
Z_95 = 1.959963984540054
"""97.5th percentile of the standard normal distribution."""


@dataclass(frozen=True)
class Bins:
    """Patches binned by their probability of tumor. Arrays float64 (:data:`ECE_BINS`,); the means of an empty bin are NaN."""

    weight: NDArray[np.float64]
    """Summed weight of the patches in each bin."""
    probability: NDArray[np.float64]
    """Their mean probability."""
    share: NDArray[np.float64]
    """The share of tumor among them."""

    @property
    def error(self) -> float:
        """Expected calibration error: the mean of |probability - share| over the bins, weighted by their patches."""
        filled = self.weight > 0
        gaps = np.abs(self.probability - self.share)[filled]
        return float(gaps @ self.weight[filled] / self.weight.sum())


def figures_of(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    threshold: float = 0.5,
    weights: NDArray[np.number[Any]] | None = None,
) -> dict[str, float]:
    """Return all figures of some patches.

    For ``accuracy``, ``sensitivity``, ``specificity`` and ``f1`` a probability of at least 0.5 means tumor; for the same names
    with ``_at_threshold``, at least `threshold`. ``auc`` is the area under the ROC curve, half a point for
    ties; ``average_precision`` the sum of precision times gain in recall, without interpolation; both as scikit-learn has them.
    ``log_loss`` is natural; ``brier`` the mean squared error of the probability (Brier 1950).
    ``ece`` is the expected calibration error (Naeini et al. 2015, Guo et al. 2017) of the probability of tumor, not of
    the more probable class: over 15 equal bins of it, the weighted mean of |mean probability - share of tumor|.

    Parameters
    ----------
    probabilities : float (n,), of tumor, 0 to 1
    labels : int (n,), 1 tumor, 0 normal
    threshold : operating point, which must have been chosen on other patches
    weights : (n,) at least 0; None counts each patch once

    Raises
    ------
    ValueError
        when a class is missing or its weights are 0.
    """
    return _Ranking.of(probabilities, labels, threshold).figures(_as_weights(weights, len(labels)))


def auc_of(scores: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> float:
    """Return the area under the ROC curve, as :func:`figures_of` does, for scores of any scale; both classes must occur."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ranked, tumor = np.asarray(scores, np.float64)[order], np.asarray(labels)[order] == 1
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits, alarms = (np.append(0.0, np.cumsum(called)[last].astype(np.float64)) for called in (tumor, ~tumor))
    return _areas(hits, alarms)["auc"]


def bootstrap_intervals(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    threshold: float = 0.5,
    groups: NDArray[Any] | None = None,
    n: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of every figure: the percentile bootstrap (Efron & Tibshirani 1993).

    Patches of one slide resemble each other, so drawing single patches gives intervals that are too narrow. Where slides are
    known, whole slides are drawn. Resamples without both classes are left out. The ``ece`` of a resample is biased upwards.

    Parameters
    ----------
    probabilities, labels, threshold : as :func:`figures_of`
    groups : (n patches,) the slide of each patch; None draws patches
    n : number of resamples
    seed : of the random draws

    Returns
    -------
    dict from a figure's name to (2.5th, 97.5th percentile); empty with one group, or where no resample has both classes.
    """
    _, member = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)
    count = int(member.max()) + 1
    if count == 1:
        return {}
    ranking = _Ranking.of(probabilities, labels, threshold)
    member = member.reshape(-1)[ranking.order]
    rng = np.random.default_rng(seed)
    found: list[dict[str, float]] = []
    for _ in range(n):
        drawn = np.bincount(rng.integers(count, size=count), minlength=count)[member].astype(np.float64)
        if 0 < drawn @ ranking.labels < drawn.sum():
            found.append(ranking.figures_in_order(drawn))
    if not found:
        return {}
    low, high = np.percentile([list(figures.values()) for figures in found], (2.5, 97.5), axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(found[0], low, high, strict=True)}


def losses_of(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return the natural log loss of each patch, float64 (n,); probabilities are limited to float64's epsilon from 0 and 1."""
    tiny = np.finfo(np.float64).eps
    of_truth = np.where(np.asarray(labels) == 1, probabilities, 1 - np.asarray(probabilities, np.float64))
    return np.asarray(-np.log(np.clip(of_truth, tiny, 1 - tiny)), np.float64)


def reliability(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    weights: NDArray[np.number[Any]] | None = None,
) -> Bins:
    """Bin patches by their probability of tumor (a bin includes its upper edge); parameters as :func:`figures_of`."""
    exact = np.asarray(probabilities, np.float64)
    return _fill_bins(_bin_of(exact), exact, np.asarray(labels, np.float64), _as_weights(weights, len(labels)))


@dataclass(frozen=True)
class _Ranking:
    """Patches from the highest probability to the lowest, with all that does not depend on their weights; arrays (n,)."""

    order: NDArray[np.intp]
    """Index of each in the caller's order."""
    probabilities: NDArray[np.float64]
    labels: NDArray[np.float64]
    losses: NDArray[np.float64]
    bins: NDArray[np.intp]
    last: NDArray[np.intp]
    """Index of the last patch of each distinct probability; (distinct probabilities,)."""
    called: dict[str, int]
    """Number of patches that are called tumor, by the ending of the figure's name."""

    @classmethod
    def of(cls, probabilities: NDArray[Any], labels: NDArray[Any], threshold: float) -> _Ranking:
        order = np.argsort(-probabilities, kind="stable")
        called = {"": int((probabilities >= 0.5).sum()), "_at_threshold": int((probabilities >= threshold).sum())}
        ranked = np.asarray(probabilities, np.float64)[order]
        truth = np.asarray(labels)[order]
        last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
        return cls(order, ranked, truth.astype(np.float64), losses_of(ranked, truth), _bin_of(ranked), last, called)

    def figures(self, weights: NDArray[np.float64]) -> dict[str, float]:
        """Return the figures with weights in the caller's order."""
        return self.figures_in_order(weights[self.order])

    def figures_in_order(self, weights: NDArray[np.float64]) -> dict[str, float]:
        """Return the figures with weights in this ranking's order."""
        hits = np.concatenate(([0.0], np.cumsum(weights * self.labels)))
        alarms = np.concatenate(([0.0], np.cumsum(weights * (1 - self.labels))))
        tumor, normal = hits[-1], alarms[-1]
        if not (tumor > 0 and normal > 0):
            raise ValueError("figures need patches of both classes")
        found = _areas(np.append(0.0, hits[self.last + 1]), np.append(0.0, alarms[self.last + 1]))
        for ending, k in self.called.items():
            found |= {name + ending: value for name, value in _decisions(hits[k], alarms[k], tumor, normal).items()}
        total = tumor + normal
        found["log_loss"] = float(weights @ self.losses / total)
        found["brier"] = float(weights @ (self.probabilities - self.labels) ** 2 / total)
        found["ece"] = _fill_bins(self.bins, self.probabilities, self.labels, weights).error
        return found


def _areas(hits: NDArray[np.float64], alarms: NDArray[np.float64]) -> dict[str, float]:
    """Return areas under the curves, from the numbers of true and false positives at each distinct probability."""
    new_hits, called = np.diff(hits), (hits + alarms)[1:]
    precision = np.divide(hits[1:], called, out=np.zeros_like(called), where=called > 0)
    return {
        "auc": float(np.diff(alarms) @ (hits[1:] + hits[:-1]) / 2 / (hits[-1] * alarms[-1])),
        "average_precision": float(new_hits @ precision / hits[-1]),
    }


def _decisions(hits: float, alarms: float, tumor: float, normal: float) -> dict[str, float]:
    return {
        "accuracy": float((hits + normal - alarms) / (tumor + normal)),
        "sensitivity": float(hits / tumor),
        "specificity": float((normal - alarms) / normal),
        "f1": float(2 * hits / (hits + alarms + tumor)),
    }


def _bin_of(probabilities: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.searchsorted(np.linspace(0, 1, ECE_BINS + 1)[1:-1], probabilities)


def _fill_bins(
    bins: NDArray[np.intp], probabilities: NDArray[np.float64], labels: NDArray[np.float64], weights: NDArray[np.float64]
) -> Bins:
    weight, summed, tumor = (
        np.bincount(bins, values, ECE_BINS).astype(np.float64)
        for values in (weights, weights * probabilities, weights * labels)
    )
    empty = np.full(ECE_BINS, np.nan)
    mean, share = (np.divide(total, weight, out=empty.copy(), where=weight > 0) for total in (summed, tumor))
    return Bins(weight, mean, share)


def _as_weights(weights: NDArray[Any] | None, n: int) -> NDArray[np.float64]:
    return np.ones(n) if weights is None else np.asarray(weights, np.float64)


def delong(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> tuple[float, tuple[float, float] | None]:
    """Return the AUC and its 95 % interval by DeLong, DeLong & Clarke-Pearson 1988 (Biometrics 44:837-845).

    The variance follows from the rank of each slide among those of the other class, computed from midranks as in Sun & Xu 2014
    (IEEE Signal Processing Letters 21(11):1389-1393). The interval is normal, limited to 0 and 1. At an AUC of exactly 0 or 1
    the method gives no variance: the interval is that one point, which is too narrow.

    Parameters
    ----------
    scores : float (n,), a higher one means tumor; ties count half
    labels : bool (n,), True for tumor

    Returns
    -------
    The AUC, and (low, high); None instead of the interval where a class has only one slide.

    Raises
    ------
    ValueError
        when a class is missing.
    """
    from scipy.stats import rankdata

    tumor, normal = scores[labels], scores[~labels]
    if not (len(tumor) and len(normal)):
        raise ValueError("an AUC needs slides of both classes")
    ranks = rankdata(scores)
    above = (ranks[labels] - rankdata(tumor)) / len(normal)  # share of normal slides below each tumor slide
    below = 1 - (ranks[~labels] - rankdata(normal)) / len(tumor)  # share of tumor slides above each normal slide
    auc = float(above.mean())
    if min(len(tumor), len(normal)) < 2:
        return auc, None
    deviation = float(np.sqrt(above.var(ddof=1) / len(tumor) + below.var(ddof=1) / len(normal)))
    return auc, (max(0.0, auc - Z_95 * deviation), min(1.0, auc + Z_95 * deviation))
