"""How runs of the ablation are made and written down, and how weights are averaged; with a tiny network."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import pytest
import torch
from average_models import average_models, mark_patches, mean_of, measure_statistics
from cross_fit import fit_folds
from judging import COLUMNS, Judged
from numpy.typing import NDArray
from random_split import split_patches, with_changes
from recipe_ablation import Bench, choose_share, run_arms, table, train_recipe
from recipe_arms import ARMS, FIRST, Arm, find_arm
from safetensors.torch import load_file
from scipy.special import expit
from soft_labels import folds_of, read_soft_labels, write_fold
from tiny import ALONE, HERE, TINY, Tiny, draw_batch, train_tiny

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.datasets.shifts import SHIFTS
from wsi_meta.errors import DataError
from wsi_meta.evaluation.evaluate import evaluate_patches
from wsi_meta.files.locks import locked
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.card import ModelCard, read_card
from wsi_meta.models.dihedral import VIEWS
from wsi_meta.models.known_patches import read_known_patches
from wsi_meta.models.model import Model, network_of
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.weights import half_precision
from wsi_meta.training.learner import Learner
from wsi_meta.training.mosaics import predict_in_mosaics
from wsi_meta.training.recipe import RECIPES, Augmentation, Recipe, TrainOptions
from wsi_meta.training.validation import Validation

SMALL = Recipe(batch_size=4, lr=0.02, lr_loaded=0.02, freeze="none", mosaics=0.5)
OFF = ("turn", "shift", "stain", "stain-offset", "brightness", "contrast", "blur", "jpeg")
AS_IT_IS = replace(SMALL, augmentation=Augmentation().without(*OFF))
NAMES = [FIRST, "averaged", "longer"]


def bench_in(out: Path, patch_folder: Path, **changes: Any) -> Bench:
    data = open_patches(patch_folder)
    arms = {FIRST: Arm(SMALL), "averaged": Arm(SMALL, courses=2), "longer": Arm(replace(SMALL, mosaics=0), longer=2)}
    out.mkdir(exist_ok=True)
    bench = Bench("none", out, data["train"], data["valid"], ALONE, TrainOptions(**HERE), arms, TINY)
    return replace(bench, **changes)


def predict_dense(bench: Bench, weights: dict[str, torch.Tensor]) -> NDArray[np.float32]:
    model = Model(network_of(weights, Tiny), ModelCard(), "", bench.out)
    return predict_in_mosaics(model, bench.valid, device="cpu", precision="fp32", workers=0)


@pytest.fixture(scope="module")
def made(few_patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Two seeds of every arm; never change its files."""
    bench = bench_in(tmp_path_factory.mktemp("ablation"), few_patches)
    runs = [(name, seed) for seed in (0, 1) for name in NAMES]
    lines = list(run_arms(bench, runs, 1, budget_s=600))
    assert [(line["arm"], line["seed"]) for line in lines] == runs
    assert bench.results() == lines
    return bench


# --- runs


def test_the_arms_are_one_change_off_the_strong_recipe() -> None:
    strong = RECIPES["strong"]
    for name, arm in ARMS.items():
        changed = [field for field, value in vars(arm.recipe).items() if value != getattr(strong, field)]
        assert (
            len(changed) + (arm.courses > 0) + (arm.longer > 1) + (arm.cross_fitted > 0) == (name != "strong") or name == FIRST
        )
    assert ARMS[FIRST].recipe == RECIPES["light"]


def test_every_run_leaves_a_line_a_model_and_its_logits(made: Bench) -> None:
    for line in made.results():
        out = made.model(line["arm"], line["seed"])
        weights, card = load_file(out), read_card(out)
        measured = Validation(made.valid, "cpu", "fp32", 0, False, Tiny)
        judged = Judged.load(out.with_suffix(".npz"), made.valid.fingerprint())
        assert np.array_equal(measured.logits(weights), judged.shown[0])
        assert judged.shown.shape == (1 + len(SHIFTS), len(made.valid))
        figures = dict(zip(COLUMNS, made.judge.judged_set.judge(judged), strict=True))
        assert line["judged"]["validation"] == figures["validation"] == line["auc"]
        assert line["judged"]["mean shift"] == figures["mean shift"]
        assert line["judged"]["worst cluster"] is None, "too few patches for a cluster"
        assert 0 <= line["judged"]["ECE over shifts"] <= 1
        assert {name: line[name] for name in card.metrics} == card.metrics
        assert card.metrics["mean_shift_auc"] == figures["mean shift"]
        assert "worst_cluster_auc" not in card.metrics
        assert card.training["recipe"]["seed"] == card.training["ablation"]["seed"] == line["seed"]
        assert card.training["train"]["sha256"] == made.train.fingerprint()
        assert line["patches"] == 8
        assert weights["layer4.0.weight"].dtype == torch.float16
        assert ("dense_auc" in line) == (card.training["recipe"]["mosaics"] > 0)
        assert np.array_equal(judged.dense, predict_dense(made, weights))
    assert {path.suffix for path in made.out.iterdir()} == {".jsonl", ".npy", ".npz", ".safetensors"}
    assert [path.name.split("-")[0] for path in made.out.glob("*.npy")] == ["shown"], "the shifted patches are made once"
    assert len(list(made.out.iterdir())) == 14


def test_seeds_and_arms_give_other_weights(made: Bench) -> None:
    heads = [load_file(made.model(name, seed))["fc.bias"].item() for name in NAMES for seed in (0, 1)]

    assert len(set(heads)) == 6


def test_what_is_finished_is_not_made_again(made: Bench) -> None:
    before = (made.out / "results.jsonl").read_bytes()

    assert list(run_arms(made, [(name, 0) for name in NAMES], 1, budget_s=600)) == []
    assert (made.out / "results.jsonl").read_bytes() == before


def test_runs_that_were_made_otherwise_are_refused_and_not_compared(made: Bench, tmp_path: Path) -> None:
    before = (made.out / "results.jsonl").read_bytes()
    with pytest.raises(
        DataError, match=r"results\.jsonl: '0\.1\.0' with seed 0 was made with other settings: epochs was 1, now 2"
    ):
        list(run_arms(made, [(FIRST, 0)], 2, budget_s=600))
    weights = tmp_path / "w.pth"
    torch.save(Tiny().state_dict(), weights)
    with pytest.raises(DataError, match="init was none, now "):
        list(run_arms(replace(made, init=weights), [(FIRST, 0)], 1, budget_s=600))
    with pytest.raises(DataError, match=r"lr was 0\.02, now 0\.5; choose another --out"):
        list(run_arms(replace(made, arms={FIRST: Arm(replace(SMALL, lr=0.5))}), [(FIRST, 0)], 1, budget_s=600))
    assert (made.out / "results.jsonl").read_bytes() == before

    lines = [made.results()[0], made.results()[1] | {"epochs": 4}]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match="holds runs that cannot be compared: epochs was 4, now 1"):
        list(table(replace(made, out=tmp_path), n=20))


def test_no_run_is_begun_when_the_time_is_up(patch_folder: Path, tmp_path: Path) -> None:
    bench = bench_in(tmp_path, patch_folder)

    assert list(run_arms(bench, [(FIRST, 0)], 1, budget_s=0)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_the_lines_before_it(patch_folder: Path, tmp_path: Path) -> None:
    def fail_in_the_second(*values: Any) -> Learner:
        if (tmp_path / "results.jsonl").exists():
            raise MemoryError
        return TINY.make_learner(*values)

    bench = bench_in(tmp_path, patch_folder, parts=replace(TINY, make_learner=fail_in_the_second))

    with pytest.raises(MemoryError):
        list(run_arms(bench, [(FIRST, 0), (FIRST, 1)], 1, budget_s=600))

    assert [json.loads(line)["seed"] for line in (tmp_path / "results.jsonl").read_text().splitlines()] == [0]


def test_what_another_process_makes_is_its_own(patch_folder: Path, tmp_path: Path) -> None:
    bench = bench_in(tmp_path, patch_folder)
    with locked(bench.model(FIRST, 0)):
        made = list(run_arms(bench, [(FIRST, 0), (FIRST, 1)], 1, budget_s=600))

    assert [line["seed"] for line in made] == [1]
    assert [line["seed"] for line in run_arms(bench, [(FIRST, 0), (FIRST, 1)], 1, budget_s=600)] == [0]


def test_arms_can_be_put_together() -> None:
    both = find_arm("teacher+averaged courses+no mosaics")

    assert both == Arm(replace(RECIPES["strong"], teacher=ARMS["teacher"].recipe.teacher, mosaics=0), courses=3)
    assert find_arm("longer") == ARMS["longer"]
    with pytest.raises(KeyError):
        find_arm("teacher+nothing")


def test_a_share_of_the_patches_is_the_same_every_time(made: Bench) -> None:
    chosen = choose_share(made.train, 0.5)

    assert len(chosen) == 4
    assert chosen.files == choose_share(made.train, 0.5).files
    assert set(chosen.files) < set(made.train.files)


def rows_of(lines: Iterable[str]) -> dict[str, dict[str, str]]:
    """The rows of a table by name, each as cells by title."""
    titles, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|"))
    return {row[0]: dict(zip(titles, row, strict=True)) for row in rows}


def test_the_table_compares_each_arm_with_the_first(made: Bench) -> None:
    *_, told = lines = list(table(made, n=20))
    rows = rows_of(lines)

    assert list(rows) == NAMES
    assert all(row["seeds"] == "2" for row in rows.values())
    assert "to" not in rows[FIRST]["validation"]
    assert "to" in rows["averaged"]["validation"]
    assert "to" in rows["longer"]["TTA 4"]
    assert rows["longer"]["dense"] != "", "also without mosaics: that is what they are for"
    assert told.startswith("4 patches. Looked at: 3 arms, 6 runs (an arm with a seed) and 0 further models.")
    mean = np.mean([line["auc"] for line in made.results() if line["arm"] == "averaged"])
    assert float(rows["averaged"]["validation"].split(",")[0]) == pytest.approx(mean, abs=1e-4)
    alone = replace(made, arms={name: arm for name, arm in made.arms.items() if name != FIRST})
    assert rows_of(table(alone, n=20)) == rows


def test_further_models_have_a_row_and_are_judged_once(made: Bench, tmp_path: Path) -> None:
    bench = replace(made, out=tmp_path)
    other = made.model("averaged", 1)

    rows = rows_of(table(bench, [other], n=20))

    assert list(rows) == [str(other)]
    kept = next(tmp_path.glob("also-*.npz"))
    before = kept.stat().st_mtime_ns
    *_, told = lines = list(table(bench, [other], n=20))
    assert kept.stat().st_mtime_ns == before
    assert "0 arms, 0 runs (an arm with a seed) and 1 further models" in told
    judged = Judged.load(made.model("averaged", 1).with_suffix(".npz"), made.valid.fingerprint())
    assert np.array_equal(Judged.load(kept, made.valid.fingerprint()).shown, judged.shown)
    assert rows_of(lines) == rows


def test_runs_can_be_judged_on_a_share(patch_folder: Path, tmp_path: Path) -> None:
    bench = bench_in(tmp_path, patch_folder, shifts_share=0.5)

    (line,) = run_arms(bench, [(FIRST, 0)], 1, budget_s=600)

    judged = Judged.load(bench.model(FIRST, 0).with_suffix(".npz"), bench.judge.patches.fingerprint())
    assert judged.shown.shape[1] == len(bench.judge.patches) == 4
    assert read_card(bench.model(FIRST, 0)).training["valid"]["n"] == 8, "calibration is fitted on all"
    assert line["auc"] == read_card(bench.model(FIRST, 0)).metrics["auc"]
    with pytest.raises(DataError, match="logits of other patches"):
        list(table(replace(bench, shifts_share=1.0)))


# --- averaging


def test_the_mean_of_weights() -> None:
    one, other = (
        {"a": torch.tensor([value], dtype=torch.float16), "n": torch.tensor(count)} for value, count in ((1, 4), (2, 9))
    )

    mean = mean_of([one, other])

    assert mean["a"].tolist() == [1.5]
    assert mean["a"].dtype == torch.float32
    assert mean["n"].item() == 9


@pytest.mark.parametrize("mosaics", [0.0, 0.5])
def test_statistics_are_the_mean_over_batches_of_what_the_network_is_shown(mosaics: float) -> None:
    """The tiny network sees no neighbours, so mosaics change nothing here."""
    torch.manual_seed(0)
    network = Tiny()
    network.get_buffer("bn1.running_mean").fill_(7)
    batches = [draw_batch(16, seed) for seed in range(3)]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    found = measure_statistics(
        network.state_dict(), batches, replace(AS_IT_IS, mosaics=mosaics), device="cpu", precision="fp32", build=Tiny
    )

    with torch.no_grad():
        features = [network.conv1(Preprocessing().to_input(images)) for images, _ in batches]
    means = torch.stack([feature.mean((0, 2, 3)) for feature in features]).mean(0)
    variances = torch.stack([feature.transpose(0, 1).flatten(1).var(1) for feature in features]).mean(0)
    assert torch.allclose(found["bn1.running_mean"], means, atol=1e-5)
    assert torch.allclose(found["bn1.running_var"], variances, atol=1e-5)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), "the weights given are not changed"
        assert "running" in name or "num" in name or torch.equal(found[name], tensor)


def test_statistics_are_measured_on_augmented_patches() -> None:
    weights, batches = Tiny().state_dict(), [draw_batch(16)]
    dark = replace(AS_IT_IS, augmentation=replace(AS_IT_IS.augmentation, levels=100.0))
    where: dict[str, Any] = {"device": "cpu", "precision": "fp32", "build": Tiny}

    plain, shown = (measure_statistics(weights, batches, recipe, **where)["bn1.running_var"] for recipe in (AS_IT_IS, dark))

    assert not torch.allclose(plain, shown, rtol=0.05)


def test_an_average_is_calibrated_and_says_what_it_is_of(patch_folder: Path, tmp_path: Path) -> None:
    data, recipe = open_patches(patch_folder), replace(AS_IT_IS, epochs=1)
    sources = [tmp_path / f"{seed}.safetensors" for seed in (0, 1)]
    for seed, source in enumerate(sources):
        train_tiny(patch_folder, source, recipe=replace(recipe, seed=seed), **HERE)

    weights, card = average_models(sources, data, Validation(data["valid"], "cpu", "fp32", 0, False, Tiny), patches=16)

    kernel = mean_of([load_file(source) for source in sources])["layer4.0.weight"]
    assert torch.equal(weights["layer4.0.weight"], half_precision({"layer4.0.weight": kernel})["layer4.0.weight"])
    assert weights["bn1.num_batches_tracked"] == 4
    assert [source["name"] for source in card.training["averaged"]] == ["0.safetensors", "1.safetensors"]
    assert card.training["statistics_measured_on"] == 16
    assert card.training["recipe"] == asdict(recipe)
    assert 0 <= card.metrics["auc"] <= 1
    assert card.calibration != read_card(sources[0]).calibration


# --- labels from trainings that did not see the patch


def test_every_patch_gets_its_soft_label_from_a_training_without_it(few_patches: Path, tmp_path: Path) -> None:
    bench = bench_in(tmp_path / "soft", few_patches)
    folds = folds_of(bench.train)
    assert sorted(np.concatenate(folds)) == list(range(len(bench.train)))

    assert len(list(fit_folds(bench, AS_IT_IS))) == len(folds)
    assert list(fit_folds(bench, AS_IT_IS)) == [], "what is made is not made again"
    with pytest.raises(DataError, match=r"fold_0\.npz: made with other settings: epochs was 4, now 9; choose another --out"):
        list(fit_folds(bench, replace(AS_IT_IS, epochs=9)))

    labels = read_soft_labels(bench.out, bench.train)
    others = bench.train.select(np.setdiff1d(np.arange(len(bench.train)), folds[1]))
    weights = train_recipe(replace(bench, train=others, decoded=[]), "none", AS_IT_IS)
    predictor = Predictor(
        Model(network_of(weights, Tiny), ModelCard(), "", tmp_path), device="cpu", precision="fp32", tta=VIEWS
    )
    expected = expit(evaluate_patches(predictor, bench.train.select(folds[1]), workers=0).logits)
    np.testing.assert_allclose(labels[folds[1]], expected, atol=1e-6)


def test_soft_labels_of_other_patches_or_of_too_few_folds_are_refused(few_patches: Path, tmp_path: Path) -> None:
    train = open_patches(few_patches)["train"]
    with pytest.raises(DataError, match=r"fold_0\.npz: missing"):
        read_soft_labels(tmp_path, train)
    fewer = train.select(np.arange(len(train) - 1))
    for number, fold in enumerate(folds_of(fewer)):
        write_fold(tmp_path, number, fewer, np.zeros(len(fold), np.float32))
    with pytest.raises(DataError, match="labels of other patches"):
        read_soft_labels(tmp_path, train)
    for number, fold in enumerate(folds_of(train)):
        write_fold(tmp_path, number, train, np.zeros(len(fold), np.float32), {"init": str(number // 3)})
    with pytest.raises(DataError, match=r"fold_3\.npz: not made as fold 0: init was 0, now 1"):
        read_soft_labels(tmp_path, train)
    with pytest.raises(DataError, match="no --soft-labels"):
        train_recipe(bench_in(tmp_path / "bench", few_patches), "none", SMALL, cross_fitted=0.5)


def test_cross_fitted_labels_are_the_mean_of_label_and_soft_label(few_patches: Path, tmp_path: Path) -> None:
    """Soft labels that are the labels change nothing; those that say the opposite of every label leave nothing to learn."""
    bench = bench_in(tmp_path / "bench", few_patches, soft_labels=tmp_path)
    plain = train_recipe(bench, "none", AS_IT_IS)
    for opposite in (False, True):
        for number, fold in enumerate(folds_of(bench.train)):
            labels = bench.train.labels[fold].astype(np.float32)
            write_fold(tmp_path, number, bench.train, 1 - labels if opposite else labels)
        taught = train_recipe(bench, "none", AS_IT_IS, cross_fitted=0.5)
        assert all(torch.equal(taught[name], plain[name]) for name in plain) is not opposite


# --- a random split


def test_a_random_split_shares_no_patch_and_holds_out_only_what_is_named(patch_folder: Path) -> None:
    patches = open_patches(patch_folder)["train"]
    prefix = patches.files[0].name[:2]
    named = sum(path.name.startswith(prefix) for path in patches.files)
    train, calibrated, judged = split_patches(patches, prefix, 0)
    parts = [set(part.files) for part in (train, calibrated, judged)]
    assert len(judged) == named // 10 > 0
    assert len(calibrated) == len(judged) // 2
    assert set.union(*parts) == set(patches.files)
    assert sum(map(len, parts)) == len(patches)
    assert all(path.name.startswith(prefix) for path in (*calibrated.files, *judged.files))
    assert split_patches(patches, prefix, 1)[2].files != judged.files


def test_settings_of_a_recipe_and_of_its_augmentation_are_changed_by_name() -> None:
    changed = with_changes(SMALL, ["consistency=1", "epochs=3", "freeze=stem", "turn=False", "stain=0.3"])
    look = replace(SMALL.augmentation, turn=False, stain=0.3)
    assert changed == replace(SMALL, consistency=1.0, epochs=3, freeze="stem", augmentation=look)


# --- a finished model


def test_a_model_is_told_which_patches_it_was_made_with(few_patches: Path, model_file: Path, tmp_path: Path) -> None:
    data, out = open_patches(few_patches), tmp_path / "m.safetensors"
    copyfile(model_file, out)
    mark_patches(out, data["train"], data["valid"], workers=0, progress=False)

    known = read_known_patches(out)
    assert known is not None
    assert {part: len(marks) for part, marks in known.marks.items()} == {part: len(data[part]) for part in ("train", "valid")}
    before, after = load_file(model_file), load_file(out)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert read_card(out) == read_card(model_file)
