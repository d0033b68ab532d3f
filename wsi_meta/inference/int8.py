"""A ResNet in 8-bit integers, faster than bf16 on CPUs with VNNI, and the same arithmetic in floats for all other machines.

What the integers stand for is planned by :mod:`wsi_meta.models.integers`. Weights are rounded per output channel,
symmetrically; activations per tensor. What rounded weights change on average follows from the inputs' means and is taken off
the bias: nothing where the weights were made for it (:mod:`wsi_meta.models.equalise`). Sums are exact integers, so results do
not depend on batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wsi_meta.errors import DeviceError
from wsi_meta.inference.bands import Residual, window_side
from wsi_meta.models.integers import BESIDE, LEVELS, Integers, fit, layers_beside, named_blocks, plan_integers, weight_steps
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.resnet import ResNet

__all__ = ["Convolution", "Emulated", "check_operators", "quantised_trunk"]

OPERATORS = (
    "onednn::qconv_prepack",
    "onednn::qconv2d_pointwise",
    "onednn::qconv2d_pointwise.binary",
    "quantized::max_pool2d",
)
"""All operators of torch that are used here. They are private: another version of torch may lack one."""


def check_operators(names: Iterable[str] = OPERATORS) -> None:
    """Refuse a torch that lacks an operator.

    Parameters
    ----------
    names : ``namespace::operator`` or ``namespace::operator.overload``

    Raises
    ------
    DeviceError
        when one does not exist; it names the operator.
    """
    for name in names:
        namespace, _, operator = name.partition("::")
        found = getattr(torch.ops, namespace)
        for part in operator.split("."):
            found = getattr(found, part, None)
        if found is None:
            raise DeviceError(f"--precision int8: this torch lacks operator {name}; use --precision bf16 or fp32")


def quantised_trunk(
    network: nn.Module,
    preprocessing: Preprocessing,
    ranges: Mapping[str, float] | None = None,
    *,
    emulated: bool = False,
    operators: Iterable[str] = OPERATORS,
) -> nn.Sequential:
    """Return a ResNet up to its last feature: float32 model input in, float32 features out, integers between.

    Parameters
    ----------
    network : ResNet with its BatchNorms; it is left as it is
    preprocessing : tells the range of the model's input
    ranges : what was measured of its activations, see :func:`wsi_meta.models.integers.plan_integers`
    emulated : compute the integers in floats, on any processor and on a GPU, instead of by torch's operators
    operators : what torch must have

    Raises
    ------
    DeviceError
        when torch lacks an operator.
    ModelFileError
        when the ranges are those of another network.
    """
    if not emulated:
        check_operators(operators)
    network, convolution = cast(ResNet, network), Emulated if emulated else Convolution
    plan, entry = plan_integers(network, ranges), _Enter(preprocessing, emulated)
    first = convolution(network.conv1, network.bn1, entry.gives, plan["bn1"])
    layers: list[nn.Module] = [entry, first, _MaxPool(network.maxpool)]
    given = plan["bn1"]
    for name, block in named_blocks(network):
        beside: nn.Module = nn.Identity()
        side = given
        if block.downsample is not None:
            side = plan[name + BESIDE]
            beside = convolution(*layers_beside(block), given, side, relu=False)
        first = convolution(block.conv1, block.bn1, given, plan[f"{name}.bn1"])
        second = convolution(block.conv2, block.bn2, first.gives, plan[f"{name}.bn2"])
        given = plan[f"{name}.bn3"]
        last = convolution(block.conv3, block.bn3, second.gives, given)
        layers.append(_Residual(nn.Sequential(first, second), last, beside, side))
    return nn.Sequential(*layers, _Leave(given.scale))


class _Enter(nn.Module):
    """From the model's input to integers."""

    def __init__(self, preprocessing: Preprocessing, emulated: bool) -> None:
        super().__init__()
        self.dtype = torch.float32 if emulated else torch.uint8
        ends = [[(end - mean) / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)] for end in (0, 1)]
        self.gives = Integers(*fit(min(ends[0]), max(ends[1])), np.zeros(len(preprocessing.mean)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs * (1 / self.gives.scale)).add_(self.gives.zero_point).round_().clamp_(0, LEVELS).to(self.dtype)


class _Leave(nn.Module):
    """From integers to features."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.float().mul_(self.scale)


class Convolution(nn.Module):
    """A convolution, its BatchNorm and, if asked for, a ReLU, on integers, by torch's operators.

    Attributes
    ----------
    gives : what its outputs stand for
    """

    def __init__(
        self, convolution: nn.Conv2d, norm_layer: nn.BatchNorm2d, given: Integers, gives: Integers, *, relu: bool = True
    ) -> None:
        super().__init__()
        folded = fuse_conv_bn_eval(convolution, norm_layer)
        sizes = (convolution.kernel_size, convolution.stride, convolution.padding)
        self.kernel_size, self.stride, self.padding = ((window_side(size),) * 2 for size in sizes)
        self.input_scale, self.input_zero_point, self.gives = given.scale, given.zero_point, gives
        self.after = "relu" if relu else "none"
        weights = folded.weight.detach()
        scales = weight_steps(weights)
        self.weight_scales = scales.flatten()
        rounded = (weights / scales).round()
        added = (rounded.double() * scales - weights).sum((2, 3)) @ torch.from_numpy(given.means)
        self.bias = (cast(torch.Tensor, folded.bias).detach() - added).float()
        self.weight_zeros = torch.zeros(len(weights), dtype=torch.long)
        self.weights, self.packed = rounded.to(torch.int8), False

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs, rounded to integers."""
        outputs: torch.Tensor = torch.ops.onednn.qconv2d_pointwise(
            *self._given(inputs), self.bias, *self._window(), *self._gives(), self.after, [], ""
        )
        return outputs

    def add_to(self, beside: torch.Tensor, side: Integers, inputs: torch.Tensor) -> torch.Tensor:
        """Return the ReLU of the sum with `beside`, which is overwritten. The convolution's own result is not rounded first."""
        added = side.scale, side.zero_point, "sum", 1.0
        outputs: torch.Tensor = torch.ops.onednn.qconv2d_pointwise.binary(
            *self._given(inputs), beside, self.bias, *self._window(), *self._gives(), *added, self.after, [], ""
        )
        return outputs

    def _given(self, inputs: torch.Tensor) -> tuple[torch.Tensor, float, int, torch.Tensor, torch.Tensor, torch.Tensor]:
        if not self.packed:  # which order of the weights is quick depends on the shape: that of the first inputs decides
            self.weights = torch.ops.onednn.qconv_prepack(
                self.weights, self.weight_scales, self.input_scale, self.input_zero_point, *self._window(), inputs.shape
            )
            self.packed = True
        return inputs, self.input_scale, self.input_zero_point, self.weights, self.weight_scales, self.weight_zeros

    def _window(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        return self.stride, self.padding, (1, 1), 1

    def _gives(self) -> tuple[float, int, torch.dtype]:
        return self.gives.scale, self.gives.zero_point, torch.uint8


class Emulated(Convolution):
    """The same in floats that hold integers.

    Sums of products of integers are whole numbers, and float32 holds those up to 16 million exactly. Larger ones, which only
    the widest layers reach, may be off by a few units: that moves a result by one step where it was halfway between two.
    """

    kernels: torch.Tensor
    factors: torch.Tensor
    added: torch.Tensor

    def __init__(
        self, convolution: nn.Conv2d, norm_layer: nn.BatchNorm2d, given: Integers, gives: Integers, *, relu: bool = True
    ) -> None:
        super().__init__(convolution, norm_layer, given, gives, relu=relu)
        self.register_buffer("kernels", self.weights.float(), persistent=False)
        self.register_buffer("factors", (self.input_scale * self.weight_scales)[:, None, None], persistent=False)
        self.register_buffer("added", self.bias[:, None, None], persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs, rounded to integers."""
        return self._rounded(self._exact(inputs))

    def add_to(self, beside: torch.Tensor, side: Integers, inputs: torch.Tensor) -> torch.Tensor:
        """Return the ReLU of the sum with `beside`, rounded once."""
        return self._rounded(self._exact(inputs).add_((beside - side.zero_point).mul_(side.scale)))

    def _exact(self, inputs: torch.Tensor) -> torch.Tensor:
        centred = inputs - self.input_zero_point if self.input_zero_point else inputs  # zeros around the image stand for zero
        sums = nn.functional.conv2d(centred, self.kernels, stride=self.stride, padding=self.padding)
        return sums.mul_(self.factors).add_(self.added)

    def _rounded(self, exact: torch.Tensor) -> torch.Tensor:
        least = self.gives.zero_point if self.after == "relu" else 0
        return exact.mul_(1 / self.gives.scale).add_(self.gives.zero_point).round_().clamp_(least, LEVELS)


class _Residual(Residual):
    """A ResNet's block on integers."""

    last: Convolution

    def __init__(self, main: nn.Module, last: Convolution, side: nn.Module, beside: Integers) -> None:
        super().__init__(main, last, side)
        self.beside = beside

    def join(self, main: torch.Tensor, side: list[torch.Tensor]) -> torch.Tensor:
        whole = side[0] if len(side) == 1 else torch.cat(side, 2)
        return self.last.add_to(whole, self.beside, main)


class _MaxPool(nn.Module):
    """A maximum pooling on integers."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = (
            (window_side(size),) * 2 for size in (pool.kernel_size, pool.stride, pool.padding)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.is_floating_point():
            return nn.functional.max_pool2d(inputs, self.kernel_size, self.stride, self.padding)
        largest: torch.Tensor = torch.ops.quantized.max_pool2d(
            inputs, self.kernel_size, self.stride, self.padding, (1, 1), False
        )
        return largest
