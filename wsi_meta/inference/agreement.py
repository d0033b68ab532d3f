"""The logits of patches in float32 and in 8-bit integers, side by side: how near int8 is to what a model was judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.inference.batches import make_mosaics
from wsi_meta.inference.device import cpu_supports, share_device
from wsi_meta.models.model import Model

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from wsi_meta.inference.fast_network import FastNetwork

__all__ = ["AT_ONCE", "NetworkFactory", "compare_precisions", "emulated_networks", "fast_networks", "networks_on"]

MOSAIC_SIDE = 4
"""Patches along the side of the pictures that stand for a slide in dense mode."""
AT_ONCE = MOSAIC_SIDE**2
"""Patches that are compared at a time."""
NetworkFactory = Callable[[Model, str, bool], "Callable[[torch.Tensor], torch.Tensor]"]
"""Makes the network of a model, in a precision, for dense mode or not: uint8 images in, logits out."""


def fast_networks(model: Model, precision: str, dense: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the network that a scan would use on this CPU."""
    from wsi_meta.inference.fast_network import FastNetwork

    return _passes(FastNetwork(model, precision=precision, dense=dense), "cpu")


def emulated_networks(device: str) -> NetworkFactory:
    """Return what makes networks on a device, where int8 is computed in floats and float32 without shortcuts."""
    from wsi_meta.inference.fast_network import FastNetwork

    def make(model: Model, precision: str, dense: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        return _passes(FastNetwork(model, precision=precision, dense=dense, emulated=True).to(device), device)

    return make


def _passes(network: FastNetwork, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    shared = share_device(device, exact=True, compiled=False)

    def compute(images: torch.Tensor) -> torch.Tensor:
        with shared.passing():
            logits: torch.Tensor = network(images.to(device)).cpu()
        return logits

    return compute


def networks_on(device: str, *, supports: Callable[[str], bool] = cpu_supports) -> NetworkFactory:
    """Return what makes the networks of scans on a CPU with VNNI, else those that compute int8 in floats, on a GPU fast."""
    return fast_networks if device == "cpu" and supports("vnni") else emulated_networks(device)


def compare_precisions(
    model: Model, batches: Iterable[torch.Tensor], modes: Sequence[bool], *, networks: NetworkFactory = fast_networks
) -> NDArray[np.float32]:
    """Return the logits of patches in float32 and in int8, each patch alone and, in dense mode, among 15 others.

    Parameters
    ----------
    model : its network is on the CPU
    batches : uint8 tensors (:data:`AT_ONCE`, patch_px, patch_px, 3), RGB; the patches of one lie in one picture in dense mode
    modes : whether the mode is dense, for each one that is wanted
    networks : makes the networks

    Returns
    -------
    float32 array (modes, 2, n): raw logits; float32 first, int8 second.
    """
    import torch

    made = [[networks(model, precision, dense) for precision in ("fp32", "int8")] for dense in modes]
    found = []
    with torch.inference_mode():
        for patches in batches:
            shown = [make_mosaics(patches, MOSAIC_SIDE) if dense else patches for dense in modes]
            rows = [[_logits(network(images)) for network in pair] for pair, images in zip(made, shown, strict=True)]
            found.append(np.array(rows, np.float32))
    return np.concatenate(found, axis=2)


def _logits(found: torch.Tensor) -> NDArray[np.float32]:
    """Return one logit a patch, of each patch alone or of a picture's cells: every third one is a patch's middle."""
    return np.asarray(found if found.ndim == 1 else found[:, ::3, ::3].flatten())
