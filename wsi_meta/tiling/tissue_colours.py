"""The rule that tells tissue from glass and ink by colour. Made for recall: what is in doubt counts as tissue."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BAND_ROWS",
    "BLUR_UM",
    "FILL_MM2",
    "MASK_MPP",
    "MAX_DARKNESS",
    "MIN_SATURATION",
    "bridge_gaps",
    "enclosed_areas",
    "join_tissue",
    "segment_by_colour",
]

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


def segment_by_colour(image: NDArray[np.uint8], mpp: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return what is stained (not glass, black or ink), and what is ink with its soft edge; in bands, for little memory."""
    margin = ceil(BLUR_TRUNCATE * BLUR_UM / mpp) + round(PEN_EDGE_UM / mpp) + 1  # how far a band must see into its neighbours
    stained, ink = (np.zeros(image.shape[:2], bool) for _ in range(2))

    def tell(top: int) -> None:
        first, inner = max(0, top - margin), slice(top, top + BAND_ROWS)
        band = _segment_band(image[first : top + BAND_ROWS + margin], mpp)
        stained[inner], ink[inner] = (part[top - first : top - first + BAND_ROWS] for part in band)
        stained[inner] &= ~ink[inner]

    with ThreadPoolExecutor(BANDS_AT_ONCE) as threads:
        list(threads.map(tell, range(0, len(image), BAND_ROWS)))  # list() raises the error of a band
    return stained, ink


def _segment_band(image: NDArray[np.uint8], mpp: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
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


def join_tissue(
    coloured: NDArray[np.bool_], ink: NDArray[np.bool_], readable: NDArray[np.bool_], mpp: float
) -> NDArray[np.bool_]:
    """Return what counts as tissue: what is coloured, with gaps bridged, without ink, and with all that cannot be read.

    The latter bridges gaps and encloses holes as what is coloured does.
    """
    mask = bridge_gaps(coloured | ~readable, mpp)
    mask[ink] = False
    mask[~readable] = True
    return mask


def bridge_gaps(mask: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
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
    regions, areas = enclosed_areas(mask)
    small = (areas > 0) & (areas <= max_px)
    for top in range(0, len(mask), BAND_ROWS):
        mask[top : top + BAND_ROWS] |= small[regions[top : top + BAND_ROWS]]
    return mask


def enclosed_areas(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the regions of background, int32 (rows, cols), and the pixels of each; 0 for those that reach an edge."""
    from scipy.ndimage import label

    regions, count = label(~mask)
    areas = np.zeros(count + 1, np.int64)
    for top in range(0, len(mask), BAND_ROWS):
        areas += np.bincount(regions[top : top + BAND_ROWS].ravel(), minlength=count + 1)
    for outside in (0, regions[0], regions[-1], regions[:, 0], regions[:, -1]):  # 0 is what was not labelled
        areas[outside] = 0
    return regions, areas
