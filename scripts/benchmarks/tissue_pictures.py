"""Pictures of tissue that a large slide repeats: drawn, or assembled from real patches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.demo.synthetic import draw_lymph_node
from wsi_meta.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MODEL_DOWNSAMPLE", "assemble_tissue", "draw_tissue"]

MODEL_DOWNSAMPLE = 4
"""Level-0 pixels per pixel of the patches that a picture is assembled from."""


def draw_tissue(seed: int = 0, side_px: int = 4096) -> NDArray[np.uint8]:
    """Draw a picture of tissue to repeat: the inner part of a synthetic lymph node, mirrored so that it has no seams.

    Parameters
    ----------
    seed : of the drawing
    side_px : side of the picture at 0.243 um, a multiple of 4

    Returns
    -------
    uint8 (side_px, side_px, 3), RGB, pixels of 0.243 um.
    """
    image, _ = draw_lymph_node(side_px, side_px, seed=seed)
    inner = image[side_px // 4 : 3 * side_px // 4, side_px // 4 : 3 * side_px // 4]
    return np.ascontiguousarray(np.block([[[inner], [inner[:, ::-1]]], [[inner[::-1]], [inner[::-1, ::-1]]]]))


def assemble_tissue(folder: str | Path, *, seed: int = 0, side_px: int = 2048) -> NDArray[np.uint8]:
    """Assemble a picture of tissue to repeat from patches of 96 px at 0.972 um, chosen at random, side by side.

    Patches say nothing of finer levels than their own. They are enlarged smoothly, so that the mean of every 4 x 4 pixels is
    the patch's pixel. Such tiles are smoother than a scanner's level 0, and decode faster.

    Parameters
    ----------
    folder : patches as image files, in it or below it
    seed : of the random choice
    side_px : side of the picture at 0.972 um, a power of two times 128

    Returns
    -------
    uint8 (4 * side_px, 4 * side_px, 3), RGB, pixels of 0.243 um.

    Raises
    ------
    DataError
        when the folder holds no images, or one is not 96 x 96.
    """
    from PIL import Image

    files = sorted(file for file in Path(folder).rglob("*") if file.suffix.lower() in {".jpg", ".jpeg", ".png", ".tif"})
    if not files:
        raise DataError(f"{folder}: holds no images; expected patches of 96 x 96 px (jpg, png, tif), in it or in folders below")
    count = -(-side_px // 96)
    chosen = iter(np.random.default_rng(seed).choice(len(files), count * count, replace=len(files) < count * count))
    picture = np.empty((count * 96, count * 96, 3), np.uint8)
    for row in range(0, count * 96, 96):
        for col in range(0, count * 96, 96):
            file = files[next(chosen)]
            patch = np.asarray(Image.open(file).convert("RGB"))
            if patch.shape != (96, 96, 3):
                raise DataError(f"{file}: {patch.shape[1]} x {patch.shape[0]} px; expected a patch of 96 x 96")
            picture[row : row + 96, col : col + 96] = patch
    return _enlarged(picture[:side_px, :side_px])


def _enlarged(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Enlarge four times, smoothly, then correct every 4 x 4 pixels so that their mean is the pixel they came from."""
    from PIL import Image

    height, width = (side * MODEL_DOWNSAMPLE for side in picture.shape[:2])
    large = np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    for row in range(0, len(picture), 128):
        strip = large[row * MODEL_DOWNSAMPLE : (row + 128) * MODEL_DOWNSAMPLE]
        wanted = picture[row : row + 128].astype(np.float32)
        means = strip.reshape(len(wanted), MODEL_DOWNSAMPLE, -1, MODEL_DOWNSAMPLE, 3).mean((1, 3), dtype=np.float32)
        lacking = (wanted - means).repeat(MODEL_DOWNSAMPLE, 0).repeat(MODEL_DOWNSAMPLE, 1)
        strip[:] = (strip + lacking).round().clip(0, 255).astype(np.uint8)
    return large
