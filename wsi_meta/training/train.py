"""Transfer learning of the patch classifier: from labelled patches to a model file."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from wsi_meta.datasets.hygiene import check_patches
from wsi_meta.datasets.layouts import Patches, open_patches, read_batches, split_for_training
from wsi_meta.errors import OutputExistsError, TrainingError
from wsi_meta.evaluation.results import Evaluation, history_path
from wsi_meta.models.model import build_network, half_precision, save_model
from wsi_meta.outputs import check_output
from wsi_meta.progress import note, progress_bar
from wsi_meta.training.checkpoint import Checkpoint, checkpoint_path, identify, read_checkpoint, write_checkpoint
from wsi_meta.training.contact_sheet import contact_sheet_path, draw_contact_sheet
from wsi_meta.training.distributed import Processes, joined_processes
from wsi_meta.training.history import Epoch, best_epoch, curves_path, draw_curves, turned, write_history
from wsi_meta.training.initial_weights import initialise
from wsi_meta.training.learner import Learner, make_learner
from wsi_meta.training.loader import EpochBatches, make_loader
from wsi_meta.training.mosaics import mosaic_side
from wsi_meta.training.recipe import Recipe
from wsi_meta.training.validation import Judge

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Recipe", "TrainResult", "train"]

CHECK_STEPS = 20
"""Steps from one look at the loss to the next: each look waits for the device."""


@dataclass(frozen=True)
class TrainResult:
    """What :func:`train` made."""

    model: Path
    history: Path
    curves: Path
    best_epoch: int
    validation: Evaluation
    """Of the best epoch, with the weights and the calibration as stored."""
    stopped: str | None
    """Why training ended before its last epoch, in words; None when it did not."""
    rank: int
    """Of this process; only the first (0) wrote files."""


@dataclass(frozen=True)
class _Run:
    """What stays the same from the first epoch to the last."""

    out: Path
    recipe: Recipe
    learner: Learner
    judge: Judge
    identity: dict[str, Any]
    """What must be the same for a checkpoint to be this training's."""
    facts: dict[str, Any]
    """Recipe and data, for the card."""

    @property
    def first(self) -> bool:
        """Whether this process validates, writes and prints."""
        return self.learner.processes.first

    @property
    def progress(self) -> bool:
        return self.judge.progress


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
    resume: bool = False,
    keep_checkpoint: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> TrainResult:
    """Train a ResNet50 on labelled patches and write the best epoch, calibrated, as a model file.

    First the new layers alone, then everything that the recipe does not freeze. Beside `out` it writes
    ``<stem>.history.csv``, ``<stem>.curves.png`` and a checkpoint after every epoch, and ``<stem>.augmented.png`` at the start.
    Best is the epoch of highest validation AUC; every epoch is judged with its weights rounded as they are stored.
    Started by ``torchrun``, its processes train together as one.

    Parameters
    ----------
    data : folders of labelled patches (see :func:`wsi_meta.datasets.layouts.open_patches`), joined
    out : model file to write (``.safetensors``)
    init : ``imagenet`` (torchvision's download), ``none``, or a file of weights (``.safetensors``, ``.pth``)
    recipe : settings; None for the defaults
    drop_duplicates : drop training patches that are also in validation instead of refusing them
    device : ``auto``, ``cpu``, ``cuda`` or ``cuda:N``
    precision : ``auto``, ``fp32`` or ``bf16``
    workers : processes that decode patches; 0 decodes in this one
    resume : go on from the checkpoint beside `out`, if there is one
    keep_checkpoint : leave the last checkpoint there when training is finished
    overwrite : replace `out` if it exists
    progress : show bars and notes on stderr

    Raises
    ------
    DataError, ModelFileError, DeviceError
    OutputExistsError
        when `out` exists and neither `overwrite` nor `resume`, or the checkpoint is another training's.
    OutputPathError
        when a file cannot be written; the last good checkpoint and model are kept.
    TrainingError
        when the loss is not a number; the best epoch until then is kept.
    """
    recipe, out = recipe or Recipe(), Path(out)
    _check_outputs(out, resume=resume, overwrite=overwrite)
    with joined_processes(device) as processes:
        _refuse_batches(recipe, processes)
        progress &= processes.first
        torch.manual_seed(recipe.seed)
        start = initialise(build_network(), init)
        note(start.summary, enabled=progress)
        train_set, valid_set = _open_checked(data, recipe, processes, drop_duplicates, workers, progress=progress)
        identity = identify(recipe, start, train_set, valid_set, processes.count)
        checkpoint = read_checkpoint(out, identity) if resume else None
        if recipe.mosaics and mosaic_side(recipe.batch_size // processes.count) == 1:
            note("no mosaics: a multiple of 4 as --batch-size (for each process) would make them", enabled=progress)
        batches = EpochBatches(len(train_set), recipe, processes)
        learner = make_learner(start, recipe, len(batches), processes, precision)
        judge = Judge(valid_set, processes.device, learner.precision, workers, progress)
        facts: dict[str, Any] = {"recipe": asdict(recipe), "init": start.source}
        facts |= {"train": train_set.summary(), "valid": valid_set.summary()}
        facts |= {"precision": learner.precision, "processes": processes.count}
        run = _Run(out, recipe, learner, judge, identity, facts)
        if processes.first and checkpoint is None:
            checkpoint_path(out).unlink(missing_ok=True)  # of the training that is overwritten
            draw_contact_sheet(out, train_set, recipe)
        result = _train_epochs(run, make_loader(train_set, batches, workers, processes), checkpoint)
        if processes.first and not keep_checkpoint:
            checkpoint_path(out).unlink(missing_ok=True)
        return result


def _check_outputs(out: Path, *, resume: bool, overwrite: bool) -> None:
    checkpoint, otherwise = checkpoint_path(out), "start anew with --overwrite, or choose another --out"
    if resume and not overwrite and out.exists() and not checkpoint.exists():
        raise OutputExistsError(f"{out}: exists without a checkpoint, so its training is finished; {otherwise}")
    if checkpoint.is_file() and not resume and not overwrite:
        raise OutputExistsError(f"{checkpoint}: a training that is not finished; go on with --resume, {otherwise}")
    for path in (out, history_path(out), curves_path(out), contact_sheet_path(out), checkpoint):
        check_output(path, overwrite=overwrite or resume)


def _refuse_batches(recipe: Recipe, processes: Processes) -> None:
    if recipe.batch_size % processes.count:
        raise TrainingError(
            f"a batch of {recipe.batch_size} does not divide by {processes.count} processes; change --batch-size"
        )


def _open_checked(
    data: str | Path | Sequence[str | Path],
    recipe: Recipe,
    processes: Processes,
    drop_duplicates: bool,
    workers: int,
    *,
    progress: bool,
) -> tuple[Patches, Patches]:
    """Open training and validation patches; the first process reads each of them once before anything is trained."""
    train_set, valid_set = split_for_training(open_patches(data), fraction=recipe.valid_fraction, seed=recipe.seed)
    if processes.first:
        duplicates = "drop" if drop_duplicates else "refuse"
        checked = check_patches(train_set, valid_set, duplicates=duplicates, workers=workers, progress=progress)
        note(checked.summary, enabled=progress)
        train_set, valid_set = checked.train, checked.valid
    train_set, valid_set = processes.share((train_set, valid_set))
    _refuse_too_few(train_set, valid_set, recipe)
    return train_set, valid_set


def _refuse_too_few(train_set: Patches, valid_set: Patches, recipe: Recipe) -> None:
    if len(train_set) < recipe.batch_size:
        raise TrainingError(
            f"{len(train_set)} training patches do not fill one batch of {recipe.batch_size}; lower --batch-size"
        )
    tumor = int(valid_set.labels.sum())
    if min(tumor, len(valid_set) - tumor) < 2:
        raise TrainingError(
            f"{tumor} tumor and {len(valid_set) - tumor} normal patches to validate on; "
            "expected at least 2 of each, one to calibrate on and one to judge: add patches"
        )


def _train_epochs(run: _Run, loader: DataLoader[tuple[torch.Tensor, int]], checkpoint: Checkpoint | None) -> TrainResult:
    """Train to the last epoch, or until it gets worse; after each epoch judge, store and leave a checkpoint."""
    learner, recipe = run.learner, run.recipe
    epochs = [Epoch(**row) for row in checkpoint.epochs] if checkpoint else []
    best_logits = checkpoint.best_logits.numpy() if checkpoint else np.empty(0, np.float32)
    if checkpoint:
        learner.restore(checkpoint.learner)
        note(f"going on after epoch {len(epochs)}", enabled=run.progress)
    stopped = turned(epochs, recipe.patience) if epochs else None
    while len(epochs) < recipe.epochs and not stopped:
        loss, seconds = _train_epoch(run, loader, len(epochs) + 1)
        state = half_precision(learner.weights())
        logits = learner.processes.share(run.judge.logits(state) if run.first else None)
        epochs.append(_make_row(run, len(epochs) + 1, loss, seconds, logits))
        note(epochs[-1].summary, enabled=run.progress)
        if best_epoch(epochs) == len(epochs):
            best_logits = logits
        if run.first:
            _store(run, epochs, state, best_logits)
        stopped = turned(epochs, recipe.patience)
    note(stopped or f"finished after {len(epochs)} epochs", enabled=run.progress)
    best, validation = best_epoch(epochs), run.judge.calibrated(best_logits)
    rank = learner.processes.rank
    return TrainResult(run.out, history_path(run.out), curves_path(run.out), best, validation, stopped, rank)


def _store(run: _Run, epochs: list[Epoch], state: dict[str, torch.Tensor], best_logits: NDArray[np.float32]) -> None:
    """Write what an epoch leaves behind; the checkpoint last, for it says that the epoch is done."""
    if best_epoch(epochs) == len(epochs):
        facts = run.facts | {"best_epoch": len(epochs)}
        save_model(run.out, state, run.judge.card(state, best_logits, facts, mosaics=run.recipe.mosaics > 0))
    write_history(run.out, epochs)
    draw_curves(run.out, epochs)
    rows = [asdict(epoch) for epoch in epochs]
    write_checkpoint(run.out, Checkpoint(run.identity, run.learner.state(), rows, torch.from_numpy(best_logits)))


def _train_epoch(run: _Run, loader: DataLoader[tuple[torch.Tensor, int]], number: int) -> tuple[float, float]:
    """Train once over the loader; give mean loss and seconds."""
    recipe, learner, processes = run.recipe, run.learner, run.learner.processes
    loader.batch_sampler.epoch = number  # type: ignore[union-attr]
    learner.enter(number)
    generator = torch.Generator(processes.device).manual_seed((recipe.seed * 10_007 + number) * 1_009 + processes.rank)
    in_mosaics = np.random.default_rng((recipe.seed, number, 1)).random(len(loader)) < recipe.mosaics
    side = mosaic_side(recipe.batch_size // processes.count)
    began, total = time.perf_counter(), torch.zeros((), device=processes.device)
    title = f"epoch {number}/{recipe.epochs}"
    with progress_bar(len(loader) * recipe.batch_size, "images", title, enabled=run.progress) as bar:
        for step, (images, labels) in enumerate(read_batches(loader), 1):
            total += learner.step(images, labels, generator, side if in_mosaics[step - 1] else 1)
            bar.update(recipe.batch_size)
            if step % CHECK_STEPS == 0 or step == len(loader):
                mean = processes.mean(total) / step
                bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
                if not math.isfinite(mean):
                    raise TrainingError(
                        f"the loss became {mean} within {step * recipe.batch_size} images of {title}; "
                        "lower --lr (the best epoch so far is kept)"
                    )
    return mean, time.perf_counter() - began


def _make_row(run: _Run, number: int, loss: float, seconds: float, logits: NDArray[np.float32]) -> Epoch:
    learner, decided = run.learner, run.judge.calibrated(logits)
    return Epoch(
        epoch=number,
        stage=learner.stage(number),
        lr=float(max(learner.schedule.get_last_lr())),
        train_loss=loss,
        valid_loss=run.judge.raw(logits).log_loss,
        valid_auc=decided.auc,
        valid_accuracy=decided.accuracy,
        images_per_s=learner.steps_per_epoch * run.recipe.batch_size / seconds,
        seconds=seconds,
    )
