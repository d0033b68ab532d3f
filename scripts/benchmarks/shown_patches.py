"""Patches under all shifts, made once and kept in a file that several processes and later calls read.

Twenty-four shifts of a patch take 20 ms of a core: longer than a GPU takes to judge them. The file is a plain ``.npy``,
27 kB for each patch and shift, and is read through a memory map.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from wsi_meta.datasets.batches import batches_of
from wsi_meta.datasets.layouts import Patches
from wsi_meta.datasets.shifts import SHIFTS
from wsi_meta.errors import DataError
from wsi_meta.files.locks import locked
from wsi_meta.outputs.writing import written_whole
from wsi_meta.progress import progress_bar
from wsi_meta.words import first_line

__all__ = ["show_patches", "shown_path"]

LONGEST_S = 3600.0
"""For how long to wait for another process that makes the same file."""


class _Shown(Dataset[tuple[torch.Tensor, int]]):
    """Each patch as it is and under all shifts, uint8 tensors (1 + shifts, patch_px, patch_px, 3), with its label."""

    def __init__(self, patches: Patches) -> None:
        self.patches = patches

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        patch = self.patches.read(index)
        shown = np.stack([patch, *(shift.change(patch) for shift in SHIFTS)])
        return torch.from_numpy(shown), int(self.patches.labels[index])


def shown_path(patches: Patches, folder: Path) -> Path:
    """Return the file for these patches under these shifts: its name has the fingerprint of both."""
    words = f"{patches.fingerprint()} {' '.join(shift.name for shift in SHIFTS)}"
    return folder / f"shown-{hashlib.sha256(words.encode()).hexdigest()[:16]}.npy"


def show_patches(patches: Patches, folder: Path, *, workers: int = 0, progress: bool = False) -> NDArray[np.uint8]:
    """Return patches as they are and under all shifts; make their file where there is none.

    One process makes it and others wait for it. It is renamed into place when it is whole, so one that is killed leaves none.

    Parameters
    ----------
    patches : labelled patches
    folder : where the file is, or will be
    workers : processes that decode and change patches; 0 does it in this one
    progress : show a bar on stderr while it is made

    Returns
    -------
    uint8 memory map (n, 1 + shifts, patch_px, patch_px, 3), read-only; the unshifted patch first.

    Raises
    ------
    DataError
        when the file there is of another shape, or its first or last patch is not what the patches and shifts give.
    OutputPathError
        when it cannot be written.
    """
    path, source = shown_path(patches, folder), _Shown(patches)
    if not path.exists():
        with locked(path, wait_s=LONGEST_S):
            if not path.exists():
                _make(path, source, workers, progress=progress)
    try:
        shown: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: is no array ({first_line(error)}); remove it and run this again") from error
    if shown.shape != _shape(source) or shown.dtype != np.uint8:
        raise DataError(f"{path}: {shown.dtype} {shown.shape}; expected uint8 {_shape(source)}; remove it and run this again")
    for place in {0, len(shown) - 1}:
        if not np.array_equal(shown[place], source[place][0].numpy()):
            raise DataError(
                f"{path}: {patches.name(place)} is not in it as the patches and shifts now give it; "
                "expected the same pixels; remove it and run this again"
            )
    return shown


def _shape(source: _Shown) -> tuple[int, ...]:
    px = source.patches.patch_px
    return len(source), 1 + len(SHIFTS), px, px, 3


def _make(path: Path, source: _Shown, workers: int, *, progress: bool) -> None:
    """Write the file patch after patch: a full disk is then an error, which it is not in a memory map."""
    loader = DataLoader(source, batch_size=None, num_workers=workers, generator=torch.Generator())
    header = {"descr": "|u1", "fortran_order": False, "shape": _shape(source)}
    with (
        written_whole(path) as partial,
        partial.open("wb") as file,
        progress_bar(len(source), "patches", "shifting", enabled=progress) as bar,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for shown, _ in batches_of(loader):
            file.write(shown.numpy().tobytes())
            bar.update(1)
