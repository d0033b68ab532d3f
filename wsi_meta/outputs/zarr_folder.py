"""Folders that are zarr stores: an image that is a slide, or one of our own heatmaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wsi_meta.words import from_json

__all__ = ["is_zarr", "is_zarr_image", "kind_of_zarr", "number_of"]

METADATA = ("zarr.json", ".zattrs", ".zgroup")
"""Files of which a zarr store of version 3 or 2 has one."""


def is_zarr(folder: Path) -> bool:
    """Tell whether a folder is a zarr store of whatever kind."""
    return any((folder / name).is_file() for name in METADATA)


def is_zarr_image(folder: Path) -> bool:
    """Tell whether a folder is an OME-Zarr image, and no heatmap of ours."""
    return folder.is_dir() and is_zarr(folder) and kind_of_zarr(_attributes(folder)) == "image"


def kind_of_zarr(attributes: dict[str, Any]) -> str:
    """Return what the attributes of a zarr group say that it is: ``image``, ``heatmap`` or ``other``."""
    if "wsi_meta" in attributes:
        return "heatmap"
    told = attributes.get("ome", attributes)
    known = isinstance(told, dict) and ("multiscales" in told or "bioformats2raw.layout" in told)
    return "image" if known else "other"


def _attributes(folder: Path) -> dict[str, Any]:
    for name in METADATA[:2]:
        try:
            said = from_json((folder / name).read_text())
        except (OSError, ValueError):
            continue
        if isinstance(said, dict):
            inner = said.get("attributes", {}) if name == "zarr.json" else said
            return inner if isinstance(inner, dict) else {}
    return {}


def number_of(folder: Path) -> tuple[int, int] | None:
    """Return what tells a folder from others; None where there is none."""
    try:
        found = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
