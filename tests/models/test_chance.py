from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from stores import write_block, write_store

from wsi_meta.cli import main
from wsi_meta.evaluation.metrics import auc_of
from wsi_meta.heatmaps.lesions import lesion_facts
from wsi_meta.heatmaps.record import ScanResult
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.models.card import Calibration, ModelCard
from wsi_meta.models.chance import check_fitted, worse_than_chance
from wsi_meta.models.model import Model
from wsi_meta.scanning.scanner import Scanner


@pytest.mark.parametrize(
    ("auc", "tumor", "normal", "told"),
    [
        (0.091, 60, 60, "worse than chance (AUC 0.09 on 120 patches)"),
        (0.09, 2, 200, ""),
        (0.0, 1, 300, ""),
        (0.36, 60, 60, ""),
        (0.44, 600, 600, "worse than"),
        (0.44, 20, 2000, ""),
        (0.9, 2, 2, ""),
    ],
)
def test_what_so_few_patches_do_not_explain_is_worse_than_chance(auc: float, tumor: int, normal: int, told: str) -> None:
    found = worse_than_chance(auc, np.repeat(np.array([1, 0], np.uint8), [tumor, normal]))
    assert found.startswith(told)
    assert bool(found) == bool(told)


@pytest.mark.parametrize("classes", [(1, 300), (2, 200), (5, 1000), (50, 50)], ids=str)
def test_models_that_tell_nothing_are_hardly_ever_worse_than_chance(classes: tuple[int, int]) -> None:
    labels, rng = np.repeat(np.array([1, 0], np.uint8), classes), np.random.default_rng(0)
    aucs = [auc_of(rng.normal(size=len(labels)), labels) for _ in range(300)]
    assert sum(bool(worse_than_chance(auc, labels)) for auc in aucs) <= 3


def test_what_may_be_luck_is_a_warning_that_says_so(caplog: pytest.LogCaptureFixture) -> None:
    labels, card = np.repeat(np.array([1, 0], np.uint8), [2, 200]), ModelCard(metrics={"auc": 0.09, "n": 202})
    check_fitted(card, labels, Path("m"), "turn it")
    told = "it may be luck, so try more patches of each class first; turn it"
    assert caplog.messages == [f"m: tells tumor from normal no better than chance (AUC 0.09 on 202 patches); {told}"]


@pytest.mark.parametrize(
    ("metrics", "temperature", "told"),
    [
        ({"auc": 0.091, "n": 120}, 1.0, ["no better than chance (AUC 0.09 on 120 patches)"]),
        ({"auc": 0.5}, 1.0, ["no better than chance (AUC 0.50)"]),
        ({}, 20.0, ["temperature 20, the limit"]),
        ({"auc": 0.9, "n": 120}, 1.0, []),
        ({}, 1.0, []),
    ],
)
def test_a_scanner_warns_of_a_useless_model(
    thin_model: Model, caplog: pytest.LogCaptureFixture, metrics: dict[str, float], temperature: float, told: list[str]
) -> None:
    card = replace(thin_model.card, metrics=metrics, calibration=Calibration(temperature))
    with Scanner(replace(thin_model, card=card), device="cpu", precision="fp32"):
        assert [part in line for part, line in zip(told, caplog.messages, strict=True)] == [True] * len(told)


def test_scores_of_a_useless_model_are_told_once(tmp_path: Path) -> None:
    values, told = np.full((2, 2), 0.3, np.float32), write_store(tmp_path / "told.zarr", np.full((2, 2), 0.3, np.float32))
    record = replace(told.record, model=replace(told.record.model, calibration=Calibration(20.0)))
    for name in "ab":
        heatmap = Heatmap.create(tmp_path / f"{name}.zarr", record, np.full((2, 2), True), overwrite=False)
        for block in record.identity.grid.blocks():
            write_block(heatmap, block, values[block.cells], np.full((2, 2), Status.SCANNED, np.uint8)[block.cells])
        heatmap.finalise(ScanResult(0.3, True, {}), lesion_facts(record, values, heatmap.status))
    result = CliRunner().invoke(main, ["score", str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr")])
    assert result.exit_code == 0, result.output
    assert result.stderr.count("temperature 20, the limit") == 1, result.output
