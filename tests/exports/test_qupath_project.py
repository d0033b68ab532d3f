"""The script for QuPath's projects: it names the files that it needs, whatever is in their names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from slide_files import write_slide
from stores import write_store

from wsi_meta.cli import main
from wsi_meta.errors import HeatmapError, OptionsError, OutputPathError, SlideReadError
from wsi_meta.exports.export import export
from wsi_meta.slides.slide import open_slide


def _scanned(folder: Path, name: str, brightness: int) -> tuple[Path, Path]:
    """A slide and a heatmap of it with one lesion."""
    folder.mkdir(exist_ok=True)
    image = np.full((640, 640, 3), brightness, np.uint8)
    slide = write_slide(folder / f"{name}.tif", image, 0.486, levels=2)
    probability = np.full((10, 10), 0.1, np.float32)
    probability[2:5, 2:5] = 0.95
    with open_slide(slide) as opened:
        write_store(folder / f"{name}.zarr", probability, mpp=0.486, cut=0, slide=opened.fingerprint())
    return slide, folder / f"{name}.zarr"


def test_the_script_names_its_files_and_marks_its_lesions(tmp_path: Path) -> None:
    folder = tmp_path / "a $name" / "q' \\u0041 \" *"
    slide, heatmap = _scanned(tmp_path, "s", 200)
    out = folder / "s $x.groovy"
    out.parent.mkdir(parents=True)
    done = CliRunner().invoke(main, ["export", str(heatmap), "--out", str(out), "--slide", str(slide)])
    assert done.output.strip() == f"file: {out}"
    script = out.read_text(encoding="ascii")
    head, body = script.split("\n */\n", 1)
    assert "\\" not in head, "Groovy reads escapes in comments too"
    literals = [json.loads(found.replace("\\$", "$")) for found in re.findall(r'"(?:[^"\\]|\\.)*"', body)]
    assert not re.search(r"[^\\]\$", body), "Groovy evaluates what follows an unescaped $"
    for needed in (str(slide), str(out.parent), "s $x.geojson"):
        assert needed in literals
    lesion = json.loads(export(heatmap, out.with_suffix(".geojson")).read_text())["features"][0]
    (mark,) = re.findall(r'containsKey\("(.*)"\)', body)
    assert mark in lesion["properties"]["measurements"]


def test_it_needs_the_slide_that_was_scanned(tmp_path: Path) -> None:
    _, heatmap = _scanned(tmp_path, "s", 200)
    other, _ = _scanned(tmp_path, "other", 190)
    with pytest.raises(OptionsError, match=r"qupath-project needs the slide; pass --slide"):
        export(heatmap, tmp_path / "s.groovy")
    with pytest.raises(HeatmapError, match=r"made from .*, not from .*other\.tif"):
        export(heatmap, tmp_path / "s.groovy", slide=other)
    assert not (tmp_path / "s.groovy").exists()


def test_a_path_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Java has no name for it: the script could not find the file."""
    slide, heatmap = _scanned(tmp_path, "s", 200)
    odd = tmp_path / "caf\udce9"
    odd.mkdir()
    with pytest.raises(SlideReadError, match=r"xe9.s\.tif: a path that is no UTF-8; .* rename it"):
        export(heatmap, tmp_path / "s.groovy", slide=slide.rename(odd / "s.tif"))
    with pytest.raises(OutputPathError, match=r"xe9.s\.groovy: a path that is no UTF-8"):
        export(heatmap, odd / "s.groovy", slide=(odd / "s.tif").rename(slide))
    assert not list(tmp_path.rglob("*.groovy"))
