"""Shifts: labelled patches as other laboratories and scanners would show them.

Each of :data:`SHIFTS` changes a patch by fixed numbers, without chance and without looking at other patches: the same patch
gives the same result, in whatever batch it comes. The centre of the patch, and with it the label, stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.datasets.stains import FAMILIES, Stains, nearest_family, restain

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SHIFTS", "Shift"]

PUBLISHED = {
    "ruifrok": Stains((0.644211, 0.716556, 0.266844), (0.092789, 0.954111, 0.283111)),
    "macenko": Stains((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)),
    "qupath": Stains((0.651, 0.701, 0.290), (0.216, 0.801, 0.558)),
    "imagej": Stains((0.49015734, 0.76897085, 0.41040173), (0.04615336, 0.8420684, 0.5373925)),
}
"""Ruifrok & Johnston 2001 (H&E as ImageJ's Colour Deconvolution has it); the reference of Macenko et al. 2009's code; QuPath's
default for H&E; "H&E 2" of ImageJ's Colour Deconvolution."""
GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Luma of red, green and blue: ITU-R BT.601."""
SIGMA_PX = 1.0
"""Standard deviation of the Gaussian of blur and sharpening."""


@dataclass(frozen=True)
class Shift:
    """One way in which a patch from elsewhere may look different."""

    name: str
    """For tables and files, such as ``eosin_0.6``."""
    words: str
    """For sentences, such as "pale eosin"; singular."""
    kind: str
    """``stain``, ``colour``, ``sharpness`` or ``scale``."""
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = field(repr=False)
    """Changes one patch, uint8 (side, side, 3) RGB; gives a new one of the same shape."""

    def show(self, patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return patches as they look under this shift.

        Parameters
        ----------
        patches : uint8 (n, side, side, 3), RGB; not changed

        Returns
        -------
        uint8 of the same shape.
        """
        shown = np.empty_like(patches)
        for place, patch in enumerate(patches):
            shown[place] = self.change(patch)
        return shown


def _restain(
    patch: NDArray[np.uint8], target: Stains | None = None, amounts: tuple[float, float] = (1, 1)
) -> NDArray[np.uint8]:
    """Give a patch other stains than those of its own family, or its own in other amounts."""
    source = nearest_family(patch).stains
    return restain(patch, source, target or source, amounts)


def _by_table(patch: NDArray[np.uint8], table: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Replace each value by that of a table (256, 3), a column for each of red, green and blue."""
    return np.asarray(np.rint(table).clip(0, 255), np.uint8)[patch, np.arange(3)]


def _gamma(power: float) -> NDArray[np.float64]:
    return np.repeat(255 * (np.arange(256) / 255)[:, None] ** power, 3, axis=1)


def _gain(*factors: float) -> NDArray[np.float64]:
    return np.asarray(np.arange(256)[:, None] * np.array(factors))


def _saturate(patch: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    grey = (patch @ GREY)[..., None]
    return _rounded(grey + factor * (patch - grey))


def _blur(patch: NDArray[np.uint8]) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(patch.astype(np.float32), (SIGMA_PX, SIGMA_PX, 0), mode="mirror"))


def _sharpen(patch: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return _rounded(2 * patch.astype(np.float32) - _blur(patch))


def _compress(patch: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Write and read a patch as JPEG, with Pillow's usual tables and subsampling of colour."""
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(patch).save(stream, "jpeg", quality=quality)
    return np.asarray(Image.open(stream))


def _rescale(patch: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Show a patch at `factor` times its pixel size, about its centre; what is beyond its edges is mirrored."""
    from PIL import Image

    side = len(patch)
    beyond = max(0, int(np.ceil((factor - 1) * side / 2)))
    wider = np.pad(patch, ((beyond, beyond), (beyond, beyond), (0, 0)), mode="reflect")
    near, far = (beyond + side / 2 * (1 + sign * factor) for sign in (-1, 1))
    return np.asarray(Image.fromarray(wider).resize((side, side), Image.Resampling.BICUBIC, box=(near, near, far, far)))


def _rounded(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.asarray(np.rint(values).clip(0, 255), np.uint8)


def _stain(name: str, words: str, target: Stains | None = None, amounts: tuple[float, float] = (1, 1)) -> Shift:
    return Shift(name, words, "stain", partial(_restain, target=target, amounts=amounts))


def _colour(name: str, words: str, table: NDArray[np.float64]) -> Shift:
    return Shift(name, words, "colour", partial(_by_table, table=table))


SHIFTS = (
    _stain("stains_ruifrok", "re-staining as Ruifrok and Johnston measured", PUBLISHED["ruifrok"]),
    _stain("stains_macenko", "re-staining to Macenko's reference", PUBLISHED["macenko"]),
    _stain("stains_qupath", "re-staining to QuPath's default", PUBLISHED["qupath"]),
    _stain("stains_imagej", "re-staining to ImageJ's second pair", PUBLISHED["imagej"]),
    _stain("stains_russet", "re-staining to PCam's russet slides", FAMILIES["russet"].stains),
    _stain("stains_violet", "re-staining to PCam's violet slides", FAMILIES["violet"].stains),
    _stain("stains_grey", "re-staining to PCam's grey slides", FAMILIES["grey"].stains),
    _stain("haematoxylin_0.7", "pale haematoxylin", amounts=(0.7, 1)),
    _stain("haematoxylin_1.3", "strong haematoxylin", amounts=(1.3, 1)),
    _stain("eosin_0.6", "pale eosin", amounts=(1, 0.6)),
    _stain("stains_1.3", "strong staining", amounts=(1.3, 1.3)),
    _colour("gamma_0.7", "a gamma of 0.7", _gamma(0.7)),
    _colour("brightness_0.85", "a darker lamp", _gain(0.85, 0.85, 0.85)),
    _colour("brightness_1.15", "a brighter lamp", _gain(1.15, 1.15, 1.15)),
    _colour("white_warm", "a warmer white", _gain(1.08, 1, 0.9)),
    _colour("white_cool", "a cooler white", _gain(0.9, 1, 1.08)),
    Shift("saturation_0.6", "weak colour", "colour", partial(_saturate, factor=0.6)),
    Shift("blur", "blur", "sharpness", lambda patch: _rounded(_blur(patch))),
    Shift("sharpening", "sharpening", "sharpness", _sharpen),
    Shift("jpeg_40", "JPEG of quality 40", "sharpness", partial(_compress, quality=40)),
    Shift("jpeg_65", "JPEG of quality 65", "sharpness", partial(_compress, quality=65)),
    Shift("jpeg_90", "JPEG of quality 90", "sharpness", partial(_compress, quality=90)),
    Shift("pixel_0.88", "a pixel 12 % finer", "scale", partial(_rescale, factor=0.88)),
    Shift("pixel_1.12", "a pixel 12 % coarser", "scale", partial(_rescale, factor=1.12)),
)
"""All shifts, in the order in which tables show them."""
