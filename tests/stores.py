"""Heatmap stores that tests write for themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.models.model import ModelCard
from wsi_meta.tiling.grid import PatchGrid

SLIDE_MPP = 0.243


def write_store(
    path: Path,
    probability: NDArray[np.float32],
    *,
    mpp: float = SLIDE_MPP,
    cut: int = 0,
    complete: bool = True,
    slide: str = "none",
    device: str = "cpu",
    **thresholds: float,
) -> Heatmap:
    """A finished heatmap with these values; the slide ends `cut` level-0 pixels before the last cells do."""
    rows, cols = probability.shape
    side = 0.972 / mpp * 32
    grid = PatchGrid(round(cols * side) - cut, round(rows * side) - cut, mpp, 0.972, 96, 32, block_px=1920)
    assert grid.shape == probability.shape
    facts = {
        "identity": {"slide": slide, "test_time_averaging": False},
        "slide": {"file": "s.tif", "name": path.stem},
        "device": device,
        "model": ModelCard(thresholds={"default": 0.5} | thresholds).to_dict(),
    }
    heatmap = Heatmap.create(path, grid, np.isfinite(probability), facts, overwrite=True)
    for block in grid.blocks():
        part = probability[block.cells]
        heatmap.write_block(block, part, np.where(np.isfinite(part), Status.SCANNED, Status.BACKGROUND).astype(np.uint8))
    heatmap.finalise({"score": 0.5, "complete": complete, "cells": {"unreadable": 0}})
    return Heatmap.open(path)
