"""The network against torchvision's: figures that torchvision 0.29 gave, and the same sum written out by hand."""

from __future__ import annotations

import pytest
import torch
from fakes import thin_network
from torch.nn import functional as F  # noqa: N812 (as everybody calls it)

from wsi_meta.models.model import load_model
from wsi_meta.models.resnet import ResNet

SUMS = [-0.445382, -1.887696, 33.197395]
"""Of the first weights of conv1, layer3.5.conv2 and fc after ``torch.manual_seed(0)``."""
DRAWN_NEXT = [0.651536, 0.362701]
LOGITS = [[-0.624776, -4.845404], [-0.638062, -3.268992]]
"""The first two of each image."""


@pytest.fixture(scope="module")
def seeded() -> ResNet:
    torch.manual_seed(0)
    return ResNet().eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.linspace(-2, 2, 2 * 3 * 96 * 96).reshape(2, 3, 96, 96).sin()


def by_hand(state: dict[str, torch.Tensor], inputs: torch.Tensor, depths: tuple[int, ...]) -> torch.Tensor:
    """The logits of a ResNet in evaluation mode from the tensors of its state alone."""

    def normed(inputs: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(inputs, mean, var, weight, bias)

    features = F.conv2d(inputs, state["conv1.weight"], stride=2, padding=3)
    features = F.max_pool2d(F.relu(normed(features, "bn1")), 3, 2, 1)
    for layer, depth in enumerate(depths, 1):
        for block in range(depth):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            main = F.relu(normed(F.conv2d(features, state[f"{name}.conv1.weight"]), f"{name}.bn1"))
            main = F.relu(normed(F.conv2d(main, state[f"{name}.conv2.weight"], stride=stride, padding=1), f"{name}.bn2"))
            main = normed(F.conv2d(main, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            if block == 0:
                shortened = F.conv2d(features, state[f"{name}.downsample.0.weight"], stride=stride)
                features = normed(shortened, f"{name}.downsample.1")
            features = F.relu(main + features)
    return F.linear(features.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def test_a_seed_gives_the_first_weights_that_torchvision_gives(seeded: ResNet) -> None:
    state = seeded.state_dict()
    sums = [float(state[f"{name}.weight"].sum()) for name in ("conv1", "layer3.5.conv2", "fc")]
    assert sums == pytest.approx(SUMS, abs=1e-3)
    torch.manual_seed(0)
    ResNet()
    assert torch.rand(2).tolist() == pytest.approx(DRAWN_NEXT, abs=1e-6)


def test_its_logits_are_torchvisions(seeded: ResNet, images: torch.Tensor) -> None:
    with torch.inference_mode():
        logits = seeded(images)
    assert logits.shape == (2, 1000)
    assert torch.allclose(logits[:, :2], torch.tensor(LOGITS), atol=1e-4)


def test_its_logits_are_those_of_the_sum_by_hand(images: torch.Tensor) -> None:
    model = load_model()
    with torch.inference_mode():
        found, expected = model.network(images), by_hand(model.network.state_dict(), images, (3, 4, 6, 3))
    assert found.shape == (2, 1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_names_are_in_torchvisions_order(seeded: ResNet) -> None:
    names = list(seeded.state_dict())
    assert len(names) == 320
    assert names[:3] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert [name.split(".", 2)[2] for name in names if name.startswith("layer2.0.") and name.endswith("weight")] == [
        *("conv1.weight", "bn1.weight", "conv2.weight", "bn2.weight", "conv3.weight", "bn3.weight"),
        *("downsample.0.weight", "downsample.1.weight"),
    ]
    assert names[-2:] == ["fc.weight", "fc.bias"]


def test_gradients_reach_every_weight() -> None:
    network = thin_network(4).train()
    network(torch.rand(2, 3, 96, 96)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())
