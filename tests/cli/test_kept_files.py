"""No command writes into a heatmap store, or over a slide, a model file or the table of a folder of heatmaps."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file
from slide_files import texture, write_slide
from stores import write_store

from wsi_meta.cli import main
from wsi_meta.models.weights_file import with_metadata
from wsi_meta.worklist.table import Table

FILES = {
    "overlay": ("overlay h.zarr --out OUT", ".png"),
    "lesions": ("lesions h.zarr --out OUT", ".csv"),
    "detections": ("lesions h.zarr --detections OUT", ".csv"),
    "cells": ("export h.zarr --as cells --out OUT", ".csv"),
    "qupath": ("export h.zarr --out OUT", ".geojson"),
    "asap": ("export h.zarr --out OUT", ".xml"),
    "ome-tiff": ("export h.zarr --out OUT", ".ome.tif"),
    "tissue": ("tissue s.tif --out OUT", ".tif"),
    "tissue's picture": ("tissue s.tif --picture OUT", ".jpg"),
    "fit-score": ("fit-score . --labels labels.csv --out OUT", ".json"),
    "stage": ("stage nodes.csv --out OUT", ".csv"),
    "train": ("train PATCHES --init none --out OUT", ".safetensors"),
    "calibrate": ("calibrate default PATCHES --split valid --out OUT", ".safetensors"),
    "import-model": ("import-model m.safetensors --data PATCHES --mpp 0.972 --pixels imagenet --out OUT", ".safetensors"),
}
"""Commands that write a file, and its ending."""
FOLDERS = {
    "store": "scan s.tif --out OUT",
    "batch": "scan s.tif t.tif --out OUT",
    "ome-zarr": "export h.zarr --as ome-zarr-0.4 --out OUT.ome.zarr",
    "page": "view h.zarr --static OUT",
    "demo": "demo --out OUT",
    "report": "evaluate default PATCHES --out OUT",
    "sample": "sample slides.csv --out OUT",
    "export-model": "export-model default --out OUT",
    "froc": "froc found truth --out OUT",
}
KEPT = ("slide", "model", "summary.csv", "summary.json", "run.toml", "semicolons", "utf-16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, few_patches: Path) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    for name in "st":
        write_slide(folder / f"{name}.tif", texture(200, 200))
    write_store(folder / "h.zarr", np.full((4, 5), 0.25, np.float32), slide="s")
    (folder / "labels.csv").write_text("slide,label\nh,0\n")
    (folder / "nodes.csv").write_text("patient,stage\npatient_000_node_0.tif,negative\n")
    (folder / "slides.csv").write_text("slide,annotations\ns.tif,\n")
    for name in ("found", "truth"):
        (folder / name).mkdir()
    shutil.copytree(few_patches, folder / "patches")
    save_file({"fc.weight": np.zeros((1, 8), np.float32)}, folder / "m.safetensors")
    kept = folder / "kept"
    kept.mkdir()
    shutil.copy(folder / "s.tif", kept / "slide")
    Table.of(kept, [{"slide": "s.tif", "heatmap": "s.zarr", "patient": "p"}]).write()
    text = (kept / "summary.csv").read_text()
    (kept / "semicolons").write_text("\ufeff" + text.replace(",", ";"))
    (kept / "utf-16").write_text(text, "utf-16")
    (kept / "run.toml").write_text("# wsi-meta 0.2.0; start from it again: wsi-meta scan --config THIS_FILE\nslides = []\n")
    (kept / "model").write_bytes(with_metadata((folder / "m.safetensors").read_bytes(), {"wsi_meta": "{}"}))
    return folder


def _run(folder: Path, words: str, out: str, *more: str) -> str:
    """Run a command that has to fail with one line; return that."""
    words = words.replace("OUT", out).replace("PATCHES", "patches")
    result = CliRunner().invoke(main, [*words.split(), *more])
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert (result.exit_code, len(lines)) == (1, 1), result.output
    return lines[0]


def _hash(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_no_output_lies_in_a_heatmap_store(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words, ending = FILES[name] if name in FILES else (FOLDERS[name], "")
    before = _hash(folder)
    for inside in ("h.zarr", "h.zarr/0"):
        assert "lies inside the heatmap store" in _run(folder, words, f"{inside}/new{ending}")
    assert _hash(folder) == before


@pytest.mark.parametrize(
    "words", ["sample slides.csv --out OUT", "export-model default --out OUT", "froc found truth --out OUT"]
)
def test_no_store_is_a_folder_of_other_files(words: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert "lies inside the heatmap store" in _run(folder, words, "h.zarr")


@pytest.mark.parametrize(
    ("name", "kept"), [(name, kept) for name in FILES for kept in KEPT if (FILES[name][1], kept) != (".safetensors", "model")]
)
def test_what_is_kept_is_never_written_over(name: str, kept: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words, ending = FILES[name]
    out = folder / f"out{ending}"
    shutil.copy(folder / "kept" / kept, out)
    told = _run(folder, words, out.name, "--overwrite")
    assert "never replaced" in told or "did not write it, so it is not replaced" in told
    assert out.read_bytes() == (folder / "kept" / kept).read_bytes()
    out.unlink()


def test_a_score_model_ends_in_json(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert "expected .json" in _run(folder, FILES["fit-score"][0], "new.tif")
