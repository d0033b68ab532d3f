"""A slide as tiles of every size: those of the file where a level is shown as it is, else averages of the next finer ones."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.readers.reader import UnreadableRegionError
from wsi_meta.readers.tile_cache import TileCache
from wsi_meta.slides.resampling import average_area
from wsi_meta.slides.slide import Slide

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KeptTiles", "SlideTiles", "TileLevel"]

COMMON_TILE_PX, SMALLEST_TILE_PX, LARGEST_TILE_PX = 512, 128, 2048
"""Side of a tile that is made here, and the limits of a stored one's for it to be a tile here: a file may store strips."""
SAME_PLACE_PX = 0.25
"""A stored level is shown as it is when its far end lies this near to where it should."""
JPEG_QUALITY = 85
PIXEL_BYTES, JPEG_BYTES = 128 << 20, 192 << 20
"""Bytes of tiles that are kept as pixels, for averages of them, and as JPEG."""
GAP, STRIPE, STRIPE_PX = 206, 176, 16
"""Grey levels of what cannot be read, and how wide its stripes are."""


@dataclass(frozen=True)
class TileLevel:
    """One size at which a slide is shown."""

    downsample: int
    """Level-0 pixels along a side of its pixel: a power of two."""
    width: int
    height: int
    tile_width: int
    tile_height: int
    stored: int | None
    """Level of the file that is shown as it is; None where tiles are averages."""

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return ceil(self.width / self.tile_width)

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return ceil(self.height / self.tile_height)

    def window(self, col: int, row: int) -> tuple[int, int, int, int]:
        """Return x, y, width and height of a tile, pixels of this level; those at the far edges are smaller.

        Raises
        ------
        IndexError
            when there is no such tile.
        """
        if not (0 <= col < self.columns and 0 <= row < self.rows):
            raise IndexError(f"tile {col}, {row} of {self.columns} x {self.rows}")
        x, y = col * self.tile_width, row * self.tile_height
        return x, y, min(self.tile_width, self.width - x), min(self.tile_height, self.height - y)


class _DamagedError(Exception):
    """Carries a tile that could not be read wholly past what keeps tiles: a lost answer of a server may come the next time."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        super().__init__()
        self.pixels = pixels


class KeptTiles:
    """Tiles of any number of slides that are kept in memory, up to a number of bytes: as pixels, and as JPEG."""

    def __init__(self, pixel_bytes: int = PIXEL_BYTES, jpeg_bytes: int = JPEG_BYTES) -> None:
        self.pixels, self.jpegs = TileCache(pixel_bytes), TileCache(jpeg_bytes)


class SlideTiles:
    """The tiles of an open slide; several threads may ask at the same time. A tile that two ask for is made once.

    Parameters
    ----------
    slide : the slide; it is closed with the tiles
    kept : where its tiles are kept

    Attributes
    ----------
    levels : coarsest first; each is half as coarse as the one before, the last is level 0
    mark : what a tile depends on, as a short text: the slide's content
    """

    def __init__(self, slide: Slide, kept: KeptTiles) -> None:
        self.slide, self._kept = slide, kept
        self.mark = slide.fingerprint()[:16]
        self.levels = _plan(slide)
        self._unread: set[tuple[int, int, int]] = set()

    @property
    def unread(self) -> bool:
        """Whether a tile that was sent shows stripes for pixels that could not be read."""
        return bool(self._unread)

    def jpeg(self, level: int, col: int, row: int) -> tuple[bytes, bool]:
        """Return a tile as JPEG, and whether a part of it could not be read: that is tried again by the next call.

        Parameters
        ----------
        level : index into :attr:`levels`

        Raises
        ------
        IndexError
            when there is no such tile.
        SlideReplacedError
        """
        self._level(level).window(col, row)  # before room is kept for it
        key = self.mark, level, col, row
        try:
            sent = self._kept.jpegs.get(key, lambda: _encode(self._whole(level, col, row))).tobytes()
        except _DamagedError as made:
            self._unread.add(key[1:])
            return _encode(made.pixels).tobytes(), True
        self._unread.discard(key[1:])
        return sent, False

    def pixels(self, level: int, col: int, row: int) -> tuple[NDArray[np.uint8], bool]:
        """Return a tile, uint8 (height, width, 3), and whether a part of it could not be read, which is striped grey.

        Parameters and errors are those of :meth:`jpeg`.
        """
        try:
            return self._whole(level, col, row), False
        except _DamagedError as made:
            return made.pixels, True

    def close(self) -> None:
        """Close the slide; a later tile opens it again."""
        self.slide.close()

    def _whole(self, level: int, col: int, row: int) -> NDArray[np.uint8]:
        """Return a tile that could be read; _DamagedError holds any other."""
        shown = self._level(level)
        window = shown.window(col, row)
        make = self._average if shown.stored is None else self._read
        return self._kept.pixels.get((self.mark, level, col, row), lambda: make(level, window))

    def _level(self, level: int) -> TileLevel:
        if not 0 <= level < len(self.levels):
            raise IndexError(f"level {level} of {len(self.levels)}")
        return self.levels[level]

    def _read(self, level: int, window: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        shown, (x, y, width, height) = self.levels[level], window
        corner = x * shown.downsample, y * shown.downsample
        try:
            return self.slide.read_region(*corner, width, height, level=shown.stored or 0)
        except UnreadableRegionError as error:
            raise _DamagedError(_stripes(height, width)) from error

    def _average(self, level: int, window: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """Return a window of a level as averages of 2 x 2 pixels of the next finer one."""
        x, y, width, height = window
        finer, damaged = self._gather(level + 1, (2 * x, 2 * y, 2 * width, 2 * height))
        averages = average_area(finer, 2.0, (height, width))
        if damaged:
            raise _DamagedError(averages)
        return averages

    def _gather(self, level: int, window: tuple[int, int, int, int]) -> tuple[NDArray[np.uint8], bool]:
        """Return a window of a level, put together from its tiles, and whether one is damaged; an odd last pixel repeats."""
        shown, (left, top, width, height) = self.levels[level], window
        inside = min(width, shown.width - left), min(height, shown.height - top)
        region, any_damaged = np.empty((inside[1], inside[0], 3), np.uint8), False
        for row in range(top // shown.tile_height, ceil((top + inside[1]) / shown.tile_height)):
            for col in range(left // shown.tile_width, ceil((left + inside[0]) / shown.tile_width)):
                x, y = col * shown.tile_width - left, row * shown.tile_height - top
                target = region[max(0, y) : y + shown.tile_height, max(0, x) : x + shown.tile_width]
                tile, damaged = self.pixels(level, col, row)
                source, any_damaged = tile[max(0, -y) :, max(0, -x) :], any_damaged or damaged
                target[:] = source[: target.shape[0], : target.shape[1]]
        return np.pad(region, ((0, height - inside[1]), (0, width - inside[0]), (0, 0)), mode="edge"), any_damaged


def _plan(slide: Slide) -> tuple[TileLevel, ...]:
    """Return the levels to show, coarsest first: level 0, then halves, down to one tile."""
    levels: list[TileLevel] = []
    downsample = 1
    while not levels or max(levels[-1].columns, levels[-1].rows) > 1:
        width, height = ceil(slide.width / downsample), ceil(slide.height / downsample)
        stored = _stored_level(slide, downsample, max(width, height))
        tile = (slide.level_tiles[stored] if stored is not None else None) or (COMMON_TILE_PX, COMMON_TILE_PX)
        if min(tile) < SMALLEST_TILE_PX or max(tile) > LARGEST_TILE_PX:
            tile = (COMMON_TILE_PX, COMMON_TILE_PX)
        levels.append(TileLevel(downsample, width, height, *tile, stored))
        downsample *= 2
    return tuple(reversed(levels))


def _stored_level(slide: Slide, downsample: int, side: int) -> int | None:
    """Return the level of the file that has a downsample, so nearly that its far end lies where it should."""
    for level, factor in enumerate(slide.level_downsamples):
        if level not in slide.levels_left_out and abs(downsample / factor - 1) * side < SAME_PLACE_PX:
            return level
    return None


def _encode(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from simplejpeg import encode_jpeg

    encoded: Any = encode_jpeg(np.ascontiguousarray(pixels), quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420")
    return np.frombuffer(encoded, np.uint8)


def _stripes(height: int, width: int) -> NDArray[np.uint8]:
    """Return stripes that fall to the right: those over cells without a value rise."""
    rows, cols = np.ogrid[:height, :width]
    grey = np.where((rows - cols) // STRIPE_PX % 2, STRIPE, GAP).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
