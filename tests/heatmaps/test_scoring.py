from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_meta.heatmaps.scoring import score_slide
from wsi_meta.words import format_score


def _map(shape: tuple[int, int] = (40, 40), value: float = 0.0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.full(shape, value, np.float32)


def test_a_score_in_words_is_no_certainty() -> None:
    scores = (0.0003, 0.25, 0.9996)
    assert [format_score(score, complete=True) for score in scores] == ["under 0.001", "0.250", "over 0.999"]
    parts = [format_score(score, complete=False) for score in scores]
    assert parts == ["under 0.001, incomplete", "0.250, incomplete", "over 0.999, incomplete"]


def test_nothing_scanned_has_no_score() -> None:
    assert score_slide(_map(value=np.nan)) is None


def test_one_hot_cell_is_no_metastasis() -> None:
    probability = _map()
    probability[20, 20] = 1
    assert score_slide(probability) == pytest.approx(9 * (1 / 9) / 10)


def test_a_lesion_of_a_few_cells_is() -> None:
    probability = _map()
    probability[10:16, 10:16] = 1
    assert score_slide(probability) == pytest.approx(1)


def test_cells_not_scanned_count_neither_way() -> None:
    probability = _map(value=np.nan)
    probability[5:9, 5:9] = 0.8
    assert score_slide(probability) == pytest.approx(0.8)


def test_the_score_of_a_part_bounds_nothing() -> None:
    probability = _map((12, 12), 0.02)
    probability[5] = 0.97
    whole = score_slide(probability)
    probability[[4, 6]] = np.nan
    part = score_slide(probability)
    assert whole == pytest.approx(0.337, abs=1e-3)
    assert part == pytest.approx(0.97)
    assert part is not None
    assert format_score(part, complete=False) == "0.970, incomplete", "the whole has less: no ≥ and no lower bound"


def test_fewer_than_ten_cells() -> None:
    probability = _map(value=np.nan)
    probability[3, 3], probability[30, 30] = 0.2, 0.6
    assert score_slide(probability) == pytest.approx(0.4)


@given(st.integers(0, 500), st.floats(0, 1))
def test_against_a_direct_reading_of_the_rule(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    probability = rng.random((9, 11)).astype(np.float32)
    probability[rng.random(probability.shape) < share] = np.nan
    padded = np.pad(probability, 1, constant_values=np.nan)
    means = [
        np.nanmean(padded[row : row + 3, col : col + 3].astype(float)) for row, col in np.argwhere(np.isfinite(probability))
    ]
    score = score_slide(probability)
    assert score == (pytest.approx(np.mean(sorted(means)[-10:])) if means else None)
