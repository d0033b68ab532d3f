"""The end of a training: the best weights are made for int8, and judged again, once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exchanged import build_thin
from fit_int8 import fit_int8
from numpy.typing import NDArray
from safetensors.torch import load_file
from tiny import HERE, TINY, train_tiny

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.datasets.patches import Patches
from wsi_meta.errors import OutputPathError
from wsi_meta.models.card import RANGES, ModelCard, read_card
from wsi_meta.models.integers import plan_integers
from wsi_meta.models.model import network_of, write_model
from wsi_meta.models.weights import half_precision
from wsi_meta.training.checkpoint import checkpoint_path
from wsi_meta.training.recipe import Recipe
from wsi_meta.training.validation import Validation

RECIPE = Recipe(epochs=1, batch_size=8, mosaics=0)
FINISHED = np.linspace(-1, 1, 8, dtype=np.float32)
"""Logits that a test's finished weights give."""


@pytest.fixture(scope="module")
def splits(patch_folder: Path) -> dict[str, Patches]:
    """16 training patches over and over, and 8 for validation."""
    opened = open_patches(patch_folder)
    return opened | {"train": opened["train"].select(np.resize(np.arange(16), 200))}


@pytest.fixture(scope="module")
def validation(splits: dict[str, Patches]) -> Validation:
    return Validation(splits["valid"], "cpu", "fp32", 0, False, build_thin)


@pytest.fixture
def state(validation: Validation) -> dict[str, torch.Tensor]:
    """Random weights (seed 0), with BatchNorm's statistics of real activations."""
    torch.manual_seed(0)
    network = build_thin()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(ModelCard().preprocessing.to_input(torch.from_numpy(np.stack(validation.patches.read_many(range(8))))))
    return half_precision(network.state_dict())


def test_finished_weights_are_calibrated_and_judged(
    validation: Validation, splits: dict[str, Patches], state: dict[str, torch.Tensor]
) -> None:
    before = validation.card(state, validation.logits(state), {"recipe": 1}, mosaics=True)

    finished, card, logits = validation.finished(state, before, splits["train"])

    assert logits is not None
    np.testing.assert_array_equal(validation.logits(finished), logits)
    assert not torch.equal(finished["conv1.weight"], state["conv1.weight"])
    assert finished["conv1.weight"].dtype == torch.float16
    network: Any = network_of(finished, build_thin)
    assert set(card.training[RANGES]) == set(plan_integers(network))
    assert card.training["recipe"] == 1
    calibrated = validation.calibrated(logits)
    assert card.metrics["auc"] == calibrated.auc
    np.testing.assert_array_equal(card.calibration.to_probability(logits), calibrated.probabilities)
    assert "dense_auc" in card.metrics
    apart = np.abs(before.calibration.to_probability(validation.logits(state)) - calibrated.probabilities)
    assert apart.mean() < 0.05


def test_few_patches_leave_the_weights(
    validation: Validation, splits: dict[str, Patches], state: dict[str, torch.Tensor]
) -> None:
    few = splits["train"].select(np.arange(199))

    finished, card, logits = validation.finished(state, ModelCard(), few)

    assert logits is None
    assert finished is state
    assert card == ModelCard()


def test_a_training_ends_with_it_and_a_killed_one_does_it_once(patch_folder: Path, tmp_path: Path) -> None:
    out, begun = tmp_path / "m.safetensors", []

    class Finishing(Validation):
        def finished(self, state: dict[str, torch.Tensor], card: ModelCard, train_set: Patches) -> Any:
            begun.append((card.training["best_epoch"], len(train_set), checkpoint_path(out).exists()))
            if len(begun) == 1:
                raise OutputPathError("the disk is full")
            changed = state | {"fc.bias": torch.full((1,), 7.0)}
            return changed, replace(card, training=card.training | {RANGES: {"bn1": 1.0}}), FINISHED

        def logits(self, state: dict[str, torch.Tensor]) -> NDArray[np.float32]:
            return FINISHED if state["fc.bias"] == 7 else super().logits(state)

    described: list[dict[str, float] | None] = []

    def describe(model: Path, *_values: Any, **_settings: Any) -> None:
        described.append(read_card(model).int8_ranges)
        if len(described) == 1:
            raise OutputPathError("the disk is full")

    parts = replace(TINY, make_validation=Finishing, store_feature_statistics=describe)
    settings: dict[str, Any] = {"recipe": RECIPE, "parts": parts, **HERE}
    for resume in (False, True):
        with pytest.raises(OutputPathError):
            train_tiny(patch_folder, out, resume=resume, **settings)
    result = train_tiny(patch_folder, out, resume=True, **settings)

    assert begun == [(result.best_epoch, 16, True)] * 2
    assert described == [{"bn1": 1.0}] * 2
    assert load_file(out)["fc.bias"] == 7
    np.testing.assert_array_equal(result.validation.logits, FINISHED)
    assert not checkpoint_path(out).exists()


def test_a_finished_file_is_fitted_by_a_command(
    validation: Validation, splits: dict[str, Patches], state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    write_model(tmp_path / "old.safetensors", state, ModelCard(training={"recipe": 1, RANGES: {"bn1": 9.0}}))

    card = fit_int8(tmp_path / "old.safetensors", tmp_path / "new.safetensors", splits["train"], validation)

    assert read_card(tmp_path / "new.safetensors") == card
    assert card.training["recipe"] == 1
    assert card.int8_ranges is not None
    assert len(card.int8_ranges) > 1
    assert not torch.equal(load_file(tmp_path / "new.safetensors")["conv1.weight"], state["conv1.weight"])
