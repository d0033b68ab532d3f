"""ResNet50 (v1.5: a block halves its image in the 3x3 convolution): names, their order and first weights are torchvision's.

Its trunk takes images of any size, and gives features after a stage, or a logit for each cell.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import avg_pool2d

__all__ = [
    "IMAGENET_WEIGHTS",
    "RESNET50",
    "Bottleneck",
    "ResNet",
    "Stage",
    "at_rest",
    "cell_features",
    "cell_logits",
    "features_after",
]

IMAGENET_WEIGHTS = "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"
"""torchvision's ``ResNet50_Weights.IMAGENET1K_V2``; its name ends with the start of the file's SHA-256."""


@dataclass(frozen=True)
class Stage:
    """Blocks of one width, which see the same side of the image."""

    blocks: int
    width: int
    """Features of the 3x3 convolutions."""
    features: int
    """What each block gives to the next."""


RESNET50 = (Stage(3, 64, 256), Stage(4, 128, 512), Stage(6, 256, 1024), Stage(3, 512, 2048))


class Bottleneck(nn.Module):
    """A block of three convolutions beside a way around them.

    Parameters
    ----------
    inputs, width, features : features that come in, of the 3x3 convolution, and that go out
    stride : 2 where the block halves its image
    """

    def __init__(self, inputs: int, width: int, features: int, stride: int) -> None:
        super().__init__()
        beside: nn.Sequential | None = None
        if stride != 1 or inputs != features:  # made first: a seed gives the first weights that torchvision gives
            beside = nn.Sequential(_convolution(inputs, features, 1, stride), nn.BatchNorm2d(features))
        self.conv1 = _convolution(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, features, 1)
        self.bn3 = nn.BatchNorm2d(features)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = beside

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what goes out: tensor (n, features, rows, cols)."""
        main = self.relu(self.bn1(self.conv1(inputs)))
        main = self.relu(self.bn2(self.conv2(main)))
        main = self.bn3(self.conv3(main))
        main += inputs if self.downsample is None else self.downsample(inputs)
        out: torch.Tensor = self.relu(main)
        return out


class ResNet(nn.Module):
    """A ResNet of four stages of :class:`Bottleneck`, randomly initialised; a ResNet50 without arguments.

    Parameters
    ----------
    stages : the first sees a quarter of the image's side, each other one half of what the one before it sees
    classes : logits of an image
    """

    def __init__(self, stages: tuple[Stage, Stage, Stage, Stage] = RESNET50, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = _convolution(3, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(stages[0], 64, 1)
        self.layer2 = _stage(stages[1], stages[0].features, 2)
        self.layer3 = _stage(stages[2], stages[1].features, 2)
        self.layer4 = _stage(stages[3], stages[2].features, 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(stages[3].features, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:  # there torch would import its compiler: 2.5 s
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits of images: tensor (n, classes) of (n, 3, rows, cols)."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(inputs))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logits: torch.Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


def cell_logits(network: nn.Module, inputs: torch.Tensor, *, step: int = 1) -> torch.Tensor:
    """Return the logit of every cell of larger images by one pass of the trunk: dense mode.

    ResNet50's trunk has a stride of 32 px, so each of its features stands for a cell, and a patch of 96 px is 3x3 of them:
    their mean is what the head of the patch classifier sees. A single patch gives one logit, the same as ``network(inputs)``.

    Parameters
    ----------
    network : ResNet50 as :func:`wsi_meta.models.model.build_network` makes it
    inputs : float32 tensor (n, 3, height, width), sides in multiples of 32 and at least 96
    step : features from one window to the next: 1 scores every cell, 3 every patch of a mosaic

    Returns
    -------
    tensor (n, rows, cols): ``(side / 32 - 3) // step + 1`` logits a side.
    """
    logits: torch.Tensor = network.get_submodule("fc")(cell_features(network, inputs, step=step))[..., 0]
    return logits


def cell_features(network: nn.Module, inputs: torch.Tensor, *, step: int = 1) -> torch.Tensor:
    """Return what the head sees of every cell of larger images, of each patch where an image is one.

    Parameters
    ----------
    network, inputs, step : as for :func:`cell_logits`

    Returns
    -------
    tensor (n, rows, cols, 2048).
    """
    return avg_pool2d(features_after("layer4", network, inputs), kernel_size=3, stride=step).permute(0, 2, 3, 1)


def features_after(last: str, network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return what the stages of a network up to `last` make of its input: tensor (n, channels, rows, cols)."""
    features = inputs
    for name, stage in network.named_children():
        features = stage(features)
        if name == last:
            break
    return features


def at_rest(network: nn.Module) -> nn.Module:
    """Return a network in evaluation mode, in float32 on the CPU: itself where it is that, else a copy."""
    state = network.state_dict().values()
    plain = all(tensor.dtype == torch.float32 for tensor in state if tensor.is_floating_point())
    if plain and all(tensor.device.type == "cpu" for tensor in state) and not any(part.training for part in network.modules()):
        return network
    return copy.deepcopy(network).to("cpu", torch.float32).eval()


def _convolution(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)


def _stage(stage: Stage, inputs: int, stride: int) -> nn.Sequential:
    first = Bottleneck(inputs, stage.width, stage.features, stride)
    others = (Bottleneck(stage.features, stage.width, stage.features, 1) for _ in range(1, stage.blocks))
    return nn.Sequential(first, *others)
