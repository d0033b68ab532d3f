from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from stores import write_block, write_store

from wsi_meta.cli import main
from wsi_meta.heatmaps.lesions import lesion_facts
from wsi_meta.heatmaps.record import ScanResult
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.models.card import Calibration
from wsi_meta.models.chance import worse_than_chance
from wsi_meta.models.model import Model
from wsi_meta.scanning.scanner import Scanner


@pytest.mark.parametrize(
    ("auc", "n", "told"),
    [(0.091, 120, "worse than chance (AUC 0.09 on 120 patches)"), (0.46, 120, ""), (0.44, 1200, "worse than"), (0.9, 4, "")],
)
def test_what_so_few_patches_do_not_explain_is_worse_than_chance(auc: float, n: int, told: str) -> None:
    found = worse_than_chance(auc, n)
    assert found.startswith(told)
    assert bool(found) == bool(told)


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
