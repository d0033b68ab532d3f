"""Cutting patches from a slide. Patches that are background or cannot be read are skipped and counted."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.datasets.candidates import Candidates
from wsi_meta.datasets.pcam import PatchPlace
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.readers.reader import UnreadableRegionError
from wsi_meta.slides.resampling import exact_ratio
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.tissue_colours import BLUR_UM, MIN_SATURATION

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PatchCutter", "is_blank"]

AT_ONCE = 256
"""Patches that are read and in memory at the same time."""


class PatchCutter:
    """Cuts the patches around cells of one slide.

    Attributes
    ----------
    blank : number of patches that were skipped as background, see :func:`is_blank`
    unreadable : number of patches that could not be read
    """

    def __init__(self, slide: Slide, preprocessing: Preprocessing, pool: Executor) -> None:
        self._slide, self._preprocessing, self._pool = slide, preprocessing, pool
        self.blank = self.unreadable = 0

    def cut(self, candidates: Candidates, wanted: int, *, tumor: bool) -> Iterator[tuple[NDArray[np.uint8], PatchPlace]]:
        """Return patches, uint8 (patch_px, patch_px, 3), and their places, until it is `wanted` ones or no candidate is left.

        `tumor` is their label.
        """
        scale = exact_ratio(self._preprocessing.mpp, self._slide.mpp)
        while wanted and (batch := candidates.take(min(wanted, AT_ONCE))):
            corners = [self._corner(*cell) for cell, _ in batch]
            for (x, y), (_, near), (pixels, blank) in zip(corners, batch, self._pool.map(self._read, corners), strict=True):
                if pixels is None:
                    self.unreadable += 1
                elif blank:
                    self.blank += 1
                else:
                    yield pixels, PatchPlace(round(y * scale), round(x * scale), near, tumor, self._slide.name)
                    wanted -= 1

    def _corner(self, row: int, col: int) -> tuple[int, int]:
        """Return x and y of a cell's patch, pixels at the model's mpp."""
        side = self._preprocessing.label_px
        margin = (self._preprocessing.patch_px - side) // 2
        return col * side - margin, row * side - margin

    def _read(self, corner: tuple[int, int]) -> tuple[NDArray[np.uint8] | None, bool]:
        """Return a patch and whether it is blank; None where it cannot be read."""
        side, mpp = self._preprocessing.patch_px, self._preprocessing.mpp
        try:
            pixels = self._slide.read_at(mpp, *corner, side, side)
        except UnreadableRegionError:
            return None, False
        return pixels, is_blank(pixels, mpp)


def is_blank(patch: NDArray[np.uint8], mpp: float) -> bool:
    """Tell whether a patch is background by PCam's rule: its blurred HSV saturation nowhere reaches 0.07.

    Veeling et al. 2018 (arXiv:1806.03962; the data set's README) do not say how much they blurred; here by the 8 um of
    :func:`wsi_meta.find_tissue`.

    Parameters
    ----------
    patch : uint8 (height, width, 3), RGB
    mpp : micrometres per pixel
    """
    from scipy.ndimage import gaussian_filter

    red, green, blue = np.moveaxis(patch, -1, 0).astype(np.float32)
    highest, lowest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    saturation = (highest - lowest) / np.maximum(highest, 1)
    return bool(gaussian_filter(saturation, BLUR_UM / mpp).max() < MIN_SATURATION)
