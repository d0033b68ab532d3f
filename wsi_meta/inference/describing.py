"""A predictor that also keeps what its network saw of the patches, from the same passes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.inference.options import InferenceOptions, fit_to_model, resolve_inference
from wsi_meta.inference.passes import HalvedPasses
from wsi_meta.inference.predictor import USUAL_PARTS, Predictor
from wsi_meta.models.features import MIN_PATCHES, FeatureStatistics, describe_features, read_features

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from wsi_meta.models.model import Model

__all__ = ["DescribingPredictor"]


class DescribingPredictor(Predictor):
    """Predicts patches as a :class:`wsi_meta.Predictor` in patch mode does, one view of each, and describes them.

    It is what models are measured with, so ``auto`` is never int8 here.

    Parameters
    ----------
    model, device, precision, batch_size : as for :class:`wsi_meta.Predictor`
    """

    def __init__(self, model: Model, *, device: str = "auto", precision: str = "auto", batch_size: int = 64) -> None:
        asked = fit_to_model(InferenceOptions(device, precision, batch_size), model.card)
        plan = resolve_inference(replace(asked, int8_agrees=False))
        self._set_up(model, plan, USUAL_PARTS, dense=False, compiled=False)
        self._describing = HalvedPasses(self._fast.described, self.device)
        self._seen: list[NDArray[np.float32]] = []

    def predict_patches(self, patches: torch.Tensor) -> NDArray[np.float32]:
        """Return the logit of every patch, and keep what describes it."""
        with self._shared.turn():
            sent = self._send(patches).split(self._batching.patches_at_once)
            found = self._fetch(self._in_batches(sent, self._describing))
        self._seen.append(describe_features(found[:, 1:]))
        return found[:, 0]

    @property
    def described(self) -> NDArray[np.float32]:
        """What describes the patches that were predicted, in their order: float32 (n, 64)."""
        return np.concatenate(self._seen)

    def statistics(self) -> FeatureStatistics | None:
        """Return what the patches are like; of fewer than 200, what the model file says of earlier ones."""
        described = self.described
        if len(described) < MIN_PATCHES:
            return read_features(self.model.path)
        return FeatureStatistics.of(np.random.default_rng(0).permutation(described))
