"""What is told of a slide before its scan, and what comes of the scan once its last block is written."""

from __future__ import annotations

import logging
from pathlib import Path

from wsi_meta.errors import SlideReadError
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.tissue import TissueMask

__all__ = ["describe_tissue", "refuse_nothing"]

logger = logging.getLogger("wsi_meta")


def refuse_nothing(heatmap: Heatmap, slide: Path) -> None:
    """Leave no store behind that holds nothing but unreadable tissue.

    Raises
    ------
    SlideReadError
    """
    cells = heatmap.result.cells if heatmap.result else {}
    if cells.get("unreadable") and not cells["scanned"]:
        heatmap.remove()
        raise SlideReadError(f"{slide}: none of its tissue can be read; no heatmap was kept; copy the slide again")


def describe_tissue(tissue: TissueMask, slide: Slide) -> str:
    """Return in one line how much of a slide is tissue; warn where none is."""
    if not tissue.mask.any():
        logger.warning(
            "%s: NO TISSUE FOUND, nothing will be scanned; look at the slide, or pass --tissue-mask none", slide.path
        )
    return f"{slide.name}: tissue on {tissue.fraction:.1%} of the slide"
