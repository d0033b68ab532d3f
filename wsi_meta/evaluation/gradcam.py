"""Grad-CAM: which places of a patch led to the network's decision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.models.model import Model

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

__all__ = ["grad_cam"]

STAGE = "layer4"
"""The last convolutional stage: its features mean the most and still have a place (Selvaraju et al. 2017, 3.1)."""


def grad_cam(
    model: Model, patches: NDArray[np.uint8], *, towards_tumor: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Return the Grad-CAM map (Selvaraju et al. 2017) of each patch, for the last stage of the network.

    The features are weighted with the mean gradient of the logit and summed; negative sums become 0. Where `towards_tumor` is
    False, the gradient of the negated logit is used: the map then shows evidence *against* tumor, which explains a missed tumor
    (the map for tumor would show the evidence that was not sufficient).
    Patches of 96 px have 3x3 features: a map shows which third of the patch matters, not which nucleus.

    Parameters
    ----------
    model : as :func:`wsi_meta.load_model` returns it; computed on its network's device, and not changed
    patches : uint8 (n, patch_px, patch_px, 3), RGB, at the model's mpp
    towards_tumor : bool (n,); None: all True

    Returns
    -------
    float32 (n, patch_px, patch_px), each map scaled to a maximum of 1; all 0 where there is no such evidence.
    """
    import torch
    from torch.nn.functional import interpolate

    if len(patches) == 0:
        return np.empty(patches.shape[:3], np.float32)
    device = next(model.network.parameters()).device
    towards = np.ones(len(patches), bool) if towards_tumor is None else towards_tumor
    with torch.inference_mode(False), torch.enable_grad(), _judging(model.network), _watched(model.network) as seen:
        signs = torch.from_numpy(np.where(towards, 1.0, -1.0)).to(device, torch.float32)
        logits = model.network(model.card.preprocessing.to_input(torch.from_numpy(patches).to(device)))[:, 0]
        (features,) = seen
        (gradients,) = torch.autograd.grad((signs * logits).sum(), features)
    with torch.no_grad():
        weights = gradients.mean((2, 3), keepdim=True)
        maps = (weights * features).sum(1, keepdim=True).clamp(min=0)
        maps = interpolate(maps, size=patches.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
        highest = maps.amax((1, 2), keepdim=True)
        maps = torch.where(highest > 0, maps / highest, 0.0)
    return maps.float().cpu().numpy()


@contextmanager
def _judging(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and afterwards each of its modules back into the mode it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _watched(network: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the features of the stage as tensors that get a gradient, even where the weights need none."""
    seen: list[torch.Tensor] = []

    def catch(_module: nn.Module, _inputs: object, features: torch.Tensor) -> torch.Tensor:
        seen.append(features.detach().requires_grad_())
        return seen[-1]

    handle = network.get_submodule(STAGE).register_forward_hook(catch)
    try:
        yield seen
    finally:
        handle.remove()
