"""DICOM slides as files: which are one slide, which tiles they hold, and that these lie and look as the files say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.files.dicom_elements import PREAMBLE_BYTES, Header, is_dicom, read_header
from wsi_meta.tiffs.codestreams import stated_colours
from wsi_meta.tiffs.pixel_form import refuse_other_colours, spread
from wsi_meta.tiffs.sparse_tiles import TileGrid
from wsi_meta.tiffs.tags import RGB, YCBCR, is_tiff

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["check_dicom", "dicom_grids", "dicom_series"]

WHOLE_SLIDE_IMAGE = b"1.2.840.10008.5.1.4.1.1.77.1.6"
"""What a DICOM file says that it is, where it is a part of a slide."""
SERIES, CLASS, SYNTAX, IMAGE_TYPE, COLOURS = 0x0020000E, 0x00020002, 0x00020010, 0x00080008, 0x00280004
ORGANIZATION, TILE_HEIGHT, TILE_WIDTH, WIDTH, HEIGHT = 0x00209311, 0x00280010, 0x00280011, 0x00480006, 0x00480007
"""Elements of a DICOM file: group and element number."""
HEAD_BYTES = 1 << 18
"""A JPEG says which colours it has in its first bytes."""
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
        if not path.is_file():
            return None
        with path.open("rb") as file:
            head = file.read(PREAMBLE_BYTES)
            if not is_dicom(head) or (is_tiff(head) and path.suffix.lower() in (".tif", ".tiff")):  # OpenSlide's rule
                return None
            with mmap(file.fileno(), 0, access=ACCESS_READ) as stored:
                said = read_header(stored, (CLASS, SERIES), SERIES).said
    except OSError:
        return None
    return said[SERIES].decode("latin-1") if said.get(CLASS) == WHOLE_SLIDE_IMAGE and SERIES in said else None


def check_dicom(path: Path) -> None:
    """Check where a level of a DICOM slide says that its tiles lie, and which colours they have; labels may be of any form.

    Raises
    ------
    SlideReadError
        when OpenSlide would take other bytes for a tile, which also ends the process, or would decode it to other colours.
    OSError
    """
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as stored:
        header = read_header(stored, (SYNTAX, IMAGE_TYPE, COLOURS))
        compressed = header.said.get(SYNTAX, b"").startswith(COMPRESSED)
        if not _is_level(header) or not compressed or (frames := FRAMES.search(stored, header.end)) is None:
            return
        first = frames.end() + int.from_bytes(frames[1], "little")
        places = _listed_places(stored, header, frames)
        few = [first + int(place) for place in places[spread(len(places))]] or [first]
        ordered = not len(places) or (places[0] == 0 and bool((places[1:] > places[:-1]).all()))
        if not ordered or (len(places) and any(stored[at : at + len(ITEM)] != ITEM for at in few)):
            raise SlideReadError(
                f"{path}: its list of where each of its {len(places):,} tiles lies is damaged, or the file is not whole; "
                "expected one after the other, all in the file; copy the slide again, or convert it"
            )
        if header.said.get(SYNTAX) == JPEG:
            said = stated_colours(stored[at + ITEM_HEAD_BYTES : at + HEAD_BYTES] for at in few)
            refuse_other_colours(path, PHOTOMETRIC.get(header.said.get(COLOURS, b"")), said)


def dicom_grids(paths: Iterable[Path]) -> dict[tuple[int, int], TileGrid]:
    """Return which tiles the files of a DICOM slide hold, by the (width, height) of each level.

    A level is missing where its tiles do not lie side by side from the corner of the slide. Bytes of tiles are not counted: a
    tile that is there has one.

    Raises
    ------
    OSError
    """
    found = dict[tuple[int, int], TileGrid]()
    sides = WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT
    for path in paths:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as stored:
            header = read_header(stored, (IMAGE_TYPE, ORGANIZATION, *sides))
            width, height, *tile = (int.from_bytes(header.said.get(code, b"\0"), "little") for code in sides)
            if not _is_level(header) or not all((width, height, *tile)):
                continue
            counts = np.zeros((-(-height // tile[1]), -(-width // tile[0])), np.int64)
            if _count(counts, (tile[0], tile[1]), _places(stored, header), header.said.get(ORGANIZATION, b"")):
                found[width, height] = TileGrid(tile[0], tile[1], counts.shape[1], counts.reshape(1, -1))
    return found


def _is_level(header: Header) -> bool:
    """Tell whether OpenSlide takes a file for a level, not for a label, an overview or a thumbnail."""
    return b"VOLUME" in header.said.get(IMAGE_TYPE, b"").split(b"\\")


def _places(stored: mmap, header: Header) -> NDArray[np.int32]:
    """Return column and row on the slide, from 0, of the corner of each tile that says it, (tiles, 2)."""
    said = PLACE.findall(stored[header.end : max(header.end, stored.find(PIXELS, header.end))])
    return np.frombuffer(b"".join(b"".join(place) for place in said), "<i4").reshape(-1, 2) - 1


def _count(counts: NDArray[np.int64], tile: tuple[int, int], places: NDArray[np.int32], organization: bytes) -> bool:
    """Mark the tiles that a file holds; return whether that is known."""
    if organization == b"TILED_FULL" or (not len(places) and not organization):
        counts[:] = 1
        return True
    numbers = places // tile
    if not len(places) or (places % tile).any() or (places < 0).any() or (numbers >= counts.shape[::-1]).any():
        return False
    counts[numbers[:, 1], numbers[:, 0]] = 1
    return True


def _listed_places(stored: mmap, header: Header, frames: re.Match[bytes]) -> NDArray[Any]:
    """Return where each frame lies, counted from the first one, in bytes; empty where a file does not list it."""
    found, kind = frames, "<u4"
    if (extended := EXTENDED.search(stored, header.end, frames.start())) is not None:
        found, kind = extended, "<u8"
    listed = stored[found.end() : found.end() + int.from_bytes(found[1], "little")]
    return np.frombuffer(listed, kind, len(listed) // np.dtype(kind).itemsize)
