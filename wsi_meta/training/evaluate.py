"""How well a model tells tumor from normal on labelled patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.datasets.layouts import Patches, open_patches, read_batches
from wsi_meta.errors import DataError
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.model import Model, ModelCard, load_model
from wsi_meta.progress import progress_bar
from wsi_meta.training.metrics import bootstrap_intervals, figures_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Evaluation", "evaluate", "evaluate_patches"]


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model on one set of patches, as :func:`wsi_meta.training.metrics.figures_of` defines them.

    A decision is tumor where the calibrated probability is at least 0.5; in the figures that end in ``_at_threshold``,
    at least `threshold`.
    """

    n: int
    auc: float
    average_precision: float
    accuracy: float
    sensitivity: float
    specificity: float
    f1: float
    threshold: float
    """The card's default operating point; never chosen on these patches."""
    accuracy_at_threshold: float
    sensitivity_at_threshold: float
    specificity_at_threshold: float
    f1_at_threshold: float
    log_loss: float
    brier: float
    ece: float
    """Expected calibration error of the probability of tumor, 15 equal bins."""
    probabilities: NDArray[np.float32]
    """Calibrated probability of each patch, in the order of the patches; shape (n,)."""
    logits: NDArray[np.float32]
    """Logit of each patch before calibration, its mean over the views where those were averaged; shape (n,)."""
    intervals: dict[str, tuple[float, float]] | None = None
    """95 % bootstrap interval (low, high) of each figure; None where they were not asked for."""

    @classmethod
    def of(
        cls,
        logits: NDArray[np.float32],
        labels: NDArray[np.uint8],
        card: ModelCard,
        *,
        slides: NDArray[np.str_] | None = None,
        intervals: bool = False,
    ) -> Evaluation:
        """Judge logits of patches by a card's calibration and threshold.

        Parameters
        ----------
        logits, labels : shapes (n,)
        card : of the model
        slides : slide of each patch, shape (n,): what the bootstrap draws; None: patches
        intervals : compute the bootstrap's intervals as well
        """
        probabilities, threshold = card.calibration.to_probability(logits), card.thresholds["default"]
        return cls(
            n=len(labels),
            threshold=threshold,
            **figures_of(probabilities, labels, threshold),
            probabilities=probabilities,
            logits=logits,
            intervals=bootstrap_intervals(probabilities, labels, threshold, slides) if intervals else None,
        )

    def to_dict(self) -> dict[str, int | float | list[float]]:
        """Give the figures without the patches' values: flat, an interval as ``<name>_ci``: [low, high]."""
        intervals = self.intervals or {}
        found: dict[str, int | float | list[float]] = {}
        for name, value in vars(self).items():
            if name not in ("probabilities", "logits", "intervals"):
                found[name] = value
            if name in intervals:
                found[f"{name}_ci"] = list(intervals[name])
        return found


def evaluate(
    model: str | Path | Model | None,
    data: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    out: str | Path | None = None,
    tta: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 64,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Evaluate a model on labelled patches, with 95 % intervals and, where asked for, a report.

    Parameters
    ----------
    model : model file, ``default`` or None for the embedded one, or a loaded model
    data : folders of labelled patches (see :func:`wsi_meta.datasets.layouts.open_patches`)
    split : ``train``, ``valid`` or ``test``; None takes ``test``, else ``valid``, else all there is
    out : folder to make for the report (see :func:`wsi_meta.training.report.write_report`); None writes none
    tta : average the logit over the eight views of each patch; takes eight times as long
    device, precision, batch_size : see :class:`wsi_meta.inference.predictor.Predictor`
    workers : processes that decode patches; 0 decodes in this one
    overwrite : replace a report at `out`
    progress : show a bar on stderr

    Raises
    ------
    DataError, ModelFileError, DeviceError
    OutputExistsError
        when `out` exists and not `overwrite`, or is no report.
    OutputPathError
        when `out` cannot be written.
    """
    from wsi_meta.training import report

    if out is not None:
        report.check_report(out, overwrite=overwrite)
    splits = open_patches(data)
    wanted = split or next(name for name in ("test", "valid", "train") if name in splits)
    folders = str(data) if isinstance(data, str | Path) else " ".join(map(str, data))
    if wanted not in splits:
        raise DataError(f"{folders}: no '{wanted}' split; found {', '.join(splits)}")
    patches = splits[wanted]
    patches.check()
    model = model if isinstance(model, Model) else load_model(model)
    words = "all there is" if split is None and list(splits) == ["train"] else wanted
    subject = report.Subject.of(model, patches, data=folders, split=words, tta=tta) if out is not None else None
    predictor = Predictor(model, device=device, precision=precision, batch_size=batch_size, tta=tta)
    evaluation = evaluate_patches(predictor, patches, workers=workers, progress=progress, intervals=True)
    if out is not None and subject is not None:
        report.write_report(out, subject, evaluation, overwrite=overwrite)
    return evaluation


def evaluate_patches(
    predictor: Predictor, patches: Patches, *, workers: int = 2, progress: bool = False, intervals: bool = False
) -> Evaluation:
    """Evaluate a predictor on patches that are already opened; see :func:`evaluate`.

    With `intervals`, slides are drawn for the bootstrap where they are known, else patches.
    """
    from torch.utils.data import DataLoader

    loader = DataLoader(patches, batch_size=predictor.batch_size, num_workers=workers)
    parts = []
    with progress_bar(len(patches), "patches", "evaluating", enabled=progress) as bar:
        for images, _ in read_batches(loader):
            parts.append(predictor.predict_patches(images))
            bar.update(len(images))
    logits, card = np.concatenate(parts), predictor.model.card
    return Evaluation.of(logits, patches.labels, card, slides=patches.slides, intervals=intervals)
