"""The picture of a tissue survey: the slide, and over it what is left out, with the reasons in words and mm2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.pictures.colours import blend
from wsi_meta.pictures.legend import unseen_entries, veil_entry
from wsi_meta.pictures.lettering import letter
from wsi_meta.pictures.page import Entry, Page, dpi_for
from wsi_meta.pictures.picture_file import write_figure
from wsi_meta.pictures.window import Window, hatch, read_window
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.pieces import SPECK
from wsi_meta.tiling.tissue_survey import Kind, TissueSurvey
from wsi_meta.words import counted, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["draw_survey", "mark_pieces", "shown_kinds"]

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
HATCHED = (Kind.UNSEEN, Kind.UNREADABLE)
"""Drawn as cells that could not be read are drawn in the picture of a map."""
NOTE = "where a scan looks for tumor, and what it leaves out (research use only)"
BAND_PX = 256
"""Rows that are blended at a time."""


def draw_survey(survey: TissueSurvey, slide: Slide, out: Path, *, overwrite: bool) -> Path:
    """Draw a survey over its slide and write the picture; pieces are numbered, specks are circled.

    Raises
    ------
    OutputExistsError, OutputPathError
        when it cannot be written.
    SlideReadError
    """
    window = Window(0, 0, slide.width, slide.height)
    shape = window.pixels(MAX_SIDE)
    ground, seen = read_window(slide, window, shape)
    width_mm, height_mm = slide.width * slide.mpp / 1000, slide.height * slide.mpp / 1000
    dpi = dpi_for(MAX_SIDE)
    frame = shape[1] / dpi, shape[0] / dpi
    pixels_mm = (np.arange(shape[0]) + 0.5) * height_mm / shape[0], (np.arange(shape[1]) + 0.5) * width_mm / shape[1]
    picture, striped = _over(ground, survey, pixels_mm)
    page = Page(letter(_title(survey), survey.slide), [NOTE], frame, None, _entries(survey, seen | striped), dpi)
    axes = page.add_picture(picture, (0, width_mm, height_mm, 0), 0, 0)
    mark_pieces(axes, survey)
    page.add_scale(width_mm / frame[0])
    write_figure(page.figure, out, overwrite=overwrite)
    return out


def _over(
    ground: NDArray[np.uint8], survey: TissueSurvey, pixels_mm: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a picture of the slide with the kinds blended over it, and which of its pixels have the stripes of a kind.

    Parameters
    ----------
    pixels_mm : the centres of the picture's rows and columns
    """
    kinds, every = shown_kinds(survey.kinds)
    rows, cols = (
        np.minimum((centres / (survey.mpp * every / 1000)).astype(np.int64), length - 1)
        for centres, length in zip(pixels_mm, kinds.shape, strict=True)
    )
    colours = np.array([LOOKS[kind][0] for kind in Kind]) / 255
    picture, striped = np.empty_like(ground), np.empty(ground.shape[:2], bool)
    for top in range(0, len(ground), BAND_PX):
        band = slice(top, top + BAND_PX)
        shown = kinds[rows[band, None], cols[None]]
        striped[band] = np.isin(shown, HATCHED)
        picture[band] = blend(ground[band], hatch(colours[shown], striped[band], top))
    return picture, striped


def shown_kinds(kinds: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """Return at most as many kinds as the picture has pixels, and how many lie along a side of each."""
    every = max(1, -(-max(kinds.shape) // MAX_SIDE))
    shown = kinds[::every, ::every].copy()
    for kind in HATCHED:  # seen wherever some of a pixel cannot be read
        there = np.logical_or.reduceat(kinds == kind, np.arange(0, len(kinds), every), 0)
        shown[np.logical_or.reduceat(there, np.arange(0, kinds.shape[1], every), 1)] = kind
    return shown, every


def _title(survey: TissueSurvey) -> str:
    pieces = counted(len(survey.pieces), "piece")
    return f"{printable(survey.slide)}: tissue {survey.tissue_mm2:.1f} mm², {survey.tissue.fraction:.1%} of the slide, {pieces}"


def mark_pieces(axes: Any, survey: TissueSurvey) -> None:
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


def _entries(survey: TissueSurvey, seen: NDArray[np.bool_]) -> list[Entry]:
    """Return a line of the legend for each kind that occurs, and one for pixels that are neither read nor striped."""
    areas = survey.areas_mm2(left_out=False) | survey.areas_mm2(left_out=True)
    entries = [
        veil_entry(f"{words}: {areas[kind.name.lower()]:.2f} mm²", [part / 255 for part in colour], hatched=kind in HATCHED)
        for kind, (colour, words) in LOOKS.items()
        if kind.name.lower() in areas
    ]
    return [*entries, *unseen_entries(seen)]
