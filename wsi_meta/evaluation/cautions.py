"""What is said of figures that mean less than they seem to: of patches that the model was made with, of what may be luck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wsi_meta.datasets.patches import Patches
from wsi_meta.evaluation.results import Evaluation
from wsi_meta.models.card import ModelCard
from wsi_meta.models.chance import CHANCE, worse_than_chance
from wsi_meta.models.known_patches import CALIBRATED_ON

__all__ = ["LEAKS", "UNKNOWN", "cautions_of", "leaks_of"]

LEAKS = {
    "train": "The model was trained on {}. The figures show how well it remembers them, not how well it "
    "works on other patches.",
    "valid": "The model's best epoch was chosen on {}, so the figures are slightly too good. "
    "Patches that it never saw give unbiased figures.",
    CALIBRATED_ON: "The model was calibrated on {}, so its probabilities and thresholds fit them better than other patches.",
}
"""What is said of figures on patches that the model was made with, by what they were for."""
UNKNOWN = "It is not known which patches {} was trained on: where those that it is judged by are among them, figures flatter."
"""What is said where weights may have seen any patch."""
UNTOLD = "unknown"
"""What this stands under."""


def cautions_of(card: ModelCard, patches: Patches, evaluation: Evaluation) -> list[str]:
    """Return a sentence where the model is no better than chance, and those of :func:`leaks_of`."""
    worse = worse_than_chance(evaluation.auc, patches.labels)
    told = [f"The model is {worse}: labels 0 and 1 are probably exchanged."] if worse else []
    if not worse and evaluation.auc <= CHANCE:
        told = [f"The model is no better than chance (AUC {evaluation.auc:.2f} on {evaluation.n:,} patches)."]
    leaks = leaks_of(card, patches, evaluation)
    flattered = ("valid", CALIBRATED_ON, UNTOLD) if worse else ()  # no figure is too good then
    return told + [sentence for name, sentence in leaks.items() if name not in flattered]


def leaks_of(card: ModelCard, patches: Patches, evaluation: Evaluation) -> dict[str, str]:
    """Return a sentence for each use of the patches in making the model, with how many of them, by what they were for.

    They are told by their pixels. A file that does not say which patches those were may hold a digest of them all: by that the
    same ones in the same order are told, and where there is none but of names and labels, by these. Where it does not say
    all that they were, nor that they are just these, they may be among them.
    """
    now, known, told = replace(patches, contents=evaluation.contents).summary(), evaluation.known_patches or {}, {}
    for name, part in (dict.fromkeys(known) | card.training).items():
        which = None
        if name in known:
            which = f"{known[name]:,} of these {len(patches):,} patches" if known[name] else None
        elif isinstance(part, dict) and "sha256" in part:
            which = _which(part, now)
        if which is not None:
            told[name] = LEAKS.get(name, f"The model was made with {{}} ({name}).").replace("{}", which)
    if not evaluation.all_patches_known and ("train" in known or "train" not in told):
        init = card.training.get("init") if card.training.get("init_known") is False else None
        told[UNTOLD] = UNKNOWN.format("the model" if init is None else f"{init}, which the model began with,")
    return told


def _which(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return in words which patches both are; None where they are others, or not seen to be the same."""
    if "pixels" in before and "pixels" in now:
        return "exactly these patches" if before["pixels"] == now["pixels"] else None
    return "patches of the same names and labels" if before["sha256"] == now["sha256"] else None
