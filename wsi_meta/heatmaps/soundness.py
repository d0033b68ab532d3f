"""Whether a store holds all that it says: what is damaged in it is told, and a scan of the same identity mends it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import HeatmapError
from wsi_meta.heatmaps.pyramid import coarser_levels, multiscales
from wsi_meta.heatmaps.record import checksums
from wsi_meta.heatmaps.store import Heatmap, Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_meta.tiling.grid import Block

__all__ = ["damaged_blocks", "mended", "open_sound", "stale_levels"]

logger = logging.getLogger("wsi_meta")


def open_sound(heatmap: str | Path | Heatmap) -> Heatmap:
    """Open a store, or take an open one, and make sure that no value of a scanned cell is missing.

    Raises
    ------
    HeatmapError
        when there is none, or it is damaged; the message says how to mend it.
    """
    heatmap = heatmap if isinstance(heatmap, Heatmap) else Heatmap.open(heatmap)
    if not heatmap.intact:
        raise HeatmapError(
            f"{heatmap.path}: damaged: the record of its scan is not as it was written (its checksum is another one); "
            "copy it again, or run its scan again with the same options, which mends it"
        )
    if damaged := damaged_blocks(heatmap):
        raise HeatmapError(
            f"{heatmap.path}: damaged: values of scanned cells are missing in {len(damaged)} of {len(heatmap.grid.blocks())} "
            "blocks; copy it again, or run its scan again with the same options, which mends just those blocks"
        )
    return heatmap


def mended(heatmap: Heatmap, tissue: NDArray[np.bool_]) -> Heatmap:
    """Return a store in which damaged blocks count as not scanned; one without damage as it is.

    Parameters
    ----------
    tissue : cells that hold tissue, bool (rows, cols); the same as when the store was made
    """
    if not (damaged := damaged_blocks(heatmap, tissue)):
        return heatmap
    logger.warning(
        "%s: damaged: values are missing in %d of %d blocks; these are scanned again",
        heatmap.path,
        len(damaged),
        len(heatmap.grid.blocks()),
    )
    heatmap = heatmap.unfinished()  # before the first block: if this is interrupted, nobody takes the rest for the whole
    for block in damaged:
        heatmap.clear_block(block, tissue[block.cells])
    return heatmap


def damaged_blocks(heatmap: Heatmap, tissue: NDArray[np.bool_] | None = None) -> list[Block]:
    """Return the blocks whose files cannot be read or whose values contradict their status.

    Parameters
    ----------
    tissue : cells that hold tissue, bool (rows, cols), where known: the others, and only those, must be background

    Raises
    ------
    HeatmapError
        when a whole array is missing or has another shape than the record says.
    """
    torn: set[Block] = set()
    arrays = {name: _read(heatmap, name, torn) for name in heatmap.record.identity.arrays}
    torn |= _others(heatmap, arrays)
    status = arrays.pop("status")
    scanned = status == Status.SCANNED
    wrong = status > max(Status)
    for values in arrays.values():
        known = np.isfinite(values)
        wrong |= (scanned & ~known) | ((status == Status.BACKGROUND) & known)
    if heatmap.result is not None:
        wrong |= status == Status.PENDING
    if tissue is not None:
        wrong |= (status == Status.BACKGROUND) == tissue
    if not torn and not wrong.any():
        return []
    return [block for block in heatmap.grid.blocks() if block in torn or wrong[block.cells].any()]


def stale_levels(heatmap: Heatmap, probability: NDArray[np.float32]) -> list[str]:
    """Return the names of the coarser levels that are missing, torn, or not the maximum of the level before.

    Parameters
    ----------
    heatmap : scanned to the end
    probability : its values, float32 (rows, cols)
    """
    levels = coarser_levels(probability)
    stale = [str(number) for number, level in enumerate(levels, 1) if not _holds(heatmap, str(number), level)]
    expected = multiscales("", heatmap.grid.cell_um, 1 + len(levels))["multiscales"][0]["datasets"]
    told: Any = heatmap.group.attrs.get("ome")
    try:
        listed = told["multiscales"][0]["datasets"] == expected
    except (KeyError, IndexError, TypeError):
        listed = False
    return stale if listed else [*stale, "their list"]


def _holds(heatmap: Heatmap, name: str, expected: NDArray[np.float32]) -> bool:
    """Tell whether an array is there and holds just these values."""
    try:
        array: Any = heatmap.group[name]
        return str(array.dtype) == "float32" and np.array_equal(np.asarray(array[...]), expected, equal_nan=True)
    except OSError:
        raise
    except Exception:  # each codec has its own
        return False


def _others(heatmap: Heatmap, arrays: dict[str, NDArray[Any]]) -> set[Block]:
    """Return the blocks whose values are others than when the scan reached its end: another block's, or another store's."""
    kept = heatmap.blocks or {}
    return {
        block
        for name, before in kept.items()
        for block, now, then in zip(heatmap.grid.blocks(), checksums(heatmap.grid, arrays[name]), before, strict=True)
        if now != then
    }


def _read(heatmap: Heatmap, name: str, torn: set[Block]) -> NDArray[Any]:
    """Return a whole array; blocks that cannot be read are added to `torn` and hold 0."""
    dtype = "uint8" if name == "status" else "float32"
    array = _described(heatmap, name, dtype)
    try:
        return np.asarray(array[...])
    except OSError:
        raise  # the disk's or the network's error: what is there may be whole
    except Exception:  # each codec has its own
        values = np.zeros(heatmap.grid.shape, dtype)
    for block in heatmap.grid.blocks():
        try:
            values[block.cells] = array[block.cells]
        except OSError:
            raise
        except Exception:
            torn.add(block)
    return values


def _described(heatmap: Heatmap, name: str, dtype: str) -> Any:
    """Open an array; HeatmapError unless it is described as a scan does: its chunks are the grid's blocks."""
    try:
        array: Any = heatmap.group[name]
    except Exception as error:  # zarr raises whatever odd metadata lead to
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        raise _lost(heatmap, name, "is missing or damaged") from error
    if (getattr(array, "shape", None), str(getattr(array, "dtype", ""))) != (heatmap.grid.shape, dtype):
        raise _lost(heatmap, name, f"is not {dtype} {heatmap.grid.shape}")
    side, missing = heatmap.grid.block_cells, 0 if dtype == "uint8" else np.nan
    if array.chunks != (side, side) or not np.array_equal(array.fill_value, missing, equal_nan=True):
        raise _lost(heatmap, name, f"is not stored in blocks of {side} x {side} cells, or what it lacks is not {missing}")
    codecs = [codec.to_dict() for codec in array.metadata.codecs]
    if [codec["name"] for codec in codecs] != ["bytes", "zstd"] or codecs[1]["configuration"]["level"] != 0:
        raise _lost(heatmap, name, "is not compressed as a scan does it")
    return array


def _lost(heatmap: Heatmap, name: str, found: str) -> HeatmapError:
    return HeatmapError(
        f"{heatmap.path}: its array '{name}' {found}; copy it again, scan again with --overwrite, or to another --out"
    )
