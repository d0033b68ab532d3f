"""DICOM slides as files: which are one slide, which tiles they hold, and that these lie and look as the files say."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.tiffs.codestreams import agreed_colours
from wsi_meta.tiffs.pixel_form import refuse_other_colours, spread
from wsi_meta.tiffs.sparse_tiles import TileGrid
from wsi_meta.tiffs.tags import RGB, YCBCR

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["check_dicom", "dicom_grids", "dicom_series"]

WHOLE_SLIDE_IMAGE = b"1.2.840.10008.5.1.4.1.1.77.1.6"
"""What a DICOM file says that it is, where it is a part of a slide."""
SERIES, CLASS, SYNTAX, IMAGE_TYPE, COLOURS = 0x0020000E, 0x00020002, 0x00020010, 0x00080008, 0x00280004
ORGANIZATION, TILE_HEIGHT, TILE_WIDTH, WIDTH, HEIGHT = 0x00209311, 0x00280010, 0x00280011, 0x00480006, 0x00480007
END_OF_SEQUENCE = 0xFFFEE0DD
"""Elements of a DICOM file: group and element number."""
IMPLICIT = b"1.2.840.10008.1.2"
"""The one transfer syntax in which the elements do not say of what kind they are."""
LONG_KINDS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Kinds of elements whose length takes four bytes after two that are reserved."""
NUMBERS = (b"US", b"UL")
"""Kinds of elements that hold numbers; others are filled up with spaces or zeros."""
UNDEFINED = 0xFFFFFFFF
"""The length of a sequence that has an end mark instead."""
PREAMBLE_BYTES, HEAD_BYTES = 132, 1 << 18
"""How a DICOM file begins, with DICM at its end; its series and how pixels are stored stand in these bytes after it."""
JPEG, COMPRESSED = b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4."
"""The transfer syntax of JPEG as OpenSlide reads it, and how those of all compressed pixels begin."""
PHOTOMETRIC = {b"RGB": RGB, b"YBR_FULL": YCBCR, b"YBR_FULL_422": YCBCR}
"""TIFF's numbers of colours, by DICOM's names of them."""
FRAMES = re.compile(rb"\xe0\x7f\x10\x00O[BW]\0\0\xff{4}\xfe\xff\x00\xe0(.{4})", re.DOTALL)
"""How compressed pixels begin: with a list of a stated length, of where each frame is. The first frame follows."""
EXTENDED = re.compile(rb"\xe0\x7f\x01\x00OV\0\0(.{4})", re.DOTALL)
"""How the longer list begins that stands before the pixels, where the first one would be too short."""
PIXELS = b"\xe0\x7f\x10\x00O"
"""How the pixels begin, compressed or not."""
PLACE = re.compile(rb"\x48\0\x1e\x02SL\x04\0(.{4})\x48\0\x1f\x02SL\x04\0(.{4})", re.DOTALL)
"""Column and row on the slide, counted from 1, of the corner of a tile; a sparse file says it of each tile that it holds."""
ITEM, ITEM_HEAD_BYTES = b"\xfe\xff\x00\xe0", 8
"""The tag before the bytes of a frame; how many bytes it and their length take."""


def dicom_series(path: Path) -> str | None:
    """Return the number of the series that a DICOM file belongs to; None where it is no part of a whole-slide image.

    All files of one series in one folder are one slide: its levels, label and overview.
    """
    try:
        with path.open("rb") as file:
            head = file.read(PREAMBLE_BYTES)
            head += file.read(HEAD_BYTES) if head.endswith(b"DICM") else b""
    except OSError:
        return None
    found = dict(_outer_elements(head, SERIES)) if len(head) > PREAMBLE_BYTES else {}
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
        if (
            not _is_level(found)
            or not found.get(SYNTAX, b"").startswith(COMPRESSED)
            or (frames := FRAMES.search(stored)) is None
        ):
            return
        first = frames.end() + int.from_bytes(frames[1], "little")
        places = _listed_places(stored, frames)
        few = [first + int(place) for place in places[spread(len(places))]] or [first]
        ordered = not len(places) or (places[0] == 0 and bool((places[1:] > places[:-1]).all()))
        if not ordered or (len(places) and any(stored[at : at + len(ITEM)] != ITEM for at in few)):
            raise SlideReadError(
                f"{path}: its list of where each of its {len(places):,} tiles lies is damaged, or the file is not whole; "
                "expected one after the other, all in the file; copy the slide again, or convert it"
            )
        if found.get(SYNTAX) == JPEG:
            said = agreed_colours(stored[at + ITEM_HEAD_BYTES : at + HEAD_BYTES] for at in few)
            refuse_other_colours(path, PHOTOMETRIC.get(found.get(COLOURS, b"")), said)


def dicom_grids(paths: Iterable[Path]) -> dict[tuple[int, int], TileGrid]:
    """Return which tiles the files of a DICOM slide hold, by the (width, height) of each level.

    A level is missing where its tiles do not lie side by side from the corner of the slide. Bytes of tiles are not counted: a
    tile that is there has one.

    Raises
    ------
    OSError
    """
    found = dict[tuple[int, int], TileGrid]()
    for path in paths:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as stored:
            said = dict(_outer_elements(stored[:HEAD_BYTES], HEIGHT))
            numbers = [int.from_bytes(said.get(code, b"\0"), "little") for code in (WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT)]
            if not _is_level(said) or not all(numbers):
                continue
            width, height, *tile = numbers
            counts = np.zeros((-(-height // tile[1]), -(-width // tile[0])), np.int64)
            if said.get(ORGANIZATION) != b"TILED_SPARSE":
                counts[:] = 1
            elif not _count(counts, (tile[0], tile[1]), stored[: max(0, stored.find(PIXELS))]):
                continue
        if (other := found.get((width, height))) is not None:  # of another focal plane
            counts = np.maximum(counts, other.lengths.reshape(counts.shape))
        found[width, height] = TileGrid(tile[0], tile[1], counts.shape[1], counts.reshape(1, -1))
    return found


def _is_level(said: dict[int, bytes]) -> bool:
    """Tell by a file's elements whether OpenSlide takes it for a level, not for a label or an overview."""
    return not {b"VOLUME", b"THUMBNAIL"}.isdisjoint(said.get(IMAGE_TYPE, b"").split(b"\\"))


def _count(counts: NDArray[np.int64], tile: tuple[int, int], head: bytes) -> bool:
    """Mark the tiles of which a file says where they lie; return whether all lie on the grid, and there are some."""
    said = np.frombuffer(b"".join(b"".join(place) for place in PLACE.findall(head)), "<i4").reshape(-1, 2) - 1
    cols, rows = said[:, 0] // tile[0], said[:, 1] // tile[1]
    if (
        not len(said)
        or (said % tile).any()
        or (said < 0).any()
        or (rows >= len(counts)).any()
        or (cols >= counts.shape[1]).any()
    ):
        return False
    counts[rows, cols] = 1
    return True


def _listed_places(stored: mmap, frames: re.Match[bytes]) -> NDArray[Any]:
    """Return where each frame lies, counted from the first one, in bytes; empty where a file does not list it."""
    found, kind = frames, "<u4"
    if (extended := EXTENDED.search(stored, 0, frames.start())) is not None:
        found, kind = extended, "<u8"
    listed = stored[found.end() : found.end() + int.from_bytes(found[1], "little")]
    return np.frombuffer(listed, kind, len(listed) // np.dtype(kind).itemsize)


def _outer_elements(head: bytes, last: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number and value of a DICOM file's elements up to that of the number `last`, without those inside sequences."""
    at, depth, implicit = PREAMBLE_BYTES, 0, False
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
            value = head[at : at + length] if kind in NUMBERS else head[at : at + length].rstrip(b"\0 ")
            implicit = implicit or (number == SYNTAX and value == IMPLICIT)
            if depth == 0:
                yield number, value
            at += length
