"""Masks of tumor as TIFF files, as the Camelyon challenges give them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import DataError, first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["read_mask"]

LEVEL_OFF = 0.01
"""A pyramid's level may be coarser by this share than asked and still be read as it is: its sides are rounded."""


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
        when the file is missing or damaged, is coarser than asked, or holds values but neither 255 nor 1.
    """
    import tifffile

    path = Path(path)
    try:
        with tifffile.TiffFile(path) as file:
            values = _sample(path, file.series[0], downsample / first_downsample)
    except DataError:
        raise
    except (OSError, ValueError, LookupError, RuntimeError, tifffile.TiffFileError) as error:
        raise DataError(f"{path}: not a mask ({first_line(error)}); expected a TIFF that is 255 (or 1) on tumor") from error
    for tumor in (255, 1):
        if (found := values == tumor).any():
            return np.asarray(found)
    if values.any():
        raise DataError(
            f"{path}: values up to {values.max()}, but no 255 and no 1; expected a mask that is 255 (or 1) on tumor"
        )
    return np.zeros(values.shape, bool)


def _sample(path: Path, series: Any, downsample: float) -> NDArray[Any]:
    """Give the values under the centres of pixels that are as wide as `downsample` of the first level's."""
    import zarr

    height = series.shape[0]
    fitting = [n for n, level in enumerate(series.levels) if height / level.shape[0] <= downsample * (1 + LEVEL_OFF)]
    if not fitting:
        raise DataError(f"{path}: pixels {1 / downsample:g} times as large as asked; expected a finer mask")
    array: Any = zarr.open_array(series.aszarr(level=fitting[-1]), mode="r")
    exact = downsample / (height / array.shape[0])
    step = round(exact) if abs(exact / round(exact) - 1) <= LEVEL_OFF else exact
    rows, cols = (_centres(length, step) for length in array.shape[:2])
    band = array.chunks[0]
    parts = [_rows(array, rows[(rows >= start) & (rows < start + band)])[:, cols] for start in range(0, array.shape[0], band)]
    return np.concatenate(parts)


def _centres(length: int, step: float) -> NDArray[np.intp]:
    """Give the index of the stored pixel under each centre."""
    index = np.floor((np.arange(int(length / step) + 1) + 0.5) * step).astype(np.intp)
    return np.asarray(index[index < length])


def _rows(array: Any, rows: NDArray[np.intp]) -> NDArray[Any]:
    """Read rows of one row of chunks; none are read where none are asked for."""
    if not len(rows):
        return np.zeros((0, array.shape[1]), array.dtype)
    values = np.asarray(array[rows[0] : rows[-1] + 1])[rows - rows[0]]
    return np.asarray(values if values.ndim == 2 else values[..., 0])
