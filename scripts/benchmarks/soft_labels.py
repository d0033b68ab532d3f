"""Labels from trainings that did not see the patch: kept in a folder, a file for each fold of the training patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_meta.datasets.layouts import Patches
from wsi_meta.errors import DataError
from wsi_meta.outputs import written_whole

__all__ = ["FOLDS", "fold_path", "folds_of", "read_soft_labels", "write_fold"]

FOLDS = 4


def folds_of(patches: Patches) -> list[NDArray[np.intp]]:
    """Return the indices of each fold's patches, in order: a fixed random choice."""
    return [np.sort(fold) for fold in np.array_split(np.random.default_rng(0).permutation(len(patches)), FOLDS)]


def fold_path(folder: Path, number: int) -> Path:
    """Return the file of a fold, from 0."""
    return folder / f"fold_{number}.npz"


def write_fold(folder: Path, number: int, patches: Patches, probabilities: NDArray[np.float32]) -> None:
    """Keep the probability of each patch of a fold.

    Parameters
    ----------
    folder, number : where, and which fold
    patches : all training patches
    probabilities : of the fold's patches, (n,)
    """
    with written_whole(fold_path(folder, number)) as partial, partial.open("wb") as file:
        np.savez(file, fingerprint=patches.fingerprint(), probabilities=probabilities)


def read_soft_labels(folder: Path, patches: Patches) -> NDArray[np.float32]:
    """Return the probability of every training patch, (n,); DataError where a fold is missing or of other patches."""
    labels = np.empty(len(patches), np.float32)
    for number, fold in enumerate(folds_of(patches)):
        path = fold_path(folder, number)
        if not path.exists():
            raise DataError(f"{path}: missing; expected labels of {FOLDS} folds; run cross_fit.py until all are made")
        with np.load(path) as kept:
            if str(kept["fingerprint"]) != patches.fingerprint():
                raise DataError(f"{path}: labels of other patches; expected these; run cross_fit.py on the same folder")
            labels[fold] = kept["probabilities"]
    return labels
