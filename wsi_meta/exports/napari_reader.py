"""A heatmap as napari's layers: where it lies, with the colours of ``overlay``, lesions and status as labels beside it.

napari finds this by the manifest ``napari.yaml`` where wsi-meta is installed beside it: ``napari --plugin wsi-meta heat.zarr``.
It is only given plain values; nothing here imports napari.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsi_meta.heatmaps.layout import image_label
from wsi_meta.heatmaps.ownership import is_store
from wsi_meta.heatmaps.pyramid import coarser_levels, label_arrays
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.pictures.colours import COLOUR_MAP

__all__ = ["find_reader", "read_layers"]

LayerData = tuple[list[Any], dict[str, Any], str]
"""What napari makes a layer of: the arrays of all levels, its settings, its kind."""


def find_reader(path: str | list[str]) -> Callable[[str | list[str]], list[LayerData]] | None:
    """Return what reads the layers of a path that napari is given; None where that is not one heatmap store."""
    paths = [path] if isinstance(path, str) else path
    return read_layers if len(paths) == 1 and is_store(Path(paths[0])) else None


def read_layers(path: str | list[str]) -> list[LayerData]:
    """Return the layers of a heatmap store: the map, its lesions, and, not visible at first, the status of its cells.

    Positions are micrometres from the slide's level-0 corner, as the store's own metadata have them.

    Raises
    ------
    HeatmapError
    """
    heatmap = open_sound(path if isinstance(path, str) else path[0])
    name, grid, lesions = heatmap.record.slide.name, heatmap.grid, heatmap.record.lesions
    probability = heatmap.probability
    side = grid.cell_um
    where = {
        "scale": (side, side),
        "translate": (side / 2, side / 2),
        "units": ("micrometer", "micrometer"),
        "axis_labels": ("y", "x"),
        "multiscale": True,
    }
    shown = {"name": f"{name}: tumor probability", "colormap": COLOUR_MAP, "contrast_limits": [0.0, 1.0]}
    layers: list[LayerData] = [([probability, *coarser_levels(probability)], shown | where, "image")]
    levels: dict[str, list[Any]] = {}
    for inside, values in label_arrays(grid, probability, heatmap.status, lesions).items():
        levels.setdefault(inside.split("/")[1], []).append(values)
    for label, images in sorted(levels.items()):
        told = image_label(label, lesions)
        colours: dict[int | None, Any] = {entry["label-value"]: _share(entry["rgba"]) for entry in told.get("colors", ())}
        facts = told.get("properties", [])
        properties = {"index": [fact["label-value"] for fact in facts]}
        properties |= {key: [fact[key] for fact in facts] for key in (facts[0] if facts else ()) if key != "label-value"}
        settings = {"name": f"{name}: {label}", "visible": label == "lesions", "properties": properties}
        layers.append((images, settings | where | {"colormap": colours | {None: (0.0, 0.0, 0.0, 0.0)}}, "labels"))
    return layers


def _share(rgba: list[int]) -> tuple[float, ...]:
    return tuple(part / 255 for part in rgba)
