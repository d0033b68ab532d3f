"""DICOM slides as files: which belong to one series, and whether their pixels lie where they say, in the colours they say."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.tiffs.codestreams import agreed_colours
from wsi_meta.tiffs.pixel_form import refuse_other_colours, spread
from wsi_meta.tiffs.tags import RGB, YCBCR

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["check_dicom", "dicom_series"]

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
JPEG, COMPRESSED = b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4."
"""The transfer syntax of JPEG as OpenSlide reads it, and how those of all compressed pixels begin."""
PHOTOMETRIC = {b"RGB": RGB, b"YBR_FULL": YCBCR, b"YBR_FULL_422": YCBCR}
"""TIFF's numbers of colours, by DICOM's names of them."""
FRAMES = re.compile(rb"\xe0\x7f\x10\x00O[BW]\0\0\xff{4}\xfe\xff\x00\xe0(.{4})", re.DOTALL)
"""How compressed pixels begin: with a list of a stated length, of where each frame is. The first frame follows."""
EXTENDED = re.compile(rb"\xe0\x7f\x01\x00OV\0\0(.{4})", re.DOTALL)
"""How the longer list begins that stands before the pixels, where the first one would be too short."""
ITEM_HEAD_BYTES = 8
"""Tag and length, before the bytes of a frame."""


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


def check_dicom(path: Path) -> None:
    """Check where a level of a DICOM slide says that its tiles lie, and which colours they have; labels may be of any form.

    Raises
    ------
    SlideReadError
        when OpenSlide would take other bytes for a tile, which also ends the process, or would decode it to other colours.
    OSError
    """
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as stored:
        found = dict(_outer_elements(stored[:HEAD_BYTES], COLOURS))
        level = {b"VOLUME", b"THUMBNAIL"} & set(found.get(IMAGE_TYPE, b"").split(b"\\"))
        if not level or not found.get(SYNTAX, b"").startswith(COMPRESSED) or (frames := FRAMES.search(stored)) is None:
            return
        first = frames.end() + int.from_bytes(frames[1], "little")
        places = _listed_places(stored, frames)
        _refuse_other_places(path, places, len(stored) - first)
        if found.get(SYNTAX) == JPEG:
            few = [first + ITEM_HEAD_BYTES + int(place) for place in places[spread(len(places))]] or [first + ITEM_HEAD_BYTES]
            said = agreed_colours(stored[at : at + HEAD_BYTES] for at in few)
            refuse_other_colours(path, PHOTOMETRIC.get(found.get(COLOURS, b"")), said)


def _listed_places(stored: mmap, frames: re.Match[bytes]) -> NDArray[Any]:
    """Return where each frame lies, counted from the first one, in bytes; empty where a file does not list it."""
    found, kind = frames, "<u4"
    if (extended := EXTENDED.search(stored, 0, frames.start())) is not None:
        found, kind = extended, "<u8"
    listed = stored[found.end() : found.end() + int.from_bytes(found[1], "little")]
    return np.frombuffer(listed, kind, len(listed) // np.dtype(kind).itemsize)


def _refuse_other_places(path: Path, places: NDArray[Any], size: int) -> None:
    """Refuse frames that do not follow each other, or lie beyond so many bytes: OpenSlide's library takes any for true."""
    if len(places) and ((places[1:] <= places[:-1]).any() or int(places[-1]) + ITEM_HEAD_BYTES > size):
        raise SlideReadError(
            f"{path}: its list of where each of its {len(places):,} tiles lies is damaged, or the file is not whole; "
            "expected one after the other, all in the file; copy the slide again, or convert it"
        )


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
