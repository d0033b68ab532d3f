"""Slides that tests write for themselves."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi_meta.pyramid import write_pyramid

MODEL_MPP = 0.972


def texture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth noise in the colours of tissue: uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers((140, 50, 120), (230, 130, 200), (height // 16 + 2, width // 16 + 2, 3))
    fine = np.kron(coarse, np.ones((16, 16, 1)))[:height, :width]
    return np.asarray((fine + rng.normal(0, 12, fine.shape)).clip(0, 255), np.uint8)


def write_slide(path: Path, image: NDArray[np.uint8], mpp: float = MODEL_MPP, *, levels: int = 1) -> Path:
    return write_pyramid(path, image, mpp=mpp, tile_px=256, lossless=True, levels=levels)


def write_sparse_slide(path: Path, side: int, mpp: float, marks: Sequence[tuple[int, int, int]], tile_px: int = 4096) -> Path:
    """A huge slide of which only the tiles with black square marks (x, y, side) are stored; the rest is transparent."""
    tiles = -(-side // tile_px)
    canvas: dict[tuple[int, int], NDArray[np.uint8]] = {}
    for x, y, mark_px in marks:
        row, col = y // tile_px, x // tile_px
        tile = canvas.setdefault((row, col), np.full((tile_px, tile_px, 3), 255, np.uint8))
        tile[y - row * tile_px : y - row * tile_px + mark_px, x - col * tile_px : x - col * tile_px + mark_px] = 0
    encoded = {place: zlib.compress(tile.tobytes()) for place, tile in canvas.items()}
    stored = (encoded.get((row, col), b"") for row in range(tiles) for col in range(tiles))
    tifffile.imwrite(
        path,
        stored,
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(tile_px, tile_px),
        photometric="rgb",
        compression="adobe_deflate",
        resolution=(1e4 / mpp, 1e4 / mpp),
        resolutionunit="CENTIMETER",
        metadata=None,
        bigtiff=True,
    )
    return path


def damage_tile(path: Path, index: int, level: int = 0) -> None:
    """Overwrite one stored tile with bytes that do not decode."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[level]
        assert isinstance(page, tifffile.TiffPage)
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * count)
