"""The tiles of DICOM slides: which of them a file holds, and where the bytes of each lie."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.dicom.elements import Header, read_header
from wsi_meta.tiffs.sparse_tiles import TileGrid
from wsi_meta.tiffs.tags import JPEG, RGB, YCBCR

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ITEM", "ITEM_HEAD_BYTES", "DicomLevel", "FramePlaces", "dicom_grids", "open_level"]

SYNTAX, IMAGE_TYPE, COLOURS = 0x00020010, 0x00080008, 0x00280004
ORGANIZATION, TILE_HEIGHT, TILE_WIDTH, WIDTH, HEIGHT = 0x00209311, 0x00280010, 0x00280011, 0x00480006, 0x00480007
"""Elements of a DICOM file: group and element number."""
SIDES = WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT
COMPRESSED = b"1.2.840.10008.1.2.4."
"""How the transfer syntaxes of all compressed pixels begin."""
CODECS = {COMPRESSED + b"50": JPEG, COMPRESSED + b"90": 34712, COMPRESSED + b"91": 34712}
"""TIFF's numbers of the compressions that OpenSlide reads: JPEG, and JPEG 2000."""
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


@dataclass(frozen=True)
class DicomLevel:
    """A file that holds a level, open."""

    stored: mmap
    header: Header

    @property
    def codec(self) -> int | None:
        """How tiles are compressed, by TIFF's number; None where they are not, or in a way that nothing here knows."""
        return CODECS.get(self.header.said.get(SYNTAX, b""))

    @property
    def colours(self) -> int | None:
        """Which colours the file says that its tiles have, by TIFF's number; None where it says others."""
        return PHOTOMETRIC.get(self.header.said.get(COLOURS, b""))

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """Width and height of the level, and of a tile; 0 where the file does not say."""
        width, height, tile_width, tile_height = (int.from_bytes(self.header.said.get(code, b"\0"), "little") for code in SIDES)
        return width, height, tile_width, tile_height

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles; only where all sides are known."""
        width, height, tile_width, tile_height = self.sides
        return -(-height // tile_height), -(-width // tile_width)

    def frames(self) -> FramePlaces | None:
        """Return where the file says that its frames lie; None where they are not compressed."""
        compressed = self.header.said.get(SYNTAX, b"").startswith(COMPRESSED)
        if not compressed or (found := FRAMES.search(self.stored, self.header.end)) is None:
            return None
        first, listed, kind = found.end() + int.from_bytes(found[1], "little"), found, "<u4"
        if (extended := EXTENDED.search(self.stored, self.header.end, found.start())) is not None:
            listed, kind = extended, "<u8"
        content = self.stored[listed.end() : listed.end() + int.from_bytes(listed[1], "little")]
        return FramePlaces(self.stored, first, np.frombuffer(content, kind, len(content) // np.dtype(kind).itemsize))

    def numbers(self) -> NDArray[np.int64] | None:
        """Return which tile of the level each frame is, row by row; None where they do not lie side by side from the corner.

        Nor is it known where a level has more tiles than its file has bytes: such a side is damaged.
        """
        if not all(self.sides) or prod(self.shape) > len(self.stored):
            return None
        (rows, columns), tile = self.shape, self.sides[2:]
        places, organization = self._corners(), self.header.said.get(ORGANIZATION, b"")
        if organization == b"TILED_FULL" or (not len(places) and not organization):
            return np.arange(rows * columns)
        found = places // tile
        if not len(places) or (places % tile).any() or (places < 0).any() or (found >= (columns, rows)).any():
            return None
        return np.asarray(found[:, 1] * np.int64(columns) + found[:, 0])

    def _corners(self) -> NDArray[np.int32]:
        """Return column and row on the slide, from 0, of the corner of each tile that says it, (tiles, 2)."""
        begin = self.header.end
        said = PLACE.findall(self.stored[begin : max(begin, self.stored.find(PIXELS, begin))])
        return np.frombuffer(b"".join(b"".join(place) for place in said), "<i4").reshape(-1, 2) - 1


@dataclass(frozen=True)
class FramePlaces:
    """Where compressed frames lie in a file."""

    stored: mmap
    first: int
    """Where the first one's head begins."""
    listed: NDArray[Any]
    """Where the head of each one is, counted from the first one, in bytes; empty where the file does not list it."""

    @property
    def heads(self) -> NDArray[np.int64]:
        """Where the head of each frame begins that is listed."""
        return np.asarray(self.listed.astype(np.int64) + self.first)

    @property
    def ordered(self) -> bool:
        """Whether the listed ones follow each other, from the first one on."""
        return not len(self.listed) or (self.listed[0] == 0 and bool((self.listed[1:] > self.listed[:-1]).all()))

    def parts(self) -> NDArray[np.int64]:
        """Return where each frame begins, with its head, and as the last one where the last frame ends."""
        if not len(self.listed):
            return np.array([self.first, *self._ends(self.first)])
        heads = self.heads
        return np.append(heads, [next(self._ends(int(heads[-1])), len(self.stored))])

    def _ends(self, at: int) -> Iterator[int]:
        """Yield the end of each frame from a place on, as its head says."""
        while self.stored[at : at + len(ITEM)] == ITEM:
            at += ITEM_HEAD_BYTES + int.from_bytes(self.stored[at + len(ITEM) : at + ITEM_HEAD_BYTES], "little")
            yield at


@contextmanager
def open_level(path: Path) -> Iterator[DicomLevel | None]:
    """Open a DICOM file; None where OpenSlide takes it for no level, but for a label, an overview or a thumbnail; OSError."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as stored:
        header = read_header(stored, (SYNTAX, IMAGE_TYPE, COLOURS, ORGANIZATION, *SIDES))
        is_level = b"VOLUME" in header.said.get(IMAGE_TYPE, b"").split(b"\\")
        yield DicomLevel(stored, header) if is_level else None


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
        with open_level(path) as level:
            if level is not None and (numbers := level.numbers()) is not None:
                width, height, *tile = level.sides
                rows, columns = level.shape
                counts = np.zeros((1, rows * columns), np.int64)
                counts[0, numbers] = 1
                found[width, height] = TileGrid(tile[0], tile[1], columns, counts)
    return found
