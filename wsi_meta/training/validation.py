"""What weights are worth on the validation patches, and the card that says so."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_meta.datasets.layouts import Patches
from wsi_meta.errors import ModelFileError, TrainingError
from wsi_meta.evaluation.calibrate import fit_calibration, operating_points, validation_metrics
from wsi_meta.evaluation.evaluate import evaluate_patches
from wsi_meta.evaluation.results import Evaluation
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.model import Model, ModelCard, build_network
from wsi_meta.models.versions import library_versions
from wsi_meta.training.mosaics import Agreement, predict_in_mosaics

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["Judge"]


@dataclass(frozen=True)
class Judge:
    """Judges weights exactly as a model file would hold them."""

    patches: Patches
    """The validation split."""
    device: str
    precision: str
    workers: int
    progress: bool

    def logits(self, state: dict[str, torch.Tensor]) -> NDArray[np.float32]:
        """Return the patches' logits, shape (n,), by a ``state_dict``; TrainingError when they are no numbers."""
        predictor = Predictor(_as_stored(state), device=self.device, precision=self.precision)
        try:
            return evaluate_patches(predictor, self.patches, workers=self.workers, progress=self.progress).logits
        except ModelFileError as error:
            raise TrainingError(
                "the weights grew until their logits were no numbers; lower --lr (the best epoch so far is kept)"
            ) from error

    def raw(self, logits: NDArray[np.float32]) -> Evaluation:
        """Return the figures of logits before calibration."""
        return Evaluation.of(logits, self.patches.labels, ModelCard())

    def calibrated(self, logits: NDArray[np.float32]) -> Evaluation:
        """Return the figures of logits calibrated on these same patches, as the model file decides."""
        return Evaluation.of(logits, self.patches.labels, self._decide(logits))

    def _decide(self, logits: NDArray[np.float32]) -> ModelCard:
        """Return a card with calibration and operating points fitted on the patches."""
        calibration, labels = fit_calibration(logits, self.patches.labels), self.patches.labels
        return ModelCard(calibration=calibration, thresholds=operating_points(calibration.to_probability(logits), labels))

    def card(
        self, state: dict[str, torch.Tensor], logits: NDArray[np.float32], training: dict[str, Any], *, mosaics: bool
    ) -> ModelCard:
        """Calibrate on the patches and write down what the model is and how good it was.

        Parameters
        ----------
        state, logits : the weights and what :meth:`logits` gave for them
        training : recipe and data, for the card
        mosaics : whether mosaics were trained on: then how far dense mode agrees is measured, and allowed where it does
        """
        labels, fitted, dense = self.patches.labels, self._decide(logits), False
        metrics, to_probability = validation_metrics(logits, labels), fitted.calibration.to_probability
        if mosaics:
            model = _as_stored(state)
            inside = predict_in_mosaics(
                model, self.patches, device=self.device, precision=self.precision, workers=self.workers, progress=self.progress
            )
            agreement = Agreement.of(to_probability(logits), to_probability(inside), labels)
            metrics, dense = metrics | agreement.to_metrics(), agreement.holds
        return replace(fitted, dense=dense, training=training, metrics=metrics, versions=library_versions())


def _as_stored(state: dict[str, torch.Tensor]) -> Model:
    network = build_network()
    network.load_state_dict(state)
    return Model(network.eval(), ModelCard(), "", Path())
