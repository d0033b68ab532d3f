"""Regions put together from stored tiles, each decoded once, whatever they are stored as."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.files.same_file import SlideReplacedError
from wsi_meta.readers.reader import Reader, undecodable
from wsi_meta.readers.tile_cache import TileCache
from wsi_meta.tiffs.sparse_tiles import LeftOut, TileGrid

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Tile", "TileReader"]

Tile = tuple[int, int, int]
"""Level, row and column of a stored tile."""


class TileReader(Reader):
    """Tiles of any kind. Threads may share it, and share the tiles that they decode.

    Parameters
    ----------
    path : of the slide, for messages
    levels : the tiles of each level that may be read
    downsamples : factor of every level relative to level 0
    background : RGB of tiles that the file left out
    """

    def __init__(
        self, path: object, levels: Mapping[int, TileGrid], downsamples: Sequence[float], background: tuple[int, ...]
    ) -> None:
        self._shown, self._grids, self._downsamples, self.background = path, levels, downsamples, background
        self._cache = TileCache()
        self._left_out: LeftOut | None = None

    @property
    def tiles_decoded(self) -> int | None:
        """Tiles decoded so far; a tile that several reads share counts once."""
        return self._cache.decoded

    def read_into(self, region: NDArray[np.uint8], level: int, left: int, top: int) -> None:
        """Fill an array (height, width, 3) with the pixels at (left, top) of a level; all of it lies in the level.

        Raises
        ------
        UnreadableRegionError
            when a tile cannot be decoded, or was lost. Other regions can still be read.
        SlideReplacedError
        """
        try:
            if self._left_out is not None:
                self._left_out.refuse_lost((level, left, top, region.shape[1], region.shape[0]), self.pixels)
            self._paste_tiles(region, level, left, top)
        except SlideReplacedError:
            raise
        except (ValueError, OSError) as error:
            corner = (round(left * self._downsamples[level]), round(top * self._downsamples[level]))
            told = str(error).removeprefix(f"{self._shown}: ") if isinstance(error, SlideReadError) else error
            raise undecodable(self._shown, corner, level, told) from error

    def pixels(self, level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        """Return the pixels of a region without a thought for tiles that were lost; ValueError or OSError for damage."""
        region = np.empty((height, width, 3), np.uint8)
        self._paste_tiles(region, level, left, top)
        return region

    def expect(self, regions: Iterable[tuple[int, int, int, int, int]]) -> int:
        """Say what will be read, as (level, left, top, width, height), so that shared tiles are kept until their last use.

        Returns
        -------
        Number of stored tiles that those regions need, each counted once.
        """
        uses: Counter[Tile] = Counter()
        for level, *rectangle in regions:
            uses.update(self._tiles(level, *rectangle))
        self._cache.expect({tile: count for tile, count in uses.items() if count > 1})
        return sum(self._is_stored(tile) for tile in uses)

    def is_empty(self, level: int, left: int, top: int, width: int, height: int) -> bool:
        """Tell whether the file left out all tiles of a region as glass: it has the background colour."""
        return self._left_out is not None and self._left_out.is_glass(level, left, top, width, height)

    def close(self) -> None:
        """Drop the tiles."""
        self._cache.clear()

    @abstractmethod
    def _begin(self, tiles: Sequence[Tile]) -> object:
        """Return what tiles are decoded from, which these will be next."""

    @abstractmethod
    def _decode(self, tile: Tile, source: object) -> NDArray[np.uint8]:
        """Return a tile's pixels (tile_height, tile_width, 3); ValueError or OSError when it is damaged."""

    def _paste_tiles(self, region: NDArray[np.uint8], level: int, left: int, top: int) -> None:
        grid = self._grids[level]
        height, width = region.shape[:2]
        tiles = list(self._tiles(level, left, top, width, height))
        source = self._begin(tiles)
        for tile in tiles:
            y, x = tile[1] * grid.tile_height - top, tile[2] * grid.tile_width - left
            target = region[max(0, y) : y + grid.tile_height, max(0, x) : x + grid.tile_width]
            if (pixels := self._tile(tile, source)) is None:
                target[:] = self.background
            else:
                target[:] = pixels[max(0, -y) : height - y, max(0, -x) : width - x]

    def _tile(self, tile: Tile, source: object) -> NDArray[np.uint8] | None:
        """Return a tile's pixels, or None where the file left it out; ValueError when it is damaged."""
        return self._cache.get(tile, lambda: self._decode(tile, source)) if self._is_stored(tile) else None

    def _is_stored(self, tile: Tile) -> bool:
        grid = self._grids[tile[0]]
        return bool(grid.lengths[grid.number(*tile[1:])])

    def _tiles(self, level: int, left: int, top: int, width: int, height: int) -> Iterator[Tile]:
        """Return the tiles that a region touches, row by row."""
        touched = self._grids[level].touched(left, top, width, height)
        return ((level, row, col) for row, col in product(*(range(part.start, part.stop) for part in touched)))
