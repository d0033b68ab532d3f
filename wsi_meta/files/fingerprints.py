"""Which slide a file is: its fingerprint, and those that it had by earlier rules, which stores still hold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

from wsi_meta.errors import SlideReadError
from wsi_meta.files.remote_file import RemoteFile
from wsi_meta.files.same_file import SameFile, WatchedFile
from wsi_meta.words import first_line

__all__ = ["Fingerprint", "fingerprint_of", "may_be_one"]

PARTS, PART_BYTES = 16, 1 << 14
"""So many parts of any file, from its beginning to its end, are in a fingerprint, of so many bytes each."""
WHOLE_BYTES, PIECE_BYTES = 128 << 20, 1 << 20
"""A file of a disk is read wholly up to this; so much at once."""
NEAR_PARTS, NEAR_PART_BYTES = 2048, 1 << 14
"""Parts of a longer one, and bytes of each."""
ENDS_BYTES = 1 << 16
"""Version 0.1.0 read so much of a file's beginning, and of its end."""
HALF = 32
"""Letters of half a fingerprint."""


class Fingerprint:
    """The fingerprint of a slide, made when it is asked for first.

    With a quickhash, and at an address, where little is fetched, it is that of :func:`fingerprint_of`. That of a file on a disk
    without quickhash has two halves: one of the whole file, or of 2,048 parts of 16 kB where it is longer than 128 MB; and one
    of the 16 parts, by which it is known at an address.

    Not noticed is what differs only between these parts, in files of the same length: of 1 GB they lie 512 kB apart, at an
    address 70 MB, and so they do where one of two fingerprints was made at an address, or by an earlier rule.
    A quickhash is of the smallest level of a file, of an OME-Zarr of 16 chunks of its coarsest level: with one, what differs
    only elsewhere is not noticed either.

    Parameters
    ----------
    file : None for what has a quickhash and is no single file; of a DICOM slide the largest, whichever one is named
    sizes : width and height of each level
    quickhash : OpenSlide's; empty where a file has none
    """

    def __init__(self, file: WatchedFile | None, sizes: Sequence[tuple[int, int]], quickhash: str) -> None:
        self._told = file, sizes, quickhash
        self._far = isinstance(file, RemoteFile)

    @cached_property
    def now(self) -> str:
        """The fingerprint by today's rule, 64 hexadecimal digits."""
        file, _, quickhash = self._told
        if file is None or quickhash or self._far:
            return self._few
        if file.size > WHOLE_BYTES:
            parts = _spread(file.size, NEAR_PARTS, NEAR_PART_BYTES)
        else:
            parts = [(offset, PIECE_BYTES) for offset in range(0, file.size, PIECE_BYTES)]
        return _digest(*self._told, parts)[:HALF] + self._few[:HALF]

    def fits(self, stored: str) -> bool:
        """Tell whether a fingerprint is this slide's: by today's rule, on a disk or at an address, or by an earlier one."""
        file, sizes, quickhash = self._told
        if stored == self.now or file is None:
            return stored == self.now
        if quickhash:  # earlier it had the size of whichever file of several was named
            beside = file.beside if isinstance(file, SameFile) else ()
            return any(stored == fingerprint_of(other, sizes, quickhash) for other in beside)
        return stored == self._few or (self._far and stored[HALF:] == self._few[:HALF]) or stored == self._ends

    @cached_property
    def _few(self) -> str:
        return fingerprint_of(*self._told)

    @cached_property
    def _ends(self) -> str:
        """The fingerprint by the rule of 0.1.0."""
        last = max(0, (0 if self._told[0] is None else self._told[0].size) - ENDS_BYTES)
        return _digest(*self._told, [(0, ENDS_BYTES), (last, ENDS_BYTES)])


def may_be_one(one: str, other: str) -> bool:
    """Tell whether two fingerprints are of the same slide, be it on a disk for one of them and at an address for the other."""
    return one == other or one[HALF:] == other[:HALF] or one[:HALF] == other[HALF:]


def fingerprint_of(file: WatchedFile | None, sizes: Sequence[tuple[int, int]], quickhash: str) -> str:
    """Return a SHA-256, hexadecimal, of a file's size in bytes, its levels' sizes, and its quickhash, else 16 parts of it.

    Parameters
    ----------
    file, sizes, quickhash : as for :class:`Fingerprint`
    """
    parts = [] if file is None or quickhash else _spread(file.size, PARTS, PART_BYTES)
    return _digest(file, sizes, quickhash, parts)


def _digest(file: WatchedFile | None, sizes: Sequence[tuple[int, int]], quickhash: str, parts: list[tuple[int, int]]) -> str:
    digest = hashlib.sha256(f"{0 if file is None else file.size} {tuple(sizes)} {quickhash}".encode())
    if file is not None and parts:
        try:
            opened = file.opened()
            opened.prefetch(parts)
            for part in parts:
                digest.update(opened.read(*part))
        except SlideReadError:
            raise
        except OSError as error:
            name = getattr(file, "address", None) or getattr(file, "path", "the slide")
            raise SlideReadError(f"{name}: cannot be told from other slides ({first_line(error)}); try again") from error
    return digest.hexdigest()


def _spread(size: int, number: int, length: int) -> list[tuple[int, int]]:
    """Return offset and length of so many parts of a file, from its beginning to its end; fewer of a short one."""
    length = min(length, size)
    return sorted({((size - length) * place // (number - 1), length) for place in range(number)})
