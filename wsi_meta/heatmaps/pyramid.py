"""The arrays of a store: one element a cell, coarser levels of the map, and the OME-Zarr metadata that tells where they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    import zarr
    from numpy.typing import NDArray

    from wsi_meta.tiling.grid import PatchGrid

__all__ = ["coarser_levels", "create_arrays", "halve", "multiscales", "write_coarser_levels"]

SMALLEST_LEVEL = 64
"""The last level of the pyramid has at most this many cells a side."""

LEVEL_CHUNK = 512
"""Cells along a chunk's side in the levels after the first (few files)."""


def create_arrays(group: zarr.Group, grid: PatchGrid, values: Iterable[str]) -> None:
    """Make a store's empty arrays: float32 ones by name, NaN everywhere, then the blocks' checksums and the status."""
    from zarr.codecs import ZstdCodec

    chunks, axes, packed = (grid.block_cells, grid.block_cells), ("y", "x"), ZstdCodec(checksum=True)
    common: dict[str, Any] = {"shape": grid.shape, "chunks": chunks, "dimension_names": axes, "compressors": packed}
    for name in values:
        group.create_array(name, dtype="float32", fill_value=np.nan, **common)
    by_block = {"shape": grid.shape_in_blocks, "chunks": (1, 1), "dimension_names": None}
    group.create_array("checksums", dtype="uint32", fill_value=0, **common | by_block)
    group.create_array("status", dtype="uint8", fill_value=0, **common)


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
