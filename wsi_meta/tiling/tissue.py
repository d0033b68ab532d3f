"""Where there is tissue. Made for recall: what is left out is never scanned, so what is in doubt counts as tissue."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.annotations.label_images import read_one_label
from wsi_meta.errors import DataError
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.grid import PatchGrid

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TissueMask", "as_tissue_mask", "describe_tissue", "find_tissue", "read_tissue_mask"]

logger = logging.getLogger("wsi_meta")

MASK_MPP = 7.776
"""Resolution of the mask: 8 model pixels, a quarter of a cell (level 5 of a Camelyon slide)."""
MIN_SATURATION = 0.07
"""PCam's own rule: patches whose blurred HSV saturation nowhere reached this were thrown away (Veeling et al. 2018)."""
BLUR_UM = 8.0
"""Standard deviation of the blur before saturation is taken."""
BLUR_TRUNCATE = 4.0
"""Deviations at which the blur ends."""
BAND_ROWS = 128
"""Rows of overview and mask that are processed together: few, so that they stay in the processor's cache."""
BANDS_AT_ONCE = 4
"""Bands of the overview in work at the same time, some 12 MB each on a full-size slide."""
MAX_DARKNESS = 0.2
"""HSV value under which a grey pixel is a black border or ink, not a nucleus (averaged over 8 um, none is as dark)."""
PEN_HUE = (0.22, 0.62)
"""HSV hue from green to blue: ink. Haematoxylin and eosin lie beyond, from violet to red."""
PEN_SATURATION = 0.25
"""Ink is at least this saturated; paler pixels are kept whatever their hue, except at the edge of ink."""
PEN_EDGE_UM = 40.0
"""How far the soft edge of ink reaches."""
CLOSE_UM = 40.0
"""Gaps up to about twice this are bridged."""
FILL_MM2 = 0.5
"""Holes up to this are filled: fat inside a node is pale, and nodal tissue runs through it."""


@dataclass(frozen=True)
class TissueMask:
    """Tissue on a slide at low resolution."""

    mask: NDArray[np.bool_]
    """True where there is tissue; shape (rows, cols) over the whole slide."""
    downsample: tuple[float, float]
    """Level-0 pixels per pixel of the mask: (rows, cols)."""
    source: str
    """``found``, ``none`` (everything counts as tissue), ``array``, or the name of the file it was read from."""

    @property
    def fraction(self) -> float:
        """Share of the slide that is tissue."""
        return float(self.mask.mean())

    def cells(self, grid: PatchGrid) -> NDArray[np.bool_]:
        """Return the grid's cells that hold any tissue: bool (rows, cols)."""
        rows, cols = (
            _covering(count, grid.cell_l0 / step, length)
            for count, step, length in zip(grid.shape, self.downsample, self.mask.shape, strict=True)
        )
        return _any_within(_any_within(self.mask, *rows).T, *cols).T

    def fingerprint(self) -> str:
        """Return a SHA-256 (hexadecimal) over mask and place."""
        return hashlib.sha256(np.packbits(self.mask).tobytes() + repr((self.mask.shape, self.downsample)).encode()).hexdigest()


def find_tissue(slide: Slide) -> TissueMask:
    """Find tissue by colour saturation on an overview of about 8 um per pixel.

    Tissue is whatever is coloured beyond PCam's own floor of 0.07; ink and black borders are taken out, gaps and
    smaller holes filled. Parts of the overview that cannot be read count as tissue.

    Raises
    ------
    SlideReadError
        when nothing of the overview can be read.
    MissingMppError
    """
    mpp = max(MASK_MPP, slide.mpp)
    image, readable = slide.read_overview(mpp)
    coloured, ink = _tell_colours(image, mpp)
    del image  # the largest array here; the model may be loaded at the same time
    mask = _bridge(coloured, mpp)
    mask[ink] = False
    mask[~readable] = True
    return TissueMask(mask, (mpp / slide.mpp,) * 2, "found")


def as_tissue_mask(source: str | Path | NDArray[np.bool_] | TissueMask | None, slide: Slide) -> TissueMask:
    """Return the tissue of a slide, whatever tells of it.

    Parameters
    ----------
    source : None finds it by colour; a file or the word ``none`` as for :func:`read_tissue_mask`; a bool array (rows, cols)
        over the whole slide, element (0, 0) at its level-0 corner; or a mask that was made of this slide

    Raises
    ------
    DataError
        when it cannot be read, or does not fit the slide.
    SlideReadError, MissingMppError
        as :func:`find_tissue`.
    """
    if source is None:
        return find_tissue(slide)
    if isinstance(source, TissueMask):
        _refuse_other_slide(source, slide)
        return source
    if isinstance(source, np.ndarray):
        if source.dtype != bool:
            raise DataError(f"tissue mask: an array of {source.dtype}; expected bool, True where there is tissue")
        return _over_slide(source, slide, "array")
    return read_tissue_mask(source, slide)


def describe_tissue(tissue: TissueMask, slide: Slide) -> str:
    """Return in one line how much of a slide is tissue; warn where none is."""
    if not tissue.mask.any():
        logger.warning(
            "%s: NO TISSUE FOUND, nothing will be scanned; look at the slide, or pass --tissue-mask none", slide.path
        )
    return f"{slide.name}: tissue on {tissue.fraction:.1%} of the slide"


def read_tissue_mask(path: str | Path, slide: Slide) -> TissueMask:
    """Read a mask from an image over the whole slide (TIFF, PNG, BMP, GIF, JPEG) or a ``.npy`` array.

    The whole slide is level 0 as OpenSlide shows it, not only the bounds that QuPath shows.
    Its background is 0 (black), tissue is one other value: bool, 0 and 1, or 0 and 255. What the header says of the pixels
    counts; see :mod:`wsi_meta.annotations.label_images`. What is no number (NaN) is background. The word ``none`` makes
    everything tissue.

    Raises
    ------
    DataError
        when it cannot be read, has several values or transparent pixels, or its shape is not the slide's, larger or smaller.
    """
    if str(path) == "none":
        return TissueMask(np.ones((1, 1), bool), (float(slide.height), float(slide.width)), "none")
    path = Path(path)
    mask = read_one_label(path, "tissue mask", "an image or .npy with 0 for background and one value for tissue, or 'none'")
    return _over_slide(mask, slide, path.name, named=str(path))


def _over_slide(mask: NDArray[np.bool_], slide: Slide, source: str, named: str = "tissue mask") -> TissueMask:
    """Lay a mask over the whole slide; DataError when its shape is not the slide's, larger or smaller."""
    if mask.ndim != 2 or not mask.size:
        raise DataError(f"{named}: shape {mask.shape}; expected an image (rows, cols) over the whole slide")
    downsample = (slide.height / mask.shape[0], slide.width / mask.shape[1])
    # a mask of rounded size may be off by a pixel on either side
    if abs(downsample[0] - downsample[1]) > 2 * max(downsample) / min(mask.shape):
        raise DataError(
            f"{named}: {mask.shape[1]}x{mask.shape[0]} px do not fit the slide's {slide.width}x{slide.height}; "
            "expected the same shape, scaled; is it the mask of another slide?"
        )
    return TissueMask(mask, downsample, source)


def _refuse_other_slide(tissue: TissueMask, slide: Slide) -> None:
    """Raise DataError unless a mask covers the slide, give or take a pixel of the mask."""
    covered = [length * step for length, step in zip(tissue.mask.shape, tissue.downsample, strict=True)]
    if any(
        abs(end - side) > step for end, side, step in zip(covered, (slide.height, slide.width), tissue.downsample, strict=True)
    ):
        raise DataError(
            f"tissue mask: covers {covered[1]:.0f}x{covered[0]:.0f} level-0 px, the slide has {slide.width}x{slide.height}; "
            "is it the mask of another slide?"
        )


def _tell_colours(image: NDArray[np.uint8], mpp: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return what is stained (not glass, black or ink), and what is ink with its soft edge; in bands, for little memory."""
    margin = ceil(BLUR_TRUNCATE * BLUR_UM / mpp) + round(PEN_EDGE_UM / mpp) + 1  # how far a band must see into its neighbours
    stained, ink = (np.zeros(image.shape[:2], bool) for _ in range(2))

    def tell(top: int) -> None:
        first, inner = max(0, top - margin), slice(top, top + BAND_ROWS)
        band = _tell_band(image[first : top + BAND_ROWS + margin], mpp)
        stained[inner], ink[inner] = (part[top - first : top - first + BAND_ROWS] for part in band)
        stained[inner] &= ~ink[inner]

    with ThreadPoolExecutor(BANDS_AT_ONCE) as threads:
        list(threads.map(tell, range(0, len(image), BAND_ROWS)))  # list() raises the error of a band
    return stained, ink


def _tell_band(image: NDArray[np.uint8], mpp: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    planes = [_blurred(image[..., channel], mpp) for channel in range(3)]  # one by one: several times faster
    value, lowest = reduce(np.maximum, planes), reduce(np.minimum, planes)
    saturation = np.divide(value - lowest, value, out=np.zeros_like(value), where=value > 0)
    stained = (saturation >= MIN_SATURATION) & (value > MAX_DARKNESS)
    core = _of_pen_hue(planes, saturation >= PEN_SATURATION)
    if not core.any():
        return stained, core
    edge = round(PEN_EDGE_UM / mpp)
    return stained, _of_pen_hue(planes, _dilated(np.pad(core, edge), edge))


def _blurred(plane: NDArray[np.uint8], mpp: float) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(plane.astype(np.float32) / 255, BLUR_UM / mpp, mode="nearest", truncate=BLUR_TRUNCATE))


def _of_pen_hue(planes: Sequence[NDArray[np.float32]], asked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which of the pixels asked for have a pen's hue. From green to blue, green is above red."""
    red, green, _ = planes
    found = asked & (green > red)
    if not found.any():
        return found
    from skimage.color import rgb2hsv

    hue = rgb2hsv(np.stack([plane[found] for plane in planes], -1))[..., 0]
    found[found] = (hue > PEN_HUE[0]) & (hue < PEN_HUE[1])
    return found


def _bridge(mask: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    """Close gaps, then fill the smaller of the holes: background that is enclosed by tissue."""
    return _fill_holes(_close(mask, round(CLOSE_UM / mpp)), round(FILL_MM2 * 1e6 / mpp**2))


def _close(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Close by a disk. The result is that of scikit-image's ``closing``, whose time grows with its area; this is faster."""
    closed = np.empty_like(mask)
    padded = np.pad(mask, 2 * radius, mode="edge")
    for top in range(0, len(mask), BAND_ROWS):
        band = padded[top : top + BAND_ROWS + 4 * radius]
        closed[top : top + BAND_ROWS] = ~_dilated(~_dilated(band, radius), radius)
    return closed


def _dilated(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Dilate by a disk, whose rows are runs of pixels. The result lacks the margin of `radius`, where it would reach out."""
    rows, cols = (side - 2 * radius for side in mask.shape)
    dilated = np.zeros((rows, cols), bool)
    runs, reach = mask[:, radius : radius + cols].copy(), 0
    for offset in range(radius, -1, -1):  # from the disk's short rows to its long one
        while (reach + 1) ** 2 + offset**2 <= radius**2:
            reach += 1
            runs |= mask[:, radius - reach : radius - reach + cols] | mask[:, radius + reach : radius + reach + cols]
        dilated |= runs[radius - offset : radius - offset + rows] | runs[radius + offset : radius + offset + rows]
    return dilated


def _fill_holes(mask: NDArray[np.bool_], max_px: int) -> NDArray[np.bool_]:
    """Fill background that reaches no edge, up to an area, in place."""
    from scipy.ndimage import label

    regions, count = label(~mask)
    bands = [slice(top, top + BAND_ROWS) for top in range(0, len(mask), BAND_ROWS)]
    areas = np.zeros(count + 1, np.int64)
    for band in bands:
        areas += np.bincount(regions[band].ravel(), minlength=count + 1)
    small = areas <= max_px
    for outside in (0, regions[0], regions[-1], regions[:, 0], regions[:, -1]):  # 0 is what was not labelled
        small[outside] = False
    for band in bands:
        mask[band] |= small[regions[band]]
    return mask


def _any_within(mask: NDArray[np.bool_], first: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return, for each range of rows and each column, whether any element is True."""
    ranges = np.stack([first, end], -1).ravel()  # every second result is of the gap between two ranges
    return np.asarray(np.logical_or.reduceat(np.pad(mask, ((0, 1), (0, 0))), ranges)[::2])


def _covering(count: int, step: float, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return first and end index of the mask pixels that each of `count` cells of side `step` touches."""
    edges = step * np.arange(count + 1)
    first = np.floor(edges[:-1] + 1e-6).astype(np.int64).clip(0, length - 1)
    return first, np.ceil(edges[1:] - 1e-6).astype(np.int64).clip(first + 1, length)
