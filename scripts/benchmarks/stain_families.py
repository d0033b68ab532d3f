"""Into which families of stain and scanner training patches fall: the numbers in wsi_meta/datasets/stains.py.

Groups patches by the colours of their stains, and estimates the two stains of each group from its pixels as Macenko et al. 2009
do: the extreme directions (1st and 99th percentile) in the plane of the two largest variances of optical density.

    .venv/bin/python scripts/benchmarks/stain_families.py pcam/ [--patches 5000] [--families 3]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.datasets.stains import TISSUE_DENSITY, Stains, cluster_by_hue, stain_hue, to_density

FAINTEST = 0.15
"""Pixels that absorb less of any colour are left out of the estimate."""
TISSUE_SHARE = 0.6
"""Stains are estimated from patches with at least this share of tissue."""
PIXELS = 300_000


def estimate_stains(density: NDArray[np.float32]) -> Stains:
    """Return the stains of pixels by Macenko et al. 2009; `density` (n, 3) is their optical density."""
    pixels = density[density.min(1) > FAINTEST].astype(np.float64)
    _, directions = np.linalg.eigh(np.cov(pixels.T))
    plane = directions[:, [2, 1]] * np.sign(directions[:, [2, 1]].sum(0))
    first, second = (pixels @ plane).T
    ends = np.percentile(np.arctan2(second, first), (1, 99))
    found = [plane @ (np.cos(angle), np.sin(angle)) for angle in ends]
    haematoxylin, eosin = sorted(found, key=lambda stain: -stain[0])  # haematoxylin absorbs more red
    return Stains(_triple(haematoxylin), _triple(eosin))


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = (round(float(value), 3) for value in values)
    return red, green, blue


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--patches", type=int, default=5000)
    parser.add_argument("--families", type=int, default=3)
    arguments = parser.parse_args()
    patches, rng = open_patches(arguments.data)[arguments.split], np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(patches))[: arguments.patches]).tolist()
    pixels = np.stack(patches.read_many(chosen))
    hues = np.array([stain_hue(patch) for patch in pixels])
    tissue = np.array([(to_density(patch).sum(-1) > TISSUE_DENSITY).mean() for patch in pixels])
    print("deviation of the hue:", hues.std(0).round(3).tolist())
    family = cluster_by_hue(hues, arguments.families)
    for number in range(arguments.families):
        members = family == number
        dense = to_density(pixels[members & (tissue > TISSUE_SHARE)]).reshape(-1, 3)
        stains = estimate_stains(dense[rng.integers(len(dense), size=PIXELS)])
        share = patches.labels[chosen][members].mean()
        print(f"{members.sum()} patches, {share:.2f} tumor, hue {hues[members].mean(0).round(3).tolist()}, {stains}")


if __name__ == "__main__":
    _main()
