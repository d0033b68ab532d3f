"""Whether a model tells tumor from normal at all: what is refused, and what is warned of."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_meta.errors import ModelFileError
from wsi_meta.models.card import ModelCard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CHANCE", "TRAIN_AGAIN", "check_fitted", "warn_of_useless", "worse_than_chance"]

logger = logging.getLogger(__name__)

CHANCE = 0.5
"""Area under the curve of what tells nothing."""
DEVIATIONS = 3
"""How many standard deviations below chance are no luck."""
TRAIN_AGAIN = "its maps may mean nothing; evaluate it on more patches, check its labels or train it again"
"""What to do about a model that maps are made with."""


def worse_than_chance(auc: float, labels: NDArray[np.uint8]) -> str:
    """Return in words that an AUC on patches with these labels, both of them, is below chance by more than luck explains.

    It is empty where luck explains it. The standard deviation of the AUC of a model that tells nothing is that of the
    Mann-Whitney statistic, divided by the number of pairs (Mann & Whitney 1947; Hanley & McNeil 1982): mostly that of the rarer
    class.
    """
    n, tumor = len(labels), int(labels.sum())
    deviation = math.sqrt((n + 1) / (12 * tumor * (n - tumor)))
    return f"worse than chance (AUC {auc:.2f} on {n:,} patches)" if auc < CHANCE - DEVIATIONS * deviation else ""


def check_fitted(card: ModelCard, labels: NDArray[np.uint8], path: Path, remedy: str) -> None:
    """Check what was fitted and measured on patches; warn as :func:`warn_of_useless`.

    Parameters
    ----------
    card : with these figures
    labels : of the patches
    path : of the model, for messages
    remedy : what to do about a model that is worse than chance

    Raises
    ------
    ModelFileError
        when the model tells tumor from normal worse than chance.
    """
    if worse := worse_than_chance(card.metrics["auc"], labels):
        raise ModelFileError(f"{path}: tells tumor from normal {worse}; {remedy}")
    warn_of_useless(card, path, f"it may be luck, so try more patches of each class first; {remedy}")


def warn_of_useless(card: ModelCard, path: Path, remedy: str) -> None:
    """Warn of a model that by its card is no better than chance, and of a temperature at its limit.

    Parameters
    ----------
    card, path, remedy : as for :func:`check_fitted`; a card may be without figures
    """
    auc, n = (card.metrics.get(name) for name in ("auc", "n"))
    told = "" if auc is None else f" (AUC {auc:.2f}{'' if n is None else f' on {n:,} patches'})"
    if auc is not None and auc <= CHANCE:
        logger.warning("%s: tells tumor from normal no better than chance%s; %s", path, told, remedy)
    if card.calibration.at_limit:
        why, temperature = "its logits are far larger or smaller than usual, or tell nothing", card.calibration.temperature
        logger.warning("%s: temperature %.2g, the limit: probabilities fit badly; %s%s", path, temperature, why, told)
