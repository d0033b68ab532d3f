"""Figures of merit of tumor probabilities, and their confidence intervals.

Every figure has one implementation, with a weight for each patch. With weights of 1 it is the figure itself; with the counts of
a bootstrap resample it is the figure of that resample. Patches are sorted once; a resample only changes the weights. Many
resamples are computed at once, as rows of weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.evaluation.roc import NO_SPREAD, called_from_the_top

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ECE_BINS",
    "Bins",
    "auc_of",
    "bootstrap_intervals",
    "figures_of",
    "losses_of",
    "reliability",
    "resampled_figures",
]

ECE_BINS = 15
"""Number of equal bins of the probability of tumor, as in Guo et al. 2017."""
WEIGHTS_AT_ONCE = 1_000_000
"""Weights of resamples that are held in memory at a time: 8 MB, and several times as much for sums over them."""


@dataclass(frozen=True)
class Bins:
    """Patches binned by their probability of tumor; arrays float64 (:data:`ECE_BINS`,). Means of an empty bin are NaN."""

    weight: NDArray[np.float64]
    """Summed weight of the patches in each bin."""
    probability: NDArray[np.float64]
    """Their mean probability."""
    share: NDArray[np.float64]
    """The share of tumor among them."""

    @property
    def error(self) -> float:
        """Expected calibration error: the mean of |probability - share| over the bins, weighted by their patches."""
        gaps = np.where(self.weight > 0, np.abs(self.probability - self.share), 0)
        return float((gaps * self.weight).sum() / self.weight.sum())


def figures_of(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    threshold: float = 0.5,
    weights: NDArray[np.number[Any]] | None = None,
    *,
    log_odds: NDArray[np.float64] | None = None,
) -> dict[str, float]:
    """Return all figures of some patches.

    For ``accuracy``, ``sensitivity``, ``specificity`` and ``f1`` a probability of at least 0.5 means tumor; for the same names
    with ``_at_threshold``, at least `threshold`. ``auc`` is the area under the ROC curve, half a point for ties;
    ``average_precision`` the sum of precision times gain in recall, without interpolation; both as scikit-learn has them.
    ``log_loss`` is natural, ``brier`` the mean squared error of the probability (Brier 1950).
    ``ece`` is the expected calibration error (Naeini et al. 2015, Guo et al. 2017) of the probability of tumor, not of
    the more probable class: over 15 equal bins of it, the weighted mean of |mean probability - share of tumor|. It is biased
    upwards by chance (Bröcker 2012; Kumar, Liang & Ma 2019): :attr:`.Evaluation.ece_noise`.

    Parameters
    ----------
    probabilities : float (n,), of tumor, 0 to 1
    labels : int (n,), 1 tumor, 0 normal
    threshold : operating point, which must have been chosen on other patches
    weights : (n,) at least 0; None counts each patch once
    log_odds : (n,), of the probabilities before they were rounded to float32, which has no digits left near 1: patches are
        ranked and losses computed by them. None takes the probabilities, for losses at least float64's epsilon from 0 and 1

    Raises
    ------
    ValueError
        when a class is missing or its weights are 0.
    """
    ranking = _Ranking.of(probabilities, labels, threshold, log_odds)
    found = ranking.figures_in_order(_as_weights(weights, len(labels))[ranking.order])
    return {name: float(value) for name, value in found.items()} | {"ece": reliability(probabilities, labels, weights).error}


def auc_of(scores: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> float:
    """Return the area under the ROC curve, as :func:`figures_of` does, for scores of any scale; both classes must occur."""
    return float(_areas(*called_from_the_top(scores, labels))["auc"])


def bootstrap_intervals(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    threshold: float = 0.5,
    groups: NDArray[Any] | None = None,
    n: int = 1000,
    seed: int = 0,
    log_odds: NDArray[np.float64] | None = None,
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of every figure but ``ece``: the percentile bootstrap (Efron & Tibshirani 1993).

    Where all resamples give the same figure, the bootstrap knows no spread. Of accuracy, sensitivity and specificity of 0 or 1
    the interval is then the exact one for so many patches or groups (Clopper & Pearson 1934); other figures have none.

    Patches of one slide resemble each other, so drawing single patches gives intervals that are too narrow. Where slides are
    known, whole slides or patients are drawn; of few they are still too narrow (Cameron, Gelbach & Miller 2008): where two
    models do not differ, that of their difference leaves out 0 in 35 % of cases with 2 slides, 16 % with 3, 13 % with 6, 7 %
    with 10, 5 % with 20. ``ece`` has none, as chance adds to it. Resamples without both classes are left out.

    Parameters
    ----------
    probabilities, labels, threshold, log_odds : as :func:`figures_of`
    groups : (n patches,) the patient or slide of each patch; None draws patches
    n : number of resamples
    seed : of the random draws

    Returns
    -------
    dict from a figure's name to (low, high): of sensitivity where two groups or more hold tumor, of specificity where two hold
    normal patches, of others where both is so.
    """
    odds = None if log_odds is None else log_odds[None]
    found = resampled_figures(probabilities[None], labels, threshold, groups, n, seed, odds)
    drawn = np.arange(len(labels)) if groups is None else groups
    held = {"accuracy": drawn, "sensitivity": drawn[np.asarray(labels) == 1], "specificity": drawn[np.asarray(labels) == 0]}
    counts = {name: len(np.unique(of)) for name, of in held.items()}
    ends = {name: _ends(values[0], counts.get(name.removesuffix("_at_threshold"))) for name, values in found.items()}
    return {name: interval for name, interval in ends.items() if interval is not None}


def _ends(values: NDArray[np.float64], count: int | None) -> tuple[float, float] | None:
    """Return the percentiles of a figure's resamples; where all are the same, see :func:`bootstrap_intervals`.

    `count` is how many patches or groups a share is of; None of other figures.
    """
    low, high = np.percentile(values, (2.5, 97.5)).tolist()
    if high - low > NO_SPREAD:
        return low, high
    if count is None or round(low, 9) not in (0, 1):
        return None
    from scipy.stats import binomtest

    exact = binomtest(round(low * count), count).proportion_ci(0.95, method="exact")
    return float(exact.low), float(exact.high)


def resampled_figures(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    threshold: float = 0.5,
    groups: NDArray[Any] | None = None,
    n: int = 1000,
    seed: int = 0,
    log_odds: NDArray[np.float64] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Return every figure of several sets of probabilities in each resample of :func:`bootstrap_intervals`.

    All sets have the same resamples (which depend on `labels`, `groups`, `n` and `seed` alone), so that differences of their
    figures are paired.

    Parameters
    ----------
    probabilities, log_odds : float (sets, n patches)
    labels, threshold, groups, n, seed : as :func:`bootstrap_intervals`

    Returns
    -------
    dict from a figure's name to float64 (sets, resamples), for the figures that :func:`bootstrap_intervals` has.
    """
    _, member = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)
    normal, tumor = (len(np.unique(member[np.asarray(labels) == label])) > 1 for label in (0, 1))
    if not (normal or tumor):
        return {}
    odds = [None] * len(probabilities) if log_odds is None else log_odds
    rankings = [_Ranking.of(values, labels, threshold, of) for values, of in zip(probabilities, odds, strict=True)]
    found: list[list[dict[str, NDArray[np.float64]]]] = [
        [ranking.figures_in_order(drawn[:, ranking.order]) for ranking in rankings]
        for drawn in _resamples(labels, member, n, seed)
    ]
    needs = {"sensitivity": tumor, "specificity": normal}
    names = [name for name in found[0][0] if needs.get(name.removesuffix("_at_threshold"), tumor and normal)] if found else []
    return {name: np.hstack([[figures[name] for figures in chunk] for chunk in found]) for name in names}


def _resamples(labels: NDArray[np.integer[Any]], member: NDArray[np.intp], n: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Return the counts of the patches in each resample that has both classes, (resamples, n patches), some at a time.

    `member` is the number of each patch's group, (n patches,).
    """
    count = int(member.max()) + 1
    rng, at_once = np.random.default_rng(seed), max(1, WEIGHTS_AT_ONCE // len(labels))
    for start in range(0, n, at_once):
        draws = [rng.integers(count, size=count) for _ in range(min(at_once, n - start))]
        drawn = np.array([np.bincount(draw, minlength=count)[member] for draw in draws], np.float64)
        tumor = drawn @ (np.asarray(labels) == 1)
        drawn = drawn[(tumor > 0) & (tumor < drawn.sum(1))]
        if len(drawn):
            yield drawn


def losses_of(log_odds: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return the natural log loss of each patch, float64 (n,), from the log odds of tumor (n,), which may be of any size."""
    exact = np.asarray(log_odds, np.float64)
    return np.asarray(np.logaddexp(0, np.where(np.asarray(labels) == 1, -exact, exact)))


def reliability(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    weights: NDArray[np.number[Any]] | None = None,
) -> Bins:
    """Bin patches by their probability of tumor (a bin includes its upper edge); parameters as :func:`figures_of`."""
    exact, counts = np.asarray(probabilities, np.float64), _as_weights(weights, len(labels))
    bins = np.searchsorted(np.linspace(0, 1, ECE_BINS + 1)[1:-1], exact)
    weight, summed, tumor = (np.bincount(bins, counts * values, ECE_BINS).astype(np.float64) for values in (1.0, exact, labels))
    mean, share = (np.divide(of, weight, out=np.full(ECE_BINS, np.nan), where=weight > 0) for of in (summed, tumor))
    return Bins(weight, mean, share)


@dataclass(frozen=True)
class _Ranking:
    """Patches from the highest log odds to the lowest, with all that does not depend on their weights; arrays (n,)."""

    order: NDArray[np.intp]
    """Index of each in the caller's order."""
    probabilities: NDArray[np.float64]
    labels: NDArray[np.float64]
    losses: NDArray[np.float64]
    last: NDArray[np.intp]
    """Index of the last patch of each distinct log odds; (distinct ones,)."""
    called: dict[str, int]
    """Number of patches that are called tumor, by the ending of the figure's name."""

    @classmethod
    def of(cls, probabilities: NDArray[Any], labels: NDArray[Any], threshold: float, log_odds: NDArray[Any] | None) -> _Ranking:
        from scipy.special import logit

        exact, tiny = np.asarray(probabilities, np.float64), np.finfo(np.float64).eps
        scores, odds = (exact, logit(np.clip(exact, tiny, 1 - tiny))) if log_odds is None else (log_odds, log_odds)
        order = np.argsort(-scores, kind="stable")
        called = {"": int((probabilities >= 0.5).sum()), "_at_threshold": int((probabilities >= threshold).sum())}
        truth = np.asarray(labels)[order]
        last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
        return cls(order, exact[order], truth.astype(np.float64), losses_of(odds[order], truth), last, called)

    def figures_in_order(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return the figures but ``ece``, shape (...), with weights (..., n) in this ranking's order."""
        hits, alarms = _running_sum(weights * self.labels), _running_sum(weights * (1 - self.labels))
        tumor, normal = hits[..., -1], alarms[..., -1]
        if not ((tumor > 0) & (normal > 0)).all():
            raise ValueError("figures need patches of both classes")
        ends = np.append(0, self.last + 1)
        found = _areas(hits[..., ends], alarms[..., ends])
        for ending, k in self.called.items():
            decisions = _decisions(hits[..., k], alarms[..., k], tumor, normal)
            found |= {name + ending: value for name, value in decisions.items()}
        total = tumor + normal
        found["log_loss"] = weights @ self.losses / total
        found["brier"] = weights @ (self.probabilities - self.labels) ** 2 / total
        return found


def _running_sum(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of the first 0, 1, ... n values of the last axis."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1))
    np.cumsum(values, axis=-1, out=sums[..., 1:])
    return sums


def _areas(hits: NDArray[np.float64], alarms: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return areas under the curves, from the numbers (..., k) of true and false positives at each distinct probability."""
    found, called = hits[..., 1:], (hits + alarms)[..., 1:]
    precision = np.divide(found, called, out=np.zeros_like(called), where=called > 0)
    pairs = (np.diff(alarms) * (found + hits[..., :-1])).sum(-1) / 2
    return {
        "auc": pairs / (hits[..., -1] * alarms[..., -1]),
        "average_precision": (np.diff(hits) * precision).sum(-1) / hits[..., -1],
    }


def _decisions(
    hits: NDArray[np.float64], alarms: NDArray[np.float64], tumor: NDArray[np.float64], normal: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    return {
        "accuracy": (hits + normal - alarms) / (tumor + normal),
        "sensitivity": hits / tumor,
        "specificity": (normal - alarms) / normal,
        "f1": 2 * hits / (hits + alarms + tumor),
    }


def _as_weights(weights: NDArray[Any] | None, n: int) -> NDArray[np.float64]:
    return np.ones(n) if weights is None else np.asarray(weights, np.float64)
