from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from json_output import result_of
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from slide_files import texture
from tiny import HERE as ALONE

from wsi_meta.cli import main
from wsi_meta.datasets.layouts import choose_split, open_patches, warn_of_few
from wsi_meta.datasets.patches import Patches, content_of, contents_of
from wsi_meta.errors import DataError, ModelFileError, OptionsError, OutputExistsError, OutputPathError
from wsi_meta.evaluation.calibrate import calibrate, check_calibration, expecting
from wsi_meta.evaluation.calibration import card_thresholds, cross_fit, fit_calibration, operating_points, validation_metrics
from wsi_meta.evaluation.evaluate import evaluate
from wsi_meta.evaluation.model_parts import store_feature_statistics
from wsi_meta.models.card import Calibration, ModelCard, read_card
from wsi_meta.models.chance import check_fitted
from wsi_meta.models.features import FeatureStatistics, read_features
from wsi_meta.models.known_patches import KnownPatches, read_known_patches
from wsi_meta.models.model import Model, describe_patches, write_model

HERE = ALONE | {"batch_size": 4}


def draw(n: int, temperature: float, bias: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Logits of which ``sigmoid(logit / temperature + bias)`` is the truth, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3 * temperature, n).astype(np.float32)
    return logits, (rng.random(n) < 1 / (1 + np.exp(-(logits / temperature + bias)))).astype(np.uint8)


def loss(calibration: Calibration, logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> float:
    shown = logits.astype(np.float64) / calibration.temperature + calibration.bias
    return float(np.mean(np.logaddexp(0, shown) - labels * shown))


# --- temperature and bias


@pytest.mark.parametrize(("temperature", "bias"), [(1.0, 0.0), (2.5, -1.0), (0.4, 0.7), (12.0, 2.0)])
def test_a_known_calibration_is_found_again(temperature: float, bias: float) -> None:
    found = fit_calibration(*draw(200_000, temperature, bias))

    assert found.temperature == pytest.approx(temperature, rel=0.02)
    assert found.bias == pytest.approx(bias, abs=0.03)


def test_no_other_calibration_has_a_smaller_loss() -> None:
    """So 0.5 is the decision that the log loss asks for, and the probabilities are those of the data."""
    logits, labels = draw(5000, 2.0, -0.5)
    best = fit_calibration(logits, labels)

    least = loss(best, logits, labels)

    for stretch in (0.97, 1.03):
        assert loss(Calibration(best.temperature * stretch, best.bias), logits, labels) > least
    for shift in (-0.03, 0.03):
        assert loss(Calibration(best.temperature, best.bias + shift), logits, labels) > least
    assert best.to_probability(logits).mean() == pytest.approx(labels.mean(), abs=1e-3)
    unlike = Calibration(2 * best.temperature, best.bias + 1).to_probability(logits)
    assert abs(unlike.mean() - labels.mean()) > 0.05


@pytest.mark.parametrize("distance", [0.0, 1.0, 1000.0])
def test_classes_that_do_not_overlap_have_a_finite_calibration(distance: float) -> None:
    logits = np.array([-distance, -distance - 1, distance + 1, distance + 2], np.float32)

    found = fit_calibration(logits, np.array([0, 0, 1, 1], np.uint8))

    assert 1 / 20.001 < found.temperature < 20.001
    assert np.isfinite(found.bias)
    assert (found.to_probability(logits) >= 0.5).tolist() == [False, False, True, True]


def test_logits_that_say_nothing_give_the_share_of_tumor() -> None:
    found = fit_calibration(np.zeros(1000, np.float32), np.array([1] * 100 + [0] * 900, np.uint8))

    assert found.to_probability(np.zeros(1, np.float32))[0] == pytest.approx(0.1, abs=0.002)


@pytest.mark.parametrize("prior", [0.001, 0.3, 0.9])
def test_a_prior_moves_the_log_odds_by_the_difference(prior: float) -> None:
    logits, labels = draw(2000, 1.5, 1.0)
    plain, shifted = fit_calibration(logits, labels), fit_calibration(logits, labels, prior=prior)
    share = labels.mean()

    assert shifted.temperature == plain.temperature
    difference = np.log(prior / (1 - prior)) - np.log(share / (1 - share))
    assert shifted.bias - plain.bias == pytest.approx(difference, abs=1e-9)
    same = fit_calibration(logits, labels, prior=float(share))
    assert same.bias == pytest.approx(plain.bias, abs=1e-9)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_cannot_be_calibrated_on(label: int) -> None:
    with pytest.raises(DataError, match="expected both classes"):
        fit_calibration(np.zeros(3, np.float32), np.full(3, label, np.uint8))


@pytest.mark.parametrize("prior", [1e-5, 0.001, 0.05, 0.3, 0.9])
@pytest.mark.parametrize(("n", "apart"), [(60, 0.0), (60, 3.0), (2000, 0.5)])
def test_the_same_patches_are_tumor_whatever_the_prior(prior: float, n: int, apart: float) -> None:
    labels = (np.arange(n) % 2).astype(np.uint8)
    noise = np.random.default_rng(n).normal(0, 2, n)
    logits = (noise + apart * (2.0 * labels - 1)).astype(np.float32)
    patches = Patches((Path("a.png"),) * n, np.full(n, -1), labels)

    plain, shifted = (expecting(share, ModelCard(), logits, patches) for share in (None, prior))

    assert shifted.calibration == fit_calibration(logits, labels, prior=prior)
    assert ModelCard.from_dict(shifted.to_dict()) == shifted
    for name, point in plain.thresholds.items():
        called = plain.calibration.to_probability(logits) >= point
        assert ((shifted.calibration.to_probability(logits) >= shifted.thresholds[name]) == called).all(), name


@pytest.mark.parametrize("prior", [1 - 1e-9, 1 - 1e-15, 1e-300])
def test_a_prior_of_which_no_threshold_keeps_its_meaning_is_refused(prior: float) -> None:
    """In float32 every threshold was 1, and most normal patches were tumor by ``specificity_99``; or none was."""
    logits, labels = draw(400, 1.0, 0.0)
    patches = Patches((Path("a.png"),) * 400, np.full(400, -1), labels)

    with pytest.raises(DataError, match=r"prior .*: too many probabilities become 0 or 1 .*; expected a share less near to"):
        expecting(prior, ModelCard(), logits, patches)


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.5, float("nan"), "0.05", True])
def test_a_prior_that_is_no_share_is_refused(prior: Any) -> None:
    with pytest.raises(OptionsError, match="expected a share of tumor between 0 and 1"):
        check_calibration(None, "not looked at", "m.safetensors", prior=prior)  # before the work
    with pytest.raises(OptionsError, match="expected a share of tumor between 0 and 1"):
        fit_calibration(np.zeros(2, np.float32), np.array([0, 1], np.uint8), prior=prior)


# --- operating points

PROBABILITIES = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1, width=32))


@st.composite
def judged(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    n = draw(st.integers(2, 60))
    labels = draw(arrays(np.uint8, n, elements=st.integers(0, 1)))
    labels[:2] = (0, 1)
    return draw(arrays(np.float32, n, elements=PROBABILITIES)), labels


def thresholds_of(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every threshold that makes a difference: each probability, and just above it."""
    return np.unique(np.concatenate([probabilities, np.nextafter(probabilities, np.float32(2))]))


@given(case=judged())
def test_operating_points_are_what_they_are_called(case: tuple[NDArray[np.float32], NDArray[np.uint8]]) -> None:
    probabilities, labels = case
    found, false = probabilities[labels == 1], probabilities[labels == 0]
    possible = thresholds_of(probabilities)

    points = operating_points(probabilities, labels)

    for name, share in (("sensitivity_95", 95), ("sensitivity_99", 99)):
        enough = [float(one) for one in possible if 100 * (found >= one).sum() >= share * len(found)]
        assert points[name] == max(enough)
    threshold = np.float32(points["specificity_99"])
    assert threshold == points["specificity_99"]
    assert 100 * (false >= threshold).sum() <= len(false)
    assert 100 * (false >= np.nextafter(threshold, np.float32(-1))).sum() > len(false)
    assert set(points) == {"default", "sensitivity_95", "sensitivity_99", "specificity_99"}


@given(case=judged())
def test_the_default_threshold_is_the_most_accurate(case: tuple[NDArray[np.float32], NDArray[np.uint8]]) -> None:
    probabilities, labels = case
    between = [one for one in thresholds_of(probabilities) if 0 < one <= 1]

    chosen = operating_points(probabilities, labels)["default"]

    assert 0 < chosen <= 1
    right = ((probabilities >= chosen) == labels).sum()
    assert right == max(((probabilities >= one) == labels).sum() for one in [*between, np.float32(1), np.float32(1e-45)])


def test_the_default_threshold_keeps_its_distance_from_both_classes() -> None:
    probabilities = np.array([0.1, 0.3, 0.7, 0.9], np.float32)

    assert operating_points(probabilities, np.array([0, 0, 1, 1], np.uint8))["default"] == pytest.approx(0.5)


def test_the_default_threshold_separates_neighbouring_numbers() -> None:
    """There is no float32 between them: a middle that is rounded down would call the normal patch tumor."""
    for low in np.array([0.1, 0.3, 0.5, 0.7], np.float32):
        for _ in range(4):
            high = np.nextafter(low, np.float32(1))
            chosen = operating_points(np.array([low, high]), np.array([0, 1], np.uint8))["default"]
            assert (np.array([low, high]) >= chosen).tolist() == [False, True]
            low = high


# --- figures that are not of what they were fitted on


@pytest.mark.parametrize("n", [4, 7, 50])
def test_no_patch_is_judged_by_what_its_own_label_had_a_part_in(n: int) -> None:
    """Each patch is its own logit, each fit gives away which patches it saw."""
    logits, labels = np.arange(n, dtype=np.float32), (np.arange(n) % 2).astype(np.uint8)
    saw: list[set[int]] = []
    fitted: list[Any] = []

    class Telling(Calibration):
        def to_probability(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.full(len(logits), (len(saw) - 1 + 0.25) / 4, np.float32)

    def fit(seen: NDArray[np.float32], their_labels: NDArray[np.uint8]) -> Calibration:
        saw.append(set(seen.astype(int).tolist()))
        assert {0, 1} == set(their_labels.tolist())
        return Telling()

    def points(_probabilities: NDArray[np.float32], their_labels: NDArray[np.uint8]) -> dict[str, float]:
        fitted.append(their_labels)
        return {"default": 0.0 if len(saw) == 1 else 1.0}

    probabilities, called = cross_fit(logits, labels, fit=fit, choose=points)

    by = (probabilities * 4).astype(int)
    assert all(patch not in saw[by[patch]] for patch in range(n))
    assert saw[0] | saw[1] == set(range(n))
    assert not saw[0] & saw[1]
    assert called.tolist() == (by == 0).tolist()
    assert [len(theirs) for theirs in fitted] == [len(seen) for seen in saw]


def test_noise_is_not_judged_better_than_chance() -> None:
    cross, own = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        logits, labels = rng.normal(size=12).astype(np.float32), rng.permutation(np.repeat([0, 1], 6)).astype(np.uint8)
        cross.append((cross_fit(logits, labels)[1] == labels).mean())
        shown = fit_calibration(logits, labels).to_probability(logits)
        own.append(((shown >= operating_points(shown, labels)["default"]) == labels).mean())

    assert np.mean(own) > 0.62
    assert np.mean(cross) < 0.53


def test_the_halves_depend_on_the_seed_alone() -> None:
    logits, labels = draw(40, 1.0, 0.0)

    once, again, other = cross_fit(logits, labels), cross_fit(logits, labels), cross_fit(logits, labels, seed=1)

    assert np.array_equal(once[0], again[0])
    assert np.array_equal(once[1], again[1])
    assert not np.array_equal(once[0], other[0])


def test_metrics_are_those_of_the_cross_fitted_probabilities() -> None:
    logits, labels = draw(400, 2.0, -0.5)
    probabilities, called = cross_fit(logits, labels)
    above = logits[labels == 1][:, None] > logits[labels == 0]

    metrics = validation_metrics(logits, labels)

    assert metrics["n"] == 400
    assert metrics["auc"] == pytest.approx(above.mean())
    assert metrics["accuracy"] == ((probabilities >= 0.5) == labels).mean()
    assert metrics["accuracy_at_threshold"] == (called == labels).mean()
    right = np.where(labels == 1, probabilities, 1 - probabilities.astype(np.float64))
    assert metrics["log_loss"] == pytest.approx(-np.log(right).mean())


# --- a model file anew


def test_calibrating_a_model_changes_its_card_and_not_its_weights(model_file: Path, few_patches: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    labels = open_patches(few_patches)["valid"].labels

    card = calibrate(model_file, few_patches, out, prior=np.float32(0.2), **HERE)  # type: ignore[arg-type]

    assert read_card(out) == card
    before, after = load_file(model_file), load_file(out)
    assert all(torch.equal(before[name], after[name]) for name in before)
    judged = evaluate(out, few_patches, **HERE)
    assert card.calibration == fit_calibration(judged.logits, labels, prior=0.2)
    plain = fit_calibration(judged.logits, labels).to_probability(judged.logits)
    for name, point in operating_points(plain, labels).items():
        assert ((judged.probabilities >= card.thresholds[name]) == (plain >= point)).all(), name
    assert judged.threshold == card.thresholds["default"]
    assert card.training["calibrated_on"]["n"] == 4
    assert card.training["calibrated_on"]["prior"] == 0.2
    assert card.metrics == validation_metrics(judged.logits, labels)


def test_patches_it_was_calibrated_on_are_known_by_their_pixels(
    model_file: Path, few_patches: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Under other names, in part, beside others; a second calibration leaves the first one behind."""
    first, again, copies = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "copies"
    (copies / "0").mkdir(parents=True)
    (copies / "1").mkdir()
    for number, path in enumerate(sorted((few_patches / "valid").glob("*/*.png"))[:3]):
        shutil.copy(path, copies / path.parent.name / f"{number}.png")
    Image.new("RGB", (96, 96), (9, 0, 9)).save(copies / "1" / "other.png")
    calibrate(model_file, few_patches, first, split="train", **HERE)
    calibrate(first, few_patches, again, **HERE)
    assert "calibrated on" not in caplog.text
    assert read_card(again).training["calibrated_on"]["pixels"]

    assert evaluate(first, copies, **HERE).known_patches == {"calibrated_on": 0}
    assert "calibrated on" not in caplog.text
    evaluated = evaluate(again, copies, **HERE)
    assert evaluated.known_patches == {"calibrated_on": 3}
    assert caplog.text.count("It is not known which patches the model was trained on") == 4, (
        "of each calibration and evaluation"
    )
    assert evaluated.to_dict()["all_patches_known"] is False
    assert "The model was calibrated on 3 of these 4 patches, so its probabilities and thresholds fit them" in caplog.text


def test_calibrating_on_patches_that_it_was_trained_on_is_told(
    model_file: Path, few_patches: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    patches = open_patches(few_patches)["valid"]
    contents = contents_of(content_of(patch) for patch in patches.read_many(range(4)))
    known = KnownPatches.of({"train": contents[:2], "valid": contents[2:], "calibrated_on": contents})
    write_model(tmp_path / "m.safetensors", load_file(model_file), read_card(model_file), None, known)

    calibrate(tmp_path / "m.safetensors", few_patches, tmp_path / "out.safetensors", **HERE)

    told = [line for line in caplog.messages if line.startswith("The model")]
    assert [line[:58] for line in told] == [
        "The model was trained on 2 of these 4 patches. The figures",
        "The model's best epoch was chosen on 2 of these 4 patches,",
    ]


def test_a_model_that_is_worse_than_chance_is_refused(
    model_file: Path, patch_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its labels are exchanged, perhaps: a fit would hide it, as it makes all probabilities the share of tumor."""
    data = shutil.copytree(patch_folder / "train", tmp_path / "data")
    for old, new in (("0", "other"), ("1", "0"), ("other", "1")):
        (data / old).rename(data / new)

    with pytest.raises(ModelFileError, match=r"worse than chance \(AUC 0\.\d\d on 16 patches\); expected label 1 for tumor"):
        calibrate(model_file, data, tmp_path / "m.safetensors", **HERE)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert "chance" not in caplog.text, "the error says it"


@pytest.mark.parametrize(("scale", "told"), [(1e-3, "temperature 0.05,"), (1.0, ""), (1e3, "temperature 20,")])
def test_a_temperature_at_its_limit_is_told(scale: float, told: str, caplog: pytest.LogCaptureFixture) -> None:
    logits, labels = draw(400, 1.0, 0.0)
    card = ModelCard(calibration=fit_calibration(logits * scale, labels), metrics=validation_metrics(logits, labels))

    check_fitted(card, labels, Path("m.safetensors"), "")

    assert [told in line for line in caplog.messages] == [True] * bool(told)


def test_which_patches_it_is_calibrated_on(few_patches: Path, tmp_path: Path) -> None:
    unsplit = tmp_path / "unsplit"
    shutil.copytree(few_patches / "train", unsplit)
    apart = tmp_path / "apart"
    for split in ("train", "test"):
        shutil.copytree(few_patches / "train", apart / split)

    def n(data: Path | list[Path], split: str | None = None) -> int:
        return len(choose_split(data, split=split))

    assert [n(few_patches), n(few_patches, "train"), n(unsplit), n(apart, "test")] == [4, 8, 8, 8]
    with pytest.raises(DataError, match="no 'valid' split; found train, test; name one with --split"):
        n(apart)
    with pytest.raises(DataError, match="unsplit: has no 'valid' patches, other folders have"):
        n([few_patches, unsplit])
    with pytest.raises(DataError, match="no 'test' split; found train, valid"):
        n(few_patches, "test")


def test_too_few_patches_of_a_class_are_refused_before_the_work(few_patches: Path, tmp_path: Path) -> None:
    """Each half is calibrated on the other, so each needs both classes."""
    data = shutil.copytree(few_patches / "valid", tmp_path / "data")
    classes = sorted(path for path in data.iterdir() if path.is_dir())
    for path in sorted(classes[-1].iterdir())[1:]:
        path.unlink()

    with pytest.raises(DataError, match=f"{data}: 1 tumor and 2 normal patches in 'train'; expected at least 2 of each"):
        check_calibration(None, data, tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("normal", "tumor", "told"),
    [
        (100, 100, ""),
        (99, 100, "few patches to choose thresholds by: specificity_99 on 99 normal; expected 100 of a class"),
        (2, 30, "specificity_99 on 2 normal and sensitivity_95, sensitivity_99 on 30 tumor; expected"),
    ],
)
def test_thresholds_of_few_patches_are_told(normal: int, tumor: int, told: str, caplog: pytest.LogCaptureFixture) -> None:
    n = normal + tumor
    warn_of_few(Patches((Path("valid/a.png"),) * n, np.full(n, -1), (np.arange(n) < tumor).astype(np.uint8)), "d: valid")

    assert [told in line for line in caplog.messages] == [True] * bool(told)


def test_few_patches_are_told_once_by_a_calibration(
    model_file: Path, few_patches: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calibrate(model_file, few_patches, tmp_path / "m.safetensors", **HERE)

    assert sum("few patches to choose thresholds by" in line for line in caplog.messages) == 1


def test_an_existing_file_is_not_calibrated_over(model_file: Path, few_patches: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    out.write_text("precious")

    with pytest.raises(OutputExistsError, match="--overwrite"):
        calibrate(model_file, few_patches, out, **HERE)

    assert out.read_text() == "precious"


def test_a_file_that_was_made_meanwhile_is_kept(
    model_file: Path, few_patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.safetensors"
    monkeypatch.setattr("wsi_meta.evaluation.calibrate.look_at", lambda *_values, **_named: out.write_text("precious"))

    with pytest.raises(OutputExistsError, match="--overwrite"):
        calibrate(model_file, few_patches, out, **HERE)

    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("m.safetensors", "precious")]


def test_the_command_prints_what_it_fitted(model_file: Path, few_patches: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    words = [str(model_file), str(few_patches), "--prior", "0.1", "--device", "cpu", "--workers", "0", "--batch-size", "4"]
    result = CliRunner().invoke(main, ["calibrate", *words, "--out", str(out), "--json"])

    assert result.exit_code == 0, result.output
    printed = result_of(result.stdout)
    card = read_card(out)
    assert printed["model"] == str(out)
    assert printed["calibration"] == {"temperature": card.calibration.temperature, "bias": card.calibration.bias}
    assert printed["thresholds"] == card.thresholds
    assert printed["metrics"]["n"] == 4

    wrong = CliRunner().invoke(main, ["calibrate", *words, "--out", str(out), "--prior", "1"])
    assert wrong.exit_code == 2


@pytest.mark.parametrize("value", [0, 1])
def test_operating_points_of_saturated_probabilities_fit_into_a_card(value: int) -> None:
    """All patches at 0: the point that finds all tumor would be 0. All at 1: one that calls no normal patch would be over 1."""
    probabilities, labels = np.full(8, value, np.float32), np.array([0, 1] * 4, np.uint8)
    assert not all(0 < point <= 1 for point in operating_points(probabilities, labels).values())

    points = card_thresholds(probabilities, labels)

    assert all(0 < point <= 1 for point in points.values())
    assert ModelCard.from_dict(ModelCard(thresholds=points).to_dict()).thresholds == points


def test_the_model_that_is_calibrated_is_never_replaced(model_file: Path, patch_folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.safetensors"
    link.symlink_to(model_file)
    before = model_file.read_bytes()

    for out in (model_file, link):
        with pytest.raises(OutputPathError, match="the model to calibrate, never replaced"):
            calibrate(model_file, patch_folder, out, overwrite=True, **HERE)

    assert model_file.read_bytes() == before
    assert link.is_symlink()


def test_a_model_is_told_what_it_was_trained_on(thin_model: Model, tmp_path: Path) -> None:
    """200 pictures of tissue: those like them are no surprise to the model, black ones are; weights and card stay."""
    for number in range(200):
        folder = tmp_path / "patches" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(texture(96, 96, number)).save(folder / f"{number}.png")
    patches = next(iter(open_patches(tmp_path / "patches").values()))
    model, state = replace(thin_model, path=tmp_path / "m.safetensors"), thin_model.network.state_dict()
    write_model(model.path, state, model.card)
    model = replace(model, hash=hashlib.sha256(model.path.read_bytes()).hexdigest())
    assert not store_feature_statistics(model, patches.select(np.arange(199)), workers=0)
    assert read_features(model.path) is None
    assert store_feature_statistics(model, patches, workers=0)
    features = read_features(model.path)
    assert features is not None
    assert features.patches == 200
    alike = np.stack([texture(96, 96, number) for number in range(300, 303)])
    unlike = features.unlikeness(describe_patches(model, np.concatenate([alike, np.zeros_like(alike)])))
    assert unlike[:3].max() < unlike[3:].min()
    assert read_card(model.path) == model.card
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_file(model.path).items())


def test_what_a_file_says_of_patches_stays(model_file: Path, patch_folder: Path, tmp_path: Path) -> None:
    own = FeatureStatistics.of(np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32))
    state = load_file(model_file)
    known = KnownPatches.of({"train": np.ones((3, 20), np.uint8)})
    write_model(tmp_path / "m.safetensors", state, read_card(model_file), own, known)
    out = tmp_path / "out.safetensors"
    calibrate(tmp_path / "m.safetensors", patch_folder, out, **HERE)
    found = read_features(out)
    assert found is not None
    assert found.to_dict() == own.to_dict()
    patches = read_known_patches(out)
    assert patches is not None
    assert patches.count(np.ones((1, 20), np.uint8)) == {"train": 1, "calibrated_on": 0}
    assert read_card(out).calibration != read_card(model_file).calibration
    assert all(torch.equal(values, state[name]) for name, values in load_file(out).items())
