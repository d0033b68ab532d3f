"""Masks of tumor as TIFF files, as the Camelyon challenges give them: over the whole level 0 as OpenSlide shows it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import DataError
from wsi_meta.masks.label_images import LabelImage, distinct_labels, opened_labels, tell_labels
from wsi_meta.masks.mask_levels import LEVEL_OFF, believed_level, factor_of
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


def read_mask(
    path: str | Path, downsample: float, *, first_downsample: float | None = 1.0, extent: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Read where a mask TIFF says tumor.

    Each pixel has the value under its centre, never an average: in the coarsest stored level that is not coarser than asked, or
    in the first one where that is coarser by no more than a slide may be. A level that contradicts the first one, such as one
    that a converter averaged, or left empty when it died, is passed over with a warning. Tiles that the file leaves out are 0.
    Tumor is 255 where the file has that (Camelyon16's masks), else 1 (what the organisers' script for ASAP writes for
    metastases; its 2 is normal tissue).

    Parameters
    ----------
    path : TIFF, with or without coarser levels, as :func:`wsi_meta.masks.label_images.opened_labels` reads it
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
        seen: set[int] = set()
        values = np.concatenate([*_bands(path, image, downsample / first, seen)])
    return np.asarray(values == _tumor_value(path, seen))


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
        for band in _bands(path, image, downsample / _first_downsample(path, image.shape(), extent), seen, side):
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


def _bands(path: Path, image: LabelImage, downsample: float, seen: set[int], multiple: int = 1) -> Iterator[NDArray[Any]]:
    """Return the values under the centres of pixels as wide as `downsample` of the first level's.

    In bands of rows, all but the last a multiple of `multiple`, each about as high as a row of stored tiles. All values that
    were read go to `seen`, whether they lie under a centre or not.
    """
    whole = image.shape()[0]
    levels = range(len(image.levels))
    fitting = [level for level in levels if whole / image.shape(level)[0] <= downsample * (1 + LEVEL_OFF)]
    if not fitting and downsample * COARSER_ALLOWED < 1 - ROUNDING:
        raise DataError(f"{path}: pixels {1 / downsample:g} times as large as asked; expected a finer mask")
    level = believed_level(path, image, fitting, seen) if fitting else 0  # as coarse as a slide may be
    step = downsample / factor_of(image, level)
    rows, cols = (_centres(length, step) for length in image.shape(level))
    height = max(1, round(image.stored_rows(level) / step / multiple)) * multiple
    for start in range(0, max(1, len(rows)), height):
        top, bottom = int(start * step), math.ceil((start + height) * step)
        stored = image.read(top, bottom, level)
        seen |= distinct_labels(stored)
        yield stored[rows[start : start + height] - top][:, cols]


def _centres(length: int, step: float) -> NDArray[np.intp]:
    """Return the index of the stored pixel under each centre."""
    index = np.floor((np.arange(int(length / step) + 1) + 0.5) * step).astype(np.intp)
    return np.asarray(index[index < length])
