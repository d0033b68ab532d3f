"""The stains of a patch: how dense they are, which colours they have, and patches that were stained alike.

Optical density is the natural logarithm of how much darker a pixel is than white; densities of stains add up (Beer and
Lambert). A stain is a direction in it: how much red, green and blue one unit of the stain absorbs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FAMILIES",
    "Family",
    "Stains",
    "cluster_by_hue",
    "describe_hue",
    "nearest_family",
    "nearest_to_mean",
    "restain",
    "stain_hue",
    "to_density",
    "to_pixels",
]

DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
"""Optical density of each value of a pixel."""
TISSUE_DENSITY = 0.45
"""Optical density, summed over red, green and blue, from which a pixel counts as tissue: 14 % less light than white."""
FEWEST_TISSUE_PX = 50
"""Below this number of tissue pixels, of every second row and column, the hue is that of all pixels."""


@dataclass(frozen=True)
class Stains:
    """The directions of a pair of stains in optical density: red, green, blue; of any length."""

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]

    def to_density(self) -> NDArray[np.float64]:
        """Return the matrix (3, 3) whose rows are unit vectors of haematoxylin, eosin and what is neither."""
        pair = np.array([self.haematoxylin, self.eosin])
        rows = np.vstack([pair, np.cross(*pair)])
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@dataclass(frozen=True)
class Family:
    """Patches of PatchCamelyon that were stained and scanned alike."""

    hue: tuple[float, float, float, float]
    """Mean of :func:`stain_hue`."""
    stains: Stains


FAMILIES = {
    "russet": Family((0.234, 0.302, 0.196, 0.315), Stains((0.508, 0.666, 0.546), (0.252, 0.919, 0.302))),
    "violet": Family((0.276, 0.196, 0.256, 0.191), Stains((0.617, 0.714, 0.330), (0.282, 0.943, 0.178))),
    "grey": Family((0.267, 0.288, 0.252, 0.303), Stains((0.565, 0.625, 0.539), (0.323, 0.888, 0.328))),
}
"""The three families of PatchCamelyon's training patches, as ``scripts/benchmarks/stain_families.py`` measures them."""
HUE_DEVIATION = np.array([0.025, 0.050, 0.037, 0.059])
"""Standard deviation of :func:`stain_hue` over the same patches."""


def to_density(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the optical density of pixels of any shape."""
    return np.asarray(DENSITY[pixels], np.float32)


def to_pixels(density: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return the pixels of an optical density, rounded; the inverse of :func:`to_density`."""
    return np.asarray(np.rint(256 * np.exp(-density) - 1).clip(0, 255), np.uint8)


def restain(patch: NDArray[np.uint8], source: Stains, target: Stains, amounts: tuple[float, float]) -> NDArray[np.uint8]:
    """Separate the stains of a patch and mix them again in other colours and amounts (Ruifrok & Johnston 2001).

    Parameters
    ----------
    patch : uint8 (height, width, 3), RGB
    source : the stains that it has
    target : the stains that it gets
    amounts : factors of the amounts of haematoxylin and eosin

    Returns
    -------
    uint8 (height, width, 3), RGB.
    """
    change = np.linalg.inv(source.to_density()) @ (np.array([*amounts, 1.0])[:, None] * target.to_density())
    return to_pixels(to_density(patch) @ change.astype(np.float32))


def stain_hue(patch: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return which colours the stains of a patch have, whatever their amounts.

    The tissue's pixels are halved by density: nuclei are in the darker half, the rest in the lighter one. Of each half it is
    the share of red and that of blue in all that is absorbed. A share of a half says little of what the tissue is: unlike mean
    colours, it does not put all fat into one group and all lymphocytes into another.

    Parameters
    ----------
    patch : uint8 (height, width, 3), RGB

    Returns
    -------
    float64 (4,): red and blue of the darker half, red and blue of the lighter half; 1/3 each where nothing is absorbed.
    """
    density = to_density(patch[::2, ::2]).reshape(-1, 3).astype(np.float64)  # a quarter of the pixels tells as much
    total = density.sum(1)
    tissue = total > TISSUE_DENSITY
    if tissue.sum() >= FEWEST_TISSUE_PX:
        density, total = density[tissue], total[tissue]
    darker = total >= np.median(total)
    found = [1 / 3] * 4
    for place, half in ((0, density[darker]), (2, density[~darker])):
        if (absorbed := half.sum()) > 0:
            found[place], found[place + 1] = half[:, 0].sum() / absorbed, half[:, 2].sum() / absorbed
    return np.array(found)


def nearest_family(patch: NDArray[np.uint8]) -> Family:
    """Return the one of :data:`FAMILIES` whose hue is nearest to a patch's, in standard deviations."""
    hue = stain_hue(patch)
    return min(FAMILIES.values(), key=lambda family: float((((hue - family.hue) / HUE_DEVIATION) ** 2).sum()))


def cluster_by_hue(hues: NDArray[np.float64], clusters: int = 6) -> NDArray[np.int64]:
    """Group patches by their stains' colours: k-means, the largest group first.

    Parameters
    ----------
    hues : float (n, 4), :func:`stain_hue` of each patch; each column is scaled to a standard deviation of 1
    clusters : number of groups; there are fewer where there are fewer different hues

    Returns
    -------
    int64 (n,): the group of each patch, from 0.
    """
    from sklearn.cluster import KMeans

    scaled = _scaled(hues)
    most = len(np.unique(scaled, axis=0))
    found = KMeans(min(clusters, most), n_init=10, random_state=0).fit_predict(scaled)
    order = np.argsort(-np.bincount(found), kind="stable")
    return np.asarray(np.argsort(order)[found], np.int64)


def describe_hue(hues: NDArray[np.float64], members: NDArray[np.intp]) -> str:
    """Describe in words how the stains of some patches differ from those of all; half a deviation is a difference.

    Parameters
    ----------
    hues : float (n, 4), :func:`stain_hue` of all patches
    members : indices of some of them
    """
    far = _scaled(hues)[members].mean(0)
    nuclei, rest = (_tones(red, blue) for red, blue in (far[:2], far[2:]))
    if nuclei == rest:
        return nuclei or "as most"
    return ", ".join(f"{part} {tones}" for part, tones in (("nuclei", nuclei), ("background", rest)) if tones)


def _tones(red: float, blue: float) -> str:
    """Name what is seen where more red or blue is absorbed than usual, in standard deviations."""
    tones = {"bluer": red, "redder": -red, "browner": blue, "more violet": -blue}
    return " and ".join(tone for tone, much in tones.items() if much > 0.5)


def nearest_to_mean(hues: NDArray[np.float64], members: NDArray[np.intp], count: int) -> list[int]:
    """Return the indices of the `count` members whose hue is nearest to the members' mean; see :func:`describe_hue`."""
    scaled = _scaled(hues)[members]
    far = ((scaled - scaled.mean(0)) ** 2).sum(1)
    nearest: list[int] = members[np.argsort(far, kind="stable")[:count]].tolist()
    return nearest


def _scaled(hues: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return hues in standard deviations from their mean."""
    deviation = hues.std(0)
    return np.asarray((hues - hues.mean(0)) / np.where(deviation > 0, deviation, 1))
