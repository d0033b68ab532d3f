from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_meta.errors import OptionsError
from wsi_meta.training.recipe import RECIPES, Augmentation, Recipe, TrainOptions
from wsi_meta.training.train import train

CHANGES = ("turn", "shift", "stain", "brightness", "blur", "jpeg")
MORE = ("zoom", "stain_offset", "levels", "contrast", "gain", "saturation")
ALL = dataclasses.replace(RECIPES["strong"].augmentation, brightness=0.1, zoom=0.12)


@pytest.mark.parametrize("name", CHANGES + MORE)
def test_each_change_can_be_turned_off_by_itself(name: str) -> None:
    normal, without = dataclasses.asdict(ALL), dataclasses.asdict(ALL.without(name.replace("_", "-")))

    different = {known for known in normal if normal[known] != without[known]}

    assert {known.removesuffix("_px") for known in different} == {name}
    assert all(not without[known] for known in different)


def test_all_changes_can_be_turned_off_together() -> None:
    off = Augmentation().without(*CHANGES, *MORE)

    assert not any(vars(off).values())
    assert Augmentation().without() == Augmentation()
    assert not any(vars(ALL.without(*CHANGES, *MORE)).values())
    assert all(vars(ALL).values())


def test_the_recipes_have_names() -> None:
    assert RECIPES["light"] == Recipe()
    strong = RECIPES["strong"]
    assert (strong.freeze, strong.head_epochs, strong.consistency, strong.augmentation.zoom) == ("none", 0, 1, 0)
    assert strong.steps_with_mosaics == 1  # of two pictures of each patch one
    rates = [strong.lr_loaded * strong.lr_decay**stages for stages in (1, 2, 3, 4)]
    assert rates == pytest.approx([share * 6e-4 for share in (0.6, 0.4, 0.25, 0.15)], rel=0.06)
    assert strong.ema_decay(474, 10**6) == pytest.approx(0.998, abs=2e-4)


def test_a_recipe_is_found_by_its_name() -> None:
    assert {name: Recipe.named(name) for name in RECIPES} == dict(RECIPES)
    with pytest.raises(OptionsError, match="recipe 'quick'; expected one of light, strong"):
        train("nowhere", "m.safetensors", recipe="quick")


def test_half_of_the_pictures_are_in_mosaics_with_one_picture_of_a_patch_and_with_two() -> None:
    strong = RECIPES["strong"]
    assert dataclasses.replace(strong, consistency=0).steps_with_mosaics == RECIPES["light"].steps_with_mosaics == 0.5
    assert [dataclasses.replace(strong, mosaics=share).steps_with_mosaics for share in (0, 0.25, 0.5)] == [0, 0.5, 1]


def test_a_change_that_does_not_exist_is_named_beside_those_that_do() -> None:
    with pytest.raises(ValueError, match="augmentation colour: not known; expected some of turn, shift, stain") as caught:
        Augmentation().without("stain", "colour")

    assert all(name in str(caught.value) for name in CHANGES + MORE)
    names: Any = ["turn"]
    with pytest.raises(OptionsError, match="augmentation: is of type list; expected names"):
        Augmentation().without(names)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs 0; expected at least 1"),
        ({"batch_size": 1}, "batch_size 1; expected at least 2"),
        ({"head_epochs": -1}, "head_epochs -1; expected at least 0"),
        ({"lr": math.nan}, "lr nan; expected 0 to"),
        ({"lr_loaded": math.inf}, "lr_loaded inf; expected 0 to"),
        ({"lr_decay": 1.1}, "lr_decay 1.1; expected 0 to 1"),
        ({"mosaics": 1.5}, "mosaics 1.5; expected 0 to 1"),
        ({"mosaics": 0.6, "consistency": 1}, "mosaics 0.6 with consistency; expected at most 0.5"),
        ({"consistency": -1}, "consistency -1; expected 0 to 100"),
        ({"teacher": 1.5}, "teacher 1.5; expected 0 to 1"),
        ({"teacher": 0.5, "ema_epochs": 0}, "teacher 0.5 without ema_epochs"),
        ({"label_smoothing": 1.0}, "label_smoothing 1.0; expected 0 to 0.9"),
        ({"warm_up": 1.0}, "warm_up 1.0; expected 0 to 0.9"),
        ({"seed": -1}, "seed -1; expected 0 to"),
        ({"seed": 2**32}, "expected 0 to"),
        ({"freeze": "layer9"}, "freeze 'layer9'; expected one of none, stem, layer1, layer2, layer3"),
        ({"batchnorm": "off"}, "batchnorm 'off'; expected one of adapt, frozen"),
    ],
    ids=str,
)
def test_settings_that_no_training_can_use_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"shift_px": 33}, {"stain": -0.1}, {"blur": 1.5}, {"jpeg": math.nan}, {"zoom": 1}, {"levels": 256}], ids=str
)
def test_augmentation_beyond_its_limits_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} .*; expected 0 to"):
        Augmentation(**wrong)


def test_every_number_has_limits() -> None:
    """A new setting is not forgotten."""
    for kind in (Recipe, Augmentation):
        for name, value in vars(kind()).items():
            if type(value) in (int, float):
                wrong: dict[str, Any] = {name: math.nan}
                with pytest.raises(ValueError, match=f"{name} nan"):
                    kind(**wrong)


def test_a_recipe_is_plain_json() -> None:
    fields = dataclasses.asdict(Recipe())

    assert json.loads(json.dumps(fields)) == fields
    assert Recipe(**fields | {"augmentation": Augmentation(**fields["augmentation"])}) == Recipe()


def test_a_recipe_of_other_kinds_of_numbers_is_the_same_recipe() -> None:
    kinds: dict[str, Any] = {"lr": np.float32(0.001), "weight_decay": Fraction(1, 100), "lr_decay": np.float64(0.75)}
    made = Recipe(seed=np.int64(0), epochs=np.uint8(4), freeze=np.str_("layer1"), **kinds)  # type: ignore[arg-type]
    assert made == Recipe()
    assert {name: type(value) for name, value in vars(made).items()} == {
        name: type(value) for name, value in vars(Recipe()).items()
    }
    assert Augmentation(turn=np.bool_(True), stain=np.float32(0.2)) == Augmentation()  # type: ignore[arg-type]
    options = TrainOptions(workers=np.int64(2), resume=np.bool_(False), tensorboard=np.str_("logs"))  # type: ignore[arg-type]
    assert [type(value) for value in (options.workers, options.resume, options.tensorboard)] == [int, bool, type(Path())]


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (Recipe, {"epochs": 1.5}, "epochs 1.5; expected at least 1, a whole number"),
        (Recipe, {"batch_size": 16.0}, "batch_size 16.0; expected at least 2, a whole number"),
        (Recipe, {"seed": 1.5}, "seed 1.5; expected 0 to 4294967295, a whole number"),
        (Recipe, {"augmentation": None}, "augmentation: is None; expected an Augmentation"),
        (Augmentation, {"shift_px": 1.5}, "shift_px 1.5; expected 0 to 32, a whole number"),
        (Augmentation, {"turn": "no"}, "turn 'no'; expected True or False"),
    ],
    ids=str,
)
def test_settings_of_another_kind_are_refused(kind: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        kind(**wrong)


@given(epochs=st.floats(0.01, 5), per_epoch=st.integers(1, 5000), step=st.integers(1, 100_000))
def test_the_average_forgets_within_its_time_constant(epochs: float, per_epoch: int, step: int) -> None:
    decay = Recipe(ema_epochs=epochs).ema_decay(per_epoch, step)

    assert 0 <= decay <= math.exp(-1 / (epochs * per_epoch))
    assert decay == math.exp(-1 / (epochs * per_epoch)) or decay == (1 + step) / (10 + step)
    assert Recipe(ema_epochs=0).ema_decay(per_epoch, step) == 0
