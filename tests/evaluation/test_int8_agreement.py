"""int8 is chosen unasked only where a card says how near to float32 it was, in each mode that scans use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.datasets.patches import Patches
from wsi_meta.errors import OptionsError
from wsi_meta.evaluation.calibrate import measuring_predictor
from wsi_meta.evaluation.model_parts import compare_int8, int8_metrics
from wsi_meta.inference.agreement import fast_networks, networks_on
from wsi_meta.inference.options import InferenceOptions, fit_to_model
from wsi_meta.models.card import INIT_INT8, INT8_BARS, RANGES, ModelCard
from wsi_meta.models.model import Model

HERE: dict[str, Any] = {"workers": 0, "bounds": (16, 20)}
NEAR = {"auc": 0.95, "fp32_auc": 0.95, "mean_difference": 0.001, "rare_difference": 0.01, "same_decision": 1.0}


def darkness(_model: Model, precision: str, dense: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Networks that say how dark a patch is; in int8 by 0.2 more, in dense mode by 0.3 more."""
    added = (0.3 if dense else 0.2) if precision == "int8" else 0.0

    def look(images: torch.Tensor) -> torch.Tensor:
        cells = torch.nn.functional.avg_pool2d(images.float().mean(-1)[:, None], 96, 32)[:, 0]
        logits = (150 - cells) / 40 + added
        return logits if dense else logits[:, 0, 0]

    return look


@pytest.fixture
def patches(patch_folder: Path) -> Patches:
    """16 of them, half of them dark and tumor."""
    return open_patches(patch_folder)["train"]


def card_of(dense: bool, *modes: str, **changed: float) -> ModelCard:
    """A card that was measured in these modes, with some figures other than near ones."""
    return ModelCard(
        dense=dense, metrics={f"{mode}_{name}": value for mode in modes for name, value in (NEAR | changed).items()}
    )


def test_figures_are_of_the_same_patches_in_both_modes(patches: Patches, thin_model: Model) -> None:
    model = replace(thin_model, card=ModelCard(dense=True))
    logits = np.array([(150 - patch.astype(np.float64).mean()) / 40 for patch in patches.read_many(range(16))])
    shown = [1 / (1 + np.exp(-(logits + added))) for added in (0, 0.2, 0.3)]

    found = int8_metrics(compare_int8(model, patches, networks=darkness, **HERE))

    for mode, rounded in (("int8", shown[1]), ("int8_dense", shown[2])):
        differences = np.abs(rounded - shown[0])
        assert found[f"{mode}_auc"] == found[f"{mode}_fp32_auc"] == 1
        assert found[f"{mode}_mean_difference"] == pytest.approx(differences.mean(), rel=1e-4)
        assert found[f"{mode}_rare_difference"] == pytest.approx(np.quantile(differences, 0.999), rel=1e-4)
        assert found[f"{mode}_same_decision"] == 1
    assert len(found) == 10
    assert {name for name in found if "dense" in name} == {f"int8_dense_{name}" for name in NEAR}
    assert list(compare_int8(replace(model, card=ModelCard()), patches, networks=darkness, **HERE)) == ["int8"]


def test_it_is_not_measured_where_that_would_say_nothing(patches: Patches, thin_model: Model) -> None:
    measured = HERE | {"networks": darkness}

    assert compare_int8(thin_model, patches, **measured)
    assert not compare_int8(thin_model, patches, **measured | {"bounds": (17, 20)})
    alone = patches.select(np.flatnonzero(np.repeat(patches.labels == 1, 2)) // 2)
    assert len(alone) == 16
    assert not compare_int8(thin_model, alone, **measured)


def test_float32_is_that_of_a_scan(patches: Patches, thin_model: Model) -> None:
    """Both precisions in float32: any difference would be one of the order of patches or cells."""

    def same(model: Model, _precision: str, dense: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        return fast_networks(model, "fp32", dense)

    found = compare_int8(thin_model, patches, networks=same, **HERE)

    assert found["int8"].mean_difference == 0
    assert found["int8"].same_decision == 1


def test_without_vnni_integers_are_computed_in_floats(patches: Patches, thin_model: Model) -> None:
    asked = []

    def without(instructions: str) -> bool:
        asked.append(instructions)
        return False

    assert networks_on("cpu", supports=lambda _: True) is fast_networks
    assert networks_on("cuda", supports=lambda _: True) is not fast_networks, "its CPU would take longer than the training"
    networks = networks_on("cpu", supports=without)
    found = compare_int8(replace(thin_model, card=ModelCard(dense=True)), patches, networks=networks, **HERE)

    assert asked == ["vnni"]
    for mode in ("int8", "int8_dense"):
        assert 0 < found[mode].mean_difference < 0.2


@pytest.mark.parametrize("mode", ["int8", "int8_dense"])
@pytest.mark.parametrize(
    ("figure", "held", "beyond"),
    [
        ("auc", 0.9505, 0.9506),
        ("auc", 0.9495, 0.9494),
        ("mean_difference", INT8_BARS["mean_difference"], 0.0061),
        ("rare_difference", INT8_BARS["rare_difference"], 0.081),
        ("same_decision", INT8_BARS["same_decision"], 0.9949),
    ],
)
def test_a_card_prefers_int8_where_every_figure_holds(mode: str, figure: str, held: float, beyond: float) -> None:
    near = card_of(True, "int8", "int8_dense").metrics
    metrics = near | {f"{mode}_fp32_auc": 0.95}

    held = held - 1e-9 if figure == "auc" and held > 0.95 else held + 1e-9 if figure == "auc" else held
    assert ModelCard(dense=True, metrics=metrics | {f"{mode}_{figure}": held}).prefers_int8
    assert not ModelCard(dense=True, metrics=metrics | {f"{mode}_{figure}": beyond}).prefers_int8
    assert not ModelCard(dense=True, metrics={name: near[name] for name in near if name != f"{mode}_{figure}"}).prefers_int8


def test_dense_mode_counts_where_it_is_allowed() -> None:
    assert card_of(False, "int8").prefers_int8
    assert not card_of(True, "int8").prefers_int8
    assert card_of(True, "int8", "int8_dense").prefers_int8
    assert card_of(False, "int8", "int8_dense", mean_difference=0.1).prefers_int8 is False
    assert not ModelCard().prefers_int8


@pytest.mark.parametrize("training", [{"imported": {"int8": False}}, {INIT_INT8: False}])
def test_weights_that_int8_may_not_suit_are_computed_so_where_figures_say_that_it_agrees(training: dict[str, Any]) -> None:
    """As calibrating them measures it; or by ranges of their own."""
    unseen, near = ModelCard(training=training), replace(card_of(False, "int8"), training=training)
    assert not unseen.allows_int8
    assert not replace(card_of(False, "int8", mean_difference=0.1), training=training).allows_int8
    assert near.allows_int8
    assert near.prefers_int8
    assert ModelCard(training=training | {RANGES: {"bn1": 1.0}}).allows_int8
    with pytest.raises(OptionsError, match="precision int8: it was not seen to agree with this model"):
        fit_to_model(InferenceOptions(precision="int8"), unseen)


def test_auto_may_be_int8_only_by_the_card() -> None:
    auto, near = InferenceOptions(), card_of(False, "int8")

    assert fit_to_model(auto, near).int8_agrees
    assert not fit_to_model(auto, ModelCard()).int8_agrees
    for precision in ("fp32", "bf16", "int8"):
        asked = InferenceOptions(precision=precision)
        assert fit_to_model(asked, near) == asked
    assert fit_to_model(auto, replace(near, architecture="some.Module")).precision == "fp32"


def test_a_model_is_measured_in_floats_even_where_int8_is_preferred(thin_model: Model) -> None:
    preferred = replace(thin_model, card=card_of(False, "int8"))
    assert preferred.card.prefers_int8
    assert measuring_predictor(preferred, InferenceOptions(device="cpu")).precision != "int8"
