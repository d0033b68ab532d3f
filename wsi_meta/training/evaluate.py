"""How well a model tells tumor from normal on labelled patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.errors import DataError
from wsi_meta.model import Model, load_model
from wsi_meta.predictor import Predictor
from wsi_meta.progress import progress_bar
from wsi_meta.training.datasets import Patches, open_patches, read_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Evaluation", "evaluate", "evaluate_patches"]


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model on one set of patches; the decision is tumor where the calibrated probability is >= 0.5."""

    n: int
    auc: float
    accuracy: float
    sensitivity: float
    specificity: float
    log_loss: float
    probabilities: NDArray[np.float32]
    """Calibrated probability of each patch, in the order of the patches; shape (n,)."""

    def to_dict(self) -> dict[str, float]:
        """Give the figures without the probabilities."""
        return {name: value for name, value in vars(self).items() if name != "probabilities"}


def evaluate(
    model: str | Path | Model | None,
    data: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 64,
    workers: int = 2,
    progress: bool = False,
) -> Evaluation:
    """Evaluate a model on labelled patches.

    Parameters
    ----------
    model : model file, ``default`` or None for the embedded one, or a loaded model
    data : folders of labelled patches (see :func:`wsi_meta.training.datasets.open_patches`)
    split : ``train``, ``valid`` or ``test``; None takes ``test``, else ``valid``, else all there is
    device, precision, batch_size : see :class:`wsi_meta.predictor.Predictor`
    workers : processes that decode patches; 0 decodes in this one
    progress : show a bar on stderr

    Raises
    ------
    DataError, ModelFileError, DeviceError
    """
    splits = open_patches(data)
    wanted = split or next(name for name in ("test", "valid", "train") if name in splits)
    if wanted not in splits:
        folders = data if isinstance(data, str | Path) else " ".join(map(str, data))
        raise DataError(f"{folders}: no '{wanted}' split; found {', '.join(splits)}")
    patches = splits[wanted]
    patches.check()
    model = model if isinstance(model, Model) else load_model(model)
    predictor = Predictor(model, device=device, precision=precision, batch_size=batch_size)
    return evaluate_patches(predictor, patches, workers=workers, progress=progress)


def evaluate_patches(predictor: Predictor, patches: Patches, *, workers: int = 2, progress: bool = False) -> Evaluation:
    """Evaluate a predictor on patches that are already opened; see :func:`evaluate`."""
    from sklearn.metrics import log_loss, roc_auc_score
    from torch.utils.data import DataLoader

    loader = DataLoader(patches, batch_size=predictor.batch_size, num_workers=workers)
    logits = []
    with progress_bar(len(patches), "patches", "evaluating", enabled=progress) as bar:
        for images, _ in read_batches(loader):
            logits.append(predictor.predict_patches(images))
            bar.update(len(images))
    probabilities = predictor.model.card.calibration.to_probability(np.concatenate(logits))
    truth = patches.labels.astype(bool)
    called = probabilities >= 0.5
    return Evaluation(
        n=len(patches),
        auc=float(roc_auc_score(truth, probabilities)),
        accuracy=float((called == truth).mean()),
        sensitivity=float(called[truth].mean()),
        specificity=float((~called[~truth]).mean()),
        log_loss=float(log_loss(truth, probabilities.astype(np.float64))),
        probabilities=probabilities,
    )
