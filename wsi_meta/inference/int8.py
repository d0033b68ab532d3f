"""A ResNet in 8-bit integers, faster than bf16 on CPUs with VNNI. It needs no data: ranges follow from BatchNorm.

After training, BatchNorm gives every channel a known mean and spread (its bias and weight). An activation's range is chosen so
that the share :data:`CLIPPED` of such normally distributed values lies beyond it (Nagel et al. 2019, Data-Free Quantization).
Weights are rounded per output channel, symmetrically; activations per tensor. Sums are exact integers, so results do not
depend on batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm
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

CLIPPED = 1e-6
"""Share of an activation's values that may lie beyond its range: chosen by measurement (docs/benchmarks.md)."""
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
    entry = _Enter(preprocessing)
    stem = _Convolution(network.conv1, network.bn1, entry.scale, entry.zero_point, relu=True)
    layers: list[nn.Module] = [entry, stem, _MaxPool(network.maxpool)]
    seen, scale = _rectified(_moments(network.bn1)), stem.scale
    for block in network.blocks():
        beside: nn.Module = nn.Identity()
        side_scale, side_zero_point = scale, 0
        if block.downsample is not None:
            shortened, normed = cast(tuple[nn.Conv2d, nn.BatchNorm2d], tuple(block.downsample))
            beside = _Convolution(shortened, normed, scale, 0, relu=False)
            seen, side_scale, side_zero_point = _moments(normed), beside.scale, beside.zero_point
        added = _sum(_moments(block.bn3), seen)
        first = _Convolution(block.conv1, block.bn1, scale, 0, relu=True)
        second = _Convolution(block.conv2, block.bn2, first.scale, 0, relu=True)
        scale, seen = _upper(added) / LEVELS, _rectified(added)
        last = _Convolution(block.conv3, block.bn3, second.scale, 0, relu=True, scale=scale)
        layers.append(_Residual(nn.Sequential(first, second), last, beside, side_scale, side_zero_point))
    return nn.Sequential(*layers, _Leave(scale))


class _Enter(nn.Module):
    """From the model's input to integers."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        ends = [[(end - mean) / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)] for end in (0, 1)]
        self.scale, self.zero_point = _fit(min(ends[0]), max(ends[1]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs * (1 / self.scale)).add_(self.zero_point).round_().clamp_(0, LEVELS).to(torch.uint8)


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
    scale, zero_point : an output `q` stands for ``(q - zero_point) * scale``
    """

    def __init__(
        self,
        convolution: nn.Conv2d,
        norm_layer: nn.BatchNorm2d,
        input_scale: float,
        input_zero_point: int,
        *,
        relu: bool,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        folded = fuse_conv_bn_eval(convolution, norm_layer)
        sizes = (convolution.kernel_size, convolution.stride, convolution.padding)
        self.kernel_size, self.stride, self.padding = ((window_side(size),) * 2 for size in sizes)
        self.input_scale, self.input_zero_point = input_scale, input_zero_point
        if relu:
            self.scale, self.zero_point = scale or _upper(_moments(norm_layer)) / LEVELS, 0
        else:
            mean, spread = _moments(norm_layer)
            self.scale, self.zero_point = _fit(-_upper((-mean, spread)), _upper((mean, spread)))
        self.after = "relu" if relu else "none"
        weights = folded.weight.detach()
        self.weight_scales = (weights.abs().amax((1, 2, 3)) / 127).clamp_min(1e-12)
        rounded = (weights / self.weight_scales[:, None, None, None]).round().to(torch.int8)
        self.weight_zeros, self.bias = torch.zeros(len(weights), dtype=torch.long), folded.bias
        self.weights, self.packed = rounded, False

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = torch.ops.onednn.qconv2d_pointwise(
            *self._given(inputs), self.bias, *self._window(), *self._gives(), self.after, [], ""
        )
        return outputs

    def add_to(self, side: torch.Tensor, side_scale: float, side_zero_point: int, inputs: torch.Tensor) -> torch.Tensor:
        """Return the ReLU of the sum with `side`, which is overwritten. The convolution's own result is not rounded first."""
        added = side_scale, side_zero_point, "sum", 1.0
        outputs: torch.Tensor = torch.ops.onednn.qconv2d_pointwise.binary(
            *self._given(inputs), side, self.bias, *self._window(), *self._gives(), *added, self.after, [], ""
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
        return self.scale, self.zero_point, torch.uint8


class _Residual(Residual):
    """A ResNet's block on integers."""

    last: _Convolution

    def __init__(self, main: nn.Module, last: _Convolution, side: nn.Module, side_scale: float, side_zero_point: int) -> None:
        super().__init__(main, last, side)
        self.side_scale, self.side_zero_point = side_scale, side_zero_point

    def join(self, main: torch.Tensor, side: list[torch.Tensor]) -> torch.Tensor:
        whole = side[0] if len(side) == 1 else torch.cat(side, 2)
        return self.last.add_to(whole, self.side_scale, self.side_zero_point, main)


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
    below, density = norm.cdf(mean / spread), norm.pdf(mean / spread)
    first = mean * below + spread * density
    second = (mean**2 + spread**2) * below + mean * spread * density
    return first, np.sqrt(np.maximum(second - first**2, 0))


def _upper(moments: Moments) -> float:
    """Return the value, above 0, that the share :data:`CLIPPED` of all channels' normally distributed values exceeds."""
    mean, spread = moments[0], np.maximum(moments[1], 1e-9)
    ends = float((mean - spread).min()), float((mean + 10 * spread).max())
    return max(float(brentq(lambda value: norm.sf(value, mean, spread).mean() - CLIPPED, *ends)), 1e-6)


def _fit(low: float, high: float) -> tuple[float, int]:
    """Return scale and zero point of integers for a range around 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-6) / LEVELS
    return scale, round(-low / scale)
