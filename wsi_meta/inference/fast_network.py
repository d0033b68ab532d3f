"""A network made fast: BatchNorm folded into the convolutions, bf16 or int8 weights, channels-last, compiled on request.

The first convolution and the head stay in float32. They are a small part of the work, and most of the difference between bf16
and float32 came from rounding the pixels and the first weights (docs/benchmarks.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from wsi_meta.errors import DeviceError
from wsi_meta.inference.allocator import MemoryBound
from wsi_meta.inference.bands import Residual, features_in_bands, see_rows
from wsi_meta.inference.convolution import steady_convolutions
from wsi_meta.inference.options import compiler_errors, compiler_found, compiler_variables
from wsi_meta.models.model import Model
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.resnet import Bottleneck
from wsi_meta.progress import tell
from wsi_meta.tiling.block_plan import MEASURED_SIZES, PieceSizes

__all__ = ["FastNetwork", "compile_network", "fold_batchnorm"]

PACKED_FOR = (1, 128, 4096, 3)
"""Shape of the image for which int8 weights are laid out: with it images of all widths were fast (docs/benchmarks.md)."""
EXAMPLE_CELLS = (9, 7)
"""Shape for which dense mode is compiled. It is always the same, so the code does not depend on the first block."""


class FastNetwork(nn.Module):
    """A model's network as the predictor runs it: uint8 pixels in, float32 logits out.

    Parameters
    ----------
    model : its network is left as it is
    precision : ``fp32``, ``bf16`` or ``int8``
    dense : return the logits of all cells of an image, instead of one logit for an image that is one patch
    in_bands : compute an image from top to bottom, in little memory; one image at a time. For dense mode on a CPU: a GPU
        has memory of its own and is faster with large images
    sizes : how large the bands are
    emulated : compute int8 in floats, on any processor or GPU: slow, and nearly what a CPU with VNNI gives
    """

    def __init__(
        self,
        model: Model,
        *,
        precision: str,
        dense: bool,
        in_bands: bool = False,
        sizes: PieceSizes = MEASURED_SIZES,
        emulated: bool = False,
    ) -> None:
        super().__init__()
        self.preprocessing: Preprocessing = model.card.preprocessing
        if precision == "int8":
            from wsi_meta.inference.int8 import quantised_trunk  # and with it scipy's functions, which others need not wait for

            self.trunk = quantised_trunk(model.network, self.preprocessing, model.card.int8_ranges, emulated=emulated)
        else:
            self.trunk = _trunk(steady_convolutions(fold_batchnorm(copy.deepcopy(model.network).eval())))
            if precision == "bf16":
                _round_weights(self.trunk)
        head = cast(nn.Linear, copy.deepcopy(model.network.get_submodule("fc")))
        self.head = _Everywhere(head) if dense else head
        self.requires_grad_(False).to(memory_format=torch.channels_last)
        self.precision, self.dense, self.in_bands, self.sizes = precision, dense, in_bands, sizes
        if in_bands:
            self.trunk.append(self.head)
            see_rows(self.trunk)
        self._memory = MemoryBound()
        if precision == "int8" and not emulated:
            self._pack_weights()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits.

        Parameters
        ----------
        images : uint8 tensor (n, height, width, 3), RGB, on the network's device

        Returns
        -------
        float32 tensor: (n,), or (n, rows, cols) as :func:`wsi_meta.models.resnet.cell_logits` gives them.
        """
        if not self.dense:
            features = self.trunk(self.preprocessing.to_input(images)).float()
            logits: torch.Tensor = self.head(nn.functional.adaptive_avg_pool2d(features, 1).flatten(1))
            return logits[:, 0]
        if self.in_bands:
            return self.top_to_bottom([images])
        return _means_of_patches(self.head(self.trunk(self.preprocessing.to_input(images))))

    def top_to_bottom(self, pieces: Iterable[torch.Tensor], told: Callable[[int], None] | None = None) -> torch.Tensor:
        """Return the logits of an image that comes in pieces, from the top down. A piece is let go once it is computed.

        Parameters
        ----------
        pieces : uint8 tensors (1, rows, width, 3); `rows` a multiple of ``sizes.band_rows(width)``, except in the last
        told : called after each band with the rows that the network has taken up to there

        Returns
        -------
        float32 tensor (1, rows, cols), as for the whole image.
        """

        def inputs() -> Iterator[torch.Tensor]:
            rows = 0
            for piece in pieces:
                for band in piece.split(self.sizes.band_rows(piece.shape[2]), 1):
                    self._memory.check()
                    rows += band.shape[1]
                    yield self.preprocessing.to_input(band.contiguous())
                    if told is not None:
                        told(rows)

        return _means_of_patches(features_in_bands(self.trunk, inputs()))

    @torch.inference_mode()
    def _pack_weights(self) -> None:
        """Run a first pass of a typical shape: integer weights are laid out for the first shape that they meet."""
        side = self.preprocessing.patch_px
        self(torch.zeros(PACKED_FOR if self.dense else (64, side, side, 3), dtype=torch.uint8))


def _means_of_patches(parts: torch.Tensor) -> torch.Tensor:
    """Return the mean over the 3x3 features of each patch, tensor (n, rows, cols)."""
    return nn.functional.avg_pool2d(parts, kernel_size=3, stride=1)[:, 0]


class _Everywhere(nn.Module):
    """The head applied to every feature. As it is linear, its mean over a patch is the head of the patch's mean feature."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(features.float().permute(0, 2, 3, 1))
        return logits.permute(0, 3, 1, 2)


class _To(nn.Module):
    """Changes the type of numbers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.to(self.dtype)


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """Fold every BatchNorm into the convolution before it, in place: the same function with fewer passes over memory.

    Every BatchNorm must directly follow its convolution in their parent, as in a ResNet.
    """
    for parent in list(network.modules()):
        for (_, layer), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                statistics = cast(torch.Tensor, norm.running_mean), cast(torch.Tensor, norm.running_var), norm.eps
                layer.weight, layer.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics, norm.weight, norm.bias)
                setattr(parent, norm_name, nn.Identity())
    return network


def compile_network(network: FastNetwork, device: str, *, patch_px: int, rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Compile a network, with its weights as constants, and run it once. Takes seconds, or a minute the first time.

    Dense mode is compiled once for blocks of all shapes.

    Parameters
    ----------
    patch_px, rows : side and number of the patches of one pass in patch mode

    Raises
    ------
    DeviceError
        when there is no compiler or it fails, or the network is in int8, whose operations are what a compiler would make.
    """
    if network.precision == "int8":
        raise DeviceError("compiled: int8 is not compiled; pass --compiled no or auto, or --precision bf16")
    if not compiler_found(device):
        expected = "a C compiler (cc, gcc or clang)" if device != "cpu" else "c++, g++ or clang++"
        raise DeviceError(f"compiled: found no compiler; expected {expected}; install one, or pass --compiled no")
    tell("compiling the network, which takes some seconds, the first time on this machine a minute")
    height, width = (32 * cells for cells in EXAMPLE_CELLS)
    shape = (1, height, width, 3) if network.dense else (rows, patch_px, patch_px, 3)
    with torch.inference_mode(), compiler_variables, compiler_errors("pass --compiled no"):
        compiled: Callable[[torch.Tensor], torch.Tensor]
        compiled = torch.compile(network, dynamic=network.dense, options={"freezing": True})
        compiled(torch.zeros(shape, dtype=torch.uint8, device=device))
    return compiled


def _trunk(network: nn.Module) -> nn.Sequential:
    """Return a folded network's layers up to its last feature, as one sequence."""
    layers: list[nn.Module] = []
    for name, layer in network.named_children():
        if name == "avgpool":
            break
        for part in layer if isinstance(layer, nn.Sequential) else [layer]:
            if isinstance(part, Bottleneck):
                layers.append(_residual(part))
            elif not isinstance(part, nn.Identity):
                layers.append(part)
    return nn.Sequential(*layers)


def _residual(block: Bottleneck) -> Residual:
    main = nn.Sequential(block.conv1, nn.ReLU(inplace=True), block.conv2, nn.ReLU(inplace=True))
    return Residual(main, block.conv3, nn.Identity() if block.downsample is None else block.downsample[0])


def _round_weights(trunk: nn.Sequential) -> None:
    """Round all weights except the first layer's to bf16, in place."""
    for layer in trunk[1:]:
        layer.to(torch.bfloat16)
    trunk.insert(1, _To(torch.bfloat16))
