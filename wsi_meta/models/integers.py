"""What the 8-bit integers between a ResNet's layers stand for: from the ranges in its card, else from BatchNorm.

After training, BatchNorm gives every channel a known mean and spread (its bias and weight; Nagel et al. 2019, Data-Free
Quantization). Where no ranges were measured (:mod:`wsi_meta.models.equalise`), they follow from these: some deviations above
the channels' means, more in later blocks, where few values are far larger than all others.

Activations have the names of the BatchNorms that they come from; that of a block's last one stands for what the block gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import nn

from wsi_meta.models.resnet import Bottleneck, ResNet

__all__ = ["BESIDE", "LEVELS", "Integers", "Moments", "fit", "layers_beside", "named_blocks", "plan_integers", "weight_steps"]

DEVIATIONS, GROWTH = 4.0, 9.0
"""How many standard deviations above each channel's mean a range reaches in the first block, and by how many times that it
reaches farther in the last one: chosen by measurement (docs/notebook.md)."""
LEVELS = 255
"""Steps of an unsigned 8-bit activation."""
WEIGHT_LEVELS = 127
"""Steps of the largest weight of an output channel."""
BESIDE = ".downsample.1"
"""How the name of a BatchNorm beside a block ends: its values lie on both sides of 0."""
Moments = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Mean and standard deviation of every channel."""


@dataclass(frozen=True, eq=False)
class Integers:
    """What the integers `q` between two layers stand for: ``(q - zero_point) * scale``."""

    scale: float
    zero_point: int
    means: NDArray[np.float64]
    """What each channel is expected to be on average."""


def named_blocks(network: ResNet) -> Iterator[tuple[str, Bottleneck]]:
    """Yield the blocks of all stages with their names, the one nearest to the input first."""
    return ((name, module) for name, module in network.named_modules() if isinstance(module, Bottleneck))


def layers_beside(block: Bottleneck) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return the layers beside a block that has some."""
    return cast("tuple[nn.Conv2d, nn.BatchNorm2d]", tuple(cast("nn.Sequential", block.downsample)))


def weight_steps(weights: torch.Tensor) -> torch.Tensor:
    """Return the steps that weights (out, in, height, width) are rounded to, one for each output channel, (out, 1, 1, 1)."""
    return (weights.abs().amax((1, 2, 3), keepdim=True) / WEIGHT_LEVELS).clamp_min(1e-12)


def plan_integers(network: ResNet, ranges: Mapping[str, float] | None = None) -> dict[str, Integers]:
    """Return what the integers after each layer stand for, by the names of the BatchNorms.

    Parameters
    ----------
    network : ResNet with its BatchNorms
    ranges : largest value of each activation by name, and of both signs beside a block; None derives them from BatchNorm
    """
    expected = _expected(network)
    if ranges is None:
        return expected
    return {name: _within(name, ranges[name], integers.means) for name, integers in expected.items()}


def _within(name: str, reach: float, means: NDArray[np.float64]) -> Integers:
    return Integers(*fit(-reach if name.endswith(BESIDE) else 0.0, reach), means)


def _expected(network: ResNet) -> dict[str, Integers]:
    """Return the plan that follows from BatchNorm alone."""
    before = moments(network.bn1)
    plan, seen = {"bn1": positive(before, 0)}, rectified(before)
    blocks = list(named_blocks(network))
    for place, (name, block) in enumerate(blocks):
        depth = place / max(1, len(blocks) - 1)
        if block.downsample is not None:
            seen = moments(layers_beside(block)[1])
            plan[name + BESIDE] = signed(seen, depth)
        plan[f"{name}.bn1"] = positive(moments(block.bn1), depth)
        plan[f"{name}.bn2"] = positive(moments(block.bn2), depth)
        added = _sum(moments(block.bn3), seen)
        plan[f"{name}.bn3"], seen = positive(added, depth), rectified(added)
    return plan


def moments(norm_layer: nn.BatchNorm2d) -> Moments:
    """Return mean and standard deviation of a BatchNorm's output."""
    return norm_layer.bias.detach().double().cpu().numpy(), norm_layer.weight.detach().double().abs().cpu().numpy()


def _sum(one: Moments, other: Moments) -> Moments:
    """Return the moments of a sum, as if its parts were independent."""
    return one[0] + other[0], np.hypot(one[1], other[1])


def rectified(before: Moments) -> Moments:
    """Return the moments of normally distributed values after a ReLU (the rectified normal distribution)."""
    mean, spread = before[0], np.maximum(before[1], 1e-9)
    below, density = ndtr(mean / spread), np.exp(-((mean / spread) ** 2) / 2) / np.sqrt(2 * np.pi)
    first = mean * below + spread * density
    second = (mean**2 + spread**2) * below + mean * spread * density
    return first, np.sqrt(np.maximum(second - first**2, 0))


def positive(before: Moments, depth: float) -> Integers:
    """Return integers for what a ReLU leaves of values with these moments; `depth` is 0 in the first block, 1 in the last."""
    return Integers(upper(before, depth) / LEVELS, 0, rectified(before)[0])


def signed(before: Moments, depth: float) -> Integers:
    """Return integers for values with these moments."""
    mean, spread = before
    return Integers(*fit(-upper((-mean, spread), depth), upper(before, depth)), mean)


def upper(before: Moments, depth: float) -> float:
    """Return the upper end, above 0, of the range of all channels.

    Later features answer to few things, and strongly: in the last block single values lie 30 deviations above the mean. What is
    cut off there is a larger error than coarser steps are.
    """
    mean, spread = before
    return max(float((mean + DEVIATIONS * (1 + GROWTH * depth**2) * spread).max()), 1e-6)


def fit(low: float, high: float) -> tuple[float, int]:
    """Return scale and zero point of integers for a range around 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-6) / LEVELS
    return scale, round(-low / scale)
