"""The tumor of one slide as a mask at a level, whether people outlined it or a file masks it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.annotations.class_names import ClassNames
from wsi_meta.annotations.detections import Detections
from wsi_meta.annotations.outline_files import DrawnFile
from wsi_meta.annotations.outlines import Annotations, Outline, fill_outlines, sort_outlines
from wsi_meta.errors import DataError
from wsi_meta.masks.tumor_masks import read_mask
from wsi_meta.words import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "MARGIN_PX",
    "draw_outlines",
    "encloses",
    "read_fitting_mask",
    "sort_truth",
    "tell_idle",
    "warn_of_small_masks",
]

logger = logging.getLogger(__name__)

MARGIN_PX = 8
"""Margin round outlines in pixels of the evaluation mask: merging lesions enlarges them by less."""
SMALLEST_SLIDE = 16384
"""Level-0 pixels along the longer side under which a mask is told: 4 mm at 0.25 um. Whole slides have more."""
TINY_PX = 2
"""Pixels of the mask: an outline that holds no centre is tiny where it is smaller, not where it is drawn twice or a line."""
SMALL_SLIDE = 32768
"""Level-0 pixels along the longer side from which no mask is told: a node of 8 mm is plain beside whole slides."""
OTHERS_LARGER = 8
"""Masks below that are told whose longer side is this many times smaller than what other slides of the cohort reach."""

LOOKED_PX = 256
"""Side of the raster on which an outline is looked at by itself, whatever its size."""


def sort_truth(drawn: DrawnFile, names: ClassNames, origin: tuple[int, int]) -> Annotations:
    """Tell what the outlines of a file of truth are; parameters and result as :func:`wsi_meta.read_annotations`.

    Raises
    ------
    DataError
        as :func:`wsi_meta.read_annotations`, and when no outline is tumor beside annotations that enclose nothing, such as
        points: the slide would count as normal.
    """
    annotations = sort_outlines(drawn, names, origin)
    if drawn.idle and not annotations.tumor:
        raise DataError(
            f"{drawn.path}: {counted(drawn.idle, 'annotation')} without an inside, and no outline of tumor; expected outlines "
            "that enclose it; leave the file out if there is no tumor"
        )
    return annotations


def encloses(outline: Outline) -> bool:
    """Tell whether an outline encloses anything: one that is drawn twice does not, nor does a line."""
    corner, size = outline.vertices.min(0), np.ptp(outline.vertices, 0)
    if not size.all():
        return False
    whole = replace(outline, vertices=(outline.vertices - corner) / size * LOOKED_PX, holes=())
    return bool(fill_outlines([whole], (LOOKED_PX, LOOKED_PX), 1).any())


def draw_outlines(truth: Annotations, downsample: int, extent: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Return a mask of outlined tumor, bool (height, width), as large as the outlines and a margin.

    A pixel is tumor when its centre is, as in Camelyon16's masks at level 5. An outline so small that it holds no centre counts
    as the pixel in which it lies, so that what is found there is not false: with :mod:`wsi_meta.challenges.froc` it is isolated
    tumor cells. Others that draw nothing, or nothing on the slide, are told.

    Parameters
    ----------
    truth : what was drawn
    downsample : level-0 pixels along a side of the mask's pixel
    extent : (width, height) of the slide, level-0 pixels; None where it is not known

    Raises
    ------
    DataError
        when there are outlines of tumor, but none of them draws anything on the slide: it would count as normal.
    """
    boxes = [np.array([outline.vertices.min(0), outline.vertices.max(0)]) / downsample for outline in truth.tumor]
    width, height = (np.maximum(0, np.ceil(np.max([box[1] for box in boxes] or [np.zeros(2)], 0))) + MARGIN_PX).astype(int)
    mask = np.zeros((int(height), int(width)), bool)
    least = np.full(2, np.inf) if extent is None else np.array(extent) / downsample
    tiny, idle = 0, []
    for outline, box in zip(truth.tumor, boxes, strict=True):
        (left, top), (right, bottom) = np.maximum(0, [np.floor(box[0]), np.ceil(box[1])]).astype(int).tolist()
        inside = fill_outlines([outline], (bottom - top, right - left), downsample, corner=(left, top))
        mask[top:bottom, left:right] |= inside
        col, row = (middle := box.mean(0)).astype(int).tolist()
        if inside.any() and (box[0] < least).all():
            continue
        if outline.area and (np.ptp(box, 0) < TINY_PX).all() and (middle >= 0).all() and (middle < least).all():
            mask[row, col] = True
            tiny += 1
        else:
            idle.append(outline)
    if tiny:
        level = logging.WARNING if tiny == len(truth.tumor) else logging.INFO  # beside others often a slip of the hand
        told = "%s: smaller than a pixel of %d level-0 px: %s of tumor; each counts as the pixel in which it lies"
        logger.log(level, told, truth.source, downsample, counted(tiny, "outline"))
    tell_idle(truth, idle)
    return mask & ~fill_outlines(truth.excluded, mask.shape, downsample)


def tell_idle(truth: Annotations, idle: list[Outline]) -> None:
    """Warn of outlines of tumor that draw nothing on the slide; DataError where all do."""
    if not idle:
        return
    (left, top), (right, bottom) = np.array([idle[0].vertices.min(0), idle[0].vertices.max(0)]).round().astype(int).tolist()
    first = f"first '{idle[0].name}' at x {left} to {right}, y {top} to {bottom}"
    if len(idle) == len(truth.tumor):
        raise DataError(
            f"{truth.source}: {counted(len(idle), 'outline')} of tumor, none of which encloses anything on the slide, {first}; "
            "expected those of the same slide, in level-0 pixels, each drawn once; leave the file out if there is no tumor"
        )
    told = counted(len(idle), "outline")
    logger.warning("%s: counts nowhere, enclosing nothing on the slide: %s of tumor, %s", truth.source, told, first)


def read_fitting_mask(
    path: Path, points: Detections, downsample: int, level: int | None, extent: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Read a slide's mask: bool (height, width).

    Parameters
    ----------
    path : TIFF, see :func:`wsi_meta.masks.tumor_masks.read_mask`
    points : of the slide; all of them must lie on the mask
    downsample : level-0 pixels along a side of the result's pixel
    level : level of the slide that the file's first image is as large as; None as `extent` says
    extent : (width, height) of the slide, level-0 pixels, which the mask must fit; None where it is not known

    Raises
    ------
    DataError
        when the mask is damaged, or of another slide.
    """
    mask = read_mask(path, downsample, first_downsample=None if level is None else 2**level, extent=extent)
    # the last pixels of a slide may be less than half a pixel of the mask
    outside = (points.y // downsample > mask.shape[0]) | (points.x // downsample > mask.shape[1])
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        size = f"{mask.shape[1] * downsample} x {mask.shape[0] * downsample} level-0 pixels"
        raise DataError(
            f"{path}: covers {size}, but a detection lies at x {points.x[first]}, y {points.y[first]}; "
            "expected the mask of the same slide; see --mask-level"
        )
    return mask


def warn_of_small_masks(masks: list[Path], level: int, reach: int) -> None:
    """Warn of masks that would be of implausibly small slides, in which lesions are too small to count.

    Parameters
    ----------
    masks : files that were read, and whose slides are not known
    level : level of the slide that their first images are said to be as large as
    reach : largest level-0 coordinate of a detection or an outline on any slide
    """
    stored = {path: _stored_extent(path) for path in masks}
    sides = {path: max(size) * 2**level for path, size in stored.items()}
    least = max(SMALLEST_SLIDE, min(SMALL_SLIDE, max([reach, *sides.values()]) / OTHERS_LARGER))
    if small := [path for path, side in sides.items() if side < least]:
        width, height = stored[small[0]]
        logger.warning(
            "%s: %d x %d px, which at --mask-level %d is a slide of %d x %d px (%d such masks); expected %d or more along the "
            "longer side; if the slides are larger, give the masks' level (--mask-level), or the slides (--slides)",
            *(small[0], width, height, level, width * 2**level, height * 2**level, len(small), least),
        )


def _stored_extent(path: Path) -> tuple[int, int]:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        return page.imagewidth, page.imagelength
