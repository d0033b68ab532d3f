"""The scripts that choose recipes: they find the better model, and train without what they judge on."""

from __future__ import annotations

from pathlib import Path

import leave_cluster_out
import model_shifts
import numpy as np
from PIL import Image
from tiny import TINY

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.datasets.shifts import SHIFTS
from wsi_meta.training.recipe import Recipe, TrainOptions


def test_the_table_says_which_model_is_better_and_how_surely() -> None:
    rng, n = np.random.default_rng(0), 240
    labels = np.tile(np.array([0, 1], np.uint8), n // 2)
    halves = np.arange(n // 2), np.arange(n // 2, n)
    noise = rng.normal(size=(1 + len(SHIFTS), n))
    noise[1:] = noise[0]
    good, bad = (labels * 2.0 + noise).astype(np.float32), (labels * 2.0 + noise).astype(np.float32)
    bad[1 + 5] = rng.normal(size=n)  # sees nothing under one shift
    bad[0, halves[1]] = good[0, halves[1]] - 3 * labels[halves[1]]  # and the wrong way round on one cluster
    patches = model_shifts.Set(labels, halves, np.arange(n))

    lines = model_shifts.table({"good": good, "same": good, "bad": bad}, patches, n=60)

    values = dict(zip(model_shifts.COLUMNS, patches.judge(bad), strict=True))
    assert values["worst cluster"] < 0.5 < values["mean cluster"] + 0.2
    assert values["judge"] == np.mean([values["validation"], values["mean shift"], values["mean cluster"]])
    assert lines[3].count("+0.0000 (+0.0000 to +0.0000)") == len(model_shifts.COLUMNS)
    assert lines[4].endswith(f"| {SHIFTS[5].name} |")
    cells = [cell.strip() for cell in lines[4].split("|")]
    worst = cells[2 + model_shifts.COLUMNS.index("worst shift")]
    assert worst.startswith(f"{values['worst shift']:.4f}, -")
    assert worst.count("-") == 3  # the whole interval is below 0


def test_a_resample_draws_whole_slides() -> None:
    labels, groups = np.array([0, 1, 0, 1, 0, 1], np.uint8), np.array([0, 0, 0, 1, 1, 1])

    for drawn in model_shifts.Set(labels, (), groups).resamples(20):
        assert np.bincount(drawn, minlength=6).tolist() in ([2, 2, 2, 0, 0, 0], [1] * 6, [0, 0, 0, 2, 2, 2])


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
    assert {int(name[:3]) // 2 % 2 for name in names[0]} in ({0}, {1})  # one colour
