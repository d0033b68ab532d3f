"""The sentences of an evaluation's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.datasets.patches import Patches
from wsi_meta.models.dihedral import count_views
from wsi_meta.words import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_meta.evaluation.results import Evaluation, Subject
    from wsi_meta.evaluation.robustness import Change, Robustness
    from wsi_meta.models.model import Model

__all__ = [
    "cluster_rows",
    "data_facts",
    "describe_cases",
    "describe_losses",
    "explain_intervals",
    "model_facts",
    "rows",
    "shift_rows",
    "summarise",
    "tiles",
    "verdict",
]

AVERAGED_VIEWS = {1: "none", 2: "two of each patch", 4: "four of each patch", 8: "eight of each patch"}
WRONG = ("missed tumor", "false alarm")
"""Verdicts on patches that were called wrongly."""
FIGURES = {
    "auc": ("AUC", "how often a tumor patch is given a higher probability than a normal one"),
    "average_precision": ("Average precision", "precision, averaged over the tumor patches found one after the other"),
    "accuracy": ("Accuracy", "patches whose class is called correctly"),
    "sensitivity": ("Sensitivity", "tumor patches that are called tumor"),
    "specificity": ("Specificity", "normal patches that are called normal"),
    "f1": ("F1", "harmonic mean of precision and sensitivity"),
    "log_loss": ("Log loss", "mean cross-entropy, natural logarithm; 0.693 is chance, 0 is perfect"),
    "brier": ("Brier score", "mean squared error of the probability; 0 is perfect"),
    "ece": (
        "Calibration error",
        "expected calibration error: mean |probability - share of tumor| over 15 equal bins, by patches",
    ),
}
TILES = ("auc", "average_precision", "accuracy_at_threshold", "sensitivity_at_threshold", "specificity_at_threshold", "ece")
FEW_EPOCHS = 3
"""Of fewer epochs no course can be seen."""
LASTING = 2
"""Epochs without a lower loss that are more than chance."""
FEW = 10
"""Of fewer slides the intervals are clearly too narrow, see :func:`.bootstrap_intervals`."""


def describe_losses(losses: dict[str, list[Any]]) -> str:
    """Describe how training went, from its losses as :func:`wsi_meta.evaluation.results.read_losses` returns them."""
    training, validation, epochs = losses["train_loss"], losses["valid_loss"], [int(epoch) for epoch in losses["epoch"]]
    heads = losses["stage"].count("head")
    words = (
        f"{epochs[-1]} epoch{'s' * (epochs[-1] > 1)}"
        + (f", the first {heads} with the new layers only" if heads else "")
        + ". "
    )
    if len(epochs) < FEW_EPOCHS:
        return words + "That is too few to tell whether the network began to memorise its patches."
    lowest = validation.index(min(validation))
    if lowest == len(epochs) - 1:
        return words + "The validation loss was at its lowest at the end: there is no sign of overfitting."
    if len(epochs) - 1 - lowest < LASTING:
        return words + f"The validation loss was lowest after epoch {epochs[lowest]}: too few epochs after it to tell more."
    if training[-1] < training[lowest]:
        return words + (
            f"The validation loss was lowest after epoch {epochs[lowest]} and rose while the training loss kept falling: "
            "after that the network memorised its patches."
        )
    return (
        words + f"The validation loss was lowest after epoch {epochs[lowest]}; the training loss did not fall further either."
    )


def summarise(labels: NDArray[np.uint8], evaluation: Evaluation) -> list[str]:
    """Return the result in two sentences for a person."""
    called = evaluation.probabilities >= evaluation.threshold
    tumor, normal = int(labels.sum()), int((labels == 0).sum())
    missed, alarms = int((~called[labels == 1]).sum()), int(called[labels == 0].sum())
    interval = _interval(evaluation, "auc")
    ranking = (
        "Shown a tumor patch and a normal one, the model gives the tumor patch the higher probability "
        f"{_percent(evaluation.auc)} of the time (AUC {evaluation.auc:.3f}{f', 95 % interval {interval}' if interval else ''})."
    )
    decisions = (
        f"At its threshold of {evaluation.threshold:.3g} it misses {missed:,} of {tumor:,} tumor patches "
        f"({_percent(missed / tumor)}) and calls {alarms:,} of {normal:,} normal patches tumor ({_percent(alarms / normal)}). "
        f"Its probabilities are off by {100 * evaluation.ece:.1f} percentage points on average; on so many patches a perfectly "
        f"calibrated model would show {100 * evaluation.ece_noise:.1f} by chance."
    )
    return [ranking, decisions]


def explain_intervals(evaluation: Evaluation, patches: Patches) -> str:
    """Describe how the intervals of an evaluation of `patches` were computed."""
    if not evaluation.intervals:
        return "Without intervals: fewer than two patches or slides hold tumor, and fewer than two normal tissue."
    if (slides := patches.slides) is None or (patients := patches.groups) is None:
        known = f"bootstrap over {len(patches):,} patches; by slide, which is not known here, they would be wider."
        return f"Intervals: 95 %, {known}{_beyond_the_bootstrap(evaluation)}"
    count, of_slides = len(np.unique(patients)), len(np.unique(slides))
    what = f"{count:,} slides" if count == of_slides else f"{count:,} patients, of whom {of_slides:,} slides are"
    few = "" if count >= FEW else f" With fewer than about {FEW} they are too narrow (Cameron, Gelbach & Miller 2008)."
    return f"Intervals: 95 %, bootstrap over {what}.{few}{_beyond_the_bootstrap(evaluation)}"


def _beyond_the_bootstrap(evaluation: Evaluation) -> str:
    """Say which figures have another interval, or none, where some do."""
    shares = [evaluation.accuracy, evaluation.sensitivity_at_threshold, evaluation.specificity_at_threshold]
    exact = " Of a share of 0 or 1 it is exact (Clopper & Pearson 1934)." if {0, 1} & set(shares) else ""
    told = " Figures without one: fewer than two of them hold a class that it takes, or all resamples agree."
    return exact + (told if "auc" not in (evaluation.intervals or {}) else "")


def verdict(label: int, *, called: bool) -> str:
    """Name the outcome of a patch."""
    return {(1, False): WRONG[0], (0, True): WRONG[1], (1, True): "tumor, found", (0, False): "normal, left alone"}[
        label, called
    ]


def describe_cases(verdicts: Sequence[str]) -> str:
    """Say how many of the patches of the highest loss, by their :func:`verdict`, were called wrongly."""
    shown, wrong = len(verdicts), sum(verdict in WRONG for verdict in verdicts)
    if wrong == shown:
        return f"The {counted(shown, 'patch', 'patches')} that the model was most wrong about, the worst first."
    called = f"{wrong} called wrongly, and {shown - wrong}" if wrong else "none called wrongly:"
    return f"The {counted(shown, 'patch', 'patches')} of the highest loss: {called} that the model was least sure of."


def tiles(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the main figures, with the position of their interval between 0 and 1 in percent."""
    found = []
    for name in TILES:
        value = getattr(evaluation, name)
        low, high = (evaluation.intervals or {}).get(name, (value, value))
        found.append(_row(evaluation, name) | {"left": round(100 * low, 2), "width": round(100 * (high - low), 2)})
    return found


def rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return all figures with value, interval and meaning; those at the threshold only where it is not 0.5."""
    ending = "_at_threshold"
    found = []
    for name in FIGURES:
        found.append(_row(evaluation, name))
        if hasattr(evaluation, name + ending) and evaluation.threshold != 0.5:
            found.append(_row(evaluation, name + ending))
    return found


def data_facts(subject: Subject, slides: NDArray[np.str_] | None) -> list[tuple[str, str]]:
    """Return the facts of the evaluated patches as terms and texts."""
    labels = subject.patches.labels
    tumor = int(labels.sum())
    return [
        ("folders", subject.data),
        ("split", subject.split),
        ("patches", f"{len(labels):,}"),
        ("class balance", f"{tumor:,} tumor ({_percent(tumor / len(labels))}), {len(labels) - tumor:,} normal"),
        (
            "slides",
            "not known" if slides is None else f"{len(set(slides.tolist()) - {''}):,}{' and unknown ones' * ('' in slides)}",
        ),
        ("averaged views", AVERAGED_VIEWS[count_views(subject.tta)]),
        ("fingerprint", subject.patches.fingerprint()[:12]),
    ]


def model_facts(model: Model) -> list[tuple[str, str]]:
    """Return the facts of the model's card as terms and texts."""
    card = model.card
    shown, calibration = card.preprocessing, card.calibration
    neutral = (calibration.temperature, calibration.bias) == (1, 0)
    return [
        ("file", model.path.name),
        ("hash", model.hash[:12]),
        ("network", f"{card.architecture}, {'also' if card.dense else 'not'} trained for dense mode"),
        ("sees", f"{shown.patch_px} px at {shown.mpp:g} µm per px; the label describes the centre {shown.label_px} px"),
        (
            "calibration",
            "none" if neutral else f"temperature {calibration.temperature:.4g}, bias {calibration.bias:.4g}",
        ),
        ("thresholds", _in_words(card.thresholds)),
        *((name.replace("_", " "), _in_words(value)) for name, value in card.training.items()),
        ("then measured", _in_words(card.metrics)),
        ("libraries", _in_words(card.versions)),
    ]


def shift_rows(robustness: Robustness) -> list[dict[str, Any]]:
    """Return the figures of each shift, the worst first, above them the unshifted ones and their mean; see :func:`_cell`."""
    unshifted = {
        "name": "",
        "words": "unshifted",
        "cells": [{"value": _shown(name, value), "change": "", "effect": ""} for name, value in robustness.unshifted.items()],
    }
    found = [
        {
            "name": shift.name,
            "words": shift.words,
            "cells": [
                _cell(name, figure, worse=name in shift.costs, better=name in shift.gains)
                for name, figure in shift.figures.items()
            ],
        }
        for shift in (robustness.mean, *robustness.shifts)
    ]
    return [unshifted, *found]


def cluster_rows(robustness: Robustness) -> list[dict[str, Any]]:
    """Return words, patches and figures of each cluster of stains, the lowest AUC first; no figures where it was left out."""
    return [
        {
            "words": cluster.words,
            "patches": f"{cluster.n:,}, {cluster.tumor:,} tumor",
            "cells": [
                _shown(name, cluster.figures[name]) if cluster.figures and name in cluster.figures else ""
                for name in robustness.unshifted
            ],
            "interval": "" if cluster.auc_interval is None else "{:.3f} to {:.3f}".format(*cluster.auc_interval),
        }
        for cluster in robustness.clusters
    ]


def _cell(name: str, figure: Change, *, worse: bool, better: bool) -> dict[str, str]:
    """Return value, change and its interval as texts, and whether that is certainly worse or better."""
    scale, digits = (1, 3) if name == "auc" else (100, 1)
    change, *ends = (f"{round(scale * value, digits) + 0.0:+.{digits}f}" for value in (figure.change, *(figure.interval or ())))
    if len(set(ends)) == 1:  # by as much in every resample, or ends that are equal but for rounding
        ends = [f"{ends[0]} ± {10.0**-digits / 2:.{digits + 1}f}"]
    return {
        "value": _shown(name, figure.value),
        "change": change,
        "interval": " to ".join(ends) or ("" if name == "ece" else "no interval"),
        "effect": "worse" if worse else "better" if better else "",
    }


def _shown(name: str, value: float) -> str:
    """Return an AUC with three decimals, a share in percent."""
    return f"{value:.3f}" if name == "auc" else _percent(value)


def _row(evaluation: Evaluation, name: str) -> dict[str, Any]:
    title, words = FIGURES[name.removesuffix("_at_threshold")]
    at = f" at {evaluation.threshold:.3g}" if name.endswith("_at_threshold") and evaluation.threshold != 0.5 else ""
    return {
        "title": title + at,
        "value": f"{getattr(evaluation, name):.3f}",
        "interval": _interval(evaluation, name),
        "words": words + (f"; {evaluation.ece_noise:.3f} by chance" if name == "ece" else ""),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _interval(evaluation: Evaluation, name: str) -> str:
    if name not in (evaluation.intervals or {}):
        return ""
    low, high = (evaluation.intervals or {})[name]
    return f"{low:.3f} to {high:.3f}"


def _in_words(value: Any) -> str:
    """Return any value of the card as text; of a hash, the first twelve digits."""
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_in_words(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value)) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text[:12] if len(text) == 64 else text
