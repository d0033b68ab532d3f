"""A ResNet in 8-bit integers, faster than bf16 on CPUs with VNNI. It needs no data: ranges follow from BatchNorm.

After training, BatchNorm gives every channel a known mean and spread (its bias and weight; Nagel et al. 2019, Data-Free
Quantization). An activation's range follows from them: some deviations above its channels' means, more in later blocks, where
few values are far larger than all others. Weights are rounded per output channel, symmetrically; activations per tensor. What
rounded weights change on average, which follows from the inputs' means, is taken off the bias. Sums are exact integers, so
results do not depend on batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wsi_meta.errors import DeviceError
from wsi_meta.inference.bands import Residual, window_side
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.resnet import ResNet

__all__ = ["check_operators", "quantised_trunk"]

OPERATORS = (
    "onednn::qconv_prepack",
    "onednn::qconv2d_pointwise",
    "onednn::qconv2d_pointwise.binary",
    "quantized::max_pool2d",
)
"""All operators of torch that are used here. They are private: another version of torch may lack one."""

DEVIATIONS, GROWTH = 4.0, 9.0
"""How many standard deviations above each channel's mean a range reaches in the first block, and by how many times that it
reaches farther in the last one: chosen by measurement (docs/notebook.md)."""
LEVELS = 255
"""Steps of an unsigned 8-bit activation."""
Moments = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Mean and standard deviation of every channel."""


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


def quantised_trunk(network: nn.Module, preprocessing: Preprocessing, *, operators: Iterable[str] = OPERATORS) -> nn.Sequential:
    """Return a ResNet up to its last feature: float32 model input in, float32 features out, integers between.

    Parameters
    ----------
    network : ResNet with its BatchNorms; it is left as it is
    preprocessing : tells the range of the model's input
    operators : what torch must have

    Raises
    ------
    DeviceError
        when torch lacks an operator.
    """
    check_operators(operators)
    network = cast(ResNet, network)
    entry, seen = _Enter(preprocessing), _rectified(_moments(network.bn1))
    given = _positive(_moments(network.bn1), 0)
    layers: list[nn.Module] = [entry, _Convolution(network.conv1, network.bn1, entry.gives, given), _MaxPool(network.maxpool)]
    blocks = list(network.blocks())
    for place, block in enumerate(blocks):
        depth = place / max(1, len(blocks) - 1)
        beside: nn.Module = nn.Identity()
        side = given
        if block.downsample is not None:
            shortened, normed = cast(tuple[nn.Conv2d, nn.BatchNorm2d], tuple(block.downsample))
            seen = _moments(normed)
            side = _signed(seen, depth)
            beside = _Convolution(shortened, normed, given, side, relu=False)
        first = _Convolution(block.conv1, block.bn1, given, _positive(_moments(block.bn1), depth))
        second = _Convolution(block.conv2, block.bn2, first.gives, _positive(_moments(block.bn2), depth))
        added = _sum(_moments(block.bn3), seen)
        given, seen = _positive(added, depth), _rectified(added)
        layers.append(
            _Residual(nn.Sequential(first, second), _Convolution(block.conv3, block.bn3, second.gives, given), beside, side)
        )
    return nn.Sequential(*layers, _Leave(given.scale))


@dataclass(frozen=True, eq=False)
class _Integers:
    """What the integers `q` between two layers stand for: ``(q - zero_point) * scale``."""

    scale: float
    zero_point: int
    means: NDArray[np.float64]
    """What each channel is expected to be on average."""


class _Enter(nn.Module):
    """From the model's input to integers."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        ends = [[(end - mean) / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)] for end in (0, 1)]
        self.gives = _Integers(*_fit(min(ends[0]), max(ends[1])), np.zeros(len(preprocessing.mean)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs * (1 / self.gives.scale)).add_(self.gives.zero_point).round_().clamp_(0, LEVELS).to(torch.uint8)


class _Leave(nn.Module):
    """From integers to features."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.float().mul_(self.scale)


class _Convolution(nn.Module):
    """A convolution, its BatchNorm and, if asked for, a ReLU, on integers.

    Attributes
    ----------
    gives : what its outputs stand for
    """

    def __init__(
        self, convolution: nn.Conv2d, norm_layer: nn.BatchNorm2d, given: _Integers, gives: _Integers, *, relu: bool = True
    ) -> None:
        super().__init__()
        folded = fuse_conv_bn_eval(convolution, norm_layer)
        sizes = (convolution.kernel_size, convolution.stride, convolution.padding)
        self.kernel_size, self.stride, self.padding = ((window_side(size),) * 2 for size in sizes)
        self.input_scale, self.input_zero_point, self.gives = given.scale, given.zero_point, gives
        self.after = "relu" if relu else "none"
        weights = folded.weight.detach()
        self.weight_scales = (weights.abs().amax((1, 2, 3)) / 127).clamp_min(1e-12)
        scales = self.weight_scales[:, None, None, None]
        rounded = (weights / scales).round()
        added = (rounded.double() * scales - weights).sum((2, 3)) @ torch.from_numpy(given.means)
        self.bias = (cast(torch.Tensor, folded.bias).detach() - added).float()
        self.weight_zeros = torch.zeros(len(weights), dtype=torch.long)
        self.weights, self.packed = rounded.to(torch.int8), False

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = torch.ops.onednn.qconv2d_pointwise(
            *self._given(inputs), self.bias, *self._window(), *self._gives(), self.after, [], ""
        )
        return outputs

    def add_to(self, beside: torch.Tensor, side: _Integers, inputs: torch.Tensor) -> torch.Tensor:
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


class _Residual(Residual):
    """A ResNet's block on integers."""

    last: _Convolution

    def __init__(self, main: nn.Module, last: _Convolution, side: nn.Module, beside: _Integers) -> None:
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
        largest: torch.Tensor = torch.ops.quantized.max_pool2d(
            inputs, self.kernel_size, self.stride, self.padding, (1, 1), False
        )
        return largest


def _moments(norm_layer: nn.BatchNorm2d) -> Moments:
    """Return mean and standard deviation of a BatchNorm's output."""
    return norm_layer.bias.detach().double().numpy(), norm_layer.weight.detach().double().abs().numpy()


def _sum(one: Moments, other: Moments) -> Moments:
    """Return the moments of a sum, as if its parts were independent."""
    return one[0] + other[0], np.hypot(one[1], other[1])


def _rectified(moments: Moments) -> Moments:
    """Return the moments of normally distributed values after a ReLU (the rectified normal distribution)."""
    mean, spread = moments[0], np.maximum(moments[1], 1e-9)
    below, density = ndtr(mean / spread), np.exp(-((mean / spread) ** 2) / 2) / np.sqrt(2 * np.pi)
    first = mean * below + spread * density
    second = (mean**2 + spread**2) * below + mean * spread * density
    return first, np.sqrt(np.maximum(second - first**2, 0))


def _positive(moments: Moments, depth: float) -> _Integers:
    """Return integers for what a ReLU leaves of values with these moments; `depth` is 0 in the first block, 1 in the last."""
    return _Integers(_upper(moments, depth) / LEVELS, 0, _rectified(moments)[0])


def _signed(moments: Moments, depth: float) -> _Integers:
    """Return integers for values with these moments."""
    mean, spread = moments
    return _Integers(*_fit(-_upper((-mean, spread), depth), _upper(moments, depth)), mean)


def _upper(moments: Moments, depth: float) -> float:
    """Return the upper end, above 0, of the range of all channels.

    Later features answer to few things, and strongly: in the last block single values lie 30 deviations above the mean. What is
    cut off there is a larger error than coarser steps are.
    """
    mean, spread = moments
    return max(float((mean + DEVIATIONS * (1 + GROWTH * depth**2) * spread).max()), 1e-6)


def _fit(low: float, high: float) -> tuple[float, int]:
    """Return scale and zero point of integers for a range around 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-6) / LEVELS
    return scale, round(-low / scale)
