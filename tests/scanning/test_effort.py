"""A store keeps what its scan took, an interrupted run's share as well, and the map is the same."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DarknessPredictor, scan_darkness
from slide_files import texture, write_slide

from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.models.model import Model
from wsi_meta.scanning.scanner import Scanner
from wsi_meta.slides.slide import open_slide

SETTINGS: dict[str, Any] = {"tissue_mask": "none", "block_px": 96, "workers": 1}
CELLS = 30
"""Of the slide: 6 rows of 5."""


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "s.tif", texture(192, 160))


def test_what_a_scan_took(tmp_path: Path, slide: Path, thin_model: Model) -> None:
    with open_slide(slide) as opened:
        opened.read_region(0, 0, 160, 192)
        before = opened.tiles_decoded
        effort = scan_darkness(opened, tmp_path / "h.zarr", model=thin_model, **SETTINGS).record.effort
        after = opened.tiles_decoded
    assert effort is not None
    assert effort == Heatmap.open(tmp_path / "h.zarr").record.effort
    assert (effort.cells, effort.runs, effort.hosts) == (CELLS, 1, (socket.gethostname(),))
    parts = (effort.tissue_s, effort.reading_s, effort.computing_s, effort.writing_s, effort.waiting_s)
    assert all(0 < part < effort.passed_s for part in parts)
    assert effort.peak_memory_bytes > 100 << 20
    assert effort.tiles_decoded == (None if before is None or after is None else after - before)


def test_a_continued_scan_adds_to_what_an_interrupted_run_took(tmp_path: Path, slide: Path, thin_model: Model) -> None:
    class Third(DarknessPredictor):
        """Is interrupted at its third block."""

        blocks = 0

        def predict_block(self, *arguments: Any) -> Any:
            self.blocks += 1
            if self.blocks == 3:
                raise KeyboardInterrupt
            return super().predict_block(*arguments)

    out = tmp_path / "h.zarr"
    with pytest.raises(KeyboardInterrupt):
        scan_darkness(slide, out, model=thin_model, kind=Third, scheduler="synchronous", **SETTINGS)
    begun = Heatmap.open(out)
    assert begun.intact
    assert begun.result is None
    first = begun.record.effort
    assert first is not None
    assert (first.cells, first.runs) == ((begun.status == Status.SCANNED).sum(), 1)
    assert 0 < first.cells < CELLS
    heatmap = scan_darkness(slide, out, model=thin_model, **SETTINGS)
    both = heatmap.record.effort
    assert both is not None
    assert (both.cells, both.runs) == (CELLS, 2)
    assert both.passed_s > first.passed_s > 0
    assert both.reading_s > first.reading_s > 0
    alone = scan_darkness(slide, tmp_path / "alone.zarr", model=thin_model, **SETTINGS)
    np.testing.assert_array_equal(heatmap.probability, alone.probability)
    np.testing.assert_array_equal(heatmap.status, alone.status)
    assert scan_darkness(slide, out, model=thin_model, **SETTINGS).record.effort == both, "finished: nothing was done"
    made_anew = scan_darkness(slide, out, model=thin_model, overwrite=True, **SETTINGS).record.effort
    assert made_anew is not None
    assert made_anew.runs == 1


def test_scanners_side_by_side_measure_for_themselves(tmp_path: Path, slide: Path, thin_model: Model) -> None:
    other = write_slide(tmp_path / "other.tif", texture(128, 128, 3))
    with (
        Scanner(predictor=DarknessPredictor(thin_model), block_px=96) as one,
        Scanner(predictor=DarknessPredictor(thin_model)) as two,
    ):
        efforts = [
            scanner.scan(path, tmp_path / f"{path.stem}.zarr", tissue_mask="none").record.effort
            for scanner, path in ((one, slide), (two, other), (one, write_slide(tmp_path / "third.tif", texture(128, 128, 4))))
        ]
    assert [effort.cells for effort in efforts if effort is not None] == [CELLS, 16, 16]
