"""The parts of the speed benchmarks that can be right or wrong; how fast anything is, is not tested."""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import DarknessPredictor
from scan_figures import Commit, MeasuredScan, Timeline, figures, scan_timeline, share_of_limit, table
from scan_limits import Limits, block_name, block_windows, measure_limits, predictor_of_scan
from slide_files import texture, write_slide
from stopwatch import Timing, time_command
from stores import write_store
from tiny import Tiny

from wsi_meta import scan
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.card import ModelCard
from wsi_meta.models.dihedral import mean_over_views
from wsi_meta.models.model import Model
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.grid import Block

HOLD_80_MB = "import time; held = bytearray(80_000_000); time.sleep(0.6)"


def test_command_is_timed_and_its_output_kept() -> None:
    before = time.time()
    timing = time_command([sys.executable, "-c", "import time; time.sleep(0.3); print('done')"], env=dict(os.environ))
    assert timing.output == "done\n"
    assert 0.3 < timing.seconds < 30
    assert before <= timing.began <= time.time() - 0.3


def test_memory_counts_processes_of_processes() -> None:
    children = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD_80_MB!r}]); {HOLD_80_MB}"
    both = (
        f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {HOLD_80_MB!r}]); {HOLD_80_MB}; child.wait()"
    )
    assert 85e6 < time_command([sys.executable, "-c", children]).peak_bytes < 150e6
    assert time_command([sys.executable, "-c", both]).peak_bytes > 165e6


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)failed with 3.*out of film"):
        time_command([sys.executable, "-c", "import sys; print('out of film', file=sys.stderr); sys.exit(3)"])


def _timed_store(folder: Path, device: str = "cpu") -> tuple[Path, float]:
    """Four blocks of 60 cells a side, the second all background; the others written 10, 12 and 16 s after the start."""
    probability = np.full((120, 120), 0.5, np.float32)
    probability[:60, 60:] = np.nan
    probability[60:, :59] = np.nan
    store = write_store(folder / "s.zarr", probability, device=device)
    began = time.time() - 100
    for row, col, after in ((0, 0, 10), (0, 1, 99), (1, 0, 16), (1, 1, 12)):
        os.utime(store.path / "status" / "c" / str(row) / str(col), (began + after,) * 2)
    os.utime(store.path / "0" / "zarr.json", (began + 7,) * 2)
    return store.path, began


def test_timeline_is_read_from_the_commit_marks(tmp_path: Path) -> None:
    store, began = _timed_store(tmp_path)
    timeline = scan_timeline(store, began, workers=1)
    assert (timeline.ready, timeline.first, timeline.last) == pytest.approx((7, 10, 16), abs=1e-3)
    assert timeline.cells == 3600 + 3600 + 60
    assert [commit.cells for commit in timeline.steady] == [3600, 60]
    assert timeline.steady_cells_per_second == pytest.approx(3660 / 6, rel=1e-3)


def test_blocks_under_way_at_the_first_do_not_count(tmp_path: Path) -> None:
    store, began = _timed_store(tmp_path, "cuda")
    timeline = scan_timeline(store, began, workers=2)
    assert [commit.cells for commit in timeline.steady] == [60]
    assert timeline.steady_cells_per_second == pytest.approx(10, rel=1e-3)
    assert math.isnan(scan_timeline(store, began, workers=3).steady_cells_per_second)


def test_on_a_cpu_all_blocks_after_the_first_count(tmp_path: Path) -> None:
    store, began = _timed_store(tmp_path)
    assert [commit.cells for commit in scan_timeline(store, began, workers=3).steady] == [3600, 60]


def _measured(seconds: float, last: float, *, peak_bytes: int = 10**9) -> MeasuredScan:
    steady = (Commit(Block(0, 60, 60, 60), 3000, 0), Commit(Block(60, 0, 60, 60), 1000, 0))
    return MeasuredScan(Timing(0, seconds, peak_bytes, ""), Timeline(2, 5, last, 6000, steady), {"needed": 200, "decoded": 210})


LIMITS = Limits(read_seconds=2, predict_seconds={"0,0": 1, "0,60": 3, "60,0": 1}, ready_seconds=0.5, cells=6000)


def test_figures_by_hand() -> None:
    warm = [_measured(20, 10), _measured(22, 13), _measured(30, 25)]
    slower = replace(LIMITS, read_seconds=4, predict_seconds={"0,0": 1, "0,60": 6, "60,0": 1})
    found = figures(_measured(60, 12, peak_bytes=2 * 10**9), warm, [slower, LIMITS, LIMITS], 40, 32)
    assert found["end to end, s"] == 22
    assert found["end to end, nothing compiled before, s"] == 60
    assert found["cells/s, end to end"] == pytest.approx(6000 / 22)
    assert found["cells/s, first block to last"] == pytest.approx(4000 / 8)
    assert found["Mpx/s of tissue, first block to last"] == pytest.approx(500 * 1024 / 1e6)
    assert found["cells/s, reading alone"] == 3000
    assert found["cells/s, network alone"] == 1200
    assert found["share of the network's limit"] == pytest.approx((3 + 1) / 8)
    assert found["tiles decoded / needed"] == pytest.approx(1.05)
    assert found["peak memory, GB"] == 2
    assert found["after the last block, s"] == 9


def test_share_of_the_limit_is_of_the_same_blocks() -> None:
    timeline = _measured(20, 9).timeline
    assert share_of_limit(timeline, LIMITS) == pytest.approx(4 / 4)
    assert math.isnan(share_of_limit(Timeline(1, 2, 2, 10, ()), LIMITS))


def test_table_has_a_column_per_case() -> None:
    assert list(table({"full, dense": {"a": 12345.6, "b": None}, "full, patch": {"a": 0.12345, "c": 1}})) == [
        "| | full, dense | full, patch |",
        "|---|---|---|",
        "| a | 12,346 | 0.123 |",
        "| b | unknown | unknown |",
        "| c | unknown | 1 |",
    ]


def test_limits_are_of_the_blocks_that_were_scanned(tmp_path: Path) -> None:
    probability = np.full((2, 180), np.nan, np.float32)  # three blocks of 60 cells a side, the middle one background
    probability[:, :20] = probability[:, 150:] = 0.5
    heatmap = write_store(tmp_path / "s.zarr", probability, mpp=0.972)
    slide = write_slide(tmp_path / "s.tif", texture(64, 180 * 32))

    def make_predictor() -> Predictor:
        return DarknessPredictor(Model(Tiny(), ModelCard(), "", tmp_path), device="cpu", precision="fp32")

    found = measure_limits(heatmap.path, slide, make_predictor)
    scanned = np.isfinite(heatmap.probability)
    assert found.cells == scanned.sum() > 0
    assert set(found.predict_seconds) == {block_name(block) for block in heatmap.grid.blocks() if scanned[block.cells].any()}
    assert found.model_seconds == pytest.approx(sum(found.predict_seconds.values()))
    assert min(found.read_seconds, found.ready_seconds, *found.predict_seconds.values()) > 0
    first = measure_limits(heatmap.path, slide, make_predictor, first_only=True)
    assert not first.predict_seconds
    assert first.cells < found.cells


def test_limits_are_of_the_predictor_that_the_scan_had(tmp_path: Path, thin_model: Model) -> None:
    slide = write_slide(tmp_path / "s.tif", texture(64, 128))
    heatmap = scan(slide, tmp_path / "s.zarr", model=thin_model, tissue_mask="none", precision="fp32", device="cpu", tta=True)
    predictor = predictor_of_scan(heatmap.path, thin_model, device="cpu")
    assert (predictor.precision, predictor.views, predictor.halo_px, predictor.compiled) == ("fp32", 8, 0, False)
    (block,) = heatmap.grid.blocks()
    wanted = np.ones((block.rows, block.cols), bool)
    with open_slide(slide) as opened:
        windows = block_windows(predictor, heatmap.grid, block, wanted)
        pieces = [opened.read_at(heatmap.grid.mpp, *window) for window in windows]
    logits = predictor.predict_block(pieces, wanted, heatmap.grid.stride_px)
    probability = predictor.model.card.calibration.to_probability(mean_over_views(logits))
    np.testing.assert_array_equal(probability, heatmap.probability, "the windows hold other pixels than the scan read")
