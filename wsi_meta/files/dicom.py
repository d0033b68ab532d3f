"""DICOM slides as files: which belong to one series, and whether their pixels have the colours that they say."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

from wsi_meta.tiffs.pixel_form import refuse_other_colours
from wsi_meta.tiffs.tags import RGB, YCBCR

__all__ = ["dicom_series", "refuse_other_dicom_colours"]

WHOLE_SLIDE_IMAGE = b"1.2.840.10008.5.1.4.1.1.77.1.6"
"""What a DICOM file says that it is, where it is a part of a slide."""
SERIES, CLASS, SYNTAX, IMAGE_TYPE, COLOURS, END_OF_SEQUENCE = (
    0x0020000E,
    0x00020002,
    0x00020010,
    0x00080008,
    0x00280004,
    0xFFFEE0DD,
)
"""Elements of a DICOM file: group and element number."""
IMPLICIT = b"1.2.840.10008.1.2"
"""The one transfer syntax in which the elements do not say of what kind they are."""
LONG_KINDS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Kinds of elements whose length takes four bytes after two that are reserved."""
UNDEFINED = 0xFFFFFFFF
"""The length of a sequence that has an end mark instead."""
HEAD_BYTES = 1 << 18
"""The number of its series stands in these first bytes of a DICOM file, before anything large, and how pixels are stored."""
JPEG = b"1.2.840.10008.1.2.4.50"
"""The transfer syntax of JPEG as OpenSlide reads it."""
PHOTOMETRIC = {b"RGB": RGB, b"YBR_FULL": YCBCR, b"YBR_FULL_422": YCBCR}
"""TIFF's numbers of colours, by DICOM's names of them."""
FRAMES = re.compile(rb"\xe0\x7f\x10\x00O[BW]\0\0\xff{4}\xfe\xff\x00\xe0(.{4})", re.DOTALL)
"""How compressed pixels begin: with a list of a stated length, of where each frame is. The first frame follows."""


def dicom_series(path: Path) -> str | None:
    """Return the number of the series that a DICOM file belongs to; None where it is no part of a whole-slide image.

    All files of one series in one folder are one slide: its levels, label and overview.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return None
    found = dict(_outer_elements(head, SERIES)) if head[128:132] == b"DICM" else {}
    return found[SERIES].decode("latin-1") if found.get(CLASS) == WHOLE_SLIDE_IMAGE and SERIES in found else None


def refuse_other_dicom_colours(path: Path) -> None:
    """Refuse a file of a DICOM slide whose first JPEG says that it has other colours than the file says; labels may.

    Raises
    ------
    OtherFormError
    OSError
    """
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as stored:
        found = dict(_outer_elements(stored[:HEAD_BYTES], COLOURS))
        level = {b"VOLUME", b"THUMBNAIL"} & set(found.get(IMAGE_TYPE, b"").split(b"\\"))
        if found.get(SYNTAX) == JPEG and level and (frames := FRAMES.search(stored)):
            at = frames.end() + int.from_bytes(frames[1], "little") + 8
            refuse_other_colours(path, PHOTOMETRIC.get(found.get(COLOURS, b"")), stored[at : at + HEAD_BYTES])


def _outer_elements(head: bytes, last: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number and value of a DICOM file's elements up to that of the number `last`, without those inside sequences."""
    at, depth, implicit = 132, 0, False
    while at + 12 <= len(head):
        group, element, short, long = struct.unpack_from("<HHxxHI", head, at)
        number, kind = group << 16 | element, head[at + 4 : at + 6]
        if group == 0xFFFE or (implicit and group != 2):
            at, length = at + 8, int.from_bytes(head[at + 4 : at + 8], "little")
        else:
            at, length = (at + 12, long) if kind in LONG_KINDS else (at + 8, short)
        if depth == 0 and number > last and group != 0xFFFE:
            return
        depth += (length == UNDEFINED and group != 0xFFFE) - (number == END_OF_SEQUENCE)
        if length != UNDEFINED:
            value = head[at : at + length].rstrip(b"\0 ")
            implicit = implicit or (number == SYNTAX and value == IMPLICIT)
            if depth == 0:
                yield number, value
            at += length
