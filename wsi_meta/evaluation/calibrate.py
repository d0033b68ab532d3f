"""Calibration: from logits to probabilities that match observed shares of tumor, and operating points on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.datasets.layouts import Patches, choose_split
from wsi_meta.errors import DataError, OptionsError, require
from wsi_meta.evaluation.evaluate import evaluate_patches
from wsi_meta.evaluation.metrics import auc_of, figures_of
from wsi_meta.evaluation.model_parts import compare_int8, int8_metrics, look_at
from wsi_meta.files.locks import locked
from wsi_meta.inference.device import announce_torch
from wsi_meta.inference.options import InferenceOptions, fit_to_model, resolve_inference
from wsi_meta.inference.predictor import Predictor
from wsi_meta.inference.torch_settings import own_modes
from wsi_meta.models.card import FITTED_TEMPERATURES, SMALLEST_THRESHOLD, Calibration, ModelCard, read_card
from wsi_meta.models.chance import check_fitted
from wsi_meta.models.model import Model, check_model_name, load_model, model_path, save_model, stored_weights
from wsi_meta.outputs.checks import check_output, refuse_input
from wsi_meta.outputs.kept_files import MODEL

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "calibrate",
    "card_thresholds",
    "check_calibration",
    "check_prior",
    "cross_fit",
    "expecting",
    "fit_calibration",
    "fit_card",
    "measuring_predictor",
    "operating_points",
    "validation_metrics",
]

LIKE_ITS_OWN = "expected label 1 for tumor and 0 for normal, and patches such as it was trained on"
"""What to do about a model of ours that is worse than chance."""


@own_modes()
def calibrate(
    model: str | Path | None,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    split: str | None = None,
    prior: float | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 64,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = False,
) -> ModelCard:
    """Fit calibration and operating points of a model again, on patches from where it will be used. Weights do not change.

    From 200 patches on, the file also holds what they look like to the network (:mod:`wsi_meta.models.features`); of fewer,
    what it held before stays.

    Parameters
    ----------
    model : model file, ``default`` or None for the embedded one
    data : folders of labelled patches that the model was not trained on
    out : model file to write
    split : ``train``, ``valid`` or ``test``; None takes ``valid``, or the only one there is
    prior : share of tumor to expect where the model is used (a slide has far less than a balanced set of patches)
    device, precision, batch_size : see :class:`wsi_meta.inference.predictor.Predictor`
    workers : processes that decode patches; 0 decodes in this one
    overwrite : replace `out` if it exists
    progress : show a bar on stderr

    Returns
    -------
    The new card. Its metrics are of these patches, with their own share of tumor, each half calibrated on the other; the cells
    that its thresholds call tumor do not depend on `prior`.

    Raises
    ------
    DataError, ModelFileError, DeviceError, OptionsError, OutputExistsError, OutputPathError
    """
    asked = InferenceOptions(device, precision, batch_size)  # refuses what does not exist
    patches = check_calibration(model, data, out, split=split, prior=prior, overwrite=overwrite)
    patches.check()
    announce_torch()
    loaded = load_model(model)
    predictor = measuring_predictor(loaded, asked)
    card, logits = fit_card(predictor, patches, workers=workers, progress=progress)
    expecting(prior, card, logits, patches)  # refuses a prior before more work
    found = compare_int8(replace(loaded, card=card), patches, workers=workers, progress=progress, device=predictor.device)
    card = expecting(prior, replace(card, metrics=card.metrics | int8_metrics(found)), logits, patches)
    seen = look_at(patches, loaded, workers=workers, progress=progress) or loaded.features
    with locked(Path(out)):
        check_output(out, overwrite=overwrite, replaces=MODEL)  # it took a while
        save_model(out, stored_weights(loaded), card, seen, loaded.known_patches)
    return card


def measuring_predictor(model: Model, asked: InferenceOptions) -> Predictor:
    """Return what a model is measured with: a predictor for which ``auto`` is never int8, which is compared with it."""
    return Predictor.from_plan(model, resolve_inference(replace(fit_to_model(asked, model.card), int8_agrees=False)))


def fit_card(
    predictor: Predictor, patches: Patches, *, workers: int = 2, progress: bool = False, remedy: str = LIKE_ITS_OWN
) -> tuple[ModelCard, NDArray[np.float32]]:
    """Return a model's card with calibration, operating points and figures of these patches, and their logits, (n,).

    Parameters
    ----------
    predictor : of the model
    patches, workers, progress : as for :func:`calibrate`, and its errors
    remedy : as for :func:`wsi_meta.models.chance.check_fitted`
    """
    logits = evaluate_patches(predictor, patches, workers=workers, progress=progress).logits
    card = replace(expecting(None, predictor.model.card, logits, patches), metrics=validation_metrics(logits, patches.labels))
    check_fitted(card, predictor.model.path, remedy)
    return card, logits


def expecting(prior: float | None, card: ModelCard, logits: NDArray[np.float32], patches: Patches) -> ModelCard:
    """Return the card with the calibration and the operating points of a share of tumor; figures stay as they are.

    The points are chosen on the patches' own share, and moved with it: by each the same patches are tumor; DataError where
    too many probabilities become 0 or 1 for that. Other ways to compute the model are compared with a card of the patches' own
    share: where hardly any probability reaches 0.5, all agree.

    Parameters
    ----------
    prior : as for :func:`fit_calibration`
    logits : of the patches, (n,), before calibration
    """
    own = calibration = fit_calibration(logits, patches.labels)
    points = card_thresholds(own.to_probability(logits), patches.labels)
    if prior is not None:
        calibration = fit_calibration(logits, patches.labels, prior=prior)
        before = [own.to_probability(logits) >= point for point in points.values()]
        points = {name: own.moved(point, logits, calibration) for name, point in points.items()}
        if not np.array_equal(before, [calibration.to_probability(logits) >= point for point in points.values()]):
            told = "too many probabilities become 0 or 1 for thresholds that call the same patches tumor"
            raise DataError(f"calibration: prior {prior}: {told}; expected a share less near to 0 or 1")
    training = card.training | {"calibrated_on": patches.summary() | {"prior": prior}}
    return replace(card, calibration=calibration, thresholds=points, training=training)


def check_prior(prior: float | None) -> None:
    """Refuse a prior that is no share of tumor; OptionsError."""
    if prior is not None and not (isinstance(prior, float | np.floating) and 0 < prior < 1):
        raise OptionsError(f"prior {prior!r}; expected a share of tumor between 0 and 1")


def check_calibration(
    model: str | Path | None,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    split: str | None = None,
    prior: float | None = None,
    overwrite: bool = False,
) -> Patches:
    """Refuse what :func:`calibrate` would refuse before its work, by its errors, without importing torch, which takes seconds.

    Parameters
    ----------
    model, data, out, split, prior, overwrite : as for :func:`calibrate`

    Returns
    -------
    The patches to calibrate on.
    """
    require("train", "calibrating")
    check_prior(prior)
    check_model_name(Path(out))
    out = check_output(out, overwrite=overwrite, replaces=MODEL)
    refuse_input(out, "the model to calibrate", model_path(model))
    shown, patches = read_card(model_path(model)).preprocessing, choose_split(data, split=split)
    patches.check_mpp(shown.mpp)
    return patches


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
    check_prior(prior)
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
