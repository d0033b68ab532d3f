"""How a network is made fast: BatchNorm folded into the convolutions, bf16 weights, channels-last, compiled where it repays.

The first convolution and the head stay in float32: they are a small part of the work, and pixels and first weights rounded to
bf16 made most of the difference to float32 (docs/benchmarks.md).
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wsi_meta.errors import DeviceError
from wsi_meta.model import Model, cell_logits
from wsi_meta.preprocessing import Preprocessing

__all__ = ["FastNetwork", "compile_network", "compiler_found", "fold_batchnorm", "worth_compiling"]

PATCHES_REPAY = 40_000
"""Patches from which compiling repays itself on a CPU in bf16, on average of warm and cold (docs/benchmarks.md)."""
EXAMPLE_CELLS = (9, 7)
"""Shape on which dense mode is compiled: always the same, so that the code does not depend on the first block."""


class FastNetwork(nn.Module):
    """A model's network as the predictor runs it: uint8 pixels in, float32 logits out.

    Parameters
    ----------
    model : its network is left as it is
    precision : ``fp32`` or ``bf16``
    dense : give the logits of all cells of an image, not of the patch that the image is
    """

    def __init__(self, model: Model, *, precision: str, dense: bool) -> None:
        super().__init__()
        network = fold_batchnorm(copy.deepcopy(model.network).eval())
        if precision == "bf16":
            network = _round_weights(network)
        self.network = network.requires_grad_(False).to(memory_format=torch.channels_last)
        self.preprocessing: Preprocessing = model.card.preprocessing
        self.dense = dense

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Give logits.

        Parameters
        ----------
        images : uint8 tensor (n, height, width, 3), RGB, on the network's device

        Returns
        -------
        float32 tensor: (n,), or (n, rows, cols) as :func:`wsi_meta.model.cell_logits` gives them.
        """
        inputs = self.preprocessing.to_input(images)
        logits: torch.Tensor = cell_logits(self.network, inputs) if self.dense else self.network(inputs)[:, 0]
        return logits


class _InFloat32(nn.Module):
    """A layer that computes in float32 between layers of another type."""

    def __init__(self, layer: nn.Module, output: torch.dtype) -> None:
        super().__init__()
        self.layer, self.output = layer, output

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(inputs.float())
        return outputs.to(self.output)


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """Fold every BatchNorm into the convolution that stands before it, in place; the same function, fewer passes over memory.

    Relies on BatchNorms standing directly after their convolution in their parent, as in torchvision's ResNets.
    """
    for parent in list(network.modules()):
        for (name, layer), (norm_name, norm) in list(pairwise(parent.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, norm))
                setattr(parent, norm_name, nn.Identity())
    return network


def compiler_found() -> bool:
    """Tell whether there is a C++ compiler, which ``torch.compile`` needs."""
    return any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))


def worth_compiling(device: str, precision: str, *, cells: int, views: int, dense: bool) -> bool:
    """Tell whether compiling repays itself within one slide: a function of the scan alone, so that it is always the same.

    On a CPU in bf16 that is so in patch mode from a number of patches on; dense mode gains nothing measurable. In fp32
    compiling gains little. On a GPU one slide is a matter of seconds, and compiling takes longer.
    """
    return device == "cpu" and precision == "bf16" and not dense and cells * views >= PATCHES_REPAY


def compile_network(network: FastNetwork, device: str, *, patch_px: int, rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Compile a network, with its weights as constants, before it is used: takes seconds, or a minute the first time.

    Dense mode is compiled once for blocks of any shape.

    Parameters
    ----------
    patch_px, rows : side and number of the patches of one pass in patch mode

    Raises
    ------
    DeviceError
        when there is no C++ compiler.
    """
    if not compiler_found():
        raise DeviceError("compiled: found no C++ compiler; expected c++, g++ or clang++; install one, or pass --compiled no")
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(network, dynamic=network.dense, options={"freezing": True})
    height, width = (32 * cells for cells in EXAMPLE_CELLS)
    shape = (1, height, width, 3) if network.dense else (rows, patch_px, patch_px, 3)
    with torch.inference_mode():
        compiled(torch.zeros(shape, dtype=torch.uint8, device=device))
    return compiled


def _round_weights(network: nn.Module) -> nn.Module:
    """Turn all weights but the first layer's and the head's to bf16."""
    low = torch.bfloat16
    ends = {next(name for name, _ in network.named_children()): low, "fc": torch.float32}
    kept = {name: _InFloat32(network.get_submodule(name), output) for name, output in ends.items()}
    for name in ends:
        setattr(network, name, nn.Identity())
    network.to(low)
    for name, layer in kept.items():
        setattr(network, name, layer)
    return network
