from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Tiny

from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.evaluation.results import Agreement
from wsi_meta.inference.batches import make_mosaics
from wsi_meta.models.card import Calibration, ModelCard
from wsi_meta.models.model import Model
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.resnet import cell_logits
from wsi_meta.training.mosaics import mosaic_side, predict_in_mosaics


@pytest.fixture
def network() -> Tiny:
    """With statistics that matter and logits far apart."""
    torch.manual_seed(3)
    network = Tiny()
    network.get_buffer("bn1.running_mean").normal_()
    network.get_parameter("fc.weight").data *= 30
    return network.eval()


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Patches:
    """37 patches of noise, each in colours of its own."""
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for number in range(37):
        place = folder / str(number % 2)
        place.mkdir(exist_ok=True)
        pixels = np.clip(rng.integers(0, 256, 3) + rng.normal(0, 30, (96, 96, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:02}.png", compress_level=1)
    return open_patches(folder)["train"]


@pytest.mark.parametrize(("n", "side"), [(64, 4), (16, 4), (32, 4), (12, 2), (4, 2), (20, 2), (10, 1), (1, 1), (0, 1)])
def test_batches_are_cut_into_the_largest_mosaics(n: int, side: int) -> None:
    assert mosaic_side(n) == side


@pytest.mark.parametrize("side", [2, 4])
def test_patches_lie_row_by_row_in_the_order_given(side: int) -> None:
    patches = torch.randint(256, (2 * side**2, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    mosaics = make_mosaics(patches, side)

    assert mosaics.shape == (2, side * 96, side * 96, 3)
    for number, patch in enumerate(patches):
        mosaic, place = divmod(number, side**2)
        row, col = divmod(place, side)
        found = mosaics[mosaic, row * 96 : (row + 1) * 96, col * 96 : (col + 1) * 96]
        assert torch.equal(found, patch)


@pytest.mark.parametrize("side", [2, 4])
def test_logits_of_mosaics_come_in_the_order_of_their_patches(network: Tiny, side: int) -> None:
    patches = torch.randint(256, (2 * side**2, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    to_input = Preprocessing().to_input

    with torch.inference_mode():
        singly = network(to_input(patches))[:, 0]
        together = cell_logits(network, to_input(make_mosaics(patches, side)), step=3)

    assert together.shape == (2, side, side)
    assert torch.allclose(together.flatten(), singly, atol=1e-4)
    apart = torch.sort(singly).values.diff().min()
    assert float(apart) > 2e-4


def test_every_patch_gets_its_own_logit_from_inside_a_mosaic(network: Tiny, noise: Patches) -> None:
    """Also where the last mosaic must be filled up; for this network the neighbours make no difference."""
    images = torch.stack([noise[number][0] for number in range(len(noise))])
    with torch.inference_mode():
        expected = network(Preprocessing().to_input(images))[:, 0].numpy()

    for n in (37, 32, 5):
        some = noise.select(np.arange(n))
        found = predict_in_mosaics(Model(network, ModelCard(), "", Path()), some, device="cpu", precision="fp32", workers=0)

        assert found.shape == (n,)
        assert np.allclose(found, expected[:n], atol=1e-4)
    assert np.diff(np.sort(expected)).min() > 2e-4


def test_neighbours_are_strangers_drawn_by_the_seed(noise: Patches, thin_model: Model) -> None:
    """A ResNet sees its neighbours: another order gives other logits, the same order the same."""
    model, some, here = thin_model, noise.select(np.arange(16)), {"device": "cpu", "precision": "fp32"}
    options: dict[str, Any] = here | {"workers": 0}

    first = predict_in_mosaics(model, some, **options)

    assert np.array_equal(first, predict_in_mosaics(model, some, **options))
    assert not np.allclose(first, predict_in_mosaics(model, some, seed=1, **options), atol=1e-5)


# --- agreement


def test_agreement_counts_what_both_modes_say() -> None:
    labels = np.array([0, 0, 1, 1], np.uint8)
    patch = np.array([0.1, 0.6, 0.5, 0.9], np.float32)
    dense = np.array([0.2, 0.3, 0.4, 0.9], np.float32)

    agreement = Agreement.of(np.log(patch / (1 - patch)), np.log(dense / (1 - dense)), labels, Calibration())

    assert (agreement.usual_auc, agreement.other_auc) == (0.75, 1.0)
    assert agreement.mean_difference == pytest.approx((0.1 + 0.3 + 0.1) / 4)
    assert agreement.same_decision == 0.5
    assert not agreement.holds
    assert agreement.rare_difference == pytest.approx(0.3, abs=1e-3)
    assert agreement.to_metrics("dense") == {
        "dense_auc": 1.0,
        "dense_mean_difference": agreement.mean_difference,
        "dense_rare_difference": agreement.rare_difference,
        "dense_same_decision": 0.5,
    }


@pytest.mark.parametrize(
    ("patch_auc", "dense_auc", "same", "holds"),
    [
        (0.96, 0.96, 0.97, True),
        (0.96, 0.9565, 0.97, True),
        (0.96, 0.9635, 0.99, True),
        (0.96, 0.9555, 0.99, False),
        (0.96, 0.9645, 0.99, False),
        (0.96, 0.96, 0.969, False),
    ],
)
def test_dense_mode_holds_only_where_both_figures_are_near(
    patch_auc: float, dense_auc: float, same: float, holds: bool
) -> None:
    assert Agreement(patch_auc, dense_auc, 0.03, 0.2, same).holds is holds
