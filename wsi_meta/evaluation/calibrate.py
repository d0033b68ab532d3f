"""Calibrating a model file again: which patches it is measured on, and the card that comes of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.datasets.batches import check_workers
from wsi_meta.datasets.layouts import Patches, choose_split, paths_of
from wsi_meta.errors import DataError, require
from wsi_meta.evaluation.calibration import card_thresholds, check_prior, fit_calibration, validation_metrics
from wsi_meta.evaluation.cautions import leaks_of
from wsi_meta.evaluation.evaluate import evaluate_patches
from wsi_meta.evaluation.model_parts import compare_int8, int8_metrics, look_at
from wsi_meta.files.locks import locked
from wsi_meta.inference.device import announce_torch
from wsi_meta.inference.options import InferenceOptions, fit_to_model, resolve_inference
from wsi_meta.inference.predictor import Predictor
from wsi_meta.inference.torch_settings import own_modes
from wsi_meta.models.card import ModelCard, read_card
from wsi_meta.models.chance import check_fitted
from wsi_meta.models.known_patches import CALIBRATED_ON, KnownPatches
from wsi_meta.models.model import Model, load_model, model_path, stored_weights, write_model
from wsi_meta.models.weights_file import check_model_name
from wsi_meta.outputs.checks import check_output, refuse_input
from wsi_meta.outputs.kept_files import MODEL
from wsi_meta.outputs.paths import as_path

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["calibrate", "check_calibration", "expecting", "fit_card", "known_when_fitted", "measuring_predictor"]

logger = logging.getLogger(__name__)

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
    asked, data = InferenceOptions(device, precision, batch_size), paths_of(data)  # refuses what does not exist
    workers, prior = check_workers(workers), check_prior(prior)
    patches = check_calibration(model, data, out, split=split, prior=prior, overwrite=overwrite)
    patches.check()
    announce_torch()
    loaded = load_model(model)
    predictor = measuring_predictor(loaded, asked)
    card, logits, patches = fit_card(predictor, patches, workers=workers, progress=progress)
    moved = expecting(prior, card, logits, patches)  # refuses a prior before more work
    found = compare_int8(replace(loaded, card=card), patches, workers=workers, progress=progress, device=predictor.device)
    card = replace(moved, metrics=moved.metrics | int8_metrics(found))
    seen = look_at(patches, loaded, workers=workers, progress=progress) or loaded.features
    with locked(Path(out)):
        check_output(out, overwrite=overwrite, replaces=MODEL)  # it took a while
        write_model(Path(out), stored_weights(loaded), card, seen, known_when_fitted(loaded, patches))
    return card


def measuring_predictor(model: Model, asked: InferenceOptions) -> Predictor:
    """Return what a model is measured with: a predictor for which ``auto`` is never int8, which is compared with it."""
    return Predictor.from_plan(model, resolve_inference(replace(fit_to_model(asked, model.card), int8_agrees=False)))


def known_when_fitted(model: Model, patches: Patches) -> KnownPatches | None:
    """Return the marks of the patches that a model's weights were made with, and of those that :func:`fit_card` read."""
    before = None if model.known_patches is None else model.known_patches.of_weights()
    return KnownPatches.of({CALIBRATED_ON: patches.contents}, before)


def fit_card(
    predictor: Predictor, patches: Patches, *, workers: int = 2, progress: bool = False, remedy: str = LIKE_ITS_OWN
) -> tuple[ModelCard, NDArray[np.float32], Patches]:
    """Fit a model to patches; warn where its weights were made with them.

    Returns its card with calibration, operating points and figures of these patches, their logits, (n,), and the patches with
    their contents.

    Parameters
    ----------
    predictor : of the model
    patches, workers, progress : as for :func:`calibrate`, and its errors
    remedy : as for :func:`wsi_meta.models.chance.check_fitted`
    """
    before, found = predictor.model.card, evaluate_patches(predictor, patches, workers=workers, progress=progress)
    patches, logits = replace(patches, contents=found.contents), found.logits
    card = replace(expecting(None, before, logits, patches), metrics=validation_metrics(logits, patches.labels))
    check_fitted(card, patches.labels, predictor.model.path, remedy)
    for name, told in leaks_of(before, patches, found).items():
        if name != CALIBRATED_ON:  # which it is no more
            logger.warning("%s", told)
    return card, logits, patches


def expecting(prior: float | None, card: ModelCard, logits: NDArray[np.float32], patches: Patches) -> ModelCard:
    """Return the card with the calibration and the operating points of a share of tumor; figures stay as they are.

    The points are chosen on the patches' own share, and moved with it: by each the same patches are tumor; DataError where
    too many probabilities become 0 or 1 for that. Other ways to compute the model are compared with a card of the patches' own
    share: where hardly any probability reaches 0.5, all agree.

    Parameters
    ----------
    prior : as for :func:`.fit_calibration`
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
    check_model_name(as_path("out", out))
    out = check_output(out, overwrite=overwrite, replaces=MODEL)
    refuse_input(out, "the model to calibrate", model_path(model))
    shown, patches = read_card(model_path(model)).preprocessing, choose_split(data, split=split)
    patches.check_mpp(shown.mpp)
    return patches
