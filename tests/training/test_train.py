from __future__ import annotations

import csv
import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from json_output import result_of
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from tiny import HERE, TINY, Tiny, learners, logits_of_auc, scripted, train_tiny

from wsi_meta.cli import main
from wsi_meta.datasets.checks import check_patches
from wsi_meta.datasets.layouts import open_patches
from wsi_meta.errors import DataError, OutputExistsError, OutputPathError, TrainingError
from wsi_meta.evaluation.calibrate import check_calibration
from wsi_meta.evaluation.evaluate import check_evaluation
from wsi_meta.evaluation.results import Agreement
from wsi_meta.models.card import ModelCard, read_card
from wsi_meta.models.model import build_network, load_model, write_model
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.weights import half_precision
from wsi_meta.training.history import draw_curves
from wsi_meta.training.learner import Learner
from wsi_meta.training.recipe import RECIPES, Recipe
from wsi_meta.training.train import train
from wsi_meta.training.validation import Validation

SMALL = Recipe(epochs=2, batch_size=8, mosaics=0.5)
WORDS = ["--device", "cpu", "--precision", "fp32", "--workers", "0"]
FILES = ["m.augmented.png", "m.curves.png", "m.history.csv", "m.safetensors"]


def rows_of(history: Path) -> list[dict[str, str]]:
    with history.open(newline="") as file:
        return list(csv.DictReader(file))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what the network is shown


def test_the_pixel_size_of_a_sampling_goes_into_the_model(patch_folder: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "m.safetensors"
    data.mkdir()
    (data / "sampling.json").write_text('{"mpp": 0.5}')
    for split, patches in open_patches(patch_folder).items():
        for part, values in (("x", np.stack(patches.read_many(range(len(patches))))), ("y", patches.labels)):
            with h5py.File(data / f"camelyonpatch_level_2_split_{split}_{part}.h5", "w") as file:
                file[part] = values
    train_tiny(data, out, recipe=SMALL, **HERE)
    assert read_card(out).preprocessing == Preprocessing(mpp=0.5)
    fitted = tmp_path / "c.safetensors"
    for refuse in (lambda: check_evaluation("default", data), lambda: check_calibration("default", data, fitted)):
        with pytest.raises(DataError, match=r"patches of 0.5 um per pixel, and the model is shown 0.972; expected the same"):
            refuse()
    check_evaluation(out, data)

    (data / "sampling.json").write_text('{"mpp": 0.25}')
    with pytest.raises(OutputExistsError, match=r"mpp was 0.5, now 0.25"):
        train_tiny(data, out, recipe=SMALL, resume=True, **HERE)
    other = tmp_path / "other"
    shutil.copytree(data, other)
    (other / "sampling.json").write_text('{"mpp": 1}')
    with pytest.raises(DataError, match=r"patches of 1 um per pixel, and those of .*data have 0.25; expected one size"):
        open_patches([data, other])
    (other / "sampling.json").write_text('{"mpp": "1"}')
    with pytest.raises(DataError, match=r"sampling.json: cannot be read as the record of a sampling"):
        open_patches(other)


def test_a_model_to_start_from_goes_on_with_its_own_input(
    patch_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, seen = Preprocessing(mpp=0.5, mean=(0, 0, 0), std=(1, 1, 1)), []
    write_model(tmp_path / "init", Tiny().state_dict(), ModelCard(preprocessing=own))

    class Noting(Learner):
        def enter(self, epoch: int) -> None:
            seen.append(self.start.preprocessing)
            super().enter(epoch)

    parts = replace(TINY, make_learner=learners(Noting))
    train_tiny(patch_folder, tmp_path / "m.safetensors", init=tmp_path / "init", recipe=SMALL, parts=parts, **HERE)
    assert seen == [own, own]
    assert read_card(tmp_path / "m.safetensors").preprocessing == own
    assert "the patches do not tell their pixel size; taken to be 0.5 um, which the model is shown" in caplog.text


# --- a real run


@dataclass(frozen=True)
class Trained:
    """A finished training by the command: what it printed, and where."""

    printed: dict[str, Any]
    told: str
    model: Path
    recipe: Recipe


def run(*arguments: str | Path) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def trained(few_patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two real steps of the real network by the real command; never change its files."""
    out = tmp_path_factory.mktemp("run") / "m.safetensors"
    recipe = replace(RECIPES["strong"], epochs=1, batch_size=4)
    done = run("train", few_patches, "--out", out, "--init", "none", "--epochs", "1", "--batch-size", "4", "--json", *WORDS)
    return Trained(result_of(done.stdout), done.stderr, out, recipe)


def test_a_run_writes_model_history_and_pictures_and_nothing_else(trained: Trained) -> None:
    folder = trained.model.parent

    assert names_in(folder) == FILES
    named = [Path(trained.printed[name]) for name in ("model", "history", "curves")]
    assert named == [trained.model, folder / "m.history.csv", folder / "m.curves.png"]
    for name in ("m.curves.png", "m.augmented.png"):
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG"
    assert "epoch 1 (all): training loss" in trained.told


def test_evaluating_the_written_file_prints_the_same_figures(trained: Trained, few_patches: Path) -> None:
    result = run("evaluate", trained.model, few_patches, "--split", "valid", "--json", *WORDS)
    evaluated = result_of(result.stdout)
    (best,) = rows_of(trained.model.with_name("m.history.csv"))
    card = read_card(trained.model)

    assert evaluated.pop("known_patches") == {"train": 0, "valid": 4}
    assert "The model's best epoch was chosen on 4 of these 4 patches" in result.stderr
    assert evaluated["n"] == 4
    assert all(type(evaluated[name]) is float for name in ("auc", "accuracy"))
    assert 0 <= evaluated["auc"] <= 1
    intervals = {name: evaluated.pop(name) for name in list(evaluated) if name.endswith("_ci")}
    assert intervals["auc_ci"][0] <= evaluated["auc"] <= intervals["auc_ci"][1]
    assert (trained.printed["n"], trained.printed["auc"]) == (evaluated["n"], evaluated["auc"])
    assert {name: trained.printed[name] for name in card.metrics} == card.metrics
    assert not any(name.endswith("_ci") for name in trained.printed)
    assert trained.printed["best_epoch"] == 1
    assert (evaluated["auc"], evaluated["accuracy"]) == (float(best["valid_auc"]), float(best["valid_accuracy"]))


def test_the_card_tells_how_the_model_came_about(trained: Trained, few_patches: Path) -> None:
    card = load_model(trained.model).card
    data = open_patches(few_patches)

    assert card.training["recipe"] == asdict(trained.recipe)
    assert card.training["init"] == "none"
    assert card.training["best_epoch"] == 1
    assert (card.training["precision"], card.training["processes"]) == ("fp32", 1)
    read = check_patches(data["train"], data["valid"])
    assert card.training["train"] == {"n": 8, "tumor": 4, "sha256": data["train"].fingerprint(), "pixels": read.train.pixels}
    assert card.training["valid"] == {"n": 4, "tumor": 2, "sha256": data["valid"].fingerprint(), "pixels": read.valid.pixels}
    assert card.metrics["auc"] == trained.printed["auc"]
    assert {"n", "accuracy", "accuracy_at_threshold", "log_loss", "dense_auc", "dense_same_decision"} < set(card.metrics)
    assert set(card.thresholds) == {"default", "sensitivity_95", "sensitivity_99", "specificity_99"}
    assert {"python", "torch", "numpy", "wsi-meta"} <= set(card.versions)


def test_training_changed_weights_and_running_statistics(trained: Trained) -> None:
    torch.manual_seed(trained.recipe.seed)
    start = half_precision(build_network().state_dict())

    end = load_file(trained.model)

    changed = {name for name in end if not torch.equal(end[name], start[name])}
    assert {"conv1.weight", "layer1.0.conv1.weight", "layer4.2.conv3.weight", "fc.weight", "fc.bias"} <= changed
    assert {"bn1.running_mean", "layer4.2.bn3.running_var"} <= changed
    assert end["bn1.num_batches_tracked"] == 2 * 2  # each step shows single pictures, and mosaics


def test_a_model_knows_its_patches_in_any_order_and_in_part(trained: Trained, few_patches: Path, tmp_path: Path) -> None:
    split = open_patches(few_patches)["train"]
    for number, index in enumerate((5, 0)):
        place = tmp_path / str(split.labels[index])
        place.mkdir(exist_ok=True)
        shutil.copy(split.files[index], place / f"{number}.png")
        Image.new("RGB", (96, 96), (number, 0, 9)).save(place / "other.png")

    result = run("evaluate", trained.model, tmp_path, "--json", *WORDS)

    assert result_of(result.stdout)["known_patches"] == {"train": 2, "valid": 0}
    assert "The model was trained on 2 of these 4 patches" in result.stderr


# --- the history


def test_the_history_has_a_row_for_each_epoch(patch_folder: Path, tmp_path: Path) -> None:
    parts = replace(TINY, draw_curves=draw_curves)

    result = train_tiny(patch_folder, tmp_path / "m.safetensors", recipe=SMALL, parts=parts, **HERE)

    assert (result.model, result.history) == (tmp_path / "m.safetensors", tmp_path / "m.history.csv")
    assert result.rank == 0
    with Image.open(result.curves) as picture:
        assert picture.format == "PNG"
    rows = rows_of(result.history)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row.pop("stage") for row in rows] == ["all", "all"]
    assert {"lr", "train_loss", "valid_loss", "valid_auc", "valid_accuracy", "images_per_s", "seconds"} < set(rows[0])
    for row in rows:
        values = {name: float(value) for name, value in row.items()}
        assert all(np.isfinite(value) for value in values.values())
        assert values["images_per_s"] > 0
    assert float(rows[1]["lr"]) < float(rows[0]["lr"]) <= SMALL.lr
    best = rows[result.best_epoch - 1]
    assert (result.validation.auc, result.validation.accuracy) == (float(best["valid_auc"]), float(best["valid_accuracy"]))


# --- dense mode


@pytest.mark.parametrize("same", [0.96, 0.98])
def test_the_card_allows_dense_mode_only_where_it_agrees(
    patch_folder: Path, tmp_path: Path, same: float, caplog: pytest.LogCaptureFixture
) -> None:
    class Measured(Validation):
        def agreement(self, *_values: Any) -> Agreement:
            return Agreement(0.9, 0.9, 0.02, 0.1, same)

    parts = replace(TINY, make_validation=Measured)
    card = read_card(train_tiny(patch_folder, tmp_path / "m.safetensors", recipe=SMALL, parts=parts, **HERE).model)

    assert card.dense == (same >= 0.97)
    assert card.metrics["dense_same_decision"] == same
    (told,) = (record.getMessage() for record in caplog.records if "scans are slower" in record.getMessage())
    assert ("dense mode (AUC 0.900 against " in told) == (same < 0.97)
    assert ("96.0% decided alike; expected within 0.004, and 97 %)" in told) == (same < 0.97)
    assert "int8 (it was not measured: 8 validation patches are too few, or no ResNet50)" in told
    assert told.endswith("what helps: more patches or epochs"), "mosaics it had"


def test_without_mosaics_dense_mode_is_neither_measured_nor_allowed(patch_folder: Path, tmp_path: Path) -> None:
    sides = []

    class Noting(Learner):
        def step(self, images: torch.Tensor, labels: torch.Tensor, generator: Any, mosaic_side: int) -> torch.Tensor:
            sides.append(mosaic_side)
            return super().step(images, labels, generator, mosaic_side)

    options = HERE | {"parts": replace(TINY, make_learner=learners(Noting))}
    recipe = Recipe(epochs=5, batch_size=4, patience=0)
    plain = train_tiny(patch_folder, tmp_path / "m.safetensors", recipe=replace(recipe, epochs=1, mosaics=0), **options)
    assert sides == [1] * 4
    mixed = train_tiny(patch_folder, tmp_path / "n.safetensors", recipe=recipe, **options)

    assert 4 <= sides[4:].count(2) <= 16
    assert set(sides[4:]) == {1, 2}
    assert not read_card(plain.model).dense
    assert "dense_auc" not in read_card(plain.model).metrics
    assert read_card(mixed.model).dense, "the tiny network does not see its neighbours"
    assert read_card(mixed.model).metrics["dense_auc"] == read_card(mixed.model).metrics["auc"]


def test_batches_that_make_no_mosaics_are_told_of(
    patch_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for batch_size, told in ((6, True), (8, False)):
        options = HERE | {"parts": scripted([0.5] * 4, [logits_of_auc(12)]), "progress": True}
        recipe = Recipe(epochs=1, batch_size=batch_size)
        train_tiny(patch_folder, tmp_path / f"{batch_size}.safetensors", recipe=recipe, **options)
        assert ("no mosaics: a multiple of 4 as --batch-size" in capsys.readouterr().err) == told


# --- where it may write


def fail(*_values: Any) -> Any:
    raise AssertionError("the training was begun")


UNREAD: dict[str, Any] = {"recipe": SMALL, "parts": replace(TINY, build_network=fail)} | HERE
"""With data that do not exist: a training that looks at them, or builds its network, fails in another way."""


def test_an_existing_output_is_refused_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    out.write_text("precious")

    with pytest.raises(OutputExistsError, match="--overwrite") as caught:
        train_tiny(tmp_path / "no data", out, **UNREAD)

    assert str(out) in str(caught.value)
    assert out.read_text() == "precious"
    assert names_in(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize("name", ["m.history.csv", "m.curves.png", "m.augmented.png", "m.checkpoint"])
def test_existing_files_beside_it_are_refused_too(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")

    with pytest.raises(OutputExistsError, match="--overwrite") as caught:
        train_tiny(tmp_path / "no data", tmp_path / "m.safetensors", **UNREAD)

    assert str(tmp_path / name) in str(caught.value)
    assert ("--resume" in str(caught.value)) == (name == "m.checkpoint")
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["m.history.csv", "m.curves.png", "m.augmented.png"])
def test_a_first_training_with_resume_replaces_nothing_beside_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")

    with pytest.raises(OutputExistsError, match=f"{name}: exists"):
        train_tiny(tmp_path / "no data", tmp_path / "m.safetensors", resume=True, **UNREAD)

    assert names_in(tmp_path) == [name]


def test_overwrite_replaces_an_output(patch_folder: Path, tmp_path: Path) -> None:
    parts = scripted([0.5] * 4, [logits_of_auc(8), logits_of_auc(12)])
    out = tmp_path / "m.safetensors"
    for name in FILES:
        (tmp_path / name).write_text("old")

    train_tiny(patch_folder, out, recipe=replace(SMALL, mosaics=0), parts=parts, overwrite=True, **HERE)

    assert read_card(out).metrics["auc"] == 0.75
    assert names_in(tmp_path) == FILES
    assert all((tmp_path / name).stat().st_size > 3 for name in FILES)


def test_a_missing_output_folder_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(OutputPathError, match="there is no folder") as caught:
        train_tiny(tmp_path / "no data", tmp_path / "gone" / "m.safetensors", **UNREAD)

    assert str(tmp_path / "gone") in str(caught.value)
    assert names_in(tmp_path) == []


def test_a_folder_as_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(OutputPathError, match="a directory"):
        train_tiny(tmp_path / "no data", tmp_path / "m.safetensors", overwrite=True, **UNREAD)


# --- the course of a training


@pytest.mark.parametrize(
    ("logits", "told"),
    [
        (logits_of_auc(8), "validation AUC 0.500: the model tells tumor from normal no better than chance"),
        (logits_of_auc(3), "validation AUC 0.188: the model tells tumor from normal no better than chance"),
        (logits_of_auc(12, 1e4), "the fitted temperature 20 is at its limit"),
        (logits_of_auc(12, 1e-3), "the fitted temperature 0.05 is at its limit"),
        (logits_of_auc(12), ""),
    ],
    ids=["chance", "worse", "too large", "too small", "good"],
)
def test_a_model_that_is_of_no_use_is_told_at_the_end(
    patch_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, logits: NDArray[np.float32], told: str
) -> None:
    recipe = Recipe(epochs=1, batch_size=8, mosaics=0)
    train_tiny(patch_folder, tmp_path / "m.safetensors", recipe=recipe, parts=scripted([0.9] * 2, [logits]), **HERE)
    warned = [text for text in caplog.messages if "chance" in text or "limit" in text]
    assert len(warned) == bool(told)
    assert all(text.startswith(told) for text in warned)
    assert sum("few patches to choose thresholds by" in text for text in caplog.messages) == 1


def test_an_epoch_that_tells_nothing_is_not_told_of(few_patches: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A training only begins with it: the end says what became of it."""
    validation = Validation(open_patches(few_patches)["valid"], "cpu", "fp32", 0, progress=False, build_network=Tiny)
    state = {name: torch.zeros_like(tensor) for name, tensor in Tiny().state_dict().items()}
    assert validation.calibrated(validation.logits(state)).auc == 0.5
    assert caplog.messages == []


def test_a_model_that_is_worse_than_chance_is_an_error_and_kept(
    patch_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, recipe, data = tmp_path / "m.safetensors", Recipe(epochs=1, batch_size=8, mosaics=0), tmp_path / "data"
    shutil.copytree(patch_folder / "train", data / "valid")
    shutil.copytree(patch_folder / "train", data / "train")
    for path in data.glob("valid/*/*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    logits = np.repeat(-logits_of_auc(16), 2)
    for resume in (False, True):
        with pytest.raises(TrainingError, match=r"worse than chance \(AUC 0.00 on 16 patches\): are the labels 0 and 1 exch"):
            train_tiny(data, out, recipe=recipe, parts=scripted([0.9] * 2, [logits]), resume=resume, **HERE)
    assert read_card(out).metrics["n"] == 16
    assert not [text for text in caplog.messages if "chance" in text or "limit" in text or "slower" in text], "told once, alone"


@pytest.mark.parametrize(("aucs", "best"), [([9, 15, 11], 2), ([15, 13, 11], 1), ([8, 9, 11], 3), ([12, 12, 12], 1)], ids=str)
def test_the_epoch_of_highest_auc_is_kept(patch_folder: Path, tmp_path: Path, aucs: list[int], best: int) -> None:
    parts = scripted([0.9, 0.7, 0.5, 0.3, 0.2, 0.1], [logits_of_auc(auc) for auc in aucs])
    torch.manual_seed(0)
    first_bias = Tiny().fc.bias
    recipe = Recipe(epochs=3, batch_size=8, mosaics=0, ema_epochs=0, patience=0)

    result = train_tiny(patch_folder, tmp_path / "m.safetensors", recipe=recipe, parts=parts, **HERE)

    assert result.best_epoch == best
    assert result.validation.auc == aucs[best - 1] / 16
    assert np.array_equal(result.validation.logits, logits_of_auc(aucs[best - 1]))
    calibration = read_card(result.model).calibration
    assert np.array_equal(result.validation.probabilities, calibration.to_probability(logits_of_auc(aucs[best - 1])))
    assert result.validation.intervals is None
    assert read_card(result.model).training["best_epoch"] == best
    assert torch.allclose(load_file(result.model)["fc.bias"], first_bias + 2 * best)
    rows = rows_of(result.history)
    assert [float(row["valid_auc"]) for row in rows] == [auc / 16 for auc in aucs]
    assert [float(row["train_loss"]) for row in rows] == pytest.approx([0.8, 0.4, 0.15])
    assert result.stopped is None


def test_a_training_that_learns_by_heart_is_stopped_and_says_so(
    patch_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = [loss for epoch in (0.6, 0.5, 0.4, 0.3, 0.2) for loss in (epoch, epoch)]
    parts = scripted(losses, [logits_of_auc(12, spread) for spread in (1, 3, 4, 5, 6)])
    recipe = Recipe(epochs=5, batch_size=8, mosaics=0, patience=2)

    result = train_tiny(patch_folder, tmp_path / "m.safetensors", recipe=recipe, parts=parts, progress=True, **HERE)

    rows = rows_of(result.history)
    assert len(rows) == 3
    assert float(rows[0]["valid_loss"]) < float(rows[1]["valid_loss"])
    assert result.stopped is not None
    assert "the training loss fell from 0.6000 to 0.4000" in result.stopped
    assert capsys.readouterr().err.splitlines()[-1] == result.stopped
    assert names_in(tmp_path) == FILES


def test_head_epochs_are_a_stage_of_their_own(patch_folder: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.pth"
    torch.save(Tiny().state_dict(), start)
    recipe = Recipe(epochs=3, head_epochs=2, batch_size=8, ema_epochs=0, mosaics=0, freeze="stem")
    seen: list[dict[str, torch.Tensor]] = []

    class Keeping(Validation):
        def logits(self, state: dict[str, torch.Tensor]) -> NDArray[np.float32]:
            seen.append(state)
            return super().logits(state)

    parts = replace(TINY, make_validation=Keeping)
    result = train_tiny(patch_folder, tmp_path / "m.safetensors", init=start, recipe=recipe, parts=parts, **HERE)

    assert [row["stage"] for row in rows_of(result.history)] == ["head", "head", "all"]
    first = half_precision(torch.load(start, weights_only=True))
    changed = [{name.split(".")[0] for name in first if not torch.equal(first[name], state[name])} for state in seen]
    assert changed == [{"fc", "bn1"}, {"fc", "bn1"}, {"fc", "bn1", "layer1", "layer4"}]
    assert all(torch.equal(first["bn1.weight"], state["bn1.weight"]) for state in seen), "only its statistics adapt"


def test_equal_seeds_give_equal_models_and_other_seeds_others(few_patches: Path, tmp_path: Path) -> None:
    models = []
    for number, seed in enumerate((1, 1, 2)):
        recipe = Recipe(epochs=1, batch_size=4, seed=seed)
        train_tiny(few_patches, tmp_path / f"{number}.safetensors", recipe=recipe, **HERE)
        models.append(load_file(tmp_path / f"{number}.safetensors"))

    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["fc.weight"], models[2]["fc.weight"])


# --- what ends it


@pytest.mark.parametrize("loss", [math.nan, math.inf], ids=str)
def test_a_loss_that_is_no_number_ends_training_and_keeps_model_and_checkpoint(
    patch_folder: Path, tmp_path: Path, loss: float
) -> None:
    parts = scripted([0.5, 0.5, 0.5, loss], [logits_of_auc(12)])
    out = tmp_path / "m.safetensors"

    with pytest.raises(TrainingError) as caught:
        train_tiny(patch_folder, out, recipe=replace(SMALL, mosaics=0), parts=parts, **HERE)

    text = str(caught.value)
    assert "\n" not in text
    assert f"the loss became {loss} within 16 images of epoch 2/2" in text
    assert "--lr" in text
    assert read_card(out).metrics["auc"] == 0.75
    assert len(rows_of(tmp_path / "m.history.csv")) == 1
    assert names_in(tmp_path) == sorted([*FILES, "m.checkpoint"])
    assert len(torch.load(tmp_path / "m.checkpoint", weights_only=True)["epochs"]) == 1


def test_steps_far_too_large_end_in_that_error(patch_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, batch_size=8, lr=1e6, ema_epochs=0)

    with pytest.raises(TrainingError, match="logits were no numbers; lower --lr"):
        train_tiny(patch_folder, tmp_path / "m.safetensors", recipe=recipe, **HERE)

    assert names_in(tmp_path) == ["m.augmented.png", "m.checkpoint"]


def test_too_few_patches_for_a_batch_are_refused(patch_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="16 training patches do not fill one batch of 17; lower --batch-size"):
        train(patch_folder, tmp_path / "m.safetensors", init="none", recipe=Recipe(batch_size=17), **HERE)

    assert names_in(tmp_path) == []


def write_patches(folder: Path, tumor_of: dict[str, list[int]]) -> Path:
    for split, labels in tumor_of.items():
        for number, label in enumerate(labels):
            place = folder / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (96, 96), (9 * number, ord(split[0]), 0)).save(place / f"{split}{number}.png")
    return folder


def test_validation_needs_two_patches_of_each_class(tmp_path: Path) -> None:
    few = write_patches(tmp_path / "few", {"train": [0, 1] * 4, "valid": [0, 0, 0, 1]})
    enough = write_patches(tmp_path / "enough", {"train": [0, 1] * 4, "valid": [0, 0, 1, 1]})

    with pytest.raises(TrainingError, match="1 tumor and 3 normal patches to validate on; expected at least 2 of each"):
        train_tiny(few, tmp_path / "m.safetensors", recipe=SMALL, **HERE)
    assert names_in(tmp_path) == ["enough", "few"]

    assert train_tiny(enough, tmp_path / "m.safetensors", recipe=SMALL, **HERE).validation.n == 4


def test_a_bad_image_of_the_validation_split_is_named_before_the_first_step(tmp_path: Path) -> None:
    data = write_patches(tmp_path / "data", {"train": [0, 1] * 4, "valid": [0, 1] * 4})
    Image.new("RGB", (97, 96)).save(data / "valid" / "1" / "valid7.png")

    with pytest.raises(DataError, match=r"valid/1/valid7\.png: 97x96 px"):
        train_tiny(data, tmp_path / "m.safetensors", recipe=SMALL, parts=scripted([], []), **HERE)

    assert names_in(tmp_path) == ["data"]


def test_progress_is_told_on_stderr_only_when_asked(
    patch_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = HERE | {"recipe": SMALL, "parts": scripted([0.5] * 8, [logits_of_auc(8), logits_of_auc(12)] * 2)}
    train_tiny(patch_folder, tmp_path / "quiet.safetensors", **options)
    assert capsys.readouterr() == ("", "")

    train_tiny(patch_folder, tmp_path / "m.safetensors", progress=True, **options)

    shown = capsys.readouterr()
    assert shown.out == ""
    assert "16 training patches (8 tumor, 50 %), 8 validation patches (4 tumor, 50 %); no patch in both" in shown.err
    assert "all weights random" in shown.err
    assert "AUC 0.7500" in shown.err
    assert "images/s" in shown.err
    assert shown.err.splitlines()[-1] == "finished after 2 epochs"


def test_one_training_at_a_time_writes_a_model(patch_folder: Path, tmp_path: Path) -> None:
    """Two would write model, history and checkpoint in turns, each with the other's; the first to end would remove both."""
    out, told = tmp_path / "m.safetensors", []

    def another(*_values: Any) -> None:
        again: tuple[dict[str, Any], ...] = ({"resume": True}, {"overwrite": True})
        for settings in again:
            with pytest.raises(OutputExistsError) as caught:
                train_tiny(patch_folder, out, recipe=SMALL, **settings, **HERE)
            told.append(str(caught.value))

    train_tiny(patch_folder, out, recipe=SMALL, parts=replace(TINY, draw_contact_sheet=another), **HERE)

    assert len(told) == 2
    assert all(f"{out}: is being written by this process" in line for line in told)
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(OutputExistsError, match="exists"):
        train_tiny(patch_folder, out, recipe=SMALL, **HERE)
