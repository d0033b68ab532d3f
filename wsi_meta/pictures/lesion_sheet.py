"""A sheet of the largest lesions: the tissue of each beside the map over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.heatmaps.regions import Lesion, at_least
from wsi_meta.pictures.legend import class_entries, make_bar, tissue_colour, title_of, unknown_entries
from wsi_meta.pictures.lettering import letter
from wsi_meta.pictures.marks import add_outlines, badge
from wsi_meta.pictures.page import Entry, Page, dpi_for
from wsi_meta.pictures.window import Map, Window, read_window
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.words import format_probability

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_meta.slides.slide import Slide

__all__ = ["draw_sheet", "lay_out", "window_round"]

LEAST_MM = 0.5
"""Side of the smallest window: a lesion of one cell is shown with what lies round it."""
ROUND = 1.3
"""Side of a window, times the lesion's longer side."""
LEAST_IN = 2.05
"""Side of a panel: the longest words that stand below one."""
BETWEEN_IN, INSIDE_IN, CAPTION_IN = 0.3, 0.04, 0.46
"""Between lesions, between tissue and map of one, and below them."""


@dataclass(frozen=True, eq=False)
class Shown:
    """One lesion on the sheet."""

    lesion: Lesion
    window: Window
    tissue: NDArray[np.uint8]
    seen: NDArray[np.bool_]


def draw_sheet(drawn: Map, slide: Slide, lesions: Sequence[Lesion], most: int, width_px: int) -> Page:
    """Draw so many of the lesions, the largest ones; their numbers, sizes and probabilities stand below them.

    Parameters
    ----------
    lesions : all of them, one at least, the largest first
    width_px : width of the sheet
    """
    chosen = lesions[:most]
    dpi = dpi_for(width_px)
    across, side_px = lay_out(len(chosen), width_px / dpi, dpi)
    shown = [_show(drawn, slide, lesion, side_px) for lesion in chosen]
    side = side_px / dpi
    page = Page(
        letter(title_of(drawn.record), drawn.record.slide.file),
        [_tell(lesions, len(chosen))],
        (across * (2 * side + INSIDE_IN + BETWEEN_IN) - BETWEEN_IN, -(-len(shown) // across) * (side + CAPTION_IN)),
        make_bar(drawn, _common_colour(drawn, shown), peak=True),
        _legend(drawn, shown),
        dpi,
    )
    for number, one in enumerate(shown):
        left = number % across * (2 * side + INSIDE_IN + BETWEEN_IN)
        _place(page, drawn, one, left, number // across * (side + CAPTION_IN))
    return page


def lay_out(lesions: int, width_in: float, dpi: float) -> tuple[int, int]:
    """Return how many lesions stand side by side, and the side of a panel in pixels: so wide that words fit below it."""
    width_in = max(width_in, 2 * LEAST_IN + INSIDE_IN)
    room = int((width_in + BETWEEN_IN + 1e-9) / (2 * LEAST_IN + INSIDE_IN + BETWEEN_IN))
    across = min(1 if lesions < 2 else 2 if lesions < 5 else 3, room)
    return across, int(((width_in + BETWEEN_IN) / across - BETWEEN_IN - INSIDE_IN) / 2 * dpi)


def window_round(lesion: Lesion, grid: PatchGrid) -> Window:
    """Return a square round a lesion with what lies about it, level-0 pixels, on the slide where that is large enough."""
    corners = np.vstack([outline.vertices for outline in lesion.outlines])
    low, high = corners.min(0), corners.max(0)
    side = max(ROUND * float((high - low).max()), LEAST_MM * 1000 / grid.slide_mpp)
    room = np.array([grid.width, grid.height]) - side
    x, y = np.where(room > 0, np.clip((low + high) / 2 - side / 2, 0, np.maximum(room, 0)), room / 2)
    return Window(float(x), float(y), side, side)


def _show(drawn: Map, slide: Slide, lesion: Lesion, side_px: int) -> Shown:
    window = window_round(lesion, drawn.grid)
    return Shown(lesion, window, *read_window(slide, window, (side_px, side_px)))


def _place(page: Page, drawn: Map, one: Shown, left: float, top: float) -> None:
    """Draw a lesion's tissue, its map and the words below them, at inches from the corner of the sheet's content."""
    lesion, window = one.lesion, one.window
    side = one.tissue.shape[0] / page.figure.get_dpi()
    extent = window.x, window.x + window.width, window.y + window.height, window.y
    page.add_picture(one.tissue, extent, left, top)
    axes = page.add_picture(drawn.over(one.tissue, window), extent, left + side + INSIDE_IN, top)
    add_outlines(axes, [lesion], width=1.2)
    below = top + side + 0.14
    page.caption(left + 0.13, below, str(lesion.number), **badge(lesion.size_class))
    told = (at_least(text, cut=lesion.cut) for text in (lesion.size_class, _length(lesion.diameter_mm)))
    page.caption(left + 0.3, below, ", ".join(told))
    highest, mean = format_probability(lesion.max_probability), format_probability(lesion.mean_probability)
    page.caption(left + 0.3, below + 0.15, f"probability {highest}, mean {mean}")
    page.add_scale(window.width * drawn.grid.slide_mpp / 1000 / side, side, left + side + INSIDE_IN, top + side + 0.04)


def _tell(lesions: Sequence[Lesion], shown: int) -> str:
    which = f"the {shown} largest of {len(lesions)} lesions" if shown < len(lesions) else f"all {shown} lesions"
    number = "the lesion" if len(lesions) == 1 else which
    return f"{number}, the tissue beside the map over it; numbers and outlines as in the overlay; largest diameters"


def _length(mm: float) -> str:
    return f"{mm:.2f} mm" if mm >= 0.1 else f"{mm * 1000:.0f} µm"


def _common_colour(drawn: Map, shown: Sequence[Shown]) -> NDArray[np.uint8]:
    """Return the median of the colours of the tissue in all windows, uint8 RGB."""
    return np.median([tissue_colour(one.tissue, one.seen, drawn, one.window) for one in shown], axis=0).astype(np.uint8)


def _legend(drawn: Map, shown: Sequence[Shown]) -> list[Entry]:
    unknown = [entry for one in shown for entry in unknown_entries(drawn, one.window, one.seen, bare=True)]
    return [*dict.fromkeys(unknown), *class_entries(drawn.record, [one.lesion for one in shown])]
