"""A copy of a file at an address that holds some parts of it only: what OpenSlide, which reads files, needs to judge it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from wsi_meta.errors import SlideReadError
from wsi_meta.files.remote_file import RemoteFile
from wsi_meta.tiffs.structure import structure_of
from wsi_meta.tiffs.tags import is_tiff

__all__ = ["PartialCopy", "partial_copy"]

BLOCK_BYTES = 1 << 14
"""Parts begin and end at multiples of this."""
MOST_STRUCTURE_BYTES = 256 << 20
"""More than this is not fetched of what is not pixels."""
WHOLE_BYTES = 1 << 30
"""The largest file that is fetched whole."""


class PartialCopy:
    """A file as long as the one at an address; zeros stand where nothing was fetched, and take no room on most disks.

    Attributes
    ----------
    path : the copy; its name ends as the file's
    remote : the file at its address
    """

    def __init__(self, remote: RemoteFile, folder: Path) -> None:
        ending = remote.address.suffix
        self.remote, self.path = remote, folder / f"slide{ending if ending[1:].isalnum() and len(ending) < 10 else ''}"
        self._there: set[int] = set()
        with self.path.open("xb") as file:
            file.truncate(remote.size)

    def fill(self, offset: int, length: int) -> None:
        """Fetch a part, where it is not there yet; see :meth:`fill_parts`."""
        self.fill_parts([(offset, length)])

    def fill_parts(self, parts: Iterable[tuple[int, int]]) -> None:
        """Fetch parts by offset and length, where they are not there yet, several at the same time.

        Raises
        ------
        SlideReplacedError
        OSError
            when it does not come.
        """
        size, wanted = self.remote.size, set[int]()
        for offset, length in parts:
            wanted |= set(range(offset // BLOCK_BYTES, -(-min(offset + length, size) // BLOCK_BYTES))) - self._there
        starts = [(first * BLOCK_BYTES, min((last + 1) * BLOCK_BYTES, size)) for first, last in _runs(sorted(wanted))]
        missing = [(start, stop - start) for start, stop in starts]
        self.remote.prefetch(missing)
        with self.path.open("r+b") as file:
            for part in missing:
                os.pwrite(file.fileno(), self.remote.read(*part), part[0])
        self._there |= wanted

    def fill_structure(self) -> None:
        """Fetch all that a TIFF says of itself, and the pixels of its smallest level, which are in its fingerprint.

        Raises
        ------
        SlideReadError
            when it is no TIFF.
        OSError
        """
        self.fill(0, BLOCK_BYTES)
        if not is_tiff(self.remote.read(0, 4)):
            raise SlideReadError(
                f"{self.remote.address}: no TIFF; OpenSlide reads slides of this kind from local files only; download it first"
            )
        with _Filling(self) as file:
            parts = structure_of(cast(BinaryIO, file))
        room, wanted = MOST_STRUCTURE_BYTES, []
        for offset, length in parts:
            if 0 <= offset < self.remote.size and 0 < length <= room:
                wanted.append((offset, length))
                room -= length
        self.fill_parts(wanted)

    def fill_all(self) -> None:
        """Fetch the whole file; SlideReadError where it is too large for that."""
        if self.remote.size > WHOLE_BYTES:
            raise SlideReadError(
                f"{self.remote.address}: a picture of {self.remote.size / 1e9:.1f} GB, which is read whole; "
                f"expected at most {WHOLE_BYTES / 1e9:.1f} GB from an address; download it first"
            )
        self.fill(0, self.remote.size)


@contextmanager
def partial_copy(remote: RemoteFile) -> Iterator[PartialCopy]:
    """Yield a partial copy in the folder for temporary files; remove it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="wsi-meta-"))
    try:
        yield PartialCopy(remote, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Filling:
    """A partial copy open for reading: what is read is fetched first."""

    def __init__(self, copy: PartialCopy) -> None:
        self._copy, self._at, self._number = copy, 0, os.open(copy.path, os.O_RDONLY)

    def read(self, length: int) -> bytes:
        length = max(0, min(length, self._copy.remote.size - self._at))
        if length:
            self._copy.fill(self._at, length)
        content = os.pread(self._number, length, self._at)
        self._at += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset if whence == os.SEEK_SET else self._copy.remote.size + offset
        return self._at

    def __enter__(self) -> _Filling:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._number)


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield first and last of each run of following numbers."""
    first = last = -2
    for number in numbers:
        if number != last + 1:
            if last >= 0:
                yield first, last
            first = number
        last = number
    if last >= 0:
        yield first, last
