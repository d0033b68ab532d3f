"""From one resolution to another: exact ratios, nearest pixels, averages by area.

Where a pixel comes from depends on its place in the plane alone, never on the window that is read: windows that overlap agree
in every bit.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.readers.levels import is_same_scale, nearest_pixel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["average_area", "exact_ratio", "resample"]

BAND_ROWS = 16
"""Rows of a result that are averaged together; more do not fit a processor's cache."""

Corner = tuple[float, float]
"""Row and column."""


def exact_ratio(numerator: float, denominator: float) -> Fraction:
    """Divide two numbers as they are written in decimals, without binary rounding (0.972 / 0.243 is exactly 4)."""
    return Fraction(str(numerator)) / Fraction(str(denominator))  # a numpy.float32 by its own decimals


def resample(
    pixels: NDArray[np.uint8], scale: float, shape: tuple[int, int], first: Corner, corner: Corner
) -> NDArray[np.uint8]:
    """Return a rectangle of a plane from pixels of a level: the nearest ones where both have the same scale, else averages.

    Parameters as for :func:`average_area`.
    """
    if not is_same_scale(scale):
        return average_area(pixels, scale, shape, first, corner)
    for axis in (0, 1):
        places = nearest_pixel(first[axis] + np.arange(shape[axis]), scale) - corner[axis]
        pixels = _take(pixels, places.astype(int), axis)
    return pixels


def _take(pixels: NDArray[np.uint8], places: NDArray[np.intp], axis: int) -> NDArray[np.uint8]:
    """Take rows or columns, nearly all of which follow each other: run by run, which is faster than one by one."""
    edges = [0, *(np.flatnonzero(np.diff(places) != 1) + 1), len(places)]
    runs = [slice(places[start], places[end - 1] + 1) for start, end in pairwise(edges)]
    taken = [pixels[run] if axis == 0 else pixels[:, run] for run in runs]
    return taken[0] if len(taken) == 1 else np.concatenate(taken, axis)  # mostly nothing is copied


def average_area(
    pixels: NDArray[np.uint8],
    scale: float,
    shape: tuple[int, int],
    first: Corner = (0.0, 0.0),
    corner: Corner = (0.0, 0.0),
) -> NDArray[np.uint8]:
    """Average `scale` x `scale` pixels into one; a partly covered pixel counts by its covered part.

    Parameters
    ----------
    pixels : uint8 (height, width, channels), of a level
    scale : side of the square that is averaged: pixels of the level per pixel of the plane
    shape : (rows, cols) of the result
    first : (row, col) of the result's corner in the plane, whose corner is that of the level
    corner : (row, col) in the level of the corner of `pixels`

    Returns
    -------
    uint8 array (rows, cols, channels).
    """
    _, width, channels = pixels.shape
    rows, cols = (_area_weights(pixels.shape[axis], scale, shape[axis], first[axis], corner[axis]) for axis in (0, 1))
    averaged = np.empty((shape[0], shape[1] * channels), np.uint8)
    for top in range(0, shape[0], BAND_ROWS):  # in bands: as float32 the whole image would be four times as large
        band = rows[top : top + BAND_ROWS]
        seen = slice(band.indices.min(), band.indices.max() + 1)
        tall = band[:, seen] @ pixels[seen].reshape(-1, width * channels).astype(np.float32)
        wide = cols @ np.ascontiguousarray(tall.T).reshape(width, -1)  # all columns of a row lie apart, all rows together
        rounded = (wide + np.float32(0.5)).astype(np.uint8)
        averaged[top : top + BAND_ROWS] = rounded.reshape(shape[1] * channels, -1).T
    return averaged.reshape(*shape, channels)


def _area_weights(length: int, scale: float, count: int, first: float, corner: float) -> Any:
    """Return the sparse matrix (count, length) whose row i averages what pixel first + i of the plane covers."""
    from scipy.sparse import csr_array

    edges = (first + np.arange(count + 1)) * scale - corner
    start = np.floor(edges[:-1]).astype(int)
    span = int(np.ceil(scale)) + 1
    taken = start[:, None] + np.arange(span)
    overlap = np.minimum(taken + 1, edges[1:, None]) - np.maximum(taken, edges[:-1, None])
    weights = np.clip(overlap, 0, None) / scale
    row = np.repeat(np.arange(count), span)
    return csr_array((weights.ravel().astype(np.float32), (row, taken.clip(0, length - 1).ravel())), shape=(count, length))
