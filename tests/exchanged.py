"""Networks as other tools build them, by plain torch, of a ResNet as thin as tests need it."""

from __future__ import annotations

from typing import Any

import torch
from fakes import thin_network
from torch import nn

__all__ = ["TiaLike", "TimmLike", "build_thin", "randomised"]

POSITIVE = ("running_var", "bn1.weight", "bn2.weight", "bn3.weight")
"""Ends of the names of what is about 1 in a BatchNorm."""


def build_thin() -> nn.Module:
    """The ResNet of the tests, with one logit."""
    return thin_network(4)


def with_head(network: Any, logits: int) -> Any:
    """The network with a head of so many logits, its own where it has as many."""
    if network.fc.out_features != logits:
        network.fc = nn.Linear(network.fc.in_features, logits)
    return network


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics of BatchNorm, so that none could be mistaken for another's; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
            values = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
            tensor.copy_(1 + 0.1 * values.abs() if name.endswith(POSITIVE) else values)
    return network.eval()


class TiaLike(nn.Module):
    """TIAToolbox's CNNModel: a backbone's children but for the last two, a pool, a classifier, and softmax."""

    def __init__(self, backbone: nn.Module, logits: int = 2) -> None:
        super().__init__()
        features: Any = backbone
        self.feat_extract = nn.Sequential(*list(backbone.children())[:-2])
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Linear(features.fc.in_features, logits)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.classifier(torch.flatten(self.pool(self.feat_extract(images)), 1))
        return found

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.logits(images), -1)


class TimmLike(nn.Module):
    """timm's ResNet: the activations and the pool have other names and places, the weights torchvision's."""

    def __init__(self, backbone: Any, logits: int = 2) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1, self.maxpool = backbone.conv1, backbone.bn1, nn.ReLU(), backbone.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(backbone.fc.in_features, logits)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        stem = self.maxpool(self.act1(self.bn1(self.conv1(images))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(stem))))
        found: torch.Tensor = self.fc(self.global_pool(features).flatten(1))
        return found

    forward = logits
