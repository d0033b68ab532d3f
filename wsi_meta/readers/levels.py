"""Which levels of a slide can be trusted, which one to read for a rectangle, and where in it; units. Arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

from wsi_meta.errors import number, whole_number
from wsi_meta.files.address import SlidePath

__all__ = [
    "LevelWindow",
    "Scales",
    "best_level",
    "check_region",
    "cut_to",
    "find_scales",
    "find_window",
    "is_same_scale",
    "mean_ratios",
    "nearest_pixel",
    "um_per",
]

SAME_SCALE = 1 / 400
"""A level whose pixels are larger or smaller than those asked for by less than this share is read as it is, each pixel from its
nearest one: over a patch of 96 px that is a quarter pixel. So Camelyon's 0.243094 um serves a model of 0.972 um."""
ROUNDED_PX = 1
"""Writers round the sizes of levels up or down, each from the one before: by less than this many pixels of the level."""
WHOLE_TILE_FACTORS = tuple(2**power for power in range(1, 16))
"""Factors that are considered for a level whose size is rounded, or padded or cut to whole tiles: pyramids are halved."""
FARTHEST_PX = 10**9
"""No slide is larger, and no rectangle is asked for further away."""
SURE_TILES = 4
"""A padded level must be as many tiles long before its size is taken as a proof of its factor: a small one fits by chance."""
TOGETHER = (1, 2)
"""Tiles to whose multiple writers pad levels: DICOM by Philips' scanners has even numbers of tiles."""
PREFIXES = (
    *(("yotta", "Y", 24), ("zetta", "Z", 21), ("exa", "E", 18), ("peta", "P", 15), ("tera", "T", 12), ("giga", "G", 9)),
    *(("mega", "M", 6), ("kilo", "k", 3), ("hecto", "h", 2), ("deca", "da", 1), ("deci", "d", -1), ("centi", "c", -2)),
    *(("milli", "m", -3), ("micro", "µ", -6), ("micro", "μ", -6), ("micro", "u", -6), ("nano", "n", -9), ("pico", "p", -12)),
    *(("femto", "f", -15), ("atto", "a", -18), ("zepto", "z", -21), ("yocto", "y", -24)),
)
"""Powers of ten of the metre's prefixes, by name and letter; that of micro is written in two ways."""
METRES = ("meter", "metre", "meters", "metres")
UM_PER_UNIT = {
    **dict.fromkeys((*METRES, "m"), 1e6),
    **{name + metre: float(f"1e{power + 6}") for name, _, power in PREFIXES for metre in METRES},
    **{letter + "m": float(f"1e{power + 6}") for _, letter, power in PREFIXES},
    **dict.fromkeys(("micron", "microns"), 1.0),
    **dict.fromkeys(("angstrom", "\u00c5", "\u212b"), 1e-4),
    **dict.fromkeys(("inch", "in"), 25_400.0),
    **dict.fromkeys(("foot", "ft"), 304_800.0),
    **dict.fromkeys(("yard", "yd"), 914_400.0),
    **dict.fromkeys(("mile", "mi"), 1.609344e9),
    "thou": 25.4,
    "li": 25_400 / 12,
    "pt": 25_400 / 72,
    **dict.fromkeys(("parsec", "pc"), 3.0856775814913673e22),
    "ua": 1.495978707e17,
    "ly": 9.4607304725808e21,
}
"""Micrometres of the units of length that NGFF names, and of OME-XML's, and of what is written for them."""

Size = tuple[int, int]
"""Width and height."""


@dataclass(frozen=True)
class Scales:
    """How much coarser than level 0 each level is."""

    downsamples: tuple[float, ...]
    """Of each level, relative to level 0; as stated for a level that is left out."""
    left_out: dict[int, str]
    """Levels that are never read, with the reason: where their pixels lie on the slide is not known."""

    @property
    def usable(self) -> dict[int, float]:
        """Factors of the levels that may be read."""
        return {level: factor for level, factor in enumerate(self.downsamples) if level not in self.left_out}

    def extents(self, sizes: Sequence[Size]) -> tuple[Size, ...]:
        """Return how much of each level is slide: width and height of `sizes` without the padding to whole tiles."""
        return tuple(
            (_extent(sizes[0][0], width, factor), _extent(sizes[0][1], height, factor))
            for (width, height), factor in zip(sizes, self.downsamples, strict=True)
        )


def um_per(unit: str) -> float | None:
    """Return the micrometres of a unit of length; None where it is not known. Case counts where it tells two units apart."""
    return UM_PER_UNIT.get(unit, UM_PER_UNIT.get(unit.lower()))


def mean_ratios(sizes: Sequence[Size]) -> tuple[float, ...]:
    """Return how many times smaller than level 0 each level is, as OpenSlide states it: the mean over width and height."""
    full = sizes[0]
    return tuple((full[0] / width + full[1] / height) / 2 for width, height in sizes)


def find_scales(sizes: Sequence[Size], stated: Sequence[float], tiles: Sequence[Size | None]) -> Scales:
    """Compare the levels' widths and heights with level 0's: both must be smaller by the same factor.

    Parameters
    ----------
    sizes : of each level, level 0 first
    stated : factor of each level relative to level 0, by OpenSlide, or :func:`mean_ratios`. What a file says of itself besides
        is no proof: a level is all of the slide, so its size tells
    tiles : size of each level's stored tiles; None where it is not known

    Returns
    -------
    The factors. Where sizes are rounded, or padded to whole tiles as Camelyon's are, OpenSlide's is off; ours is the true one.
    """
    factors, left_out = list(stated), {}
    for level in range(1, len(sizes)):
        found = _judge(sizes[0], sizes[level], stated[level], (tiles[0], tiles[level]))
        if isinstance(found, str):
            left_out[level] = found
        else:
            factors[level] = found
    return Scales(tuple(factors), left_out)


def _extent(full: int, side: int, factor: float) -> int:
    return side if side - full / factor <= ROUNDED_PX else ceil(full / factor)


def _judge(full: Size, size: Size, stated: float, tiles: tuple[Size | None, Size | None]) -> float | str:
    """Return a level's factor, or why it is not known."""
    least = max(whole / (side + ROUNDED_PX) for whole, side in zip(full, size, strict=True))
    most = min(
        whole / (side - ROUNDED_PX) if side > ROUNDED_PX else float("inf") for whole, side in zip(full, size, strict=True)
    )
    halvings = [factor for factor in WHOLE_TILE_FACTORS if least <= factor <= most]
    if len(halvings) == 1:
        return float(halvings[0])  # as good a reason as there can be; the stated one is off by the rounding of the sizes
    if ceil(least) <= most:
        return stated
    steps = [None if tiles[1] is None else (count * tiles[1][0], count * tiles[1][1]) for count in TOGETHER]
    found = {step: [factor for factor in WHOLE_TILE_FACTORS if _reaches(size, full, 1 / factor, step)] for step in steps}
    step, padded = next(((step, factors) for step, factors in found.items() if factors), (None, []))
    cut = [factor for factor in WHOLE_TILE_FACTORS if _reaches_not(full, size, factor, tiles)]
    if len(padded) == 1 and not cut and step is not None and max(size[0] // step[0], size[1] // step[1]) >= SURE_TILES:
        return float(padded[0])
    ratios = " and ".join(f"{whole / side:.4g}" for whole, side in zip(full, size, strict=True))
    if padded or cut:
        return f"padded or cut to whole tiles ({ratios} times smaller than level 0)"
    return stated if least <= most else f"width and height are {ratios} times smaller than level 0's; expected the same"


def _reaches(size: Size, full: Size, scale: float, steps: Size | None) -> bool:
    """Tell whether a size is another one, scaled, then padded to whole steps in one direction at least."""
    return steps is not None and all(
        abs(side - whole * scale) <= ROUNDED_PX or (side % step == 0 and 0 <= side - whole * scale < step)
        for side, whole, step in zip(size, full, steps, strict=True)
    )


def _reaches_not(full: Size, size: Size, factor: int, tiles: tuple[Size | None, Size | None]) -> bool:
    """Tell whether at this factor one of the two lacks its last, partial tiles."""
    return any(
        tile is not None
        and all(
            abs(side - whole * scale) <= max(ROUNDED_PX, scale) or (side % step == 0 and 0 <= whole * scale - side < step)
            for side, whole, step in zip(short, whole_size, tile, strict=True)
        )
        for short, whole_size, scale, tile in ((size, full, 1 / factor, tiles[1]), (full, size, float(factor), tiles[0]))
    )


@dataclass(frozen=True)
class LevelWindow:
    """A rectangle of one level, in its pixels, that holds what was asked for at another resolution."""

    level: int
    left: int
    top: int
    width: int
    height: int
    scale: float
    """Pixels of the level per pixel asked for."""

    @property
    def rectangle(self) -> tuple[int, int, int, int, int]:
        """Level, left, top, width, height."""
        return self.level, self.left, self.top, self.width, self.height


def check_region(path: SlidePath, rectangle: Sequence[Any], level: int = 0, levels: int = 1) -> tuple[Any, Any, int, int, int]:
    """Return x, y, width, height and level as plain numbers; OptionsError for a level that a slide has not, or no rectangle."""
    level = whole_number(f"{path}: level", level, f"0 to {levels - 1}", least=0, most=levels - 1)
    most, places, sides = FARTHEST_PX, f"pixels, at most {FARTHEST_PX:,} either way", f"whole pixels, 0 to {FARTHEST_PX:,}"
    x, y = (number(f"{path}: corner", place, places, least=-most, most=most) for place in rectangle[:2])
    width, height = (whole_number(f"{path}: side", side, sides, least=0, most=most) for side in rectangle[2:])
    return x, y, width, height, level


def cut_to(extents: Sequence[Size], rectangle: tuple[int, int, int, int, int]) -> tuple[int, int, int, int, int]:
    """Cut (level, left, top, width, height) down to the slide; the result is empty where width or height is 0 or less."""
    level, left, top, width, height = rectangle
    level_width, level_height = extents[level]
    x, y = max(0, left), max(0, top)
    return level, x, y, min(level_width, left + width) - x, min(level_height, top + height) - y


def find_window(
    downsamples: Mapping[int, float], l0_per_px: Fraction, x: float, y: float, width: int, height: int
) -> LevelWindow:
    """Return the rectangle of a level to read for a rectangle of a plane: of the same level wherever and however large it is.

    Parameters
    ----------
    downsamples : factor relative to level 0 of each level that may be read, level 0 among them
    l0_per_px : level-0 pixels per pixel of the plane, exactly
    x, y, width, height : the rectangle, pixels of the plane; may reach outside the slide
    """
    level = best_level(downsamples, l0_per_px)
    scale = float(l0_per_px) / downsamples[level]
    (left, right), (top, bottom) = (_span(first, count, scale) for first, count in ((x, width), (y, height)))
    return LevelWindow(level, left, top, right - left, bottom - top, scale)


def best_level(downsamples: Mapping[int, float], l0_per_px: Fraction) -> int:
    """Return the coarsest level that is fine enough; level 0 where none is."""
    fine = [level for level, downsample in downsamples.items() if float(l0_per_px) / downsample > 1 - SAME_SCALE]
    return max(fine, key=lambda level: downsamples[level]) if fine else 0


def is_same_scale(scale: float) -> bool:
    """Tell whether a level of so many pixels per pixel asked for is read as it is."""
    return abs(scale - 1) < SAME_SCALE


def nearest_pixel(position: Any, scale: float) -> Any:
    """Return the pixel of a level in which the middle of a pixel of the plane lies, or of each of an array."""
    return (position + 0.5) * scale // 1


def _span(first: float, count: int, scale: float) -> tuple[int, int]:
    """Return the first pixel of a level that pixels of the plane need, and the one after the last."""
    if not is_same_scale(scale):
        return floor(first * scale), ceil((first + count) * scale)
    start = int(nearest_pixel(first, scale))
    return start, int(nearest_pixel(first + count - 1, scale)) + 1 if count else start
