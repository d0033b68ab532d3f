"""The integer network's arithmetic in floating point: what a processor with VNNI computes, on any processor.

Sums of products of integers are whole numbers, and float32 holds those up to 16 million exactly. Larger ones, which only the
widest layers reach, may be off by a few units in 16 million: that moves a result by one step where it was halfway between two.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from wsi_meta.inference.fast_network import FastNetwork
from wsi_meta.inference.int8 import LEVELS, _Convolution, _Integers, quantised_trunk
from wsi_meta.models.model import Model
from wsi_meta.models.resnet import ResNet

__all__ = ["EmulatedConvolution", "emulated_network", "emulated_trunk"]


class EmulatedConvolution(nn.Module):
    """A convolution on integers, computed in floats from what it holds before it is first used."""

    def __init__(self, layer: _Convolution) -> None:
        super().__init__()
        assert not layer.packed, "its weights are laid out for the processor already"
        self.layer = layer
        self.weights = layer.weights.float().contiguous(memory_format=torch.channels_last)
        self.factors = (layer.input_scale * layer.weight_scales)[:, None, None]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the rounded result: uint8."""
        return self._rounded(self._exact(inputs))

    def add_to(self, beside: torch.Tensor, side: _Integers, inputs: torch.Tensor) -> torch.Tensor:
        """Return the rounded sum with `beside`: uint8."""
        return self._rounded(self._exact(inputs).add_((beside.float() - side.zero_point).mul_(side.scale)))

    def _exact(self, inputs: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        centred = inputs.float() - layer.input_zero_point  # so that the zeros around the image stand for zero
        sums = nn.functional.conv2d(centred, self.weights, stride=layer.stride, padding=layer.padding)
        return sums.mul_(self.factors).add_(layer.bias[:, None, None])

    def _rounded(self, exact: torch.Tensor) -> torch.Tensor:
        gives = self.layer.gives
        kept = exact.relu_() if self.layer.after == "relu" else exact
        return kept.mul_(1 / gives.scale).add_(gives.zero_point).round_().clamp_(0, LEVELS).to(torch.uint8)


def emulated_trunk(model: Model) -> nn.Sequential:
    """Return a model's integer trunk, computed in floats: float32 model input in, float32 features out."""
    trunk = quantised_trunk(cast(ResNet, model.network), model.card.preprocessing)
    for name, layer in list(trunk.named_modules()):
        if isinstance(layer, _Convolution):
            trunk.set_submodule(name, EmulatedConvolution(layer))
    return trunk


def emulated_network(model: Model, *, dense: bool = False) -> FastNetwork:
    """Return a model's integer network, computed in floats: uint8 pixels in, logits out."""
    network = FastNetwork(model, precision="fp32", dense=dense)
    network.trunk = emulated_trunk(model)
    return network
