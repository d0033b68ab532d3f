"""A slide's file as it was when it was opened first: whether it is still the same."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from wsi_meta.errors import SlideReadError

__all__ = ["REPLACED", "OpenFile", "SameFile", "SlideReplacedError", "WatchedFile"]

REPLACED = (
    "the slide was replaced or changed while it was read; "
    "expected the same file to the end; leave it alone, and start again with --overwrite"
)


class SlideReplacedError(SlideReadError):
    """Another file stands where the slide was, or the slide was written to. No part of it can be trusted any more."""


class OpenFile(Protocol):
    """A file that is open, to be read at given positions by any number of threads."""

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; fewer where the file ends before.

        Raises
        ------
        SlideReplacedError
        OSError
        """

    def prefetch(self, parts: Iterable[tuple[int, int]]) -> None:
        """Say which parts, as offset and length, will be read next."""

    def forget(self) -> None:
        """Drop what was said to be read next, and was not."""


class WatchedFile(Protocol):
    """A file, on a disk or at an address, of which it is noticed when another one takes its place."""

    @property
    def size(self) -> int:
        """Bytes."""

    def opened(self) -> OpenFile:
        """Open it; SlideReplacedError or OSError where it is not the same any more."""

    def check(self) -> None:
        """Check that the file is still the same, as far as that is known without reading it.

        Raises
        ------
        SlideReplacedError
        OSError
            when there is no file any more.
        """


@dataclass(frozen=True)
class SameFile:
    """A file of a disk as it was when it was opened first, with those that belong to it."""

    path: Path
    mark: tuple[int, int, int, int]
    """Device, inode, size and time of the last change in nanoseconds."""
    beside: tuple[SameFile, ...] = ()
    """The other files of a slide of several."""

    @classmethod
    def at(cls, path: Path, *beside: Path) -> SameFile:
        """Return the file that stands at a path now, and those beside it."""
        return cls(path, _mark(path.stat()), tuple(map(cls.at, beside)))

    @property
    def size(self) -> int:
        """Bytes."""
        return self.mark[2]

    def largest_first(self) -> SameFile:
        """Return the same files, the largest one before the others: the same one, whichever of them was named."""
        first, *others = sorted((replace(self, beside=()), *self.beside), key=lambda file: (-file.size, file.path))
        return replace(first, beside=tuple(others))

    def opened(self) -> OpenFile:
        """Open it; SlideReplacedError or OSError where it is not the same any more."""
        return _Descriptor(self)

    def check(self, descriptor: int | None = None) -> None:
        """Check that the file is still the same, and those beside it.

        Parameters
        ----------
        descriptor : the file, open; None looks at what stands at the path

        Raises
        ------
        SlideReplacedError
        OSError
            when there is no file any more.
        """
        if _mark(self.path.stat() if descriptor is None else os.fstat(descriptor)) != self.mark:
            raise SlideReplacedError(f"{self.path}: {REPLACED}")
        for other in self.beside:
            other.check()


class _Descriptor:
    """A file open for reading at given positions; closed when nothing refers to it any more."""

    def __init__(self, same: SameFile) -> None:
        self._same = same
        self.number = os.open(same.path, os.O_RDONLY)
        same.check(self.number)

    def read(self, offset: int, length: int) -> bytes:
        stored = os.pread(self.number, length, offset)
        self._same.check(self.number)  # it may have been written to
        return stored

    def prefetch(self, parts: Iterable[tuple[int, int]]) -> None:
        """Let the system fetch the parts, all at once, where it can be told to."""
        if hasattr(os, "posix_fadvise"):
            for offset, length in parts:
                os.posix_fadvise(self.number, offset, length, os.POSIX_FADV_WILLNEED)

    def forget(self) -> None:
        """Do nothing: nothing is kept."""

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def _mark(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
