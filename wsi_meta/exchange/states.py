"""The names that other tools give a ResNet50's weights, and heads of two logits, as ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from wsi_meta.errors import ModelFileError
from wsi_meta.models.card import Calibration
from wsi_meta.models.model import build_network
from wsi_meta.models.weights import COUNTS, HEAD, check_weights, find_names, half_precision

__all__ = ["FoundState", "compact", "find_state", "two_logits"]


@dataclass(frozen=True)
class FoundState:
    """A ResNet's weights under our names, with a head of one logit, and what they were found as."""

    state: dict[str, torch.Tensor]
    naming: str
    """``torchvision``, whose names timm's resnet50 has too, or ``tiatoolbox``."""
    logits: int
    """Of its own head: 1 or 2."""


def find_state(
    state: Mapping[str, torch.Tensor],
    *,
    source: object,
    naming: str = "auto",
    tumor_class: int = 1,
    build: Callable[[], nn.Module] = build_network,
) -> FoundState:
    """Find a ResNet and its head among named tensors, whatever stands before their names.

    Parameters
    ----------
    state : tensors by the names in the file
    source : names the file, for messages
    naming : ``auto``; ``torchvision`` or ``timm``, which are the same: ``layer1.0.conv1.weight``; ``tiatoolbox``:
        ``feat_extract.4.0.conv1.weight`` and ``classifier.weight``
    tumor_class : which of two logits is the tumor's
    build : makes the network that the weights are for

    Raises
    ------
    ModelFileError
        when it is another network or several, when its head has not one or two logits, when there are tensors that belong to
        neither, or weights that no network computes with.
    """
    with torch.device("meta"):
        network = build()
    own, match = network.state_dict(), find_names(state, network, source, naming)
    if match.missing:
        example, whole = next(iter(state), ""), len(match.missing) + len(match.names)
        raise ModelFileError(
            f"{source}: lacks {len(match.missing)} of the {whole} tensors of a ResNet50's trunk, such as '{match.missing[0]}' "
            f"(its first tensor is '{example}'); expected a resnet50 with torchvision's, timm's or TIAToolbox's names"
        )
    found = {name: state[theirs] for theirs, name in match.names.items()}
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            found_shape, expected = tuple(tensor.shape), tuple(own[name].shape)
            raise ModelFileError(f"{source}: '{name}' is {found_shape}; expected {expected}: is it another network?")
    check_weights({theirs: state[theirs] for theirs in match.names}, source)
    rest = {name: tensor for name, tensor in state.items() if name not in match.names and not name.endswith(COUNTS)}
    weight, bias = _find_head(rest, own[f"{HEAD}weight"].shape[1], source)
    zeros = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in own.items() if name.endswith(COUNTS)}
    head = {f"{HEAD}weight": _one_logit(weight, tumor_class), f"{HEAD}bias": _one_logit(bias, tumor_class)}
    filled = zeros | {name: _plain(tensor) for name, tensor in found.items()} | head
    return FoundState({name: filled[name] for name in own}, match.naming, len(weight))


def compact(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights of which those kernels are float16 that it holds exactly, as our own models have; others as given."""
    half = half_precision(state)
    return {name: half[name] if torch.equal(half[name].to(tensor.dtype), tensor) else tensor for name, tensor in state.items()}


def two_logits(weight: torch.Tensor, bias: torch.Tensor, calibration: Calibration) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a head of two logits whose softmax is the calibrated probability: 0, and the calibrated logit.

    Parameters
    ----------
    weight, bias : of a head of one logit, (1, channels) and (1,)
    """
    ours = (weight.double() / calibration.temperature, bias.double() / calibration.temperature + calibration.bias)
    weight, bias = (torch.cat([torch.zeros_like(part), part]).float() for part in ours)
    return weight, bias


def _find_head(rest: Mapping[str, torch.Tensor], channels: int, source: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight (logits, channels) and bias (logits,) of the head: all that is left beside the trunk."""
    weights = [
        name for name, tensor in rest.items() if tensor.shape[1:2] == (channels,) and tensor.shape[1:].numel() == channels
    ]
    if not weights:
        raise ModelFileError(
            f"{source}: has no head, which takes {channels} features; expected a classifier of one or two logits"
        )
    name, place = weights[0], weights[0].removesuffix("weight")
    others = sorted(set(rest) - {name, f"{place}bias"})
    if others:
        raise ModelFileError(
            f"{source}: '{others[0]}' belongs neither to a ResNet50 nor to its head '{name}'; expected these alone"
        )
    check_weights(rest, source)
    weight = _plain(rest[name]).flatten(1)
    bias = _plain(rest.get(f"{place}bias", torch.zeros(len(weight), dtype=torch.float32)))
    if len(weight) not in (1, 2) or bias.shape != (len(weight),):
        raise ModelFileError(f"{source}: its head '{name}' has {len(weight)} classes; expected one or two: normal and tumor")
    return weight, bias


def _one_logit(values: torch.Tensor, tumor_class: int) -> torch.Tensor:
    """Return the tumor's row less the other's, which is exact: a softmax of two depends on their difference alone."""
    if len(values) == 1:
        return values
    return (values[tumor_class : tumor_class + 1].double() - values[1 - tumor_class : 2 - tumor_class].double()).float()


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return float16 as it is, other floats as float32."""
    return tensor.float() if tensor.is_floating_point() and tensor.dtype != torch.float16 else tensor
