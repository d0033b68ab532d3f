"""The map as a pyramidal OME-TIFF, which QuPath, Fiji and Bio-Formats open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wsi_meta.heatmaps.lesions import coverage
from wsi_meta.heatmaps.pyramid import coarser_levels
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.words import printable

__all__ = ["is_exported_tiff", "write_ome_tiff"]

TILE_CELLS = 256
"""Side of a stored tile."""
MARK = "cell um"
"""Name of a remark that only this module writes."""
NO_XML = {0xFFFE: r"\ufffe", 0xFFFF: r"\uffff"}
"""Signs that a person is shown, and XML does not take."""


def write_ome_tiff(heatmap: Heatmap, file: Path) -> None:
    """Write the map as float32 with a channel each for probability and, where it is kept, uncertainty; NaN = not scanned.

    A pixel is a cell: its physical size is the cell's side in micrometres, and its upper left corner is the slide's level-0
    corner. A picture with pixel size and position lies right on the slide in any program that counts in micrometres. Coarser
    levels, as SubIFDs, take the maximum of the probability, as the store's do.
    """
    import tifffile

    grid, record = heatmap.grid, heatmap.record
    kept = {"Tumor probability": heatmap.probability, "Uncertainty": heatmap.uncertainty}
    channels = {name: values for name, values in kept.items() if values is not None}
    levels = [[values, *coarser_levels(values)] for values in channels.values()]
    facts = {"slide": record.slide.file, "model": record.identity.model, "slide mpp": record.slide.mpp, MARK: grid.cell_um}
    facts |= {} if record.result is None else {"score": record.result.score}
    facts |= coverage(heatmap)
    metadata: dict[str, Any] = {
        "axes": "CYX",
        "Name": _text(record.slide.name),
        "Channel": {"Name": list(channels)},
        "MapAnnotation": {name: _text(str(value)) for name, value in facts.items()},
        "PhysicalSizeX": grid.cell_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": grid.cell_um,
        "PhysicalSizeYUnit": "µm",
        "Plane": {"PositionX": [0.0] * len(channels), "PositionXUnit": ["µm"] * len(channels)}
        | {"PositionY": [0.0] * len(channels), "PositionYUnit": ["µm"] * len(channels)},
    }
    common: dict[str, Any] = {
        "photometric": "minisblack",
        "compression": "zlib",
        "tile": (TILE_CELLS, TILE_CELLS),
        "resolutionunit": "CENTIMETER",
    }
    with tifffile.TiffWriter(file, ome=True, bigtiff=True) as writer:
        for number, level in enumerate(zip(*levels, strict=True)):
            own = {"metadata": metadata, "subifds": len(levels[0]) - 1} if number == 0 else {"subfiletype": 1, "metadata": None}
            per_cm = 1e4 / (grid.cell_um * 2**number)  # for programs that read no OME-XML
            writer.write(np.stack(level), resolution=(per_cm, per_cm), **own, **common)


def _text(text: str) -> str:
    """Return a text as XML can hold it: names of slides may have signs that it does not take."""
    return printable(text).translate(NO_XML)


def is_exported_tiff(path: Path) -> bool:
    """Tell whether a file is one that :func:`write_ome_tiff` wrote."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return f'K="{MARK}"' in (file.ome_metadata or "")
    except Exception:  # what a file that is no TIFF raises depends on what it is
        return False
