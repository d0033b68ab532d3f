"""The page round a map: title above, and below it scale, colours and words. All is measured in inches before it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.pictures.lettering import Lettering, break_lines, text_width
from wsi_meta.pictures.picture_file import DPI, round_length

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Bar", "Entry", "Page", "dpi_for"]

MARGIN_IN, GAP_IN = 0.16, 0.12
LEAST_WIDTH_IN = 4.2
"""Of what is below a map, however narrow that is."""
TITLE_POINTS, TEXT_POINTS, SMALL_POINTS = 12.0, 9.0, 8.0
LINE_IN = 1.45 / 72
"""Height of a line for each point of its type."""
BAR_WIDTH_IN, BAR_HEIGHT_IN, MARKS_IN, BELOW_BAR_IN = 3.2, 0.15, 0.34, 0.6
"""Colour bar; room for the marks' words above it, for numbers and label below it."""
PATCH_IN = 0.22
SCALE_IN = 0.3
FULL_SIDE_PX = 2000
"""Up to so many pixels a picture grows; a larger one has finer pixels, so that words grow with it."""


Extent = tuple[float, float, float, float]
"""Left, right, bottom and top of a picture on its slide: level-0 pixels, or mm."""


@dataclass(frozen=True)
class Entry:
    """A line of the legend: what is drawn before its words."""

    words: str
    colour: tuple[float, ...] | None = None
    hatch: tuple[float, ...] | None = None
    """Colour of the stripes over it."""
    round: bool = False


@dataclass(frozen=True, eq=False)
class Bar:
    """A colour bar: colours as they look in the picture, and values that are marked on it."""

    colours: NDArray[np.uint8]
    top: float
    label: str
    note: str = ""
    marks: Sequence[tuple[float, str]] = ()


def dpi_for(longer_side: int) -> float:
    """Return the pixels per inch of a picture."""
    return DPI * max(1.0, longer_side / FULL_SIDE_PX)


class Page:
    """A figure with room for one map, or several, between title and legend.

    Parameters
    ----------
    title : wrapped to as many lines as it needs
    notes : smaller lines below it
    content_in : width and height of what is shown
    bar, legend : below it
    dpi : pixels per inch

    Attributes
    ----------
    figure : matplotlib's
    """

    def __init__(
        self,
        title: Lettering,
        notes: Sequence[str],
        content_in: tuple[float, float],
        bar: Bar | None,
        legend: Sequence[Entry],
        dpi: float,
    ) -> None:
        from matplotlib.figure import Figure

        self._width = max(content_in[0], LEAST_WIDTH_IN)
        self._title = break_lines(title, TITLE_POINTS, self._width)
        self._notes = [line for note in notes for line in break_lines(Lettering(note), TEXT_POINTS, self._width)]
        self._top = _whole(
            MARGIN_IN + TITLE_POINTS * LINE_IN * len(self._title) + TEXT_POINTS * LINE_IN * len(self._notes) + 0.06, dpi
        )
        self._below = self._top + content_in[1] + 0.06
        beside = bar is not None and self._beside(legend)
        bar_in = (BAR_WIDTH_IN + 3 * GAP_IN, MARKS_IN + BAR_HEIGHT_IN + BELOW_BAR_IN) if bar is not None else (0.0, 0.0)
        legend_left, legend_top = (bar_in[0], 0.0) if beside else (0.0, bar_in[1])
        rows = _flow([_entry_width(entry) for entry in legend], self._width - legend_left)
        legend_in = TEXT_POINTS * LINE_IN * 1.15 * (rows[-1][0] + 1 if rows else 0)
        self._footer = self._below + SCALE_IN
        height = self._footer + max(bar_in[1], legend_top + legend_in) + MARGIN_IN
        self.size_in = _whole(self._width + 2 * MARGIN_IN, dpi), _whole(height, dpi)
        self.figure: Any = Figure(figsize=self.size_in, dpi=dpi)
        self._write_head(title.families)
        if bar is not None:
            self._draw_bar(bar)
        for entry, (row, x) in zip(legend, rows, strict=True):
            self._draw_entry(entry, legend_left + x, self._footer + legend_top + TEXT_POINTS * LINE_IN * 1.15 * row)

    def add_picture(self, picture: NDArray[np.uint8], extent: Extent, left: float, top: float) -> Any:
        """Draw pixels as they are, `left` and `top` inches from the corner of the content; return their axes.

        The axes count in units of `extent`.
        """
        dpi = self.figure.get_dpi()
        axes = self.figure.add_axes(
            self._box(_whole(MARGIN_IN, dpi) + left, self._top + top, picture.shape[1] / dpi, picture.shape[0] / dpi)
        )
        axes.imshow(picture, origin="upper", extent=extent, interpolation="none", aspect="auto")
        axes.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
        axes.spines[:].set(linewidth=0.5, color="0.3")
        return axes

    def add_scale(self, mm_per_in: float, width_in: float | None = None, left: float = 0.0, top: float | None = None) -> None:
        """Draw a bar of a round length below a picture of a width, which is the page's where None is given.

        A map may be far narrower than its page: a bar that is made for it would be too small to measure with. `top` counts from
        the corner of the content.
        """
        length, words = round_length(mm_per_in * (self._width if width_in is None else width_in))
        y = (self._below if top is None else self._top + top) + 0.1
        self._rectangle(MARGIN_IN + left, y - 0.02, length / mm_per_in, 0.04, facecolor="black")
        self.text(MARGIN_IN + left + length / mm_per_in + 0.07, y, words, TEXT_POINTS)

    def text(self, x: float, y: float, words: str, points: float, **settings: Any) -> None:
        """Write words at inches from the upper left corner of the page, their middle at `y`."""
        place = x / self.size_in[0], 1 - y / self.size_in[1]
        self.figure.text(*place, words, **({"fontsize": points, "va": "center", "parse_math": False} | settings))

    def caption(self, left: float, top: float, words: str, **settings: Any) -> None:
        """Write words at inches from the corner of the content."""
        self.text(MARGIN_IN + left, self._top + top, words, SMALL_POINTS, **settings)

    def _beside(self, legend: Sequence[Entry]) -> bool:
        """Tell whether the legend has room beside the colour bar."""
        return self._width - BAR_WIDTH_IN - 3 * GAP_IN >= max((_entry_width(entry) for entry in legend), default=0)

    def _box(self, x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Return inches from the upper left corner as matplotlib's fractions from the lower left one."""
        page_width, page_height = self.size_in
        return x / page_width, 1 - (y + height) / page_height, width / page_width, height / page_height

    def _rectangle(self, x: float, y: float, width: float, height: float, **settings: Any) -> None:
        from matplotlib.patches import Rectangle

        left, bottom, wide, high = self._box(x, y, width, height)
        self.figure.add_artist(Rectangle((left, bottom), wide, high, transform=self.figure.transFigure, **settings))

    def _write_head(self, families: tuple[str, ...]) -> None:
        y = MARGIN_IN
        drawn: dict[str, Any] = {"fontfamily": [*families, "sans-serif"]}
        noted: dict[str, Any] = {"color": "0.25"}
        lines = [(line, TITLE_POINTS, drawn) for line in self._title]
        for words, points, settings in [*lines, *((note, TEXT_POINTS, noted) for note in self._notes)]:
            self.text(MARGIN_IN, y + points * LINE_IN / 2, words, points, **settings)
            y += points * LINE_IN

    def _draw_bar(self, bar: Bar) -> None:
        axes = self.figure.add_axes(self._box(MARGIN_IN, self._footer + MARKS_IN, BAR_WIDTH_IN, BAR_HEIGHT_IN))
        axes.imshow(bar.colours[None], origin="upper", extent=(0, bar.top, 0, 1), aspect="auto", interpolation="none")
        axes.set(yticks=[], xlim=(0, bar.top))
        axes.tick_params(axis="x", labelsize=SMALL_POINTS, length=3, pad=2)
        axes.spines[:].set(linewidth=0.5)
        y = self._footer + MARKS_IN + BAR_HEIGHT_IN + 0.34
        self.text(MARGIN_IN, y, bar.label, SMALL_POINTS)
        self.text(MARGIN_IN, y + 0.14, bar.note, SMALL_POINTS, color="0.35")
        for number, (value, words) in enumerate(bar.marks):
            x = value / bar.top * BAR_WIDTH_IN
            y = self._footer + MARKS_IN - 0.09 - 0.15 * number
            self._rectangle(MARGIN_IN + x - 0.007, y, 0.014, self._footer + MARKS_IN + BAR_HEIGHT_IN - y, facecolor="black")
            wide = text_width(words, SMALL_POINTS)
            left = x - 0.04 - wide if x - 0.04 >= wide else x + 0.04  # on the left where there is room: marks come in order
            left = max(0.0, min(left, self._width - wide))
            self.text(MARGIN_IN + left, y + 0.01, words, SMALL_POINTS, bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5})

    def _draw_entry(self, entry: Entry, x: float, y: float) -> None:
        from matplotlib.patches import FancyBboxPatch

        x, middle = MARGIN_IN + x, y + TEXT_POINTS * LINE_IN * 0.575
        if entry.colour is not None:
            edge: dict[str, Any] = {"facecolor": entry.colour, "linewidth": 0.5, "edgecolor": "0.3"}
            if entry.hatch is not None:
                edge |= {"hatch": "//////", "edgecolor": entry.hatch}
            if entry.round:
                left, bottom, wide, high = self._box(x + 0.02, middle - 0.045, PATCH_IN - 0.04, 0.09)
                box = FancyBboxPatch(
                    (left * self.size_in[0], bottom * self.size_in[1]),
                    wide * self.size_in[0],
                    high * self.size_in[1],
                    boxstyle="round,pad=0.02",
                    transform=self.figure.dpi_scale_trans,
                    **(edge | {"edgecolor": "black"}),
                )
                self.figure.add_artist(box)
            else:
                self._rectangle(x, middle - 0.055, PATCH_IN, 0.11, **edge)
            x += PATCH_IN + 0.08
        self.text(x, middle, entry.words, TEXT_POINTS)


def _entry_width(entry: Entry) -> float:
    return text_width(entry.words, TEXT_POINTS) + (PATCH_IN + 0.08 if entry.colour is not None else 0)


def _flow(widths: Sequence[float], available: float) -> list[tuple[int, float]]:
    """Return row and left side of each entry of a legend: in columns of one width, as many as there is room for."""
    if not widths:
        return []
    column = max(widths) + 2 * GAP_IN
    columns = max(1, int((available + 2 * GAP_IN) / column))
    rows = -(-len(widths) // columns)
    return [(number % rows, number // rows * column) for number in range(len(widths))]


def _whole(inches: float, dpi: float) -> float:
    """Return a length that is whole pixels."""
    return round(inches * dpi) / dpi
