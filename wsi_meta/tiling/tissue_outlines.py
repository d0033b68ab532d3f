"""Tissue as outlines, which people see and change in QuPath or ASAP: from outlines to a mask, and from a mask to outlines."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.annotations.class_names import is_tissue
from wsi_meta.annotations.outline_files import DrawnFile, DrawnRegion, closed, collection, feature, read_drawn
from wsi_meta.annotations.outlines import Outline, fill_outlines
from wsi_meta.annotations.polygonize import trace_cells
from wsi_meta.annotations.truth import encloses
from wsi_meta.errors import DataError
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.tissue_colours import MASK_MPP
from wsi_meta.words import counted, some_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MaskRaster", "read_tissue_outlines", "tissue_features"]

logger = logging.getLogger("wsi_meta")

POINTS = 2
"""Points along a side of a mask pixel that are looked at: 3.9 um apart."""
BAND_ROWS = 512
"""Rows of the mask that are drawn together."""
DECIMALS = 2
"""Of a written coordinate."""
AT_EDGE = 0.02
"""Level-0 pixels from the slide's edge up to which a vertex lies on it: rounding moves it by less."""


@dataclass(frozen=True)
class MaskRaster:
    """The pixels of a slide's tissue mask."""

    mpp: float
    """Micrometres along a side of a pixel of the mask."""
    step: float
    """Level-0 pixels along it."""
    shape: tuple[int, int]
    """Rows and columns; the last ones may reach over the slide's edge."""

    @classmethod
    def of(cls, slide: Slide) -> MaskRaster:
        """Return the raster of the mask that is found on a slide; MissingMppError where its pixel size is not known."""
        mpp = max(MASK_MPP, slide.mpp)
        l0_per_px = slide.check_resolution(mpp)
        return cls(mpp, mpp / slide.mpp, (ceil(slide.height / l0_per_px), ceil(slide.width / l0_per_px)))


def read_tissue_outlines(path: Path, slide: Slide) -> NDArray[np.bool_]:
    """Draw outlines of tissue, from a file that :func:`wsi_meta.annotations.outline_files.read_drawn` reads.

    A pixel of the mask is tissue when any of its 2 x 2 points is: a cell then counts from about a sixty-fourth of its area
    on. Holes are left out, as are outlines of :data:`wsi_meta.annotations.class_names.NOT_TISSUE_GROUPS`, wherever they lie;
    the log says so. GeoJSON counts from the corner of the slide's bounds, as QuPath does, where it does not say otherwise.

    Returns
    -------
    bool array of the shape of the slide's :class:`MaskRaster`; all False where the file has no outlines.

    Raises
    ------
    DataError
        when the file cannot be read or says that it is of another slide, or the middle of an outline lies off the slide.
    """
    drawn, raster = read_drawn(path), MaskRaster.of(slide)
    if drawn.slide is not None and not slide.has_fingerprint(drawn.slide):
        raise DataError(
            f"{path}: outlines of another slide than {slide.path}; expected those of this one; was it replaced, or opened by "
            "another --reader when they were made? make them anew: wsi-meta tissue"
        )
    outlines: dict[bool, list[Outline]] = {True: [], False: []}
    for region in drawn.regions:
        kind = is_tissue(region.groups) if region.tumor is None else region.tumor
        outlines[kind].append(_placed(region, drawn, slide, raster))
    if outlines[False]:
        logger.warning(
            "%s: %d of %s taken out of the tissue (%s)",
            path,
            len(outlines[False]),
            counted(len(drawn.regions), "outline"),
            some_of(sorted({outline.name for outline in outlines[False]})),
        )
    if idle := sum(not encloses(outline) for outline in outlines[True]):
        told = "%s: %d of %s of tissue without an inside, which counts nowhere; is one drawn twice, or a line?"
        logger.warning(told, path, idle, counted(len(outlines[True]), "outline"))
    rows, cols = raster.shape
    mask = np.zeros(raster.shape, bool)
    for top in range(0, rows, BAND_ROWS):
        band = mask[top : top + BAND_ROWS]
        shape, corner = (len(band) * POINTS, cols * POINTS), (0, top * POINTS)
        inside = fill_outlines(outlines[True], shape, raster.step / POINTS, corner=corner)
        if outlines[False]:
            inside &= ~fill_outlines(outlines[False], shape, raster.step / POINTS, corner=corner)
        band[:] = inside.reshape(len(band), POINTS, cols, POINTS).any((1, 3))
    return mask


def tissue_features(mask: NDArray[np.bool_], step: float, slide: Slide) -> dict[str, Any]:
    """Return a mask as a GeoJSON FeatureCollection in QuPath's frame: a polygon for each connected part, along its pixels.

    It says of which slide it is.

    Parameters
    ----------
    mask : bool (rows, cols)
    step : level-0 pixels along a side of its pixel
    slide : whose mask it is; outlines are cut at its edge
    """
    origin = slide.bounds.corner
    polygons = [[_level_0(ring * step, slide, origin) for ring in rings] for rings in trace_cells(mask)]
    properties = {"objectType": "annotation", "name": "tissue", "classification": {"name": "Tissue", "color": [0, 130, 90]}}
    return collection([feature("Polygon", polygon, properties) for polygon in polygons], origin, slide=slide.fingerprint())


def _level_0(ring: NDArray[np.float64], slide: Slide, origin: tuple[int, int]) -> list[list[float]]:
    """Return a closed ring as GeoJSON has it, cut at the slide's edge."""
    return closed((np.minimum(ring, (slide.width, slide.height)) - origin).round(DECIMALS).tolist())


def _placed(region: DrawnRegion, drawn: DrawnFile, slide: Slide, raster: MaskRaster) -> Outline:
    """Return an outline in level-0 pixels; one that ends at the slide's right or lower edge reaches over it.

    So a last pixel of the mask, of which the slide covers little, is still within.
    """
    corner = np.array(slide.bounds.corner if drawn.origin is None else drawn.origin, np.float64)
    limits = np.array((slide.width, slide.height), np.float64)
    rings = [ring + corner for ring in region.rings]
    middle = (rings[0].min(0) + rings[0].max(0)) / 2
    if (middle < 0).any() or (middle > limits).any():
        raise DataError(
            f"{drawn.path}: an outline round x {middle[0]:.0f}, y {middle[1]:.0f} lies off the slide, which has "
            f"{slide.width} x {slide.height} level-0 px; expected outlines of this slide; are they of another one?"
        )
    exterior, *holes = (np.where(ring >= limits - AT_EDGE, ring + raster.step, ring) for ring in rings)
    return Outline(exterior, tuple(holes), region.groups[0] if region.groups else region.name or "without a class")
