"""Writing PCam's official files: patches and labels as HDF5, their places as CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from wsi_meta.outputs import written_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["META_COLUMNS", "PatchPlace", "PcamWriter", "pcam_files"]

META_COLUMNS = ("coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi")
"""Columns of the meta table."""
COPIED_ROWS = 256
"""Rows that are in memory at the same time when the files are written."""


class PatchPlace(NamedTuple):
    """A patch's row of the meta table."""

    coord_y: int
    """Upper left corner of the patch, level-0 pixels."""
    coord_x: int
    tumor_patch: bool
    """Whether there is tumor anywhere in the patch."""
    center_tumor_patch: bool
    """Whether there is tumor in its centre 32 x 32 px: the label."""
    wsi: str
    """Name of the slide."""


def pcam_files(folder: Path, split: str) -> tuple[Path, Path, Path]:
    """Return the names of a split's patches, labels and meta table."""
    stem = f"camelyonpatch_level_2_split_{split}_"
    return folder / f"{stem}x.h5", folder / f"{stem}y.h5", folder / f"{stem}meta.csv"


class PcamWriter:
    """Collects the patches of a split and writes its three files at the end, balanced and in random order.

    Until then the patches are in a temporary HDF5 file in the folder, in the order in which they came. Only their places are in
    memory.
    """

    def __init__(self, folder: Path, split: str, patch_px: int) -> None:
        import h5py

        self._targets = pcam_files(folder, split)
        self._raw_path = folder / f"{split}.raw.h5"
        self._raw: Any = h5py.File(self._raw_path, "w")
        shape = (0, patch_px, patch_px, 3)
        self._pixels: Any = self._raw.create_dataset("x", shape, np.uint8, maxshape=(None, *shape[1:]), chunks=(1, *shape[1:]))
        self.places: list[PatchPlace] = []

    def add(self, pixels: NDArray[np.uint8], place: PatchPlace) -> None:
        """Add a patch, uint8 (patch_px, patch_px, 3)."""
        if len(self.places) == len(self._pixels):
            self._pixels.resize(len(self._pixels) + COPIED_ROWS, 0)
        self._pixels[len(self.places)] = pixels
        self.places.append(place)

    def write(self, rng: np.random.Generator) -> list[int]:
        """Write the files: as many patches of each class as there are of the rarer one, in random order.

        Returns
        -------
        For each row of the files, the number of its patch in the order of :meth:`add`.
        """
        import h5py

        tumor = np.array([place.center_tumor_patch for place in self.places], bool)
        of_class = [rng.permutation(np.flatnonzero(tumor == label)) for label in (False, True)]
        each = min(map(len, of_class))
        order = rng.permutation(np.concatenate([numbers[:each] for numbers in of_class]))
        x_path, y_path, meta_path = self._targets
        shape = self._pixels.shape[1:]
        with written_whole(x_path) as partial, h5py.File(partial, "w") as file:
            data = file.create_dataset(
                "x", (len(order), *shape), np.uint8, chunks=(1, *shape), compression="gzip", shuffle=True
            )
            for start in range(0, len(order), COPIED_ROWS):
                numbers, inverse = np.unique(order[start : start + COPIED_ROWS], return_inverse=True)
                data[start : start + COPIED_ROWS] = np.stack([self._pixels[number] for number in numbers])[inverse]
        with written_whole(y_path) as partial, h5py.File(partial, "w") as file:
            file.create_dataset("y", data=tumor[order].astype(np.uint8).reshape(-1, 1, 1, 1), compression="gzip")
        with written_whole(meta_path) as partial, partial.open("w", newline="") as table:
            writer = csv.writer(table, lineterminator="\n")
            writer.writerow(META_COLUMNS)
            writer.writerows(self.places[number] for number in order)
        return [int(number) for number in order]

    def __enter__(self) -> PcamWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._raw.close()
        self._raw_path.unlink(missing_ok=True)
