"""Labelled patches on disk, in the three common layouts.

- PCam's official HDF5 pairs: ``camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5`` (x uint8, y 0/1), or ``.hdf5``;
  the slide of each patch is known where ``..._meta.csv`` lies beside them, its pixel size where x has an attribute ``mpp`` or
  ``sampling.json`` tells it
- Kaggle's "Histopathologic Cancer Detection": ``train/<id>.tif`` and ``train_labels.csv`` with ``id,label``;
  an id of 40 hexadecimal digits is the SHA-1 of the patch's RGB bytes, so that damage is noticed
- class folders: ``{train,valid,test}/{0,1}/*`` or just ``{0,1}/*``, images as jpg, png or tif

``val`` and ``validation`` are ``valid``, in any case. A folder may hold several layouts; several folders are joined. One of
several that is named as a split holds that split, where nothing in it names one. Folders, images and HDF5 files in them that
are not read are told, and whatever lies beside images that are.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.annotations.tables import label_of, read_table, refuse_twice
from wsi_meta.datasets.hdf5 import HDF5_ENDINGS, find_pairs, is_of_pcam, read_hdf5
from wsi_meta.datasets.patches import Patches, join
from wsi_meta.datasets.pcam import MPP, sampled_mpp
from wsi_meta.datasets.rgb_images import IMAGE_SUFFIXES, images_in, tell_held
from wsi_meta.errors import DataError, OptionsError, one_of
from wsi_meta.files.address import several
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.outputs.paths import as_path, real_path
from wsi_meta.slides.pixel_size import differs
from wsi_meta.words import some_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NAMES", "SPLITS", "Patches", "choose_split", "open_patches", "refuse_idle", "tell_folders", "warn_of_few"]

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
NAMES = {split: split for split in SPLITS} | {"val": "valid", "validation": "valid"}
"""Splits by the names that folders and files have for them."""
FEW = 100
"""Patches of a class: of 30 normal ones, a threshold for a specificity of 0.99 has under 0.90 in one case of twenty."""
TOLD = (*IMAGE_SUFFIXES, ".bmp", ".gif", ".webp", ".jp2", ".npy", *HDF5_ENDINGS)
"""Endings of what is told where it is not read."""
NO_IMAGES = (".csv", ".json", ".txt", ".db", ".ini")
"""Endings of what may lie beside images: tables, texts and what Windows leaves there."""


def open_patches(paths: str | Path | Sequence[str | Path], *, tell: bool = True) -> dict[str, Patches]:
    """Find the labelled patches in one or several folders.

    Parameters
    ----------
    paths : folders, each in one of the module's layouts
    tell : warn of folders and images in them that are not read

    Returns
    -------
    dict from split to patches, with only the splits that were found; data without splits are ``train``, or what their folder is
    named where there are several.

    Raises
    ------
    DataError
        when a folder is missing or in none of the layouts, or its parts contradict each other.
    """
    found: dict[str, list[Patches]] = {}
    folders = paths_of(paths)
    for number, folder in enumerate(folders):
        if real_path(folder) in map(real_path, folders[:number]):
            raise DataError(f"{folder}: given twice; expected each folder once")
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; expected a folder of labelled patches")
        own = _named_split(folder) if len(folders) > 1 else "train"
        parts = [
            *(("HDF5 files", *part) for part in _open_hdf5(folder)),
            *(("train_labels.csv", *part) for part in _open_kaggle(folder, own)),
            *(("folders 0/ and 1/", *part) for part in _open_class_folders(folder, own)),
        ]
        if not parts:
            there = some_of(sorted(_unread(os.fspath(folder), set(), set(), set()))) or "nothing that may be patches"
            raise DataError(
                f"{folder}: no labelled patches found, but {there}; expected PCam's files by their names, "
                "camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5, train/ with train_labels.csv, or folders 0/ and 1/"
            )
        if tell:
            _warn_of_unread(folder, [patches for *_, patches in parts])
            _warn_of_twice(folder, parts)
        for _, split, patches in parts:
            found.setdefault(split, []).append(patches)
    sizes = {patches.mpp for parts in found.values() for patches in parts}
    for mpp in sizes if tell and None in sizes else ():
        if mpp is not None and differs(mpp, Preprocessing().mpp):
            told = "%s: some patches do not tell their pixel size; taken to be %g um, as that of the others"
            logger.warning(told, tell_folders(paths), mpp)
    return {split: join(found[split]) for split in SPLITS if split in found}


def paths_of(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the folders of patches that were given, one or several; OptionsError for none, and for what is no path."""
    expected = "a folder of labelled patches, or several"
    if not (folders := [as_path("patches", path, expected=expected) for path in several(paths)]):
        raise OptionsError(f"patches: no folder in the list; expected {expected}")
    return folders


def choose_split(data: str | Path | Sequence[str | Path], *, split: str | None = None) -> Patches:
    """Return the patches to calibrate on: `split`, ``valid`` or the only one; DataError for none, or too few of a class.

    OptionsError for another name than those of :data:`SPLITS`.
    """
    split = None if split is None else one_of("split", split, SPLITS)
    splits = open_patches(data)
    wanted = split or ("valid" if "valid" in splits else next(iter(splits)))
    if wanted not in splits or (split is None and "valid" not in splits and len(splits) > 1):
        raise DataError(f"no '{split or 'valid'}' split; found {', '.join(splits)}; name one with --split")
    if split is None:
        refuse_idle(data, splits[wanted], wanted)
    tumor, n = int(splits[wanted].labels.sum()), len(splits[wanted])
    if min(tumor, n - tumor) < 2:
        told = f"{tumor} tumor and {n - tumor} normal patches in '{wanted}'"
        raise DataError(f"{tell_folders(data)}: {told}; expected at least 2 of each, one to calibrate on and one to judge")
    warn_of_few(splits[wanted], f"{tell_folders(data)}: {wanted}")
    return splits[wanted]


def refuse_idle(data: str | Path | Sequence[str | Path], patches: Patches, split: str) -> None:
    """Raise DataError when one of several folders has no patches of a split that nobody named: they would be left out."""
    held = {parent for place in {path.parent for path in patches.files} for parent in (place, *place.parents)}
    if idle := [folder for folder in paths_of(data) if folder not in held]:
        raise DataError(f"{idle[0]}: has no '{split}' patches, other folders have; name a split with --split, or leave it out")


def warn_of_few(patches: Patches, what: str) -> None:
    """Warn of operating points that patches to calibrate on are too few for; `what` they are is said in words."""
    tumor = int(patches.labels.sum())
    numbers = {"specificity_99": (len(patches) - tumor, "normal"), "sensitivity_95, sensitivity_99": (tumor, "tumor")}
    few = [f"{points} on {n} {name}" for points, (n, name) in numbers.items() if n < FEW]
    if few:
        told = "%s: few patches to choose thresholds by: %s; expected %d of a class: by fewer they may not keep what they say"
        logger.warning(told, what, " and ".join(few), FEW)


def tell_folders(data: str | Path | Sequence[str | Path]) -> str:
    """Return the names of folders of patches, in words."""
    return str(data) if isinstance(data, str | Path) else " ".join(map(str, data))


def _open_hdf5(folder: Path) -> Iterable[tuple[str, Patches]]:
    for split, (x_path, y_path) in find_pairs(folder, NAMES).items():
        shape, dtype, mpp = read_hdf5(x_path, "x", lambda patches: (patches.shape, patches.dtype, patches.attrs.get(MPP)))
        labels = _checked_labels(read_hdf5(y_path, "y", np.asarray).reshape(-1), y_path)
        if shape[1:] != (96, 96, 3) or dtype != np.uint8:
            raise DataError(f"{x_path}: patches {dtype} of shape {shape[1:]}; expected uint8 (96, 96, 3)")
        if not shape[0]:
            raise DataError(f"{x_path}: holds no patches; download it again")
        if shape[0] != len(labels):
            raise DataError(f"{y_path}: {len(labels)} labels for {shape[0]} patches; expected as many of each")
        slides = _read_slides(x_path.with_name(f"{x_path.stem[:-1]}meta.csv"), labels)
        rows, mpp = np.arange(len(labels)), sampled_mpp(x_path, mpp)
        yield split, Patches((x_path,) * len(labels), rows, labels, mpp=mpp, slides=slides)


def _read_slides(path: Path, labels: NDArray[np.uint8]) -> NDArray[np.str_] | None:
    """Read the slide of each patch from PCam's meta table, which must agree with the labels; None where there is no table."""
    if not path.exists():
        return None
    table = read_table(path, ("center_tumor_patch", "wsi"), "patches and their slides")
    if len(table) != len(labels):
        raise DataError(f"{path}: {len(table)} rows for {len(labels)} patches; expected a row for each")
    contrary = np.flatnonzero(_checked_labels((label for label, _ in table), path) != labels)
    if contrary.size:
        row = contrary[0]
        raise DataError(
            f"{path}: center_tumor_patch of {contrary.size} rows contradicts y, first row {row} "
            f"('{table[row][0]}', y has {labels[row]}); expected the same labels; download both again"
        )
    slides = np.array([slide for _, slide in table], np.str_)
    if (unnamed := np.flatnonzero(slides == "")).size:
        raise DataError(f"{path}: no wsi in row {unnamed[0]}; expected a slide's name in every row")
    return slides


def _open_kaggle(folder: Path, own: str) -> Iterable[tuple[str, Patches]]:
    table = folder / "train_labels.csv"
    if not table.exists():
        return
    rows = read_table(table, ("id", "label"), "labels")
    refuse_twice(table, ((row[0], row.line) for row in rows))
    if not rows:
        raise DataError(f"{table}: no labels in it; expected a row per image")
    rows.sort()
    labels = {row[0]: row[1] for row in rows}
    images = {path.stem: path for path in images_in(folder / "train") if path.suffix.lower() in (".tif", ".tiff")}
    _refuse_mismatch(table, sorted(set(labels) - set(images)), "ids without an image in train/")
    _refuse_mismatch(table, sorted(set(images) - set(labels)), "images in train/ without a label")
    names = list(labels)
    values = _checked_labels(labels.values(), table, lambda place: f"line {rows[place].line} (id '{names[place]}')")
    by_sha1 = np.array([re.fullmatch("[0-9a-fA-F]{40}", name) is not None for name in names])
    yield own, Patches(tuple(images[name] for name in names), np.full(len(names), -1), values, named_by_sha1=by_sha1)


def _open_class_folders(folder: Path, own: str) -> Iterable[tuple[str, Patches]]:
    whole = [(own, folder)] if (folder / "0").is_dir() or (folder / "1").is_dir() else []
    for split, place in [*_split_folders(folder), *whole]:
        files, labels = [], []
        for label in (0, 1):
            of_class = images_in(place / str(label))
            files += of_class
            labels += [label] * len(of_class)
        if not files:
            raise DataError(f"{place}: folders 0/ and 1/ hold no images; expected {', '.join(IMAGE_SUFFIXES)}")
        yield split, Patches(tuple(files), np.full(len(files), -1), np.array(labels, np.uint8))


def _named_split(folder: Path) -> str:
    """Return the split that a folder is named as, ``train`` for any other name."""
    place = real_path(folder) if folder.name in ("", os.pardir) else folder
    return NAMES.get(place.name.lower(), "train")


def _split_folders(folder: Path) -> list[tuple[str, Path]]:
    """Return the folders of splits with the splits' names; DataError when two are of the same split."""
    found: dict[str, Path] = {}
    for place in sorted(path for path in folder.iterdir() if (path / "0").is_dir() or (path / "1").is_dir()):
        split = NAMES.get(place.name.lower())
        if split is not None and found.setdefault(split, place) != place:
            raise DataError(f"{place}: is the same split as {found[split].name}/; expected one folder for {split}")
    return [(split, found[split]) for split in SPLITS if split in found]


def _warn_of_twice(folder: Path, parts: Sequence[tuple[str, str, Patches]]) -> None:
    """Warn of a split that a folder holds in two layouts: often both are the same patches."""
    for split in SPLITS:
        told = [f"{len(patches)} of {layout}" for layout, of, patches in parts if of == split]
        if len(told) > 1:
            joined = "%s: patches for %s in several layouts are joined: %s; remove one if these are the same"
            logger.warning(joined, folder, split, ", ".join(told))


def _warn_of_unread(folder: Path, parts: Sequence[Patches]) -> None:
    """Name the folders, images and HDF5 files in a folder that are not among its patches in a warning."""
    files = {path for part in parts for path in part.files}
    folders = {path.parent for path in files}
    images = {os.fspath(path.parent) for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    held = {os.fspath(parent) for place in folders for parent in (place, *place.parents)}
    if names := sorted(_unread(os.fspath(folder), set(map(os.fspath, files)), held, images)):
        logger.warning("%s: not read: %s; expected one of the layouts of labelled patches", folder, some_of(names))


def _unread(place: str, read: set[str], held: set[str], images: set[str]) -> Iterator[str]:
    """Return what is not read below a folder: folders in which nothing is, the others being `held`, and files.

    Of the files images and those of HDF5, and in folders of `images` all but texts.
    """
    with os.scandir(place) as entries:
        for entry in entries:
            path = entry.name if place == os.curdir else entry.path  # as pathlib writes it
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if path in held:
                    yield from _unread(path, read, held, images)
                else:
                    yield f"{path}/"
            elif path not in read and not is_of_pcam(entry.name, NAMES):
                ending = PurePath(entry.name).suffix.lower()
                if ending in TOLD or (place in images and ending not in NO_IMAGES):
                    yield path


def _checked_labels(
    values: Iterable[object], path: Path, where: Callable[[int], str] = lambda row: f"row {row}"
) -> NDArray[np.uint8]:
    """Return labels as 0 and 1; `where` tells the place of a label that is neither."""
    labels = []
    for row, value in enumerate(values):
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)  # HDF5 has texts as bytes
        if (label := label_of(text)) is None:
            raise DataError(f"{path}: label {text.strip()!r} in {where(row)}; expected 0 or 1, or normal or tumor")
        labels.append(label)
    return np.array(labels, np.uint8)


def _refuse_mismatch(table: Path, names: list[str], what: str) -> None:
    if names:
        there = tell_held(table.with_name("train"))
        told = "expected one image per label, whose id is its name without .tif"
        raise DataError(f"{table}: {len(names)} {what}, first '{names[0]}'; train/ holds {there}; {told}")
