"""Whether a model tells tumor from normal at all: what is refused, and what is warned of."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from wsi_meta.errors import ModelFileError
from wsi_meta.models.card import ModelCard

__all__ = ["CHANCE", "TRAIN_AGAIN", "check_fitted", "warn_of_useless", "worse_than_chance"]

logger = logging.getLogger(__name__)

CHANCE = 0.5
"""Area under the curve of what tells nothing."""
TRAIN_AGAIN = "its maps mean nothing; check its labels and train it again"
"""What to do about a model that maps are made with."""


def worse_than_chance(auc: float, n: int, *, deviations: float = 1) -> str:
    """Return in words that an AUC on `n` patches is below chance by more than luck explains; empty where it is not.

    Parameters
    ----------
    deviations : how many standard deviations luck may reach, those of a model that tells nothing, with half of each class
    """
    lowest = CHANCE - deviations / math.sqrt(3 * n)
    return f"worse than chance (AUC {auc:.2f} on {n:,} patches)" if auc < lowest else ""


def check_fitted(card: ModelCard, path: Path, remedy: str) -> None:
    """Check what was fitted and measured on patches; warn as :func:`warn_of_useless`.

    Parameters
    ----------
    card : with these figures
    path : of the model, for messages
    remedy : what to do about a model that is worse than chance

    Raises
    ------
    ModelFileError
        when the model tells tumor from normal worse than chance.
    """
    if worse := worse_than_chance(card.metrics["auc"], int(card.metrics["n"])):
        raise ModelFileError(f"{path}: tells tumor from normal {worse}; {remedy}")
    warn_of_useless(card, path, remedy)


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
