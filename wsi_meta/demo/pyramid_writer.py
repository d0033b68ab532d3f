"""Writes an image in memory as a pyramidal tiled TIFF, the format of Camelyon's slides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.outputs.writing import written_whole
from wsi_meta.slides.resampling import average_area

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["JPEG_QUALITY", "halved", "write_pyramid"]

JPEG_QUALITY = 90
"""Quality of the JPEG tiles, on libjpeg's scale."""
COARSEST_PX = 512
"""Levels are halved until the shorter side of the last one is below this."""
CLASSIC_BYTES = 2**32 - 2**25
"""Above this many bytes of pixels the file becomes a BigTIFF: classic TIFF holds 4 GiB."""


def write_pyramid(
    path: str | Path,
    image: NDArray[np.uint8],
    *,
    mpp: float,
    tile_px: int = 512,
    lossless: bool = False,
    levels: int | None = None,
    description: str | None = None,
) -> Path:
    """Write an image as a tiled TIFF with several levels, which OpenSlide opens as a slide (vendor ``generic-tiff``).

    Each level is half the one before it, by exact averages of 2 x 2 pixels (halves are rounded up); an odd last row or
    column is left out of the next level. The file appears whole or not at all.

    Parameters
    ----------
    path : where to write; replaced if it exists
    image : uint8 (height, width, 3), RGB: level 0
    mpp : micrometres per pixel of `image`; stored as pixels per centimetre
    tile_px : side of a tile in pixels, a multiple of 16
    lossless : deflate instead of JPEG, so that level 0 reads back bit for bit
    levels : number of levels, level 0 included; by default until the shorter side is below 512 px
    description : what the file says of itself, in ASCII

    Returns
    -------
    `path`, as a Path.

    Raises
    ------
    ValueError
        when `image` is not RGB uint8, or `mpp`, `tile_px` or `levels` is impossible.
    OutputPathError
        when it cannot be written.
    """
    _check(image, mpp, tile_px, levels)
    with written_whole(Path(path)) as partial:
        _write(partial, image, mpp, tile_px, lossless, levels, description)
    return Path(path)


def _check(image: NDArray[np.uint8], mpp: float, tile_px: int, levels: int | None) -> None:
    """Raise ValueError for what cannot be written."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image: {image.dtype} {image.shape}; expected uint8 (height, width, 3)")
    if not 0 < mpp < float("inf"):
        raise ValueError(f"mpp: {mpp}; expected micrometres per pixel, above 0")
    if tile_px < 16 or tile_px % 16:
        raise ValueError(f"tile_px: {tile_px}; expected a multiple of 16")
    if levels is not None and (levels < 1 or min(image.shape[:2]) >> (levels - 1) == 0):
        raise ValueError(f"levels: {levels}; an image of {image.shape[1]} x {image.shape[0]} px cannot be halved so often")


def _write(
    path: Path,
    image: NDArray[np.uint8],
    mpp: float,
    tile_px: int,
    lossless: bool,
    levels: int | None,
    description: str | None,
) -> None:
    """Write the levels as the pages of one TIFF; all but the first are marked as reduced."""
    import tifffile

    options: dict[str, Any] = {
        "photometric": "rgb",  # JPEG tiles become YCbCr, with colour at half the resolution, and are tagged so
        "tile": (tile_px, tile_px),
        "metadata": None,
        "compression": "adobe_deflate" if lossless else "jpeg",
        "compressionargs": {"level": 6 if lossless else JPEG_QUALITY},
        "predictor": lossless,
        "resolutionunit": "CENTIMETER",
    }
    with tifffile.TiffWriter(path, bigtiff=image.nbytes * 4 // 3 > CLASSIC_BYTES) as file:
        for number, level in enumerate(_levels(image, levels)):
            per_cm = 1e4 / mpp / 2**number
            told = description if number == 0 else None
            file.write(level, subfiletype=int(number > 0), resolution=(per_cm, per_cm), description=told, **options)


def _levels(image: NDArray[np.uint8], levels: int | None) -> Iterator[NDArray[np.uint8]]:
    """Return the levels one by one, level 0 first, each uint8 (height, width, 3)."""
    yield image
    number = 1
    while number < levels if levels is not None else min(image.shape[:2]) >= COARSEST_PX:
        image = halved(image)
        number += 1
        yield image


def halved(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Average every 2 x 2 pixels: uint8 (height // 2, width // 2, 3)."""
    return average_area(image, 2.0, (image.shape[0] // 2, image.shape[1] // 2))
