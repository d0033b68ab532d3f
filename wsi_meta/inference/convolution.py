"""A convolution whose bits do not depend on the number of threads."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

__all__ = ["SteadyConvolution", "steady_convolutions"]


class SteadyConvolution(nn.Module):
    """A convolution that a CPU computes in one way: in float32 by oneDNN, whatever the number of images, features and threads.

    By itself torch multiplies matrices instead where it expects that to be faster: for windows of 1x1 when one thread computes
    and there are fewer than 16 images, and for windows of up to 3x3 when there is one image with few features. That sums in
    another order. So the same slide had another map in a process with one thread than in one with several. oneDNN gives each
    output to one thread, which sums in the same order whoever computes beside it.

    Parameters
    ----------
    layer : padded with zeros, by a number of places and not by a word; its weights are shared
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.padding = cast("tuple[int, ...]", layer.padding)
        self.dilation, self.groups = layer.dilation, layer.groups

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the features (n, channels, rows, cols) of such a tensor."""
        if _leaves_a_choice(inputs):
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            return torch.mkldnn_convolution(
                inputs, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
            )
        return nn.functional.conv2d(inputs, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def steady_convolutions(network: nn.Module) -> nn.Module:
    """Make all convolutions of a network steady, in place."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d):
            network.set_submodule(name, SteadyConvolution(layer))
    return network


def _leaves_a_choice(inputs: torch.Tensor) -> bool:
    """Tell whether torch has several ways to convolve this; for bf16 it asks the processor alone.

    Compiled code is left to the compiler: it cannot see through the call of oneDNN, nor through the questions after the first.
    """
    if torch.compiler.is_compiling():
        return False
    return inputs.device.type == "cpu" and inputs.dtype == torch.float32 and torch.backends.mkldnn.is_available()
