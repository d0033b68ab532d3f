"""The tumor of one slide as a mask at a level, whether people outlined it or a file masks it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.annotations.detections import Detections
from wsi_meta.annotations.masks import read_mask
from wsi_meta.annotations.outlines import Annotations
from wsi_meta.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MARGIN_PX", "draw_outlines", "read_fitting_mask", "warn_of_small_masks"]

logger = logging.getLogger(__name__)

MARGIN_PX = 8
"""Margin round outlines in pixels of the evaluation mask: merging lesions enlarges them by less."""
SMALLEST_SLIDE = 16384
"""Level-0 pixels along the longer side under which a mask is told: 4 mm at 0.25 um. Whole slides have more."""
OTHERS_LARGER = 4
"""Masks are told whose longer side is this many times smaller than what other slides of the same cohort reach."""


def draw_outlines(truth: Annotations, downsample: int) -> NDArray[np.bool_]:
    """Return a mask of outlined tumor, bool (height, width), as large as the outlines and a margin.

    Parameters
    ----------
    truth : what was drawn
    downsample : level-0 pixels along a side of the mask's pixel
    """
    corners = [outline.vertices.max(0) for outline in truth.tumor] or [np.zeros(2)]
    width, height = np.maximum(0, np.ceil(np.max(corners, 0) / downsample)).astype(int) + MARGIN_PX
    return truth.mask((int(height), int(width)), downsample)


def read_fitting_mask(
    path: Path, points: Detections, downsample: int, level: int | None, extent: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Read a slide's mask: bool (height, width).

    Parameters
    ----------
    path : TIFF, see :func:`wsi_meta.annotations.masks.read_mask`
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
    least = max(SMALLEST_SLIDE, max([reach, *sides.values()]) / OTHERS_LARGER)
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
