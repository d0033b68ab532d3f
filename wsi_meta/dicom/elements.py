"""What a DICOM file says of itself: its elements outside of sequences, and where what belongs to its frames begins."""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from mmap import mmap

__all__ = ["PREAMBLE_BYTES", "Header", "is_dicom", "read_header"]

PREAMBLE_BYTES = 132
"""A DICOM file begins with so many bytes, the last of which spell DICM."""
SYNTAX, FRAMES, END_OF_SEQUENCE, ITEMS = 0x00020010, 0x52009229, 0xFFFEE0DD, 0xFFFE
"""Elements, by group and element number: how elements are written; the first of those of frames; marks within sequences."""
IMPLICIT = b"1.2.840.10008.1.2"
"""The one transfer syntax in which the elements do not say of what kind they are."""
LONG_KINDS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Kinds of elements whose length takes four bytes after two that are reserved."""
NUMBERS = (b"US", b"UL")
"""Kinds of elements that hold numbers; others are filled up with spaces or zeros."""
UNDEFINED = 0xFFFFFFFF
"""The length of a sequence that has an end mark instead."""
MOST_ELEMENTS, MOST_BYTES = 200_000, 1 << 16
"""Elements that are looked at, also those inside sequences, and bytes of one that is asked for: a damaged file has no end."""


@dataclass(frozen=True)
class Header:
    """What was asked of a file."""

    said: dict[int, bytes]
    """Values of elements, by their number."""
    end: int
    """Where in the file the elements of frames begin: pictures that lie before, such as an icon, are not the slide's."""


def is_dicom(head: bytes) -> bool:
    """Tell whether a file that begins so is a DICOM file."""
    return head[PREAMBLE_BYTES - 4 : PREAMBLE_BYTES] == b"DICM"


def read_header(stored: bytes | mmap, wanted: Collection[int], last: int = FRAMES - 1) -> Header:
    """Return the elements of a DICOM file that are wanted, up to that of the number `last`."""
    said, at, start, depth, implicit = dict[int, bytes](), PREAMBLE_BYTES, PREAMBLE_BYTES, 0, False
    for _ in range(MOST_ELEMENTS):
        if (start := at) + 12 > len(stored):
            break
        group, element, short, long = struct.unpack_from("<HHxxHI", stored, at)
        number, kind = group << 16 | element, stored[at + 4 : at + 6]
        if group == ITEMS or (implicit and group != 2):
            at, length = at + 8, int.from_bytes(stored[at + 4 : at + 8], "little")
        else:
            at, length = (at + 12, long) if kind in LONG_KINDS else (at + 8, short)
        if depth == 0 and number > last and group != ITEMS:
            break
        depth += (length == UNDEFINED and group != ITEMS) - (number == END_OF_SEQUENCE)
        if length == UNDEFINED:
            continue
        if depth == 0 and (number in wanted or number == SYNTAX):
            value = stored[at : at + min(length, MOST_BYTES)]
            said[number] = value if kind in NUMBERS else value.rstrip(b"\0 ")
            implicit = implicit or (number == SYNTAX and said[number] == IMPLICIT)
        at += length
    return Header(said, start)
