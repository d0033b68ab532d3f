"""Results of each piece of tissue, since a glass often holds several nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.heatmaps.lesions import lesion_facts
from wsi_meta.heatmaps.scoring import score_slide
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.tiling.pieces import SPECK, TissuePiece, label_pieces, measure_pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PieceScore", "score_pieces"]


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


def score_pieces(heatmap: Heatmap) -> tuple[PieceScore, ...]:
    """Score each piece of tissue: cells that are not background and touch by a side or a corner.

    Returns
    -------
    Pieces from the left, then the specks together, where there are any.
    """
    grid, probability, status = heatmap.grid, heatmap.probability, heatmap.status
    labels = label_pieces(status != Status.BACKGROUND, grid.cell_um)
    lesions = (heatmap.record.lesions or lesion_facts(heatmap.record, probability))["found"]
    of_piece: dict[int, list[dict[str, Any]]] = {}
    for lesion in lesions:
        row, col = (int(lesion[name] / grid.cell_l0) for name in ("peak_y", "peak_x"))
        of_piece.setdefault(int(labels[row, col]), []).append(lesion)
    pieces = measure_pieces(labels, grid.cell_um, grid.cell_l0)
    found = [_score(piece, piece.piece, labels, heatmap, probability, of_piece.get(piece.piece, [])) for piece in pieces]
    together = measure_pieces((labels == SPECK).astype(np.int32), grid.cell_um, grid.cell_l0)  # one or none
    specks = [_score(piece, SPECK, labels, heatmap, probability, of_piece.get(SPECK, [])) for piece in together]
    return (*found, *specks)


def _score(
    place: TissuePiece,
    label: int,
    labels: NDArray[np.int32],
    heatmap: Heatmap,
    probability: NDArray[np.float32],
    lesions: Sequence[dict[str, Any]],
) -> PieceScore:
    window = tuple(
        slice(round(start / heatmap.grid.cell_l0), round((start + side) / heatmap.grid.cell_l0))
        for start, side in ((place.y, place.height), (place.x, place.width))
    )
    within = labels[window] == label
    values = np.where(within, probability[window], np.float32(np.nan))
    score, unread = score_slide(values), int((within & np.isnan(values)).sum())
    area = sum(float(lesion["area_mm2"]) for lesion in lesions)
    largest = max(lesions, key=lambda lesion: float(lesion["diameter_mm"]))["size_class"] if lesions else None
    told = place.line if label != SPECK else f"specks: {place.area_mm2:.2f} mm2 together"
    told += ", nothing scanned" if score is None else f", score {score:.3f}"
    told += f", {unread} cells not scanned" if unread and score is not None else ""
    told += f", {len(lesions)} lesions of {area:.2f} mm2, largest: {largest}" if lesions else ", no lesion"
    found = {"score": score, "unread": unread, "lesions": len(lesions), "lesion_mm2": area, "largest": largest}
    return PieceScore(**vars(place) | {"piece": 0 if label == SPECK else place.piece, "line": told} | found)
