"""Coarser levels that show something else than finer ones, such as those that a converter left white when it died."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.files.address import Address, SlidePath
from wsi_meta.files.same_file import SlideReplacedError
from wsi_meta.readers.reader import WHITE

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["COMMON_TILE_PX", "BelievedLevels"]

PLACES = 12
"""Places at which a level is compared with the next finer one, each a stored tile of that one."""
CELL_PX = 8
"""Means of squares of this side are compared, pixels of the coarser level: a shift of half a pixel hardly changes them."""
FAR = 40.0
"""Grey levels by which two means are clearly different. Filters, JPEG at any quality and rounded places stay below."""
MOST_FAR = 0.25
"""Share of the squares of a place that may differ: at sharp edges they do where levels are shifted."""
COMMON_TILE_PX, MOST_PX = 256, 1024
"""Side of a place where tiles are not known, and of the largest that is read."""
STEPS = 0.7548776662466927, 0.5698402909980532
"""Steps by which places are spread evenly (the R2 sequence)."""

logger = logging.getLogger("wsi_meta")

Size = tuple[int, int]
Read = Callable[[int, int, int, int, int], "NDArray[np.uint8]"]


class BelievedLevels:
    """The levels of a slide that show what the finer ones show. Each is looked at when it is to be read for an overview.

    Level 0 is believed, and so is what cannot be read, and all of a slide at an address, of which little is fetched. A level is
    strange where two places differ of those that are spread over it, or one and another one beside it. One alone may be a
    damaged tile of the finer level.

    Parameters
    ----------
    path : what messages call the slide
    factors : of the levels that are read, relative to level 0
    sizes : width and height of each level, without padding
    tiles : of each level's stored tiles; None where they are not known
    background : colour of what is transparent; what no level stores is that, or white
    """

    def __init__(
        self,
        path: SlidePath,
        factors: dict[int, float],
        sizes: Sequence[Size],
        tiles: Sequence[Size | None],
        background: tuple[int, ...] = WHITE,
    ) -> None:
        self._path, self._factors, self._sizes, self._tiles = path, factors, sizes, tiles
        self._blank = {background, WHITE}
        self._strange = dict[Size, bool]()
        """Whether a level is, beside a finer one; the finer one is the first of each two."""

    def up_to(self, coarsest: int, read: Read) -> dict[int, float]:
        """Return the factors of the believed levels up to one; warn of others when they are found first.

        Parameters
        ----------
        read : returns the pixels of (level, left, top, width, height), or raises SlideReadError

        Raises
        ------
        SlideReplacedError
        """
        if isinstance(self._path, Address):
            return self._factors
        factors = sorted((factor, level) for level, factor in self._factors.items() if factor <= self._factors[coarsest])
        believed = {factors[0][1]: factors[0][0]}
        for factor, level in factors[1:]:
            if not self._is_strange(list(believed)[-1], level, read):
                believed[level] = factor
        return believed

    def _is_strange(self, finer: int, level: int, read: Read) -> bool:
        if (finer, level) not in self._strange:
            ratio = self._factors[level] / self._factors[finer]
            pair = _Pair(read, finer, level, ratio, (self._sizes[finer], self._sizes[level]), self._blank)
            self._strange[finer, level] = pair.differs(self._tiles[finer] or (COMMON_TILE_PX, COMMON_TILE_PX))
            if self._strange[finer, level]:
                told = "shows something else than finer ones, which are read instead to find tissue; convert the slide again"
                logger.warning("%s: level %d %s", self._path, level, told)
        return self._strange[finer, level]


@dataclass(frozen=True)
class _Pair:
    """Two levels, and by which factor the second is coarser."""

    read: Read
    fine: int
    coarse: int
    ratio: float
    sizes: tuple[Size, Size]
    blank: Collection[tuple[int, ...]]

    def differs(self, tile: Size) -> bool:
        """Tell whether they clearly show different things, by places of the size of a tile of the finer one."""
        step = [min(max(side, round(2 * CELL_PX * self.ratio)), MOST_PX) for side in tile]
        count = [-(-whole // side) for whole, side in zip(self.sizes[0], step, strict=True)]
        looked, found = set[Size](), list[Size]()
        for place in _spread(count, PLACES):
            if place not in looked and self._differs_at(place, step):
                found.append(place)
                if len(found) > 1:
                    return True
            looked.add(place)
        beside = {(x + right, y + down) for x, y in found for right in (-1, 0, 1) for down in (-1, 0, 1)} - looked
        return any(self._differs_at(place, step) for place in sorted(beside) if min(place) >= 0)

    def _differs_at(self, place: Size, step: list[int]) -> bool:
        """Compare means of squares in one place; False where it cannot be read, is too small, or is blank in the finer level.

        A writer may leave tiles out of the finer level alone, which is then blank there.
        """
        corner = [int(np.ceil(at * side / self.ratio)) for at, side in zip(place, step, strict=True)]
        ends = [
            min((at + 1) * side / self.ratio, fine / self.ratio, coarse)
            for at, side, fine, coarse in zip(place, step, *self.sizes, strict=True)
        ]
        cells = [int(end - start) // CELL_PX for start, end in zip(corner, ends, strict=True)]
        if min(cells) < 1:
            return False
        edges = [
            np.round((start + CELL_PX * np.arange(number + 1)) * self.ratio).astype(int)
            for start, number in zip(corner, cells, strict=True)
        ]
        try:
            coarse = self.read(self.coarse, *corner, *(CELL_PX * number for number in cells))
            fine = self.read(self.fine, *(edge[0] for edge in edges), *(edge[-1] - edge[0] for edge in edges))
        except SlideReplacedError:
            raise
        except SlideReadError:
            return False
        shown = _means(fine, [edge[:-1] - edge[0] for edge in edges])
        far = np.abs(shown - _means(coarse, [CELL_PX * np.arange(number) for number in cells])).max(-1) > FAR
        for colour in self.blank:
            far &= (shown != colour).any(-1)
        return bool(far.mean() > MOST_FAR)


def _spread(count: Sequence[int], places: int) -> Iterator[Size]:
    """Yield column and row of places that are spread evenly; all where there are few."""
    if count[0] * count[1] <= places:
        yield from ((x, y) for y in range(count[1]) for x in range(count[0]))
        return
    for number in range(places):
        x, y = (int((0.5 + number * step) % 1 * of) for step, of in zip(STEPS, count, strict=True))
        yield x, y


def _means(pixels: NDArray[np.uint8], starts: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Return the mean colours of squares that begin at these columns and rows: (rows, cols, 3)."""
    columns, rows = starts
    sums = np.add.reduceat(np.add.reduceat(pixels, rows, 0, dtype=np.int64), columns, 1)
    sizes = np.diff(rows, append=pixels.shape[0])[:, None, None] * np.diff(columns, append=pixels.shape[1])[:, None]
    return np.asarray(sums / sizes)
