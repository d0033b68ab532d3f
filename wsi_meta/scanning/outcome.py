"""What comes of a scan once its last block is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsi_meta.errors import SlideReadError
from wsi_meta.heatmaps.record import ScanResult
from wsi_meta.heatmaps.scoring import score_slide
from wsi_meta.heatmaps.store import Heatmap, Status

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["refuse_nothing", "sum_up"]


def sum_up(status: NDArray[np.uint8], probability: NDArray[np.float32]) -> ScanResult:
    """Return score and counts of a heatmap whose blocks are written; both arrays have the grid's shape."""
    cells = {state.name.lower(): int((status == state).sum()) for state in Status}
    complete = cells["pending"] == cells["unreadable"] == 0
    return ScanResult(score_slide(probability), complete, cells)


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
