"""Masks of tumor as TIFF files, as the Camelyon challenges give them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import DataError, first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MASK_ENDINGS", "read_mask", "tumor_squares"]

MASK_ENDINGS = (".tif", ".tiff")
TUMOR_VALUES = (255, 1)
"""Values that may mean tumor: the first of them that occurs in a mask does."""
LEVEL_OFF = 0.01
"""A level is also read where it is coarser than asked by up to this share, because the sides of levels are rounded."""


def read_mask(path: str | Path, downsample: float, *, first_downsample: float = 1.0) -> NDArray[np.bool_]:
    """Read where a mask TIFF says tumor.

    Each pixel has the value under its centre, in the coarsest stored level that is not coarser than asked: never an
    average. Tiles that the file leaves out are 0. Tumor is 255 where the file has that (Camelyon16's masks), else 1
    (what the organisers' script for ASAP writes for metastases; its 2 is normal tissue).

    Parameters
    ----------
    path : TIFF of one channel (of several, the first is read), with or without coarser levels
    downsample : level-0 pixels of the slide along a side of the result's pixel
    first_downsample : the same for the file's first image; 1 where that is as large as the slide

    Returns
    -------
    bool array (height, width)

    Raises
    ------
    DataError
        when the file is missing or damaged, is coarser than asked, or holds other values, but neither 255 nor 1.
    """
    path = Path(path)
    with _opened(path) as series:
        values = np.concatenate([*_bands(path, series, downsample / first_downsample)])
    highest = int(values.max(initial=0))
    return _tumor(path, {value: values == value for value in TUMOR_VALUES}, highest)


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
    highest = 0
    with _opened(path) as series:
        for band in _bands(path, series, downsample / _first_downsample(path, series.shape, extent), side):
            highest = max(highest, int(band.max(initial=0)))
            starts = [np.arange(0, length, side) for length in band.shape]
            for value, rows in held.items():
                rows.append(np.logical_or.reduceat(np.logical_or.reduceat(band == value, starts[0], 0), starts[1], 1))
    return _tumor(path, {value: np.concatenate(rows) for value, rows in held.items()}, highest)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a mask's first series; any failure while it is open becomes a DataError."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            yield file.series[0]
    except DataError:
        raise
    except (OSError, ValueError, LookupError, RuntimeError, tifffile.TiffFileError) as error:
        raise DataError(f"{path}: not a mask ({first_line(error)}); expected a TIFF that is 255 (or 1) on tumor") from error


def _tumor(path: Path, there: dict[int, NDArray[np.bool_]], highest: int) -> NDArray[np.bool_]:
    """Return where the mask has the first of those values that occurs in it."""
    for found in there.values():
        if found.any():
            return found
    if highest:
        raise DataError(f"{path}: values up to {highest}, but no 255 and no 1; expected a mask that is 255 (or 1) on tumor")
    return next(iter(there.values()))


def _first_downsample(path: Path, shape: tuple[int, ...], extent: tuple[int, int]) -> float:
    """Return the level-0 pixels along a side of a pixel of the first image: a power of two."""
    factors = [length / stored for length, stored in zip(extent, shape[1::-1], strict=True)]
    power = 2.0 ** round(math.log2(factors[0]))
    if any(abs(factor / power - 1) > LEVEL_OFF for factor in factors):
        raise DataError(
            f"{path}: {shape[1]} x {shape[0]} px do not fit the slide's {extent[0]} x {extent[1]}; "
            "expected the mask of the same slide, as large or a power of two smaller"
        )
    return power


def _bands(path: Path, series: Any, downsample: float, multiple: int = 1) -> Iterator[NDArray[Any]]:
    """Return the values under the centres of pixels as wide as `downsample` of the first level's.

    In bands of rows, all but the last a multiple of `multiple`, each about as high as a row of stored tiles.
    """
    import zarr

    whole = series.shape[0]
    fitting = [n for n, level in enumerate(series.levels) if whole / level.shape[0] <= downsample * (1 + LEVEL_OFF)]
    if not fitting:
        raise DataError(f"{path}: pixels {1 / downsample:g} times as large as asked; expected a finer mask")
    array: Any = zarr.open_array(series.aszarr(level=fitting[-1]), mode="r")
    factor = whole / array.shape[0]
    step = downsample / (round(factor) if abs(factor / round(factor) - 1) <= LEVEL_OFF else factor)
    rows, cols = (_centres(length, step) for length in array.shape[:2])
    height = max(1, round(array.chunks[0] / step / multiple)) * multiple
    for start in range(0, max(1, len(rows)), height):
        yield _rows(array, rows[start : start + height])[:, cols]


def _centres(length: int, step: float) -> NDArray[np.intp]:
    """Return the index of the stored pixel under each centre."""
    index = np.floor((np.arange(int(length / step) + 1) + 0.5) * step).astype(np.intp)
    return np.asarray(index[index < length])


def _rows(array: Any, rows: NDArray[np.intp]) -> NDArray[Any]:
    """Return the rows at ascending indices, of which there may be none; reads all rows between the first and the last."""
    if not len(rows):
        return np.zeros((0, array.shape[1]), array.dtype)
    values = np.asarray(array[rows[0] : rows[-1] + 1])[rows - rows[0]]
    return np.asarray(values if values.ndim == 2 else values[..., 0])
