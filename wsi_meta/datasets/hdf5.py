"""Reading patches from HDF5 files, many rows at a time; a process opens each file once."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import DataError, require
from wsi_meta.words import first_line, some_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HDF5_ENDINGS", "Hdf5Rows", "find_pairs", "is_of_pcam", "read_hdf5"]

HDF5_ENDINGS = (".h5", ".hdf5", ".hdf", ".he5")
"""Endings of HDF5 files; of PCam's the first two."""
PCAM_NAME = re.compile(r"camelyonpatch_level_2_split_([a-z]+)_(x|y|mask)\.(?:h5|hdf5)(\.gz)?", re.IGNORECASE)

LEAST_CACHE, MOST_CACHE = 2**20, 2**28
"""Limits of the cache of decoded chunks of an open file, in bytes. It has room for eight rows of chunks within them."""
_ERRORS = (OSError, RuntimeError, KeyError, IndexError, ValueError, AttributeError, TypeError)
"""What h5py raises for a damaged file or a file of another kind."""
REMEDIES = {
    BlockingIOError: "another program has it open for writing: close that, or wait for its end",
    PermissionError: "get the right to read it",
}
"""What to do about errors that are no damage."""


class Hdf5Rows:
    """Rows of the data set ``x`` of HDF5 files. A file stays open from its first read until this object is deleted.

    A handle belongs to the process that opened it: after a fork, and in a copy sent to another process, each file is
    opened anew. Compressed files are stored in chunks that may hold many rows (h5py's own choice for 262,144 patches
    is 8,192), so rows are read in ascending order, neighbours together, and decoded chunks are kept: none is decoded
    twice for one batch, as long as the chunks of one row fit into the largest cache.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._open: dict[Path, tuple[Any, Any]] = {}  # file and data set: the file must stay open as long as its data set

    def __reduce__(self) -> tuple[type[Hdf5Rows], tuple[()]]:
        return Hdf5Rows, ()

    def read(self, path: Path, rows: NDArray[np.int64], told: Path) -> NDArray[np.uint8]:
        """Read rows of one file.

        Parameters
        ----------
        path : HDF5 file, absolute: the process may go to another folder
        rows : indices in any order, also repeated; shape (n,)
        told : the file's name in errors

        Returns
        -------
        Array with the rows in the order asked for; uint8, shape (n, patch_px, patch_px, 3).

        Raises
        ------
        DataError
            that names the file and the first row that cannot be read.
        """
        wanted, places = np.unique(rows, return_inverse=True)
        try:
            return self._read_ascending(path, wanted)[places]
        except _ERRORS as error:
            self._open.pop(path, None)
            if len(wanted) > 1:
                for row in wanted:
                    self.read(path, np.array([row]), told)
            raise _unreadable(told, "x", f"row {wanted[0]}", error) from error

    def _read_ascending(self, path: Path, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        data = self._opened(path)
        pixels = np.empty((len(rows), *data.shape[1:]), np.uint8)
        bounds = [0, *(np.flatnonzero(np.diff(rows) > 1) + 1).tolist(), len(rows)]
        for start, stop in pairwise(bounds):
            # read slices, because h5py needs up to 5 ms for each row of a list
            pixels[start:stop] = data[rows[start] : rows[stop - 1] + 1]
        return pixels

    def _opened(self, path: Path) -> Any:
        import h5py

        if self._process != os.getpid():
            self._process, self._open = os.getpid(), {}
        if path not in self._open:
            file = h5py.File(path)
            chunks = file["x"].chunks
            access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
            if chunks:
                row_of_chunks = chunks[0] * int(np.prod(file["x"].shape[1:]))
                size = int(np.clip(8 * row_of_chunks, LEAST_CACHE, MOST_CACHE))
                # a hundred slots of the hash table for each chunk, as HDF5's manual recommends
                slots = 100 * (size // int(np.prod(chunks)) + 1) + 1
                access.set_chunk_cache(min(slots, 1_000_003), size, 1.0)
            self._open[path] = file, h5py.Dataset(h5py.h5d.open(file.id, b"x", access))
        return self._open[path][1]


def find_pairs(folder: Path, splits: Mapping[str, str]) -> dict[str, tuple[Path, Path]]:
    """Return PCam's files of patches (x) and labels (y) in a folder, by split.

    Parameters
    ----------
    splits : each by the names that files may have for it, in lower case

    Raises
    ------
    DataError
        when half of a pair is missing or still packed, or two files are the same half.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir(), key=lambda path: (path.suffix == ".gz", path)):
        if (name := PCAM_NAME.fullmatch(path.name)) is None or (split := splits.get(name[1].lower())) is None:
            continue
        halves, half = found.setdefault(split, {}), name[2].lower()
        if halves.setdefault(half, path) != path and not name[3]:
            raise DataError(f"{path}: is the same half of {split} as {halves[half].name}; expected one file for each")
    pairs = {split: halves for split, halves in found.items() if {"x", "y"} & set(halves)}
    for halves in pairs.values():
        for half, other in ("xy", "yx"):
            if half not in halves:
                there = halves[other].with_suffix("") if halves[other].suffix == ".gz" else halves[other]
                missing = there.with_name(f"{there.stem[:-1]}{half}{there.suffix}")
                raise DataError(f"{missing}: missing; expected beside its other half (x: patches, y: labels)")
            if halves[half].suffix == ".gz":
                raise DataError(f"{halves[half]}: still packed; expected the HDF5 file itself; unpack it with gunzip")
    return {split: (halves["x"], halves["y"]) for split, halves in pairs.items()}


def is_of_pcam(name: str, splits: Mapping[str, str]) -> bool:
    """Tell whether a file's name is one of PCam's, packed or not; masks are not read, and not missed."""
    found = PCAM_NAME.fullmatch(name)
    return found is not None and found[1].lower() in splits


def read_hdf5(path: Path, name: str, read: Callable[[Any], Any]) -> Any:
    """Return what `read` makes of the data set `name` of one of PCam's HDF5 files, and close it again.

    Raises
    ------
    DataError
        when the file is none of PCam's, or damaged, or parts of the data set were never written.
    DeviceError
        without h5py.
    """
    require("train", "an HDF5 file")
    import h5py

    try:
        with h5py.File(path) as file:
            if name not in file:
                told = f"holds {some_of(list(file)) or 'nothing'}"
                raise DataError(f"{path}: {told}; expected a data set '{name}', as PCam's files have; name it so")
            _refuse_unwritten(file[name])
            return read(file[name])
    except DataError:
        raise
    except _ERRORS as error:
        raise _unreadable(path, name, "the file", error) from error


def _refuse_unwritten(data: Any) -> None:
    """Raise ValueError where HDF5 may read parts as 0: what was never written, or lies in other files, which may be missing."""
    if data.is_virtual or data.external:
        raise ValueError("its values are in other files; expected them in this one")
    if data.shape is None:
        raise ValueError("it holds nothing")
    if data.chunks:
        wanted = math.prod(-(-length // side) for length, side in zip(data.shape, data.chunks, strict=True))
        if (written := data.id.get_num_chunks()) != wanted:
            raise ValueError(f"{written} of {wanted} chunks were written")
    elif data.size and not data.id.get_storage_size():
        raise ValueError("its values were never written")


def _unreadable(path: Path, name: str, what: str, error: Exception) -> DataError:
    remedy = next((told for kind, told in REMEDIES.items() if isinstance(error, kind)), "download it again")
    return DataError(f"{path}: {what} cannot be read as PCam's '{name}' ({first_line(error)}); {remedy}")
