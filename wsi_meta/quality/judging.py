"""A slide judged once it is scanned: what its cells showed, and what a few of its patches show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.quality.nuclei import guess_pixel_size
from wsi_meta.quality.sample import read_sample
from wsi_meta.quality.verdict import FEWEST_CELLS, Verdict, pronounce
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.grid import PatchGrid

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Unlikeness", "judge_slide"]

EVERY = 2
"""Of so many patches one is shown to the network, which takes most of the time."""

Unlikeness = Callable[["NDArray[np.uint8]"], "NDArray[np.float32] | None"]
"""Tells of patches how unlike the training they are; None where that is not known."""


def judge_slide(
    slide: Slide, grid: PatchGrid, scanned: NDArray[np.bool_], known: Mapping[str, float | None], unlikeness: Unlikeness
) -> Verdict:
    """Return the verdict on a scanned slide.

    Parameters
    ----------
    scanned : bool (rows, cols), the grid's shape
    known : the figures that do not come from patches, by the names of :data:`wsi_meta.quality.verdict.LIMITS`
    unlikeness : as :meth:`wsi_meta.scanning.networks.Networks.unlikeness`

    Raises
    ------
    SlideReplacedError
    """
    patches = read_sample(slide, grid, scanned)
    if len(patches) < FEWEST_CELLS:
        return pronounce(known, tissue=bool(scanned.any() or known.get("unread")))
    unlike = unlikeness(patches[::EVERY])  # of its network, half as many tell as much
    figures = {
        "pixel_size": guess_pixel_size(patches, grid.mpp),
        "unlikeness": None if unlike is None else float(np.median(unlike)),
    }
    return pronounce({**known, **figures})
