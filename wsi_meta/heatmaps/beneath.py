"""The slide that a heatmap was made from: opened, and checked to be that one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.errors import HeatmapError
from wsi_meta.files.address import Address, slide_path
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.slides.slide import Slide, open_slide

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["is_beneath", "open_beneath", "read_beneath", "slide_scanned"]


def open_beneath(heatmap: Heatmap, slide: str | Path | Address) -> Slide:
    """Open the slide that a heatmap was made from; close it after use.

    Raises
    ------
    HeatmapError
        when it is another slide.
    SlideReadError
    """
    opened = open_slide(slide, mpp=heatmap.grid.slide_mpp)
    if opened.fingerprint() != heatmap.record.identity.slide:
        opened.close()
        scanned, other = heatmap.record.slide.file, slide_path(slide)
        raise HeatmapError(f"{heatmap.path}: made from {scanned}, not from {other}; pass that slide, or none")
    return opened


def is_beneath(heatmap: Heatmap, slide: str | Path | Address) -> bool | None:
    """Tell whether a slide is the one that a heatmap was made from; None where it cannot be opened."""
    try:
        with open_slide(slide, mpp=heatmap.grid.slide_mpp) as opened:
            return opened.fingerprint() == heatmap.record.identity.slide
    except Exception:  # whatever a file brings that was refused before: a question never ends a batch
        return None


def read_beneath(heatmap: Heatmap, slide: str | Path | Address, max_side: int) -> NDArray[np.uint8]:
    """Return an overview of the slide that a heatmap was made from, uint8 RGB, its longer side about so many pixels.

    Raises
    ------
    HeatmapError
        when it is another slide.
    SlideReadError
    """
    grid = heatmap.grid
    with open_beneath(heatmap, slide) as opened:
        image, _ = opened.read_overview(max(grid.slide_mpp, max(grid.width, grid.height) * grid.slide_mpp / max_side))
    return image


def slide_scanned(store: Path) -> str | None:
    """Return the fingerprint of the slide that a heatmap was made from; None where there is no heatmap.

    Raises
    ------
    HeatmapError
        when the store is damaged.
    """
    return Heatmap.open(store).record.identity.slide if store.exists() else None
