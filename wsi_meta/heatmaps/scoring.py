"""One number per slide, the counts of its cells, and the same of each piece of tissue, from the map alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import OptionsError, array
from wsi_meta.heatmaps.lesions import lesion_facts
from wsi_meta.heatmaps.record import ScanRecord, ScanResult
from wsi_meta.heatmaps.regions import at_least, largest_lesion, peak_cell
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.tiling.pieces import SPECK, TissuePiece, label_pieces, measure_pieces
from wsi_meta.words import counted, format_probability

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "PieceScore",
    "kept_lesions",
    "mean_of_highest",
    "none_found",
    "score_pieces",
    "score_slide",
    "sum_up",
]

CELLS = "an array of cells (rows, cols), floating numbers from 0 to 1 or NaN; for a heatmap call score_heatmap"
HIGHEST = 10
"""The score is the mean of so many cells, the highest ones."""


def score_slide(probability: NDArray[np.float32]) -> float | None:
    """Score a slide: the mean of its ten highest cells after 3x3 averaging over scanned cells.

    One hot cell (a fold, a speck of dust) moves its neighbourhood's mean by at most a ninth where all are scanned; a
    lesion of a few cells moves it fully. Where cells are missing, their neighbours' means are over fewer, and may be higher or
    lower than with them: the score of a part says nothing certain of the whole.

    Parameters
    ----------
    probability : float32 (rows, cols); NaN where not scanned; such cells are ignored. A heatmap or the path of one is for
        :func:`wsi_meta.score_heatmap`

    Returns
    -------
    float in 0..1; None when no cell was scanned. With fewer than ten scanned cells it is the mean of all of them.

    Raises
    ------
    OptionsError
        when it is no such array, or holds what is no probability.
    """
    array("probability", probability, CELLS, kinds="f", ndim=2)
    if not ((probability >= 0) & (probability <= 1) | np.isnan(probability)).all():
        told = f"values from {np.nanmin(probability):g} to {np.nanmax(probability):g}"
        raise OptionsError(f"probability: {told}; expected {CELLS}")
    return mean_of_highest(probability)


def mean_of_highest(probability: NDArray[np.float32]) -> float | None:
    """Return what :func:`score_slide` does, of the values that a store holds."""
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
    return ScanResult(mean_of_highest(probability), complete, cells)


def none_found(record: ScanRecord) -> str:
    """Return what a map without a lesion says: no more than was looked at."""
    if record.nothing_scanned:
        return "nothing was scanned"
    return "no lesion found" if record.complete else "no lesion in what was read"


@dataclass(frozen=True)
class PieceScore(TissuePiece):
    """What a scan found in one piece of tissue, scanned or not; piece 0 stands for all specks together, those under 0.1 mm2."""

    score: float | None
    """As :func:`wsi_meta.score_slide` of this piece alone; None where nothing of it was scanned."""
    unread: int
    """Cells of it that were not scanned: pending or unreadable."""
    lesions: int
    """Those of :func:`wsi_meta.find_lesions` by its defaults."""
    lesion_mm2: float
    """Area of them together."""
    largest: str | None
    """Size class of the one with the longest diameter; None without lesions."""
    largest_cut: bool | None
    """Whether that one is cut by cells that were not scanned, and may be larger; None without lesions."""


def kept_lesions(heatmap: Heatmap) -> dict[str, Any] | None:
    """Return what a store keeps of its lesions, as :func:`wsi_meta.heatmaps.lesions.lesion_facts` has it; None before its end.

    Stores of before do not say which lesions are cut: none are where all was read, else it is found out again.
    """
    record = heatmap.record
    if record.lesions is None or all("cut" in lesion for lesion in record.lesions["found"]):
        return record.lesions
    if record.complete:
        return record.lesions | {"found": [lesion | {"cut": False} for lesion in record.lesions["found"]]}
    return lesion_facts(record, heatmap.probability, heatmap.status)


def score_pieces(heatmap: Heatmap) -> tuple[PieceScore, ...]:
    """Score each piece of tissue: cells that are not background and touch by a side or a corner.

    Returns
    -------
    Pieces from the left, then the specks together, where there are any.
    """
    from scipy.ndimage import find_objects

    grid, probability, status = heatmap.grid, heatmap.probability, heatmap.status
    labels = label_pieces(status != Status.BACKGROUND, grid.cell_um)
    lesions = (kept_lesions(heatmap) or lesion_facts(heatmap.record, probability, status))["found"]
    of_piece: dict[int, list[dict[str, Any]]] = {}
    for lesion in lesions:
        of_piece.setdefault(int(labels[peak_cell(lesion, grid)]), []).append(lesion)
    pieces = measure_pieces(labels, grid.cell_um, grid.cell_l0, (grid.width, grid.height))
    windows = find_objects(np.maximum(labels, 0))
    found = [
        _score(piece, labels[window] == piece.piece, probability[window], of_piece.get(piece.piece, []))
        for piece, window in zip(pieces, windows, strict=True)
    ]
    specks = labels == SPECK
    for together in measure_pieces(specks.astype(np.int32), grid.cell_um, grid.cell_l0, (grid.width, grid.height)):  # or none
        line = f"specks: {together.area_mm2:.2f} mm2 together"
        found.append(_score(replace(together, piece=0, line=line), specks, probability, of_piece.get(SPECK, [])))
    return tuple(found)


def _score(
    place: TissuePiece, within: NDArray[np.bool_], probability: NDArray[np.float32], lesions: Sequence[dict[str, Any]]
) -> PieceScore:
    values = np.where(within, probability, np.float32(np.nan))
    score, unread = mean_of_highest(values), int((within & np.isnan(values)).sum())
    area = sum(float(lesion["area_mm2"]) for lesion in lesions)
    widest = largest_lesion(lesions)
    largest, cut = (None, None) if widest is None else (widest["size_class"], widest["cut"])
    told = place.line
    told += ", nothing scanned" if score is None else f", score {format_probability(score)}"
    told += f", {counted(unread, 'cell')} not scanned" if unread and score is not None else ""
    found = f", {counted(len(lesions), 'lesion')} of {area:.2f} mm2, largest: {at_least(str(largest), cut=cut)}"
    told += found if lesions else ", no lesion"
    measured = {"score": score, "unread": unread, "lesions": len(lesions), "lesion_mm2": area, "largest": largest}
    measured |= {"largest_cut": cut, "line": told}
    return PieceScore(**vars(place) | measured)
