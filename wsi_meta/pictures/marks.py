"""What is drawn on a map: outlines of lesions, and their numbers where they cover neither each other nor the frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.heatmaps.regions import SIZE_COLOURS, Lesion
from wsi_meta.pictures.lettering import text_width
from wsi_meta.pictures.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NUMBERED", "add_numbers", "add_outlines", "badge", "class_colour", "place_labels", "seen_in"]

NUMBERED = 60
"""So many lesions, the largest ones, are numbered; more numbers would cover each other."""
POINTS = 8.5
"""Height of the numbers' type."""
BADGE_IN = POINTS / 72 * 1.45
"""Height of a number's badge."""
GAP_IN = 0.03
FAR_IN = 0.1
"""A number farther from its lesion than this has a line to it."""
TURNS = np.array([(np.cos(angle), np.sin(angle)) for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False) - np.pi / 4])
"""Directions in which a place for a number is looked for: to the upper right first (y points down)."""
FARTHER_IN = (0.0, *np.geomspace(0.08, 4, 24).tolist())
"""How far from its lesion a number is tried, again and again."""


def class_colour(size_class: str) -> tuple[float, float, float]:
    """Return the colour of a size class, 0 to 1; QuPath's files have the same."""
    red, green, blue = SIZE_COLOURS[size_class]
    return red / 255, green / 255, blue / 255


def badge(size_class: str) -> dict[str, Any]:
    """Return how text is drawn as the number of a lesion, dark on light or light on dark: arguments of matplotlib's text."""
    colour = class_colour(size_class)
    box = {"boxstyle": "round,pad=0.16,rounding_size=0.3", "facecolor": colour, "edgecolor": "black", "linewidth": 0.6}
    ink = "white" if np.dot(colour, (0.299, 0.587, 0.114)) < 0.5 else "black"
    return {"fontsize": POINTS, "color": ink, "bbox": box, "ha": "center", "va": "center_baseline", "parse_math": False}


def seen_in(lesions: Sequence[Lesion], window: Window) -> list[Lesion]:
    """Return the lesions whose outlines reach into a window."""
    low, high = np.array([window.x, window.y]), np.array([window.x + window.width, window.y + window.height])
    return [
        lesion
        for lesion in lesions
        if any((one.vertices.max(0) > low).all() and (one.vertices.min(0) < high).all() for one in lesion.outlines)
    ]


def add_outlines(axes: Any, lesions: Sequence[Lesion], *, width: float = 0.9) -> None:
    """Outline lesions along their cells, dark on light, which is visible on any colour; `axes` count level-0 pixels."""
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke

    rings = [ring for lesion in lesions for outline in lesion.outlines for ring in (outline.vertices, *outline.holes)]
    halo = [withStroke(linewidth=width + 1.5, foreground="white")]
    closed = [np.vstack([ring, ring[:1]]) for ring in rings]
    axes.add_collection(LineCollection(closed, colors="black", linewidths=width, path_effects=halo), autolim=False)


def add_numbers(axes: Any, lesions: Sequence[Lesion], window: Window, frame_in: tuple[float, float]) -> None:
    """Write the numbers of the largest lesions beside them, in the colours of their size classes, inside the frame.

    Parameters
    ----------
    axes : counts level-0 pixels
    frame_in : width and height of the window in the picture, inches
    """
    from matplotlib.transforms import ScaledTranslation

    chosen = list(lesions[:NUMBERED])
    if not chosen:
        return
    scale = frame_in[0] / window.width
    anchors = np.stack([_ends(lesion, window) * scale for lesion in chosen])
    extents = np.array([(text_width(str(lesion.number), POINTS) + BADGE_IN / 3, BADGE_IN) for lesion in chosen])
    spans = np.hstack([anchors.min(1), anchors.max(1)])
    small = spans[(spans[:, 2:] - spans[:, :2]).max(1) < 2 * BADGE_IN]  # a number would hide them
    places, lines = place_labels(anchors, extents, frame_in, small)
    for lesion, (x, y), end in zip(chosen, places, lines, strict=True):
        if np.hypot(*(end - (x, y))) > FAR_IN + max(BADGE_IN, float(text_width(str(lesion.number), POINTS))) / 2:
            xs, ys = np.array([(x, y), end]).T / scale + np.array([[window.x], [window.y]])
            axes.plot(xs, ys, color="black", linewidth=0.7, solid_capstyle="round", scalex=False, scaley=False)
        moved = axes.transAxes + ScaledTranslation(x, -y, axes.figure.dpi_scale_trans)
        axes.text(0, 1, str(lesion.number), transform=moved, zorder=5, **badge(lesion.size_class))


def place_labels(
    anchors: NDArray[np.float64], extents: NDArray[np.float64], frame: tuple[float, float], kept_free: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find places for labels beside what they belong to: inside the frame, and none over another as long as there is room.

    Parameters
    ----------
    anchors : (labels, ends, 2), x and y of points of each thing that its label may stand beside; y points down
    extents : (labels, 2), width and height of each label
    frame : width and height; the anchors count from its upper left corner
    kept_free : (places, 4), left, top, right and bottom of what no label should cover

    Returns
    -------
    Centre of each label and the end that it belongs to, both (labels, 2).
    """
    placed = kept_free
    centres, ends = np.empty((len(anchors), 2)), np.empty((len(anchors), 2))
    for number, (own, extent) in enumerate(zip(anchors, extents, strict=True)):
        tried, belongs = _candidates(own, extent)
        half = extent / 2 + GAP_IN / 2
        low, high = np.minimum(half, np.array(frame) / 2), np.maximum(np.array(frame) - half, np.array(frame) / 2)
        inside = ((tried >= low - 1e-9) & (tried <= high + 1e-9)).all(1)
        boxes = np.hstack([tried - half, tried + half])
        covered = _overlaps(boxes, placed)
        best = int(np.argmax(inside & (covered == 0))) if (inside & (covered == 0)).any() else int(np.argmin(covered + ~inside))
        centres[number], ends[number] = np.clip(tried[best], low, high), belongs[best]
        placed = np.vstack([placed, np.hstack([centres[number] - half, centres[number] + half])])
    return centres, ends


def _candidates(own: NDArray[np.float64], extent: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return centres of a label round each end, the nearest first, and the end of each."""
    farther = np.array(FARTHER_IN)[:, None, None, None]
    moved = own[None, :, None] + TURNS[None, None] * (farther + GAP_IN + extent / 2)
    belongs = np.broadcast_to(own[None, :, None], moved.shape)
    return moved.reshape(-1, 2), belongs.reshape(-1, 2)


def _overlaps(boxes: NDArray[np.float64], placed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area of each box that is covered by those placed: (boxes,)."""
    low = np.maximum(boxes[:, None, :2], placed[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], placed[None, :, 2:])
    return np.asarray((high - low).clip(0).prod(2).sum(1))


def _ends(lesion: Lesion, window: Window) -> NDArray[np.float64]:
    """Return the points of a lesion farthest right, up, left and down, from the window's corner and inside it: (4, 2)."""
    corners = np.vstack([outline.vertices for outline in lesion.outlines]) - (window.x, window.y)
    corners = corners.clip(0, (window.width, window.height))
    x, y = corners.T
    return corners[[np.lexsort((y, -x))[0], np.lexsort((-x, y))[0], np.lexsort((y, x))[0], np.lexsort((-x, -y))[0]]]
