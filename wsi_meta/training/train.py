"""Transfer learning of the patch classifier: from labelled patches to a model file."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from wsi_meta.errors import ModelFileError, TrainingError
from wsi_meta.model import Model, ModelCard, build_network, half_precision, save_model
from wsi_meta.outputs import check_output
from wsi_meta.predictor import Predictor, keep_freed_memory, resolve_device, resolve_precision
from wsi_meta.preprocessing import Preprocessing
from wsi_meta.progress import note, progress_bar
from wsi_meta.training.augment import augment
from wsi_meta.training.datasets import Patches, open_patches, read_batches, split_for_training
from wsi_meta.training.evaluate import Evaluation, evaluate_patches
from wsi_meta.training.history import Epoch, curves_path, draw_curves, history_path, write_history
from wsi_meta.training.hygiene import check_patches
from wsi_meta.training.init import STAGES, Start, initialise, stage_of
from wsi_meta.versions import library_versions

__all__ = ["Recipe", "TrainResult", "train"]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; stored in its card."""

    epochs: int = 4
    head_epochs: int = 1
    """First epochs in which every loaded layer stays as it is and only the new ones learn (none where nothing was loaded)."""
    freeze: str = "layer1"
    """Last stage whose loaded kernels stay as they are to the end: none, stem, layer1, layer2 or layer3.
    BatchNorm's running statistics adapt everywhere."""
    batch_size: int = 64
    lr: float = 1e-3
    """Peak step of AdamW for layers that start from random weights."""
    lr_loaded: float = 3e-4
    """Peak step for layers that start from loaded weights."""
    weight_decay: float = 0.01
    warm_up: float = 0.2
    """Share of all steps in which the one-cycle schedule (Smith & Topin 2018) climbs to its peak."""
    valid_fraction: float = 0.1
    """Share of each class held out where the data bring no validation split."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(f"{self.epochs} epochs with batches of {self.batch_size}; expected at least 1 and 2")


@dataclass(frozen=True)
class TrainResult:
    """What :func:`train` made."""

    model: Path
    history: Path
    curves: Path
    best_epoch: int
    validation: Evaluation
    """Of the best epoch, with the weights as stored."""


@dataclass
class _Learner:
    """A network and what changes it."""

    network: nn.Module
    forward: Callable[[torch.Tensor], torch.Tensor]
    """`network`, compiled where that pays."""
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator
    device: str
    precision: str
    preprocessing: Preprocessing = field(default_factory=Preprocessing)


def train(
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    init: str | Path = "imagenet",
    recipe: Recipe | None = None,
    drop_duplicates: bool = False,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = False,
) -> TrainResult:
    """Train a ResNet50 on labelled patches and write the best epoch as a model file.

    Beside `out` it writes ``<stem>.history.csv`` and ``<stem>.curves.png`` after every epoch. Best is the epoch of
    highest validation AUC; every epoch is judged with its weights rounded as they are stored.

    Parameters
    ----------
    data : folders of labelled patches (see :func:`wsi_meta.training.datasets.open_patches`), joined
    out : model file to write (``.safetensors``)
    init : ``imagenet`` (torchvision's download), ``none``, or a file of weights (``.safetensors``, ``.pth``)
    recipe : settings; None for the defaults
    drop_duplicates : drop training patches that are also in validation instead of refusing them
    device : ``auto``, ``cpu``, ``cuda`` or ``cuda:N``
    precision : ``auto``, ``fp32`` or ``bf16``
    workers : processes that decode patches; 0 decodes in this one
    overwrite : replace `out` if it exists
    progress : show bars and notes on stderr

    Raises
    ------
    DataError, ModelFileError, DeviceError
    OutputExistsError
        when `out` exists and not `overwrite`, or cannot be written.
    TrainingError
        when the loss is not a number; the best epoch until then is kept.
    """
    recipe = recipe or Recipe()
    out = check_output(out, overwrite=overwrite)
    for beside in (history_path(out), curves_path(out)):
        check_output(beside, overwrite=overwrite)
    train_set, valid_set = _open_checked(data, recipe, drop_duplicates, workers, progress=progress)
    torch.manual_seed(recipe.seed)
    start = initialise(build_network(), init)
    note(start.summary, enabled=progress)
    loader = _make_loader(train_set, recipe, workers)
    learner = _make_learner(start, recipe, len(loader), device, precision)

    epochs: list[Epoch] = []
    best: TrainResult | None = None
    for number in range(1, recipe.epochs + 1):
        _freeze(start, recipe, number)
        loss, seconds = _train_epoch(learner, loader, f"epoch {number}/{recipe.epochs}", progress=progress)
        state = half_precision(learner.network.state_dict())
        validation = _judge(state, valid_set, learner, workers, progress=progress)
        epochs.append(Epoch.of(number, float(learner.schedule.get_last_lr()[-1]), loss, validation, len(train_set), seconds))
        note(epochs[-1].summary, enabled=progress)
        history, curves = write_history(out, epochs), draw_curves(out, epochs)
        if best is None or validation.auc > best.validation.auc:
            save_model(out, state, _make_card(start, recipe, train_set, valid_set, epochs[-1]))
            best = TrainResult(out, history, curves, number, validation)
    assert best is not None  # a recipe has at least one epoch
    return best


def _open_checked(
    data: str | Path | Sequence[str | Path], recipe: Recipe, drop_duplicates: bool, workers: int, *, progress: bool
) -> tuple[Patches, Patches]:
    train_set, valid_set = split_for_training(open_patches(data), fraction=recipe.valid_fraction, seed=recipe.seed)
    duplicates = "drop" if drop_duplicates else "refuse"
    checked = check_patches(train_set, valid_set, duplicates=duplicates, workers=workers, progress=progress)
    note(checked.summary, enabled=progress)
    train_set, valid_set = checked.train, checked.valid
    if len(train_set) < recipe.batch_size:
        raise TrainingError(
            f"{len(train_set)} training patches do not fill one batch of {recipe.batch_size}; lower --batch-size"
        )
    return train_set, valid_set


def _make_loader(patches: Patches, recipe: Recipe, workers: int) -> DataLoader[tuple[torch.Tensor, int]]:
    return DataLoader(
        patches,
        batch_size=recipe.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(recipe.seed),
    )


def _make_learner(start: Start, recipe: Recipe, steps_per_epoch: int, device: str, precision: str) -> _Learner:
    device = resolve_device(device)
    precision = _choose_precision(precision, device)
    keep_freed_memory()
    network = start.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    named = dict(network.named_parameters())
    loaded = [named[name] for name in named if name in start.loaded]
    new = [named[name] for name in named if name not in start.loaded]
    groups = [(group, lr) for group, lr in ((loaded, recipe.lr_loaded), (new, recipe.lr)) if group]
    optimiser = torch.optim.AdamW([{"params": group} for group, _ in groups], weight_decay=recipe.weight_decay)
    steps = recipe.epochs * steps_per_epoch
    if math.isclose(steps * recipe.warm_up, 1):
        steps += 1  # OneCycleLR divides by steps * warm_up - 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [lr for _, lr in groups], steps, pct_start=recipe.warm_up)
    forward = torch.compile(network) if precision == "bf16" and device == "cpu" else network
    generator = torch.Generator(device).manual_seed(recipe.seed)
    return _Learner(network, forward, optimiser, schedule, generator, device, precision)


def _choose_precision(precision: str, device: str) -> str:
    """Resolve ``auto`` for training: bf16 on a CPU needs a C++ compiler, for only compiled does it use the fast kernels."""
    resolved = resolve_precision(precision, device)
    compilers = (os.environ.get("CXX", "c++"), "g++", "clang++")
    if precision == "auto" and device == "cpu" and not any(map(shutil.which, compilers)):
        return "fp32"
    return resolved


def _freeze(start: Start, recipe: Recipe, epoch: int) -> None:
    """Let only those parameters learn that this epoch is meant for."""
    last = STAGES[-2] if epoch <= recipe.head_epochs else recipe.freeze
    frozen = STAGES[: STAGES.index(last) + 1]
    for name, parameter in start.network.named_parameters():
        parameter.requires_grad_(not (name in start.loaded and stage_of(name) in frozen))


def _train_epoch(
    learner: _Learner, loader: DataLoader[tuple[torch.Tensor, int]], title: str, *, progress: bool
) -> tuple[float, float]:
    """Train once over the loader; give mean loss and seconds."""
    learner.network.train()
    began, total, seen = time.perf_counter(), 0.0, 0
    with progress_bar(len(loader) * (loader.batch_size or 1), "images", title, enabled=progress) as bar:
        for images, labels in read_batches(loader):
            loss = _step(learner, images, labels)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss became {loss} after {seen} images of {title}; lower --lr (the best epoch so far is kept)"
                )
            total, seen = total + loss * len(images), seen + len(images)
            bar.update(len(images))
            bar.set_postfix(loss=f"{total / seen:.4f}", refresh=False)
    return total / seen, time.perf_counter() - began


def _step(learner: _Learner, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Take one optimiser step on a batch; give its loss."""
    images = augment(images.to(learner.device, non_blocking=True), learner.generator)
    targets = labels.to(learner.device, torch.float32, non_blocking=True)
    with torch.autocast(torch.device(learner.device).type, torch.bfloat16, enabled=learner.precision == "bf16"):
        logits = learner.forward(learner.preprocessing.to_input(images))[:, 0]
    loss = binary_cross_entropy_with_logits(logits.float(), targets)
    learner.optimiser.zero_grad()
    loss.backward()
    learner.optimiser.step()
    learner.schedule.step()
    return loss.item()


def _judge(state: dict[str, torch.Tensor], patches: Patches, learner: _Learner, workers: int, *, progress: bool) -> Evaluation:
    """Evaluate weights exactly as a model file would hold them."""
    network = build_network()
    network.load_state_dict(state)
    model = Model(network.eval(), ModelCard(preprocessing=learner.preprocessing), "", Path())
    predictor = Predictor(model, device=learner.device, precision=learner.precision)
    try:
        return evaluate_patches(predictor, patches, workers=workers, progress=progress)
    except ModelFileError as error:
        raise TrainingError(
            "the weights grew until their logits were no numbers; lower --lr (the best epoch so far is kept)"
        ) from error


def _make_card(start: Start, recipe: Recipe, train_set: Patches, valid_set: Patches, epoch: Epoch) -> ModelCard:
    training = {
        "recipe": asdict(recipe),
        "init": start.source,
        "best_epoch": epoch.epoch,
        "train": {"n": len(train_set), "tumor": int(train_set.labels.sum()), "sha256": train_set.fingerprint()},
        "valid": {"n": len(valid_set), "tumor": int(valid_set.labels.sum()), "sha256": valid_set.fingerprint()},
    }
    metrics = {"auc": epoch.valid_auc, "accuracy": epoch.valid_accuracy, "log_loss": epoch.valid_loss, "n": len(valid_set)}
    return ModelCard(training=training, metrics=metrics, versions=library_versions())
