"""Weights made for 8-bit integers: nearly the same function, and int8 is near it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import thin_network
from slide_files import texture

from wsi_meta.errors import ModelFileError
from wsi_meta.inference.fast_network import FastNetwork
from wsi_meta.inference.int8 import Emulated
from wsi_meta.models.card import RANGES, ModelCard
from wsi_meta.models.equalise import HEADROOM, fit_to_integers
from wsi_meta.models.integers import BESIDE, LEVELS, layers_beside, named_blocks, plan_integers
from wsi_meta.models.model import Model
from wsi_meta.models.resnet import ResNet, Stage
from wsi_meta.models.weights import check_weights, half_precision


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Eight patches."""
    return torch.stack([torch.from_numpy(texture(96, 96, seed)) for seed in range(8)])


@pytest.fixture(scope="module")
def inputs(pixels: torch.Tensor) -> torch.Tensor:
    return ModelCard().preprocessing.to_input(pixels)


def uneven_network(inputs: torch.Tensor) -> ResNet:
    """A thin ResNet with random weights (seed 0), BatchNorm's statistics of its own, and channels of very different reach."""
    torch.manual_seed(0)
    network = thin_network(16)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data = 10 ** torch.randn(module.num_features).mul(0.5).clamp(-1, 1)
            module.bias.data = torch.randn(module.num_features) * module.weight.data
            module.momentum = None
    with torch.no_grad():
        network.train()(inputs)
        network.eval()
        network.fc.weight /= network(inputs).std()
    return network


@pytest.fixture
def network(inputs: torch.Tensor) -> ResNet:
    return uneven_network(inputs)


def model_of(network: ResNet, ranges: dict[str, float] | None) -> Model:
    """The model as its file would hold it."""
    network.load_state_dict(half_precision(network.state_dict()))
    return Model(network, ModelCard(training={} if ranges is None else {RANGES: ranges}), "", Path())


@torch.inference_mode()
def unlike_float32(model: Model, pixels: torch.Tensor) -> float:
    """How far int8's logits are from those of float32, on average, where these have a deviation of 1."""
    exact, rounded = (FastNetwork(model, precision=name, dense=False, emulated=True)(pixels) for name in ("fp32", "int8"))
    return float((exact - rounded).abs().mean() / exact.std())


def reaches(network: ResNet, inputs: torch.Tensor, name: str) -> torch.Tensor:
    """How far each channel of an activation reaches in nearly all patches."""
    seen: list[torch.Tensor] = []
    hook = network.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: seen.append(output.clone()))
    with torch.no_grad():
        network(inputs)
    hook.remove()
    values = seen[0].abs() if name.endswith(BESIDE) else seen[0].clamp_min(0)
    return values.amax((2, 3)).quantile(0.995, dim=0)


def test_the_function_stays_and_int8_comes_near_it(network: ResNet, inputs: torch.Tensor, pixels: torch.Tensor) -> None:
    with torch.no_grad():
        before = network(inputs)
    apart = unlike_float32(model_of(uneven_network(inputs), None), pixels)

    ranges = fit_to_integers(network, [inputs])

    with torch.no_grad():
        after = network(inputs)
    assert not torch.equal(before, after)
    assert float((before - after).abs().mean()) < 0.1 * float(before.std())
    assert unlike_float32(model_of(network, ranges), pixels) < apart / 5


def test_weights_lie_on_the_steps_that_int8_rounds_them_to(network: ResNet, inputs: torch.Tensor) -> None:
    ranges = fit_to_integers(network, [inputs])
    trunk = FastNetwork(model_of(network, ranges), precision="int8", dense=False, emulated=True).trunk

    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    for layer in convolutions:
        weights = layer.weight.detach()
        steps = weights / weights.abs().amax((1, 2, 3), keepdim=True) * 127
        assert float((steps - steps.round()).abs().max()) < 0.15
    rounded = [module.kernels for module in trunk.modules() if isinstance(module, Emulated)]
    assert len(rounded) == len(convolutions)
    assert all(float(weights.abs().max()) == 127 for weights in rounded)


def test_channels_reach_about_as_far_and_ranges_say_how_far(network: ResNet, inputs: torch.Tensor) -> None:
    inner = [f"{name}.{norm}" for name, _ in named_blocks(network) for norm in ("bn1", "bn2")]
    before = {name: reaches(network, inputs, name) for name in inner}

    ranges = fit_to_integers(network, [inputs])

    assert set(ranges) == set(plan_integers(network))
    for name in inner:
        found = reaches(network, inputs, name)
        assert found.max() / found.median() < 1.2 < 3 < before[name].max() / before[name].median()
        assert float(found.max()) == pytest.approx(ranges[name] / HEADROOM, rel=0.25)
    for name, block in named_blocks(network):
        assert float(reaches(network, inputs, name).max()) == pytest.approx(ranges[f"{name}.bn3"] / HEADROOM, rel=0.25)
        assert not layers_beside(block)[1].bias.any()
        beside = reaches(network, inputs, name + BESIDE)
        assert float(beside.max()) == pytest.approx(ranges[name + BESIDE] / HEADROOM, rel=0.25)


def test_one_odd_patch_does_not_stretch_the_ranges(inputs: torch.Tensor) -> None:
    parts = inputs[:, :, :32, :32].repeat(26, 1, 1, 1)

    ranges, odd = (fit_to_integers(uneven_network(inputs), batches) for batches in ([parts], [parts, parts[:1] * 20]))

    assert odd["bn1"] == pytest.approx(ranges["bn1"], rel=0.02)


def test_blocks_without_layers_beside_them_share_what_they_add_to(inputs: torch.Tensor) -> None:
    """A stage of two blocks, and a first stage that adds to what the first convolution gives."""
    torch.manual_seed(0)
    stages = (Stage(2, 16, 64), Stage(2, 16, 96), Stage(1, 16, 96), Stage(1, 16, 128))
    network = ResNet(stages, classes=1).eval()
    assert dict(named_blocks(network))["layer1.0"].downsample is None
    with torch.no_grad():
        before = network(inputs)

    ranges = fit_to_integers(network, [inputs])

    with torch.no_grad():
        after = network(inputs)
    assert float((before - after).abs().max()) < 0.02 * float(before.abs().max())
    assert "layer1.0" + BESIDE not in ranges
    assert "layer2.1" + BESIDE not in ranges
    plan_integers(network, ranges)


def test_ranges_become_scales_around_zero(network: ResNet) -> None:
    ranges = dict.fromkeys(plan_integers(network), 51.0)

    plan = plan_integers(network, ranges)

    for name, integers in plan.items():
        beside = name.endswith(BESIDE)
        assert integers.scale == pytest.approx((2 if beside else 1) * 51 / LEVELS)
        assert integers.zero_point == (128 if beside else 0)


def test_ranges_of_another_network_are_refused_with_its_file(network: ResNet) -> None:
    state, ranges = network.state_dict(), dict.fromkeys(plan_integers(network), 1.0)
    check_weights(state, "m.safetensors", ranges)
    for wrong in (ranges | {"layer9.0.bn1": 1.0}, {name: ranges[name] for name in ranges if name != "layer1.0.bn2"}):
        with pytest.raises(ModelFileError, match=r"m.safetensors: 'layer\d.0.bn\d' is in only one of int8_ranges"):
            check_weights(state, "m.safetensors", wrong)


@pytest.mark.parametrize(("ranges", "told"), [({"bn1": -1.0}, "range of 'bn1'"), ({"bn1": "x"}, "range of 'bn1'")])
def test_a_card_with_senseless_ranges_is_refused(ranges: dict[str, float], told: str) -> None:
    fields = replace(ModelCard(), training={RANGES: ranges}).to_dict()

    with pytest.raises(ValueError, match=told):
        ModelCard.from_dict(fields)
