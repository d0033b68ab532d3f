"""Which level to read for a rectangle at some resolution, and where in it. Arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

__all__ = ["LevelWindow", "find_window"]

SAME_SCALE_PX = 0.25
"""A level is read as it is when its scale is off by less than this over the whole region, in pixels."""


@dataclass(frozen=True)
class LevelWindow:
    """A rectangle of one level, in its pixels, that holds what was asked for at another resolution."""

    level: int
    left: int
    top: int
    width: int
    height: int
    start: tuple[float, float] = (0.0, 0.0)
    """(row, col) in the rectangle of the corner that was asked for."""
    scale: float = 1.0
    """Pixels of the level per pixel asked for; 1 where the level is read as it is."""

    @property
    def rectangle(self) -> tuple[int, int, int, int, int]:
        """Level, left, top, width, height."""
        return self.level, self.left, self.top, self.width, self.height


def find_window(downsamples: Sequence[float], l0_per_px: Fraction, x: int, y: int, width: int, height: int) -> LevelWindow:
    """Return the rectangle of a level to read for a rectangle of a plane.

    Parameters
    ----------
    downsamples : of each level relative to level 0
    l0_per_px : level-0 pixels per pixel of the plane, exactly
    x, y, width, height : the rectangle, pixels of the plane; may reach outside the slide
    """
    level, scale = _best_level(downsamples, float(l0_per_px), max(width, height))
    # exact position of the corner, in pixels of the level; rounded once, here
    left, top = (float(position * l0_per_px) / downsamples[level] for position in (x, y))
    if abs(scale - 1) * max(width, height) < SAME_SCALE_PX:
        return LevelWindow(level, round(left), round(top), width, height)
    l_left, l_top = floor(left), floor(top)
    l_width, l_height = ceil(left + width * scale - l_left), ceil(top + height * scale - l_top)
    return LevelWindow(level, l_left, l_top, l_width, l_height, (top - l_top, left - l_left), scale)


def _best_level(downsamples: Sequence[float], l0_per_px: float, extent_px: int) -> tuple[int, float]:
    """Return the coarsest level that is fine enough, and its pixels per pixel asked for."""
    slack = SAME_SCALE_PX / extent_px
    fine = [level for level, downsample in enumerate(downsamples) if l0_per_px / downsample > 1 - slack]
    level = max(fine, key=lambda level: downsamples[level]) if fine else 0
    return level, l0_per_px / downsamples[level]
