from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from fakes import DarknessPredictor
from slides import texture, write_slide

import wsi_meta.scanning

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(wsi_meta.scanning, "Predictor", DarknessPredictor)
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "a.tif", texture(300, 300))
    (tmp_path / "slides" / "bad.svs").write_text("no slide")
    monkeypatch.setattr(sys, "argv", ["scan_folder.py", str(tmp_path / "slides"), str(tmp_path / "results")])
    runpy.run_path(str(EXAMPLES / "scan_folder.py"), run_name="__main__")
    first, last = capsys.readouterr().out.splitlines()
    assert first.endswith("a.tif")
    assert last.lstrip().startswith("unknown  bad.svs")
    monkeypatch.setattr(sys, "argv", ["hottest_cells.py", str(tmp_path / "results" / "a.zarr")])
    runpy.run_path(str(EXAMPLES / "hottest_cells.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    values = [float(line.split()[0]) for line in lines[1:]]
    assert values == sorted(values, reverse=True)
