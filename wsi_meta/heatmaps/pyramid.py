"""The arrays of a store: one element a cell, what is derived from them, and the OME-Zarr metadata that tells where they lie.

Which arrays there are, and why they lie so: ``docs/decisions/0038-the-store-as-other-programs-want-it.md``.
"""

from __future__ import annotations

import json
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from wsi_meta.heatmaps.regions import SIZE_COLOURS, label_regions, numbered

if TYPE_CHECKING:
    from collections.abc import Iterable

    import zarr
    from numpy.typing import NDArray

    from wsi_meta.tiling.grid import PatchGrid

__all__ = [
    "LABELS",
    "LEVEL_CHUNK",
    "Status",
    "coarser_levels",
    "create_arrays",
    "halve",
    "image_label",
    "label_arrays",
    "label_metadata",
    "level_arrays",
    "level_path",
    "multiscale",
    "multiscales",
    "omero",
    "write_derived",
]

SMALLEST_LEVEL = 64
"""The last level of the pyramid has at most this many cells a side."""
LEVEL_CHUNK = 512
"""Cells along a chunk's side in the arrays that are derived (few files)."""
LABELS = ("lesions", "status")
"""Names of the label images."""
CHANNELS = {"tumor probability": ("FF0000", 1.0), "uncertainty": ("00FFFF", 0.5)}
"""Colour (hexadecimal RGB) and highest value of each channel of the map that other programs are shown."""

Cells = TypeVar("Cells", bound=np.generic)


class Status(IntEnum):
    """What became of a cell."""

    PENDING = 0
    BACKGROUND = 1
    SCANNED = 2
    UNREADABLE = 3


STATUS_COLOURS = {Status.BACKGROUND: (0, 0, 0, 0), Status.SCANNED: (0, 158, 115, 64), Status.UNREADABLE: (213, 94, 0, 255)}
"""Red, green, blue and opacity, 0 to 255; pending is 0, which is no label."""
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "0": {"long_name": "probability of tumor", "units": "1", "valid_range": [0.0, 1.0]},
    "status": {
        "long_name": "what became of a cell",
        "flag_values": [int(status) for status in Status],
        "flag_meanings": " ".join(status.name.lower() for status in Status),
    },
    "uncertainty": {"long_name": "standard deviation of the probability over the views", "units": "1"},
    "focus": {"long_name": "how sharp a cell is"},
    "darkness": {"long_name": "how dark a cell is"},
    "y": {"long_name": "distance of a cell's centre from the slide's upper edge", "units": "micrometer"},
    "x": {"long_name": "distance of a cell's centre from the slide's left edge", "units": "micrometer"},
}
"""What an array says of itself, in CF's words, by its name."""


def create_arrays(group: zarr.Group, grid: PatchGrid, values: Iterable[str]) -> None:
    """Make a store's empty arrays: float32 ones by name, NaN everywhere, then the blocks' checksums and the status."""
    from zarr.codecs import ZstdCodec

    chunks, axes, packed = (grid.block_cells, grid.block_cells), ("y", "x"), ZstdCodec(checksum=True)
    common: dict[str, Any] = {"shape": grid.shape, "chunks": chunks, "dimension_names": axes, "compressors": packed}
    for name in values:
        group.create_array(name, dtype="float32", fill_value=np.nan, attributes=ATTRIBUTES.get(name), **common)
    by_block = {"shape": grid.shape_in_blocks, "chunks": (1, 1), "dimension_names": ("block_row", "block_col")}
    group.create_array("checksums", dtype="uint32", fill_value=0, **common | by_block)
    group.create_array("status", dtype="uint8", fill_value=0, attributes=ATTRIBUTES["status"], **common)


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


def level_path(level: int) -> str:
    """Return the path of a level of the map. Each but the first has a group of its own, as xarray wants it."""
    return f"{level}/probability" if level else "0"


def level_arrays(grid: PatchGrid, probability: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return the coarser levels of the map, and of all levels the places of rows and columns, by their paths in the store."""
    levels = [probability, *coarser_levels(probability)]
    found: dict[str, NDArray[Any]] = {level_path(number): level for number, level in enumerate(levels) if number}
    for number, level in enumerate(levels):
        side, folder = grid.cell_um * 2**number, f"{number}/" if number else ""
        found |= {folder + axis: (np.arange(count) + 0.5) * side for axis, count in zip("yx", level.shape, strict=True)}
    return found


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


def write_derived(
    group: zarr.Group,
    grid: PatchGrid,
    probability: NDArray[np.float32],
    status: NDArray[np.uint8],
    lesions: dict[str, Any] | None,
) -> int:
    """Write coarser levels, places and labels into a store's group, over older ones; return how many levels there are.

    Parameters
    ----------
    probability, status, lesions : as :func:`label_arrays` takes them
    """
    derived = level_arrays(grid, probability)
    levels = 1 + sum(path.endswith("/probability") for path in derived)
    for number in range(1, levels):
        group.create_group(str(number), overwrite=True)
    derived |= label_arrays(grid, probability, status, lesions)
    names = [name for name in LABELS if f"labels/{name}/0" in derived]
    _list_labels(group, names)
    for name in names:
        ome = label_metadata(name, grid.cell_um, levels, lesions)
        group.create_group(f"labels/{name}", overwrite=True, attributes={"ome": ome})
    for path, values in derived.items():
        name = path.rpartition("/")[2]
        array = group.create_array(
            path,
            shape=values.shape,
            chunks=tuple(min(LEVEL_CHUNK, side) for side in values.shape),
            dtype=values.dtype,
            fill_value=np.nan if values.dtype == np.float32 else 0,
            dimension_names=(name,) if name in ("y", "x") else ("y", "x"),
            attributes=_attributes_of(path),
            overwrite=True,
        )
        array[...] = values
    return levels


def multiscales(name: str, cell_um: float, levels: int) -> dict[str, Any]:
    """Return the map's OME-Zarr 0.5 metadata: the centre of element (0, 0) lies half an element from the slide's corner."""
    described = {
        "type": "maximum",
        "metadata": {"description": "probability of tumor; NaN = not scanned; coarser levels take the maximum"},
    }
    paths = [level_path(level) for level in range(levels)]
    return {
        "version": "0.5",
        "multiscales": [multiscale(name, cell_um, paths) | described],
        "omero": omero(name, ["tumor probability"]),
    }


def omero(name: str, channels: Iterable[str]) -> dict[str, Any]:
    """Return how viewers shall show channels of the map, as OME-Zarr has it: name, colour, and 0 to the highest value."""
    shown = [
        {
            "label": channel,
            "color": colour,
            "active": channel == "tumor probability",
            "window": {"min": 0.0, "max": highest, "start": 0.0, "end": highest},
        }
        for channel, (colour, highest) in CHANNELS.items()
        if channel in channels
    ]
    return {"name": name, "channels": shown, "rdefs": {"model": "color"}}


def label_metadata(name: str, cell_um: float, levels: int, lesions: dict[str, Any] | None) -> dict[str, Any]:
    """Return the OME-Zarr 0.5 metadata of a label image; `lesions` as :func:`label_arrays` takes them."""
    paths = [str(level) for level in range(levels)]
    return {
        "version": "0.5",
        "multiscales": [multiscale(name, cell_um, paths) | {"type": "maximum"}],
        "image-label": image_label(name, lesions),
    }


def image_label(name: str, lesions: dict[str, Any] | None) -> dict[str, Any]:
    """Return colours and properties of a label image's values, as OME-Zarr has them."""
    if name == "status":
        colours = {int(status): colour for status, colour in STATUS_COLOURS.items()}
        facts = [{"label-value": int(status), "name": status.name.lower()} for status in STATUS_COLOURS]
    else:
        found = (lesions or {}).get("found", [])
        colours = {lesion["lesion"]: (*SIZE_COLOURS[lesion["size_class"]], 255) for lesion in found}
        facts = [
            {"label-value": lesion["lesion"]}
            | {key: value for key, value in lesion.items() if key not in ("lesion", "outlines")}
            for lesion in found
        ]
    painted = [{"label-value": value, "rgba": list(colour)} for value, colour in colours.items()]
    told = {key: value for key, value in (("colors", painted), ("properties", facts)) if value}  # neither may be empty
    return told | {"source": {"image": "../../"}}


def multiscale(name: str, cell_um: float, paths: list[str], *, channels: bool = False) -> dict[str, Any]:
    """Return what OME-Zarr says of an image: its axes, and where its levels lie, in micrometres from the slide's corner.

    Parameters
    ----------
    name : of the image
    cell_um : side of a cell
    paths : of the levels
    channels : whether there is an axis of channels before y and x
    """
    space = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    first: list[dict[str, Any]] = [{"name": "c", "type": "channel"}] if channels else []
    places = (
        [
            {"type": "scale", "scale": [1.0] * channels + [cell_um * 2**level] * 2},
            {"type": "translation", "translation": [0.0] * channels + [cell_um * 2**level / 2] * 2},
        ]
        for level in range(len(paths))
    )
    datasets = [{"path": path, "coordinateTransformations": place} for path, place in zip(paths, places, strict=True)]
    return {"name": name, "axes": first + space, "datasets": datasets}


def _attributes_of(path: str) -> dict[str, Any] | None:
    """Return what an array that is derived says of itself."""
    name = path.rpartition("/")[2]
    if path.startswith("labels/status"):
        return ATTRIBUTES["status"]
    return ATTRIBUTES["0" if name == "probability" else name] if not path.startswith("labels/") else None


def _list_labels(group: zarr.Group, labels: list[str]) -> None:
    """Write the list of label images; whatever else somebody put there stays, and stays listed."""
    store: Any = group.store
    mark, others = Path(store.root, "labels", "zarr.json"), []
    with suppress(OSError, ValueError, LookupError, TypeError):
        listed = json.loads(mark.read_bytes())["attributes"]["ome"]["labels"]
        others = [name for name in listed if name not in LABELS]
    mark.unlink(missing_ok=True)  # it may be torn
    group.create_group("labels", attributes={"ome": {"version": "0.5", "labels": labels + others}})
