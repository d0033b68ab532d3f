"""Patches side by side in one picture: they prepare a network for dense mode, and measure how well it does there.

In dense mode a cell is surrounded by its neighbours on the slide, not by the zero padding round a single patch. A network
that is trained on mosaics as well as on single patches learns to give the same answer in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader

from wsi_meta.datasets.layouts import Patches, read_batches
from wsi_meta.evaluation.metrics import auc_of
from wsi_meta.inference.batches import make_mosaics
from wsi_meta.models.model import Model, cell_logits
from wsi_meta.progress import progress_bar

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Agreement", "mosaic_side", "predict_in_mosaics"]

SIDES = (4, 2)
"""Possible numbers of patches along a mosaic's side, the largest first."""


@dataclass(frozen=True)
class Agreement:
    """How well dense mode agrees with patch mode on the same patches, each in a mosaic of random others (the worst case)."""

    patch_auc: float
    dense_auc: float
    mean_difference: float
    """Mean absolute difference of the calibrated probabilities."""
    same_decision: float
    """Share of patches on the same side of 0.5."""

    @property
    def holds(self) -> bool:
        """Whether dense mode may replace patch mode: AUC within 0.004, the same decision on at least 97 %."""
        return abs(self.patch_auc - self.dense_auc) <= 0.004 and self.same_decision >= 0.97

    def to_metrics(self, other: str = "dense") -> dict[str, float]:
        """Return the figures under the names that a card uses; `other` is what was compared: ``dense`` or ``int8``."""
        return {
            f"{other}_auc": self.dense_auc,
            f"{other}_mean_difference": self.mean_difference,
            f"{other}_same_decision": self.same_decision,
        }

    @classmethod
    def of(cls, patch: NDArray[np.float32], dense: NDArray[np.float32], labels: NDArray[np.uint8]) -> Agreement:
        """Compare calibrated probabilities of the same patches in both modes; shapes (n,)."""
        return cls(
            patch_auc=auc_of(patch, labels),
            dense_auc=auc_of(dense, labels),
            mean_difference=float(np.abs(patch.astype(np.float64) - dense).mean()),
            same_decision=float(((patch >= 0.5) == (dense >= 0.5)).mean()),
        )


def mosaic_side(n: int) -> int:
    """Return the side, in patches, of the largest mosaics that `n` patches fill exactly; 1 where no mosaic does."""
    return next((side for side in SIDES if n and n % side**2 == 0), 1)


def predict_in_mosaics(
    model: Model, patches: Patches, *, device: str, precision: str, workers: int = 2, seed: int = 0, progress: bool = False
) -> NDArray[np.float32]:
    """Return the logit of each patch inside a mosaic of 4x4 randomly chosen patches, computed as in dense mode.

    Returns
    -------
    float32 array (n,) in the order of the patches: raw logits. Patches that were used before fill the last mosaic.
    """
    side = SIDES[0]
    order = np.random.default_rng(seed).permutation(len(patches))
    filled = np.resize(order, -(-len(order) // side**2) * side**2)
    loader = DataLoader(patches.select(filled), batch_size=2 * side**2, num_workers=workers, generator=torch.Generator())
    network = model.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
    parts = []
    with progress_bar(len(filled), "patches", "dense mode", enabled=progress) as bar, torch.inference_mode(), autocast:
        for images, _ in read_batches(loader):
            inputs = model.card.preprocessing.to_input(make_mosaics(images, side).to(device))
            parts.append(cell_logits(network, inputs, step=3).flatten().float().cpu().numpy())
            bar.update(len(images))
    logits = np.empty(len(patches), np.float32)
    logits[order] = np.concatenate(parts)[: len(order)]
    return logits
