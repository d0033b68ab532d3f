"""No command writes into a heatmap store, or over a slide, a model file or the table of a folder of heatmaps."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from matplotlib.figure import Figure
from safetensors.numpy import save_file
from slide_files import texture, write_slide
from stores import write_store

from wsi_meta.cli import main
from wsi_meta.models.weights_file import with_metadata
from wsi_meta.pictures.picture_file import check_picture, write_figure
from wsi_meta.slides.slide import open_slide
from wsi_meta.viewer.corrections import Corrections, write_corrections
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
KEPT = (
    "slide",
    "strips",
    "OME-TIFF",
    "OME-TIFF with a remark",
    "model",
    "summary.csv",
    "summary.json",
    "run.toml",
    "corrections",
    "semicolons",
    "utf-16",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, few_patches: Path) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    for name in "st":
        write_slide(folder / f"{name}.tif", texture(200, 200))
    heatmap = write_store(folder / "h.zarr", np.full((4, 5), 0.25, np.float32), slide="s")
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
    strips: dict[str, Any] = {"photometric": "rgb", "metadata": None, "resolutionunit": 3}
    tifffile.imwrite(kept / "strips", texture(64, 64), resolution=(20_000, 20_000), **strips)
    described = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"></OME>'
    for name, text in (("OME-TIFF", described), ("OME-TIFF with a remark", f"{described}<!-- by another program -->\n\t")):
        tifffile.imwrite(kept / name, texture(64, 64), description=text, **strips)
    Table(kept, [{"slide": "s.tif", "heatmap": "s.zarr", "patient": "p"}]).write()
    text = (kept / "summary.csv").read_text()
    (kept / "semicolons").write_text("\ufeff" + text.replace(",", ";"))
    (kept / "utf-16").write_text(text, "utf-16")
    (kept / "run.toml").write_text("# wsi-meta 0.2.0; start from it again: wsi-meta scan --config THIS_FILE\nslides = []\n")
    write_corrections(heatmap, Corrections())
    (folder / "h.corrections.geojson").rename(kept / "corrections")
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


@pytest.mark.parametrize(
    "name", ["overlay", "lesions", "detections", "cells", "qupath", "asap", "ome-tiff", "tissue", "tissue's picture", "stage"]
)
def test_what_another_command_wrote_meanwhile_is_kept(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both found the name free; the later one tells, though it has done its work."""
    monkeypatch.chdir(folder)
    words, ending = FILES[name]
    out = folder / f"both{ending}"
    nodes = [f"patient_000_node_{number}.tif,negative\n" for number in range(5)]
    (folder / "five.csv").write_text("patient,stage\n" + "".join(nodes))
    words = words.replace("nodes.csv", "five.csv")
    link = os.link

    def later(source: Path, target: Path) -> None:
        out.write_bytes(b"theirs")
        link(source, target)

    monkeypatch.setattr(os, "link", later)
    assert "another command wrote it meanwhile, and that is kept" in _run(folder, words, out.name)
    assert out.read_bytes() == b"theirs"
    assert not list(folder.glob("*.partial"))
    out.unlink()


def test_corrections_that_qupath_saved_again_are_known_by_their_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    out = folder / "h.corrections.geojson"
    for words in ("export h.zarr --out OUT", "lesions h.zarr --out OUT", "tissue s.tif --out OUT"):
        out.write_text('{"type": "FeatureCollection", "features": []}')
        (link := folder / "link.geojson").symlink_to(out)
        for name in (out.name, link.name):
            assert "corrections of a heatmap, never replaced" in _run(folder, words, name, "--overwrite")
        link.unlink()
        out.unlink()
        assert "named as corrections of a heatmap; choose another name" in _run(folder, words, out.name)


def test_a_score_model_ends_in_json(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert "expected .json" in _run(folder, FILES["fit-score"][0], "new.tif")


@pytest.mark.parametrize("ending", ["tif", "png"])
def test_a_picture_of_ours_is_replaced_however_fine_its_pixels(ending: str, tmp_path: Path) -> None:
    for _ in range(2):
        picture = check_picture(tmp_path / f"own.{ending}", None, overwrite=True)
        write_figure(Figure((0.1, 0.1), dpi=5000), picture, overwrite=True)  # 5 um, as that of an enlarged picture


def test_a_picture_for_print_is_no_slide(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "o.tif", texture(64, 64), photometric="rgb", resolution=(1200, 1200), resolutionunit=2)
    check_picture(tmp_path / "o.tif", None, overwrite=True)


def test_the_slide_of_the_heatmap_is_never_replaced_also_where_it_is_not_drawn(tmp_path: Path) -> None:
    path = tmp_path / "p.tif"
    tifffile.imwrite(path, texture(96, 128), photometric="rgb", metadata=None)  # nothing in it says that it is a slide
    with open_slide(path, mpp=0.5) as slide:
        store = write_store(tmp_path / "p.zarr", np.zeros((2, 2), np.float32), slide=slide.fingerprint(), reader="picture")
    words = ["overlay", str(store.path), "--slide", "none", "--out", str(path), "--overwrite"]
    before = path.read_bytes()
    assert f"{path}: the slide, never replaced" in CliRunner().invoke(main, words).stderr
    assert path.read_bytes() == before
