"""What patches look like to the network, and how unlike them others are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from slide_files import texture

from wsi_meta.errors import DataError, ModelFileError
from wsi_meta.models.card import ModelCard, read_card
from wsi_meta.models.features import FEATURES_KEY, MIN_PATCHES, FeatureStatistics, describe_features, read_features
from wsi_meta.models.model import describe_patches, write_model
from wsi_meta.models.resnet import cell_features, cell_logits


def drawn(n: int, *, off: float = 0.0, seed: int = 0) -> NDArray[np.float32]:
    """Descriptions that are a mixture of a few causes, as features are."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(64, 64)) * np.geomspace(1, 0.03, 64)[:, None]
    return np.asarray(random.normal(size=(n, 64)) @ mixing + 0.3 * random.normal(size=(n, 64)) + off, np.float32)


@pytest.fixture(scope="module")
def statistics() -> FeatureStatistics:
    return FeatureStatistics.of(drawn(600))


def test_a_description_is_the_mean_root_of_neighbouring_channels() -> None:
    pooled = np.arange(2 * 128, dtype=np.float32).reshape(2, 128)
    by_hand = (np.sqrt(pooled[:, ::2]) + np.sqrt(pooled[:, 1::2])) / 2
    np.testing.assert_allclose(describe_features(pooled), by_hand, rtol=1e-6)
    np.testing.assert_array_equal(describe_features(pooled.reshape(1, 2, 128)), describe_features(pooled)[None])


def test_it_is_the_distance_of_mahalanobis(statistics: FeatureStatistics) -> None:
    others = drawn(5, seed=1)
    off = others - statistics.mean
    squared = np.einsum("ni,ij,nj->n", off, np.linalg.inv(statistics.covariance), off)
    np.testing.assert_allclose(statistics.unlikeness(others), np.sqrt(squared) / statistics.usual, rtol=1e-4)
    np.testing.assert_array_equal(statistics.unlikeness(others.reshape(5, 1, 64))[:, 0], statistics.unlikeness(others))


def test_of_patches_like_them_a_hundredth_is_over_one(statistics: FeatureStatistics) -> None:
    over = (statistics.unlikeness(drawn(4000, seed=2)) > 1).mean()
    assert 0.002 < over < 0.02


def test_others_are_over_one(statistics: FeatureStatistics) -> None:
    assert (statistics.unlikeness(drawn(100, off=2.0, seed=3)) > 1).mean() > 0.9
    assert statistics.unlikeness(drawn(100, seed=3) * 3).min() > 1


def test_patches_that_are_all_the_same_have_a_description_too() -> None:
    same = FeatureStatistics.of(np.full((MIN_PATCHES, 64), 0.5, np.float32))
    assert same.unlikeness(np.full((1, 64), 0.5, np.float32)) <= 1
    assert same.unlikeness(np.full((1, 64), 0.6, np.float32)) > 1


def test_too_few_patches_do_not_tell() -> None:
    with pytest.raises(DataError, match="199 patches; expected at least 200"):
        FeatureStatistics.of(drawn(199))


# --- in the model file

STATE = {"fc.weight": torch.ones(1, 2)}


def test_a_file_holds_them_beside_its_card(tmp_path: Path, statistics: FeatureStatistics) -> None:
    path = tmp_path / "m.safetensors"
    write_model(path, STATE, ModelCard(), statistics)
    found = read_features(path)
    assert found is not None
    assert found.patches == 600
    np.testing.assert_allclose(found.unlikeness(drawn(9, seed=4)), statistics.unlikeness(drawn(9, seed=4)), rtol=1e-5)
    assert read_card(path) == ModelCard()
    assert path.stat().st_size < 60_000
    with safe_open(path, framework="numpy") as file:
        assert list(file.keys()) == ["fc.weight"]


def test_an_older_file_says_nothing(tmp_path: Path) -> None:
    write_model(tmp_path / "m.safetensors", STATE, ModelCard())
    assert read_features(tmp_path / "m.safetensors") is None


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts.clear(),
        lambda parts: parts.pop("mean"),
        lambda parts: parts.update(mean=[1.0]),
        lambda parts: parts.update(mean=["a"] * 64),
        lambda parts: parts.update(usual=0),
        lambda parts: parts.update(usual="much"),
        lambda parts: parts["covariance"].pop(),
        lambda parts: parts["covariance"].append([1.0]),
        lambda parts: parts["covariance"].__setitem__(3, [0.0, 0.0, 0.0, -1.0]),
        lambda parts: parts["covariance"].__setitem__(3, None),
        lambda parts: parts["mean"].__setitem__(0, float("nan")),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(change: Any, tmp_path: Path, statistics: FeatureStatistics) -> None:
    parts = statistics.to_dict()
    change(parts)
    path = tmp_path / "m.safetensors"
    save_file(STATE, path, metadata={FEATURES_KEY: json.dumps(parts)})
    with pytest.raises(
        ModelFileError, match=r"m\.safetensors: its feature statistics are wrong \(.*calibrate it again"
    ) as caught:
        read_features(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stage", ["layer4", None])
def test_a_description_by_another_stage_says_nothing(stage: str | None, tmp_path: Path, statistics: FeatureStatistics) -> None:
    """Files of before told what patches look like to the last stage; the distances of another stage mean nothing."""
    path, parts = tmp_path / "m.safetensors", statistics.to_dict()
    assert parts.pop("stage") == "layer2"
    parts |= {"stage": stage} if stage else {}
    save_file(STATE, path, metadata={FEATURES_KEY: json.dumps(parts)})
    assert read_features(path) is None


# --- from the network


def test_a_patch_is_described_by_the_second_stage(thin_model: Any) -> None:
    """All of more patches than one pass takes, whatever their number."""
    patches = np.stack([texture(96, 96, seed) for seed in range(19)])
    seen: list[torch.Tensor] = []
    handle = thin_model.network.layer2.register_forward_hook(lambda _stage, _inputs, output: seen.append(output))
    with torch.inference_mode():
        thin_model.network(thin_model.card.preprocessing.to_input(torch.from_numpy(patches)))
    handle.remove()
    found = describe_patches(thin_model, patches)
    assert found.shape == (19, 64)
    np.testing.assert_allclose(found, describe_features(seen[0].mean((2, 3)).numpy()), rtol=1e-4, atol=1e-5)
    assert found.std(0).min() > 1e-3


def test_the_head_of_a_cells_features_is_its_logit(thin_model: Any) -> None:
    network, shown = thin_model.network, thin_model.card.preprocessing
    images = torch.randint(256, (2, 128, 160, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = cell_features(network, shown.to_input(images))
        assert features.shape == (2, 2, 3, 1024)
        assert torch.equal(network.fc(features)[..., 0], cell_logits(network, shown.to_input(images)))
