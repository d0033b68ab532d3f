"""A small picture of each slide for the worklist page: its map and lesions over the slide, in the colours of the overlay."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import HeatmapError, SlideReadError, WsiMetaError
from wsi_meta.files.address import SlidePath, local_path
from wsi_meta.heatmaps.scanned_slide import open_scanned_slide
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.writing import written_whole
from wsi_meta.pictures.window import Map, Window, read_window
from wsi_meta.words import first_line, one_line, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["draw_thumbnail", "make_thumbnail"]

logger = logging.getLogger("wsi_meta")

SIDE_PX = 400
"""Longer side of the picture."""
MOST_PX = 64_000_000
"""A slide is not drawn beneath where its coarsest fitting level has more pixels: reading it would take longer than a second."""
PAPER = (246, 246, 243)
"""What lies beneath a map without its slide."""
OPACITY = 0.7
ALONE = b"map alone"
"""Stands in the comment in the picture of a map without its slide: it is drawn again when the slide is at hand."""


def make_thumbnail(heatmap: Path | Heatmap, slide: str | SlidePath | None, out: Path) -> None:
    """Draw a thumbnail where there is none of just this store; what goes wrong is a missing picture and a warning.

    Parameters
    ----------
    heatmap : a store whose scan has reached its end, or its path
    slide : the slide, where its path is known. The map is drawn alone where the slide cannot be opened
    out : a JPEG
    """
    store = heatmap.path if isinstance(heatmap, Heatmap) else heatmap
    try:
        mark = _mark_of(store)
        if _is_current(out, mark, at_hand=_is_at_hand(slide)):
            return
        picture, alone = draw_thumbnail(heatmap if isinstance(heatmap, Heatmap) else Heatmap.open(store), slide)
        with written_whole(out) as partial:
            picture.save(partial, "JPEG", quality=82, comment=mark + ALONE if alone else mark)
    except Exception as error:  # a picture is never worth a slide
        told = one_line(error) if isinstance(error, WsiMetaError) else first_line(error)
        logger.warning("%s: no thumbnail of it could be drawn (%s)", printable(str(store)), told)


def draw_thumbnail(heatmap: Heatmap, slide: str | SlidePath | None) -> tuple[Image, bool]:
    """Return the picture, RGB, and whether the map is alone on it."""
    from PIL import Image

    heatmap = heatmap.as_of_now()
    window = Window(0, 0, heatmap.grid.width, heatmap.grid.height)
    shape = window.pixels(SIDE_PX)
    beneath = None if slide is None else _read_slide(heatmap, slide, window, shape)
    ground = np.full((*shape, 3), PAPER, np.uint8) if beneath is None else beneath
    alpha = None if beneath is None else OPACITY
    drawn = Map(heatmap.record, heatmap.probability, heatmap.status, "probability", alpha, threshold=0.0)
    picture = Image.fromarray(drawn.over(ground, window))
    _outline(picture, heatmap.record.lesions, SIDE_PX / max(window.width, window.height))
    return picture, beneath is None


def _mark_of(store: Path) -> bytes:
    """Return what is kept in the picture of a store: it follows from the record, and from the values by their checksums."""
    return f"wsi-meta {hashlib.sha256((store / 'zarr.json').read_bytes()).hexdigest()} ".encode()


def _is_current(out: Path, mark: bytes, *, at_hand: bool) -> bool:
    """Tell whether a picture is of the store with this mark, and shows the slide where that can be had."""
    from PIL import Image

    try:
        with Image.open(out) as picture:
            return picture.info.get("comment") in ((mark,) if at_hand else (mark, mark + ALONE))
    except OSError:
        return False


def _is_at_hand(slide: str | SlidePath | None) -> bool:
    """Tell whether a slide lies on a disk; an address is not asked for just that."""
    path = None if slide is None else local_path(slide)
    return path is not None and path.exists()


def _read_slide(heatmap: Heatmap, slide: str | SlidePath, window: Window, shape: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Return a window of a slide; None where it is not at hand, is another one, or has no level that is read quickly."""
    try:
        with open_scanned_slide(heatmap, slide) as opened:
            downsample = max(opened.width, opened.height) / SIDE_PX
            fitting = [
                width * height
                for level, (width, height) in enumerate(opened.level_dimensions)
                if opened.level_downsamples[level] <= max(1, downsample) and level not in opened.levels_left_out
            ]
            if min(fitting, default=0) > MOST_PX:
                return None
            pixels, seen = read_window(opened, window, shape)
            return pixels if seen.any() else None
    except (SlideReadError, HeatmapError) as error:
        logger.debug("%s: the map is drawn alone: %s", slide, one_line(error))
        return None


def _outline(picture: Image, lesions: dict[str, Any] | None, scale: float) -> None:
    """Draw the lesions' outlines, dark on light, which is visible on any colour."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    polygons = (rings for lesion in (lesions or {"found": []})["found"] for rings in lesion["outlines"])
    lines = [[(x * scale, y * scale) for x, y in ring] for rings in polygons for ring in rings]
    for colour, width in (((255, 255, 255), 3), ((0, 0, 0), 1)):
        for line in lines:
            draw.line(line, fill=colour, width=width)
