"""Labelled patches from disk, in the three layouts people have.

- PCam's official HDF5 pairs: ``camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5`` (x uint8, y 0/1)
- Kaggle's "Histopathologic Cancer Detection": ``train/<id>.tif`` and ``train_labels.csv`` with ``id,label``
- class folders: ``{train,valid,test}/{0,1}/*`` or just ``{0,1}/*``, images as jpg, png or tif

A folder may hold several; several folders are joined.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from wsi_meta.errors import DataError, first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SPLITS", "Patches", "open_patches", "read_batches", "split_for_training"]

SPLITS = ("train", "valid", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


@dataclass(frozen=True)
class Patches(Dataset[tuple[torch.Tensor, int]]):
    """Labelled patches that are read one by one when asked for; a map-style dataset for torch's ``DataLoader``."""

    files: tuple[Path, ...]
    """File of each patch; the HDF5 file itself for the official layout."""
    rows: NDArray[np.int64]
    """Row within the HDF5 file, -1 for an image file; shape (n,)."""
    labels: NDArray[np.uint8]
    """1 tumor, 0 normal; shape (n,)."""
    patch_px: int = 96

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Give patch and label: uint8 tensor (patch_px, patch_px, 3), RGB, and 0 or 1; DataError if it cannot be read."""
        return torch.from_numpy(self.read(index)), int(self.labels[index])

    def read(self, index: int) -> NDArray[np.uint8]:
        """Read one patch as uint8 array (patch_px, patch_px, 3), RGB.

        Raises
        ------
        DataError
            when it does not decode or is not `patch_px` square.
        """
        if self.rows[index] >= 0:
            row = int(self.rows[index])
            return np.asarray(_read_hdf5(self.files[index], "x", lambda patches: patches[row], f"row {row}"))
        path = self.files[index]
        with _opened_image(path) as image:
            pixels = np.array(image.convert("RGB"))
        self._check_shape(path, (pixels.shape[1], pixels.shape[0]))
        return pixels

    def check(self) -> None:
        """Look at every image's header, so that a bad file is named before the first step rather than hours later.

        Raises
        ------
        DataError
            for the first file that is no image or not `patch_px` square, and when there is only one class.
        """
        for path in (path for path, row in zip(self.files, self.rows, strict=True) if row < 0):
            with _opened_image(path) as image:
                self._check_shape(path, image.size)
        tumor = int(self.labels.sum())
        if tumor in (0, len(self)):
            only = "normal (0)" if tumor == 0 else "tumor (1)"
            raise DataError(f"{_place(self.files)}: all {len(self)} patches are {only}; expected both classes")

    def select(self, indices: NDArray[np.int64]) -> Patches:
        """Give the patches at `indices`, in that order."""
        return replace(self, files=tuple(self.files[i] for i in indices), rows=self.rows[indices], labels=self.labels[indices])

    def fingerprint(self) -> str:
        """Give a SHA-256 over file names, rows and labels in order (not over pixels), hexadecimal."""
        digest = hashlib.sha256()
        for path, row, label in zip(self.files, self.rows, self.labels, strict=True):
            digest.update(f"{path.name} {row} {label}\n".encode())
        return digest.hexdigest()

    def _check_shape(self, path: Path, size: tuple[int, int]) -> None:
        if size != (self.patch_px, self.patch_px):
            raise DataError(f"{path}: {size[0]}x{size[1]} px; expected {self.patch_px}x{self.patch_px}; remove or resize it")


def open_patches(paths: str | Path | Sequence[str | Path]) -> dict[str, Patches]:
    """Find the labelled patches below one or several folders.

    Parameters
    ----------
    paths : folders, each in one of the module's layouts

    Returns
    -------
    dict from split to patches, with only the splits that were found; data without splits are ``train``.

    Raises
    ------
    DataError
        when a folder is missing or in none of the layouts, or its parts contradict each other.
    """
    found: dict[str, list[Patches]] = {}
    folders = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    for number, folder in enumerate(folders):
        if folder.resolve() in {other.resolve() for other in folders[:number]}:
            raise DataError(f"{folder}: given twice; expected each folder once")
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; expected a folder of labelled patches")
        parts = [*_open_hdf5(folder), *_open_kaggle(folder), *_open_class_folders(folder)]
        if not parts:
            raise DataError(
                f"{folder}: no labelled patches found; expected PCam HDF5 files, train/ with train_labels.csv, "
                "or folders 0/ and 1/"
            )
        for split, patches in parts:
            found.setdefault(split, []).append(patches)
    return {split: _join(found[split]) for split in SPLITS if split in found}


def split_for_training(data: dict[str, Patches], *, fraction: float = 0.1, seed: int = 0) -> tuple[Patches, Patches]:
    """Give training and validation patches: the data's own split, else a seeded stratified one.

    Parameters
    ----------
    data : as :func:`open_patches` gives it
    fraction : share of each class that goes to validation where the data have no split of their own
    seed : of the shuffle

    Raises
    ------
    DataError
        when there is no train split.
    """
    if "train" not in data:
        raise DataError(f"{_place(next(iter(data.values())).files)}: only {', '.join(data)} patches; expected a train split")
    train = data["train"]
    if "valid" in data:
        return train, data["valid"]
    order = np.random.default_rng(seed).permutation(len(train))
    held_out = np.zeros(len(train), bool)
    for label in (0, 1):
        of_class = order[train.labels[order] == label]
        held_out[of_class[: max(1, round(fraction * len(of_class)))]] = True
    return train.select(np.flatnonzero(~held_out)), train.select(np.flatnonzero(held_out))


def read_batches(loader: DataLoader[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Give a loader's batches: uint8 images (n, patch_px, patch_px, 3) and labels (n,).

    A DataError from a process that decodes patches comes out as it was raised there, without that process's traceback.
    """
    try:
        yield from loader
    except DataError as error:
        raise DataError(str(error).rsplit("DataError: ", 1)[-1].strip()) from None


def _open_hdf5(folder: Path) -> Iterable[tuple[str, Patches]]:
    for split in SPLITS:
        x_path, y_path = (folder / f"camelyonpatch_level_2_split_{split}_{part}.h5" for part in "xy")
        if not x_path.exists() and not y_path.exists():
            continue
        for path in (x_path, y_path):
            if not path.exists():
                raise DataError(f"{path}: missing; expected beside its other half (x: patches, y: labels)")
        shape, dtype = _read_hdf5(x_path, "x", lambda patches: (patches.shape, patches.dtype))
        labels = _read_hdf5(y_path, "y", np.asarray).reshape(-1)
        if shape[1:] != (96, 96, 3) or dtype != np.uint8:
            raise DataError(f"{x_path}: patches {dtype} of shape {shape[1:]}; expected uint8 (96, 96, 3)")
        if shape[0] != len(labels):
            raise DataError(f"{y_path}: {len(labels)} labels for {shape[0]} patches; expected as many of each")
        yield split, Patches((x_path,) * len(labels), np.arange(len(labels)), _checked_labels(labels, y_path))


def _open_kaggle(folder: Path) -> Iterable[tuple[str, Patches]]:
    table = folder / "train_labels.csv"
    if not table.exists():
        return
    labels: dict[str, str] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"id", "label"} <= set(reader.fieldnames or ()):
                raise DataError(f"{table}: columns {reader.fieldnames}; expected 'id' and 'label'")
            for row in reader:
                if labels.setdefault(row["id"], row["label"]) != row["label"]:
                    raise DataError(f"{table}: id '{row['id']}' has two labels; expected one")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a table of labels ({first_line(error)}); expected CSV with 'id' and 'label'") from error
    if not labels:
        raise DataError(f"{table}: no labels in it; expected a row per image")
    images = {path.stem: path for path in _images(folder / "train") if path.suffix.lower() in (".tif", ".tiff")}
    _refuse_mismatch(table, sorted(set(labels) - set(images)), "ids without an image in train/")
    _refuse_mismatch(table, sorted(set(images) - set(labels)), "images in train/ without a label")
    names = sorted(labels)
    values = _checked_labels([labels[name] for name in names], table)
    yield "train", Patches(tuple(images[name] for name in names), np.full(len(names), -1), values)


def _open_class_folders(folder: Path) -> Iterable[tuple[str, Patches]]:
    for split, place in [*((split, folder / split) for split in SPLITS), ("train", folder)]:
        if not ((place / "0").is_dir() or (place / "1").is_dir()):
            continue
        files, labels = [], []
        for label in (0, 1):
            of_class = _images(place / str(label))
            files += of_class
            labels += [label] * len(of_class)
        if not files:
            raise DataError(f"{place}: folders 0/ and 1/ hold no images; expected {', '.join(IMAGE_SUFFIXES)}")
        yield split, Patches(tuple(files), np.full(len(files), -1), np.array(labels, np.uint8))


def _join(parts: list[Patches]) -> Patches:
    return Patches(
        tuple(path for part in parts for path in part.files),
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def _checked_labels(values: Iterable[object], path: Path) -> NDArray[np.uint8]:
    known = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1}
    texts = [str(value).strip() for value in values]
    for row, text in enumerate(texts):
        if text not in known:
            raise DataError(f"{path}: label '{text}' in row {row}; expected 0 or 1")
    return np.array([known[text] for text in texts], np.uint8)


def _refuse_mismatch(table: Path, names: list[str], what: str) -> None:
    if names:
        raise DataError(f"{table}: {len(names)} {what}, first '{names[0]}'; expected one image per label")


def _place(files: Sequence[Path]) -> Path:
    return files[0].parent if files else Path()


def _images(folder: Path) -> list[Path]:
    """List a folder's images by name, without the hidden twins that macOS leaves."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != ".")


@contextmanager
def _opened_image(path: Path) -> Iterator[Any]:
    """Open an image; DataError for whatever goes wrong while it is open."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: does not decode as an image ({first_line(error)}); remove or replace it") from error


def _read_hdf5(path: Path, name: str, read: Callable[[Any], Any], what: str = "the file") -> Any:
    """Give what `read` makes of the data set `name` of one of PCam's HDF5 files; an error says that `what` failed."""
    import h5py

    try:
        with h5py.File(path) as file:
            return read(file[name])
    except (OSError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: {what} cannot be read as PCam's '{name}' ({first_line(error)}); download it again") from error
