"""How good weights are on the validation patches, and the card that records it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_meta.datasets.layouts import Patches
from wsi_meta.errors import ModelFileError, TrainingError
from wsi_meta.evaluation.calibrate import card_thresholds, fit_calibration, validation_metrics
from wsi_meta.evaluation.evaluate import evaluate_patches, int8_metrics
from wsi_meta.evaluation.results import Evaluation
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.card import ModelCard
from wsi_meta.models.model import Model, build_network, network_of
from wsi_meta.models.versions import library_versions
from wsi_meta.training.mosaics import Agreement, predict_in_mosaics

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

__all__ = ["Validation"]


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
        return Evaluation.of(logits, self.patches.labels, ModelCard())

    def calibrated(self, logits: NDArray[np.float32]) -> Evaluation:
        """Return the figures of logits with a calibration fitted on these same patches, as the model file holds it."""
        return Evaluation.of(logits, self.patches.labels, self._fitted_card(logits))

    def card(
        self, state: dict[str, torch.Tensor], logits: NDArray[np.float32], training: dict[str, Any], *, mosaics: bool
    ) -> ModelCard:
        """Return the card of a model: calibration, operating points and figures, all from the patches.

        Parameters
        ----------
        state, logits : the weights, and the logits that :meth:`logits` returned for them
        training : recipe and data, as the card records them
        mosaics : whether the training showed mosaics. If so, the agreement of dense mode with patch mode is measured, and the
            card allows dense mode where they agree. That of int8 with float32 is measured where the machine has VNNI
        """
        card = self._fitted_card(logits)
        metrics, dense = validation_metrics(logits, self.patches.labels), False
        if mosaics:
            agreement = self.agreement(state, card.calibration.to_probability(logits), card)
            metrics, dense = metrics | agreement.to_metrics(), agreement.holds
        card = replace(card, dense=dense, training=training, metrics=metrics, versions=library_versions())
        return replace(card, metrics=metrics | self.int8_metrics(state, card))

    def int8_metrics(self, state: dict[str, torch.Tensor], card: ModelCard) -> dict[str, float]:
        """Return how near int8 is to float32, where this machine can tell; see :func:`.evaluate.int8_metrics`."""
        return int8_metrics(replace(self._model(state), card=card), self.patches, workers=self.workers, progress=self.progress)

    def agreement(self, state: dict[str, torch.Tensor], probabilities: NDArray[np.float32], card: ModelCard) -> Agreement:
        """Return how well dense mode agrees with patch mode.

        Parameters
        ----------
        state : the weights
        probabilities : of the patches in patch mode, calibrated; shape (n,)
        card : holds that calibration
        """
        logits = predict_in_mosaics(
            self._model(state),
            self.patches,
            device=self.device,
            precision=self.precision,
            workers=self.workers,
            progress=self.progress,
        )
        return Agreement.of(probabilities, card.calibration.to_probability(logits), self.patches.labels)

    def _fitted_card(self, logits: NDArray[np.float32]) -> ModelCard:
        """Return a card with calibration and operating points fitted on the patches."""
        calibration, labels = fit_calibration(logits, self.patches.labels), self.patches.labels
        return ModelCard(calibration=calibration, thresholds=card_thresholds(calibration.to_probability(logits), labels))

    def _model(self, state: dict[str, torch.Tensor]) -> Model:
        return Model(network_of(state, self.build_network), ModelCard(), "", Path())
