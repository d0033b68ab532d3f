"""A module of one's own as the predictor runs it: in float32, patch by patch, as it is."""

from __future__ import annotations

import copy

import torch
from torch import nn

from wsi_meta.errors import OptionsError
from wsi_meta.inference.options import InferencePlan
from wsi_meta.models.model import Model

__all__ = ["PlainNetwork"]


class PlainNetwork(nn.Module):
    """The network of :meth:`wsi_meta.Model.from_module`: uint8 pixels in, float32 logits out.

    Parameters
    ----------
    model : its network is left as it is
    plan : says the device, and fp32
    dense, compiled : False

    Raises
    ------
    OptionsError
        when they say otherwise.
    """

    def __init__(self, model: Model, plan: InferencePlan, *, dense: bool, compiled: bool) -> None:
        super().__init__()
        if plan.precision != "fp32" or dense or compiled:
            raise OptionsError(
                f"{model.path}: precision {plan.precision}, dense {dense}, compiled {compiled}; expected fp32, patch mode and "
                "compiled no: a module of one's own is run as it is"
            )
        self.preprocessing = model.card.preprocessing
        self.network = model.network if plan.device == "cpu" else copy.deepcopy(model.network)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (n,) of uint8 patches (n, patch_px, patch_px, 3) on the network's device."""
        logits: torch.Tensor = self.network(self.preprocessing.to_input(images))
        return logits[:, 0].float()
