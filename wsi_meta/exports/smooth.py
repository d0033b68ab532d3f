"""Borders of cells made smooth, for the eye: each ring keeps its area."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.annotations.outlines import Outline

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["smoothed"]

ROUNDS = 3
"""How often corners are cut: each time the longest straight part that is left at a corner is halved."""


def smoothed(outline: Outline, cell_l0: float) -> Outline:
    """Return an outline with round corners; the ring and each hole keep their area exactly.

    Corners are cut at a quarter of each side (Chaikin 1974), not farther than a quarter of a cell, so that long sides stay
    straight. The ring is then enlarged or reduced about its centroid until it has its area again. No point moves farther than
    half a cell.

    Parameters
    ----------
    outline : along the sides of cells, level-0 pixels
    cell_l0 : side of a cell, level-0 pixels
    """
    rings = [_with_area_of(ring, _cut_corners(ring, cell_l0 / 4)) for ring in (outline.vertices, *outline.holes)]
    return Outline(rings[0], tuple(rings[1:]), outline.name)


def _cut_corners(ring: NDArray[np.float64], farthest: float) -> NDArray[np.float64]:
    for _ in range(ROUNDS):
        sides = np.roll(ring, -1, axis=0) - ring
        lengths = np.hypot(*sides.T)[:, None]
        share = np.minimum(0.25, np.divide(farthest, lengths, out=np.zeros_like(lengths), where=lengths > 0))
        ring = np.stack([ring + share * sides, ring + (1 - share) * sides], 1).reshape(-1, 2)
        farthest /= 2
    return ring


def _with_area_of(before: NDArray[np.float64], ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a ring that is scaled about its centroid to the area of another one."""
    wanted, (area, centroid) = abs(_area_and_centroid(before)[0]), _area_and_centroid(ring)
    return centroid + (ring - centroid) * np.sqrt(wanted / abs(area)) if area else before


def _area_and_centroid(ring: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Return the signed area and the centroid of a ring (shoelace formula), counted from its first corner to stay exact."""
    moved = ring - ring[0]
    onwards = np.roll(moved, -1, axis=0)
    parts = moved[:, 0] * onwards[:, 1] - onwards[:, 0] * moved[:, 1]
    area = float(parts.sum()) / 2
    centre = ((moved + onwards) * parts[:, None]).sum(0) / (6 * area) if area else moved.mean(0)
    return area, ring[0] + centre
