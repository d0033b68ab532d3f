"""From one resolution to another: exact ratios and averages by area."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["average_area", "exact_ratio"]


def exact_ratio(numerator: float, denominator: float) -> Fraction:
    """Divide two numbers as they are written in decimals, without binary rounding (0.972 / 0.243 is exactly 4)."""
    return Fraction(repr(float(numerator))) / Fraction(repr(float(denominator)))


def average_area(
    pixels: NDArray[np.uint8], start: tuple[float, float], scale: float, shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """Average `scale` x `scale` pixels into one; pixels that are partly covered count by the part covered.

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
    tall = rows @ pixels.reshape(height, width * channels).astype(np.float32)
    wide = cols @ tall.reshape(shape[0], width, channels).transpose(1, 0, 2).reshape(width, -1)
    averaged = wide.reshape(shape[1], shape[0], channels).transpose(1, 0, 2)
    return np.ascontiguousarray((averaged + np.float32(0.5)).astype(np.uint8))


def _area_weights(length: int, start: float, scale: float, count: int) -> Any:
    """Give the sparse matrix (count, length) whose row i averages pixels start + i * scale to start + (i + 1) * scale."""
    from scipy.sparse import csr_array

    edges = start + scale * np.arange(count + 1)
    first = np.floor(edges[:-1]).astype(int)
    span = int(np.ceil(scale)) + 1
    taken = first[:, None] + np.arange(span)
    overlap = np.minimum(taken + 1, edges[1:, None]) - np.maximum(taken, edges[:-1, None])
    weights = np.clip(overlap, 0, None) / scale
    row = np.repeat(np.arange(count), span)
    return csr_array((weights.ravel().astype(np.float32), (row, taken.clip(0, length - 1).ravel())), shape=(count, length))
