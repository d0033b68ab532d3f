"""The classifier in integers: near the one in float32, the same whatever else is in the batch, and only where it can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slide_files import texture, write_slide
from torch import nn

from wsi_meta.demo.synthetic import draw_lymph_node
from wsi_meta.errors import DeviceError
from wsi_meta.inference.device import resolve_precision
from wsi_meta.inference.fast_network import FastNetwork
from wsi_meta.inference.int8 import OPERATORS, Convolution, Emulated, quantised_trunk
from wsi_meta.inference.predictor import DENSE_HALO_PX, Predictor
from wsi_meta.models.integers import DEVIATIONS, GROWTH, LEVELS, Integers, fit, moments, rectified, upper
from wsi_meta.models.model import Model, load_model
from wsi_meta.scanning.scan import scan
from wsi_meta.tiling.block_plan import PieceSizes
from wsi_meta.training.recipe import Recipe
from wsi_meta.training.train import train

HERE: dict[str, Any] = {"device": "cpu", "precision": "int8"}
with_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="no VNNI")


@pytest.fixture(scope="module")
def model() -> Model:
    """The embedded model: ranges mean something only where BatchNorm was trained."""
    return load_model(None)


@pytest.fixture(scope="module")
def patches() -> torch.Tensor:
    """Tissue with and without tumor."""
    picture = draw_lymph_node(960, 960, seed=2)[0][::2, ::2]
    return torch.from_numpy(picture[:384, :480].reshape(4, 96, 5, 96, 3).swapaxes(1, 2).reshape(20, 96, 96, 3).copy())


@pytest.fixture(scope="module")
def in_integers(model: Model) -> Predictor:
    """A second to make."""
    return Predictor(model, **HERE, batch_size=64)


@with_vnni
def test_probabilities_are_near_those_of_float32(model: Model, in_integers: Predictor, patches: torch.Tensor) -> None:
    exact, rounded = (
        model.card.calibration.to_probability(predictor.predict_patches(patches))
        for predictor in (Predictor(model, device="cpu", precision="fp32"), in_integers)
    )

    assert np.ptp(exact) > 0.3
    assert 0 < np.abs(exact - rounded).max() < 0.25
    assert np.corrcoef(exact, rounded)[0, 1] > 0.98


@with_vnni
def test_a_patch_does_not_depend_on_its_batch(model: Model, in_integers: Predictor, patches: torch.Tensor) -> None:
    few = patches[:13]
    expected = in_integers.predict_patches(few)
    fours = np.concatenate([in_integers.predict_patches(four) for four in few.split(4)])
    for found in (fours, Predictor(model, **HERE, batch_size=12).predict_patches(few)):
        np.testing.assert_array_equal(found, expected)


@with_vnni
@pytest.mark.parametrize("dense", [False, True])
def test_it_is_made_where_the_program_around_has_another_device(thin_model: Model, dense: bool) -> None:
    image, wanted = texture(96 + 2 * 128 * dense, 96 + 2 * 128 * dense), np.ones((1, 1), bool)
    expected = Predictor(thin_model, **HERE, dense=dense).predict_image(image, wanted, 32)
    with torch.device("meta"):  # oneDNN read memory that such tensors do not have
        found = Predictor(thin_model, **HERE, dense=dense).predict_image(image, wanted, 32)
    np.testing.assert_array_equal(found, expected)


@with_vnni
def test_bands_give_the_same(thin_model: Model) -> None:
    image = torch.from_numpy(texture(6 * 32, 3 * 32)[None])
    whole, banded = (FastNetwork(thin_model, precision="int8", dense=True, in_bands=bands) for bands in (False, True))

    with torch.inference_mode():
        expected = whole(image)
        for rows in (32, 96):
            banded.sizes = PieceSizes(band_px=0, least_band_rows=rows)
            np.testing.assert_allclose(banded(image), expected, rtol=0, atol=1e-5)  # the head's sums are floats
    assert np.ptp(expected.numpy()) > 0


@with_vnni
def test_scan_says_so(tmp_path: Path, thin_model: Model) -> None:
    side = 5 * 32
    slide = write_slide(tmp_path / "s.tif", texture(side, side))
    heatmap = scan(slide, tmp_path / "h.zarr", model=thin_model, tissue_mask="none", **HERE)

    assert heatmap.record.identity.precision == "int8"
    assert heatmap.record.identity.compiled is False
    assert np.isfinite(heatmap.probability).all()
    with pytest.raises(DeviceError, match="int8 is not compiled"):
        scan(slide, tmp_path / "c.zarr", model=thin_model, tissue_mask="none", compiled="yes", **HERE)


def test_only_where_the_processor_multiplies_it(tmp_path: Path, patch_folder: Path) -> None:
    assert resolve_precision("int8", "cpu", supports=lambda _: True) == "int8"
    with pytest.raises(DeviceError, match="VNNI"):
        resolve_precision("int8", "cuda", supports=lambda _: True)
    with pytest.raises(DeviceError, match="VNNI"):
        resolve_precision("int8", "cpu", supports=lambda instructions: instructions != "vnni")
    with pytest.raises(DeviceError, match="not for training"):
        train(patch_folder, tmp_path / "m.safetensors", init="none", recipe=Recipe(epochs=1, batch_size=8), workers=0, **HERE)


@pytest.mark.parametrize("missing", ["onednn::qconv4d", "onednn::qconv2d_pointwise.ternary", "nowhere::max_pool2d"])
def test_a_torch_without_an_operator_is_refused_by_name(missing: str, model: Model) -> None:
    told = f"--precision int8: this torch lacks operator {missing}; use --precision bf16 or fp32"
    with pytest.raises(DeviceError) as caught:
        quantised_trunk(model.network, model.card.preprocessing, operators=[*OPERATORS, missing])

    assert str(caught.value) == told


def test_ranges_reach_farther_in_later_blocks() -> None:
    layer = nn.BatchNorm2d(3)
    layer.bias.data = torch.tensor([0.0, 1.0, -2.0])
    layer.weight.data = torch.tensor([1.0, -2.0, 0.5])
    mean, spread = seen = moments(layer)

    assert list(spread) == [1, 2, 0.5]
    assert upper(seen, 0) == 1 + 2 * DEVIATIONS
    assert upper(seen, 0.5) == 1 + 2 * DEVIATIONS * (1 + GROWTH / 4)
    assert upper(seen, 1) == 1 + 2 * DEVIATIONS * (1 + GROWTH)
    assert upper((mean - 1000, spread), 0) > 0, "a range is never empty"


def test_what_rounded_weights_change_on_average_is_taken_off() -> None:
    """One weight of 127 steps fixes the steps; the others lie between two of them."""
    layer = nn.Conv2d(4, 2, 3, padding=1, bias=False).eval()
    layer.weight.data = torch.rand(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)) / 10 + 0.1
    layer.weight.data[:, 0, 0, 0] = 20
    means = np.array([1.0, 3.0, 0.0, 2.0])
    inputs = torch.from_numpy(means).float()[None, :, None, None].expand(1, 4, 5, 5)
    unit = nn.BatchNorm2d(2, eps=0).eval()

    found = Convolution(layer, unit, Integers(0.1, 0, means), Integers(0.1, 0, np.zeros(2)))
    without = Convolution(layer, unit, Integers(0.1, 0, np.zeros(4)), Integers(0.1, 0, np.zeros(2)))
    exact = layer(inputs)[0, :, 2, 2].detach()
    weights = (found.weights.float() * found.weight_scales[:, None, None, None]).sum((2, 3))

    assert torch.allclose(weights @ inputs[0, :, 2, 2] + found.bias, exact, atol=1e-4)
    assert (weights @ inputs[0, :, 2, 2] + without.bias - exact).abs().min() > 0.05
    assert torch.equal(without.bias, torch.zeros(2))


def test_its_arithmetic_is_near_that_of_float32_on_any_machine(model: Model, patches: torch.Tensor) -> None:
    """A card's bars are for real patches, of which none may be part of the tests; drawn ones differ more.

    Ranges that reach no farther in later blocks differ by 0.05 on average or more.
    """
    picture = patches[:4].view(2, 2, 96, 96, 3).transpose(1, 2).reshape(1, 192, 192, 3)
    exact, rounded = (FastNetwork(model, precision=precision, dense=True, emulated=True) for precision in ("fp32", "int8"))

    with torch.inference_mode():
        found = [model.card.calibration.to_probability(network(picture).numpy()) for network in (exact, rounded)]

    assert np.ptp(found[0]) > 0.1
    assert 0 < np.abs(found[0] - found[1]).mean() < 0.04


@with_vnni
def test_the_processor_computes_what_the_integers_say(model: Model, patches: torch.Tensor) -> None:
    """It may round a result that lies halfway between two steps to the other one: then all later layers differ a little."""
    with torch.inference_mode():
        expected = FastNetwork(model, precision="int8", dense=False, emulated=True)(patches[:8])
        found = FastNetwork(model, precision="int8", dense=False)(patches[:8])

    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05)
    assert np.corrcoef(found, expected)[0, 1] > 0.999


def test_moments_after_a_relu_are_those_of_samples() -> None:
    means, spreads = np.array([0.5, -1.0, 0.0]), np.array([1.0, 2.0, 0.3])
    samples = np.random.default_rng(0).normal(means, spreads, (400_000, 3)).clip(0)
    mean, spread = rectified((means, spreads))

    np.testing.assert_allclose(mean, samples.mean(0), atol=0.01)
    np.testing.assert_allclose(spread, samples.std(0), atol=0.01)


@pytest.mark.parametrize("beside", [False, True])
def test_floats_give_what_the_operators_give(beside: bool) -> None:
    """On any processor: with inputs of at most 127, two products fit in 16 bits, where processors without VNNI saturate.

    Scales are powers of two, so that float32 holds every result exactly but for the bias.
    """
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False).eval()
    layer.weight.data = torch.randint(-127, 128, layer.weight.shape, generator=generator) / 128
    layer.weight.data[:, 0, 0, 0] = 127 / 128
    norm = nn.BatchNorm2d(16, eps=0).eval()
    norm.bias.data = torch.randn(16, generator=generator)
    inputs = torch.randint(128, (2, 8, 10, 14), dtype=torch.uint8, generator=generator)
    added = torch.randint(256, (2, 16, 5, 7), dtype=torch.uint8, generator=generator)
    given, side, gives = Integers(1 / 64, 7, np.zeros(8)), Integers(1 / 8, 128, np.zeros(16)), Integers(1 / 32, 0, np.zeros(16))
    real, emulated = (kind(layer, norm, given, gives) for kind in (Convolution, Emulated))

    if beside:
        found = real.add_to(added.clone(memory_format=torch.channels_last), side, inputs)
        expected = emulated.add_to(added.float(), side, inputs.float())
    else:
        found, expected = real(inputs), emulated(inputs.float())

    assert found.dtype == torch.uint8
    assert ((expected > 0) & (expected < LEVELS)).float().mean() > 0.2
    assert (expected == LEVELS).any()
    assert torch.equal(found.float(), expected)


def test_bands_in_floats_give_the_same(thin_model: Model) -> None:
    image = torch.from_numpy(texture(7 * 32, 5 * 32)[None].copy())
    sizes = PieceSizes(band_px=0, least_band_rows=32)
    whole, banded = (
        FastNetwork(thin_model, precision="int8", dense=True, in_bands=bands, sizes=sizes, emulated=True)
        for bands in (False, True)
    )

    with torch.inference_mode():
        np.testing.assert_allclose(banded(image), whole(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (-2.1, 2.6), (0.5, 2.0), (-3.0, -1.0)])
def test_zero_stands_for_itself(low: float, high: float) -> None:
    scale, zero_point = fit(low, high)

    assert 0 <= zero_point <= LEVELS
    assert (0 - zero_point) * scale <= min(low, 0) + scale
    assert (LEVELS - zero_point) * scale >= max(high, 0) - scale


@with_vnni
def test_dense_cells_are_the_patches_cells(model: Model) -> None:
    """The halo is what dense mode sees beyond; the shapes must fit in integers as in floats."""
    side = 3 * 32 + 2 * (32 + DENSE_HALO_PX)
    image = texture(side, side)
    exact, rounded = (
        Predictor(model, device="cpu", precision=precision, dense=True).predict_image(image, np.ones((3, 3), bool), 32)
        for precision in ("fp32", "int8")
    )

    assert rounded.shape == exact.shape == (3, 3, 1)
    assert np.abs(exact - rounded).max() < 0.5 * np.abs(exact).max() + 0.5
