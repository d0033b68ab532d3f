"""The epochs of a training: train, validate and store, until the last one or until the network gets worse."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from wsi_meta.datasets.batches import batches_of
from wsi_meta.datasets.layouts import Patches
from wsi_meta.errors import TrainingError
from wsi_meta.evaluation.model_parts import store_feature_statistics
from wsi_meta.models.known_patches import KnownPatches
from wsi_meta.models.model import build_network, write_model
from wsi_meta.models.weights import half_precision
from wsi_meta.progress import note, progress_bar
from wsi_meta.training.checkpoint import Checkpoint, write_checkpoint
from wsi_meta.training.contact_sheet import draw_contact_sheet
from wsi_meta.training.distributed import Processes
from wsi_meta.training.history import Epoch, best_epoch, draw_curves, log_epoch, turned, write_history
from wsi_meta.training.initial_weights import Start, source_of
from wsi_meta.training.learner import Learner, make_learner
from wsi_meta.training.loader import EpochBatches, Loader, make_loader
from wsi_meta.training.mosaics import mosaic_side
from wsi_meta.training.recipe import Recipe, TrainOptions
from wsi_meta.training.validation import Validation
from wsi_meta.words import counted, first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Job", "Outcome", "Parts", "Run", "card_facts", "train_epoch", "train_epochs"]

logger = logging.getLogger(__name__)

CHECK_STEPS = 20
"""Steps between two checks of the loss. Each check waits for the device."""


@dataclass(frozen=True)
class Parts:
    """The parts of a training that can be exchanged, as tests do. The defaults train a ResNet50."""

    build_network: Callable[[], nn.Module] = build_network
    make_learner: Callable[[Start, Recipe, int, Processes, str], Learner] = make_learner
    make_validation: Callable[..., Validation] = Validation
    best_epoch: Callable[[Sequence[Epoch]], int] = best_epoch
    store_feature_statistics: Callable[..., object] = store_feature_statistics
    draw_contact_sheet: Callable[[Path, Patches, Recipe], object] = draw_contact_sheet
    draw_curves: Callable[[Path, Sequence[Epoch]], object] = draw_curves
    log_epoch: Callable[[str | Path, Epoch], object] = log_epoch


@dataclass(frozen=True)
class Job:
    """What was asked for, and where it runs: every stage of a training needs some of it."""

    out: Path
    """Model file to write."""
    recipe: Recipe
    options: TrainOptions
    """Its `progress` is False in all processes but the first."""
    processes: Processes
    parts: Parts


@dataclass(frozen=True)
class Run:
    """What stays the same from the first epoch to the last."""

    job: Job
    learner: Learner
    train_set: Patches
    validation: Validation
    described: dict[str, Any]
    """What :func:`card_facts` returned for it."""
    identity: dict[str, Any]
    """What :func:`wsi_meta.training.checkpoint.identify` returned for it."""


def card_facts(job: Job, init: str | Path, train_set: Patches, validation: Validation) -> dict[str, Any]:
    """Return recipe, initial weights and data of a training, as the card records them."""
    return {
        "recipe": asdict(job.recipe),
        **source_of(init),
        "train": train_set.summary(),
        "valid": validation.patches.summary(),
        "precision": validation.precision,
        "processes": job.processes.count,
    }


@dataclass(frozen=True)
class Outcome:
    """What came of the epochs."""

    best: int
    """Number of the epoch whose weights are in the model file."""
    best_logits: NDArray[np.float32]
    """Logits of the validation patches in that epoch; shape (n,)."""
    stopped: str | None
    """Why the training ended before its last epoch, in words; None when it did not."""


def train_epochs(run: Run, checkpoint: Checkpoint | None) -> Outcome:
    """Train until the last epoch, or until the validation loss has risen for too long; store the result of each epoch.

    Parameters
    ----------
    checkpoint : of some epochs of this training, to go on from; None begins anew
    """
    job, progress = run.job, run.job.options.progress
    epochs, best_logits = _resume(run, checkpoint) if checkpoint else ([], np.empty(0, np.float32))
    batches = EpochBatches(len(run.train_set), job.recipe, job.processes)
    loader = make_loader(run.train_set, batches, job.options.workers, job.processes, progress=progress)
    stopped = turned(epochs, job.recipe.patience) if epochs else None
    while len(epochs) < job.recipe.epochs and not stopped:
        batches.epoch = len(epochs) + 1
        loss, seconds = train_epoch(run, loader, batches.epoch)
        state = half_precision(run.learner.weights())
        logits = job.processes.share(run.validation.logits(state) if job.processes.first else None)
        epochs.append(_make_row(run, batches.epoch, loss, seconds, logits))
        note(epochs[-1].summary, enabled=progress)
        if job.parts.best_epoch(epochs) == len(epochs):
            best_logits = logits
        if job.processes.first:
            _store(run, epochs, state, best_logits)
        stopped = turned(epochs, job.recipe.patience)
    note(stopped or f"finished after {counted(len(epochs), 'epoch')}", enabled=progress)
    return Outcome(job.parts.best_epoch(epochs), best_logits, stopped)


def _resume(run: Run, checkpoint: Checkpoint) -> tuple[list[Epoch], NDArray[np.float32]]:
    """Continue from a checkpoint; return the rows so far and the logits of the best epoch."""
    run.learner.restore(checkpoint.learner)
    note(f"going on after epoch {len(checkpoint.epochs)}", enabled=run.job.options.progress)
    epochs = [Epoch(**row) for row in checkpoint.epochs]
    if run.job.processes.first:
        write_history(run.job.out, epochs)
        _show(run, epochs)
    return epochs, checkpoint.best_logits.numpy()


def train_epoch(run: Run, loader: Loader, number: int) -> tuple[float, float]:
    """Train once over all batches of epoch `number` (from 1); return the mean loss and the seconds that it took."""
    recipe, learner, processes = run.job.recipe, run.learner, run.job.processes
    learner.enter(number)
    generator = torch.Generator(processes.device).manual_seed((recipe.seed * 10_007 + number) * 1_009 + processes.rank)
    in_mosaics = np.random.default_rng((recipe.seed, number, 1)).random(len(loader)) < recipe.steps_with_mosaics
    side = mosaic_side(recipe.batch_size // processes.count)
    began, total = time.perf_counter(), torch.zeros((), device=processes.device)
    title = f"epoch {number}/{recipe.epochs}"
    with progress_bar(len(loader) * recipe.batch_size, "images", title, enabled=run.job.options.progress) as bar:
        for step, (images, labels) in enumerate(batches_of(loader), 1):
            total += learner.step(images, labels, generator, side if in_mosaics[step - 1] else 1)
            bar.update(recipe.batch_size)
            if step % CHECK_STEPS == 0 or step == len(loader):
                mean = processes.mean(total) / step
                bar.set_postfix(loss=f"{mean:.4f}")
                _refuse_loss(mean, step * recipe.batch_size, title)
    return mean, time.perf_counter() - began


def _refuse_loss(loss: float, images: int, epoch: str) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss} within {images} images of {epoch}; lower --lr (the best epoch so far is kept)"
        )


def _make_row(run: Run, number: int, loss: float, seconds: float, logits: NDArray[np.float32]) -> Epoch:
    learner, calibrated = run.learner, run.validation.calibrated(logits)
    return Epoch(
        epoch=number,
        stage=learner.stage(number),
        lr=float(max(learner.schedule.get_last_lr())),
        train_loss=loss,
        valid_loss=run.validation.uncalibrated(logits).log_loss,
        valid_auc=calibrated.auc,
        valid_accuracy=calibrated.accuracy,
        images_per_s=learner.steps_per_epoch * run.job.recipe.batch_size / seconds,
        seconds=seconds,
    )


def _store(run: Run, epochs: list[Epoch], state: dict[str, torch.Tensor], best_logits: NDArray[np.float32]) -> None:
    """Write the files of an epoch. The checkpoint comes after the model, because it says that the epoch is done.

    What a training can do without comes last: where it cannot be written, a warning says so.
    """
    out, mosaics = run.job.out, run.job.recipe.mosaics > 0
    if run.job.parts.best_epoch(epochs) == len(epochs):
        losses = {"train_loss": epochs[-1].train_loss, "valid_loss": epochs[-1].valid_loss}
        training = run.described | {"best_epoch": len(epochs), "best_losses": losses}
        card = run.validation.card(state, best_logits, training, mosaics=mosaics)
        contents = {"train": run.train_set.contents, "valid": run.validation.patches.contents}
        known = KnownPatches.of(contents, run.learner.start.known_patches)
        write_model(out, state, card, known_patches=known)
    write_history(out, epochs)
    rows = [asdict(epoch) for epoch in epochs]
    write_checkpoint(out, Checkpoint(run.identity, run.learner.state(), rows, torch.from_numpy(best_logits)))
    _show(run, epochs)


def _show(run: Run, epochs: Sequence[Epoch]) -> None:
    """Draw the curves and log the last epoch; a training that goes on does it again, as it may have been killed before."""
    parts, logs = run.job.parts, run.job.options.tensorboard
    _spare("curves", parts.draw_curves, run.job.out, epochs)
    if logs is not None:
        _spare("TensorBoard's logs", parts.log_epoch, logs, epochs[-1])


def _spare(what: str, write: Callable[..., object], *values: object) -> None:
    """Write what a training goes on without; warn where that fails."""
    try:
        write(*values)
    except Exception as error:  # a drawing and a log by other libraries: each raises errors of its own
        logger.warning("%s not written: %s", what, first_line(error))
