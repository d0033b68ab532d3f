"""The coarser levels of a map, and the OME-Zarr metadata that tells a viewer where all levels lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

__all__ = ["coarser_levels", "halve", "multiscales", "write_coarser_levels"]

SMALLEST_LEVEL = 64
"""The last level of the pyramid has at most this many cells a side."""

LEVEL_CHUNK = 512
"""Cells along a chunk's side in the levels after the first (few files)."""


def coarser_levels(level: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return the levels after the first, each half the one before, until both sides are small."""
    levels = []
    while max(level.shape) > SMALLEST_LEVEL:
        level = halve(level)
        levels.append(level)
    return levels


def write_coarser_levels(group: zarr.Group, probability: NDArray[np.float32]) -> int:
    """Write the levels after the first, ``1``, ``2``, ..., into a store's group; return how many there are."""
    for number, level in enumerate(levels := coarser_levels(probability), 1):
        array = group.create_array(
            str(number),
            shape=level.shape,
            chunks=tuple(min(LEVEL_CHUNK, side) for side in level.shape),
            dtype="float32",
            fill_value=np.nan,
            dimension_names=("y", "x"),
            overwrite=True,
        )
        array[...] = level
    return len(levels)


def halve(level: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the maximum of two by two elements, ignoring NaN; NaN where all four are."""
    rows, cols = level.shape
    padded = np.pad(level, ((0, rows % 2), (0, cols % 2)), constant_values=np.nan)
    highest: NDArray[np.float32] = np.fmax.reduce(padded.reshape(padded.shape[0] // 2, 2, -1, 2), axis=(1, 3))
    return highest


def multiscales(name: str, cell_um: float, levels: int) -> dict[str, Any]:
    """Return the OME-Zarr 0.5 metadata: the centre of element (0, 0) lies half an element from the slide's corner."""
    return {
        "version": "0.5",
        "multiscales": [
            {
                "name": name,
                "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"],
                "datasets": [
                    {
                        "path": str(level),
                        "coordinateTransformations": [
                            {"type": "scale", "scale": [cell_um * 2**level] * 2},
                            {"type": "translation", "translation": [cell_um * 2**level / 2] * 2},
                        ],
                    }
                    for level in range(levels)
                ],
                "type": "maximum",
                "metadata": {"description": "probability of tumor; NaN = not scanned; coarser levels take the maximum"},
            }
        ],
    }
