from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn import metrics as known
from sklearn.calibration import calibration_curve

from wsi_meta.evaluation.metrics import ECE_BINS, auc_of, bootstrap_intervals, figures_of, losses_of, reliability
from wsi_meta.evaluation.results import Evaluation
from wsi_meta.evaluation.roc import roc_points
from wsi_meta.models.card import Calibration, ModelCard

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
    logits = np.array([12, 17, 20, 300, -300, -20, 20, 5], np.float32)  # half of them are probability 0 or 1 in float32
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 0])
    calibration = Calibration(temperature=2.0, bias=0.5)
    log_odds = calibration.to_log_odds(logits)

    losses = losses_of(log_odds, labels)

    exact = [6.5, 9, 10.5, 150.5, 149.5, 9.5, 0, 3]
    assert losses == pytest.approx(np.logaddexp(0, exact) * (np.array(exact) > 0), abs=1e-4)
    found = figures_of(calibration.to_probability(logits), labels, log_odds=log_odds)
    assert losses.mean() == pytest.approx(found["log_loss"])
    assert found["auc"] == auc_of(logits, labels)


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
    assert set(intervals) == set(figures) - {"ece"}  # chance adds to it, and more so in a resample
    for name in intervals:
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
    probabilities, labels = np.array([0.9, 0.8, 0.2, 0.4]), np.array([1, 1, 0, 0])

    intervals = bootstrap_intervals(probabilities, labels, n=50)

    assert "auc" not in intervals, "all resamples have 1: there is no spread"
    assert all(np.isfinite(interval).all() for interval in intervals.values())


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(8), 10)])
def test_a_share_of_0_or_1_has_the_exact_interval(groups: NDArray[np.int64] | None) -> None:
    """40 of 40 normal patches left alone are not surely all: 1.000 to 1.000 was said."""
    labels = np.tile([0, 1], 40)
    probabilities = np.where(labels == 1, np.arange(80) % 4 / 4 + 0.01, 0.1)

    for told, name in ((probabilities, "specificity"), (np.full(80, 0.1), "sensitivity"), (1 - labels, "accuracy")):
        intervals = bootstrap_intervals(told, labels, groups=groups, n=30)
        none = name != "specificity"
        n = len(np.unique(groups)) if groups is not None else 80 if name == "accuracy" else 40
        exact = binomtest(0 if none else n, n).proportion_ci(method="exact")
        assert intervals[name] == pytest.approx((exact.low, exact.high))
        assert all(low < high for low, high in intervals.values())
    if groups is None:
        assert bootstrap_intervals(probabilities, labels, n=30)["specificity"][0] == pytest.approx(0.912, abs=1e-3)


@pytest.mark.parametrize(
    ("tumor", "normal", "known"),
    [("a", "a", "none"), ("a", "b", "none"), ("a", "bc", "specificity"), ("ab", "bb", "sensitivity"), ("ab", "ab", "both")],
)
def test_figures_of_a_class_on_one_slide_have_no_interval(tumor: str, normal: str, known: str) -> None:
    """The letters are the slides that hold patches of a class."""
    groups, labels = np.repeat(list(tumor + normal), 60), np.repeat([1, 0], (60 * len(tumor), 60 * len(normal)))
    probabilities = np.clip(np.random.default_rng(0).normal(0.4 + 0.2 * labels, 0.2), 0, 1)

    found = bootstrap_intervals(probabilities, labels, groups=groups, n=50)

    every = {"none": set(), "both": set(figures_of(probabilities, labels)) - {"ece"}}
    assert set(found) == every.get(known, {known, f"{known}_at_threshold"})
    assert all(low < high for low, high in found.values())


def test_the_calibration_error_of_a_calibrated_model_is_that_of_chance() -> None:
    """0.03 on a thousand patches, though the truth is 0; on ten times as many a third of that."""
    logits = np.random.default_rng(0).normal(0, 3, 10_000).astype(np.float32)
    labels = (np.random.default_rng(1).random(10_000) < ModelCard().calibration.to_probability(logits)).astype(np.uint8)

    few, many = (Evaluation.of(logits[:n], labels[:n], ModelCard()) for n in (1000, 10_000))

    assert few.ece == pytest.approx(few.ece_noise, rel=0.4)
    assert few.ece_noise == pytest.approx(0.032, abs=0.005)
    assert many.ece_noise == pytest.approx(few.ece_noise / np.sqrt(10), rel=0.2)
    assert few.to_dict()["ece_noise"] == few.ece_noise
