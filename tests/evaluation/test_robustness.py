from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import Browser
from click.testing import CliRunner
from fakes import PatchByPatch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from wsi_meta.cli import main
from wsi_meta.cli.options import print_result
from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.datasets.shifts import SHIFTS
from wsi_meta.datasets.stains import FAMILIES, stain_hue, to_pixels
from wsi_meta.evaluation.evaluate import evaluate, evaluate_patches
from wsi_meta.evaluation.metrics import auc_of, bootstrap_intervals, figures_of, resampled_figures
from wsi_meta.evaluation.report import Pictures, draw_plots, write_report
from wsi_meta.evaluation.results import Evaluation, Subject
from wsi_meta.evaluation.robustness import FEWEST, Change, Robustness, Seen, ShiftFigures, judge_shifts
from wsi_meta.models.card import ModelCard
from wsi_meta.models.model import Model

N = 24
"""Patches. Normal: the stains of PCam's grey slides, shapes that lie. Tumor: those of its violet slides, shapes upright."""
TARGETS = {shift.name for shift in SHIFTS if shift.name.startswith("stains_") and shift.name != "stains_1.3"}
"""The shifts that give all patches the same stains."""


class ColourPredictor(PatchByPatch):
    """Sees nothing but the mean colour: whether there is more blue than red, by 20."""

    def look(self, patch: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
        red, _, blue = patch.mean((0, 1))
        return np.asarray((blue - red - 20) / 5)


class ShapePredictor(PatchByPatch):
    """Sees nothing but which way shapes are drawn out."""

    def look(self, patch: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
        grey = patch.mean(2)
        across, down = (np.abs(np.diff(grey, axis=axis)).mean() for axis in (1, 0))
        return np.asarray(10 * (across - down) / (across + down))


@dataclass(frozen=True)
class CountedPatches(Patches):
    """Patches that count how often each is read."""

    reads: list[int] = field(default_factory=list)

    def read_many(self, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
        self.reads.extend(indices)
        return super().read_many(indices)


def draw(label: int, seed: int) -> NDArray[np.uint8]:
    stains = FAMILIES["violet" if label else "grey"].stains
    noise = np.random.default_rng(seed).normal(size=(2, 96, 96))
    shapes = np.stack([gaussian_filter(layer, (6, 2) if label else (2, 6)) for layer in noise], axis=-1)
    amounts = (0.7, 0.4) + (0.25, 0.1) * shapes / shapes.std((0, 1))
    return to_pixels(amounts.clip(0.05) @ stains.to_density()[:2])


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> CountedPatches:
    folder = tmp_path_factory.mktemp("shifts")
    for number in range(N):
        place = folder / "valid" / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(number % 2, number)).save(place / f"{number:02d}.png", compress_level=1)
    found = open_patches(folder)["valid"]
    return CountedPatches(found.files, found.rows, found.labels)


def judged(kind: type[PatchByPatch], model: Model, patches: CountedPatches) -> Evaluation:
    predictor, fresh = kind(model, device="cpu", precision="fp32", batch_size=16), replace(patches, reads=[])
    found = evaluate_patches(predictor, fresh, workers=0, intervals=True, shifts=True)
    assert sorted(fresh.reads) == list(range(N))  # each once, not once for each shift
    return found


@pytest.fixture(scope="module")
def by_colour(thin_model: Model, patches: CountedPatches) -> Evaluation:
    return judged(ColourPredictor, thin_model, patches)


@pytest.fixture(scope="module")
def by_shape(thin_model: Model, patches: CountedPatches) -> Evaluation:
    return judged(ShapePredictor, thin_model, patches)


def robustness_of(evaluation: Evaluation) -> Robustness:
    assert evaluation.robustness is not None
    return evaluation.robustness


# --- what it is for


def test_a_model_that_only_looks_at_colour_is_caught(by_colour: Evaluation) -> None:
    found = robustness_of(by_colour)
    by_name = {shift.name: shift for shift in found.shifts}

    assert by_colour.auc == 1
    assert by_colour.sensitivity_at_threshold == by_colour.specificity_at_threshold == 1
    assert found.lowest.name in TARGETS
    assert found.lowest.figures["auc"].value < 0.8
    assert found.shifts[0].severity > 0.9
    for name in TARGETS:
        assert by_name[name].costs, name
        assert "costs" in by_name[name].sentence
    lost = by_name["white_warm"].costs["sensitivity_at_threshold"]
    assert lost.change < -0.5
    assert by_name["white_warm"].sentence.startswith(f"A warmer white costs {-100 * lost.change:.1f} points of sensitivity (")
    assert "specificity" in by_name["white_cool"].sentence
    assert not by_name["jpeg_90"].costs
    assert f": no cost is certain on {N} patches (AUC +" in by_name["jpeg_90"].sentence
    assert f"{found.lowest.figures['auc'].value:.3f} at worst, under {found.lowest.words}" in found.summary


def test_a_model_that_looks_at_shapes_is_not(by_shape: Evaluation) -> None:
    found = robustness_of(by_shape)

    assert by_shape.auc == 1
    assert min(shift.figures["auc"].value for shift in found.shifts) == 1
    assert not any(shift.costs for shift in found.shifts)
    assert found.mean.figures["auc"] == Change(1.0, 0.0, None), "no resample differs: there is no spread"
    assert "1.000 on average" in found.summary


# --- how it counts


def test_the_unshifted_figures_are_as_without_shifts(thin_model: Model, patches: CountedPatches, by_shape: Evaluation) -> None:
    predictor = ShapePredictor(thin_model, device="cpu", precision="fp32", batch_size=16)

    plain = evaluate_patches(predictor, patches, workers=0, intervals=True)

    assert np.array_equal(plain.logits, by_shape.logits)
    assert plain.robustness is None
    assert "shifts" not in plain.to_dict()
    assert {name: value for name, value in by_shape.to_dict().items() if name != "shifts"} == plain.to_dict()


def test_logits_under_a_shift_are_those_of_the_shifted_patches(
    thin_model: Model, patches: CountedPatches, by_colour: Evaluation
) -> None:
    predictor = ColourPredictor(thin_model, device="cpu", precision="fp32")
    pixels = np.stack(patches.read_many([3, 20]))

    expected = [[predictor.look(patch) for patch in shift.show(pixels)] for shift in SHIFTS]

    assert np.array_equal(robustness_of(by_colour).logits[:, [3, 20]], np.array(expected, np.float32))


def test_changes_and_their_intervals_are_of_the_same_resamples(by_colour: Evaluation, patches: CountedPatches) -> None:
    found, card = robustness_of(by_colour), ModelCard()
    place = [shift.name for shift in SHIFTS].index("stains_macenko")
    probabilities = card.calibration.to_probability(np.stack([by_colour.logits, found.logits[place]]))
    (shift,) = (shift for shift in found.shifts if shift.name == "stains_macenko")

    rng = np.random.default_rng(0)
    differences = []
    for _ in range(1000):
        drawn = rng.integers(N, size=N)
        if 0 < patches.labels[drawn].sum() < N:
            before, after = (auc_of(row[drawn], patches.labels[drawn]) for row in probabilities)
            differences.append(after - before)

    figure = shift.figures["auc"]
    assert figure.value == figures_of(probabilities[1], patches.labels)["auc"]
    assert figure.change == figure.value - by_colour.auc
    assert figure.interval == pytest.approx(tuple(np.percentile(differences, (2.5, 97.5))), abs=1e-12)


def test_the_mean_is_of_all_shifts_and_the_worst_comes_first(by_colour: Evaluation) -> None:
    found = robustness_of(by_colour)

    for name, figure in found.mean.figures.items():
        assert figure.value == pytest.approx(np.mean([shift.figures[name].value for shift in found.shifts]))
    severities = [shift.severity for shift in found.shifts]
    assert severities == sorted(severities, reverse=True)
    assert len(found.shifts) == len(SHIFTS)


def test_only_what_is_certain_and_matters_is_told() -> None:
    figures = {
        "sensitivity_at_threshold": Change(0.84, -0.06, (-0.1, -0.02)),
        "specificity_at_threshold": Change(0.95, 0.04, (0.01, 0.07)),
        "auc": Change(0.9, -0.1, (-0.3, 0.1)),
        "ece": Change(0.135, 0.105, None),
    }

    shift = ShiftFigures("eosin_0.6", "pale eosin", figures, 80)

    assert list(shift.costs) == ["sensitivity_at_threshold"]
    assert list(shift.gains) == ["specificity_at_threshold"]
    assert shift.severity == 0.06
    assert shift.sentence == (
        "Pale eosin costs 6.0 points of sensitivity (2.0 to 10.0); it gains 4.0 points of specificity (1.0 to 7.0)."
    )
    worse = replace(shift, figures=figures | {"auc": Change(0.9, -0.1, (-0.2, -0.05)), "ece": Change(0.2, 0.08, None)})
    assert worse.sentence.startswith("Pale eosin costs 0.100 of AUC (0.050 to 0.200) and 6.0 points of sensitivity (2.0 to")


def test_a_loss_that_is_not_certain_is_no_certain_absence_of_one() -> None:
    """Blur took 0.024 of AUC, and "costs nothing for certain" was said."""
    none = Change(0.9, 0.0, None)
    lost = {"sensitivity_at_threshold": none, "specificity_at_threshold": none, "auc": Change(0.941, -0.024, (-0.057, 0.001))}

    shift = ShiftFigures("blur_0.9", "blur", lost, 80)

    assert shift.sentence == "Blur: no cost is certain on 80 patches (AUC -0.024, -0.057 to +0.001)."
    small = replace(shift, figures=lost | {"auc": Change(0.963, -0.003, (-0.005, -0.001))}, n=9000)
    assert small.sentence == "Blur: only a small cost is certain on 9,000 patches (AUC -0.003, -0.005 to -0.001)."
    alone = replace(shift, figures=lost | {"auc": Change(0.941, -0.024, None)})
    assert alone.sentence.endswith("(AUC -0.024, no interval).")


# --- clusters


def test_clusters_without_enough_of_a_class_are_left_out_and_said(by_colour: Evaluation) -> None:
    found = robustness_of(by_colour)

    assert sum(cluster.n for cluster in found.clusters) == N
    assert found.judged_clusters == ()
    assert all(cluster.auc_interval is None for cluster in found.clusters)
    assert found.cluster_summary == "6 of 6 clusters of stains have fewer than 20 patches of a class: left out."


def test_the_worst_cluster_stands_first() -> None:
    rng = np.random.default_rng(0)
    family = np.repeat([0, 1, 2], (100, 80, FEWEST + 1))
    labels = np.tile([0, 1], 101)[: len(family)].astype(np.uint8)
    hues = np.repeat([[0.2, 0.3, 0.2, 0.3], [0.3, 0.2, 0.3, 0.2], [0.3, 0.3, 0.3, 0.3]], (100, 80, FEWEST + 1), axis=0)
    logits = ((2.0 * labels - 1) * np.where(family == 1, 0.3, 3) + rng.normal(size=len(family))).astype(np.float32)
    seen = Seen(np.tile(logits, (len(SHIFTS), 1)), hues)

    found = judge_shifts(logits, seen, labels, ModelCard())

    worst, best = found.judged_clusters
    assert [cluster.n for cluster in found.clusters] == [80, 100, FEWEST + 1]
    chosen, odds = logits[family == 1], logits[family == 1].astype(np.float64)
    expected = figures_of(ModelCard().calibration.to_probability(chosen), labels[family == 1], log_odds=odds)
    assert worst.figures == {name: value for name, value in expected.items() if name != "ece"}  # 80 patches are too few
    assert worst.to_dict()["ece"] is None
    assert worst.auc_interval is not None
    assert best.figures is not None
    assert worst.auc_interval[1] < best.figures["auc"]
    assert set(worst.examples) <= set(range(100, 180))
    assert found.clusters[2].figures is None
    assert f"the worst has an AUC of {worst.figures['auc']:.3f} (bluer and more violet)" in found.cluster_summary
    assert "1 of 3 clusters of stains have fewer than 20 patches of a class: left out." in found.cluster_summary


def test_where_slides_are_known_they_are_drawn(by_colour: Evaluation, patches: CountedPatches) -> None:
    found = robustness_of(by_colour)
    hues = np.array([stain_hue(patches.read(index)) for index in range(N)])
    seen = Seen(found.logits, hues)

    one = judge_shifts(by_colour.logits, seen, patches.labels, ModelCard(), groups=np.full(N, "only"))
    several = judge_shifts(by_colour.logits, seen, patches.labels, ModelCard(), groups=np.repeat(["a", "b", "c", "d"], N // 4))

    assert {figure.interval for shift in one.shifts for figure in shift.figures.values()} == {None}
    assert not any(shift.costs or shift.gains for shift in one.shifts)
    assert "nothing is certain" in one.caution
    count = sum(figure.interval is not None for shift in several.shifts for figure in shift.figures.values())
    assert 0 < count < 3 * len(SHIFTS), "what no resample changes has none"
    told = f"of {count}, about {max(1, round(count / 20))} leave out 0 by chance alone."
    assert several.caution == f"Each interval stands by itself: {told}"
    assert one.lowest.figures["auc"].value == found.lowest.figures["auc"].value
    assert several.mean.figures["auc"].interval not in (None, found.mean.figures["auc"].interval)


# --- resamples


def test_all_sets_of_probabilities_have_the_same_resamples() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random(9000) < 0.4).astype(np.uint8)
    rows = np.clip(rng.normal(0.3 + 0.3 * labels, 0.25, (2, 9000)), 0, 1).astype(np.float32)

    found = resampled_figures(rows, labels, 0.6, n=130)  # 111 fit at once

    assert found["auc"].shape == (2, 130)
    intervals = bootstrap_intervals(rows[1], labels, 0.6, n=130)
    for name, values in found.items():
        assert intervals[name] == tuple(np.percentile(values[1], (2.5, 97.5)))
    fewer = resampled_figures(rows, labels, 0.6, n=7)  # the first ones are the same
    assert fewer["brier"] == pytest.approx(found["brier"][:, :7], abs=1e-12)
    same = resampled_figures(rows[[0, 0]], labels, 0.6, n=7)
    assert np.array_equal(same["auc"][0], same["auc"][1])


# --- where it is shown


UNPAINTED = Pictures(
    plots=lambda *args: ((name, lambda _theme: b"") for name, _ in draw_plots(*args)),
    gallery=lambda *_args: b"",
    evidence=lambda _model, shown, **_options: np.zeros(shown.shape[:3], np.float32),
    top_losses=1,
)


def test_the_report_tells_what_to_fear(
    thin_model: Model, patches: CountedPatches, by_colour: Evaluation, by_shape: Evaluation, tmp_path: Path
) -> None:
    subject, found = Subject(thin_model, patches, "", "valid", False, None), robustness_of(by_colour)

    page = write_report(tmp_path / "colour", subject, by_colour, pictures=UNPAINTED).read_text()
    calm = write_report(tmp_path / "shape", subject, by_shape, pictures=UNPAINTED).read_text()
    plain = write_report(tmp_path / "plain", subject, replace(by_shape, robustness=None), pictures=UNPAINTED).read_text()

    told = [shift.sentence.replace("'", "&#39;") for shift in found.shifts if shift.costs]
    places = [page.index(sentence) for sentence in (found.summary.replace("'", "&#39;"), *told)]
    assert places == sorted(places)
    assert page.count('alt="patches under') == 1 + len(SHIFTS)
    assert page.count("too few of a class: left out</span>") == len(found.clusters)
    assert 'class="number worse"' in page
    assert f"No loss of that size is certain on these {N} patches (it may be there all the same) under" in calm
    assert "+0.0 to +0.0" not in calm
    assert "no interval" in calm
    assert "On other stains and scanners" not in plain


@pytest.mark.browser
def test_a_phone_shows_every_word_and_that_a_table_goes_on(
    browser: Browser, thin_model: Model, patches: CountedPatches, by_colour: Evaluation, tmp_path: Path
) -> None:
    """What a figure says stands beneath it; the page itself is no wider than the screen. On a desk nothing is moved."""
    rare = replace(thin_model, card=replace(thin_model.card, training={"calibrated_on": {"prior": 0.01}}))
    subject = Subject(rare, patches, "", "valid", False, None)
    page = write_report(tmp_path / "report", subject, by_colour, pictures=UNPAINTED)
    texts = "[...document.querySelectorAll('.figures td.wide')].filter((cell) => cell.checkVisibility()).length"
    goes_on = "[...document.querySelectorAll('.sideways')].map((hint) => hint.checkVisibility())"
    first = "document.querySelector('.lead').getBoundingClientRect().top"
    gap = f"{first} - document.querySelector('.note').getBoundingClientRect().bottom"

    async def look(width: int, *, narrow: bool) -> None:
        async with browser.tab(width) as tab:
            await tab.page.goto(page.as_uri())
            assert await tab.ask("document.documentElement.scrollWidth") == width
            assert await tab.ask(texts) == await tab.ask("document.querySelectorAll('.figures tbody tr').length") > 5
            assert await tab.ask(goes_on) == [narrow] * 2
            assert await tab.ask(gap) > 10

    for width, narrow in ((420, True), (1400, False)):
        browser.run(look(width, narrow=narrow))


def test_all_of_it_is_json(by_colour: Evaluation) -> None:
    told = json.loads(json.dumps(by_colour.to_dict()))["shifts"]

    assert [len(told["by_shift"]), sum(cluster["n"] for cluster in told["clusters"])] == [len(SHIFTS), N]
    first = told["by_shift"][0]
    assert first["auc_change"] == pytest.approx(first["auc"] - told["unshifted"]["auc"])
    assert first["auc_change_ci"][0] <= first["auc_change_ci"][1]
    assert first["words"] == robustness_of(by_colour).shifts[0].sentence
    assert set(by_colour.to_lines()["shifts"]) == {"summary", "caution", "clusters", *(shift.name for shift in SHIFTS)}


def test_a_sentence_for_each_shift_is_printed(thin_model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in (0, 1):
        (tmp_path / str(label)).mkdir()
        Image.fromarray(draw(label, label)).save(tmp_path / str(label) / "a.png")

    result = evaluate(thin_model, tmp_path, shifts=True, device="cpu", precision="fp32", workers=0, batch_size=2)
    print_result(result.to_lines(), as_json=False)

    printed = capsys.readouterr().out
    told = " ".join(CliRunner().invoke(main, ["evaluate", "--help"]).stdout.split())
    assert f"in {len(SHIFTS)} other stains" in told
    assert f"takes {1 + len(SHIFTS)} times as long" in told
    for name in ("summary", "eosin_0.6", "jpeg_40", "clusters"):
        assert f"\n  {name}: " in printed
