"""Outlines of tumor drawn by people, what they mean, and how they are filled.

Coordinates are level-0 pixels from OpenSlide's corner, x first; pixel (x, y) covers [x, x + 1) x [y, y + 1).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.annotations.class_names import ClassNames
from wsi_meta.annotations.outline_files import DrawnFile, DrawnRegion, read_drawn
from wsi_meta.errors import DataError, OptionsError, number, numbers, shown, whole_number
from wsi_meta.outputs.paths import as_path
from wsi_meta.words import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Annotations", "Outline", "fill_outlines", "read_annotations", "refuse_absent", "sort_outlines"]

logger = logging.getLogger(__name__)

MOST_SHOWN = 12
"""Names of classes that a message lists."""
FRAMES = ("tmacore", "root")
"""Kinds of QuPath's objects that say where something lies, not what it is."""
DETECTED = ("tile", "cell", "detection")
"""Kinds that a program made, which mean something only where they have a class."""
WINDOW, CORNER, PIXEL = "height and width in whole pixels", "x and y in pixels", "level-0 pixels along a side, above 0"
"""What is expected of a mask."""


@dataclass(frozen=True, eq=False, repr=False)
class Outline:
    """A closed ring and the holes in it."""

    vertices: NDArray[np.float64]
    """Shape (n, 2), x and y in level-0 pixels; the last is joined to the first."""
    holes: tuple[NDArray[np.float64], ...] = ()
    name: str = ""

    def __repr__(self) -> str:
        """Return how many corners it has, not all of them."""
        holes = f", {counted(len(self.holes), 'hole')}" if self.holes else ""
        return f"Outline({counted(len(self.vertices), 'corner')}{holes}{self.name and f', {self.name!r}'})"

    @property
    def area(self) -> float:
        """Area within the ring less that of its holes, level-0 pixels squared (shoelace formula)."""
        return _area(self.vertices) - sum(map(_area, self.holes))


@dataclass(frozen=True, eq=False)
class Annotations:
    """What was outlined on a slide."""

    tumor: tuple[Outline, ...] = ()
    excluded: tuple[Outline, ...] = ()
    """Removed from the tumor wherever they overlap it."""
    source: str = "outlines"
    """The file that they were read from, for messages."""

    def mask(self, shape: tuple[int, int], downsample: float, *, corner: tuple[int, int] = (0, 0)) -> NDArray[np.bool_]:
        """Draw the tumor at a level, or in a window of it.

        A pixel is tumor when its centre is. A centre on an outline belongs to the side of greater x, then of greater y: where
        two outlines share an edge, exactly one of them gets it.

        Parameters
        ----------
        shape : (height, width) of the window, pixels of the level
        downsample : level-0 pixels along a side of the level's pixel
        corner : x and y of the window's upper left corner, pixels of the level; may be negative

        Returns
        -------
        bool array of `shape`

        Raises
        ------
        OptionsError
            when a number is none, a side of the window is below 0, or `downsample` is not above 0.
        """
        height, width = (whole_number("shape", side, WINDOW, least=0) for side in numbers("shape", shape, 2, WINDOW))
        x, y = (whole_number("corner", place, CORNER) for place in numbers("corner", corner, 2, CORNER))
        if (downsample := number("downsample", downsample, PIXEL)) <= 0:
            raise OptionsError(f"downsample {shown(downsample)}; expected {PIXEL}")
        shape, corner = (height, width), (x, y)
        drawn = [fill_outlines(outlines, shape, downsample, corner=corner) for outlines in (self.tumor, self.excluded)]
        return drawn[0] & ~drawn[1]


def fill_outlines(
    outlines: Iterable[Outline], shape: tuple[int, int], downsample: float, *, corner: tuple[int, int] = (0, 0)
) -> NDArray[np.bool_]:
    """Fill outlines into a new mask; parameters and result as :meth:`Annotations.mask`.

    A ring is filled by the even-odd rule, also where it crosses itself: along a row of pixel centres the inside changes
    where the ring is crossed. The work grows with the number of such crossings and the area of the ring's bounding box.
    """
    mask = np.zeros(shape, bool)
    for outline in outlines:
        window, inside = _filled(outline.vertices / downsample - corner, shape)
        for hole in outline.holes if inside.any() else ():
            # a hole is filled in its own part of the ring's: tissue may have thousands of them
            part, empty = _filled(hole / downsample - corner - (window[1].start, window[0].start), inside.shape)
            inside[part] &= ~empty
        mask[window] |= inside
    return mask


def _filled(ring: NDArray[np.float64], shape: tuple[int, int]) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Return where in a mask of `shape` a ring's bounding box lies, and the ring filled there."""
    left, top = np.clip(np.floor(ring.min(0)), 0, shape[::-1]).astype(int).tolist()
    right, bottom = np.clip(np.ceil(ring.max(0)), 0, shape[::-1]).astype(int).tolist()
    window = slice(top, max(top, bottom)), slice(left, max(left, right))
    if right <= left or bottom <= top:
        return window, np.zeros((window[0].stop - top, window[1].stop - left), bool)
    return window, _fill_ring(ring - (left, top), (bottom - top, right - left))


def read_annotations(
    path: str | Path,
    *,
    tumor: str | Iterable[str] = (),
    excluded: str | Iterable[str] = (),
    origin: tuple[int, int] = (0, 0),
) -> Annotations:
    """Read a slide's outlines; the file's ending gives the format (``.xml``, ``.annotations``, ``.geojson``, ``.json``).

    Parameters
    ----------
    path : ASAP XML (an annotation's group, else its name, says what it is, unless all are named ``Annotation 0`` and so on; a
        group may be part of another), XML of ImageScope or HALO (the layer says it, or the region's text), QuPath GeoJSON (the
        classification says it), or JSON with lists ``positive`` and ``negative`` of ``vertices``
    tumor, excluded : names of groups and classifications, in any case; ``Tumor: Positive`` counts as ``Tumor``. None are those
        of :mod:`wsi_meta.annotations.class_names`. Where `tumor` is given, other classes are left out with a warning
    origin : x and y of the level-0 pixel that QuPath's coordinates count from: the corner of :attr:`wsi_meta.Slide.bounds`.
        It is added to GeoJSON that does not itself say where it counts from (what `wsi-meta lesions` writes says it); other
        formats count from OpenSlide's corner

    Returns
    -------
    Annotations; without outlines where the file has none. Left out with a warning: outlines of one or two vertices, points and
    lines, which enclose nothing, QuPath's TMA cores, its cells and tiles without a class, and features without a class beside
    tumor that has one. The name of a feature without a known class counts where it is one of `tumor` or `excluded`. Where no
    feature of a file has a class and `tumor` is not given, all are tumor, with a warning, but for those whose name is excluded.
    A number is no class unless it is given, nor is what was drawn (``freehand``)

    Raises
    ------
    DataError
        when the file is missing, damaged, in none of the formats, holds nothing but TMA cores and the like, holds a group of
        another name (none of those given as `tumor`), or features without a class beside others of which none is tumor.
    OptionsError
        for a name that is to be both, or an origin that is no two numbers.
    """
    names = ClassNames.parse(tumor, excluded)
    x, y = numbers("origin", origin, 2, CORNER)
    drawn = read_drawn(as_path("path", path))
    if names.tumor and drawn.regions and len(ClassNames(names.tumor).absent(_groups(drawn))) == len(names.tumor):
        refuse_absent(ClassNames(names.tumor), [drawn], str(path))
    return sort_outlines(drawn, names, (x, y))


def sort_outlines(drawn: DrawnFile, names: ClassNames, origin: tuple[int, int]) -> Annotations:
    """Tell by their classes what the outlines of a file are; parameters, result and errors as :func:`read_annotations`."""
    corner = np.array(origin if drawn.origin is None else drawn.origin, np.float64)
    found: dict[bool, list[Outline]] = {True: [], False: []}
    for kind, region in _kinds_of(drawn, names):
        exterior, *holes = (ring + corner for ring in region.rings)
        found[kind].append(Outline(exterior, tuple(holes), region.name))
    return Annotations(tuple(found[True]), tuple(found[False]), str(drawn.path))


def refuse_absent(names: ClassNames, files: Iterable[DrawnFile], where: str) -> None:
    """Raise DataError, which lists the names found, when a name that was told is in none of some files.

    Parameters
    ----------
    where : file or folder of the outlines, for the error
    """
    if not names.all_told:
        return
    groups = [group for drawn in files for group in _groups(drawn)]
    if absent := names.absent(groups):
        shown = sorted({group[0] for group in groups})
        there = ", ".join(f"'{name}'" for name in shown[:MOST_SHOWN]) + (", ..." if len(shown) > MOST_SHOWN else "")
        raise DataError(f"{where}: no outline has the class '{absent[0]}'; found: {there or 'none'}; name one of these")


def _groups(drawn: DrawnFile) -> list[tuple[str, ...]]:
    return [_classes(region) for region in drawn.regions if any(_classes(region))]


def _classes(region: DrawnRegion) -> tuple[str, ...]:
    """Return what may say what a region is: its groups, then what counts only where it is known."""
    return region.groups + region.hints


def _annotated(drawn: DrawnFile) -> DrawnFile:
    """Return a file without what nobody drew round anything: TMA cores, and cells and tiles without a class."""
    idle = [region.kind in FRAMES or (region.kind in DETECTED and not region.groups) for region in drawn.regions]
    if not any(idle):
        return drawn
    kinds = Counter(region.kind for region, is_idle in zip(drawn.regions, idle, strict=True) if is_idle)
    told = ", ".join(f"{count} {kind.replace('tmacore', 'TMA core')}" for kind, count in sorted(kinds.items()))
    if all(idle):
        raise DataError(f"{drawn.path}: only QuPath objects that are no annotations ({told}); expected annotations of tumor")
    logger.warning("%s: QuPath objects that are no annotations are left out: %s", drawn.path, told)
    return replace(drawn, regions=tuple(region for region, is_idle in zip(drawn.regions, idle, strict=True) if not is_idle))


def _kinds_of(drawn: DrawnFile, names: ClassNames) -> list[tuple[bool, DrawnRegion]]:
    """Return of each outline whether it is tumor (True) or excluded (False), without those that say neither."""
    sorted_out, passed_over, drawn = [], set(), _annotated(drawn)
    for region in drawn.regions:
        kind = names.kind(_classes(region)) if region.tumor is None else region.tumor
        if kind is not None:
            sorted_out.append((kind, region))
        elif region.groups and names.passes_over(region.groups):
            passed_over.add(region.groups[0])
        elif region.groups:
            raise DataError(
                f"{drawn.path}: group '{region.groups[0]}' is neither tumor nor excluded; expected one of {names.expected()}; "
                "name what is tumor (--tumor), or that it is not (--exclude-class)"
            )
    if passed_over:
        told = ", ".join(f"'{name}'" for name in sorted(passed_over)[:MOST_SHOWN])
        logger.warning("%s: outlines of other classes are left out: %s", drawn.path, told)
    return sorted_out + _without_class(drawn, names, sorted_out)


def _without_class(
    drawn: DrawnFile, names: ClassNames, sorted_out: list[tuple[bool, DrawnRegion]]
) -> list[tuple[bool, DrawnRegion]]:
    """Return outlines without a class as tumor where no region has one; else they are left out, or refused.

    Those whose name tells are sorted out already; what the others are never follows from the names beside them.
    """
    unclassified = [region for region in drawn.regions if not region.groups and region.tumor is None]
    others = [region for region in unclassified if names.kind(_classes(region)) is None]
    if not others:
        return []
    if len(unclassified) == len(drawn.regions) and not names.tumor:
        tumor = [region for kind, region in sorted_out if kind] + others
        called = sorted({region.hints[0] for region in tumor if region.hints})[:MOST_SHOWN]
        told = "; they are named " + ", ".join(f"'{name}'" for name in called) if len(called) > 1 else ""
        logger.warning(
            "%s: nothing has a class, so all counts as tumor: %s%s", drawn.path, counted(len(tumor), "outline"), told
        )
        return [(True, region) for region in others]
    if not names.tumor and not any(kind and region.groups for kind, region in sorted_out):
        raise DataError(
            f"{drawn.path}: {counted(len(others), 'outline')} without a class beside others of which none is tumor; "
            "expected a class for each, or --tumor"
        )
    told = counted(len(others), "outline")
    logger.warning("%s: not taken for tumor: %s without a class beside classes that tell", drawn.path, told)
    return []


def _fill_ring(ring: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill a ring (x, y in pixels of the mask) by the even-odd rule on pixel centres; bool array of `shape`."""
    height, width = shape
    start, end = ring, np.roll(ring, -1, 0)
    # an edge crosses the rows whose centre, row + 0.5, lies in [its lower end, its upper end)
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first, after = (np.clip(np.ceil(y - 0.5), 0, height).astype(np.int64) for y in (low, high))
    count = after - first
    edge = np.repeat(np.arange(len(ring)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    share = (row + 0.5 - start[edge, 1]) / (end[edge, 1] - start[edge, 1])
    x = start[edge, 0] + share * (end[edge, 0] - start[edge, 0])
    col = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    crossed = np.zeros(height * (width + 1), np.uint8)
    np.add.at(crossed, row * (width + 1) + col, np.uint8(1))  # may wrap round at 256, which keeps it odd or even
    inside = np.bitwise_xor.accumulate(crossed.reshape(height, width + 1) & 1, axis=1)
    return np.asarray(inside[:, :width], bool)


def _area(ring: NDArray[np.float64]) -> float:
    x, y = (ring - ring[:1]).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
