"""A few patches of a slide's tissue, read again when it was scanned, which tell what the slide is like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.readers.reader import UnreadableRegionError
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.grid import Block, PatchGrid

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PATCHES", "read_sample"]

PATCHES = 64


def read_sample(slide: Slide, grid: PatchGrid, scanned: NDArray[np.bool_], *, patches: int = PATCHES) -> NDArray[np.uint8]:
    """Read the patches of some scanned cells, each cell as likely as any other; the same ones each time.

    Parameters
    ----------
    scanned : bool (rows, cols), the grid's shape
    patches : at most so many

    Returns
    -------
    uint8 (n, patch_px, patch_px, 3), RGB at the model's mpp; those that cannot be read any more are left out.

    Raises
    ------
    SlideReplacedError
    """
    rows, cols = np.nonzero(scanned)
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:patches])  # in the order in which they are stored
    cells = zip(rows[chosen].tolist(), cols[chosen].tolist(), strict=True)
    windows = [grid.window(Block(row, col, 1, 1)) for row, col in cells]
    slide.expect(grid.mpp, windows)
    read = []
    for window in windows:
        try:
            read.append(slide.read_at(grid.mpp, *window))
        except UnreadableRegionError:
            continue
    return np.array(read, np.uint8).reshape(-1, grid.patch_px, grid.patch_px, 3)
