"""How the page colours a map: as a picture by ``overlay`` does."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsi_meta.heatmaps.record import ScanRecord
from wsi_meta.pictures.colours import layer_style, veil_of

__all__ = ["layer_colours", "veil_colours"]

STEPS = 256
MEASURES = {
    "focus": ("magma_r", 1.0, 0.0, "focus: dark is sharp, pale is blurred"),
    "darkness": ("cividis_r", 255.0, 0.0, "darkness: how far green lies below white"),
}
"""Colour map, last value, opaque value and words of what cells are like, which ``overlay`` does not draw."""
UNMEASURED = {"focus": "focus not measured: too little contrast"}
"""Words for scanned cells without a value of a layer, where the reason is known."""


def layer_colours(record: ScanRecord, layer: str) -> dict[str, Any]:
    """Return how a layer is drawn, plain JSON values.

    Returns
    -------
    dict of ``table`` (hexadecimal RGB of 256 colours, 0 to ``top``), ``top``, ``opaque`` (the value from which on it is as
    opaque as it gets; 0: everywhere), ``label``, and ``unmeasured`` (the words for scanned cells without a value of it).
    """
    unmeasured = {"unmeasured": UNMEASURED.get(layer, f"no {layer} known")}
    if layer in MEASURES:
        return _colours(*MEASURES[layer]) | unmeasured
    drawn = layer_style(record, layer)
    return _colours(drawn.colour_map, drawn.top, drawn.opaque, drawn.label) | unmeasured


def _colours(colour_map: str, top: float, opaque: float, label: str) -> dict[str, Any]:
    from matplotlib import colormaps

    colours = colormaps[colour_map](np.linspace(0, 1, STEPS), bytes=True)[:, :3]
    return {"table": np.asarray(colours).tobytes().hex(), "top": top, "opaque": opaque, "label": label}


def veil_colours(record: ScanRecord) -> dict[str, dict[str, Any]]:
    """Return colour (CSS) and words of each status that has no value, by its number."""
    return {str(int(state)): {"colour": _css(colour), "words": words} for state, (colour, words) in veil_of(record).items()}


def _css(colour: tuple[float, float, float, float]) -> str:
    red, green, blue = (round(255 * part) for part in colour[:3])
    return f"rgba({red},{green},{blue},{colour[3]:g})"
