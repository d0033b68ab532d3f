"""Writing PCam's official files: patches and labels as HDF5, their places as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from wsi_meta.errors import DataError, OutputPathError
from wsi_meta.outputs.paths import cannot_be_written
from wsi_meta.outputs.writing import written_whole
from wsi_meta.slides.pixel_size import COARSEST_MPP, FINEST_MPP
from wsi_meta.words import first_line, from_json, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["META_COLUMNS", "MPP", "RECORD", "PatchPlace", "PcamWriter", "new_hdf5", "pcam_files", "sampled_mpp"]

META_COLUMNS = ("coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi")
"""Columns of the meta table."""
RECORD = "sampling.json"
"""File beside PCam's files that records what was sampled."""
MPP = "mpp"
"""Attribute of the data set x: micrometres per pixel of its patches."""
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


def sampled_mpp(x_path: Path, stored: object) -> float | None:
    """Return the pixel size that a file of patches states, or else the record beside it, micrometres; None where neither does.

    Parameters
    ----------
    stored : the file's attribute :data:`MPP`; None where it has none

    Raises
    ------
    DataError
        when the record cannot be read, or the pixel size cannot be.
    """
    if stored is not None:
        if not (isinstance(stored, int | float | np.integer | np.floating) and FINEST_MPP <= stored <= COARSEST_MPP):
            expected = f"micrometres per pixel, {FINEST_MPP:g} to {COARSEST_MPP:g}"
            raise DataError(f"{x_path}: attribute '{MPP}' of its patches is {stored!r}; expected {expected}; sample again")
        return float(stored)
    if not (path := x_path.with_name(RECORD)).is_file():
        return None
    try:
        mpp: float | None = from_json(path.read_bytes()).get("mpp")
        if mpp is not None and not (type(mpp) in (int, float) and FINEST_MPP <= mpp <= COARSEST_MPP):
            raise ValueError(f"mpp {mpp!r}")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be read as the record of a sampling ({first_line(error)}); expected the mpp of its patches, "
            "micrometres per pixel; sample again"
        ) from error
    return mpp


class PcamWriter:
    """Collects the patches of a split and writes its three files at the end, balanced and in random order.

    Until then the patches are in a temporary file in the folder, in the order in which they came. Only their places are in
    memory.
    """

    def __init__(self, folder: Path, split: str, patch_px: int, mpp: float) -> None:
        self._split, self._targets = split, pcam_files(folder, split)
        self._shape, self._mpp = (patch_px, patch_px, 3), mpp
        self._raw_path = folder / f"{split}.raw"
        self._raw = FileIO(self._raw_path, "w+")
        self.places: list[PatchPlace] = []

    def add(self, pixels: NDArray[np.uint8], place: PatchPlace) -> None:
        """Add a patch, uint8 (patch_px, patch_px, 3); OutputPathError when there is no room for it."""
        try:
            _write_all(self._raw, np.ascontiguousarray(pixels).tobytes())
        except OSError as error:
            raise OutputPathError(cannot_be_written(f"{self._raw_path.parent}: the patches", error)) from error
        self.places.append(place)

    def refuse_one_class(self, told: str) -> None:
        """Refuse to write files without any patch of a class, of which cells were found; DataError.

        Parameters
        ----------
        told : how many patches were left out, and why
        """
        tumor = sum(place.center_tumor_patch for place in self.places)
        for name, count in (("tumor", tumor), ("normal", len(self.places) - tumor)):
            if not count:
                raise DataError(f"{self._split}: no {name} patch is left; {told}: add slides with {name} tissue to this split")

    def write(self, rng: np.random.Generator) -> list[int]:
        """Write the files: as many patches of each class as there are of the rarer one, in random order.

        Returns
        -------
        For each row of the files, the number of its patch in the order of :meth:`add`.

        Raises
        ------
        OutputPathError
            when there is no room for them.
        """
        tumor = np.array([place.center_tumor_patch for place in self.places], bool)
        of_class = [rng.permutation(np.flatnonzero(tumor == label)) for label in (False, True)]
        each = min(map(len, of_class))
        order = rng.permutation(np.concatenate([numbers[:each] for numbers in of_class]))
        x_path, y_path, meta_path = self._targets
        self._write_pixels(x_path, order)
        with written_whole(y_path) as partial, new_hdf5(partial) as (file, _disk):
            file.create_dataset("y", data=tumor[order].astype(np.uint8).reshape(-1, 1, 1, 1), compression="gzip")
        with written_whole(meta_path) as partial, partial.open("w", newline="", encoding="utf-8") as table:
            writer = csv.writer(table, lineterminator="\n")
            writer.writerow(META_COLUMNS)
            writer.writerows((*place[:-1], printable(place.wsi)) for place in (self.places[number] for number in order))
        return [int(number) for number in order]

    def _write_pixels(self, path: Path, order: NDArray[np.int64]) -> None:
        with written_whole(path) as partial, new_hdf5(partial) as (file, disk):
            data = file.create_dataset(
                "x", (len(order), *self._shape), np.uint8, chunks=(1, *self._shape), compression="gzip", shuffle=True
            )
            data.attrs[MPP] = self._mpp
            for start in range(0, len(order), COPIED_ROWS):
                numbers = order[start : start + COPIED_ROWS]
                data[start : start + COPIED_ROWS] = np.stack([self._read(int(number)) for number in numbers])
                disk.refuse_loss()

    def _read(self, number: int) -> NDArray[np.uint8]:
        size = int(np.prod(self._shape))
        self._raw.seek(number * size)
        return np.frombuffer(self._raw.read(size), np.uint8).reshape(self._shape)

    def __enter__(self) -> PcamWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._raw.close()
        self._raw_path.unlink(missing_ok=True)


class _Disk(FileIO):
    """A file for HDF5, to which no write fails: what cannot be written is left out, and the reason is kept.

    HDF5 cannot close a file after a failed write, and crashes the process when that ends.
    """

    failure: OSError | None = None

    def write(self, content: Any) -> int:
        if self.failure is None:
            try:
                _write_all(super(), content)
            except OSError as error:
                self.failure = error
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        if self.failure is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.failure = error
        return size or 0

    def readinto(self, buffer: Any) -> int:
        """Read; what was never written is zeros."""
        view = memoryview(buffer).cast("B")
        done = super().readinto(view) or 0
        view[done:] = bytes(len(view) - done)
        return len(view)

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size) or b""
        return content if size is None or size < 0 else content.ljust(size, b"\0")

    def refuse_loss(self) -> None:
        """Raise the reason why something was left out, if anything was."""
        if self.failure is not None:
            raise self.failure


@contextmanager
def new_hdf5(path: Path) -> Iterator[tuple[Any, _Disk]]:
    """Yield a new ``h5py.File`` and its disk, whose ``refuse_loss`` tells during long work what is raised at the end anyway.

    Raises
    ------
    OSError
        when not all of it could be written.
    """
    import h5py

    with _Disk(path, "w+") as disk:
        with h5py.File(disk, "w") as file:
            yield file, disk
        disk.refuse_loss()


def _write_all(file: Any, content: Any) -> None:
    """Write all of it: a disk that is nearly full takes a part and says so, and only the next write fails."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
