"""Which coarser level of a mask may be read in the place of its first one: pixels that were picked there, not averages."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.masks.label_images import LabelImage, distinct_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LEVEL_OFF", "believed_level", "factor_of"]

logger = logging.getLogger(__name__)

LEVEL_OFF = 0.01
"""A level is also read where it is coarser than asked by up to this share, because the sides of levels are rounded."""

MOST_TILES = 128
"""Tiles of the first level with which another one is compared, so that a mask of a whole slide takes about a second."""
MOST_READ = 9 * MOST_TILES
"""Tiles or strips that are read for it, with those around them."""
MOST_PIXELS = 1 << 28
"""Pixels that these may have together."""
LARGEST_READ = 1 << 24
"""Pixels of the largest tile or strip that is read for it; a mask that is stored as one strip may be larger than memory."""
MOST_DEVIATIONS, FEWEST_EDGES = 3.0, 400
"""Where the pixels of a level were not all picked at the same place: how far it may be from what tosses would bring, one for
each of its pixels on an edge. Fewer such pixels do not tell tosses from averages that are rounded."""


def factor_of(image: LabelImage, level: int) -> float:
    """Return the pixels of the first level along a side of a pixel of a level."""
    factor = image.shape()[0] / image.shape(level)[0]
    return round(factor) if abs(factor / round(factor) - 1) <= LEVEL_OFF else factor


def believed_level(path: Path, image: LabelImage, levels: list[int], seen: set[int]) -> int:
    """Return the coarsest of some levels that does not contradict the first one; warn of those that do.

    What was read of the first one adds its values to `seen`.
    """
    found = next((level for level in levels[:0:-1] if _agrees(image, level, seen)), levels[0])
    if passed := [str(level) for level in levels if level > found]:
        told = f"level {passed[0]} says" if len(passed) == 1 else f"levels {passed[0]} to {passed[-1]} say"
        logger.warning("%s: %s something else than level 0, as after averaging; level %d is read instead", path, told, found)
    return found


def _telling_tiles(image: LabelImage, around: float) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of tiles of the first level, all or some that are spread evenly: those of more bytes than others.

    In a compressed mask these hold edges, and so whatever is drawn. They are fewer where large or many tiles must be read for
    each with the pixels `around`, and none where one takes too much memory.
    """
    height, width = image.levels[0].chunks[-2:] if image.samples.planes else image.levels[0].chunks[:2]
    down, across = (-(-whole // side) for whole, side in zip(image.shape(), (height, width), strict=True))
    stored = np.array(image.stored[: down * across])
    held = np.flatnonzero(stored > stored[stored > 0].min(initial=stored.max(initial=0)))
    told = held if len(held) else np.flatnonzero(stored)  # uncompressed
    read = min(down, 1 + 2 * math.ceil(around / height)) * min(across, 1 + 2 * math.ceil(around / width))
    most = min(MOST_TILES, MOST_READ // read, MOST_PIXELS // (read * height * width))
    for tile in told[:: len(told) // max(1, most) + 1].tolist() if height * width <= LARGEST_READ else ():
        top, left = tile // across * height, tile % across * width
        yield slice(top, top + height), slice(left, left + width)


def _agrees(image: LabelImage, level: int, seen: set[int]) -> bool:
    """Tell whether a level's pixels may be some of the first level's, as far as the telling tiles of that show."""
    picking = _Picking(factor_of(image, level))
    for place in _telling_tiles(image, picking.factor):
        both = _read_both(image, level, place)
        seen |= both.labels
        if _contradicts(both):
            return False
        picking.look(both)
    return picking.holds


@dataclass(frozen=True, eq=False)
class _Both:
    """A piece of a level, and of the first one what it was made from."""

    fine: NDArray[Any]
    coarse: NDArray[Any]
    starts: tuple[NDArray[np.intp], NDArray[np.intp]]
    """Where in `fine` the rows and columns of each pixel of `coarse` begin."""
    inner: tuple[slice, slice]
    """Of `coarse`, without the pixels that are there for the sake of their neighbours."""

    @cached_property
    def labels(self) -> set[int]:
        """The values that `fine` holds."""
        return distinct_labels(self.fine)

    def blocks(self, reduce: np.ufunc) -> NDArray[Any]:
        """Return what the values of the first level come to in each pixel of the coarse one."""
        return np.asarray(reduce.reduceat(reduce.reduceat(self.fine, self.starts[0], 0), self.starts[1], 1))

    def share_of(self, label: int) -> NDArray[Any]:
        """Return the share of a value in each pixel of the coarse level."""
        held = np.add.reduceat(np.add.reduceat(self.fine == label, self.starts[0], 0, np.int64), self.starts[1], 1)
        height, width = (np.diff(starts, append=side) for starts, side in zip(self.starts, self.fine.shape, strict=True))
        return np.asarray(held / np.outer(height, width))


class _Picking:
    """Tells a level whose pixels were picked among the first level's from averages, maxima and the like of these.

    Either all pixels were picked at the same place of the square that they stand for. Or the level has as much of each value,
    and on edges it is the commoner one no more often than chance brings.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self._places = np.ones((int(factor),) * 2, bool) if factor == int(factor) else np.zeros((1, 1), bool)
        self._edges = Counter[int]()
        self._surplus: defaultdict[int, float] = defaultdict(float)
        self._common: defaultdict[int, float] = defaultdict(float)

    def look(self, both: _Both) -> None:
        """Take a piece into account."""
        for value in both.labels:
            share = both.share_of(value)[both.inner]
            found, edges = both.coarse[both.inner] == value, (share > 0) & (share < 1)
            self._edges[value] += int(edges.sum())
            self._surplus[value] += float((found - share).sum())
            self._common[value] += float(((found == (share >= 0.5)) - np.maximum(share, 1 - share))[edges].sum())
        side = len(self._places)
        rows, cols = (length // side for length in both.fine.shape)
        squares = both.fine[: rows * side, : cols * side].reshape(rows, side, cols, side)
        self._places &= (squares == both.coarse[:rows, None, :cols, None]).all((0, 2))

    @property
    def holds(self) -> bool:
        """Whether the pixels that were looked at were picked."""
        return bool(self._places.any()) or all(self._is_balanced(value) for value in self._edges)

    def _is_balanced(self, value: int) -> bool:
        edges = self._edges[value]
        most = MOST_DEVIATIONS * math.sqrt(edges) / 2
        return not edges or (edges >= FEWEST_EDGES and abs(self._surplus[value]) <= most and self._common[value] <= most)


def _read_both(image: LabelImage, level: int, place: tuple[slice, slice]) -> _Both:
    """Read the pixels of a level at a place of the first one, with those around them, and the first level's there."""
    factor = factor_of(image, level)
    inner, outer, edges = [], [], []
    for part, whole, stored in zip(place, image.shape(), image.shape(level), strict=True):
        last = min(stored, math.ceil(whole / factor))
        start, stop = int(part.start / factor), min(last, math.ceil(part.stop / factor))
        first, after = max(0, start - 1), min(last, stop + 1)
        inner.append(slice(start - first, stop - first))
        outer.append(slice(first, after))
        edges.append(np.minimum(np.round(np.arange(first, after + 1) * factor).astype(int), whole))
    (top, *_, bottom), (left, *_, right) = edges
    fine = image.read(top, bottom, 0, slice(left, right))
    coarse = image.read(outer[0].start, outer[0].stop, level, outer[1])
    starts = edges[0][:-1] - top, edges[1][:-1] - left
    return _Both(fine, coarse, starts, (inner[0], inner[1]))


def _contradicts(both: _Both) -> bool:
    """Tell whether a pixel of a level has another value than all of the first level's pixels there and in the pixels round it.

    Whichever of these a converter takes, edges agree.
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    least, most = both.blocks(np.minimum), both.blocks(np.maximum)
    beyond = (both.coarse < minimum_filter(least, 3)) | (both.coarse > maximum_filter(most, 3))
    return bool(beyond[both.inner].any()) or not np.isin(both.coarse[both.inner], both.fine).all()
