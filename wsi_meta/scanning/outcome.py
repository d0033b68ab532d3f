"""What comes of a scan once its last block is written."""

from __future__ import annotations

from pathlib import Path

from wsi_meta.errors import SlideReadError
from wsi_meta.heatmaps.store import Heatmap

__all__ = ["refuse_nothing"]


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
