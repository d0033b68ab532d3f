from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from wsi_meta.evaluation.gradcam import grad_cam
from wsi_meta.models.card import ModelCard
from wsi_meta.models.model import Model, build_network, load_model

CORNERS = ["upper left", "upper right", "lower left", "lower right"]


class Small(nn.Module):
    """Sees darkness, a mean over each ninth of the patch, and nothing else; its logit is the sum of it, times `sign`."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        darkness = nn.Conv2d(3, 2, 1)
        self.layer4 = nn.Sequential(darkness, nn.ReLU(), nn.AvgPool2d(32))
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(2, 1)
        with torch.no_grad():
            darkness.weight.copy_(torch.tensor([[-1.0] * 3, [0.0] * 3])[..., None, None])
            darkness.get_parameter("bias").zero_()
            self.fc.weight.copy_(torch.tensor([[sign, 0.0]]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.dropout(self.layer4(images).mean((2, 3))))
        return logits


def rigged_resnet(sign: float) -> nn.Module:
    """A ResNet50 whose residual branches are silent and whose shortcuts carry one channel: darkness at the stride's pixels."""
    network = build_network()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.zero_()
        network.get_parameter("conv1.weight")[0, :, 3, 3] = -1
        for stage in range(1, 5):
            blocks = network.get_submodule(f"layer{stage}")
            for block in blocks.children():
                block.get_parameter("bn3.weight").zero_()
            blocks.get_parameter("0.downsample.0.weight")[0, 0] = 1
        network.get_parameter("fc.weight").zero_()
        network.get_parameter("fc.weight")[0, 0] = sign
    return network.eval()


def model_of(network: nn.Module) -> Model:
    return Model(network, ModelCard(), "", Path("m.safetensors"))


def dark_in(corner: str) -> NDArray[np.uint8]:
    """One white patch with a dark square in a corner."""
    patch = np.full((1, 96, 96, 3), 255, np.uint8)
    rows = slice(0, 28) if "upper" in corner else slice(64, 96)
    cols = slice(0, 28) if "left" in corner else slice(64, 96)
    patch[:, rows, cols] = 20
    return patch


def share_in(heat: NDArray[np.float32], corner: str) -> float:
    """The part of a map's mass in the quarter of that name."""
    rows = slice(0, 48) if "upper" in corner else slice(48, 96)
    cols = slice(0, 48) if "left" in corner else slice(48, 96)
    return float(heat[rows, cols].sum() / heat.sum())


@pytest.mark.parametrize("make", [Small, rigged_resnet])
def test_the_map_is_where_the_evidence_is(make: Callable[[float], nn.Module]) -> None:
    model = model_of(make(1.0))
    patches = np.concatenate([dark_in(corner) for corner in CORNERS])

    maps = grad_cam(model, patches)

    assert maps.shape == (4, 96, 96)
    assert maps.dtype == np.float32
    for heat, corner in zip(maps, CORNERS, strict=True):
        assert share_in(heat, corner) > 0.95, corner
        assert heat.max() == 1
        assert heat.min() == 0


@pytest.mark.parametrize("make", [Small, rigged_resnet])
def test_evidence_against_tumor_is_shown_where_asked_for(make: Callable[[float], nn.Module]) -> None:
    model = model_of(make(-1.0))
    patches = np.concatenate([dark_in("lower left")] * 2)

    towards, against = grad_cam(model, patches, towards_tumor=np.array([True, False]))

    assert not towards.any()
    assert share_in(against, "lower left") > 0.95


def test_a_map_depends_on_its_own_patch_alone(model_file: Path) -> None:
    model, against = load_model(model_file), np.zeros(3, bool)
    patches = np.concatenate([dark_in(corner) for corner in CORNERS[:3]])

    together = grad_cam(model, patches, towards_tumor=against)

    assert np.allclose(together[1:2], grad_cam(model, patches[1:2], towards_tumor=against[:1]), atol=1e-4)
    assert not np.allclose(together[0], together[1], atol=0.05)


@pytest.mark.parametrize("wanting", [True, False])
def test_the_network_is_left_as_it_was(wanting: bool) -> None:
    network = Small(1.0).train()
    network.layer4.eval()
    network.requires_grad_(wanting)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    model = model_of(network)

    with torch.inference_mode():
        first = grad_cam(model, dark_in("upper left"))

    assert np.array_equal(first, grad_cam(model, dark_in("upper left")))  # the dropout was off
    assert network.training
    assert network.dropout.training
    assert not network.layer4.training
    assert all(parameter.requires_grad is wanting and parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network.layer4._forward_hooks


def test_hooks_go_even_when_the_network_fails() -> None:
    network = Small(1.0).train()
    network.fc = nn.Linear(3, 1)

    with pytest.raises(RuntimeError):
        grad_cam(model_of(network), dark_in("upper left"))

    assert not network.layer4._forward_hooks
    assert network.training


def test_no_patches_have_no_maps() -> None:
    assert grad_cam(model_of(Small(1.0)), np.empty((0, 96, 96, 3), np.uint8)).shape == (0, 96, 96)
