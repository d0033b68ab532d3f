"""The notebooks run from their first cell to their last, without a network."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from wsi_meta.demo.demo import Demo
from wsi_meta.demo.synthetic import MPP
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.slides.slide import open_slide

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))
SMALLER = ("2048", "1024")
"""Each drawn slide is a quarter as large here, for time."""


def _cells(notebook: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(notebook.read_text())["cells"]
    return cells


def _run(name: str, folder: Path) -> dict[str, Any]:
    """Run all cells of a notebook in a folder; give what they defined."""
    notebook = {path.stem: path for path in NOTEBOOKS}[name]
    defined: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(folder):
        for number, cell in enumerate(_cells(notebook)):
            if cell["cell_type"] == "code":
                code = "".join(cell["source"]).replace(*SMALLER)
                exec(compile(code, f"{notebook.name}, cell {number}", "exec"), defined)
    return defined


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the notebooks work; the second goes on with the map of the first."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def demo(folder: Path) -> Demo:
    """What the demonstration in the first notebook made, its paths absolute; never change it."""
    made: Demo = _run("first_map", folder)["demo"]
    return Demo(folder / made.slide, folder / made.heatmap, folder / made.overlay, made.score, made.auc)


def test_the_demo_of_the_first_notebook_writes_slide_heatmap_and_overlay(demo: Demo) -> None:
    assert Heatmap.open(demo.heatmap).finished
    assert Heatmap.open(demo.heatmap).probability.shape == (8, 8)
    with Image.open(demo.overlay) as picture:
        assert min(picture.size) > 1000
    with open_slide(demo.slide) as slide:
        assert (slide.width, slide.height) == (1024, 1024)
        assert abs(slide.mpp - MPP) < 1e-6
        assert [round(factor) for factor in slide.level_downsamples] == [
            2**level for level in range(len(slide.level_downsamples))
        ]
        assert len(slide.level_downsamples) >= 3


def test_a_heatmap_is_read(demo: Demo) -> None:
    folder = demo.heatmap.parents[1]
    defined = _run("read_a_heatmap", folder)
    assert folder / defined["store"] == demo.heatmap
    assert (folder / "cells.csv").read_text().startswith("row,col,x,y,probability,status\n")


def test_a_model_is_trained(tmp_path: Path) -> None:
    _run("train_a_model", tmp_path)
    assert (tmp_path / "wsi-meta-training" / "model.safetensors").exists()


def test_every_notebook_is_run_and_holds_no_output() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first_map", "read_a_heatmap", "train_a_model"]
    for notebook in NOTEBOOKS:
        code = [cell for cell in _cells(notebook) if cell["cell_type"] == "code"]
        assert code
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
