"""Decoded tiles, shared by the reads that need them, each decoded once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TileCache"]

CASUAL_BYTES = 16 << 20
"""Bytes for tiles when it is not known what will be read: a row of an overview, the neighbourhood of a block."""
EXPECTED_BYTES = 256 << 20
"""Bytes for tiles that are known to be needed again. A scan keeps the strip of tiles that two rows of blocks share: 75 MiB
where a full Camelyon slide is tissue all over, this much only for a wide slide without a level near the model's mpp."""


class TileCache:
    """Tiles by key. Threads may ask at the same time: the second that asks for a tile waits until the first has decoded it.

    Attributes
    ----------
    decoded : tiles decoded so far
    held_bytes : bytes of the decoded tiles that are kept now
    """

    def __init__(self, casual_bytes: int = CASUAL_BYTES, expected_bytes: int = EXPECTED_BYTES) -> None:
        self.decoded = self.held_bytes = 0
        self._casual_bytes, self._expected_bytes = casual_bytes, expected_bytes
        self._tiles: dict[Hashable, Future[NDArray[np.uint8]]] = {}  # least recently used first
        self._uses: dict[Hashable, int] | None = None
        self._lock = threading.Lock()

    def expect(self, uses: Mapping[Hashable, int] | None) -> None:
        """Say which tiles will be asked for more than once, and how often: they are kept until then, others not.

        None ends that: the most recently used tiles are kept again.
        """
        with self._lock:
            self._uses = None if uses is None else dict(uses)
            self._drop_all()

    def get(self, key: Hashable, decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Return a tile, from `decode` when it is not kept. An error of `decode` is raised; the next call tries again."""
        with self._lock:
            tile = self._tiles.pop(key, None)
            ours = tile is None
            self._tiles[key] = tile = tile or Future()
        if ours:
            self._fill(key, tile, decode)
        pixels = tile.result()
        self._note_use(key, tile)
        return pixels

    def holds(self, key: Hashable) -> bool:
        """Tell whether a tile is kept, or being decoded."""
        return key in self._tiles

    def clear(self) -> None:
        """Drop every tile. What is expected does not change."""
        with self._lock:
            self._drop_all()

    def _fill(self, key: Hashable, tile: Future[NDArray[np.uint8]], decode: Callable[[], NDArray[np.uint8]]) -> None:
        try:
            pixels = decode()
        except BaseException as error:
            with self._lock:
                if self._tiles.get(key) is tile:
                    del self._tiles[key]
            tile.set_exception(error)
            return
        with self._lock:
            self.decoded += 1
            if self._tiles.get(key) is tile:
                self.held_bytes += pixels.nbytes
            tile.set_result(pixels)
            self._make_room(key)

    def _note_use(self, key: Hashable, tile: Future[NDArray[np.uint8]]) -> None:
        """Count a use of a tile, and drop the tile after the last one that is expected."""
        with self._lock:
            if self._uses is None:
                return
            self._uses[key] = left = self._uses.get(key, 1) - 1
            if left <= 0:
                del self._uses[key]
                if self._tiles.get(key) is tile:
                    self._drop(key)

    def _make_room(self, newest: Hashable) -> None:
        """Drop tiles until the rest fits: in a scan the newest, because the oldest are needed soonest; otherwise the oldest."""
        if self._uses is not None:
            if self.held_bytes > self._expected_bytes and newest in self._tiles:
                self._drop(newest)
            return
        for key in [key for key, tile in self._tiles.items() if tile.done()] if self.held_bytes > self._casual_bytes else ():
            if self.held_bytes <= self._casual_bytes:
                return
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        self.held_bytes -= self._tiles.pop(key).result().nbytes

    def _drop_all(self) -> None:
        self._tiles.clear()  # threads that wait for a tile that is being decoded still get it
        self.held_bytes = 0
