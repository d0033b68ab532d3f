"""How good weights are on the validation patches, and the card that records it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wsi_meta.datasets.batches import read_batches
from wsi_meta.datasets.layouts import Patches
from wsi_meta.errors import ModelFileError, TrainingError
from wsi_meta.evaluation.calibration import card_thresholds, fit_calibration, validation_metrics
from wsi_meta.evaluation.evaluate import evaluate_patches
from wsi_meta.evaluation.model_parts import compare_int8, int8_metrics
from wsi_meta.evaluation.results import Agreement, Evaluation
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.card import RANGES, ModelCard, read_card
from wsi_meta.models.chance import CHANCE, worse_than_chance
from wsi_meta.models.equalise import fit_to_integers
from wsi_meta.models.features import MIN_PATCHES
from wsi_meta.models.model import Model, build_network, network_of
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.resnet import ResNet
from wsi_meta.models.weights import half_precision
from wsi_meta.progress import note
from wsi_meta.training.mosaics import compare_dense
from wsi_meta.versions import library_versions

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

__all__ = ["Validation", "warn_of_refusals"]

logger = logging.getLogger(__name__)

FITTED_ON = 512
"""Training patches by which weights are made for int8."""


@dataclass(frozen=True)
class Validation:
    """Measures weights on the validation patches, exactly as a model file would hold them."""

    patches: Patches
    """The validation split."""
    device: str
    """``cpu``, ``cuda`` or ``cuda:N``."""
    precision: str
    """``fp32`` or ``bf16``."""
    workers: int
    """Processes that decode patches."""
    progress: bool
    build_network: Callable[[], nn.Module] = build_network
    """Makes the network that the weights belong to."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """What the network is shown."""

    def logits(self, state: dict[str, torch.Tensor]) -> NDArray[np.float32]:
        """Return the logits of the patches, shape (n,), that the weights of a ``state_dict`` give.

        Raises
        ------
        TrainingError
            when a logit is not finite.
        """
        predictor = Predictor(self._model(state), device=self.device, precision=self.precision)
        try:
            return evaluate_patches(predictor, self.patches, workers=self.workers, progress=self.progress).logits
        except ModelFileError as error:
            raise TrainingError(
                "the weights grew until their logits were no numbers; lower --lr (the best epoch so far is kept)"
            ) from error

    def uncalibrated(self, logits: NDArray[np.float32]) -> Evaluation:
        """Return the figures of logits before calibration."""
        return Evaluation.of(logits, self.patches.labels, ModelCard(preprocessing=self.preprocessing))

    def calibrated(self, logits: NDArray[np.float32], *, tell: bool = False) -> Evaluation:
        """Return the figures of logits with a calibration fitted on these same patches, as the model file holds it.

        With `tell`, a warning says where they are no better than chance, or the fit ended at its limit; what is worse than
        chance is for :meth:`refuse_useless`.
        """
        card = self._fitted_card(logits)
        found = Evaluation.of(logits, self.patches.labels, card)
        tell = tell and not worse_than_chance(found.auc, self.patches.labels)
        if tell and found.auc <= CHANCE:
            told = "validation AUC %.3f: the model tells tumor from normal no better than chance; look at labels and recipe"
            logger.warning(told, found.auc)
        elif tell and card.calibration.at_limit:
            told = "the fitted temperature %.3g is at its limit: logits are far from what the validation patches show; %s"
            mend = "probabilities will be wrong; train with other settings, or validate on more patches"
            logger.warning(told, card.calibration.temperature, mend)
        return found

    def refuse_useless(self, out: Path, figures: Evaluation) -> None:
        """Raise a TrainingError for a trained model `out` whose figures are worse than chance; the file is kept."""
        if worse := worse_than_chance(figures.auc, self.patches.labels):
            told = "are the labels 0 and 1 exchanged? Mend them and train again; the file is kept"
            raise TrainingError(f"{out}: tells tumor from normal {worse}: {told}")

    def card(
        self, state: dict[str, torch.Tensor], logits: NDArray[np.float32], training: dict[str, Any], *, mosaics: bool
    ) -> ModelCard:
        """Return the card of a model: calibration, operating points and figures, all from the patches.

        Parameters
        ----------
        state, logits : the weights, and the logits that :meth:`logits` returned for them
        training : recipe and data, as the card records them
        mosaics : whether the training showed mosaics. If so, the agreement of dense mode with patch mode is measured, and the
            card allows dense mode where they agree
        """
        card = self._fitted_card(logits)
        metrics, dense = validation_metrics(logits, self.patches.labels), False
        if mosaics:
            agreement = self.agreement(state, logits, card)
            metrics, dense = metrics | agreement.to_metrics("dense"), agreement.holds
        return replace(card, dense=dense, training=training, metrics=metrics, versions=library_versions())

    def finished(
        self, state: dict[str, torch.Tensor], card: ModelCard, train_set: Patches
    ) -> tuple[dict[str, torch.Tensor], ModelCard, NDArray[np.float32] | None]:
        """Return what a finished model file holds: weights made for int8, their card, and how near int8 is to float32.

        Parameters
        ----------
        state, card : of the best weights, as :meth:`card` made it
        train_set : patches of the training; 512 of them are looked at

        Returns
        -------
        Weights, card and the logits (n,) of :attr:`patches`. Where there are fewer than 200 training patches, which do not tell
        ranges, or the network is no ResNet, the weights stay; then the logits are None.
        """
        network, logits = self._model(state).network, None
        if not isinstance(network, ResNet):
            return state, card, None
        if len(train_set) >= MIN_PATCHES:
            note("making the weights fit 8-bit integers", enabled=self.progress)
            ranges = fit_to_integers(network.to(self.device), self._inputs(train_set))
            state = half_precision(network.state_dict())
            logits = self.logits(state)
            card = self.card(state, logits, card.training | {RANGES: ranges}, mosaics="dense_auc" in card.metrics)
        model = replace(self._model(state), card=card)
        found = compare_int8(model, self.patches, workers=self.workers, progress=self.progress, device=self.device)
        return state, replace(card, metrics=card.metrics | int8_metrics(found)), logits

    def _inputs(self, train_set: Patches) -> list[torch.Tensor]:
        """Return some training patches as batches of model input."""
        chosen = train_set.select(np.sort(np.random.default_rng(0).permutation(len(train_set))[:FITTED_ON]))
        return [self.preprocessing.to_input(images.to(self.device)) for images, _ in read_batches(chosen, 64, self.workers)]

    def agreement(self, state: dict[str, torch.Tensor], logits: NDArray[np.float32], card: ModelCard) -> Agreement:
        """Return how well dense mode agrees with patch mode.

        Parameters
        ----------
        state : the weights
        logits : of the patches in patch mode, before calibration; shape (n,)
        card : holds the calibration
        """
        return compare_dense(
            replace(self._model(state), card=card),
            self.patches,
            logits,
            device=self.device,
            precision=self.precision,
            workers=self.workers,
            progress=self.progress,
        )

    def _fitted_card(self, logits: NDArray[np.float32]) -> ModelCard:
        """Return a card with calibration and operating points fitted on the patches."""
        calibration, labels = fit_calibration(logits, self.patches.labels), self.patches.labels
        thresholds = card_thresholds(calibration.to_probability(logits), labels)
        return ModelCard(preprocessing=self.preprocessing, calibration=calibration, thresholds=thresholds)

    def _model(self, state: dict[str, torch.Tensor]) -> Model:
        return Model(network_of(state, self.build_network), ModelCard(preprocessing=self.preprocessing), "", Path())


def warn_of_refusals(out: Path) -> None:
    """Warn in one line of the faster ways of scanning that a trained model's measures refuse, with what helps.

    Parameters
    ----------
    out : model file
    """
    card = read_card(out)
    refused, metrics, remedy = [], card.metrics, "more patches or epochs"
    if "dense_auc" not in metrics:
        refused.append("dense mode (it was trained without mosaics)")
        remedy += ", and --mosaics over 0"
    elif not card.dense:
        figures = (
            f"AUC {metrics['dense_auc']:.3f} against {metrics['auc']:.3f}, {metrics['dense_same_decision']:.1%} decided alike"
        )
        refused.append(f"dense mode ({figures}; expected within 0.004, and 97 %)")
    if "int8_auc" not in metrics:
        refused.append(f"int8 (it was not measured: {metrics['n']} validation patches are too few, or no ResNet50)")
    elif not card.prefers_int8:
        unasked = " unless asked for" if card.allows_int8 else ""
        refused.append(f"int8{unasked} (its figures in the card are not near enough to float32's)")
    if refused:
        logger.warning("%s: scans are slower, without %s; what helps: %s", out, " and without ".join(refused), remedy)
