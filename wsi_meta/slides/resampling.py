"""From one resolution to another: exact ratios and averages by area."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["average_area", "exact_ratio"]

BAND_ROWS = 32
"""Rows of a result that are averaged together."""


def exact_ratio(numerator: float, denominator: float) -> Fraction:
    """Divide two numbers as they are written in decimals, without binary rounding (0.972 / 0.243 is exactly 4)."""
    return Fraction(str(numerator)) / Fraction(str(denominator))  # a numpy.float32 by its own decimals


def average_area(
    pixels: NDArray[np.uint8], start: tuple[float, float], scale: float, shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """Average `scale` x `scale` pixels into one; a partly covered pixel counts by its covered part.

    Parameters
    ----------
    pixels : uint8 (height, width, channels)
    start : (row, col) of the result's corner, in pixels of `pixels`
    scale : side of the square that is averaged, 1 or more
    shape : (rows, cols) of the result

    Returns
    -------
    uint8 array (rows, cols, channels).
    """
    height, width, channels = pixels.shape
    rows = _area_weights(height, start[0], scale, shape[0])
    cols = _area_weights(width, start[1], scale, shape[1])
    averaged = np.empty((*shape, channels), np.uint8)
    for top in range(0, shape[0], BAND_ROWS):  # in bands: as float32 the whole image would be four times as large
        band = rows[top : top + BAND_ROWS]
        seen = slice(band.indices.min(), band.indices.max() + 1)
        tall = band[:, seen] @ pixels[seen].reshape(-1, width * channels).astype(np.float32)
        wide = cols @ tall.reshape(-1, width, channels).transpose(1, 0, 2).reshape(width, -1)
        averaged[top : top + BAND_ROWS] = (wide.reshape(shape[1], -1, channels).transpose(1, 0, 2) + np.float32(0.5)).astype(
            np.uint8
        )
    return averaged


def _area_weights(length: int, start: float, scale: float, count: int) -> Any:
    """Return the sparse matrix (count, length) whose row i averages pixels start + i * scale to start + (i + 1) * scale."""
    from scipy.sparse import csr_array

    edges = start + scale * np.arange(count + 1)
    first = np.floor(edges[:-1]).astype(int)
    span = int(np.ceil(scale)) + 1
    taken = first[:, None] + np.arange(span)
    overlap = np.minimum(taken + 1, edges[1:, None]) - np.maximum(taken, edges[:-1, None])
    weights = np.clip(overlap, 0, None) / scale
    row = np.repeat(np.arange(count), span)
    return csr_array((weights.ravel().astype(np.float32), (row, taken.clip(0, length - 1).ravel())), shape=(count, length))
