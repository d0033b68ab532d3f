"""The heatmap as a picture, over its slide or alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import HeatmapError, printable
from wsi_meta.heatmaps.lesions import default_lesions
from wsi_meta.heatmaps.record import ScanRecord
from wsi_meta.heatmaps.regions import Lesion
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.models.dihedral import VIEWS
from wsi_meta.outputs import written_whole
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.pictures import DPI, add_scale_bar, check_picture, ending_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["COLOUR_MAP", "LAYERS", "VEIL", "Layer", "colour_cells", "draw_overlay", "layer_style", "read_beneath"]


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
_LAYERS = {
    "probability": Layer(COLOUR_MAP, 1.0, 1.0, "probability of tumor (research use only)"),
    # pale yellow over teal to blue: no colours of H&E. The highest possible value is 0.5 (half of the views 0, half 1); on
    # real tissue (CMU-1-Small-Region) 95 % of the cells stay under 0.25
    "uncertainty": Layer("YlGnBu", 0.5, 0.25, _spread_label("eight")),
}
LAYERS = tuple(_LAYERS)
"""What can be drawn of a heatmap."""
VEIL = {
    Status.BACKGROUND: ((0.62, 0.62, 0.66, 0.75), "not scanned: no tissue found"),
    Status.PENDING: ((1.0, 0.6, 0.0, 0.85), "not scanned yet"),
    Status.UNREADABLE: ((0.85, 0.0, 0.1, 0.9), "unreadable"),
}
"""Colour (RGBA) and words for every cell that has no value."""
NUMBERED = 60
"""So many lesions, the largest ones, are numbered; more numbers would cover each other."""


def draw_overlay(
    heatmap: str | Path | Heatmap,
    out: str | Path,
    *,
    slide: str | Path | None = None,
    layer: str = "probability",
    alpha: float = 0.7,
    threshold: float = 0.0,
    max_side: int = 2000,
    lesions: bool = False,
    overwrite: bool = False,
) -> Path:
    """Draw a heatmap over its slide, with colour bar, scale bar, name and score; write it as a picture.

    Opacity follows the value, so tissue of value 0 looks as on the slide; cells that were not scanned lie under a grey veil.

    Parameters
    ----------
    heatmap : store, or path of one
    out : picture to write; its ending says the format, one of
        :data:`wsi_meta.tiling.pictures.FORMATS`; without an ending, .png is added
    slide : the slide it was made from; None draws the heatmap alone
    layer : ``probability``, or ``uncertainty``: the spread over the views, where the scan kept it
    alpha : opacity of the highest value
    threshold : values below it are not coloured
    max_side : longer side of the map, pixels of the picture
    lesions : outline the lesions that :func:`wsi_meta.find_lesions` finds by its defaults, with their numbers
    overwrite : replace `out` if it exists

    Returns
    -------
    The picture that was written.

    Raises
    ------
    HeatmapError
        when there is no heatmap, it has no such layer, or `slide` is not the slide it was made from.
    SlideReadError, OutputExistsError
    OutputPathError
        when `out` cannot be written, has another ending, or is a slide: that is never replaced.
    ValueError
        for a layer that is none of :data:`LAYERS`.
    """
    from matplotlib.figure import Figure

    if layer not in LAYERS:
        raise ValueError(f"layer {layer!r}; expected one of {LAYERS}")
    out = check_picture(Path(out), slide, overwrite=overwrite)
    heatmap = open_sound(heatmap)
    values, status, grid = _values(heatmap, layer), heatmap.status, heatmap.grid
    width_mm, height_mm = grid.width * grid.slide_mpp / 1000, grid.height * grid.slide_mpp / 1000
    side = max_side / DPI / max(width_mm, height_mm)
    figure = Figure(figsize=(max(width_mm * side, 4) + 1.6, max(height_mm * side, 3) + 1.2), layout="constrained", dpi=DPI)
    axes = figure.add_subplot()
    if slide is not None:
        axes.imshow(read_beneath(heatmap, slide, max_side), extent=(0, width_mm, height_mm, 0), interpolation="antialiased")
    rows, cols = grid.shape
    cell_mm = grid.cell_um / 1000
    colours = colour_cells(values, status, layer, alpha if slide is not None else None, threshold)
    axes.imshow(colours, extent=(0, cols * cell_mm, rows * cell_mm, 0), interpolation="nearest")
    axes.set(xlim=(0, width_mm), ylim=(height_mm, 0), xticks=[], yticks=[])
    axes.set_title(_title(heatmap.record), parse_math=False)
    if lesions:
        probability = values if layer == "probability" else heatmap.probability
        _add_lesions(axes, default_lesions(heatmap, probability), grid.slide_mpp / 1000)
    _add_colour_bar(figure, axes, layer_style(heatmap.record, layer))
    add_scale_bar(axes, width_mm)
    _add_legend(axes, status)
    with written_whole(out) as partial:
        figure.savefig(partial, format=ending_of(out))
    return out


def read_beneath(heatmap: Heatmap, slide: str | Path, max_side: int) -> NDArray[np.uint8]:
    """Return an overview of the slide that a heatmap was made from, uint8 RGB, its longer side about so many pixels.

    Raises
    ------
    HeatmapError
        when it is another slide.
    SlideReadError
    """
    grid, record = heatmap.grid, heatmap.record
    with open_slide(slide, mpp=grid.slide_mpp) as opened:
        if opened.fingerprint() != record.identity.slide:
            raise HeatmapError(f"{heatmap.path}: made from {record.slide.file}, not from {slide}; pass that slide, or none")
        image, _ = opened.read_overview(max(grid.slide_mpp, max(grid.width, grid.height) * grid.slide_mpp / max_side))
    return image


def _values(heatmap: Heatmap, layer: str) -> NDArray[np.float32]:
    if layer == "probability":
        return heatmap.probability
    if (uncertainty := heatmap.uncertainty) is None:
        raise HeatmapError(
            f"{heatmap.path}: holds no uncertainty; expected a heatmap from 'wsi-meta scan --tta --uncertainty'; scan again"
        )
    return uncertainty


def colour_cells(
    values: NDArray[np.float32], status: NDArray[np.uint8], layer: str, alpha: float | None, threshold: float = 0.0
) -> NDArray[np.float64]:
    """Return RGBA of every cell, 0 to 1; with `alpha` None they are opaque, since no slide lies beneath.

    Parameters
    ----------
    values, status : of the cells, (rows, cols)
    layer, alpha, threshold : as for :func:`draw_overlay`
    """
    from matplotlib import colormaps

    known, drawn = np.nan_to_num(values), _LAYERS[layer]
    colours = np.asarray(colormaps[drawn.colour_map](known / drawn.top))
    if alpha is not None:
        colours[..., 3] = alpha * np.minimum(known / drawn.opaque, 1)
    colours[known < threshold, 3] = 0
    for state, (colour, _) in VEIL.items():
        colours[status == state] = colour
    return colours


def _title(record: ScanRecord) -> str:
    name, result = printable(record.slide.name), record.result
    if result is None:
        return f"{name}: scan not finished"
    score = "no score, nothing scanned" if result.score is None else f"score {result.score:.3f}"
    unread = result.cells["unreadable"]
    return f"{name}: {score}" + (f" (incomplete: {unread} cells unreadable)" if unread else "")


def layer_style(record: ScanRecord, layer: str) -> Layer:
    """Return how one of :data:`LAYERS` is drawn; the label of uncertainty names the number of views."""
    views = record.identity.views
    named = layer == "uncertainty" and views != VIEWS
    return replace(_LAYERS[layer], label=_spread_label(str(views))) if named else _LAYERS[layer]


def _add_colour_bar(figure: Any, axes: Any, style: Layer) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours = ScalarMappable(Normalize(0, style.top), style.colour_map)
    bar = figure.colorbar(colours, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label(style.label)


def _add_lesions(axes: Any, lesions: Sequence[Lesion], mm_per_px: float) -> None:
    """Outline lesions along their cells, dark on light, which is visible on any colour; number the largest."""
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke

    rings = [ring for lesion in lesions for outline in lesion.outlines for ring in (outline.vertices, *outline.holes)]
    halo = [withStroke(linewidth=2.4, foreground="white")]
    closed = [np.vstack([ring, ring[:1]]) * mm_per_px for ring in rings]
    axes.add_collection(LineCollection(closed, colors="black", linewidths=0.9, path_effects=halo), autolim=False)
    for lesion in lesions[:NUMBERED]:
        corners = lesion.outlines[0].vertices * mm_per_px
        x, y = corners[np.lexsort((-corners[:, 1], corners[:, 0]))[-1]]  # the upper one of those farthest right
        inwards = x > 0.95 * axes.get_xlim()[1]
        axes.annotate(
            str(lesion.number),
            (x, y),
            (-2 if inwards else 2, 2),
            textcoords="offset points",
            fontsize=10,
            ha="right" if inwards else "left",
            path_effects=halo,
        )


def _add_legend(axes: Any, status: NDArray[np.uint8]) -> None:
    from matplotlib.patches import Patch

    present = [Patch(facecolor=colour, label=words) for state, (colour, words) in VEIL.items() if (status == state).any()]
    if present:
        axes.legend(handles=present, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False)
