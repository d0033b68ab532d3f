"""Pixels straight from the JPEG tiles of a plain TIFF, each decoded once, by libjpeg-turbo in its strict mode."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.slides.jpeg_tiff import NotPlainError, TiledLevel, find_levels
from wsi_meta.slides.openslide_reader import OpenSlideReader, undecodable
from wsi_meta.slides.tile_cache import TileCache

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DirectReader"]

SAME_GREY_LEVELS = 2
"""Decoders may round differently by this much."""
SAME_SHARE = 0.999
"""Share of the values of a tile that must agree with OpenSlide's."""
WHOLE_PX = 1 / 512
"""A position within this of a whole pixel counts as whole: OpenSlide composes with Cairo, which knows 1/256 of a pixel."""

Tile = tuple[int, int, int]
"""Level, row and column of a stored tile."""


class DirectReader:
    """A plain TIFF of JPEG tiles. Threads may share it, and share the tiles that they decode.

    Reads through one descriptor with explicit positions, so that threads and processes do not change each other's position.

    Parameters
    ----------
    judge : the same file, opened with OpenSlide, which says what its levels are and checks a tile of each
    cache : for the decoded tiles

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
        self._downsamples = judge.level_downsamples
        self._levels = find_levels(self.path, str(judge.properties.get("openslide.vendor")), judge.level_dimensions)
        self._cache = cache or TileCache()
        self._file: _Descriptor | None = None
        for level in range(len(self._levels)):
            self._check(level, judge)
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
            self._file = file = _Descriptor(self.path)
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
        stored = file.read(int(level.offsets[number]), int(level.lengths[number]))
        if stored[:2] != b"\xff\xd8":
            raise ValueError("a tile that is no JPEG")
        # strict: libjpeg only warns of too many or too few bytes, but the pixels that it then returns are not the slide's
        pixels = np.asarray(decode_jpeg(b"".join((level.head, memoryview(stored)[2:])), "RGB", strict=True))
        if pixels.shape != (level.tile_height, level.tile_width, 3):
            raise ValueError(f"a tile of {pixels.shape[1]} x {pixels.shape[0]} px")
        return pixels

    def _check(self, level: int, judge: OpenSlideReader) -> None:
        """Compare the level's busiest tile with OpenSlide's pixels: a wrong guess at its colours would show there."""
        stored, (level_width, level_height) = self._levels[level], judge.level_dimensions[level]
        tops, lefts = np.arange(0, level_height, stored.tile_height), np.arange(0, level_width, stored.tile_width)
        lengths = stored.lengths.reshape(-1, stored.columns)[: len(tops), : len(lefts)]
        whole = _whole(tops, self._downsamples[level])[:, None] & _whole(lefts, self._downsamples[level])
        row, col = divmod(int(np.where(whole, lengths, -1).argmax()), len(lefts))
        left, top = int(lefts[col]), int(tops[row])
        shape = (min(stored.tile_height, level_height - top), min(stored.tile_width, level_width - left), 3)
        ours, theirs = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
        failed = []
        for reader, pixels in ((self, ours), (judge, theirs)):
            try:
                reader.read_into(pixels, level, left, top)
            except SlideReadError as error:
                failed.append(error)
        if len(failed) == 1:
            raise NotPlainError(f"a tile that one decoder reads and the other does not: {failed[0]}")
        if not failed and (np.abs(ours.astype(np.int16) - theirs) <= SAME_GREY_LEVELS).mean() < SAME_SHARE:
            raise NotPlainError(f"tiles of level {level} decode to other pixels than OpenSlide's")


def _whole(positions: NDArray[np.int64], downsample: float) -> NDArray[np.bool_]:
    """Return from which positions OpenSlide reads stored pixels: those that level 0 has. It blends neighbours at others."""
    return np.asarray(np.abs(np.round(positions * downsample) / downsample - positions) < WHOLE_PX)


class _Descriptor:
    """A file open for reading at given positions; closed when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.number, length, offset)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def _tiles(stored: TiledLevel, level: int, left: int, top: int, width: int, height: int) -> Iterator[Tile]:
    """Return the tiles that a region touches, row by row."""
    rows = range(top // stored.tile_height, -(-(top + height) // stored.tile_height))
    cols = range(left // stored.tile_width, -(-(left + width) // stored.tile_width))
    return ((level, row, col) for row, col in product(rows, cols))
