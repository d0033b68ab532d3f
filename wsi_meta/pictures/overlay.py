"""The heatmap as a picture, over its slide or alone: all of it, or a part of it closely."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.errors import HeatmapError, OptionsError, SlideReadError, number, one_of, truth, whole_number
from wsi_meta.files.address import Address, local_path
from wsi_meta.heatmaps.lesions import lesions_at, warn_if_corrected, warn_if_unfinished
from wsi_meta.heatmaps.scanned_slide import open_scanned_slide
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.paths import as_path
from wsi_meta.pictures.colours import LAYERS
from wsi_meta.pictures.legend import class_entries, make_bar, tissue_colour, title_of, unknown_entries
from wsi_meta.pictures.lesion_sheet import draw_sheet
from wsi_meta.pictures.lettering import letter
from wsi_meta.pictures.marks import add_numbers, add_outlines, seen_in
from wsi_meta.pictures.page import Page, dpi_for
from wsi_meta.pictures.picture_file import check_picture, write_figure
from wsi_meta.pictures.window import Map, Window, read_ground, window_of_region
from wsi_meta.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from wsi_meta.heatmaps.regions import Lesion
    from wsi_meta.slides.slide import Slide

__all__ = ["draw_overlay"]

ENLARGED = 4
"""A close-up shows a level-0 pixel as at most so many pixels."""
LEAST_FRAME_IN = 0.6
"""A narrower map has no room for the numbers of lesions."""


def draw_overlay(
    heatmap: str | Path | Heatmap,
    out: str | Path,
    *,
    slide: str | Path | Address | None = None,
    layer: str = "probability",
    alpha: float = 0.7,
    threshold: float = 0.0,
    max_side: int = 2000,
    lesions: bool = False,
    region: tuple[int, int, int, int] | None = None,
    largest: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw a heatmap over its slide, with colour bar, scale bar, name and score; write it as a picture.

    Opacity follows the value, so tissue of value 0 looks as on the slide. Cells that were not scanned lie under a grey veil;
    those that could not be read are striped. The colour bar shows the colours as they look on this slide's tissue, with the
    model's threshold. In PDF and SVG words are text and the map is an image.

    Parameters
    ----------
    heatmap : store, or path of one
    out : picture to write; its ending says the format, one of
        :data:`wsi_meta.pictures.picture_file.FORMATS`; without an ending, .png is added
    slide : the slide it was made from, or its address; None draws the heatmap alone
    layer : ``probability``, or ``uncertainty``: the spread over the views, where the scan kept it
    alpha : opacity of the highest value
    threshold : values below it are not coloured
    max_side : longer side of the map, pixels of the picture; of a sheet of lesions, its width
    lesions : outline the lesions that :func:`wsi_meta.find_lesions` finds by its defaults, with their numbers in the colours of
        their size classes
    region : x, y, width and height of a part to draw instead of the whole slide, level-0 pixels from level 0's own corner, as
        OpenSlide counts; a level-0 pixel becomes at most four pixels wide
    largest : draw a sheet of so many lesions instead, the largest ones: the tissue of each beside the map over it; where there
        is no lesion, the whole slide as without it
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
    OptionsError
        for a region that is not on the slide, a sheet of a region or without a slide, or a layer that is none of
        :data:`wsi_meta.pictures.colours.LAYERS`.
    """
    layer, expected = one_of("layer", layer, LAYERS), "a number from 0 to 1"
    alpha, threshold = (number(*share, expected, least=0, most=1) for share in (("alpha", alpha), ("threshold", threshold)))
    max_side = whole_number("max_side", max_side, "1 or more", least=1)
    largest = None if largest is None else whole_number("largest", largest, "1 or more", least=1)
    if largest is not None and region is not None:
        sheet = counted(largest, "lesion")
        raise OptionsError(f"a sheet of {sheet}, and a region; expected one of them: a sheet is of the whole slide")
    if largest is not None and slide is None:
        raise OptionsError(f"a sheet of {counted(largest, 'lesion')}; expected the slide; pass --slide")
    out = check_picture(as_path("out", out), None if slide is None else local_path(slide), overwrite=overwrite)
    heatmap = open_sound(heatmap)
    drawn = Map(heatmap.record, _values(heatmap, layer), heatmap.status, layer, alpha if slide is not None else None, threshold)
    found: tuple[Lesion, ...] | None = None
    if truth("lesions", lesions) or largest is not None:
        warn_if_corrected(heatmap)
        probability = drawn.values if layer == "probability" else heatmap.probability
        warn_if_unfinished(heatmap)
        found, _ = lesions_at(heatmap.record, probability, drawn.status)
    else:
        warn_if_unfinished(heatmap, "its other cells are veiled")
    whole = Window(0, 0, heatmap.grid.width, heatmap.grid.height)
    window = whole if region is None else window_of_region(region, heatmap)
    with ExitStack() as stack:
        opened = None if slide is None else stack.enter_context(open_scanned_slide(heatmap, slide))
        if largest is not None and found and opened is not None:
            page = draw_sheet(drawn, opened, found, largest, max_side)
        else:
            page = _draw(drawn, opened, window, found, max_side)
    write_figure(page.figure, out, overwrite=overwrite)
    return out


def _draw(drawn: Map, slide: Slide | None, window: Window, lesions: Sequence[Lesion] | None, max_side: int) -> Page:
    grid = drawn.grid
    close = (window.width, window.height) != (grid.width, grid.height)
    side = min(max_side, ENLARGED * int(max(window.width, window.height))) if close else max_side
    shape = window.pixels(side)
    ground, seen = read_ground(slide, window, shape)
    if slide is not None and not close and not seen.any():
        raise SlideReadError(f"{slide.path}: nothing of it can be read; copy the slide again")
    inside = None if lesions is None else seen_in(lesions, window)
    dpi = dpi_for(side)
    frame = shape[1] / dpi, shape[0] / dpi
    numbered = min(frame) >= LEAST_FRAME_IN
    notes = [_describe(window, grid.slide_mpp * window.width / shape[1])] if close else []
    entries = unknown_entries(drawn, window, seen) + (
        [] if inside is None else class_entries(drawn.record, inside, numbered=numbered, elsewhere=bool(lesions))
    )
    bar = make_bar(drawn, tissue_colour(ground, seen, drawn, window), peak=inside is not None)
    page = Page(letter(title_of(drawn.record), drawn.record.slide.file), notes, frame, bar, entries, dpi)
    extent = window.x, window.x + window.width, window.y + window.height, window.y
    axes = page.add_picture(drawn.over(ground, window), extent, 0, 0)
    if inside is not None:
        add_outlines(axes, inside)
        add_numbers(axes, inside if numbered else [], window, frame)
    page.add_scale(window.width * grid.slide_mpp / 1000 / frame[0])
    return page


def _describe(window: Window, mpp: float) -> str:
    x, y, width, height = (int(part) for part in (window.x, window.y, window.width, window.height))
    return f"part at x {x}, y {y}: {width} x {height} level-0 pixels; {mpp:.3g} µm per pixel of this picture"


def _values(heatmap: Heatmap, layer: str) -> NDArray[np.float32]:
    if layer == "probability":
        return heatmap.probability
    if (uncertainty := heatmap.uncertainty) is None:
        raise HeatmapError(
            f"{heatmap.path}: holds no uncertainty; expected a heatmap from 'wsi-meta scan --tta --uncertainty'; scan again"
        )
    return uncertainty
