"""The tiles of a TIFF: where their bytes lie, and how they become pixels. JPEG by libjpeg-turbo in its strict mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.files.same_file import OpenFile, WatchedFile
from wsi_meta.readers.reader import before
from wsi_meta.readers.tile_reader import Tile, TileReader
from wsi_meta.tiffs.codestreams import (
    check_deflate,
    check_jpeg,
    check_jpeg2000,
    declared_size,
    decode_jpeg,
    decode_jpeg2000,
    stored_colours,
)
from wsi_meta.tiffs.sparse_tiles import LeftOut, TileGrid, lacks_tiles
from wsi_meta.tiffs.tags import JPEG, PREDICTED, YCBCR
from wsi_meta.words import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DECODERS", "JPEG2000", "PlacedTiles", "TiffReader", "TileCheck", "TileForm", "TiledLevel"]

JPEG2000, DEFLATE, BY_LENGTH = (33004, 33005, 34712), (8, 32946), (5, 32773, 50000)
"""TIFF's numbers of compressions; JPEG 2000 of RGB; LZW, PackBits and Zstandard, whose damage shows in how many bytes they
give."""
CHECKED = (1, JPEG, *DEFLATE, *BY_LENGTH, 33003, *JPEG2000)
"""Those that are checked: also JPEG 2000 of YCbCr, and of tiles that are stored as they are where they lie."""
DECODERS: dict[int, str] = {
    1: "none",
    5: "lzw",
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


class TiffReader(TileReader):
    """A TIFF whose tiles are decoded here. Reads at given positions, so that threads and processes do not disturb each other.

    Parameters
    ----------
    path : of the slide, for messages
    file : the file, on a disk or at an address
    levels, downsamples, background : see :class:`.TileReader`
    """

    name = "direct"

    def __init__(
        self,
        path: object,
        file: WatchedFile,
        levels: Mapping[int, TiledLevel],
        downsamples: Sequence[float],
        background: tuple[int, ...],
    ) -> None:
        super().__init__(path, levels, downsamples, background)
        self._levels, self._same = levels, file
        self._file: OpenFile | None = None

    def _judge_left_out(self, size: tuple[int, int], downsamples: Sequence[float]) -> None:
        """Find out, by level 0's size and the true factors, which tiles that were left out are no glass."""
        if lacks_tiles(self._levels):
            self._left_out = LeftOut(size, self._levels, downsamples, self.background)

    def close(self) -> None:
        """Drop the tiles, and close the file as soon as the reads of other threads have ended. A later read opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.forget()
        super().close()

    def _begin(self, tiles: Sequence[Tile]) -> OpenFile:
        file = self._file
        if file is None:
            self._file = file = self._same.opened()
        new = (tile for tile in tiles if self._is_stored(tile) and not self._cache.holds(tile))
        file.prefetch(part for tile in new for part in self._levels[tile[0]].parts(*tile[1:]))
        return file

    def _decode(self, tile: Tile, source: Any) -> NDArray[np.uint8]:
        level = self._levels[tile[0]]
        planes = [level.form.decode(_read(level.form, self._same, source, part)) for part in level.parts(*tile[1:])]
        pixels = planes[0] if level.planes == 1 else np.concatenate(planes, axis=2)
        if pixels.shape[2] == 3:
            return pixels
        return before(self.background, pixels[..., :3], pixels[..., 3:], multiplied=level.form.multiplied)


@dataclass(frozen=True)
class PlacedTiles:
    """The tiles of a page, and where in its level the page lies."""

    tiles: TiledLevel
    size: tuple[int, int]
    """Width and height of the page."""
    left: int = 0
    top: int = 0

    def touched(self, left: int, top: int, width: int, height: int) -> Iterator[tuple[int, int]]:
        """Return row and column of the stored tiles that a rectangle of the level touches."""
        first = max(0, left - self.left), max(0, top - self.top)
        last = min(self.size[0], left + width - self.left), min(self.size[1], top + height - self.top)
        if first[0] < last[0] and first[1] < last[1]:
            rows, cols = self.tiles.touched(*first, last[0] - first[0], last[1] - first[1])
            for row, col in product(range(rows.start, rows.stop), range(cols.start, cols.stop)):
                if self.tiles.lengths[self.tiles.number(row, col)]:
                    yield row, col


class TileCheck:
    """Looks strictly at stored tiles before another library, which passes over damage, decodes them. Threads may share it.

    Parameters
    ----------
    file : the file
    levels : the tiles of each level that is checked
    """

    def __init__(self, file: WatchedFile, levels: Mapping[int, Sequence[PlacedTiles]]) -> None:
        self._same, self._levels = file, levels
        self._file: OpenFile | None = None
        self._sound = {level: [np.zeros(len(page.tiles.lengths), bool) for page in pages] for level, pages in levels.items()}

    def refuse_damaged(self, level: int, left: int, top: int, width: int, height: int) -> None:
        """Refuse a rectangle of a level that touches a damaged tile; ValueError, or OSError. A sound tile is read once."""
        for page, sound in zip(self._levels.get(level, ()), self._sound.get(level, ()), strict=True):
            for row, col in page.touched(left, top, width, height):
                if not sound[number := page.tiles.number(row, col)]:
                    self._check(page.tiles, row, col)
                    sound[number] = True

    def samples(self, most: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Return where some of the busier tiles of each page lie: level, left, top, width, height."""
        for level, pages in self._levels.items():
            for page in pages:
                tiles, busiest_first = page.tiles, np.argsort(-page.tiles.lengths, kind="stable")
                stored = int((tiles.lengths > 0).sum())
                count = max(stored // 2, min(stored, most))
                for rank in np.unique(np.linspace(0, count - 1, most).astype(int)) if count else ():
                    row, col = divmod(int(busiest_first[rank]), tiles.columns)
                    left, top = col * tiles.tile_width, row * tiles.tile_height
                    sides = min(tiles.tile_width, page.size[0] - left), min(tiles.tile_height, page.size[1] - top)
                    yield level, page.left + left, page.top + top, *sides

    def close(self) -> None:
        """Close the file as soon as the reads of other threads have ended. A later read opens it again."""
        self._file = None

    def _check(self, tiles: TiledLevel, row: int, col: int) -> None:
        file = self._file
        if file is None:
            self._file = file = self._same.opened()
        for part in tiles.parts(row, col):
            stored = _read(tiles.form, self._same, file, part)
            try:
                tiles.form.check(stored)
            except ValueError as error:
                raise ValueError(f"tile at row {row}, column {col}: {error}") from error


def _read(form: TileForm, same: WatchedFile, file: OpenFile, part: tuple[int, int]) -> bytes:
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
    decode = getattr(imagecodecs, f"{DECODERS[compression]}_decode")
    return lambda stored, whole: decode(stored, out=whole + 1)  # one more than fits: too much is noticed, and takes no memory
