"""What a scan keeps of its cells, and its verdict: the same however computed, whole after damage, silent in older stores."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import scan_darkness
from slide_files import texture, write_slide
from stores import write_store

from wsi_meta.heatmaps.inspection import check_heatmaps
from wsi_meta.heatmaps.soundness import damaged_blocks
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.metadata import info
from wsi_meta.models.features import FeatureStatistics
from wsi_meta.models.model import Model, describe_patches, load_model
from wsi_meta.quality.cell_measures import MEASURES, measure_cells
from wsi_meta.scanning.scan import scan

IMAGE = texture(204, 284)


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "node.tif", IMAGE)


@pytest.fixture(scope="module")
def scanned(slide_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scanned") / "h.zarr"
    scan_darkness(slide_file, out, tissue_mask="none", block_px=160)
    return out


def test_cells_are_measured_as_in_the_picture(scanned: Path) -> None:
    heatmap = Heatmap.open(scanned)
    whole = measure_cells(IMAGE, 32)
    for name in MEASURES:
        values = heatmap.measures[name]
        assert values.shape == heatmap.grid.shape
        np.testing.assert_array_equal(values[:6, :8], whole[name])
        assert np.isfinite(values[heatmap.status == Status.SCANNED]).all()


@pytest.mark.parametrize("settings", [{"mode": "patch"}, {"block_px": 224, "workers": 3}])
def test_measures_do_not_depend_on_how_a_slide_is_computed(
    settings: dict[str, Any], slide_file: Path, scanned: Path, thin_model: Model, tmp_path: Path
) -> None:
    heatmap = scan(slide_file, tmp_path / "h.zarr", model=thin_model, precision="fp32", tissue_mask="none", **settings)
    for name, values in Heatmap.open(scanned).measures.items():
        np.testing.assert_array_equal(heatmap.measures[name], values)


def test_the_verdict_is_kept(scanned: Path) -> None:
    verdict = Heatmap.open(scanned).record.verdict
    assert verdict is not None
    assert verdict.figures["unread"] == 0
    assert verdict.figures["blurred"] == 0
    assert verdict.figures["inked"] is None  # everything counts as tissue
    assert verdict.figures["unlikeness"] is None  # a stand-in for the network
    assert info(scanned)["verdict"] == {"words": verdict.words, "figures": verdict.figures}


@pytest.mark.parametrize("name", MEASURES)
def test_a_changed_measure_is_damage_which_the_same_scan_mends(
    name: str, slide_file: Path, scanned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "h.zarr"
    shutil.copytree(scanned, out)
    heatmap = Heatmap.open(out)
    values: Any = heatmap.group[name]
    values[1, 7] = 0.5
    (damaged,) = damaged_blocks(heatmap)
    assert (damaged.row, damaged.col) == (0, 5)
    assert [check.state for check in check_heatmaps(out)] == ["damaged"]
    again = scan_darkness(slide_file, out, tissue_mask="none", block_px=160)
    np.testing.assert_array_equal(again.measures[name], Heatmap.open(scanned).measures[name])
    assert again.record.verdict == Heatmap.open(scanned).record.verdict
    assert [check.state for check in check_heatmaps(out)] == ["sound"]


def test_an_older_store_says_nothing(tmp_path: Path) -> None:
    heatmap = write_store(tmp_path / "h.zarr", np.full((6, 8), 0.5, np.float32))
    assert heatmap.measures == {}
    assert heatmap.record.verdict is None
    assert not {"verdict", "measures"} & set(heatmap.record.to_dict())
    assert "inked" not in heatmap.record.to_dict()["tissue"]
    assert [check.state for check in check_heatmaps(heatmap.path)] == ["sound"]


def _with_features(model: Model, patches: np.ndarray) -> Model:
    described = describe_patches(model, patches)
    return replace(model, features=FeatureStatistics.of(np.tile(described, (1 + 200 // len(described), 1))))


def test_a_model_that_knows_its_patches_tells_unlikeness(slide_file: Path, thin_model: Model, tmp_path: Path) -> None:
    grid = [IMAGE[row : row + 96, col : col + 96] for row in range(0, 104, 36) for col in range(0, 174, 36)]
    own = _with_features(thin_model, np.stack(grid))
    foreign = _with_features(thin_model, 255 - np.stack(grid))
    verdicts = [
        scan(
            slide_file, tmp_path / f"{name}.zarr", model=model, precision="fp32", tissue_mask="none", stride_px=64
        ).record.verdict
        for name, model in (("own", own), ("foreign", foreign), ("silent", replace(thin_model, features=None)))
    ]
    likeness, unlikeness, silent = [verdict.figures["unlikeness"] if verdict else 0.0 for verdict in verdicts]
    assert likeness is not None
    assert unlikeness is not None
    assert likeness < unlikeness
    assert silent is None


def test_the_default_model_knows_its_training_patches() -> None:
    features = load_model().features
    assert features is not None
    assert features.patches == 4000
