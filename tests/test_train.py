from __future__ import annotations

import csv
import http.client
import importlib
import os
import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from wsi_meta.errors import DataError, ModelFileError, OutputExistsError, OutputPathError, TrainingError
from wsi_meta.model import ModelCard, build_network, half_precision, load_model, read_card
from wsi_meta.training.datasets import open_patches
from wsi_meta.training.evaluate import Evaluation, evaluate
from wsi_meta.training.init import initialise, stage_of
from wsi_meta.training.train import Recipe, TrainResult, train

# the module, even where its package gives the function the same name
module = importlib.import_module("wsi_meta.training.train")

HERE: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 0}
SMALL = Recipe(epochs=2, batch_size=8)


class Tiny(nn.Module):
    """Stands in for the ResNet50 where only the course of a training matters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 2, 3)
        self.fc = nn.Linear(2, 1)


def evaluation(auc: float) -> Evaluation:
    figures = dict.fromkeys((field.name for field in fields(Evaluation) if field.type == "float"), 1.0)
    known = {"n": 8, "auc": auc, "accuracy": auc, "log_loss": 1 - auc}
    return Evaluation(**figures | known, probabilities=np.zeros(8, np.float32), logits=np.zeros(8, np.float32))  # type: ignore[arg-type]


def script(monkeypatch: pytest.MonkeyPatch, losses: list[float], aucs: list[float]) -> None:
    """Let a training take its course without arithmetic: given losses of its steps, given AUCs of its epochs."""
    loss, auc = iter(losses), iter(aucs)

    def step(learner: Any, images: torch.Tensor, labels: torch.Tensor) -> float:
        learner.network.fc.bias.data += 1
        learner.optimiser.step()  # without gradients: does nothing
        learner.schedule.step()
        return next(loss)

    monkeypatch.setattr(module, "build_network", Tiny)
    monkeypatch.setattr(module, "_step", step)
    monkeypatch.setattr(module, "_judge", lambda *_args, **_options: evaluation(next(auc)))


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise AssertionError("the data were read")

    monkeypatch.setattr(module, "open_patches", fail)
    monkeypatch.setattr(module, "build_network", fail)


def rows_of(history: Path) -> list[dict[str, str]]:
    with history.open(newline="") as file:
        return list(csv.DictReader(file))


# --- a real run


@pytest.fixture(scope="module")
def trained(patch_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Two epochs of two real steps each; never change its files."""
    return train(patch_folder, tmp_path_factory.mktemp("run") / "m.safetensors", init="none", recipe=SMALL, **HERE)


def test_a_run_writes_model_history_and_curves_and_nothing_else(trained: TrainResult) -> None:
    folder = trained.model.parent

    assert sorted(path.name for path in folder.iterdir()) == ["m.curves.png", "m.history.csv", "m.safetensors"]
    assert (trained.model, trained.history) == (folder / "m.safetensors", folder / "m.history.csv")
    with Image.open(trained.curves) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_the_history_has_a_row_for_each_epoch(trained: TrainResult) -> None:
    rows = rows_of(trained.history)

    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"lr", "train_loss", "valid_loss", "valid_auc", "valid_accuracy", "images_per_s", "seconds"} < set(rows[0])
    for row in rows:
        values = {name: float(value) for name, value in row.items()}
        assert all(np.isfinite(value) for value in values.values())
        assert values["images_per_s"] > 0
    assert float(rows[1]["lr"]) < float(rows[0]["lr"]) <= SMALL.lr
    best = rows[trained.best_epoch - 1]
    assert float(best["valid_auc"]) == trained.validation.auc == max(float(row["valid_auc"]) for row in rows)


def test_evaluating_the_written_file_gives_the_same_figures(trained: TrainResult, patch_folder: Path) -> None:
    again = evaluate(trained.model, patch_folder, split="valid", **HERE)

    assert again.n == 8
    assert trained.validation.intervals is None
    assert replace(again, intervals=None).to_dict() == trained.validation.to_dict()
    assert np.array_equal(again.probabilities, trained.validation.probabilities)


def test_the_card_tells_how_the_model_came_about(trained: TrainResult, patch_folder: Path) -> None:
    card = load_model(trained.model).card
    data = open_patches(patch_folder)

    assert card.training["recipe"] == {**vars(SMALL)}
    assert card.training["init"] == "none"
    assert card.training["best_epoch"] == trained.best_epoch
    assert card.training["train"] == {"n": 16, "tumor": 8, "sha256": data["train"].fingerprint()}
    assert card.training["valid"] == {"n": 8, "tumor": 4, "sha256": data["valid"].fingerprint()}
    assert card.metrics["auc"] == trained.validation.auc
    assert card.metrics["accuracy"] == trained.validation.accuracy
    assert card.metrics["log_loss"] == trained.validation.log_loss
    assert card.metrics["n"] == 8
    assert {"python", "torch", "torchvision", "wsi-meta"} <= set(card.versions)
    assert not card.dense


def test_training_changed_weights_and_running_statistics(trained: TrainResult) -> None:
    torch.manual_seed(SMALL.seed)
    start = half_precision(build_network().state_dict())

    end = load_file(trained.model)

    changed = {name for name in end if not torch.equal(end[name], start[name])}
    assert {"conv1.weight", "layer1.0.conv1.weight", "layer4.2.conv3.weight", "fc.weight", "fc.bias"} <= changed
    assert {"bn1.running_mean", "layer4.2.bn3.running_var"} <= changed
    assert end["bn1.num_batches_tracked"] == 2 * trained.best_epoch


# --- evaluating


def test_evaluate_takes_test_else_valid_else_all(model_file: Path, tmp_path: Path) -> None:
    model = load_model(model_file)
    sizes = {"train": 4, "valid": 3, "test": 2}
    chosen = []
    for split, n in sizes.items():
        for number in range(n):
            place = tmp_path / split / str(number % 2)
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (96, 96), (50 * number, 0, 0)).save(place / f"{number}.png")
        chosen.append(evaluate(model, tmp_path, batch_size=4, **HERE).n)

    assert chosen == [4, 3, 2]
    assert {split: evaluate(model, tmp_path, split=split, batch_size=4, **HERE).n for split in sizes} == sizes


def test_evaluate_refuses_a_split_that_is_not_there(model_file: Path, patch_folder: Path) -> None:
    with pytest.raises(DataError, match="no 'test' split; found train, valid") as caught:
        evaluate(model_file, patch_folder, split="test", **HERE)

    assert str(patch_folder) in str(caught.value)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: fork beside torch's threads
def test_reading_in_other_processes_gives_the_same_probabilities(model_file: Path, patch_folder: Path) -> None:
    model = load_model(model_file)

    alone = evaluate(model, patch_folder, split="valid", batch_size=8, **HERE)
    shared = evaluate(model, patch_folder, split="valid", batch_size=8, **HERE | {"workers": 1})

    assert np.array_equal(alone.probabilities, shared.probabilities)
    assert len(set(alone.probabilities.tolist())) == 8


def test_evaluate_counts_what_the_probabilities_say(model_file: Path, tmp_path: Path) -> None:
    for number, grey in enumerate([0, 200, 120, 250, 90, 160, 230]):
        (tmp_path / str(int(number > 2))).mkdir(exist_ok=True)
        Image.new("RGB", (96, 96), (grey, grey // 2, 250 - grey)).save(tmp_path / str(int(number > 2)) / f"{number}.png")

    result = evaluate(model_file, tmp_path, batch_size=7, **HERE)

    truth, called = np.array([0] * 3 + [1] * 4, bool), result.probabilities >= 0.5
    assert 0 < called.sum() < 7
    assert 0 < result.auc < 1
    pairs = result.probabilities[truth][:, None] > result.probabilities[~truth]

    assert result.accuracy == (called == truth).mean()
    assert (result.sensitivity, result.specificity) == (called[truth].mean(), (~called[~truth]).mean())
    assert result.auc == pytest.approx(pairs.mean())
    assert result.log_loss == pytest.approx(
        -np.log(np.where(truth, result.probabilities, 1 - result.probabilities.astype(float))).mean()
    )
    assert "probabilities" not in result.to_dict()


# --- where it may write


def test_an_existing_output_is_refused_and_left_alone(
    patch_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_reading(monkeypatch)
    out = tmp_path / "m.safetensors"
    out.write_text("precious")

    with pytest.raises(OutputExistsError, match="--overwrite") as caught:
        train(patch_folder, out, init="none", recipe=SMALL, **HERE)

    assert str(out) in str(caught.value)
    assert out.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_overwrite_replaces_an_output(patch_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, [0.5] * 4, [0.6, 0.7])
    out = tmp_path / "m.safetensors"
    out.write_text("old")

    train(patch_folder, out, init="none", recipe=SMALL, overwrite=True, **HERE)

    assert read_card(out).metrics["auc"] == 0.7


def test_a_missing_output_folder_is_refused_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_reading(monkeypatch)

    with pytest.raises(OutputPathError, match="there is no folder") as caught:
        train(tmp_path, tmp_path / "gone" / "m.safetensors", init="none", recipe=SMALL, **HERE)

    assert str(tmp_path / "gone") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_folder_as_output_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_reading(monkeypatch)

    with pytest.raises(OutputPathError, match="a directory"):
        train(tmp_path, tmp_path, init="none", recipe=SMALL, overwrite=True, **HERE)


# --- the course of a training


@pytest.mark.parametrize(
    ("aucs", "best"), [([0.6, 0.9, 0.7], 2), ([0.9, 0.8, 0.7], 1), ([0.5, 0.6, 0.7], 3), ([0.8, 0.8, 0.8], 1)], ids=str
)
def test_the_epoch_of_highest_auc_is_kept(
    patch_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aucs: list[float], best: int
) -> None:
    script(monkeypatch, [0.9, 0.7, 0.5, 0.3, 0.2, 0.1], aucs)
    torch.manual_seed(0)
    first_bias = Tiny().fc.bias

    result = train(patch_folder, tmp_path / "m.safetensors", init="none", recipe=Recipe(epochs=3, batch_size=8), **HERE)

    assert result.best_epoch == best
    assert result.validation.auc == aucs[best - 1]
    assert read_card(result.model).training["best_epoch"] == best
    assert torch.allclose(load_file(result.model)["fc.bias"], first_bias + 2 * best)
    rows = rows_of(result.history)
    assert [float(row["valid_auc"]) for row in rows] == aucs
    assert [float(row["train_loss"]) for row in rows] == pytest.approx([0.8, 0.4, 0.15])


@pytest.mark.parametrize("loss", [float("nan"), float("inf")], ids=str)
def test_a_loss_that_is_no_number_ends_training_and_keeps_the_best_model(
    patch_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: float
) -> None:
    script(monkeypatch, [0.5, 0.5, 0.5, loss], [0.75])
    out = tmp_path / "m.safetensors"

    with pytest.raises(TrainingError) as caught:
        train(patch_folder, out, init="none", recipe=SMALL, **HERE)

    text = str(caught.value)
    assert "\n" not in text
    assert f"loss became {loss} after 8 images of epoch 2/2" in text
    assert "--lr" in text
    assert read_card(out).metrics["auc"] == 0.75
    assert len(rows_of(tmp_path / "m.history.csv")) == 1


def test_steps_far_too_large_end_in_that_error(patch_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, batch_size=8, lr=1e30)

    with pytest.raises(TrainingError, match="the loss became"):
        train(patch_folder, tmp_path / "m.safetensors", init="none", recipe=recipe, **HERE)

    assert [path.name for path in tmp_path.iterdir()] == []


def test_too_few_patches_for_a_batch_are_refused(patch_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="16 training patches do not fill one batch of 17; lower --batch-size"):
        train(patch_folder, tmp_path / "m.safetensors", init="none", recipe=Recipe(batch_size=17), **HERE)

    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_bad_image_of_the_validation_split_is_named_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, [], [])
    for split in ("train", "valid"):
        for number in range(8):
            place = tmp_path / "data" / split / str(number % 2)
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (96, 96) if (split, number) != ("valid", 7) else (97, 96)).save(place / f"{number}.png")

    with pytest.raises(DataError, match=r"valid/1/7\.png: 97x96 px"):
        train(tmp_path / "data", tmp_path / "m.safetensors", init="none", recipe=SMALL, **HERE)

    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_progress_is_told_on_stderr_only_when_asked(
    patch_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(monkeypatch, [0.5] * 8, [0.6, 0.7] * 2)
    train(patch_folder, tmp_path / "quiet.safetensors", init="none", recipe=SMALL, **HERE)
    assert capsys.readouterr() == ("", "")

    train(patch_folder, tmp_path / "m.safetensors", init="none", recipe=SMALL, progress=True, **HERE)

    shown = capsys.readouterr()
    assert shown.out == ""
    assert "16 training patches (8 tumor, 50 %), 8 validation patches (4 tumor, 50 %); no patch in both" in shown.err
    assert "all weights random" in shown.err
    assert "AUC 0.7000" in shown.err
    assert "images/s" in shown.err


# --- where it starts


@pytest.fixture(scope="module")
def partial_init(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stem and layer1 of a ResNet50, a head for 1,000 classes, and a tensor that nobody knows."""
    state = {name: tensor for name, tensor in load_file(model_file).items() if stage_of(name) in ("stem", "layer1")}
    path = tmp_path_factory.mktemp("init") / "stem.safetensors"
    save_file(state | {"fc.weight": torch.zeros(1000, 2048), "stain.weight": torch.zeros(3)}, path)
    return path


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(5)
    return build_network()


def test_a_partial_file_fills_what_fits_and_says_what_not(network: nn.Module, partial_init: Path) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    stored = load_file(partial_init)

    start = initialise(network, partial_init)

    after = network.state_dict()
    assert start.loaded == set(stored) - {"fc.weight", "stain.weight"}
    for name, tensor in after.items():
        expected = stored[name].to(tensor.dtype) if name in start.loaded else before[name]
        assert torch.equal(tensor, expected), name
    assert f"loaded {len(start.loaded)} tensors from stem.safetensors" in start.summary
    assert "random: layer2, layer3, layer4, head" in start.summary
    assert "not used: 2" in start.summary
    assert start.source == "stem.safetensors"


def test_frozen_stages_keep_their_kernels_and_the_head_learns(partial_init: Path, patch_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, head_epochs=0, batch_size=8, freeze="stem")
    torch.manual_seed(recipe.seed)
    before = half_precision(build_network().state_dict()) | {
        name: tensor for name, tensor in load_file(partial_init).items() if stage_of(name) in ("stem", "layer1")
    }

    result = train(patch_folder, tmp_path / "m.safetensors", init=partial_init, recipe=recipe, **HERE)

    after = load_file(result.model)
    learned = {
        name.rpartition(".")[0] for name in after if name.endswith("weight") and not torch.equal(after[name], before[name])
    }
    assert learned.isdisjoint({"conv1", "bn1"})
    assert {"layer1.0.conv1", "layer1.2.bn3", "layer2.0.conv1", "layer4.2.conv3", "fc"} <= learned
    assert not torch.equal(after["bn1.running_mean"], before["bn1.running_mean"])
    assert read_card(result.model).training["init"] == "stem.safetensors"


@pytest.mark.parametrize(
    ("freeze", "head_epochs", "epoch", "learning"),
    [
        ("layer1", 1, 1, {"layer2", "layer3", "layer4", "head"}),
        ("none", 1, 1, {"layer2", "layer3", "layer4", "head"}),
        ("layer1", 1, 2, {"layer2", "layer3", "layer4", "head"}),
        ("stem", 1, 2, {"layer1", "layer2", "layer3", "layer4", "head"}),
        ("none", 0, 1, {"stem", "layer1", "layer2", "layer3", "layer4", "head"}),
        ("layer3", 0, 1, {"layer2", "layer3", "layer4", "head"}),
    ],
)
def test_only_loaded_stages_are_frozen(
    network: nn.Module, partial_init: Path, freeze: str, head_epochs: int, epoch: int, learning: set[str]
) -> None:
    start = initialise(network, partial_init)

    module._freeze(start, Recipe(freeze=freeze, head_epochs=head_epochs), epoch)

    found = {stage_of(name) for name, parameter in network.named_parameters() if parameter.requires_grad}
    still = {stage_of(name) for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert found == learning
    assert found.isdisjoint(still)


def test_a_checkpoint_of_torch_is_read_in_its_usual_wrappings(tmp_path: Path) -> None:
    wanted = Tiny().state_dict()
    for name, content in {
        "bare.pth": wanted,
        "wrapped.pt": {"epoch": 3, "state_dict": wanted},
        "parallel.pth": {f"module.{key}": tensor for key, tensor in wanted.items()},
    }.items():
        torch.save(content, tmp_path / name)
        network = Tiny()

        start = initialise(network, tmp_path / name)

        assert all(torch.equal(tensor, wanted[key]) for key, tensor in network.state_dict().items()), name
        assert start.summary == f"loaded 4 tensors from {name}; nothing left random"


def test_init_none_loads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Tiny()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    start = initialise(network, "none")

    assert start.loaded == frozenset()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def refusal(init: Path) -> str:
    """The one line that says why a file is no start; the network stays as it was."""
    network = Tiny()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ModelFileError) as caught:
        initialise(network, init)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert str(init) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_init_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "gone.pth")
    assert "no such file" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_an_init_file_with_nothing_that_fits_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vit.{suffix}"
    state = {"patch_embed.weight": torch.zeros(3), "fc.weight": torch.zeros(1000, 2)}
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)

    assert "none of its 2 tensors fits" in refusal(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.safetensors", b""),
        ("text.safetensors", b"no weights at all"),
        ("zeros.safetensors", b"\0" * 100),
        ("text.pth", b"no weights at all"),
        ("zeros.pth", b"\0" * 100),
    ],
)
def test_an_init_file_that_is_damaged_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    assert "cannot be read" in refusal(path)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(Tiny().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])

    assert "cannot be read" in refusal(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_malicious_checkpoint_is_refused_without_running_it(tmp_path: Path, form: str) -> None:
    path, trace = tmp_path / "a.pth", tmp_path / "trace"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(trace),)

    if form == "plain":
        path.write_bytes(pickle.dumps({"conv1.weight": Trap()}, protocol=2))
    else:
        torch.save({"conv1.weight": Trap()}, path, _use_new_zipfile_serialization=form == "zip")

    refusal(path)

    assert not trace.exists()


def test_imagenet_without_a_network_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def offline(request: Any, *args: Any, **options: Any) -> Any:
        asked.append(getattr(request, "full_url", request))
        raise URLError("[Errno -2] Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)

    with pytest.raises(ModelFileError, match="--init imagenet: the download failed") as caught:
        initialise(Tiny(), "imagenet")

    assert len(asked) == 1
    assert "Name or service not known" in str(caught.value)
    assert "--init FILE" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.pth"))


def test_imagenet_takes_torchvisions_weights_but_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {"conv1.weight": torch.ones(2, 3, 3, 3), "fc.weight": torch.zeros(1000, 2), "fc.bias": torch.zeros(1000)}
    monkeypatch.setattr("torchvision.models.ResNet50_Weights.get_state_dict", lambda *_args, **_options: stored)
    network = Tiny()

    start = initialise(network, "imagenet")

    assert torch.equal(network.conv1.weight, torch.ones(2, 3, 3, 3))
    assert start.loaded == {"conv1.weight"}
    assert start.source == "imagenet"
    assert "not used: 2" in start.summary


def test_a_model_without_a_card_is_a_start_all_the_same(model_file: Path, network: nn.Module) -> None:
    start = initialise(network, model_file)

    assert start.summary.endswith("nothing left random")
    assert ModelCard() == read_card(model_file)


def test_training_goes_on_from_a_whole_model(model_file: Path, patch_folder: Path, tmp_path: Path) -> None:
    """Where everything was loaded, the head still learns in the head epochs."""
    recipe = Recipe(epochs=1, batch_size=4)
    result = train(patch_folder, tmp_path / "m.safetensors", init=model_file, recipe=recipe, **HERE)
    before, after = load_model(model_file).network.state_dict(), load_model(result.model).network.state_dict()
    assert not torch.equal(before["fc.weight"], after["fc.weight"])
    assert torch.equal(before["layer4.0.conv1.weight"], after["layer4.0.conv1.weight"])


def test_weights_that_overflow_in_the_last_step_end_in_that_error(patch_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, batch_size=16, lr=1e30)
    with pytest.raises(TrainingError):
        train(patch_folder, tmp_path / "m.safetensors", init="none", recipe=recipe, **HERE)


def test_any_number_of_steps_has_a_schedule() -> None:
    for epochs in range(1, 30):
        learner = module._make_learner(initialise(Tiny(), "none"), Recipe(epochs=epochs), 1, "cpu", "fp32")
        for _ in range(epochs):
            learner.optimiser.step()
            learner.schedule.step()


@pytest.mark.parametrize("name", ["m.history.csv", "m.curves.png"])
def test_an_existing_history_is_not_overwritten(
    patch_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    script(monkeypatch, [0.5] * 4, [0.6, 0.7])
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputExistsError):
        train(patch_folder, tmp_path / "m.safetensors", init="none", recipe=SMALL, **HERE)
    assert (tmp_path / name).read_text() == "mine"


def test_a_recipe_needs_an_epoch_and_a_batch() -> None:
    wrong: list[dict[str, Any]] = [{"epochs": 0}, {"batch_size": 1}]
    for settings in wrong:
        with pytest.raises(ValueError, match="expected at least"):
            Recipe(**settings)


def test_an_empty_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch()
    refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [{"state_dict": torch.zeros(3)}, {"state_dict": None}, {1: torch.zeros(3)}], ids=str)
def test_a_checkpoint_that_is_no_state_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("error", [RuntimeError("invalid hash value"), http.client.IncompleteRead(b"")], ids=str)
def test_a_broken_download_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_args: Any, **_options: Any) -> Any:
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(ModelFileError, match="the download failed"):
        initialise(Tiny(), "imagenet")


def test_bf16_on_a_cpu_needs_a_compiler_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "resolve_precision", lambda asked, _device: "bf16" if asked == "auto" else asked)
    monkeypatch.setattr("shutil.which", lambda _name: "/usr/bin/c++")
    assert module._choose_precision("auto", "cpu") == "bf16"
    monkeypatch.setattr("shutil.which", lambda _name: None)
    assert module._choose_precision("auto", "cpu") == "fp32"
    assert module._choose_precision("bf16", "cpu") == "bf16"
    assert module._choose_precision("auto", "cuda") == "bf16"
