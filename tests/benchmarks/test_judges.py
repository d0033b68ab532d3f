"""The scripts that choose recipes: they find the better model, and train without what they judge on."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import judging
import leave_cluster_out
import numpy as np
import pytest
import shown_patches
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny import TINY, Tiny

from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.datasets.shifts import SHIFTS
from wsi_meta.errors import DataError, OutputExistsError
from wsi_meta.evaluation.evaluate import evaluate_patches
from wsi_meta.evaluation.metrics import auc_of
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.card import ModelCard
from wsi_meta.models.dihedral import AVERAGED
from wsi_meta.models.model import Model, network_of
from wsi_meta.training.mosaics import predict_in_mosaics
from wsi_meta.training.recipe import Recipe, TrainOptions


def said(shown: NDArray[np.float32]) -> judging.Judged:
    """What a model says that is not changed by turning or by neighbours."""
    return judging.Judged("", shown, np.repeat(shown[0][:, None], 8, axis=1), shown[0], 0.02)


def columns(line: str) -> dict[str, str]:
    """The cells of one row by their titles."""
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    return dict(zip(("model", "seeds", *judging.COLUMNS, "ece", "worst is", "s"), cells, strict=True))


def test_the_table_says_which_model_is_better_and_how_surely() -> None:
    rng, n = np.random.default_rng(0), 240
    labels = np.tile(np.array([0, 1], np.uint8), n // 2)
    halves = np.arange(n // 2), np.arange(n // 2, n)
    noise = rng.normal(size=(1 + len(SHIFTS), n))
    noise[1:] = noise[0]
    good, bad = (labels * 2.0 + noise).astype(np.float32), (labels * 2.0 + noise).astype(np.float32)
    bad[1 + 5] = rng.normal(size=n)  # sees nothing under one shift
    bad[0, halves[1]] = good[0, halves[1]] - 3 * labels[halves[1]]  # and the wrong way round on one cluster
    patches = judging.Set(labels, halves, np.arange(n))

    lines = judging.table({"good": {0: said(good)}, "same": {1: said(good)}, "bad": {0: said(bad)}}, patches, n=60)

    values = dict(zip(judging.COLUMNS, patches.judge(said(bad)), strict=True))
    assert values["worst cluster"] < 0.5 < values["mean cluster"] + 0.2
    assert values["judge"] == np.mean([values["validation"], values["mean shift"], values["mean cluster"]])
    assert judging.for_card(patches.figures(said(bad))) == {
        "mean_shift_auc": values["mean shift"],
        "worst_shift_auc": values["worst shift"],
        "mean_cluster_auc": values["mean cluster"],
        "worst_cluster_auc": values["worst cluster"],
        "ece_over_shifts": 0.02,
    }
    assert set(judging.for_card(judging.Set(labels, (), np.arange(n)).figures(said(bad)))) == {
        "mean_shift_auc",
        "worst_shift_auc",
        "ece_over_shifts",
    }
    assert lines[3].count("+0.0000 (+0.0000 to +0.0000)") == len(judging.COLUMNS)
    row = columns(lines[4])
    assert (row["worst is"], row["ece"], row["s"]) == (SHIFTS[5].name, "0.0200", "")
    assert row["worst shift"].startswith(f"{values['worst shift']:.4f}, -")
    assert row["worst shift"].count("-") == 3  # the whole interval is below 0


def test_the_table_has_means_over_seeds_and_compares_those_that_both_have() -> None:
    rng, labels = np.random.default_rng(0), np.tile(np.array([0, 1], np.uint8), 30)
    good, fair, poor = (
        said((labels * gain + rng.normal(size=(1 + len(SHIFTS), 60))).astype(np.float32)) for gain in (4, 2, 0.5)
    )
    patches = judging.Set(labels, (), np.arange(60))

    first, second, third = judging.table(
        {"first": {0: fair, 1: poor}, "second": {0: fair, 2: good}, "third": {-1: fair}}, patches, n=20, seconds={"first": 7.4}
    )[2:]

    aucs = [auc_of(one.shown[0], labels) for one in (good, fair, poor)]
    assert columns(first)["validation"] == f"{(aucs[1] + aucs[2]) / 2:.4f}"
    assert columns(first)["s"] == "7"
    assert columns(second)["validation"] == f"{(aucs[0] + aucs[1]) / 2:.4f}, +0.0000 (+0.0000 to +0.0000)"  # seed 0 alone
    assert columns(third)["validation"].startswith(f"{aucs[1]:.4f}, +{aucs[1] - (aucs[1] + aucs[2]) / 2:.4f} (")
    assert columns(first)["worst cluster"] == columns(second)["worst cluster"] == "", "there is no cluster"


def test_a_resample_draws_whole_slides() -> None:
    labels, groups = np.array([0, 1, 0, 1, 0, 1], np.uint8), np.array([0, 0, 0, 1, 1, 1])

    for times in judging.Set(labels, (), groups).resamples(20):
        assert times.tolist() in ([2, 2, 2, 0, 0, 0], [1] * 6, [0, 0, 0, 2, 2, 2])


def test_figures_of_resamples_are_those_of_the_drawn_patches() -> None:
    rng, n = np.random.default_rng(0), 40
    labels = rng.permutation(np.repeat(np.array([0, 1], np.uint8), n // 2))
    shown = rng.integers(6, size=(1 + len(SHIFTS), n)).astype(np.float32)  # with ties
    judged = replace(said(shown), views=rng.normal(size=(n, 8)).astype(np.float32), dense=shown[3])
    chosen = np.arange(15)
    patches = judging.Set(labels, (chosen, np.flatnonzero(labels == 1)), np.arange(n))
    times = np.array(list(patches.resamples(5)))

    found = patches.judge(judged, times)

    for row, counts in zip(found, times, strict=True):
        drawn = np.repeat(np.arange(n), counts)
        inside = drawn[drawn < 15]
        values = dict(zip(judging.COLUMNS, row, strict=True))
        shifted = [auc_of(one[drawn], labels[drawn]) for one in shown[1:]]
        assert values["validation"] == pytest.approx(auc_of(shown[0, drawn], labels[drawn]))
        assert values["mean shift"] == pytest.approx(np.mean(shifted))
        assert values["worst shift"] == pytest.approx(min(shifted))
        assert values["worst cluster"] == pytest.approx(auc_of(shown[0, inside], labels[inside]))  # the other has one class
        assert values["mean cluster"] == values["worst cluster"]
        assert values["dense"] == pytest.approx(auc_of(shown[3, drawn], labels[drawn]))
        mean = judged.views[:, list(AVERAGED[2])].mean(1)
        assert values["TTA 2"] == pytest.approx(auc_of(mean[drawn], labels[drawn]))
    assert np.array_equal(patches.judge(judged, np.ones((1, n), np.int64))[0], patches.judge(judged), equal_nan=True)


# --- patches under all shifts, made once


@pytest.fixture
def few(patch_folder: Path) -> Patches:
    return open_patches(patch_folder)["valid"].select(np.arange(2, 6))


def test_a_model_is_judged_as_evaluate_does(few: Patches, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model(network_of(Tiny().state_dict(), Tiny), ModelCard(), "", tmp_path)
    judge = judging.Judge(few, tmp_path, "cpu", "fp32")

    found = judge.judge_once(model, tmp_path / "kept.npz")

    evaluated = evaluate_patches(Predictor(model, device="cpu", precision="fp32"), few, workers=0, shifts=True)
    assert evaluated.robustness is not None
    assert np.array_equal(found.shown, np.vstack([evaluated.logits, evaluated.robustness.logits]))
    assert found.ece == pytest.approx(evaluated.robustness.mean.figures["ece"].value)
    assert found.views.shape == (4, 8)
    eight = evaluate_patches(Predictor(model, device="cpu", precision="fp32", tta=8), few, workers=0).logits
    assert np.array_equal(found.views.mean(1, dtype=np.float64).astype(np.float32), eight)
    assert np.array_equal(found.dense, predict_in_mosaics(model, few, device="cpu", precision="fp32", workers=0))
    other = Model(network_of(Tiny().state_dict(), Tiny), ModelCard(), "", tmp_path)
    assert np.array_equal(judge.judge_once(other, tmp_path / "kept.npz").shown, found.shown), "what is kept is read"
    kept = judge.judged_set.figures(judge.judge_once(other, tmp_path / "kept.npz"))
    assert json.dumps(judging.for_card(kept)), "as a card holds it"
    with pytest.raises(DataError, match=r"kept.npz: logits of other patches; expected these"):
        judging.Judge(few.select(np.arange(3)), tmp_path, "cpu", "fp32").judge_once(model, tmp_path / "kept.npz")
    with pytest.raises(DataError, match=r"none.npz: missing"):
        judging.Judged.load(tmp_path / "none.npz", few.fingerprint())


def test_patches_under_all_shifts_are_made_once(few: Patches, tmp_path: Path) -> None:
    shown = shown_patches.show_patches(few, tmp_path)

    assert isinstance(shown, np.memmap)
    assert not shown.flags.writeable
    for place in range(4):
        patch = few.read(place)
        assert np.array_equal(shown[place, 0], patch)
        assert all(np.array_equal(shown[place, 1 + k], shift.change(patch)) for k, shift in enumerate(SHIFTS))
    before = shown_patches.shown_path(few, tmp_path).stat()
    shown_patches.show_patches(few, tmp_path)
    after = shown_patches.shown_path(few, tmp_path).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert shown_patches.shown_path(few.select(np.arange(3)), tmp_path) != shown_patches.shown_path(few, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_several_at_once_make_one_file(few: Patches, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: shown_patches.show_patches(few, tmp_path), range(3)))

    assert all(np.array_equal(shown, found[0]) for shown in found)
    inode = shown_patches.shown_path(few, tmp_path).stat().st_ino
    assert [entry.stat().st_ino for entry in tmp_path.iterdir()] == [inode]


def spoil_pixels(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_pixels, "valid1.png is not in it as the patches and shifts now give it"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "is no array"),
        (lambda path: np.save(path, np.zeros((4, 2), np.uint8)), r"uint8 \(4, 2\); expected uint8 \(4, 25, 96, 96, 3\)"),
    ],
)
def test_a_file_of_other_pixels_is_refused(few: Patches, tmp_path: Path, spoil: Callable[[Path], object], told: str) -> None:
    shown_patches.show_patches(few, tmp_path)
    spoil(shown_patches.shown_path(few, tmp_path))

    with pytest.raises(DataError, match=told):
        shown_patches.show_patches(few, tmp_path)


def test_what_fails_half_way_leaves_no_file(few: Patches, tmp_path: Path) -> None:
    broken = replace(few, files=(*few.files[:3], tmp_path / "gone.png"))

    with pytest.raises(DataError, match=r"gone.png: no such file"):
        shown_patches.show_patches(broken, tmp_path)

    assert list(tmp_path.iterdir()) == []


# --- training without a cluster


def test_a_cluster_is_trained_without_and_judged_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(100):
        split, label, colour = (
            ("train", "valid")[number % 5 == 0],
            number % 2,
            ((190, 90, 120), (110, 80, 190))[number // 2 % 2],
        )
        place = tmp_path / "patches" / split / str(label)
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(np.array(colour) + rng.normal(0, 25, (96, 96, 3)) + 20 * label, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number:03d}.png", compress_level=1)

    first, second = leave_cluster_out.link_clusters(tmp_path / "patches", tmp_path / "out", share=1, clusters=2)
    recipe = Recipe(epochs=1, head_epochs=0, batch_size=8, mosaics=0)
    options = TrainOptions(device="cpu", precision="fp32", workers=0)
    auc = leave_cluster_out.judge_arm(first, tmp_path / "out" / "m.safetensors", recipe, "none", options, parts=TINY)

    assert 0 <= auc <= 1
    names = []
    for left_out in (first, second):
        parts = open_patches(left_out.data)
        assert {split: len(patches) for split, patches in parts.items()} == {"train": 40, "valid": 10, "test": 50}
        names.append({path.name for path in parts["test"].files})
        assert not names[-1] & {path.name for split in ("train", "valid") for path in parts[split].files}
    assert names[0].isdisjoint(names[1])
    assert {int(name[-7:-4]) // 2 % 2 for name in names[0]} in ({0}, {1})  # one colour

    again = list(leave_cluster_out.link_clusters(tmp_path / "patches", tmp_path / "out", share=1, clusters=2))
    assert again == [first, second]
    with pytest.raises(OutputExistsError, match="without_0: holds links of another share, other clusters or data"):
        list(leave_cluster_out.link_clusters(tmp_path / "patches", tmp_path / "out", share=0.8, clusters=2))


def test_patches_of_two_splits_may_have_the_same_name(tmp_path: Path) -> None:
    links: dict[Path, Path] = {}
    for split in ("train", "valid"):
        file = tmp_path / split / "1.png"
        patches = Patches((file,), np.array([-1]), np.array([1], np.uint8))
        links |= leave_cluster_out.links_of(patches, tmp_path / "out" / "test", split)
    assert [(link.name, file.parent.name) for link, file in links.items()] == [
        ("train_1.png", "train"),
        ("valid_1.png", "valid"),
    ]
