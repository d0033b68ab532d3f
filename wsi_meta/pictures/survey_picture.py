"""The picture of a tissue survey: the slide, and over it what is left out, with the reasons in words and mm2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import printable
from wsi_meta.pictures.lettering import break_lines, letter
from wsi_meta.pictures.picture_file import DPI, add_scale_bar, write_figure
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.pieces import SPECK
from wsi_meta.tiling.tissue_survey import Kind, TissueSurvey

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["draw_survey"]

MAX_SIDE = 2000
"""Longer side of the slide in the picture, pixels."""
LOOKS: dict[Kind, tuple[tuple[int, int, int, int], str]] = {
    Kind.COLOURED: ((0, 0, 0, 0), "tissue: coloured"),
    Kind.FILLED: ((255, 225, 60, 110), "tissue: gaps and holes up to 0.5 mm² filled"),
    Kind.SPECK: ((0, 170, 160, 200), "tissue: specks under 0.1 mm²"),
    Kind.UNREADABLE: ((217, 0, 25, 230), "tissue: cannot be read"),
    Kind.ADDED: ((40, 200, 40, 130), "tissue: added by the mask"),
    Kind.GLASS: ((125, 128, 140, 190), "left out: glass, or too pale"),
    Kind.HOLE: ((40, 90, 230, 150), "left out: hole over 0.5 mm²"),
    Kind.INK: ((255, 120, 0, 230), "left out: ink, green to blue"),
    Kind.BLACK: ((0, 0, 0, 255), "left out: black"),
    Kind.MASKED: ((230, 0, 200, 150), "left out: coloured, but outside the mask"),
    Kind.UNSEEN: ((150, 0, 25, 230), "left out: cannot be read, outside the mask"),
}
"""Colour (RGBA) and words for each kind."""


def draw_survey(survey: TissueSurvey, slide: Slide, out: Path) -> Path:
    """Draw a survey over its slide and write the picture; pieces are numbered, specks are circled.

    Raises
    ------
    OutputPathError
        when it cannot be written.
    SlideReadError
    """
    from matplotlib.figure import Figure

    width_mm, height_mm = slide.width * slide.mpp / 1000, slide.height * slide.mpp / 1000
    side = MAX_SIDE / DPI / max(width_mm, height_mm)
    figure = Figure(figsize=(max(width_mm * side, 5), max(height_mm * side, 3) + 1.3), layout="constrained", dpi=DPI)
    axes = figure.add_subplot()
    image, _ = slide.read_overview(max(slide.mpp, max(width_mm, height_mm) * 1000 / MAX_SIDE))
    axes.imshow(image, extent=(0, width_mm, height_mm, 0), interpolation="antialiased")
    rows, cols = (length * survey.mpp / 1000 for length in survey.kinds.shape)
    axes.imshow(_colours(survey.kinds), extent=(0, cols, rows, 0), interpolation="nearest")
    axes.set(xlim=(0, width_mm), ylim=(height_mm, 0), xticks=[], yticks=[])
    title = letter(_title(survey), survey.slide)
    axes.set_title("\n".join(break_lines(title, 12, figure.get_figwidth() - 0.4)), parse_math=False, fontfamily=title.families)
    _mark_pieces(axes, survey)
    add_scale_bar(axes, width_mm)
    _add_legend(axes, survey)
    write_figure(figure, out)
    return out


def _colours(kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return RGBA of so many pixels as the picture has."""
    every = max(1, -(-max(kinds.shape) // MAX_SIDE))
    shown = kinds[::every, ::every].copy()
    for kind in (Kind.UNSEEN, Kind.UNREADABLE):  # seen wherever some of a pixel cannot be read
        there = np.logical_or.reduceat(kinds == kind, np.arange(0, len(kinds), every), 0)
        shown[np.logical_or.reduceat(there, np.arange(0, kinds.shape[1], every), 1)] = kind
    return np.array([LOOKS[kind][0] for kind in Kind], np.uint8)[shown]


def _title(survey: TissueSurvey) -> str:
    pieces = f"{len(survey.pieces)} piece" + "s" * (len(survey.pieces) != 1)
    return f"{printable(survey.slide)}: tissue {survey.tissue_mm2:.1f} mm², {survey.tissue.fraction:.1%} of the slide, {pieces}"


def _mark_pieces(axes: Any, survey: TissueSurvey) -> None:
    """Write the numbers of the pieces onto their tissue, and circle the specks, which are small."""
    from matplotlib.patheffects import withStroke
    from scipy.ndimage import center_of_mass, find_objects, label

    cell_mm = survey.cell_px * survey.mpp / 1000
    for number, box in enumerate(find_objects(np.maximum(survey.labels, 0)), 1):
        cells = np.argwhere(survey.labels[box] == number) + [side.start for side in box]
        y, x = cells[np.argmin(((cells - cells.mean(0)) ** 2).sum(1))]  # a ring has no tissue in its middle
        axes.text(
            (x + 0.5) * cell_mm,
            (y + 0.5) * cell_mm,
            str(number),
            ha="center",
            va="center",
            fontsize=12,
            path_effects=[withStroke(linewidth=2.4, foreground="white")],
            clip_on=True,
        )
    found, count = label(survey.labels == SPECK, np.ones((3, 3)))
    if count:
        places = (np.array(center_of_mass(found > 0, found, range(1, count + 1))) + 0.5) * cell_mm
        axes.scatter(places[:, 1], places[:, 0], s=40, facecolors="none", edgecolors=[(0, 0.67, 0.63)], linewidths=0.9)


def _add_legend(axes: Any, survey: TissueSurvey) -> None:
    from matplotlib.patches import Patch

    areas = survey.areas_mm2(left_out=False) | survey.areas_mm2(left_out=True)
    looks = [(*LOOKS[kind], areas[kind.name.lower()]) for kind in Kind if kind.name.lower() in areas]
    patches = [
        Patch(facecolor=(red / 255, green / 255, blue / 255, alpha / 255), edgecolor="0.5", label=f"{words}: {area:.2f} mm²")
        for (red, green, blue, alpha), words, area in looks
    ]
    axes.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False)
