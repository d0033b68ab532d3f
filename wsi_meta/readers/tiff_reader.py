"""Pixels from the tiles of a TIFF, each read and decoded here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.files.same_file import OpenFile, WatchedFile
from wsi_meta.readers.reader import before
from wsi_meta.readers.tile_reader import Tile, TileReader
from wsi_meta.stored_tiles.tile_form import TiledLevel, read_part
from wsi_meta.tiffs.sparse_tiles import LeftOut, lacks_tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TiffReader"]


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
        planes = [level.form.decode(read_part(level.form, self._same, source, part)) for part in level.parts(*tile[1:])]
        pixels = planes[0] if level.planes == 1 else np.concatenate(planes, axis=2)
        if pixels.shape[2] == 3:
            return pixels
        return before(self.background, pixels[..., :3], pixels[..., 3:], multiplied=level.form.multiplied)
