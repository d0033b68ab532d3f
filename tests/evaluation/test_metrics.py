from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as known
from sklearn.calibration import calibration_curve

from wsi_meta.evaluation.metrics import ECE_BINS, auc_of, bootstrap_intervals, figures_of, losses_of, reliability, roc_points

KINDS = ["smooth", "ties", "extremes", "constant", "perfect", "reversed"]


def some_patches(kind: str, n: int = 400) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    rng = np.random.default_rng(n)
    labels = (rng.random(n) < 0.4).astype(np.uint8)
    values: NDArray[Any] = np.clip(rng.normal(0.35 + 0.3 * labels, 0.25), 0, 1)
    if kind == "ties":
        values = np.round(values * 4) / 4
    elif kind == "extremes":
        values = np.round(values)
    elif kind == "constant":
        values = np.full(n, 0.5)
    elif kind == "perfect":
        values = 0.25 + 0.5 * labels
    elif kind == "reversed":
        values = 0.75 - 0.5 * labels
    return values.astype(np.float32), labels


def by_scikit_learn(
    probabilities: NDArray[np.float32], labels: NDArray[np.uint8], threshold: float, weights: NDArray[Any] | None
) -> dict[str, float]:
    exact = probabilities.astype(np.float64)
    found = {
        "auc": known.roc_auc_score(labels, exact, sample_weight=weights),
        "average_precision": known.average_precision_score(labels, exact, sample_weight=weights),
        "log_loss": known.log_loss(labels, exact, sample_weight=weights),
        "brier": known.brier_score_loss(labels, exact, sample_weight=weights),
    }
    for ending, limit in (("", 0.5), ("_at_threshold", threshold)):
        called = (probabilities >= limit).astype(int)
        found["accuracy" + ending] = known.accuracy_score(labels, called, sample_weight=weights)
        found["sensitivity" + ending] = known.recall_score(labels, called, sample_weight=weights)
        found["specificity" + ending] = known.recall_score(labels, called, pos_label=0, sample_weight=weights)
        found["f1" + ending] = known.f1_score(labels, called, sample_weight=weights)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_corners_of_the_curve_are_scikit_learns(kind: str) -> None:
    values, labels = some_patches(kind)
    alarms, hits, _ = known.roc_curve(labels, values, drop_intermediate=False)
    assert roc_points(values, labels) == list(zip(alarms.tolist(), hits.tolist(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_auc_of_any_scores_is_scikit_learns(kind: str) -> None:
    probabilities, labels = some_patches(kind)
    scores = 40 * probabilities - 25

    assert auc_of(scores, labels) == pytest.approx(known.roc_auc_score(labels, scores), abs=1e-12)
    assert auc_of(probabilities, labels) == figures_of(probabilities, labels)["auc"]


@pytest.mark.parametrize("threshold", [0.5, 0.25, 0.731, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_scikit_learns(kind: str, threshold: float) -> None:
    probabilities, labels = some_patches(kind)

    found = figures_of(probabilities, labels, threshold)

    expected = by_scikit_learn(probabilities, labels, threshold, None)
    assert set(found) == {*expected, "ece"}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("drawn", ["counts", "fractions"])
@pytest.mark.parametrize("kind", KINDS)
def test_weighted_figures_are_scikit_learns(kind: str, drawn: str) -> None:
    probabilities, labels = some_patches(kind)
    rng = np.random.default_rng(1)
    weights = rng.poisson(1, len(labels)) if drawn == "counts" else rng.random(len(labels))

    found = figures_of(probabilities, labels, 0.6, weights)

    expected = by_scikit_learn(probabilities, labels, 0.6, weights)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_counts_a_patch_that_often(kind: str) -> None:
    probabilities, labels = some_patches(kind)
    weights = np.random.default_rng(2).poisson(1, len(labels))

    found = figures_of(probabilities, labels, 0.6, weights)

    repeated = figures_of(np.repeat(probabilities, weights), np.repeat(labels, weights), 0.6)
    assert found == pytest.approx(repeated, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_bins_are_scikit_learns_and_the_calibration_error_is_their_gap(kind: str) -> None:
    probabilities, labels = some_patches(kind)

    bins = reliability(probabilities, labels)

    shares, means = calibration_curve(labels, probabilities.astype(np.float64), n_bins=ECE_BINS)
    filled = bins.weight > 0
    assert bins.share[filled] == pytest.approx(shares)
    assert bins.probability[filled] == pytest.approx(means)
    assert bins.weight.sum() == len(labels)
    assert np.isnan(bins.share[~filled]).all()
    expected = np.sum(np.abs(shares - means) * bins.weight[filled]) / len(labels)
    assert figures_of(probabilities, labels)["ece"] == pytest.approx(expected)


def test_calibration_error_by_hand() -> None:
    """Bin 1: mean 0.01, no tumor. Bin 14: mean 0.9, half tumor. 2 and 4 patches of 6."""
    probabilities = np.array([0.0, 0.02, 0.88, 0.88, 0.92, 0.92])
    labels = np.array([0, 0, 1, 0, 1, 0])

    assert figures_of(probabilities, labels)["ece"] == pytest.approx((2 * 0.01 + 4 * 0.4) / 6)


def test_losses_are_finite_and_sum_to_the_log_loss() -> None:
    probabilities, labels = some_patches("extremes")

    losses = losses_of(probabilities, labels)

    assert np.isfinite(losses).all()
    assert losses.mean() == pytest.approx(figures_of(probabilities, labels)["log_loss"])
    assert (losses[labels == (probabilities > 0.5)] < 1e-12).all()


@pytest.mark.parametrize("label", [0, 1])
def test_figures_of_one_class_are_refused(label: int) -> None:
    with pytest.raises(ValueError, match="both classes"):
        figures_of(np.array([0.1, 0.9]), np.array([label, label]))
    with pytest.raises(ValueError, match="both classes"):
        figures_of(np.array([0.1, 0.9]), np.array([0, 1]), weights=np.array([1 - label, label]))


# --- intervals


def test_intervals_hold_the_figures_and_follow_the_seed() -> None:
    probabilities, labels = some_patches("smooth")

    intervals = bootstrap_intervals(probabilities, labels, 0.6, n=200, seed=3)

    figures = figures_of(probabilities, labels, 0.6)
    assert set(intervals) == set(figures)
    for name in set(figures) - {"ece"}:  # a resample's calibration error leans upwards
        low, high = intervals[name]
        assert low < figures[name] < high, name
    assert intervals == bootstrap_intervals(probabilities, labels, 0.6, n=200, seed=3)
    assert intervals != bootstrap_intervals(probabilities, labels, 0.6, n=200, seed=4)


def test_intervals_are_percentiles_of_resampled_figures() -> None:
    """The resamples done the plain way: patches drawn, scikit-learn asked."""
    probabilities, labels = some_patches("ties", 60)

    intervals = bootstrap_intervals(probabilities, labels, n=50, seed=5)

    rng = np.random.default_rng(5)
    draws = [rng.integers(60, size=60) for _ in range(50)]
    aucs = [known.roc_auc_score(labels[draw], probabilities[draw]) for draw in draws]
    assert intervals["auc"] == pytest.approx(tuple(np.percentile(aucs, (2.5, 97.5))))


def test_accuracys_interval_is_as_wide_as_theory_says() -> None:
    labels = np.tile([0, 1], 500)
    probabilities = np.where(np.arange(1000) % 10 < 8, labels, 1 - labels) * 0.8 + 0.1

    low, high = bootstrap_intervals(probabilities, labels)["accuracy"]

    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 1000), rel=0.1)


def test_slides_that_differ_widen_the_intervals() -> None:
    """On each slide all patches are right or all are wrong: 20 slides tell as much as 20 patches."""
    slides = np.repeat([f"slide {number}" for number in range(20)], 50)
    labels = np.tile([0, 1], 500)
    right = np.repeat(np.arange(20) % 5 > 0, 50)
    probabilities = np.where(right, labels, 1 - labels) * 0.8 + 0.1

    low, high = bootstrap_intervals(probabilities, labels, groups=slides)["accuracy"]

    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 20), rel=0.15)
    order = np.random.default_rng(0).permutation(1000)
    shuffled = bootstrap_intervals(probabilities[order], labels[order], groups=slides[order])["accuracy"]
    assert shuffled == pytest.approx((low, high))


def test_resamples_without_a_class_are_left_out() -> None:
    probabilities, labels = np.array([0.9, 0.2, 0.4]), np.array([1, 0, 0])

    intervals = bootstrap_intervals(probabilities, labels, n=50)

    assert intervals["auc"] == (1.0, 1.0)
    assert all(np.isfinite(interval).all() for interval in intervals.values())


def test_one_slide_has_no_intervals() -> None:
    probabilities, labels = some_patches("smooth", 20)

    assert bootstrap_intervals(probabilities, labels, groups=np.full(20, "only")) == {}
