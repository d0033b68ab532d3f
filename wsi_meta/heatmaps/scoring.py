"""One number per slide, and the counts of its cells, from the map alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.heatmaps.ownership import remove_store
from wsi_meta.heatmaps.record import ScanResult
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.quality.verdict import blurred_share, folded_share

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from wsi_meta.heatmaps.effort import ScanEffort

__all__ = ["describe_end", "known_figures", "refuse_nothing", "score_slide", "sum_up"]

HIGHEST = 10
"""The score is the mean of so many cells, the highest ones."""


def score_slide(probability: NDArray[np.float32]) -> float | None:
    """Score a slide: the mean of its ten highest cells after 3x3 averaging over scanned cells.

    One hot cell (a fold, a speck of dust) moves its neighbourhood's mean by at most a ninth where all are scanned; a
    lesion of a few cells moves it fully.

    Parameters
    ----------
    probability : float32 (rows, cols); NaN where not scanned; such cells are ignored

    Returns
    -------
    float in 0..1; None when no cell was scanned. With fewer than ten scanned cells it is the mean of all of them.
    """
    from scipy.ndimage import convolve

    scanned = np.isfinite(probability)
    if not scanned.any():
        return None
    kernel = np.ones((3, 3))
    total = convolve(np.where(scanned, probability, 0).astype(np.float64), kernel, mode="constant")
    count = convolve(scanned.astype(np.float64), kernel, mode="constant")
    smoothed = total[scanned] / count[scanned]
    return float(np.sort(smoothed)[-HIGHEST:].mean())


def sum_up(status: NDArray[np.uint8], probability: NDArray[np.float32]) -> ScanResult:
    """Return score and counts of a heatmap whose blocks are written; both arrays have the grid's shape."""
    cells = {state.name.lower(): int((status == state).sum()) for state in Status}
    complete = cells["pending"] == cells["unreadable"] == 0
    return ScanResult(score_slide(probability), complete, cells)


def describe_end(heatmap: Heatmap, slide: Path, place: str, effort: ScanEffort) -> tuple[str, dict[str, Any]]:
    """Return what came of a slide's scan and what this run of it took: as one line, and as plain JSON values."""
    result = heatmap.result
    score = result.score if result is not None else None
    complete = result is not None and result.complete
    found = "no cell was scanned" if score is None else f"score {score:.4f}{'' if complete else ', incomplete'}"
    facts = {"place": place, "slide": str(slide), "store": str(heatmap.path), "score": score, "complete": complete}
    told = f"{place} {slide.stem}: {found}; {effort.told if effort.cells else 'finished before'}"
    return told.lstrip(), facts | effort.to_facts()


def known_figures(heatmap: Heatmap, result: ScanResult) -> dict[str, float | None]:
    """Return what a store whose blocks are written says of its slide, by the names of a verdict's figures."""
    measures = heatmap.measures
    unread, scanned = result.cells["unreadable"], result.cells["scanned"]
    return {
        "unread": unread / (unread + scanned) if unread + scanned else None,
        "inked": heatmap.record.tissue.inked,
        "blurred": blurred_share(measures["focus"]) if "focus" in measures else None,
        "folded": folded_share(measures["darkness"]) if "darkness" in measures else None,
    }


def refuse_nothing(heatmap: Heatmap, slide: Path) -> None:
    """Leave no store behind that holds nothing but unreadable tissue.

    Raises
    ------
    SlideReadError
    """
    cells = heatmap.result.cells if heatmap.result else {}
    if cells.get("unreadable") and not cells["scanned"]:
        remove_store(heatmap.path)
        raise SlideReadError(f"{slide}: none of its tissue can be read; no heatmap was kept; copy the slide again")
