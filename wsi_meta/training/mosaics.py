"""Patches side by side in one picture: they prepare a network for dense mode, and measure how well it does there.

In dense mode a cell is surrounded by its neighbours on the slide, not by the zero padding round a single patch. A network
that is trained on mosaics as well as on single patches learns to give the same answer in both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from wsi_meta.datasets.batches import read_batches
from wsi_meta.datasets.layouts import Patches
from wsi_meta.evaluation.results import Agreement
from wsi_meta.inference.batches import make_mosaics
from wsi_meta.inference.device import share_device
from wsi_meta.inference.fast_network import FastNetwork
from wsi_meta.models.model import Model
from wsi_meta.progress import progress_bar

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["compare_dense", "mosaic_side", "predict_in_mosaics"]

SIDES = (4, 2)
"""Possible numbers of patches along a mosaic's side, the largest first."""


def mosaic_side(n: int) -> int:
    """Return the side, in patches, of the largest mosaics that `n` patches fill exactly; 1 where no mosaic does."""
    return next((side for side in SIDES if n and n % side**2 == 0), 1)


def predict_in_mosaics(
    model: Model, patches: Patches, *, device: str, precision: str, workers: int = 2, seed: int = 0, progress: bool = False
) -> NDArray[np.float32]:
    """Return the logit of each patch inside a mosaic of 4x4 randomly chosen patches, computed as a scan does in dense mode.

    Returns
    -------
    float32 array (n,) in the order of the patches: raw logits. Patches that were used before fill the last mosaic.
    """
    side = SIDES[0]
    order = np.random.default_rng(seed).permutation(len(patches))
    filled = np.resize(order, -(-len(order) // side**2) * side**2)
    network = FastNetwork(model, precision=precision, dense=True).to(device)
    shared = share_device(device, exact=precision == "fp32", compiled=False)
    parts = []
    with progress_bar(len(filled), "patches", "dense mode", enabled=progress) as bar, torch.inference_mode():
        for images, _ in read_batches(patches.select(filled), 2 * side**2, workers):
            with shared.passing():
                found = network(make_mosaics(images, side).to(device))
            parts.append(found[:, ::3, ::3].flatten().cpu().numpy())
            bar.update(len(images))
    logits = np.empty(len(patches), np.float32)
    logits[order] = np.concatenate(parts)[: len(order)]
    return logits


def compare_dense(
    model: Model,
    patches: Patches,
    usual: NDArray[np.float32],
    *,
    device: str,
    precision: str,
    workers: int = 2,
    progress: bool = False,
) -> Agreement:
    """Return how well dense mode agrees with patch mode.

    Parameters
    ----------
    model : its card holds the calibration
    usual : logits of the patches in patch mode, before calibration; shape (n,)
    device, precision, workers, progress : as for :func:`predict_in_mosaics`
    """
    logits = predict_in_mosaics(model, patches, device=device, precision=precision, workers=workers, progress=progress)
    return Agreement.of(usual, logits, patches.labels, model.card.calibration)
