"""Whether a store holds all that it says: what is damaged in it is told, and a scan of the same identity mends it."""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import HeatmapError
from wsi_meta.heatmaps.layout import FORMS, LABELS, checksum, label_metadata, multiscales
from wsi_meta.heatmaps.pyramid import array_files, coarser_levels, label_arrays, level_arrays, place_arrays
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.words import from_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_meta.tiling.grid import Block

__all__ = ["clear_damage", "damaged_blocks", "open_sound", "stale_labels", "stale_levels"]

logger = logging.getLogger("wsi_meta")


def open_sound(heatmap: str | Path | Heatmap) -> Heatmap:
    """Open a store, or take an open one, as it is now, and make sure that no value of a scanned cell is missing.

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
    return heatmap.as_of_now()


def clear_damage(heatmap: Heatmap, tissue: NDArray[np.bool_]) -> Heatmap:
    """Count damaged blocks as not scanned, and return the store; one without damage as it is.

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
    heatmap = heatmap.reopen()  # before the first block: if this is interrupted, nobody takes the rest for the whole
    for block in damaged:
        heatmap.clear_block(block, tissue[block.cells])
    return heatmap


def damaged_blocks(heatmap: Heatmap, tissue: NDArray[np.bool_] | None = None) -> list[Block]:
    """Return the blocks whose files cannot be read or whose values contradict their status; not those just being written.

    Parameters
    ----------
    tissue : cells that hold tissue, bool (rows, cols), where known: the others, and only those, must be background

    Raises
    ------
    HeatmapError
        when a whole array is missing or has another shape than the record says.
    """
    torn: set[Block] = set()
    status = _read(heatmap, "status", torn)  # before the values, which are written before it
    arrays = {name: status if name == "status" else _read(heatmap, name, torn) for name in heatmap.record.arrays}
    torn |= _others(heatmap, arrays, torn)
    del arrays["status"]
    scanned = status == Status.SCANNED
    wrong = status > max(Status)
    for name, values in arrays.items():
        known = np.isfinite(values)
        wrong |= (status == Status.BACKGROUND) & known
        if not FORMS[name].gaps:
            wrong |= scanned & ~known
    if heatmap.result is not None:
        wrong |= status == Status.PENDING
    if tissue is not None:
        wrong |= (status == Status.BACKGROUND) == tissue
    if not torn and not wrong.any():
        return []
    found = [block for block in heatmap.grid.blocks() if block in torn or wrong[block.cells].any()]
    heatmap.refuse_replaced()
    later = _read(heatmap, "status", set())
    return [block for block in found if np.array_equal(status[block.cells], later[block.cells])]


def stale_levels(heatmap: Heatmap, probability: NDArray[np.float32]) -> list[str]:
    """Return the names of the coarser levels that are missing, torn, or not the maximum of the level before.

    Parameters
    ----------
    heatmap : scanned to the end
    probability : its values, float32 (rows, cols)
    """
    if _is_flat(heatmap):
        levels = coarser_levels(probability)
        return [str(number) for number, level in enumerate(levels, 1) if not _holds(heatmap, str(number), level)]
    coarser = level_arrays(heatmap.grid, probability)
    whole = [all(_holds(heatmap, path, values) for path, values in level.items()) for level in coarser]
    listed = _datasets(heatmap) == _expected(heatmap, 1 + len(coarser))
    return [str(number) for number, sound in enumerate(whole, 1) if not sound] + ([] if listed else ["their list"])


def stale_labels(heatmap: Heatmap, probability: NDArray[np.float32]) -> list[str]:
    """Return the names of the places and label images that are missing, torn, or do not follow from the cells.

    Stores of 0.1.0 have none.

    Parameters
    ----------
    heatmap, probability : as for :func:`stale_levels`; the lesions in the record are those of the cells
    """
    if _is_flat(heatmap):
        return []
    lesions, grid = heatmap.record.lesions, heatmap.grid
    places = place_arrays(grid, probability.shape)
    stale = [path for path, values in places.items() if not _holds(heatmap, path, values)]
    try:
        images = label_arrays(grid, probability, heatmap.status, lesions)
    except (LookupError, TypeError):  # what the record says of its lesions is damaged
        return [*stale, "lesions"]
    stale += [path.split("/")[1] for path, values in images.items() if not _holds(heatmap, path, values)]
    names = [name for name in LABELS if f"labels/{name}/0" in images]
    for name in names:
        told = label_metadata(name, grid.cell_um, len(images) // len(names), lesions)
        stale += [] if _attribute(heatmap, f"labels/{name}") == told else [name]
    listed = _attribute(heatmap, "labels").get("labels")
    whole = isinstance(listed, list) and all(name in listed for name in names)
    return list(dict.fromkeys(stale)) + ([] if whole else ["their list"])


def _is_flat(heatmap: Heatmap) -> bool:
    """Tell whether a store was finished by an older version: its coarser levels stand beside level 0."""
    datasets = _datasets(heatmap)
    flat = [dataset | {"path": str(level)} for level, dataset in enumerate(_expected(heatmap, len(datasets)))]
    return datasets == flat and "omero" not in _attribute(heatmap, "")


def _expected(heatmap: Heatmap, levels: int) -> list[dict[str, Any]]:
    datasets: list[dict[str, Any]] = multiscales("", heatmap.grid.cell_um, levels)["multiscales"][0]["datasets"]
    return datasets


def _datasets(heatmap: Heatmap) -> list[Any]:
    """Return what a store says of its levels; nothing where that is damaged."""
    try:
        datasets: Any = _attribute(heatmap, "")["multiscales"][0]["datasets"]
    except (LookupError, TypeError):
        return []
    return datasets if isinstance(datasets, list) else []


def _attribute(heatmap: Heatmap, group: str) -> dict[str, Any]:
    """Return the OME-Zarr metadata of a group in a store; empty where there are none, or they are damaged."""
    try:
        found = (heatmap.group[group] if group else heatmap.group).attrs.get("ome")
    except FileNotFoundError:
        return {}
    except OSError:
        raise
    except Exception:  # zarr raises whatever odd metadata lead to
        return {}
    return found if isinstance(found, dict) else {}


def _holds(heatmap: Heatmap, name: str, expected: NDArray[Any]) -> bool:
    """Tell whether an array is there, in groups that are, and holds just these values."""
    if _is_as_written(heatmap.root, name, expected):
        return True
    try:
        array: Any = heatmap.group
        for part in name.split("/"):
            array = array[part]
        floats = expected.dtype.kind == "f"
        return array.dtype == expected.dtype and np.array_equal(np.asarray(array[...]), expected, equal_nan=floats)
    except OSError:
        raise
    except Exception:  # each codec has its own
        return False


def _is_as_written(store: Path, name: str, expected: NDArray[Any]) -> bool:
    """Tell, quickly, whether an array's files are those that are written of these values; where not, zarr may still agree."""
    files = array_files(name, expected)
    try:
        groups = [from_json((store / group / "zarr.json").read_bytes()) for group in PurePosixPath(name).parents]
        same = all((store / name / file).read_bytes() == content for file, content in files.items())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    here = sum(entry.is_file() for entry in (store / name).rglob("*"))
    return (
        same and here == len(files) and all(isinstance(group, dict) and group.get("node_type") == "group" for group in groups)
    )


def _others(heatmap: Heatmap, arrays: dict[str, NDArray[Any]], torn: set[Block]) -> set[Block]:
    """Return the blocks whose values are others than were written: another block's, another store's, or none."""
    blocks = heatmap.grid.blocks()
    written = dict(zip(blocks, heatmap.blocks, strict=True)) if heatmap.blocks else _written(heatmap, arrays["status"], torn)
    return {block for block, then in written.items() if then != checksum(*(values[block.cells] for values in arrays.values()))}


def _written(heatmap: Heatmap, status: NDArray[np.uint8], torn: set[Block]) -> dict[Block, int]:
    """Return the checksum of each block that a scan has done and not yet sealed, where it is known."""
    if not heatmap.keeps_checksums:
        return {}
    kept, done = _read(heatmap, "checksums", torn), np.isin(status, (Status.SCANNED, Status.UNREADABLE))
    known = {block: int(kept[heatmap.place(block)]) for block in heatmap.grid.blocks() if done[block.cells].any()}
    return {block: then for block, then in known.items() if then}


def _read(heatmap: Heatmap, name: str, torn: set[Block]) -> NDArray[Any]:
    """Return a whole array; blocks that cannot be read are added to `torn` and hold 0."""
    array = _described(heatmap, name)
    try:
        return np.asarray(array[...])
    except OSError:
        raise  # the disk's or the network's error: what is there may be whole
    except Exception:  # each codec has its own
        values = np.zeros(array.shape, array.dtype)
    for block in heatmap.grid.blocks():
        part = heatmap.place(block) if FORMS[name].by_block else block.cells
        try:
            values[part] = array[part]
        except OSError:
            raise
        except Exception:
            torn.add(block)
    return values


def _described(heatmap: Heatmap, name: str) -> Any:
    """Open an array; HeatmapError unless it is described as a scan does: its chunks are the grid's blocks."""
    try:
        array: Any = heatmap.group[name]
    except Exception as error:  # zarr raises whatever odd metadata lead to
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        raise _lost(heatmap, name, "is missing or damaged") from error
    form = FORMS[name]
    shape, chunk = form.shape(heatmap.grid), form.chunk(heatmap.grid)
    if (getattr(array, "shape", None), str(getattr(array, "dtype", ""))) != (shape, form.dtype):
        raise _lost(heatmap, name, f"is not {form.dtype} {shape}")
    if array.chunks != chunk or not np.array_equal(array.fill_value, form.fill, equal_nan=True):
        stored = f"is not stored in blocks of {chunk[0]} x {chunk[1]} cells, or what it lacks is not {form.fill}"
        raise _lost(heatmap, name, stored)
    codecs = [codec.to_dict() for codec in array.metadata.codecs]
    if [codec["name"] for codec in codecs] != ["bytes", "zstd"] or codecs[1]["configuration"]["level"] != 0:
        raise _lost(heatmap, name, "is not compressed as a scan does it")
    return array


def _lost(heatmap: Heatmap, name: str, found: str) -> HeatmapError:
    return HeatmapError(
        f"{heatmap.path}: its array '{name}' {found}; copy it again, scan again with --overwrite, or to another --out"
    )
