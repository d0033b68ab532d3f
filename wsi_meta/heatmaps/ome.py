"""What a store says of itself in OME-Zarr's words: what is shown, in which colours, and where it lies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from wsi_meta.heatmaps.record import Status
from wsi_meta.heatmaps.regions import SIZE_COLOURS

__all__ = ["image_label", "label_metadata", "level_path", "multiscale", "multiscales", "omero"]

CHANNELS = {"tumor probability": ("FF0000", 1.0), "uncertainty": ("00FFFF", 0.5)}
"""Colour (hexadecimal RGB) and highest value of each channel of the map that other programs are shown."""
STATUS_COLOURS = {Status.BACKGROUND: (0, 0, 0, 0), Status.SCANNED: (0, 158, 115, 64), Status.UNREADABLE: (213, 94, 0, 255)}
"""Red, green, blue and opacity, 0 to 255; pending is 0, which is no label."""


def level_path(level: int) -> str:
    """Return the path of a level of the map. Each but the first has a group of its own, as xarray wants it."""
    return f"{level}/probability" if level else "0"


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
