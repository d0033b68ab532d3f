"""What a picture says of its pixel size: in patches full of nuclei, detail of the size of nuclei stands out.

The power of a patch's red (which haematoxylin absorbs, eosin hardly) in bands of wavelength tells, by a linear rule, how large
a pixel is beside those of the training patches. Nuclei differ, so only gross errors show, such as 20x taken for 40x.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FEWEST_PATCHES", "band_powers", "guess_pixel_size", "rich_in_nuclei"]

FITTED_MPP, SAME_MPP = 0.972, 0.02
"""Micrometres per pixel of those patches, and the relative difference up to which a model's is the same."""
FEWEST_PATCHES = 8
"""Fewer patches full of nuclei say nothing."""
LEAST_DENSITY = 0.5
"""Mean optical density of red from which a patch is full of nuclei."""
EDGES = np.geomspace(1 / 24, 1 / 2.9, 10)
"""Frequencies between which a band lies, 1 / px: wavelengths from 24 px to 3."""
LEAST_POWER = 1e-3
"""Added to each power, so that an empty picture has a logarithm."""
WEIGHTS, OFFSET = np.array([-0.0189, -0.0375, -0.1207, -0.1442, 0.0306, 0.118, -0.0033, 0.2234, -0.0473]), 0.7564
"""Of log2 powers about their mean: ridge regression on training patches (``scripts/benchmarks/verdicts.py --fit``)."""
GAIN = 2.4
"""Ridge regression pulls towards no difference; this makes half and twice the pixel size come out so on average."""


def guess_pixel_size(patches: NDArray[np.uint8], mpp: float = FITTED_MPP) -> float | None:
    """Return how large the pixels of patches are by what they show, as a multiple of the training patches'.

    Parameters
    ----------
    patches : uint8 (n, side, side, 3), RGB
    mpp : micrometres per pixel that they should have

    Returns
    -------
    float; None where fewer than eight patches are full of nuclei, or the rule was not fitted to such an mpp.
    """
    if abs(mpp / FITTED_MPP - 1) > SAME_MPP:
        return None
    rich = patches[rich_in_nuclei(patches)]
    if len(rich) < FEWEST_PATCHES:
        return None
    return float(2 ** (GAIN * (band_powers(rich) @ WEIGHTS + OFFSET).mean()))


def rich_in_nuclei(patches: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which patches (n, side, side, 3) are full of nuclei: bool (n,)."""
    return np.asarray(_red_density(patches).mean((1, 2)) >= LEAST_DENSITY)


def band_powers(patches: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the log2 power of red in each of nine bands, about their mean: float64 (n, 9).

    Parameters
    ----------
    patches : uint8 (n, side, side, 3), RGB
    """
    side = patches.shape[1]
    fade = np.hanning(side)
    density = _red_density(patches)
    density -= density.mean((1, 2), keepdims=True)
    spectrum = np.abs(np.fft.rfft2(density * (fade[:, None] * fade))) ** 2
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    bands = (spectrum[:, (frequency >= low) & (frequency < high)] for low, high in pairwise(EDGES))
    powers = np.log2(np.stack([band.mean(-1) for band in bands], -1) + LEAST_POWER)
    return np.asarray(powers - powers.mean(-1, keepdims=True))


def _red_density(patches: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.asarray(-np.log((np.arange(256) + 1) / 256)[patches[..., 0]])
