from __future__ import annotations

import csv
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from children import start_child
from PIL import Image
from tiny import HERE, TINY, Tiny, learners, run_command, train_tiny
from torch.serialization import get_crc32_options, set_crc32_options

from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.errors import DataError, ModelFileError, OutputExistsError, OutputPathError
from wsi_meta.evaluation.results import history_path
from wsi_meta.training.checkpoint import Checkpoint, checkpoint_path, identify, read_checkpoint, write_checkpoint
from wsi_meta.training.contact_sheet import contact_sheet_path
from wsi_meta.training.distributed import Processes
from wsi_meta.training.history import Epoch, check_training, read_history
from wsi_meta.training.initial_weights import Start
from wsi_meta.training.learner import Learner
from wsi_meta.training.recipe import Augmentation, Recipe, TrainOptions
from wsi_meta.training.train import TrainResult, train

RECIPE = Recipe(epochs=3, batch_size=8, mosaics=0.5, ema_epochs=1)
ONE_EPOCH = replace(RECIPE, epochs=1)
EVERY_EPOCH_BEST = replace(TINY, best_epoch=len)
CHECKPOINT = Checkpoint({"recipe": {"lr": 1.0}}, {"weights": torch.arange(5000.0)}, [{"epoch": 1}], torch.ones(3))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the file


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A model file with a checkpoint beside it, written in a program that told torch to leave checksums out."""
    path = tmp_path / "m.safetensors"
    path.write_text("model")
    set_crc32_options(False)
    try:
        write_checkpoint(path, CHECKPOINT)
        assert not get_crc32_options(), "the program's choice is kept"
    finally:
        set_crc32_options(True)
    return path


def test_a_checkpoint_comes_back_as_it_was(out: Path) -> None:
    read = read_checkpoint(out, CHECKPOINT.identity)

    assert read is not None
    assert (read.identity, read.epochs) == (CHECKPOINT.identity, CHECKPOINT.epochs)
    assert torch.equal(read.learner["weights"], CHECKPOINT.learner["weights"])
    assert torch.equal(read.best_logits, CHECKPOINT.best_logits)
    assert names_in(out.parent) == ["m.checkpoint", "m.safetensors"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "m.safetensors", {}) is None


def test_every_damage_is_noticed(out: Path) -> None:
    """A flipped byte anywhere is refused or makes no difference; torch alone would give other weights."""
    path = checkpoint_path(out)
    whole = path.read_bytes()
    refusals = []
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read = read_checkpoint(out, CHECKPOINT.identity)
        except OutputPathError as error:
            refusals.append(str(error))
        else:
            assert read is not None
            assert torch.equal(read.learner["weights"], CHECKPOINT.learner["weights"])
    assert len(refusals) > 0.9 * len(range(0, len(whole), 97))
    assert all(told.startswith(f"{path}: not a checkpoint (") for told in refusals)
    assert all(told.endswith("remove it and train from the start") for told in refusals)
    assert not any("\n" in told for told in refusals)


@pytest.mark.parametrize("content", [b"", b"PK", b"no checkpoint", b"\0" * 1000], ids=str)
def test_what_is_no_checkpoint_is_one_line(out: Path, content: bytes) -> None:
    checkpoint_path(out).write_bytes(content)

    with pytest.raises(OutputPathError, match="not a checkpoint"):
        read_checkpoint(out, CHECKPOINT.identity)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_one_line(out: Path, share: float) -> None:
    whole = checkpoint_path(out).read_bytes()
    checkpoint_path(out).write_bytes(whole[: int(share * len(whole))])

    with pytest.raises(OutputPathError, match="not a checkpoint"):
        read_checkpoint(out, CHECKPOINT.identity)


@pytest.mark.parametrize("content", [torch.zeros(3), {"state_dict": {}}, {"wsi_meta_checkpoint": 2}], ids=str)
def test_another_file_of_torchs_is_no_checkpoint(out: Path, content: Any) -> None:
    torch.save(content, checkpoint_path(out))

    with pytest.raises(OutputPathError, match="not a checkpoint"):
        read_checkpoint(out, CHECKPOINT.identity)


def test_a_checkpoint_runs_no_code(out: Path) -> None:
    trace = out.parent / "trace"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(trace),)

    torch.save({"wsi_meta_checkpoint": 1, "identity": Trap()}, checkpoint_path(out))

    with pytest.raises(OutputPathError, match="not a checkpoint"):
        read_checkpoint(out, CHECKPOINT.identity)
    assert not trace.exists()


def test_a_checkpoint_whose_model_is_gone_is_no_start(out: Path) -> None:
    out.unlink()

    with pytest.raises(OutputPathError, match=r"m\.safetensors: missing, though m\.checkpoint"):
        read_checkpoint(out, CHECKPOINT.identity)


# --- whose it is


def identity(
    data: Path,
    recipe: Recipe = RECIPE,
    *,
    weights: float = 1.0,
    processes: int = 1,
    device: str = "cpu",
    precision: str = "fp32",
) -> dict[str, Any]:
    torch.manual_seed(0)
    network = Tiny()
    network.get_parameter("conv1.weight").data.fill_(weights)
    splits = open_patches(data)
    start = Start(network, frozenset({"conv1.weight"}), "w.pth", "")
    return identify(recipe, start, splits["train"], splits["valid"], Processes(0, processes, device), precision)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"recipe": replace(RECIPE, lr=0.5, epochs=9)}, "epochs was 3, now 9; lr was 0.001, now 0.5; choose"),
        ({"recipe": replace(RECIPE, augmentation=Augmentation().without("jpeg"))}, "training: jpeg was 0.2, now 0; choose"),
        ({"weights": 2.0}, "training: initial weights was "),
        ({"processes": 2}, "training: processes was 1, now 2; choose"),
        ({"device": "cuda:0"}, "training: device was cpu, now cuda; choose"),
        ({"precision": "bf16"}, "training: precision was fp32, now bf16; choose"),
    ],
    ids=["recipe", "augmentation", "weights", "processes", "device", "precision"],
)
def test_the_checkpoint_of_another_training_is_refused_and_the_difference_named(
    out: Path, patch_folder: Path, change: dict[str, Any], told: str
) -> None:
    write_checkpoint(out, replace(CHECKPOINT, identity=identity(patch_folder)))
    assert read_checkpoint(out, identity(patch_folder)) is not None

    with pytest.raises(OutputExistsError, match="of another training") as caught:
        read_checkpoint(out, identity(patch_folder, **change))

    assert told in str(caught.value)
    assert str(checkpoint_path(out)) in str(caught.value)


def test_what_an_older_checkpoint_does_not_hold_is_not_compared(out: Path, patch_folder: Path) -> None:
    now = identity(patch_folder)
    older = {name: value for name, value in now.items() if not name.endswith("pixels")}
    write_checkpoint(out, replace(CHECKPOINT, identity=older))
    assert read_checkpoint(out, now) is not None

    older["recipe"] = {name: value for name, value in older["recipe"].items() if name != "mosaics"}
    write_checkpoint(out, replace(CHECKPOINT, identity=older))
    with pytest.raises(OutputExistsError, match=r"training: mosaics was None, now 0\.5"):
        read_checkpoint(out, now)


def test_other_data_are_another_training(out: Path, patch_folder: Path, tmp_path: Path) -> None:
    write_checkpoint(out, replace(CHECKPOINT, identity=identity(patch_folder)))
    other = tmp_path / "other"
    for path in patch_folder.rglob("*.png"):
        copy = other / path.relative_to(patch_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(path)
    assert read_checkpoint(out, identity(other)) is not None
    (other / "train" / "0" / "train0.png").rename(other / "train" / "0" / "train99.png")

    with pytest.raises(OutputExistsError, match=r"training: training patches was .*, now "):
        read_checkpoint(out, identity(other))


# --- the description of the training patches


def test_a_training_that_ends_in_its_description_describes_again(patch_folder: Path, tmp_path: Path) -> None:
    out, described = tmp_path / "m.safetensors", []

    def describe(model: Path, patches: Patches, **settings: Any) -> None:
        described.append((model, len(patches), settings["workers"], checkpoint_path(out).exists()))
        if len(described) == 1:
            raise OutputPathError("the disk is full")

    parts = replace(TINY, store_feature_statistics=describe)
    settings: dict[str, Any] = {"recipe": ONE_EPOCH, "parts": parts, **HERE}
    with pytest.raises(OutputPathError):
        train_tiny(patch_folder, out, **settings)
    epochs = out.read_bytes()
    train_tiny(patch_folder, out, resume=True, **settings)
    assert described == [(out, 16, 0, True)] * 2
    assert out.read_bytes() == epochs
    assert not checkpoint_path(out).exists()


# --- a training that is killed


def in_child(work: Callable[[], object], log: Path) -> int:
    return start_child(work, log).wait()


def rows_of(out: Path) -> list[dict[str, str]]:
    """The history but for how long it took."""
    with out.with_suffix(".history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name not in ("seconds", "images_per_s")} for row in rows]


def state_of(out: Path) -> dict[str, Any]:
    """Every tensor and number of a checkpoint's learner, by a name."""

    def flatten(name: str, value: Any) -> None:
        if isinstance(value, dict | list | tuple):
            for key, one in value.items() if isinstance(value, dict) else enumerate(value):
                flatten(f"{name}.{key}", one)
        else:
            flat[name] = value

    flat: dict[str, Any] = {}
    flatten("", torch.load(checkpoint_path(out), weights_only=True)["learner"])
    return flat


def kill_on_rename(number: int, *, after: bool = False) -> None:
    """Let the kernel kill this process when it renames a file for the `number`-th time (from 1), before or after that."""
    rename, calls = Path.replace, count(1)

    def deadly(path: Path, target: Path) -> Path:
        last = next(calls) == number
        if not last or after:
            rename(path, target)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return target

    setattr(Path, "replace", deadly)  # noqa: B010


def kill_on_step(number: int) -> Callable[..., Learner]:
    """What makes learners that the kernel kills, with their process, before step `number` (from 1)."""

    class Deadly(Learner):
        def step(self, *values: Any) -> torch.Tensor:
            if self.steps == number - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step(*values)

    return learners(Deadly)


@pytest.fixture(scope="module")
def start_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(9)
    path = tmp_path_factory.mktemp("start") / "start.pth"
    torch.save(Tiny().state_dict(), path)
    return path


Unbroken = tuple[Path, TrainResult]


@pytest.fixture(scope="module")
def kept(patch_folder: Path, start_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """A training that nothing breaks off, each epoch of which is the best, with its checkpoint; never change its files."""
    out = tmp_path_factory.mktemp("kept") / "m.safetensors"
    options = HERE | {"init": start_file, "recipe": RECIPE, "keep_checkpoint": True, "parts": EVERY_EPOCH_BEST}
    return out, train_tiny(patch_folder, out, **options)


@pytest.fixture(scope="module")
def unbroken(patch_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """A training that nothing breaks off; never change its files."""
    out = tmp_path_factory.mktemp("unbroken") / "m.safetensors"
    return out, train_tiny(patch_folder, out, recipe=RECIPE, **HERE)


@pytest.mark.parametrize("when", ["between epochs", "within an epoch", "before the model", "before the checkpoint"])
def test_a_training_that_was_killed_goes_on_to_the_same_end(
    patch_folder: Path, start_file: Path, kept: Unbroken, tmp_path: Path, when: str
) -> None:
    """Killed in the second epoch (between epochs: after the first), then resumed in another process; each epoch is the best."""
    options = HERE | {"init": start_file, "recipe": RECIPE, "keep_checkpoint": True, "parts": EVERY_EPOCH_BEST}
    (tmp_path / "killed").mkdir()
    (unbroken, expected), out = kept, tmp_path / "killed" / "m.safetensors"

    def killed() -> None:
        parts = EVERY_EPOCH_BEST
        if when == "within an epoch":
            parts = replace(parts, make_learner=kill_on_step(4))
        elif when == "between epochs":
            kill_on_rename(4, after=True)
        else:
            # each epoch renames the model, the history and the checkpoint into place, the first one also an empty checkpoint
            kill_on_rename({"before the model": 5, "before the checkpoint": 7}[when])
        train_tiny(patch_folder, out, **options | {"parts": parts})

    assert in_child(killed, tmp_path / "log") == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert len(rows_of(out)) == (2 if when == "before the checkpoint" else 1)

    resumed = train_tiny(patch_folder, out, resume=True, **options)

    assert rows_of(out) == rows_of(unbroken)
    assert [row["stage"] for row in rows_of(out)] == ["head", "all", "all"]
    ended, wanted = state_of(out), state_of(unbroken)
    assert {".network.fc.weight", ".average.fc.weight", ".steps"} < set(ended) == set(wanted)
    assert any(name.endswith("exp_avg_sq") for name in ended)
    for name, value in wanted.items():
        assert torch.equal(ended[name], value) if isinstance(value, torch.Tensor) else ended[name] == value, name
    assert names_in(out.parent) == names_in(unbroken.parent)
    assert resumed.validation.to_dict() == expected.validation.to_dict()
    assert out.read_bytes() == unbroken.read_bytes()


@pytest.mark.parametrize("number", [1, 2, 3], ids=["the empty checkpoint", "the model", "the history"])
def test_a_training_that_is_killed_in_its_first_epoch_is_never_called_finished(
    patch_folder: Path, unbroken: Unbroken, tmp_path: Path, number: int
) -> None:
    """Killed after a file of the first epoch was renamed into place and before its checkpoint was."""
    (tmp_path / "killed").mkdir()
    (whole, expected), out = unbroken, tmp_path / "killed" / "m.safetensors"

    def killed() -> None:
        kill_on_rename(number, after=True)
        train_tiny(patch_folder, out, recipe=RECIPE, **HERE)

    assert in_child(killed, tmp_path / "log") == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert out.exists() == (number > 1)

    resumed = train_tiny(patch_folder, out, resume=True, recipe=RECIPE, **HERE)

    assert len(rows_of(out)) == 3
    assert rows_of(out) == rows_of(whole)
    assert resumed.validation.to_dict() == expected.validation.to_dict()
    assert out.read_bytes() == whole.read_bytes()
    assert names_in(out.parent) == names_in(whole.parent)


def test_a_training_logs_each_epoch(patch_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("tensorboard")
    library.__spec__ = ModuleSpec("tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard", library)
    logged: list[tuple[object, Epoch]] = []
    parts = replace(TINY, log_epoch=lambda folder, epoch: logged.append((folder, epoch)))
    out = tmp_path / "m.safetensors"
    train_tiny(patch_folder, out, recipe=replace(RECIPE, epochs=2), parts=parts, tensorboard="logs", **HERE)
    assert [epoch.epoch for _, epoch in logged] == [1, 2]
    assert [epoch for _, epoch in logged] == read_history(out)
    assert {folder for folder, _ in logged} == {Path("logs")}


def test_the_checkpoint_goes_when_training_is_finished(patch_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    options = HERE | {"recipe": ONE_EPOCH}
    first = train_tiny(patch_folder, out, keep_checkpoint=True, **options)
    assert checkpoint_path(out).exists()
    written = out.read_bytes()
    rows = read_history(out)
    history_path(out).unlink()  # as where model and checkpoint alone were moved

    again = train_tiny(patch_folder, out, resume=True, **options)

    assert not checkpoint_path(out).exists()
    assert read_history(out) == rows
    assert again.validation.to_dict() == first.validation.to_dict()
    assert out.read_bytes() == written
    once_more = train_tiny(patch_folder, out, resume=True, **options)
    assert once_more.validation.to_dict() == first.validation.to_dict()
    assert (once_more.best_epoch, once_more.stopped) == (first.best_epoch, first.stopped)
    assert out.read_bytes() == written
    out.write_bytes(written.replace(rb"best_epoch\"", rb"last_epoch\""))  # a card that does not say it
    assert train_tiny(patch_folder, out, resume=True, **options).best_epoch == first.best_epoch


def test_resume_without_anything_to_resume_starts(patch_folder: Path, tmp_path: Path) -> None:
    recipe = ONE_EPOCH

    result = train_tiny(patch_folder, tmp_path / "m.safetensors", recipe=recipe, resume=True, **HERE)

    assert result.best_epoch == 1


def test_resume_of_another_training_changes_nothing(patch_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    train_tiny(patch_folder, out, recipe=ONE_EPOCH, keep_checkpoint=True, **HERE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises(OutputExistsError, match="epochs was 1, now 2"):
        train_tiny(patch_folder, out, recipe=replace(RECIPE, epochs=2), resume=True, **HERE)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("replaced", "told"),
    [
        (lambda content: content[8:], "not a safetensors file, or a truncated one"),
        (lambda content: content.replace(rb"seed\": 0", rb"seed\": 7"), "of another training: seed was 7, now 0; choose"),
        (
            lambda content: content.replace(rb"best_epoch\": 1", rb"best_epoch\": 9"),
            r"holds epoch 9, and by m\.checkpoint epoch 1 is the best so far; put that model back",
        ),
    ],
    ids=["damaged", "of another training", "of another epoch"],
)
def test_a_model_that_was_replaced_is_refused_before_the_first_step(
    patch_folder: Path, tmp_path: Path, replaced: Callable[[bytes], bytes], told: str
) -> None:
    class Interrupted(Learner):
        def enter(self, epoch: int) -> None:
            if epoch == 2:
                raise KeyboardInterrupt
            super().enter(epoch)

    out, first_best = tmp_path / "m.safetensors", replace(TINY, best_epoch=lambda _epochs: 1)
    broken_off = replace(first_best, make_learner=learners(Interrupted))
    with pytest.raises(KeyboardInterrupt):
        train_tiny(patch_folder, out, recipe=RECIPE, parts=broken_off, **HERE)
    out.write_bytes(replaced(out.read_bytes()))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises((ModelFileError, OutputExistsError), match=told):
        train_tiny(patch_folder, out, recipe=RECIPE, parts=first_best, resume=True, **HERE)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_training_that_is_overwritten_cannot_be_resumed_by_mistake(patch_folder: Path, tmp_path: Path) -> None:
    class Interrupted(Learner):
        def enter(self, _epoch: int) -> None:
            raise KeyboardInterrupt

    out = tmp_path / "m.safetensors"
    train_tiny(patch_folder, out, recipe=ONE_EPOCH, keep_checkpoint=True, **HERE)
    assert checkpoint_path(out).exists()

    parts = replace(TINY, make_learner=learners(Interrupted))
    with pytest.raises(KeyboardInterrupt):
        train_tiny(patch_folder, out, recipe=RECIPE, overwrite=True, parts=parts, **HERE)

    with pytest.raises(OutputExistsError, match="epochs was 3, now 1"):
        train_tiny(patch_folder, out, recipe=ONE_EPOCH, resume=True, **HERE)
    assert torch.load(checkpoint_path(out), weights_only=True)["epochs"] == []


def test_a_training_that_was_killed_in_its_first_epoch_goes_on(patch_folder: Path, tmp_path: Path) -> None:
    class Interrupted(Learner):
        def enter(self, _epoch: int) -> None:
            raise KeyboardInterrupt

    out = tmp_path / "m.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train_tiny(patch_folder, out, recipe=RECIPE, parts=replace(TINY, make_learner=learners(Interrupted)), **HERE)
    assert names_in(tmp_path) == ["m.augmented.png", "m.checkpoint"]
    contact_sheet_path(out).unlink()  # as where it was killed before it was drawn

    train_tiny(patch_folder, out, resume=True, recipe=RECIPE, **HERE)

    assert len(rows_of(out)) == 3
    assert contact_sheet_path(out).exists()


# --- a full disk


@pytest.mark.parametrize(("limit", "file"), [(20_000, "m.safetensors"), (100_000, "m.checkpoint")])
def test_a_full_disk_is_one_line_and_what_was_good_is_kept(patch_folder: Path, tmp_path: Path, limit: int, file: str) -> None:
    """The kernel refuses to write files over a limit from the second epoch on; each epoch is the best so far."""
    out, log = tmp_path / "m.safetensors", tmp_path / "log"
    words = f"train {patch_folder} --out {out} --init none --epochs 3 --batch-size 8 --device cpu --precision fp32 --workers 0"

    def filled() -> None:
        good: dict[str, bytes] = {}

        class Filling(Learner):
            def enter(self, epoch: int) -> None:
                super().enter(epoch)
                if epoch == 2:
                    good.update({path.name: path.read_bytes() for path in (out, checkpoint_path(out))})
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        try:
            run_command(words, replace(EVERY_EPOCH_BEST, make_learner=learners(Filling)))
        finally:
            assert checkpoint_path(out).read_bytes() == good["m.checkpoint"]
            assert (out.read_bytes() == good["m.safetensors"]) == (file == "m.safetensors")

    assert in_child(filled, log) == 1
    lines = log.read_text().splitlines()
    assert lines[-1] == (
        f"Error: {tmp_path / file}: cannot be written (File too large); make room and run it again; the one before is kept"
    )
    assert "Traceback" not in log.read_text()
    assert not list(tmp_path.glob("*.partial"))
    assert len(torch.load(tmp_path / "m.checkpoint", weights_only=True)["epochs"]) == 1


def test_a_first_write_that_fails_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_values: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)

    with pytest.raises(
        OutputPathError, match=r"m\.checkpoint: cannot be written \(No space left on device\); make room"
    ) as caught:
        write_checkpoint(tmp_path / "m.safetensors", CHECKPOINT)

    assert "is kept" not in str(caught.value)
    assert names_in(tmp_path) == []


def test_a_disk_that_fills_in_the_first_epoch_leaves_a_training_to_resume(patch_folder: Path, tmp_path: Path) -> None:
    """There is room for the model and not for the checkpoint after it."""
    out, log = tmp_path / "m.safetensors", tmp_path / "log"
    words = f"train {patch_folder} --out {out} --init none --epochs 2 --batch-size 8 --device cpu --precision fp32 --workers 0"

    def filled() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        run_command(f"{words} --recipe light", TINY)

    assert in_child(filled, log) == 1
    assert "m.checkpoint: cannot be written (File too large)" in log.read_text().splitlines()[-1]
    assert out.exists()

    train_tiny(patch_folder, out, resume=True, recipe=replace(RECIPE, epochs=2, mosaics=0.5, ema_epochs=0.3), **HERE)

    assert len(rows_of(out)) == 2
    assert not checkpoint_path(out).exists()


# --- a training that is finished, or looks like it


@pytest.fixture
def finished(unbroken: Unbroken, tmp_path: Path) -> Path:
    """A finished training of one's own."""
    shutil.copytree(unbroken[0].parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "m.safetensors"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"recipe": replace(RECIPE, epochs=4)}, "epochs was 3, now 4"),
        ({"recipe": replace(RECIPE, augmentation=Augmentation().without("jpeg"))}, "jpeg was 0.2, now 0"),
        ({"precision": "bf16"}, "precision was fp32, now bf16"),
    ],
    ids=["recipe", "augmentation", "precision"],
)
def test_a_finished_training_is_not_the_result_of_another_one(
    patch_folder: Path, finished: Path, change: dict[str, Any], told: str
) -> None:
    before = {path.name: path.read_bytes() for path in finished.parent.iterdir()}

    with pytest.raises(OutputExistsError, match=f"of another training: {told}; choose another --out"):
        train_tiny(patch_folder, finished, resume=True, **HERE | {"recipe": RECIPE} | change)

    assert {path.name: path.read_bytes() for path in finished.parent.iterdir()} == before


@pytest.mark.parametrize("end", ["finished", "between epochs"])
def test_other_pixels_under_the_same_names_are_another_training(patch_folder: Path, tmp_path: Path, end: str) -> None:
    data, out = tmp_path / "patches", tmp_path / "m.safetensors"
    shutil.copytree(patch_folder, data)
    train_tiny(data, out, recipe=ONE_EPOCH, keep_checkpoint=end != "finished", **HERE)
    first = sorted((data / "train" / "1").iterdir())[0]
    Image.new("RGB", (96, 96), (1, 2, 3)).save(first)

    with pytest.raises(OutputExistsError, match=r"of another training.*pixels was "):
        train_tiny(data, out, resume=True, recipe=ONE_EPOCH, **HERE)


def test_other_initial_weights_of_the_same_name_are_another_training(
    patch_folder: Path, start_file: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "m.safetensors", tmp_path / start_file.name
    train_tiny(patch_folder, out, init=start_file, recipe=ONE_EPOCH, **HERE)
    torch.manual_seed(5)
    torch.save(Tiny().state_dict(), other)

    with pytest.raises(OutputExistsError, match="of another training: init_sha256 was "):
        train_tiny(patch_folder, out, init=other, resume=True, recipe=ONE_EPOCH, **HERE)


def test_a_model_of_some_epochs_whose_checkpoint_is_gone_is_not_finished(patch_folder: Path, finished: Path) -> None:
    history = finished.with_suffix(".history.csv")
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:2]))

    with pytest.raises(OutputExistsError, match="trained for 1 of 3 epochs, and its checkpoint is gone; start anew with"):
        train_tiny(patch_folder, finished, resume=True, recipe=RECIPE, **HERE)

    history.unlink()
    with pytest.raises(OutputExistsError, match=r"m\.history\.csv: cannot be read as a training's history .*; start anew with"):
        train_tiny(patch_folder, finished, resume=True, recipe=RECIPE, **HERE)
    assert train_tiny(patch_folder, finished, resume=True, overwrite=True, recipe=RECIPE, **HERE).best_epoch >= 1


def test_a_training_resumes_in_its_own_precision_only(patch_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    train_tiny(patch_folder, out, recipe=ONE_EPOCH, keep_checkpoint=True, **HERE)
    stored = torch.load(checkpoint_path(out), weights_only=True)
    stored["identity"]["precision"] = "bf16"
    torch.save(stored, checkpoint_path(out))

    with pytest.raises(OutputExistsError, match=r"m\.checkpoint: of another training: precision was bf16, now fp32"):
        train_tiny(patch_folder, out, resume=True, recipe=ONE_EPOCH, **HERE)


# --- what is refused before any work


def test_data_are_looked_at_before_weights_are_fetched(tmp_path: Path) -> None:
    def fetched() -> Any:
        raise AssertionError("a network was built, and weights would have been loaded")

    parts = replace(TINY, build_network=fetched)
    with pytest.raises(DataError, match="no such folder"):
        train_tiny(tmp_path / "gone", tmp_path / "m.safetensors", init="imagenet", recipe=RECIPE, parts=parts, **HERE)
    (tmp_path / "few").mkdir()
    with pytest.raises(DataError, match="no labelled patches"):
        train_tiny(tmp_path / "few", tmp_path / "m.safetensors", init="imagenet", recipe=RECIPE, parts=parts, **HERE)


def test_initial_weights_are_looked_for_before_the_data_and_never_replaced(patch_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"gone\.pth: no such file"):
        train_tiny(tmp_path / "gone", tmp_path / "m.safetensors", init=tmp_path / "gone.pth", recipe=RECIPE, **HERE)
    with pytest.raises(DataError, match="gone: no such folder"):  # the weights are there
        train(tmp_path / "gone", tmp_path / "m.safetensors", init="default")
    with pytest.raises(DataError, match="gone: no such folder"):
        check_training(tmp_path / "gone", tmp_path / "m.safetensors", init="default", options=TrainOptions())
    weights = tmp_path / "w.safetensors"
    weights.write_text("precious")
    with pytest.raises(OutputPathError, match="the initial weights, never replaced"):
        train_tiny(patch_folder, weights, init=weights, overwrite=True, recipe=RECIPE, **HERE)
    assert weights.read_text() == "precious"
