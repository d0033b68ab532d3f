"""Area under the ROC curve of slides, with DeLong's interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["delong"]

Z_95 = 1.959963984540054
"""97.5th percentile of the standard normal distribution."""


def delong(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> tuple[float, tuple[float, float] | None]:
    """Give the AUC and its 95 % interval by DeLong, DeLong & Clarke-Pearson 1988 (Biometrics 44:837-845).

    The variance comes from how each slide ranks among those of the other class, computed from midranks as Sun & Xu 2014
    (IEEE Signal Processing Letters 21(11):1389-1393) do. The interval is normal, cut at 0 and 1; at an AUC of exactly 0 or 1
    the method knows no variance and the interval is that one point, too sure of itself.

    Parameters
    ----------
    scores : float (n,), higher is more tumor; ties count half
    labels : bool (n,), True for tumor

    Returns
    -------
    the AUC, and (low, high), or None where a class has only one slide.

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
    above = (ranks[labels] - rankdata(tumor)) / len(normal)  # share of normal slides under each tumor slide
    below = 1 - (ranks[~labels] - rankdata(normal)) / len(tumor)  # share of tumor slides over each normal slide
    auc = float(above.mean())
    if min(len(tumor), len(normal)) < 2:
        return auc, None
    deviation = float(np.sqrt(above.var(ddof=1) / len(tumor) + below.var(ddof=1) / len(normal)))
    return auc, (max(0.0, auc - Z_95 * deviation), min(1.0, auc + Z_95 * deviation))
