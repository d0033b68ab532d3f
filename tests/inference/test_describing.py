"""A predictor that keeps what its network saw, and what calibrate writes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from slide_files import texture

from wsi_meta.evaluation.calibrate import calibrate
from wsi_meta.inference.describing import DescribingPredictor
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.card import ModelCard, read_card
from wsi_meta.models.features import FeatureStatistics, describe_features, read_features
from wsi_meta.models.model import Model, save_model


@pytest.fixture(scope="module")
def patches() -> NDArray[np.uint8]:
    return np.stack([texture(96, 96, seed) for seed in range(6)])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_are_those_of_any_predictor(precision: str, thin_model: Model, patches: NDArray[np.uint8]) -> None:
    plain = Predictor(thin_model, device="cpu", precision=precision, batch_size=4)
    describing = DescribingPredictor(thin_model, device="cpu", precision=precision, batch_size=4)
    images = torch.from_numpy(patches)
    found = np.concatenate([describing.predict_patches(images[:5]), describing.predict_patches(images[5:])])
    np.testing.assert_array_equal(found, plain.predict_patches(images))
    assert describing.described.shape == (6, 64)
    assert describing.described.std(0).min() > 1e-3


def test_what_is_kept_is_what_the_head_saw(thin_model: Model, patches: NDArray[np.uint8]) -> None:
    describing = DescribingPredictor(thin_model, device="cpu", precision="fp32", batch_size=4)
    describing.predict_patches(torch.from_numpy(patches))
    pooled: list[torch.Tensor] = []
    handle = thin_model.network.get_submodule("fc").register_forward_pre_hook(lambda _layer, inputs: pooled.append(inputs[0]))
    with torch.inference_mode():
        thin_model.network(thin_model.card.preprocessing.to_input(torch.from_numpy(patches)))
    handle.remove()
    np.testing.assert_allclose(describing.described, describe_features(pooled[0].numpy()), rtol=1e-3, atol=1e-4)


def test_enough_patches_become_statistics(thin_model: Model) -> None:
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(256, size=(200, 32, 32, 3), dtype=np.uint8))
    describing = DescribingPredictor(thin_model, device="cpu", precision="fp32", batch_size=100)
    describing.predict_patches(images)
    found = describing.statistics()
    assert found is not None
    assert found.patches == 200
    assert np.median(found.unlikeness(describing.described)) < 1
    describing.predict_patches(torch.full((1, 32, 32, 3), 128, dtype=torch.uint8))
    assert found.unlikeness(describing.described)[-1] > 1, "what is grey all over is unlike noise"


def test_of_too_few_patches_the_files_own_statistics_stay(
    thin_model: Model, patches: NDArray[np.uint8], tmp_path: Path
) -> None:
    own = FeatureStatistics.of(np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32))
    model = Model(thin_model.network, ModelCard(), "", tmp_path / "m.safetensors")
    for features, kept in ((own, 300), (None, None)):
        save_model(model.path, {"a": torch.ones(1)}, ModelCard(), features)
        describing = DescribingPredictor(model, device="cpu", precision="fp32")
        describing.predict_patches(torch.from_numpy(patches))
        found = describing.statistics()
        assert (found and found.patches) == kept
        assert read_features(model.path) is None or found is not None


def test_calibrating_writes_them_beside_the_card(model_file: Path, patch_folder: Path, tmp_path: Path) -> None:
    """Of eight patches only those that the file had; the weights do not change."""
    own = FeatureStatistics.of(np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32))
    state = load_file(model_file)
    save_model(tmp_path / "m.safetensors", state, read_card(model_file), own)
    out = tmp_path / "out.safetensors"
    calibrate(tmp_path / "m.safetensors", patch_folder, out, device="cpu", precision="fp32", workers=0)
    found = read_features(out)
    assert found is not None
    assert found.to_dict() == own.to_dict()
    assert read_card(out).calibration != read_card(model_file).calibration
    assert all(torch.equal(values, state[name]) for name, values in load_file(out).items())
