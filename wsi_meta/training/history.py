"""The history of a training, a row an epoch: a table and curves beside the model file. And whether it may write them there."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from wsi_meta.datasets.checks import split_for_training
from wsi_meta.datasets.layouts import open_patches
from wsi_meta.errors import DataError, ModelFileError, OutputExistsError, OutputPathError, require
from wsi_meta.evaluation.figures import LIGHT, add_legend, style_axes, tick_epochs
from wsi_meta.evaluation.results import history_path, read_rows
from wsi_meta.models.card import read_card
from wsi_meta.models.weights_file import check_model_name
from wsi_meta.outputs.checks import check_folder, check_output, refuse_input
from wsi_meta.outputs.kept_files import MODEL
from wsi_meta.outputs.writing import written_whole
from wsi_meta.training.checkpoint import checkpoint_path
from wsi_meta.training.contact_sheet import contact_sheet_path
from wsi_meta.training.recipe import TrainOptions, initial_file
from wsi_meta.words import first_line

__all__ = [
    "Epoch",
    "best_epoch",
    "check_outputs",
    "check_training",
    "curves_path",
    "draw_curves",
    "is_finished",
    "log_epoch",
    "read_history",
    "turned",
    "write_history",
]


@dataclass(frozen=True)
class Epoch:
    """One row of the history."""

    epoch: int
    stage: str
    """``head``: only the layers that were not loaded learn; ``all``: everything learns that the recipe does not freeze."""
    lr: float
    """The highest learning rate of any layer at the end of the epoch."""
    train_loss: float
    """The minimised loss: of augmented patches, with smoothed labels."""
    valid_loss: float
    """Cross-entropy of the validation patches before calibration, without smoothing."""
    valid_auc: float
    valid_accuracy: float
    """Of the decision at a calibrated probability of 0.5."""
    images_per_s: float
    seconds: float
    """Duration of the training part, without validation."""

    @property
    def summary(self) -> str:
        """The row as one line for a person."""
        return (
            f"epoch {self.epoch} ({self.stage}): training loss {self.train_loss:.4f}, validation loss {self.valid_loss:.4f}, "
            f"AUC {self.valid_auc:.4f}, accuracy {self.valid_accuracy:.4f}, {self.images_per_s:.0f} images/s"
        )


def best_epoch(epochs: Sequence[Epoch]) -> int:
    """Return the number of the epoch with the highest validation AUC, the first among equals."""
    return max(epochs, key=lambda epoch: epoch.valid_auc).epoch


def turned(epochs: Sequence[Epoch], patience: int) -> str | None:
    """Return why training should stop: the validation loss rises while the training loss falls. None when it should go on.

    Parameters
    ----------
    epochs : all rows so far
    patience : number of epochs in a row without a new lowest validation loss after which to stop; 0: never
    """
    lowest = min(epochs, key=lambda epoch: epoch.valid_loss)
    since, last = epochs[-1].epoch - lowest.epoch, epochs[-1]
    if not patience or since < patience or last.train_loss >= lowest.train_loss:
        return None
    return (
        f"stopped early: the validation loss has not come below {lowest.valid_loss:.4f} (epoch {lowest.epoch}) "
        f"for {since} epochs while the training loss fell from {lowest.train_loss:.4f} to {last.train_loss:.4f}: "
        "the network memorises its patches"
    )


def curves_path(out: Path) -> Path:
    """Return the path of the curves of the model file `out`."""
    return out.with_suffix(".curves.png")


def write_history(out: Path, epochs: Sequence[Epoch]) -> Path:
    """Write ``<stem>.history.csv`` beside the model file `out` and return its path."""
    path = history_path(out)
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Epoch)])
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in epochs)
    return path


def read_history(out: Path) -> list[Epoch]:
    """Read the rows that :func:`write_history` wrote beside the model file `out`; DataError when they cannot be read."""
    return read_rows(out, [field.name for field in fields(Epoch)], _row_of, "restore it, or start anew with --overwrite")


def _row_of(row: dict[str, str]) -> Epoch:
    numbers = {field.name: float(row[field.name]) for field in fields(Epoch) if field.name not in ("epoch", "stage")}
    return Epoch(epoch=int(row["epoch"]), stage=row["stage"], **numbers)


CURVES = (
    ("Loss while training", "cross-entropy", {"train_loss": "training", "valid_loss": "validation"}),
    ("On the validation patches", "AUC and accuracy", {"valid_auc": "AUC", "valid_accuracy": "accuracy"}),
)
"""Title, axis and lines of each plot."""


def draw_curves(out: Path, epochs: Sequence[Epoch]) -> Path:
    """Draw loss, AUC and accuracy over the epochs as ``<stem>.curves.png`` beside the model file `out`; return its path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained", facecolor=LIGHT.paper)
    number = [epoch.epoch for epoch in epochs]
    heads = [epoch.epoch for epoch in epochs if epoch.stage == "head"]
    for axes, (title, what, lines) in zip(figure.subplots(1, 2), CURVES, strict=True):
        style_axes(axes, LIGHT)
        for (name, words), colour in zip(lines.items(), (LIGHT.normal, LIGHT.tumor), strict=True):
            axes.plot(number, [getattr(epoch, name) for epoch in epochs], "o-", color=colour, lw=2, ms=4, label=words)
        if heads:
            axes.axvspan(0.5, max(heads) + 0.5, color=LIGHT.line, lw=0, zorder=0, label="new layers only")
        axes.set_title(title, loc="left", fontsize=11, color=LIGHT.ink)
        axes.set(xlabel="epoch", ylabel=what)
        tick_epochs(axes)
        add_legend(axes, LIGHT)
    path = curves_path(out)
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    return path


def log_epoch(folder: str | Path, epoch: Epoch, open_writer: Callable[..., Any] | None = None) -> None:
    """Add an epoch's figures to TensorBoard's logs in a folder, under the names of the history.

    Parameters
    ----------
    folder : made if it does not exist; every training should have its own
    open_writer : called with the folder and the first step to replace; None is torch's ``SummaryWriter``

    Raises
    ------
    DeviceError
        without TensorBoard.
    """
    if open_writer is None:
        require("tensorboard", "--tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        open_writer = SummaryWriter
    with open_writer(str(folder), purge_step=epoch.epoch) as writer:  # a resumed training replaces what it does again
        for name, value in asdict(epoch).items():
            if isinstance(value, float):
                writer.add_scalar(name, value, epoch.epoch)


def check_training(
    data: str | Path | Sequence[str | Path], out: str | Path, *, init: str | Path, options: TrainOptions
) -> None:
    """Refuse what :func:`wsi_meta.train` would refuse before its work, without importing torch, which takes seconds.

    Parameters
    ----------
    data, out, init : as for :func:`wsi_meta.train`

    Raises
    ------
    DataError, DeviceError, ModelFileError, OutputExistsError, OutputPathError
    """
    check_outputs(Path(out), initial_file(init), options)
    split_for_training(open_patches(data, tell=False), tell=False)


def check_outputs(out: Path, init: str | Path, options: TrainOptions) -> None:
    """Make sure that a training may write its files, and that its initial weights and libraries are there.

    Parameters
    ----------
    out, init : as for :func:`wsi_meta.train`

    Raises
    ------
    DeviceError, ModelFileError, OutputExistsError, OutputPathError
    """
    require("train", "training")
    check_model_name(out)
    if options.tensorboard is not None:
        require("tensorboard", "--tensorboard")
        _check_logs(Path(options.tensorboard))
    checkpoint, otherwise = checkpoint_path(out), "start anew with --overwrite, or choose another --out"
    overwrite = options.overwrite
    resume = options.resume and (checkpoint.is_file() or out.exists())  # else the files beside it are not of a training
    if str(init) not in ("imagenet", "none"):
        if not Path(init).is_file():
            raise ModelFileError(
                f"{init}: no such file; expected weights as .safetensors or .pth, 'imagenet', 'default' or 'none'"
            )
        refuse_input(out, "the initial weights", init)
    if is_finished(out, options):
        _refuse_unknown_end(out, otherwise)
    if checkpoint.is_file() and not resume and not overwrite:
        raise OutputExistsError(f"{checkpoint}: a training that is not finished; go on with --resume, {otherwise}")
    for path in (out, history_path(out), curves_path(out), contact_sheet_path(out), checkpoint):
        check_output(path, overwrite=overwrite or resume, replaces=MODEL)


def _check_logs(folder: Path) -> None:
    """Make sure that logs can be written to a folder, which is made with those above it; OutputPathError if not."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise OutputPathError(f"{there}: a file; expected a folder for TensorBoard's logs; choose another --tensorboard")
    check_folder(there / "logs")


def is_finished(out: Path, options: TrainOptions) -> bool:
    """Tell whether a training that is to be resumed needs no more epochs: its checkpoint goes when it has finished."""
    return options.resume and not options.overwrite and out.exists() and not checkpoint_path(out).exists()


def _refuse_unknown_end(out: Path, otherwise: str) -> None:
    """Refuse a model file without a checkpoint that no training has finished; OutputExistsError if it is one."""
    try:
        recipe, epochs = read_card(out).training["recipe"], read_history(out)
        ended = len(epochs) >= recipe["epochs"] or (epochs and turned(epochs, recipe["patience"]))
    except (ModelFileError, DataError, KeyError, TypeError) as error:
        why = first_line(error).removeprefix(f"{out}: ")
        told = f"exists without a checkpoint, so its training is finished, or it is another file ({why})"
        raise OutputExistsError(f"{out}: {told}; {otherwise}") from error
    if not ended:
        told = f"was trained for {len(epochs)} of {recipe['epochs']} epochs, and its checkpoint is gone"
        raise OutputExistsError(f"{out}: {told}; {otherwise}")
