"""The notebooks run from their first cell to their last, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))
SMALLER = ("2048", "1024")
"""Each drawn slide is a quarter as large here, for time."""


def _cells(notebook: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(notebook.read_text())["cells"]
    return cells


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the notebooks work; the second goes on with the map of the first."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.parametrize("name", ["first_map", "read_a_heatmap", "train_a_model"])
def test_notebooks_run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = {path.stem: path for path in NOTEBOOKS}[name]
    monkeypatch.chdir(folder)
    shared: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(_cells(notebook)):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]).replace(*SMALLER), f"{notebook.name}, cell {number}", "exec"), shared)


def test_every_notebook_is_run_and_holds_no_output() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first_map", "read_a_heatmap", "train_a_model"]
    for notebook in NOTEBOOKS:
        code = [cell for cell in _cells(notebook) if cell["cell_type"] == "code"]
        assert code
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
