"""Calibration: from logits to probabilities that match observed shares of tumor, and operating points on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.errors import OVER_0, DataError, number
from wsi_meta.evaluation.metrics import auc_of, figures_of
from wsi_meta.models.card import FITTED_TEMPERATURES, SMALLEST_THRESHOLD, Calibration

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["card_thresholds", "check_prior", "cross_fit", "fit_calibration", "operating_points", "validation_metrics"]


def check_prior(prior: float | None) -> float | None:
    """Return a prior as a plain number, or None; OptionsError where it is no share of tumor."""
    most = np.nextafter(1, 0)
    return None if prior is None else number("prior", prior, "a share of tumor between 0 and 1", least=OVER_0, most=most)


def fit_calibration(logits: NDArray[np.float32], labels: NDArray[np.uint8], *, prior: float | None = None) -> Calibration:
    """Fit temperature and bias by maximum likelihood, so that 0.5 is the fitted decision.

    Platt scaling with Platt's targets (Platt 1999: (N+ + 1) / (N+ + 2) and 1 / (N- + 2), which keep the fit finite where the
    classes do not overlap).

    Parameters
    ----------
    logits : float (n,), before calibration
    labels : (n,), 1 tumor, 0 normal; both must occur
    prior : share of tumor to expect where the model is used; None: that of `labels`. The bias moves by the difference of
        the log odds (Saerens et al. 2002).

    Raises
    ------
    DataError
        when there is only one class, or the prior is no share.
    """
    from scipy.optimize import minimize

    tumor = labels.astype(bool)
    positive, negative = int(tumor.sum()), int((~tumor).sum())
    if not positive or not negative:
        raise DataError(f"calibration: {positive} tumor and {negative} normal patches; expected both classes")
    prior = check_prior(prior)
    target = np.where(tumor, (positive + 1) / (positive + 2), 1 / (negative + 2))
    values = logits.astype(np.float64)

    def negative_likelihood(fit: NDArray[np.float64]) -> float:
        shown = values * np.exp(-fit[0]) + fit[1]
        return float(np.mean(np.logaddexp(0, shown) - target * shown))

    bounds = [np.log(FITTED_TEMPERATURES), (None, None)]
    best = minimize(negative_likelihood, np.zeros(2), method="L-BFGS-B", bounds=bounds).x
    expected = 0.0 if prior is None else np.log(prior / (1 - prior)) - np.log(positive / negative)
    return Calibration(temperature=float(np.exp(best[0])), bias=float(best[1] + expected))


def operating_points(probabilities: NDArray[np.float32], labels: NDArray[np.uint8]) -> dict[str, float]:
    """Choose thresholds on calibrated probabilities; a cell counts as tumor where its probability is at or over one.

    Returns
    -------
    dict with ``default`` (highest accuracy), ``sensitivity_95`` and ``sensitivity_99`` (the highest threshold that still finds
    this share of tumor), ``specificity_99`` (the lowest that calls at most 1 % of normal patches tumor).
    """
    tumor = labels.astype(bool)
    found, false = np.sort(probabilities[tumor]), np.sort(probabilities[~tumor])
    points = {"default": _most_accurate(found, false)}
    for share in (0.95, 0.99):
        points[f"sensitivity_{share:.0%}".rstrip("%")] = float(found[int(np.floor((1 - share) * len(found) + 1e-9))])
    highest = false[max(0, int(np.ceil(0.99 * len(false) - 1e-9)) - 1)]
    points["specificity_99"] = float(np.nextafter(highest, np.float32(2)))
    return points


def card_thresholds(probabilities: NDArray[np.float32], labels: NDArray[np.uint8]) -> dict[str, float]:
    """Return the operating points as a card may hold them: over 0, and 1 where only a higher one would fit its name."""
    return {name: min(max(point, SMALLEST_THRESHOLD), 1.0) for name, point in operating_points(probabilities, labels).items()}


def cross_fit(
    logits: NDArray[np.float32],
    labels: NDArray[np.uint8],
    *,
    seed: int = 0,
    fit: Callable[[NDArray[np.float32], NDArray[np.uint8]], Calibration] = fit_calibration,
    choose: Callable[[NDArray[np.float32], NDArray[np.uint8]], dict[str, float]] = operating_points,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Calibrate each half of the patches on the other half, so that figures are not of the patches that were fitted.

    Parameters
    ----------
    logits, labels : as for :func:`fit_calibration`
    seed : of the random halves; each class is halved
    fit, choose : fit a calibration, and choose thresholds, on one half

    Returns
    -------
    probabilities : float32 (n,)
    called : bool (n,), the decision at the default threshold of the other half
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    probabilities, called = np.empty(len(labels), np.float32), np.empty(len(labels), bool)
    for fitted, judged in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        calibration = fit(logits[fitted], labels[fitted])
        threshold = choose(calibration.to_probability(logits[fitted]), labels[fitted])["default"]
        probabilities[judged] = calibration.to_probability(logits[judged])
        called[judged] = probabilities[judged] >= threshold
    return probabilities, called


def validation_metrics(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> dict[str, float]:
    """Return the figures that a card holds, each half of the patches calibrated on the other (see :func:`cross_fit`)."""
    probabilities, called = cross_fit(logits, labels)
    figures = figures_of(probabilities, labels)
    kept = ("accuracy", "sensitivity", "specificity", "log_loss", "brier", "ece")
    own = {"n": len(labels), "auc": auc_of(logits, labels), "accuracy_at_threshold": float((called == labels).mean())}
    return own | {name: figures[name] for name in kept}


def _most_accurate(found: NDArray[np.float32], false: NDArray[np.float32]) -> float:
    """Return the threshold of highest accuracy: of the best gaps between probabilities, the middle that is nearest to 0.5."""
    edges = np.unique(np.concatenate([found, false, np.array([0, 1], np.float32)]))
    low, high = edges[:-1], edges[1:]
    middles = low + (high - low) / 2
    middles = np.where(middles > low, middles, high)  # there is no float32 between neighbouring ones
    right = len(found) - np.searchsorted(found, middles) + np.searchsorted(false, middles)
    best = middles[right == right.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])
