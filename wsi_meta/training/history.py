"""What happened in each epoch, as a table and as curves beside the model file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from wsi_meta.errors import DataError, first_line
from wsi_meta.training.evaluate import Evaluation

__all__ = ["Epoch", "curves_path", "draw_curves", "history_path", "read_losses", "write_history"]


@dataclass(frozen=True)
class Epoch:
    """One row of the history."""

    epoch: int
    lr: float
    """Step at the end of the epoch, of the layers with the largest one."""
    train_loss: float
    valid_loss: float
    valid_auc: float
    valid_accuracy: float
    images_per_s: float
    seconds: float
    """Of the training part, validation left out."""

    @classmethod
    def of(cls, epoch: int, lr: float, loss: float, validation: Evaluation, images: int, seconds: float) -> Epoch:
        """Make the row of an epoch that saw `images` patches in `seconds`."""
        rate = images / seconds
        return cls(epoch, lr, loss, validation.log_loss, validation.auc, validation.accuracy, rate, seconds)

    @property
    def summary(self) -> str:
        """One line for a person."""
        return (
            f"epoch {self.epoch}: training loss {self.train_loss:.4f}, validation loss {self.valid_loss:.4f}, "
            f"AUC {self.valid_auc:.4f}, accuracy {self.valid_accuracy:.4f}, {self.images_per_s:.0f} images/s"
        )


def history_path(out: Path) -> Path:
    """Give the place of the history of the model file `out`."""
    return out.with_suffix(".history.csv")


def curves_path(out: Path) -> Path:
    """Give the place of the curves of the model file `out`."""
    return out.with_suffix(".curves.png")


def write_history(out: Path, epochs: Sequence[Epoch]) -> Path:
    """Write ``<stem>.history.csv`` beside the model file `out`; give its path."""
    path = history_path(out)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Epoch)])
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in epochs)
    return path


def read_losses(out: Path) -> dict[str, list[float]] | None:
    """Read the losses from the history beside the model file `out`; None where there is none.

    Returns
    -------
    dict of ``epoch``, ``train_loss`` and ``valid_loss``, a value for each row; other columns are passed over.

    Raises
    ------
    DataError
        when the file is no such table.
    """
    path = history_path(out)
    if not path.exists():
        return None
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {name: [float(row[name]) for row in rows] for name in ("epoch", "train_loss", "valid_loss")}
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read as a training's history ({first_line(error)}); expected epoch, train_loss and "
            "valid_loss in each row; remove or restore it"
        ) from error


def draw_curves(out: Path, epochs: Sequence[Epoch]) -> Path:
    """Draw loss, AUC and accuracy over the epochs as ``<stem>.curves.png`` beside the model file `out`; give its path."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    number = [epoch.epoch for epoch in epochs]
    left.plot(number, [epoch.train_loss for epoch in epochs], "o-", label="training")
    left.plot(number, [epoch.valid_loss for epoch in epochs], "o-", label="validation")
    left.set(xlabel="epoch", ylabel="loss (cross-entropy)")
    right.plot(number, [epoch.valid_auc for epoch in epochs], "o-", label="validation AUC")
    right.plot(number, [epoch.valid_accuracy for epoch in epochs], "o-", label="validation accuracy")
    right.set(xlabel="epoch", ylabel="share")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    path = curves_path(out)
    figure.savefig(path, dpi=120)
    return path
