"""The ROC curve of scores, and the interval of the area under it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NO_SPREAD", "called_from_the_top", "delong", "roc_points"]

NO_SPREAD = 1e-9
"""Differences up to it are roundings of 0: figures that every resample agrees on."""
Z_95 = 1.959963984540054
"""97.5th percentile of the standard normal distribution."""


def called_from_the_top(
    scores: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the numbers of true and of false positives at each distinct score, the highest first, and 0 before them.

    Parameters
    ----------
    scores : (n,), of any scale, a higher one means tumor
    labels : (n,), 1 or True for tumor
    """
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ranked, tumor = np.asarray(scores, np.float64)[order], np.asarray(labels)[order] == 1
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits, alarms = (np.append(0.0, np.cumsum(called)[last].astype(np.float64)) for called in (tumor, ~tumor))
    return hits, alarms


def roc_points(scores: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> list[tuple[float, float]]:
    """Return the corners of the ROC curve, a distinct score each: shares of normal and of tumor that are called tumor.

    They ascend from (0.0, 0.0) to (1.0, 1.0). Parameters are those of :func:`called_from_the_top`.
    """
    hits, alarms = called_from_the_top(scores, labels)
    return list(zip((alarms / alarms[-1]).tolist(), (hits / hits[-1]).tolist(), strict=True))


def delong(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> tuple[float, tuple[float, float] | None]:
    """Return the AUC and its 95 % interval by DeLong, DeLong & Clarke-Pearson 1988 (Biometrics 44:837-845).

    The variance follows from the rank of each slide among those of the other class, computed from midranks as in Sun & Xu 2014
    (IEEE Signal Processing Letters 21(11):1389-1393). The interval is normal, limited to 0 and 1. At an AUC of exactly 0 or 1
    the method gives no variance, and so no interval.

    Parameters
    ----------
    scores : float (n,), a higher one means tumor; ties count half
    labels : bool (n,), True for tumor

    Returns
    -------
    The AUC, and (low, high); None instead of the interval where a class has only one slide, or the variance is 0.

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
    return auc, (max(0.0, auc - Z_95 * deviation), min(1.0, auc + Z_95 * deviation)) if deviation > NO_SPREAD else None
