"""What a ResNet50's convolutional trunk makes of an image of any size: features after a stage, and a logit for each cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["cell_features", "cell_logits", "features_after"]


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
    from torch.nn.functional import avg_pool2d

    return avg_pool2d(features_after("layer4", network, inputs), kernel_size=3, stride=step).permute(0, 2, 3, 1)


def features_after(last: str, network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return what the stages of a network up to `last` make of its input: tensor (n, channels, rows, cols)."""
    features = inputs
    for name, stage in network.named_children():
        features = stage(features)
        if name == last:
            break
    return features
