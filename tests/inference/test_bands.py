"""A trunk in bands gives what one pass over the whole gives."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slide_files import texture
from torch import nn

from wsi_meta.inference.bands import Residual, Windowed, features_in_bands, see_rows
from wsi_meta.inference.fast_network import FastNetwork
from wsi_meta.inference.options import InferenceOptions, resolve_inference
from wsi_meta.inference.predictor import Predictor, PredictorParts
from wsi_meta.models.model import Model
from wsi_meta.tiling.block_plan import PieceSizes


def small_trunk() -> nn.Sequential:
    """Every kind of layer that a ResNet has, small; integers as weights, so that sums are exact in any order."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
    halving = nn.Sequential(nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 3, stride=2, padding=1), nn.ReLU())
    trunk = nn.Sequential(
        nn.Conv2d(3, 4, 7, stride=2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        Residual(first, nn.Conv2d(3, 4, 1), nn.Identity()),
        Residual(halving, nn.Conv2d(3, 5, 1), nn.Conv2d(4, 5, 1, stride=2)),
    )
    for parameter in trunk.parameters():
        parameter.data = torch.randint(-2, 3, parameter.shape).float()
    return trunk.double().requires_grad_(False)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_any_bands_give_the_features_of_one_pass(strides: int, width: int, data: st.DataObject) -> None:
    whole, banded = small_trunk(), small_trunk()
    see_rows(banded)
    height = 8 * strides
    image = torch.from_numpy(np.random.default_rng(height).integers(-4, 5, (1, 3, height, width))).double()
    cuts = (
        [8 * cut for cut in sorted(data.draw(st.sets(st.sampled_from(range(1, strides)), max_size=8)))] if strides > 1 else []
    )
    bands = [image[:, :, top:end] for top, end in zip([0, *cuts], [*cuts, height], strict=True)]

    np.testing.assert_array_equal(features_in_bands(banded, iter(bands)), whole(image))


def test_only_layers_that_see_other_rows_are_changed() -> None:
    trunk = small_trunk()
    see_rows(trunk)

    assert [name for name, layer in trunk.named_modules() if isinstance(layer, Windowed)] == [
        "0",
        "2",
        "3.main.2",
        "4.main.2",
        "4.side",
    ]


def test_no_band_is_kept() -> None:
    """The most memory held at a time does not grow with the image: counted in the elements of tensors alive."""
    trunk = small_trunk()
    see_rows(trunk)
    alive: list[int] = []

    def count(bands: int) -> int:
        alive.clear()
        held = {"now": 0}

        def made() -> Iterator[torch.Tensor]:
            for _ in range(bands):
                band = torch.ones(1, 3, 16, 8, dtype=torch.float64)
                held["now"] += 1
                weakref.finalize(band, lambda: held.update(now=held["now"] - 1))
                alive.append(held["now"])
                yield band
                del band

        features_in_bands(trunk, made())
        return max(alive)

    assert count(40) == count(8) <= 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rows", [32, 96])
def test_the_classifier_in_bands(precision: str, rows: int, thin_model: Model) -> None:
    image = torch.from_numpy(texture(7 * 32, 5 * 32)[None].copy())
    sizes = PieceSizes(band_px=0, least_band_rows=rows)
    whole, banded = (
        FastNetwork(thin_model, precision=precision, dense=True, in_bands=bands, sizes=sizes) for bands in (False, True)
    )

    with torch.inference_mode():
        expected = whole(image)
        np.testing.assert_allclose(banded(image), expected, rtol=0, atol=1e-5)
    assert expected.shape == (1, 5, 3)
    assert np.ptp(expected.numpy()) > 0


@pytest.mark.parametrize(("views", "least"), [(1, 16), (2, 2)])
def test_cells_are_counted_within_a_block(views: int, least: int, thin_model: Model) -> None:
    plan = resolve_inference(InferenceOptions("cpu", "fp32", 8, views))
    parts = PredictorParts(PieceSizes(piece_px=1, band_px=0))
    predictor = Predictor.from_plan(thin_model, plan, dense=True, parts=parts)
    wanted = np.ones((16, 3), bool)
    wanted[5] = False
    image = texture(18 * 32 + 256, 5 * 32 + 256)
    told: list[int] = []
    predictor.predict_block((image[piece] for piece in predictor.pieces(wanted, 32)), wanted, 32, told.append)
    assert sum(told) == wanted.sum()
    assert min(told) > 0
    assert least <= len(told) <= 45
