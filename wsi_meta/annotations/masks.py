"""Masks of tumor as TIFF files, as the Camelyon challenges give them: over the whole level 0 as OpenSlide shows it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.annotations.label_images import LabelImage, distinct_labels, opened_labels, tell_labels
from wsi_meta.errors import DataError
from wsi_meta.slides.pixel_size import COARSER_ALLOWED

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MASK_ENDINGS", "read_mask", "tumor_squares"]

logger = logging.getLogger(__name__)

MASK_ENDINGS = (".tif", ".tiff")
TUMOR_VALUES = (255, 1)
"""Values that may mean tumor: the one of them that occurs in a mask does."""
OTHER_VALUES = (0, 2)
"""Values that a mask may also hold: nothing, and the normal tissue of the organisers' script for ASAP."""
OPENED_AS = ("mask", "a TIFF that is 255 (or 1) on tumor")
ROUNDING = 1e-9
"""A share that is rounding."""
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


def read_mask(
    path: str | Path, downsample: float, *, first_downsample: float | None = 1.0, extent: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Read where a mask TIFF says tumor.

    Each pixel has the value under its centre, never an average: in the coarsest stored level that is not coarser than asked, or
    in the first one where that is coarser by no more than a slide may be. A level that contradicts the first one, such as one
    that a converter left empty when it died, is passed over with a warning. Tiles that the file leaves out are 0. Tumor is 255
    where the file has that (Camelyon16's masks), else 1 (what the organisers' script for ASAP writes for metastases; its 2 is
    normal tissue).

    Parameters
    ----------
    path : TIFF, with or without coarser levels, as :func:`wsi_meta.annotations.label_images.opened_labels` reads it
    downsample : level-0 pixels of the slide along a side of the result's pixel
    first_downsample : the same for the file's first image; 1 where that is as large as the slide; None as `extent` says
    extent : (width, height) of the slide, level-0 pixels, which the mask must fit; None where it is not known

    Returns
    -------
    bool array (height, width)

    Raises
    ------
    DataError
        when the file is missing or damaged, does not fit the slide, is more than 5 % coarser than asked, or holds 255 and 1,
        or other values than these, 2 and 0.
    """
    path = Path(path)
    with opened_labels(path, *OPENED_AS) as image:
        first = 1.0 if first_downsample is None else first_downsample
        if extent is not None:
            first = _first_downsample(path, image.shape(), extent, first_downsample)
        values = np.concatenate([*_bands(path, image, downsample / first)])
    return np.asarray(values == _tumor_value(path, distinct_labels(values)))


def tumor_squares(path: str | Path, extent: tuple[int, int], downsample: float, side: int) -> NDArray[np.bool_]:
    """Read which squares of a slide hold any tumor, band by band, so that a mask may be larger than memory.

    Parameters
    ----------
    path : as :func:`read_mask`; its first image is as large as the slide or a power of two smaller
    extent : (width, height) of the slide, level-0 pixels
    downsample : level-0 pixels along a side of a pixel, as :func:`read_mask`
    side : of the squares, in such pixels

    Returns
    -------
    bool array (rows, cols) of squares from the slide's corner; the last ones may be cut.

    Raises
    ------
    DataError
        as :func:`read_mask`, and when the mask is not of the slide's shape.
    """
    path = Path(path)
    held: dict[int, list[NDArray[np.bool_]]] = {value: [] for value in TUMOR_VALUES}
    seen: set[int] = set()
    with opened_labels(path, *OPENED_AS) as image:
        for band in _bands(path, image, downsample / _first_downsample(path, image.shape(), extent), side):
            seen |= distinct_labels(band)
            starts = [np.arange(0, length, side) for length in band.shape]
            for value, rows in held.items():
                rows.append(np.logical_or.reduceat(np.logical_or.reduceat(band == value, starts[0], 0), starts[1], 1))
    return np.concatenate(held[_tumor_value(path, seen)])


def _tumor_value(path: Path, seen: set[int]) -> int:
    """Return the value of tumor that occurs in the mask; DataError where both do, or others that have no meaning.

    Other programs write 1 for normal tissue and 2 for tumor, so a mask that holds both is told of. In a mask of 1 and 255, one
    of the two is something else: often 255 is what nobody looked at.
    """
    found = [value for value in TUMOR_VALUES if value in seen] or [TUMOR_VALUES[0]]
    expected = "expected a mask that is 255 (or 1) on tumor"
    if not set(TUMOR_VALUES) & seen and seen - {0}:
        told = f"values up to {tell_labels({max(seen)})}" if max(seen) > 0 else f"values {tell_labels(seen)}"
        raise DataError(f"{path}: {told}, but no 255 and no 1; {expected}")
    if seen - {*TUMOR_VALUES, *OTHER_VALUES}:
        raise DataError(f"{path}: values {tell_labels(seen)}; {expected} and 0 elsewhere")
    if len(found) > 1:
        raise DataError(f"{path}: holds 255 and 1, each of which may mean tumor; expected one of them, and 0 elsewhere")
    if found[0] == 1 and 2 in seen:
        logger.warning("%s: holds 1 and 2: 1 counts as tumor, 2 as normal tissue, as the Camelyon organisers write them", path)
    return found[0]


def _first_downsample(path: Path, shape: tuple[int, int], extent: tuple[int, int], stated: float | None = None) -> float:
    """Return the level-0 pixels along a side of a pixel of the first image: a power of two, and that stated if any."""
    sides = list(zip(extent, shape[::-1], strict=True))
    power = 2.0 ** round(math.log2(max(extent) / max(shape)))
    if any(abs(length - stored * power) >= max(length * LEVEL_OFF, power) for length, stored in sides):
        raise DataError(
            f"{path}: {shape[1]} x {shape[0]} px do not fit the slide's {extent[0]} x {extent[1]}; "
            "expected the mask of the same slide, as large or a power of two smaller"
        )
    if stated is not None and power != stated:
        level, told = (round(math.log2(factor)) for factor in (power, stated))
        raise DataError(
            f"{path}: {shape[1]} x {shape[0]} px; expected level {told} of the slide's {extent[0]} x {extent[1]}, "
            f"but this is level {level}; pass --mask-level {level}"
        )
    return power


def _bands(path: Path, image: LabelImage, downsample: float, multiple: int = 1) -> Iterator[NDArray[Any]]:
    """Return the values under the centres of pixels as wide as `downsample` of the first level's.

    In bands of rows, all but the last a multiple of `multiple`, each about as high as a row of stored tiles.
    """
    whole = image.shape()[0]
    levels = range(len(image.levels))
    fitting = [level for level in levels if whole / image.shape(level)[0] <= downsample * (1 + LEVEL_OFF)]
    if not fitting and downsample * COARSER_ALLOWED < 1 - ROUNDING:
        raise DataError(f"{path}: pixels {1 / downsample:g} times as large as asked; expected a finer mask")
    level = _believed(path, image, fitting) if fitting else 0  # as coarse as a slide may be
    step = downsample / _factor(image, level)
    rows, cols = (_centres(length, step) for length in image.shape(level))
    height = max(1, round(image.stored_rows(level) / step / multiple)) * multiple
    for start in range(0, max(1, len(rows)), height):
        yield _rows(image, level, rows[start : start + height])[:, cols]


def _factor(image: LabelImage, level: int) -> float:
    """Return the pixels of the first level along a side of a pixel of a level."""
    factor = image.shape()[0] / image.shape(level)[0]
    return round(factor) if abs(factor / round(factor) - 1) <= LEVEL_OFF else factor


def _believed(path: Path, image: LabelImage, levels: list[int]) -> int:
    """Return the coarsest of some levels that does not contradict the first one; warn of those that do."""
    for level in levels[:0:-1]:
        if not any(_contradicts(image, level, place) for place in _telling_tiles(image, _factor(image, level))):
            return level
        logger.warning("%s: level %d says something else than level 0; a finer one is read instead", path, level)
    return levels[0]


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


def _contradicts(image: LabelImage, level: int, place: tuple[slice, slice]) -> bool:
    """Tell whether a pixel of a level has another value than all of the first level's pixels there and in the pixels round it.

    Whichever of these a converter takes, edges agree.
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    factor = _factor(image, level)
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
    starts = [edge[:-1] - edge[0] for edge in edges]
    least, most = (extreme.reduceat(extreme.reduceat(fine, starts[0], 0), starts[1], 1) for extreme in (np.minimum, np.maximum))
    coarse = image.read(outer[0].start, outer[0].stop, level, outer[1])
    beyond = (coarse < minimum_filter(least, 3)) | (coarse > maximum_filter(most, 3))
    return bool(beyond[inner[0], inner[1]].any())


def _centres(length: int, step: float) -> NDArray[np.intp]:
    """Return the index of the stored pixel under each centre."""
    index = np.floor((np.arange(int(length / step) + 1) + 0.5) * step).astype(np.intp)
    return np.asarray(index[index < length])


def _rows(image: LabelImage, level: int, rows: NDArray[np.intp]) -> NDArray[Any]:
    """Return the rows at ascending indices, of which there may be none; reads all rows between the first and the last."""
    if not len(rows):
        return np.zeros((0, image.shape(level)[1]), np.uint8)
    return np.asarray(image.read(int(rows[0]), int(rows[-1]) + 1, level)[rows - rows[0]])
