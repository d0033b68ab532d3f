"""Labels from trainings that did not see the patch: kept in a folder, a file for each fold of the training patches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_meta.datasets.layouts import Patches
from wsi_meta.errors import DataError
from wsi_meta.outputs.writing import written_whole
from wsi_meta.training.checkpoint import differences

__all__ = ["FOLDS", "fold_path", "folds_of", "has_fold", "read_soft_labels", "write_fold"]

FOLDS = 4


def folds_of(patches: Patches) -> list[NDArray[np.intp]]:
    """Return the indices of each fold's patches, in order: a fixed random choice."""
    return [np.sort(fold) for fold in np.array_split(np.random.default_rng(0).permutation(len(patches)), FOLDS)]


def fold_path(folder: Path, number: int) -> Path:
    """Return the file of a fold, from 0."""
    return folder / f"fold_{number}.npz"


def has_fold(folder: Path, number: int, patches: Patches, settings: Mapping[str, Any]) -> bool:
    """Tell whether a fold has its labels; DataError where they were made of other patches or with other settings."""
    path = fold_path(folder, number)
    if path.exists():
        made, asked = _made_with(path), {"patches": patches.fingerprint(), **settings}
        if told := "; ".join(differences(made, asked)):
            raise DataError(f"{path}: made with other settings: {told}; choose another --out")
    return path.exists()


def _made_with(path: Path) -> dict[str, Any]:
    with np.load(path) as kept:
        settings = json.loads(str(kept["settings"])) if "settings" in kept else {}
        return {"patches": str(kept["fingerprint"]), **settings}


def write_fold(
    folder: Path,
    number: int,
    patches: Patches,
    probabilities: NDArray[np.float32],
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Keep the probability of each patch of a fold.

    Parameters
    ----------
    folder, number : where, and which fold
    patches : all training patches
    probabilities : of the fold's patches, (n,)
    settings : what they were made with, as JSON can hold it
    """
    with written_whole(fold_path(folder, number)) as partial, partial.open("wb") as file:
        told = json.dumps(dict(settings or {}))
        np.savez(file, fingerprint=patches.fingerprint(), probabilities=probabilities, settings=told)


def read_soft_labels(folder: Path, patches: Patches) -> NDArray[np.float32]:
    """Return the probability of every training patch, (n,).

    Raises
    ------
    DataError
        where a fold is missing, of other patches, or made with other settings than the first.
    """
    labels = np.empty(len(patches), np.float32)
    for number, fold in enumerate(folds_of(patches)):
        path = fold_path(folder, number)
        if not path.exists():
            raise DataError(f"{path}: missing; expected labels of {FOLDS} folds; run cross_fit.py until all are made")
        if (made := _made_with(path))["patches"] != patches.fingerprint():
            raise DataError(f"{path}: labels of other patches; expected these; run cross_fit.py on the same folder")
        if told := "; ".join(differences(_made_with(fold_path(folder, 0)), made)):
            raise DataError(f"{path}: not made as fold 0: {told}; run cross_fit.py with another --out")
        with np.load(path) as kept:
            labels[fold] = kept["probabilities"]
    return labels
