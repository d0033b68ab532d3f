"""Transfer learning of the patch classifier: from labelled patches to a model file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wsi_meta.datasets.checks import check_patches, split_for_training
from wsi_meta.datasets.layouts import Patches, open_patches, paths_of, tell_folders, warn_of_few
from wsi_meta.errors import OptionsError, TrainingError
from wsi_meta.evaluation.results import Evaluation, history_path
from wsi_meta.files.locks import locked
from wsi_meta.inference.options import compiler_variables
from wsi_meta.inference.torch_settings import own_modes
from wsi_meta.models.card import read_card
from wsi_meta.models.known_patches import read_known_patches
from wsi_meta.models.model import write_model
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.weights import read_weights
from wsi_meta.outputs.paths import as_path
from wsi_meta.outputs.writing import remove_leftovers
from wsi_meta.progress import note
from wsi_meta.training.checkpoint import (
    Checkpoint,
    check_alike,
    check_model,
    checkpoint_path,
    identify,
    read_checkpoint,
    read_own_card,
    write_checkpoint,
)
from wsi_meta.training.contact_sheet import contact_sheet_path
from wsi_meta.training.distributed import Processes, joined_processes
from wsi_meta.training.epochs import Job, Outcome, Parts, Run, card_facts, train_epochs
from wsi_meta.training.history import Epoch, check_outputs, curves_path, is_finished, read_history, turned
from wsi_meta.training.initial_weights import Start, build_seeded, idle_settings, initialise, input_of, warn_of_known
from wsi_meta.training.learner import choose_precision
from wsi_meta.training.mosaics import mosaic_side
from wsi_meta.training.recipe import Recipe, TrainOptions, initial_file
from wsi_meta.training.validation import Validation, warn_of_refusals

__all__ = ["Recipe", "TrainResult", "run_training", "train"]

logger = logging.getLogger(__name__)

RESNET50_PARTS = Parts()
"""The parts that :func:`train` uses."""


@dataclass(frozen=True)
class TrainResult:
    """What :func:`train` made."""

    model: Path
    history: Path
    curves: Path
    best_epoch: int
    """Number of the epoch whose weights are in the model file."""
    validation: Evaluation
    """Figures on the validation patches, by the calibration that was fitted on them; those of the card are cross-fitted."""
    stopped: str | None
    """Why training ended before its last epoch, in words; None when it did not."""
    rank: int
    """Number of this process; only process 0 wrote files."""


def train(
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    init: str | Path = "imagenet",
    recipe: Recipe | str | None = None,
    drop_duplicates: bool = False,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 2,
    resume: bool = False,
    keep_checkpoint: bool = False,
    tensorboard: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> TrainResult:
    """Train a ResNet50 on labelled patches and write the best epoch, calibrated, as a model file. Returns files and figures.

    Where the recipe has `head_epochs`, the new layers are trained alone first, then everything that it does not freeze. The
    best epoch is the one of highest validation AUC; weights are validated as they are stored, rounded to float16. At the end
    they are made to fit 8-bit integers (from 200 training patches on; :mod:`wsi_meta.models.equalise`), and calibrated and
    judged again. Where these measures refuse dense mode or int8, a warning says so.
    Beside `out` it writes ``<stem>.augmented.png`` at the start, ``<stem>.history.csv``, ``<stem>.curves.png`` and a checkpoint
    after every epoch. Processes that ``torchrun`` starts train together as one.

    Parameters
    ----------
    data : folders of labelled patches (see :func:`wsi_meta.datasets.layouts.open_patches`), joined
    out : model file to write (``.safetensors``)
    init : ``imagenet`` (a download), ``default`` (the embedded model), ``none``, or weights (``.safetensors``, ``.pth``)
    recipe : settings, or the name of some, ``strong`` (which None stands for) or ``light``
    drop_duplicates : drop training patches that are also in validation instead of refusing them
    device : ``auto``, ``cpu``, ``cuda`` or ``cuda:N``
    precision : ``auto``, ``fp32`` or ``bf16``
    workers : processes that decode patches; 0 decodes in this one
    resume : continue from the checkpoint beside `out`, if there is one; a training that is finished is not begun again
    keep_checkpoint : keep the last checkpoint when the training has finished
    tensorboard : folder for TensorBoard's logs, a step an epoch, with the figures of the history; None writes none
    overwrite : replace `out` if it exists
    progress : show bars and notes on stderr

    Raises
    ------
    DataError, ModelFileError, DeviceError, OptionsError
    OutputExistsError
        when `out` exists and neither `overwrite` nor `resume` is given, or `out` or its checkpoint belongs to another
        training; the message names the difference.
    OutputPathError
        when a file cannot be written; the last good checkpoint and model are kept.
    TrainingError
        when the loss is not a number, or the model is worse than chance; the best epoch so far is kept.
    """
    options = TrainOptions(
        device=device,
        precision=precision,
        workers=workers,
        drop_duplicates=drop_duplicates,
        resume=resume,
        keep_checkpoint=keep_checkpoint,
        tensorboard=tensorboard,
        overwrite=overwrite,
        progress=progress,
    )
    return run_training(paths_of(data), initial_file(init), as_path("out", out), Recipe.named(recipe), options, RESNET50_PARTS)


def run_training(
    data: str | Path | Sequence[str | Path], init: str | Path, out: Path, recipe: Recipe, options: TrainOptions, parts: Parts
) -> TrainResult:
    """Train as :func:`train` does, from any parts: one stage a line."""
    check_outputs(out, init, options)
    with (
        own_modes(),
        compiler_variables,
        joined_processes(options.device) as processes,
        _owned(out, init, options, processes) as finished,
    ):
        job = Job(out, recipe, replace(options, progress=options.progress and processes.first), processes, parts)
        _check_batches(job)
        train_set, valid_set = _open_checked(job, data, init)
        precision = choose_precision(options.precision, processes.device, recipe.pictures(len(train_set)))
        preprocessing = input_of(init, train_set)
        validation = parts.make_validation(
            valid_set, processes.device, precision, options.workers, job.options.progress, parts.build_network, preprocessing
        )
        described = card_facts(job, init, train_set, validation)
        if finished:
            return _finished_before(job, described, validation)
        start = _load_start(job, init, preprocessing)
        identity = identify(recipe, start, train_set, valid_set, processes, precision)
        checkpoint = _find_checkpoint(job, identity, described, preprocessing)
        learner = parts.make_learner(start, recipe, len(train_set) // recipe.batch_size, processes, precision)
        run = Run(job, learner, train_set, validation, described, identity)
        _begin_files(run, resumed=checkpoint is not None)
        outcome = train_epochs(run, checkpoint)
        outcome = _fit_to_int8(job, outcome, train_set, validation)
        _store_feature_statistics(job, train_set)
        _remove_checkpoint(job)
        return _result(job, outcome, validation)


@contextmanager
def _owned(out: Path, init: str | Path, options: TrainOptions, processes: Processes) -> Iterator[bool]:
    """Hold the files of a training, so that no other one writes them; yield whether it has finished before."""
    with locked(out) if processes.first else nullcontext():
        if processes.first:
            check_outputs(out, init, options)  # another training may have ended since the first look
        yield processes.share(is_finished(out, options) if processes.first else None)


def _finished_before(job: Job, asked: dict[str, Any], validation: Validation) -> TrainResult:
    """Return the result of a training that finished before; OutputExistsError when something else is asked for now."""
    out = job.out
    _, epochs = read_own_card(out, asked, validation.preprocessing), read_history(out)
    note("finished already; nothing is left to train", enabled=job.options.progress)
    logits = job.processes.share(validation.logits(read_weights(out)) if job.processes.first else None)
    return _result(job, Outcome(job.parts.best_epoch(epochs), logits, turned(epochs, job.recipe.patience)), validation)


def _result(job: Job, outcome: Outcome, validation: Validation) -> TrainResult:
    out, figures = job.out, validation.calibrated(outcome.best_logits, tell=job.processes.first)
    validation.refuse_useless(out, figures)
    if job.processes.first:
        warn_of_refusals(out)
    return TrainResult(out, history_path(out), curves_path(out), outcome.best, figures, outcome.stopped, job.processes.rank)


def _find_checkpoint(
    job: Job, identity: dict[str, Any], described: dict[str, Any], preprocessing: Preprocessing
) -> Checkpoint | None:
    """Return the checkpoint to go on from, where the model beside it is that training's; None where it begins anew."""
    checkpoint = read_checkpoint(job.out, identity) if job.options.resume else None
    check_alike(job.processes, identity, checkpoint)
    if checkpoint is None or not checkpoint.epochs:
        return None
    best = job.parts.best_epoch([Epoch(**row) for row in checkpoint.epochs])
    check_model(job.out, best, len(checkpoint.epochs), described, preprocessing)
    return checkpoint


def _check_batches(job: Job) -> None:
    """Refuse a batch that the processes cannot share evenly; say so when batches are too small for mosaics."""
    size, count = job.recipe.batch_size, job.processes.count
    if size % count:
        raise OptionsError(f"a batch of {size} does not divide by {count} processes; change --batch-size")
    if job.recipe.mosaics and mosaic_side(size // count) == 1:
        note("no mosaics: a multiple of 4 as --batch-size (for each process) would make them", enabled=job.options.progress)


def _load_start(job: Job, init: str | Path, preprocessing: Preprocessing) -> Start:
    start = initialise(build_seeded(job.parts.build_network, job.recipe.seed), init, preprocessing)
    note(start.summary, enabled=job.options.progress)
    for told in idle_settings(start, job.recipe) if job.processes.first else ():
        logger.warning("%s", told)
    return start


def _open_checked(job: Job, data: str | Path | Sequence[str | Path], init: str | Path) -> tuple[Patches, Patches]:
    """Open training and validation patches; the first process reads each of them once before the first step."""
    recipe, options, found = job.recipe, job.options, open_patches(data)
    train_set, valid_set = split_for_training(found, fraction=recipe.valid_fraction, seed=recipe.seed, tell=job.processes.first)
    if job.processes.first:
        asked: Any = {"workers": options.workers, "progress": options.progress}
        asked["duplicates"] = "drop" if options.drop_duplicates else "refuse"
        checked = check_patches(train_set, valid_set, found.get("test"), **asked)
        note(checked.summary, enabled=options.progress)
        train_set, valid_set = checked.train, checked.valid
        warn_of_few(valid_set, f"{tell_folders(data)}: validation")
        warn_of_known(init, valid_set, checked.test)
    train_set, valid_set = job.processes.share((train_set, valid_set))
    _refuse_too_few(train_set, valid_set, recipe)
    return train_set, valid_set


def _refuse_too_few(train_set: Patches, valid_set: Patches, recipe: Recipe) -> None:
    size = recipe.batch_size
    if len(train_set) < size:
        raise TrainingError(f"{len(train_set)} training patches do not fill one batch of {size}; lower --batch-size")
    tumor = int(valid_set.labels.sum())
    if min(tumor, len(valid_set) - tumor) < 2:
        raise TrainingError(
            f"{tumor} tumor and {len(valid_set) - tumor} normal patches to validate on; "
            "expected at least 2 of each, one to calibrate on and one to judge: add patches"
        )


def _begin_files(run: Run, *, resumed: bool) -> None:
    """Remove what a killed training left half-written; write an empty checkpoint and draw the contact sheet.

    The checkpoint comes first, and replaces that of a training that is overwritten: it says that the files beside it are of
    a training that is not finished, until the end.
    """
    job, out = run.job, run.job.out
    for path in (out, history_path(out), curves_path(out), contact_sheet_path(out), checkpoint_path(out)):
        if job.processes.first:
            remove_leftovers(path)
    if job.processes.first and not resumed:
        write_checkpoint(out, Checkpoint(run.identity, {}, [], torch.empty(0)))
        job.parts.draw_contact_sheet(out, run.train_set, job.recipe)


def _fit_to_int8(job: Job, outcome: Outcome, train_set: Patches, validation: Validation) -> Outcome:
    """Make the best weights fit int8 and measure it, before the checkpoint goes: a killed run does it, or not again.

    Returns the outcome with the logits of the weights that are stored.
    """
    logits = None
    if job.processes.first:
        state, card = read_weights(job.out), read_card(job.out)
        if card.int8_ranges is None:
            state, card, logits = validation.finished(state, card, train_set)
            write_model(job.out, state, card, known_patches=read_known_patches(job.out))
        else:
            logits = validation.logits(state)
    logits = job.processes.share(logits)
    return outcome if logits is None else replace(outcome, best_logits=logits)


def _store_feature_statistics(job: Job, train_set: Patches) -> None:
    """Write into the model what its training patches look like, before the checkpoint goes: a killed run does it again."""
    if job.processes.first:
        job.parts.store_feature_statistics(job.out, train_set, workers=job.options.workers, progress=job.options.progress)


def _remove_checkpoint(job: Job) -> None:
    if job.processes.first and not job.options.keep_checkpoint:
        checkpoint_path(job.out).unlink(missing_ok=True)
