"""A large picture read in parts, which become smaller where something cannot be read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.readers.reader import UnreadableRegionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["read_in_parts"]

PART_PX = 256
"""Side of one read."""
LEAST_PX = 4
"""Side of what is not divided any more, however small the stored tiles are."""
SMALL_READS = 2000
"""Reads of divided parts at most."""
SMALL_READS_AT_FIRST, SMALL_READS_PER_PART = 200, 16
"""Fewer at first, and so many more for each part that was read: what mostly cannot be read is soon given up."""
FRUITLESS_READS = 1000
"""Failed reads after which a picture is given up of which nothing was read; most slides have fewer parts."""

Part = tuple[int, int, int, int]
"""x, y, width, height."""


def read_in_parts(
    read: Callable[[int, int, int, int], NDArray[np.uint8]],
    shape: tuple[int, int],
    least_px: float,
    background: tuple[int, ...],
    *,
    part_px: int = PART_PX,
    small_reads_at_first: int = SMALL_READS_AT_FIRST,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], UnreadableRegionError | None]:
    """Read a picture part by part.

    Parameters
    ----------
    read : returns the pixels of (x, y, width, height), or raises UnreadableRegionError
    shape : (rows, cols) of the picture
    least_px : side of the parts that are not divided any more when they cannot be read
    background : RGB of what cannot be read
    part_px : side of the first parts
    small_reads_at_first : reads of divided parts as long as nothing was read

    Returns
    -------
    uint8 array (height, width, 3), bool array (height, width): False where it could not be read, and the last error.

    Raises
    ------
    SlideReplacedError
    """
    image, readable = np.empty((*shape, 3), np.uint8), np.ones(shape, bool)
    parts = deque(_divided((0, 0, shape[1], shape[0]), part_px))
    small_reads, allowed, failure = 0, small_reads_at_first, None
    failed = 0
    while parts:  # large parts first
        x, y, width, height = part = parts.popleft()
        place = slice(y, y + height), slice(x, x + width)
        try:
            image[place], readable[place] = read(*part), True
            allowed = min(SMALL_READS, allowed + SMALL_READS_PER_PART)
            continue
        except UnreadableRegionError as error:
            failed, failure, readable[place], image[place] = failed + 1, error, False, background
        if failed == FRUITLESS_READS and allowed == small_reads_at_first:  # nothing was read
            image[:], readable[:] = background, False
            break
        if max(width, height) > max(LEAST_PX, least_px) and small_reads < allowed:
            smaller = _divided(part, ceil(max(width, height) / 2))
            small_reads += len(smaller)
            parts.extend(smaller)
    return image, readable, failure


def _divided(part: Part, side: int) -> list[Part]:
    """Divide a part into such of at most `side`, row by row."""
    left, top, width, height = part
    return [
        (x, y, min(side, left + width - x), min(side, top + height - y))
        for y in range(top, top + height, side)
        for x in range(left, left + width, side)
    ]
