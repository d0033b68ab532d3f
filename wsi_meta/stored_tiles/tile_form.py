"""Stored tiles: where their bytes lie, and how these become pixels. JPEG by libjpeg-turbo in its strict mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.files.same_file import OpenFile, WatchedFile
from wsi_meta.tiffs.codestreams import (
    check_deflate,
    check_jpeg,
    check_jpeg2000,
    declared_size,
    decode_jpeg,
    decode_jpeg2000,
    decode_lzw,
    stored_colours,
)
from wsi_meta.tiffs.sparse_tiles import TileGrid
from wsi_meta.tiffs.tags import JPEG, LZW, PREDICTED, YCBCR
from wsi_meta.words import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CHECKED", "DECODERS", "JPEG2000", "TileForm", "TiledLevel", "read_part"]

JPEG2000, DEFLATE, BY_LENGTH = (33004, 33005, 34712), (8, 32946), (LZW, 32773, 50000)
"""TIFF's numbers of compressions; JPEG 2000 of RGB; LZW, PackBits and Zstandard, whose damage shows in how many bytes they
give."""
CHECKED = (1, JPEG, *DEFLATE, *BY_LENGTH, 33003, *JPEG2000)
"""Those that are checked: also JPEG 2000 of YCbCr, and of tiles that are stored as they are where they lie."""
DECODERS: dict[int, str] = {
    1: "none",
    LZW: "lzw",
    8: "zlib",
    32773: "packbits",
    32946: "zlib",
    50000: "zstd",
    **dict.fromkeys(JPEG2000, "jpeg2k"),
}
"""Other compressions that are read, by the names that imagecodecs has for them."""
MOST_BYTES_PER_PX, HEADER_BYTES = 8, 1 << 20
"""A longer tile is none: the JPEG of a pixel has fewer than 3 bytes, and the header holds a colour profile at most."""
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""A JPEG's word on its colours, but for its last byte: 1 for YCbCr, 0 for RGB."""
FILE_HEADER_BYTES = 8
"""No tile lies in the first bytes of a TIFF."""


@dataclass(frozen=True)
class TileForm:
    """How tiles, or strips, of one size are stored."""

    width: int
    height: int
    compression: int = JPEG
    tables: bytes = b""
    """What JPEGs share, and each lacks."""
    colours: int = YCBCR
    """Of the JPEGs that do not say their own: RGB or YCBCR."""
    differences: bool = False
    """Whether values are told to be differences from the pixel before (TIFF's predictor 2); some compressions know that."""
    samples: int = 3
    """Values of a pixel: one where each colour has tiles of its own. A fourth one is how opaque it is."""
    multiplied: bool = False
    """Whether colours are multiplied by that already."""

    @property
    def most_bytes(self) -> int:
        """What is longer is no tile."""
        return MOST_BYTES_PER_PX * self.width * self.height + HEADER_BYTES

    def decode(self, stored: bytes) -> NDArray[np.uint8]:
        """Return the pixels (height, width, samples); ValueError where the bytes do not give exactly these."""
        if self.compression == JPEG:
            return self._decode_jpeg(stored)
        pixels = self._values(stored).reshape(self.height, self.width, self.samples)
        undone = self.differences and self.compression in PREDICTED
        return np.cumsum(pixels, axis=1, dtype=np.uint8) if undone else pixels

    def check(self, stored: bytes) -> None:
        """Find damage without the pixels; ValueError. What shows none is not looked at."""
        if self.compression == JPEG:
            check_jpeg(self.whole_jpeg(stored))
        elif self.compression in DEFLATE:
            check_deflate(stored, self.most_bytes)
        elif self.compression in BY_LENGTH:
            self._values(stored)
        elif self.compression in CHECKED and self.compression != 1:
            check_jpeg2000(stored)

    def _decode_jpeg(self, stored: bytes) -> NDArray[np.uint8]:
        pixels = decode_jpeg(self.whole_jpeg(stored))
        if pixels.shape != (self.height, self.width, 3):
            raise ValueError(f"a tile of {pixels.shape[1]} x {pixels.shape[0]} px")
        return pixels

    def whole_jpeg(self, stored: bytes) -> bytes:
        """Return a complete JPEG; ValueError where it does not say that it has the size of a tile."""
        if stored[:2] != b"\xff\xd8":
            raise ValueError("a tile that is no JPEG")
        # each says its own colours: writers keep tiles as they are beside others that they made anew
        told = ADOBE + bytes([(stored_colours(stored) or self.colours) == YCBCR])
        jpeg = b"".join((stored[:2], told, self.tables, memoryview(stored)[2:]))
        if (size := declared_size(jpeg)) != (self.width, self.height):  # before memory is taken for its pixels
            said = f"{size[0]} x {size[1]} px" if size else "nothing of its size"
            raise ValueError(f"a tile whose own header says {said}; expected {self.width} x {self.height} px")
        return jpeg

    def _values(self, stored: bytes) -> NDArray[np.uint8]:
        """Return the values as they were before they were compressed; ValueError where they are not as many as a tile's."""
        whole, name = self.width * self.height * self.samples, DECODERS[self.compression]
        try:
            content = _decoder(self.compression)(stored, whole)
        except Exception as error:  # each codec has errors of its own, which are RuntimeErrors
            raise ValueError(f"a tile that is no {name} of {whole:,} bytes ({first_line(error)})") from error
        pixels = np.frombuffer(content, np.uint8) if isinstance(content, bytes | bytearray) else np.asarray(content)
        if pixels.dtype != np.uint8 or pixels.size != whole:
            raise ValueError(f"a tile of {pixels.size:,} values of type {pixels.dtype}; expected {whole:,} of uint8")
        return pixels


@dataclass(frozen=True)
class TiledLevel(TileGrid):
    """Where a level's tiles lie, row by row of the tile grid, and how they are stored."""

    offsets: NDArray[np.int64]
    """Shape (planes, tiles)."""
    form: TileForm

    @property
    def planes(self) -> int:
        """As many as colours, 3 or 4, where each has tiles of its own, else 1."""
        return len(self.plane_lengths)

    def parts(self, row: int, col: int) -> list[tuple[int, int]]:
        """Return offset and length of the bytes of a tile, in each plane."""
        number = self.number(row, col)
        return list(zip(self.offsets[:, number].tolist(), self.plane_lengths[:, number].tolist(), strict=True))


def read_part(form: TileForm, same: WatchedFile, file: OpenFile, part: tuple[int, int]) -> bytes:
    """Return the bytes at an offset, of a length; ValueError where no tile can lie there."""
    offset, length = part
    if not 0 < length <= form.most_bytes:
        raise ValueError(f"a tile of {length:,} bytes")
    if not FILE_HEADER_BYTES <= offset <= same.size - length:
        raise ValueError(f"a tile of {length:,} bytes at {offset:,} in a file of {same.size:,}")
    return file.read(offset, length)


def _decoder(compression: int) -> Callable[[bytes, int], Any]:
    """Return what decodes bytes to so many values."""
    import imagecodecs

    if compression == 1:
        return lambda stored, _: stored
    if compression in JPEG2000:
        return decode_jpeg2000
    # one more than fits: too much is noticed, and takes no memory
    if compression == LZW:
        return lambda stored, whole: decode_lzw(stored, whole + 1)
    decode = getattr(imagecodecs, f"{DECODERS[compression]}_decode")
    return lambda stored, whole: decode(stored, out=whole + 1)
