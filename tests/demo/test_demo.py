from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from wsi_meta.demo.demo import _separation, run_demo
from wsi_meta.demo.synthetic import MPP, draw_lymph_node
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.grid import PatchGrid


def test_the_demo_writes_slide_heatmap_and_overlay(tmp_path: Path) -> None:
    made = run_demo(tmp_path / "demo", side_px=1024)
    assert Heatmap.open(made.heatmap).finished
    assert Heatmap.open(made.heatmap).probability.shape == (8, 8)
    with Image.open(made.overlay) as picture:
        assert min(picture.size) > 1000
    with open_slide(made.slide) as slide:
        assert (slide.width, slide.height) == (1024, 1024)
        assert abs(slide.mpp - MPP) < 1e-6
        assert [round(factor) for factor in slide.level_downsamples] == [
            2**level for level in range(len(slide.level_downsamples))
        ]
        assert len(slide.level_downsamples) >= 3


def test_separation_is_an_auc_over_whole_cells() -> None:
    grid = PatchGrid(256, 256, 0.243, 0.972, 96, 32)
    tumor = np.zeros((64, 64), bool)
    tumor[:32, :32] = True
    assert _separation(np.array([[0.9, 0.1], [np.nan, 0.2]], np.float32), grid, tumor) == 1.0
    assert _separation(np.array([[0.15, 0.1], [np.nan, 0.2]], np.float32), grid, tumor) == 0.5


def test_drawing() -> None:
    image, tumor = draw_lymph_node(1024, 1026, seed=3)
    assert image.shape == (1026, 1024, 3)
    assert image.dtype == np.uint8
    assert tumor.shape == (257, 256)
    assert tumor.dtype == np.bool_
    assert 0.01 < tumor.mean() < 0.5
    again, _ = draw_lymph_node(1024, 1026, seed=3)
    np.testing.assert_array_equal(image, again)
    assert image[:40, :40].min() > 225, "the corner is glass"
    inside = image[:1024].reshape(256, 4, 256, 4, 3).mean((1, 3))
    assert inside[tumor[:256]].mean() < 200, "tumor is stained"
