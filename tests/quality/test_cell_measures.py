from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from slide_files import texture

from wsi_meta.quality.cell_measures import MEASURES, BlockMeasures, measure_cells


def _plainly(cell: np.ndarray, apart: int) -> float:
    values = cell[..., 1].astype(float)
    down, across = np.abs(values[apart:] - values[:-apart]), np.abs(values[:, apart:] - values[:, :-apart])
    return float((down.sum() + across.sum()) / (down.size + across.size))


@pytest.mark.parametrize("cell_px", [8, 24, 32, 96])
def test_a_cell_is_measured_by_its_own_pixels(cell_px: int) -> None:
    image = texture(cell_px * 3 + 5, cell_px * 4 + 7)
    found = measure_cells(image, cell_px)
    assert {values.shape for values in found.values()} == {(3, 4)}
    for row, col in np.ndindex(3, 4):
        cell = image[row * cell_px : (row + 1) * cell_px, col * cell_px : (col + 1) * cell_px]
        assert found["focus"][row, col] == pytest.approx(_plainly(cell, 1) / _plainly(cell, 4), rel=1e-6)
        assert found["darkness"][row, col] == pytest.approx(255 - cell[..., 1].mean(), rel=1e-6)


def test_what_is_blurred_has_less_focus_whatever_its_contrast() -> None:
    image = np.asarray(gaussian_filter(np.random.default_rng(0).normal(0, 300, (64, 96, 3)), (1, 1, 0)) + 128).clip(0, 255)
    sharp = measure_cells(image.astype(np.uint8), 32)["focus"]
    pale = measure_cells((image / 2 + 60).astype(np.uint8), 32)["focus"]
    soft = measure_cells(gaussian_filter(image, (1.5, 1.5, 0)).astype(np.uint8), 32)["focus"]
    np.testing.assert_allclose(pale, sharp, rtol=0.05)
    assert (soft < 0.7 * sharp).all()


def test_what_has_no_contrast_is_not_judged() -> None:
    found = measure_cells(np.full((32, 64, 3), 240, np.uint8), 32)
    assert np.isnan(found["focus"]).all()
    assert (found["darkness"] == 15).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(0, 4), st.sampled_from([8, 32]), st.sampled_from([0, 32, 160]))
def test_pieces_give_what_the_whole_gives(cut_row: int, cut_col: int, cell_px: int, margin_px: int) -> None:
    """Bit for bit; pieces end between cells, as a predictor's do."""
    rows, cols = 6, 5
    image = texture(rows * cell_px + 2 * margin_px, cols * cell_px + 2 * margin_px)
    whole, pieces = (BlockMeasures((rows, cols), cell_px, margin_px) for _ in range(2))
    whole.add(0, 0, image)
    y, x = margin_px + cut_row * cell_px, margin_px + cut_col * cell_px
    for top, bottom in ((0, y), (y, len(image))):
        for left, right in ((0, x), (x, image.shape[1])):
            pieces.add(top, left, image[top:bottom, left:right])
    every = np.ones((rows, cols), bool)
    for name in MEASURES:
        np.testing.assert_array_equal(pieces.of(every)[name], whole.of(every)[name])
    assert np.isfinite(whole.of(every)["darkness"]).all()
    assert np.isnan(whole.of(~every)["darkness"]).all()
