"""The colours of a map: of each value, of cells that have none, and of the colour bar as it looks on tissue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.heatmaps.record import UNKNOWN, ScanRecord
from wsi_meta.heatmaps.store import Status
from wsi_meta.models.dihedral import VIEWS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "COLOUR_MAP",
    "HATCHED",
    "LAYERS",
    "STYLES",
    "VEIL",
    "Layer",
    "blend",
    "colour_cells",
    "layer_style",
    "shown_colours",
    "veil_of",
]


@dataclass(frozen=True)
class Layer:
    """How one of the store's maps is drawn."""

    colour_map: str
    top: float
    """Value of the last colour; fixed, so that pictures of two slides compare."""
    opaque: float
    """At this value, and above it, the layer is as opaque as it gets."""
    label: str


def _spread_label(views: str) -> str:
    return f"uncertainty: spread over {views} views (SD of the probability)"


COLOUR_MAP = "viridis"
"""Of every picture of probability: perceptually even; its bright end is the complement of haematoxylin's purple."""
STYLES = {
    "probability": Layer(COLOUR_MAP, 1.0, 1.0, "probability of tumor (research use only)"),
    # pale yellow over teal to blue: no colours of H&E. The highest possible value is 0.5 (half of the views 0, half 1); on
    # real tissue (CMU-1-Small-Region) 95 % of the cells stay under 0.25
    "uncertainty": Layer("YlGnBu", 0.5, 0.25, _spread_label("eight")),
}
LAYERS = tuple(STYLES)
"""What can be drawn of a heatmap."""
VEIL = {
    Status.BACKGROUND: ((0.62, 0.62, 0.66, 0.75), "not scanned: no tissue found"),
    Status.PENDING: ((1.0, 0.6, 0.0, 0.85), "not scanned yet"),
    Status.UNREADABLE: ((0.85, 0.0, 0.1, 0.9), "unreadable"),
}
"""Colour (RGBA) and words for every cell that has no value; :func:`veil_of` has the words for one map."""
OUTSIDE = "not scanned: outside the tissue mask"
HATCHED = UNKNOWN
"""Cells that may hold anything: also striped, so that no colour of the map is taken for them."""
STEPS = 256


def colour_cells(
    values: NDArray[np.float32], status: NDArray[np.uint8], layer: str, alpha: float | None, threshold: float = 0.0
) -> NDArray[np.float64]:
    """Return RGBA of every cell, 0 to 1; with `alpha` None they are opaque, since no slide lies beneath.

    One that was scanned and has no value is as one that is unreadable.

    Parameters
    ----------
    values, status : of the cells, (rows, cols)
    layer, alpha, threshold : as for :func:`wsi_meta.draw_overlay`
    """
    from matplotlib import colormaps

    known, drawn = np.nan_to_num(values), STYLES[layer]
    colours = np.asarray(colormaps[drawn.colour_map](known / drawn.top))
    if alpha is not None:
        colours[..., 3] = alpha * np.minimum(known / drawn.opaque, 1)
    colours[known < threshold, 3] = 0
    for state, (colour, _) in VEIL.items():
        colours[status == state] = colour
    colours[np.isnan(values) & (status == Status.SCANNED)] = VEIL[Status.UNREADABLE][0]
    return colours


def blend(ground: NDArray[np.uint8], colours: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return what is seen of a ground (uint8 RGB) under colours (RGBA, 0 to 1) of the same pixels."""
    alpha = colours[..., 3:].astype(np.float32)
    return np.asarray(ground * (1 - alpha) + colours[..., :3] * 255 * alpha + 0.5, np.uint8)


def shown_colours(tissue: NDArray[np.uint8], layer: str, alpha: float | None, threshold: float = 0.0) -> NDArray[np.uint8]:
    """Return the colours of a bar from 0 to the layer's top as they look on tissue of one colour: uint8 RGB (256, 3)."""
    values = np.linspace(0, STYLES[layer].top, STEPS, dtype=np.float32)
    colours = colour_cells(values, np.full(STEPS, Status.SCANNED, np.uint8), layer, alpha, threshold)
    return blend(np.broadcast_to(tissue, (STEPS, 3)), colours)


def layer_style(record: ScanRecord, layer: str) -> Layer:
    """Return how one of :data:`LAYERS` is drawn; the label of uncertainty names the number of views."""
    views = record.identity.views
    named = layer == "uncertainty" and views != VIEWS
    return replace(STYLES[layer], label=_spread_label(str(views))) if named else STYLES[layer]


def veil_of(record: ScanRecord) -> dict[Status, tuple[tuple[float, float, float, float], str]]:
    """Return :data:`VEIL` in the words for a map: where a mask said what is tissue, none was looked for."""
    if record.tissue.source == "found":
        return VEIL
    return VEIL | {Status.BACKGROUND: (VEIL[Status.BACKGROUND][0], OUTSIDE)}
