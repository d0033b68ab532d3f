"""A ResNet's weights made for 8-bit integers: nearly the same function in float32, of which int8 is then a near image.

Channels of one activation share its steps, so those with small values get few. A ReLU lets factors pass, so each channel is
divided by one of its own, and what reads it is multiplied by that: then all reach about as far (Nagel et al. 2019, Data-Free
Quantization, there with ranges from BatchNorm; here with what they reach in patches). Blocks of a stage add to one another, so
they share their factors. Weights are then rounded to the very steps that :mod:`wsi_meta.inference.int8` rounds them to. So
float32 uses the rounded weights too, and they are no part of what int8 changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from wsi_meta.models.integers import BESIDE, layers_beside, named_blocks, weight_steps
from wsi_meta.models.resnet import ResNet

__all__ = ["fit_to_integers"]

REACHED = 0.995
"""Share of patches that stay within a channel's reach: a single odd patch would make the steps of all others coarse."""
HEADROOM = 1.2
"""By how many times the ranges are larger than what is reached: slides hold more than the patches of a training."""
LEAST_SHARE = 1 / 64
"""Of the farthest channel's reach: what a channel counts for that reaches less far, so that no factor is extreme."""


@dataclass(eq=False)
class _Stream:
    """Activations that share their channels' factors, because blocks add to them."""

    norms: list[nn.BatchNorm2d]
    """Those whose outputs are divided by the factors."""
    names: list[str]
    """Of the activations."""
    readers: list[nn.Conv2d | nn.Linear] = field(default_factory=list)
    """Layers that see them."""


def fit_to_integers(network: ResNet, batches: Sequence[torch.Tensor]) -> dict[str, float]:
    """Change a network's weights in place, so that it can be computed in 8-bit integers; return the ranges of activations.

    BatchNorm's means move by what rounded weights change on average in the first of the batches.

    Parameters
    ----------
    network : in evaluation mode
    batches : model inputs, float32 (n, 3, height, width), on the network's device; some hundred patches in all

    Returns
    -------
    dict: the largest value that each activation may have, of both signs beside a block, by the names of
    :func:`wsi_meta.models.integers.plan_integers`.
    """
    with torch.no_grad():
        _centre(network)
        means, reaches = _means_of_convolutions(network, batches[0]), _reaches(network, batches)
        found = {name: reach for stream in _streams(network) for name, reach in _equalise(stream, reaches).items()}
        for convolution, _ in _pairs(network):
            _round(convolution.weight)
        _restore_means(network, means, batches[0])
    return {name: found[name] for name in reaches}


def _centre(network: ResNet) -> None:
    """Let the values beside a block lie around 0: what they are added to takes over their means."""
    for _, block in named_blocks(network):
        if block.downsample is not None:
            _, norm = layers_beside(block)
            block.bn3.bias.add_(norm.bias)
            norm.bias.zero_()


def _pairs(network: ResNet) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Yield each convolution with the BatchNorm after it."""
    yield network.conv1, network.bn1
    for _, block in named_blocks(network):
        yield from ((block.conv1, block.bn1), (block.conv2, block.bn2), (block.conv3, block.bn3))
        if block.downsample is not None:
            yield layers_beside(block)


def _streams(network: ResNet) -> list[_Stream]:
    """Return all activations of a network, with what makes and what reads them."""
    given = _Stream([network.bn1], ["bn1"])
    streams = [given]
    for name, block in named_blocks(network):
        given.readers.append(block.conv1)
        if block.downsample is not None:
            convolution, norm = layers_beside(block)
            given.readers.append(convolution)
            given = _Stream([norm], [name + BESIDE])
            streams.append(given)
        given.norms.append(block.bn3)
        given.names.append(f"{name}.bn3")
        streams += [_Stream([block.bn1], [f"{name}.bn1"], [block.conv2]), _Stream([block.bn2], [f"{name}.bn2"], [block.conv3])]
    given.readers.append(network.fc)
    return streams


@contextmanager
def _seen(see: Callable[[Any, torch.Tensor], None], modules: dict[Any, nn.Module]) -> Iterator[None]:
    """Call `see` with the key and the output of each of these modules, as they give it."""
    with ExitStack() as stack:
        for key, module in modules.items():
            hook = module.register_forward_hook(lambda _module, _inputs, output, key=key: see(key, output))
            stack.callback(hook.remove)
        yield


def _means_of_convolutions(network: ResNet, inputs: torch.Tensor) -> dict[nn.BatchNorm2d, torch.Tensor]:
    """Return the mean of each channel of what each BatchNorm gets."""
    means: dict[nn.BatchNorm2d, torch.Tensor] = {}

    def see(norm: nn.BatchNorm2d, output: torch.Tensor) -> None:
        means[norm] = output.mean((0, 2, 3))

    with _seen(see, {norm: convolution for convolution, norm in _pairs(network)}):
        network(inputs)
    return means


def _restore_means(network: ResNet, means: dict[nn.BatchNorm2d, torch.Tensor], inputs: torch.Tensor) -> None:
    """Let each BatchNorm's outputs have the means that they had, from the first layer to the last."""

    def see(norm: nn.BatchNorm2d, output: torch.Tensor) -> None:
        cast("torch.Tensor", norm.running_mean).add_(output.mean((0, 2, 3)) - means[norm])

    with _seen(see, {norm: convolution for convolution, norm in _pairs(network)}):
        network(inputs)


def _reaches(network: ResNet, batches: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return how far each channel of each activation reaches from 0, (channels,) each, in nearly all patches."""
    modules: dict[Any, nn.Module] = {"bn1": network.bn1}
    for name, block in named_blocks(network):
        if block.downsample is not None:
            modules[name + BESIDE] = layers_beside(block)[1]
        modules |= {f"{name}.bn1": block.bn1, f"{name}.bn2": block.bn2, f"{name}.bn3": block}
    largest: dict[str, list[torch.Tensor]] = {name: [] for name in modules}

    def see(name: str, output: torch.Tensor) -> None:
        largest[name].append((output.abs() if name.endswith(BESIDE) else output).amax((2, 3)).clamp_min(0))

    with _seen(see, modules):
        for inputs in batches:
            network(inputs)
    return {name: torch.cat(rows).quantile(REACHED, dim=0) for name, rows in largest.items()}


def _equalise(stream: _Stream, reaches: dict[str, torch.Tensor]) -> dict[str, float]:
    """Divide a stream's channels by their factors; return the ranges of its activations then."""
    factors = _relative(torch.stack([_relative(reaches[name]) for name in stream.names]).amax(0))
    for norm in stream.norms:
        norm.weight.div_(factors)
        norm.bias.div_(factors)
    for reader in stream.readers:
        reader.weight.mul_(factors.view(-1, *[1] * (reader.weight.ndim - 2)))
    return {name: HEADROOM * float((reaches[name] / factors).max()) for name in stream.names}


def _relative(reach: torch.Tensor) -> torch.Tensor:
    """Return the channels' reaches relative to their geometric mean."""
    raised = reach.clamp_min(max(float(reach.max()) * LEAST_SHARE, 1e-6))
    return raised / raised.log().mean().exp()


def _round(weights: torch.Tensor) -> None:
    """Round weights to steps of their output channel, in place."""
    steps = weight_steps(weights)
    weights.copy_((weights / steps).round() * steps)
