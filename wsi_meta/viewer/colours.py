"""How the page colours a map: as a picture by ``overlay`` does."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsi_meta.heatmaps import overlay
from wsi_meta.heatmaps.record import ScanRecord

__all__ = ["layer_colours", "veil_colours"]

STEPS = 256


def layer_colours(record: ScanRecord, layer: str) -> dict[str, Any]:
    """Return how a layer is drawn, plain JSON values.

    Returns
    -------
    dict of ``table`` (hexadecimal RGB of 256 colours, 0 to ``top``), ``top``, ``opaque`` (the value from which on it is as
    opaque as it gets) and ``label``.
    """
    from matplotlib import colormaps

    drawn = overlay._LAYERS[layer]
    colours = colormaps[drawn.colour_map](np.linspace(0, 1, STEPS), bytes=True)[:, :3]
    return {
        "table": np.asarray(colours).tobytes().hex(),
        "top": drawn.top,
        "opaque": drawn.opaque,
        "label": overlay._label(record, layer),
    }


def veil_colours() -> dict[str, dict[str, Any]]:
    """Return colour (CSS) and words of each status that has no value, by its number."""
    return {str(int(state)): {"colour": _css(colour), "words": words} for state, (colour, words) in overlay.VEIL.items()}


def _css(colour: tuple[float, float, float, float]) -> str:
    red, green, blue = (round(255 * part) for part in colour[:3])
    return f"rgba({red},{green},{blue},{colour[3]:g})"
