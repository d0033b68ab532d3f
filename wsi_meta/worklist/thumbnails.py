"""A small picture of each slide for the worklist page: its map and lesions over the slide, in the colours of the overlay."""

from __future__ import annotations

import logging
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import HeatmapError, SlideReadError, WsiMetaError, first_line, one_line, printable
from wsi_meta.files.address import SlidePath, local_path
from wsi_meta.heatmaps.scanned_slide import open_scanned_slide, read_scanned_slide
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs import written_whole
from wsi_meta.pictures.colours import colour_cells
from wsi_meta.pictures.pooling import TUMOR, pool

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
WHOLE = 1e-9
"""A number of cells that is larger than a whole one by less counts as that."""
ALONE = b"wsi-meta: map alone"
"""Comment in the picture of a map without its slide: it is drawn again when the slide is at hand."""


def make_thumbnail(heatmap: Path | Heatmap, slide: str | SlidePath | None, out: Path) -> None:
    """Draw a thumbnail where there is none that is newer than the store; what goes wrong is a missing picture and a warning.

    Parameters
    ----------
    heatmap : a store whose scan has reached its end, or its path
    slide : the slide, where its path is known. The map is drawn alone where the slide cannot be opened
    out : a JPEG
    """
    store = heatmap.path if isinstance(heatmap, Heatmap) else heatmap
    try:
        if _is_current(out, store, at_hand=_is_at_hand(slide)):
            return
        picture, alone = draw_thumbnail(heatmap if isinstance(heatmap, Heatmap) else Heatmap.open(store), slide)
        with written_whole(out) as partial:
            picture.save(partial, "JPEG", quality=82, comment=ALONE if alone else b"wsi-meta")
    except Exception as error:  # a picture is never worth a slide
        told = one_line(error) if isinstance(error, WsiMetaError) else first_line(error)
        logger.warning("%s: no thumbnail of it could be drawn (%s)", printable(str(store)), told)


def draw_thumbnail(heatmap: Heatmap, slide: str | SlidePath | None) -> tuple[Image, bool]:
    """Return the picture, RGB, and whether the map is alone on it."""
    from PIL import Image

    grid = heatmap.grid
    scale = SIDE_PX / max(grid.width, grid.height)
    shape = max(1, round(grid.width * scale)), max(1, round(grid.height * scale))
    beneath = None if slide is None else _read_slide(heatmap, slide)
    ground = Image.new("RGB", shape, PAPER)
    if beneath is not None:
        ground = Image.fromarray(beneath).resize(shape, Image.Resampling.BOX)
    factor = max(1, ceil(1 / (grid.cell_l0 * scale) - WHOLE))  # cells along a pixel
    starts = [np.arange(0, length, factor) if factor > 1 else None for length in grid.shape]
    values, status = pool(heatmap.probability, heatmap.status, (starts[0], starts[1]), TUMOR)
    colours = (colour_cells(values, status, "probability", OPACITY if beneath is not None else None) * 255).astype(np.uint8)
    side = factor * grid.cell_l0 * scale  # of a pooled cell, pixels
    extent = (0, 0, shape[0] / side, shape[1] / side)
    layer = Image.fromarray(colours).transform(shape, Image.Transform.EXTENT, extent, Image.Resampling.NEAREST)
    ground.paste(layer, mask=layer.getchannel("A"))
    _outline(ground, heatmap.record.lesions, scale)
    return ground, beneath is None


def _is_current(out: Path, store: Path, *, at_hand: bool) -> bool:
    """Tell whether a picture is newer than its store, and shows the slide where that can be had."""
    from PIL import Image

    try:
        if out.stat().st_mtime < (store / "zarr.json").stat().st_mtime:
            return False
        with Image.open(out) as picture:
            return not (at_hand and picture.info.get("comment") == ALONE)
    except OSError:
        return False


def _is_at_hand(slide: str | SlidePath | None) -> bool:
    """Tell whether a slide lies on a disk; an address is not asked for just that."""
    path = None if slide is None else local_path(slide)
    return path is not None and path.exists()


def _read_slide(heatmap: Heatmap, slide: str | SlidePath) -> NDArray[np.uint8] | None:
    """Return an overview of a slide; None where it is not at hand, is another one, or has no level that is read quickly."""
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
            return read_scanned_slide(heatmap, opened, SIDE_PX)
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
