"""The arrays of a store: one element a cell, and what is derived from them.

Which arrays there are is told in :mod:`wsi_meta.heatmaps.store`; why they lie so, in ``docs/decisions``.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from wsi_meta.heatmaps.layout import FORMS, LABELS, attributes_of, label_metadata, level_path, multiscales
from wsi_meta.heatmaps.ownership import remove_part
from wsi_meta.heatmaps.record import ScanRecord, Status, seal_of
from wsi_meta.heatmaps.regions import label_regions, numbered
from wsi_meta.outputs.writing import written_whole
from wsi_meta.words import from_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_meta.tiling.grid import PatchGrid

__all__ = [
    "LEVEL_CHUNK",
    "array_files",
    "before_scan",
    "coarser_levels",
    "halve",
    "label_arrays",
    "level_arrays",
    "place_arrays",
    "rewrite_attributes",
    "write_derived",
    "write_empty",
]

SMALLEST_LEVEL = 64
"""The last level of the pyramid has at most this many cells a side."""
LEVEL_CHUNK = 512
"""Cells along a chunk's side in the arrays that are derived (few files)."""
Cells = TypeVar("Cells", bound=np.generic)


def write_empty(path: Path, name: str, record: ScanRecord, tissue: NDArray[np.bool_]) -> None:
    """Write a store in which no cell is scanned yet; parameters as :meth:`wsi_meta.Heatmap.create`."""
    import zarr
    from zarr.codecs import ZstdCodec

    grid, parts, ome = record.grid, record.to_dict(), multiscales(name, record.grid.cell_um, 1)
    attributes = {"ome": ome, "wsi_meta": parts, "wsi_meta_seal": seal_of(parts, None)}
    group = zarr.create_group(path, zarr_format=3, attributes=attributes)  # our mark first
    for array in (*record.arrays, "checksums"):
        form = FORMS[array]
        group.create_array(
            array,
            shape=form.shape(grid),
            chunks=form.chunk(grid),
            dtype=form.dtype,
            fill_value=form.fill,
            dimension_names=("block_row", "block_col") if form.by_block else ("y", "x"),
            compressors=ZstdCodec(checksum=True),
            attributes=form.attributes,
        )
    cast("Any", group["status"])[...] = before_scan(tissue)


def before_scan(tissue: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the status of cells of which none was scanned: pending where there is tissue, else background."""
    return np.where(tissue, Status.PENDING, Status.BACKGROUND).astype(np.uint8)


def coarser_levels(level: NDArray[Cells]) -> list[NDArray[Cells]]:
    """Return the levels after the first, each half the one before, until both sides are small."""
    levels = []
    while max(level.shape) > SMALLEST_LEVEL:
        level = halve(level)
        levels.append(level)
    return levels


def halve(level: NDArray[Cells]) -> NDArray[Cells]:
    """Return the maximum of two by two elements, ignoring NaN; NaN where all four are. Integers have 0 for NaN."""
    rows, cols = level.shape
    nothing = np.nan if level.dtype.kind == "f" else 0
    padded = np.pad(level, ((0, rows % 2), (0, cols % 2)), constant_values=nothing)
    highest: NDArray[Cells] = np.fmax.reduce(padded.reshape(padded.shape[0] // 2, 2, -1, 2), axis=(1, 3))
    return highest


def place_arrays(grid: PatchGrid, shape: tuple[int, ...], level: int = 0) -> dict[str, NDArray[Any]]:
    """Return the places of the rows and of the columns of a level, by their paths in the store."""
    side, folder = grid.cell_um * 2**level, f"{level}/" if level else ""
    return {folder + axis: (np.arange(count) + 0.5) * side for axis, count in zip("yx", shape, strict=True)}


def level_arrays(grid: PatchGrid, probability: NDArray[np.float32]) -> list[dict[str, NDArray[Any]]]:
    """Return of each level after the first its values and its places, by their paths in the store."""
    levels = enumerate(coarser_levels(probability), 1)
    return [{level_path(number): level} | place_arrays(grid, level.shape, number) for number, level in levels]


def label_arrays(
    grid: PatchGrid, probability: NDArray[np.float32], status: NDArray[np.uint8], lesions: dict[str, Any] | None
) -> dict[str, NDArray[Any]]:
    """Return all levels of the label images, by their paths in the store.

    Parameters
    ----------
    probability, status : of the cells, (rows, cols)
    lesions : as :func:`wsi_meta.heatmaps.lesions.lesion_facts` returns them; None for no image of them
    """
    images: dict[str, NDArray[Any]] = {"status": status}
    if lesions is not None:
        regions = label_regions(probability, lesions["threshold"], lesions["peak"])
        images["lesions"] = numbered(regions, lesions["found"], grid)
    return {
        f"labels/{name}/{number}": level
        for name, image in images.items()
        for number, level in enumerate([image, *coarser_levels(image)])
    }


def rewrite_attributes(path: Path, attributes: dict[str, Any]) -> None:
    """Change attributes of a group; after a kill or a loss of power they are the old ones or the new ones.

    Raises
    ------
    OutputPathError
        when they cannot be written, for example to a full disk.
    """
    mark = path / "zarr.json"
    content = from_json(mark.read_bytes())
    content["attributes"] |= attributes
    with written_whole(mark) as partial:
        partial.write_text(json.dumps(content))


def write_derived(
    store: Path,
    grid: PatchGrid,
    probability: NDArray[np.float32],
    status: NDArray[np.uint8],
    lesions: dict[str, Any] | None,
) -> int:
    """Write coarser levels, places and labels into a store, over older ones; return how many levels there are.

    Parameters
    ----------
    probability, status, lesions : as :func:`label_arrays` takes them
    """
    coarser = level_arrays(grid, probability)
    levels = 1 + len(coarser)
    derived = place_arrays(grid, probability.shape) | label_arrays(grid, probability, status, lesions)
    derived |= {path: values for level in coarser for path, values in level.items()}
    folders = [str(number) for number in range(1, levels)]
    names = [name for name in LABELS if f"labels/{name}/0" in derived]
    for part in (*folders, *(f"labels/{name}" for name in LABELS)):
        remove_part(store, part)
    groups: dict[str, Any] = {part: {} for part in folders}
    groups["labels"] = {"ome": {"version": "0.5", "labels": names + _other_labels(store)}}
    groups |= {f"labels/{name}": {"ome": label_metadata(name, grid.cell_um, levels, lesions)} for name in names}
    for path, attributes in groups.items():
        _write_files(store / path, {"zarr.json": _node(attributes)})
    for path, values in derived.items():
        _write_files(store / path, array_files(path, values))
    return levels


def array_files(path: str, values: NDArray[Any]) -> dict[str, bytes]:
    """Return the files of an array that is derived, by their paths in its folder, as zarr itself would write them.

    A call of zarr takes milliseconds, and a store has two dozen small arrays.

    Parameters
    ----------
    path : of the array in the store
    values : (rows, cols), or of one axis that is named as the array
    """
    from imagecodecs import zstd_encode

    nothing = np.nan if values.dtype == np.float32 else 0
    chunks = tuple(min(LEVEL_CHUNK, side) for side in values.shape)
    described = {
        "node_type": "array",
        "shape": values.shape,
        "data_type": values.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": nothing if nothing == 0 else "NaN",
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "zstd", "configuration": {"level": 0, "checksum": False}},
        ],
        "dimension_names": (path.rpartition("/")[2],) if values.ndim == 1 else ("y", "x"),
    }
    files = {"zarr.json": _node(attributes_of(path), **described)}
    beyond = [(0, -side % chunk) for side, chunk in zip(values.shape, chunks, strict=True)]
    whole = np.pad(values, beyond, constant_values=nothing)
    for place in np.ndindex(*(side // chunk for side, chunk in zip(whole.shape, chunks, strict=True))):
        part = whole[tuple(slice(at * chunk, (at + 1) * chunk) for at, chunk in zip(place, chunks, strict=True))]
        if not np.array_equal(part, np.full_like(part, nothing), equal_nan=nothing != 0):
            packed = zstd_encode(part.astype(part.dtype.newbyteorder("<")).tobytes(), level=0)
            files["/".join(["c", *map(str, place)])] = bytes(packed)
    return files


def _node(attributes: dict[str, Any], **described: Any) -> bytes:
    """Return the metadata of a zarr group, or of an array where `described` says so."""
    parts = {"zarr_format": 3, "node_type": "group", "attributes": attributes} | described
    return json.dumps(parts).encode()


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def _other_labels(store: Path) -> list[str]:
    """Return the names of label images that somebody else put into a store; they stay listed."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        listed = from_json((store / "labels" / "zarr.json").read_bytes())["attributes"]["ome"]["labels"]
        if isinstance(listed, list):
            return [name for name in listed if isinstance(name, str) and name not in LABELS]
    return []
