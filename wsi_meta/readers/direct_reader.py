"""Pixels straight from the JPEG tiles of a plain TIFF, each decoded once, by libjpeg-turbo in its strict mode."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.files.slide_file import SameFile, SlideReplacedError
from wsi_meta.readers.jpeg_tiff import NotPlainError, TiledLevel, declared_size, find_levels
from wsi_meta.readers.openslide_reader import OpenSlideReader
from wsi_meta.readers.reader import undecodable
from wsi_meta.readers.tile_cache import TileCache

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DecodersDisagreeError", "DirectReader"]

SAME_GREY_LEVELS = 2
"""Decoders may round differently by this much."""
SAME_SHARE = 0.999
"""Share of the values of a tile that must agree with OpenSlide's."""
JUDGED_TILES = 9
"""Tiles of a level that are compared at most: after the first one only where it could not decide, because it is damaged."""
FEW_TILES = 3
"""A level of fewer tiles that can be compared is trusted as the other levels are."""
MOST_BYTES_PER_PX, HEADER_BYTES = 8, 1 << 20
"""A longer tile is none: the JPEG of a pixel has fewer than 3 bytes, and the header holds a colour profile at most."""
WHOLE_PX = 1 / 512
"""A position within this of a whole pixel counts as whole: OpenSlide composes with Cairo, which knows 1/256 of a pixel."""

PLAIN = "a plain TIFF of JPEG tiles"

Tile = tuple[int, int, int]
"""Level, row and column of a stored tile."""


class DecodersDisagreeError(NotPlainError):
    """A plain TIFF, but of most tiles that were compared one decoder says that they are damaged, and the other reads them."""


class DirectReader:
    """A plain TIFF of JPEG tiles. Threads may share it, and share the tiles that they decode.

    Reads through one descriptor with explicit positions, so that threads and processes do not change each other's position.

    Parameters
    ----------
    judge : the same file, opened with OpenSlide, which says what its levels are and checks a tile of each
    cache : for the decoded tiles

    Attributes
    ----------
    reason : why the file is read directly, and what was found damaged on the way

    Raises
    ------
    NotPlainError
        when the file is not a plain one, or does not decode to OpenSlide's pixels.
    """

    name = "direct"

    def __init__(self, judge: OpenSlideReader, cache: TileCache | None = None) -> None:
        if find_spec("simplejpeg") is None:
            raise NotPlainError("simplejpeg is not installed")
        self.path, self.background = judge.path, judge.background
        self._downsamples, self._same = judge.level_downsamples, judge.file
        vendor, usable = str(judge.properties.get("openslide.vendor")), judge.scales.usable
        self._levels = find_levels(self.path, vendor, judge.level_dimensions, usable)
        self._cache = cache or TileCache()
        self._file: _Descriptor | None = None
        self.reason = _conclude([self._compare(level, judge) for level in usable])
        self.close()

    @property
    def tiles_decoded(self) -> int | None:
        """Tiles decoded so far; a tile that several reads share counts once."""
        return self._cache.decoded

    def read_into(self, region: NDArray[np.uint8], level: int, left: int, top: int) -> None:
        """Fill an array (height, width, 3) with the pixels at (left, top) of a level; all of it lies in the level.

        Raises
        ------
        SlideReadError
            when a tile cannot be decoded. Other regions can still be read.
        """
        try:
            self._paste_tiles(region, level, left, top, self._open())
        except SlideReplacedError:
            raise
        except (ValueError, OSError) as error:
            corner = (round(left * self._downsamples[level]), round(top * self._downsamples[level]))
            raise undecodable(self.path, corner, level, error) from error

    def expect(self, regions: Iterable[tuple[int, int, int, int, int]]) -> int:
        """Say what will be read, as (level, left, top, width, height), so that shared tiles are kept until their last use.

        Returns
        -------
        Number of stored tiles that those regions need, each counted once.
        """
        uses: Counter[Tile] = Counter()
        for level, *rectangle in regions:
            uses.update(_tiles(self._levels[level], level, *rectangle))
        self._cache.expect({tile: count for tile, count in uses.items() if count > 1})
        return sum(bool(self._levels[level].lengths[self._number(level, row, col)]) for level, row, col in uses)

    def is_empty(self, level: int, left: int, top: int, width: int, height: int) -> bool:
        """Tell whether the file left out all tiles of a region: it has the background colour."""
        stored = self._levels[level]
        rows = slice(top // stored.tile_height, -(-(top + height) // stored.tile_height))
        cols = slice(left // stored.tile_width, -(-(left + width) // stored.tile_width))
        return not stored.lengths.reshape(-1, stored.columns)[rows, cols].any()

    def close(self) -> None:
        """Drop the tiles, and close the file as soon as the reads of other threads have ended. A later read opens it again."""
        self._file = None
        self._cache.clear()

    def _paste_tiles(self, region: NDArray[np.uint8], level: int, left: int, top: int, file: _Descriptor) -> None:
        stored = self._levels[level]
        height, width = region.shape[:2]
        for tile in _tiles(stored, level, left, top, width, height):
            y, x = tile[1] * stored.tile_height - top, tile[2] * stored.tile_width - left
            target = region[max(0, y) : y + stored.tile_height, max(0, x) : x + stored.tile_width]
            if (pixels := self._tile(tile, file)) is None:
                target[:] = self.background
            else:
                target[:] = pixels[max(0, -y) : height - y, max(0, -x) : width - x]

    def _open(self) -> _Descriptor:
        file = self._file
        if file is None:
            self._file = file = _Descriptor(self._same)
        return file

    def _number(self, level: int, row: int, col: int) -> int:
        return row * self._levels[level].columns + col

    def _tile(self, tile: Tile, file: _Descriptor) -> NDArray[np.uint8] | None:
        """Return a tile's pixels, or None where the file left it out; ValueError when it is damaged."""
        if self._levels[tile[0]].lengths[self._number(*tile)] == 0:
            return None
        return self._cache.get(tile, lambda: self._decode(tile, file))

    def _decode(self, tile: Tile, file: _Descriptor) -> NDArray[np.uint8]:
        from simplejpeg import decode_jpeg

        level, number = self._levels[tile[0]], self._number(*tile)
        offset, length = int(level.offsets[number]), int(level.lengths[number])
        if not 0 <= length <= MOST_BYTES_PER_PX * level.tile_width * level.tile_height + HEADER_BYTES:
            raise ValueError(f"a tile of {length:,} bytes")
        if not 0 <= offset <= self._same.size - length:
            raise ValueError(f"a tile of {length:,} bytes at {offset:,} in a file of {self._same.size:,}")
        stored = file.read(offset, length)
        if stored[:2] != b"\xff\xd8":
            raise ValueError("a tile that is no JPEG")
        jpeg = b"".join((level.head, memoryview(stored)[2:]))
        if (size := declared_size(jpeg)) != (level.tile_width, level.tile_height):  # before memory is taken for its pixels
            said = f"{size[0]} x {size[1]} px" if size else "nothing of its size"
            raise ValueError(f"a tile whose own header says {said}; expected {level.tile_width} x {level.tile_height} px")
        # strict: libjpeg only warns of too many or too few bytes, but the pixels that it then returns are not the slide's
        pixels = np.asarray(decode_jpeg(jpeg, "RGB", strict=True))
        if pixels.shape != (level.tile_height, level.tile_width, 3):
            raise ValueError(f"a tile of {pixels.shape[1]} x {pixels.shape[0]} px")
        return pixels

    def _compare(self, level: int, judge: OpenSlideReader) -> _Verdict:
        """Compare tiles of a level with OpenSlide's pixels: a wrong guess at its colours would show there.

        The busiest tile decides, unless it is damaged: then others do, and more of them must be the same than not.
        """
        verdict = _Verdict(level)
        for row, col in self._judged_tiles(level, judge):
            verdict.add(self._compare_tile(level, row, col, judge))
            if verdict.same > len(verdict.by_one):
                break
        return verdict

    def _judged_tiles(self, level: int, judge: OpenSlideReader) -> list[tuple[int, int]]:
        """Return row and column of the tiles to compare: the busiest one, then some of the busier half."""
        stored, (level_width, level_height) = self._levels[level], judge.level_dimensions[level]
        tops, lefts = np.arange(0, level_height, stored.tile_height), np.arange(0, level_width, stored.tile_width)
        lengths = stored.lengths.reshape(-1, stored.columns)[: len(tops), : len(lefts)]
        whole = _whole(tops, self._downsamples[level])[:, None] & _whole(lefts, self._downsamples[level])
        busiest_first = np.argsort(np.where(whole, -lengths, 1), axis=None, kind="stable")
        count = int((whole & (lengths > 0)).sum())
        ranks = np.unique(np.linspace(0, max(0, max(count // 2, min(count, JUDGED_TILES)) - 1), JUDGED_TILES).astype(int))
        rows, cols = np.unravel_index(busiest_first[ranks], lengths.shape)
        return list(zip(rows.tolist(), cols.tolist(), strict=True))

    def _compare_tile(self, level: int, row: int, col: int, judge: OpenSlideReader) -> list[SlideReadError]:
        """Return the errors of the decoders that do not read a tile; NotPlainError when both do, and differ."""
        stored, (level_width, level_height) = self._levels[level], judge.level_dimensions[level]
        left, top = col * stored.tile_width, row * stored.tile_height
        shape = (min(stored.tile_height, level_height - top), min(stored.tile_width, level_width - left), 3)
        ours, theirs = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
        failed = []
        for reader, pixels in ((self, ours), (judge, theirs)):
            try:
                reader.read_into(pixels, level, left, top)
            except SlideReplacedError:
                raise
            except SlideReadError as error:
                failed.append(error)
        if not failed and (np.abs(ours.astype(np.int16) - theirs) <= SAME_GREY_LEVELS).mean() < SAME_SHARE:
            raise NotPlainError(f"tiles of level {level} decode to other pixels than OpenSlide's")
        return failed


@dataclass
class _Verdict:
    """What the comparison of a level's tiles has shown so far."""

    level: int
    same: int = 0
    by_none: int = 0
    """Tiles that neither decoder reads."""
    by_one: list[SlideReadError] = field(default_factory=list)
    """Tiles that only one decoder reads: damaged, or written so that the other takes them for damaged."""

    def add(self, failed: list[SlideReadError]) -> None:
        """Count a tile that was compared."""
        if len(failed) == 1:
            self.by_one += failed
        else:
            self.same, self.by_none = self.same + (not failed), self.by_none + bool(failed)


def _conclude(verdicts: list[_Verdict]) -> str:
    """Return the reason to read directly; DecodersDisagreeError where too much is read by one decoder only."""
    any_same = any(verdict.same for verdict in verdicts)
    for verdict in verdicts:
        few = verdict.same + len(verdict.by_one) < FEW_TILES
        if len(verdict.by_one) > verdict.same and not (few and any_same):
            raise DecodersDisagreeError(f"a tile that one decoder reads and the other does not: {verdict.by_one[0]}")
    damaged = sum(verdict.by_none + len(verdict.by_one) for verdict in verdicts)
    compared = damaged + sum(verdict.same for verdict in verdicts)
    return PLAIN + (f"; {damaged} of {compared} tiles that were compared are damaged" if damaged else "")


def _whole(positions: NDArray[np.int64], downsample: float) -> NDArray[np.bool_]:
    """Return from which positions OpenSlide reads stored pixels: those that level 0 has. It blends neighbours at others."""
    return np.asarray(np.abs(np.round(positions * downsample) / downsample - positions) < WHOLE_PX)


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

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def _tiles(stored: TiledLevel, level: int, left: int, top: int, width: int, height: int) -> Iterator[Tile]:
    """Return the tiles that a region touches, row by row."""
    rows = range(top // stored.tile_height, -(-(top + height) // stored.tile_height))
    cols = range(left // stored.tile_width, -(-(left + width) // stored.tile_width))
    return ((level, row, col) for row, col in product(rows, cols))
