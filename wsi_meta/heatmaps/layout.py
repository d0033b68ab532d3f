"""What lies where in a store, and what that says of itself: arrays, and the words of CF and OME-Zarr for them.

Whether a file is one of a store's, how an array is made and how it must be found again all follow from what stands here.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.heatmaps.record import Status
from wsi_meta.heatmaps.regions import SIZE_COLOURS
from wsi_meta.outputs.paths import UNIQUE
from wsi_meta.quality.cell_measures import MEASURES
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.words import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FORMS",
    "LABELS",
    "ArrayForm",
    "attributes_of",
    "checksum",
    "foreign_part",
    "image_label",
    "is_our_folder",
    "is_ours",
    "label_metadata",
    "level_path",
    "multiscale",
    "multiscales",
    "omero",
    "with_one_nan",
]


@dataclass(frozen=True)
class ArrayForm:
    """How an array that a scan fills block by block is stored: a chunk holds what belongs to one block."""

    attributes: dict[str, Any] = field(default_factory=dict)
    """What it says of itself, in CF's words."""
    dtype: str = "float32"
    fill: float = math.nan
    """What it holds where nothing is stored."""
    by_block: bool = False
    """Whether it has one element a block, else one a cell."""
    gaps: bool = False
    """Whether a cell that was scanned may have no value."""

    def shape(self, grid: PatchGrid) -> tuple[int, int]:
        """Return rows and columns."""
        return grid.shape_in_blocks if self.by_block else grid.shape

    def chunk(self, grid: PatchGrid) -> tuple[int, int]:
        """Return rows and columns of a chunk."""
        return (1, 1) if self.by_block else (grid.block_cells, grid.block_cells)


MEASURED = {
    "focus": ArrayForm({"long_name": "how sharp a cell is"}, gaps=True),  # there may be nothing in it that could be sharp
    "darkness": ArrayForm({"long_name": "how dark a cell is"}),
}
STATUS = {
    "long_name": "what became of a cell",
    "flag_values": [int(status) for status in Status],
    "flag_meanings": " ".join(status.name.lower() for status in Status),
}
PROBABILITY = {"long_name": "probability of tumor", "units": "1", "valid_range": [0.0, 1.0]}
FORMS = {
    "0": ArrayForm(PROBABILITY),
    "uncertainty": ArrayForm({"long_name": "standard deviation of the probability over the views", "units": "1"}),
    **{name: MEASURED.get(name, ArrayForm()) for name in MEASURES},
    "checksums": ArrayForm(dtype="uint32", fill=0, by_block=True),
    "status": ArrayForm(STATUS, "uint8", 0),
}
"""The arrays that a scan fills, by name; which of them a store has is told by its record."""
LABELS = ("lesions", "status")
"""Names of the label images."""
COARSER = "probability"
"""Name of a coarser level's array in its group."""
PLACES = {
    "y": {"long_name": "distance of a cell's centre from the slide's upper edge", "units": "micrometer"},
    "x": {"long_name": "distance of a cell's centre from the slide's left edge", "units": "micrometer"},
}
"""What the arrays of one dimension say of themselves, by name; each level has both."""

GROUP = rf"(?:\d+|labels(?:/(?:{'|'.join(LABELS)}))?)"
ARRAY = rf"(?:\d+(?:/{COARSER})?|{'|'.join(FORMS)}|labels/(?:{'|'.join(LABELS)})/\d+)"
PLACE = rf"(?:\d+/)?[{''.join(PLACES)}]"
NODE = rf"(?:{GROUP}|{ARRAY}|{PLACE})"
OUR_FILES = re.compile(
    rf"(?:zarr\.[0-9a-f]{{32}}|zarr\.json\.{UNIQUE}|{NODE}/(?:c/(?:\d+/)?)?[^/]+)\.partial"
    rf"|(?:{NODE}/)?zarr\.json|{ARRAY}/c/\d+/\d+|{PLACE}/c/\d+"
)
OUR_FOLDERS = re.compile(rf"{NODE}|{ARRAY}/c(?:/\d+)?|{PLACE}/c")
"""Files and folders of a store, by their path in it; in stores of 0.1.0 coarser levels are arrays, not groups."""

CHANNELS = {"tumor probability": ("FF0000", 1.0), "uncertainty": ("00FFFF", 0.5)}
"""Colour (hexadecimal RGB) and highest value of each channel of the map that other programs are shown."""
STATUS_COLOURS = {Status.BACKGROUND: (0, 0, 0, 0), Status.SCANNED: (0, 158, 115, 64), Status.UNREADABLE: (213, 94, 0, 255)}
"""Red, green, blue and opacity, 0 to 255; pending is 0, which is no label."""


def is_ours(inside: Path) -> bool:
    """Tell whether a file, by its path inside a store, is one that a scan writes."""
    return OUR_FILES.fullmatch(inside.as_posix()) is not None


def is_our_folder(inside: Path) -> bool:
    """Tell whether a folder, by its path inside a store, is one that a scan makes."""
    return OUR_FOLDERS.fullmatch(inside.as_posix()) is not None


def foreign_part(store: Path) -> str | None:
    """Return the path, inside the store, of something that is not ours; None where all is."""
    for entry in sorted(store.rglob("*")):
        inside = entry.relative_to(store)
        if entry.is_symlink() or not (is_our_folder(inside) if entry.is_dir() else is_ours(inside)):
            return inside.as_posix()
    return None


def with_one_nan(values: NDArray[Any]) -> NDArray[Any]:
    """Return values of which every NaN has the bits of the fill value: a chunk of NaN alone is not stored, and read as that."""
    return np.where(np.isnan(values), values.dtype.type(np.nan), values) if values.dtype.kind == "f" else values


def checksum(*values: NDArray[Any]) -> int:
    """Return a CRC-32 of one block's values in all arrays, one after the other; never 0, which stands for not known."""
    return reduce(lambda so_far, array: zlib.crc32(np.ascontiguousarray(array).data, so_far), values, 0) or 1


def level_path(level: int) -> str:
    """Return the path of a level of the map. Each but the first has a group of its own, as xarray wants it."""
    return f"{level}/{COARSER}" if level else "0"


def attributes_of(path: str) -> dict[str, Any]:
    """Return what an array that is derived says of itself; nothing for the levels of older stores."""
    if path.startswith("labels/"):
        return STATUS if path.startswith("labels/status/") else {}
    name = path.rpartition("/")[2]
    return PROBABILITY if name == COARSER else PLACES.get(name, {})


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
    return {"name": printable(name), "channels": shown, "rdefs": {"model": "color"}}


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
    return {"name": printable(name), "axes": first + space, "datasets": datasets}
