from __future__ import annotations

import csv
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import write_darkness_model
from matplotlib import colormaps
from matplotlib.colors import to_hex
from slide_files import texture, write_slide
from stores import write_store

from wsi_meta.cli import main
from wsi_meta.datasets.manifest import read_manifest
from wsi_meta.exports.export import export
from wsi_meta.models.card import Calibration, ModelCard
from wsi_meta.pictures.colours import COLOUR_MAP
from wsi_meta.pictures.overlay import draw_overlay
from wsi_meta.readers.reader import Bounds

EXAMPLES = Path(__file__).parents[2] / "examples"
SQUARE = """<ASAP_Annotations><Annotations><Annotation Name="0" PartOfGroup="Tumor"><Coordinates>
<Coordinate Order="0" X="10" Y="10"/><Coordinate Order="1" X="90" Y="10"/><Coordinate Order="2" X="90" Y="90"/>
</Coordinates></Annotation></Annotations></ASAP_Annotations>"""
AWS = """
import fnmatch, pathlib, shutil, sys
*options, source, target = sys.argv[1:]
assert options[:3] == ["s3", "sync", "--no-sign-request"], options
patterns = [options[place + 1] for place, option in enumerate(options) if option == "--include"]
pathlib.Path(target).mkdir(exist_ok=True)
for path in sorted(pathlib.Path("BUCKET", source.removeprefix("s3://camelyon-dataset/CAMELYON16/")).iterdir()):
    if any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns):
        shutil.copy(path, target)
"""
WSI_META = """
import json, pathlib, sys
with open("LOG", "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
arguments = dict(zip(sys.argv, sys.argv[1:]))
out = pathlib.Path(arguments.get("--out") or arguments.get("--out-dir") or arguments["--detections"])
if sys.argv[1] == "scan":
    for slide in (argument for argument in sys.argv if argument.startswith("images/")):
        (out / (pathlib.Path(slide).stem + ".zarr")).mkdir(parents=True, exist_ok=True)
else:
    for store in pathlib.Path("scans").glob("*.zarr") if "{name}" in str(out) else [out]:
        pathlib.Path(str(out).replace("{name}", store.stem)).write_text("")
"""


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that sees darkness, with a calibration under which a third of the way to black is half tumor."""
    card = ModelCard(dense=True, calibration=Calibration(temperature=0.05, bias=-20 / 3), thresholds={"default": 0.5})
    return write_darkness_model(tmp_path_factory.mktemp("model") / "darkness.safetensors", card)


def _run(name: str, *arguments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_examples_run(
    tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "a.tif", texture(300, 300) // 3)
    (tmp_path / "slides" / "bad.svs").write_text("no slide")
    _run("scan_folder.py", tmp_path / "slides", tmp_path / "results", model_file, monkeypatch=monkeypatch)
    first, last = capsys.readouterr().out.splitlines()
    assert first.split() == ["over", "0.999", "a.tif"]
    assert last.lstrip().startswith("unknown  bad.svs")
    _run("hottest_cells.py", tmp_path / "results" / "a.zarr", monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    values = [float(line.split()[0]) for line in lines[1:]]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("name", ["hottest_cells.py", "pipeline.py", "scan_folder.py"])
def test_without_arguments_an_example_says_which_it_takes(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _run(name, monkeypatch=monkeypatch)
    assert f"usage: {name} [-h] " in capsys.readouterr().err


def test_pipeline(
    tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stand-in for the network calls what is dark tumor: the third node is, the others are pale, one slide is glass."""
    (tmp_path / "slides").mkdir()
    for node in range(5):
        pale = 255 - (255 - texture(100, 100, node)) // 3
        write_slide(tmp_path / "slides" / f"patient_007_node_{node}.tif", texture(100, 320, 2) if node == 2 else pale)
    write_slide(tmp_path / "slides" / "patient_008_node_0.tif", np.full((100, 100, 3), 244, np.uint8))
    (tmp_path / "slides" / "broken.tif").write_text("no slide")
    assert draw_overlay.__kwdefaults__ is not None
    monkeypatch.setitem(draw_overlay.__kwdefaults__, "max_side", 300)
    _run("pipeline.py", tmp_path / "slides", tmp_path / "results", model_file, monkeypatch=monkeypatch)
    told = capsys.readouterr()
    assert "broken.tif: " in told.err
    assert "patient_008_node_0.tif: no tissue was found; no findings" in told.err
    assert "patient_008: 0 of five nodes have findings; not staged" in told.err
    scores = {line.split(":")[0]: line.split("score ")[1].split(",")[0] for line in told.out.splitlines()[:-1]}
    assert [name for name, score in scores.items() if float(score.split()[-1]) > 0.5] == ["patient_007_node_2.tif"]
    assert len(scores) == 5
    assert told.out.splitlines()[-1] == "patient_007: pN1mi"
    with (tmp_path / "results" / "nodes.csv").open() as file:
        labels = [row["stage"] for row in csv.DictReader(file)]
    assert labels == ["negative", "negative", "micro", "negative", "negative"]
    assert len(json.loads((tmp_path / "results" / "patient_007_node_2.geojson").read_text())["features"]) == 1
    assert len(list((tmp_path / "results").glob("*.png"))) == 5


@pytest.fixture
def camelyon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bucket with a few slides, and an aws and a wsi-meta that stand in for the real ones."""
    images, annotations = tmp_path / "bucket" / "images", tmp_path / "bucket" / "annotations"
    for folder in (images, annotations, tmp_path / "bin"):
        folder.mkdir(parents=True)
    for name in ("normal_001", "normal_002", "tumor_001", "tumor_010", "test_001", "test_002", "tumor_101"):
        (images / f"{name}.tif").write_text("a slide")
    for name in ("tumor_001", "tumor_010", "test_001", "tumor_101"):
        (annotations / f"{name}.xml").write_text(SQUARE)
    programs = {
        "aws": AWS.replace("BUCKET", str(tmp_path / "bucket")),
        "wsi-meta": WSI_META.replace("LOG", str(tmp_path / "log")),
    }
    for name, code in programs.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!{sys.executable}\n{code}")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def _recipe(folder: Path, **environment: str) -> list[list[str]]:
    """Run the recipe; give the commands that it called."""
    (folder / "log").unlink(missing_ok=True)
    command = ["bash", str(EXAMPLES / "camelyon16.sh"), str(folder / "data")]
    subprocess.run(command, check=True, env=os.environ | environment, capture_output=True, text=True)
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def test_camelyon16_recipe(camelyon: Path) -> None:
    calls = _recipe(camelyon, ONLY="*_0*", HARD="1")
    names = [call[0] for call in calls]
    expected = "sample train scan sample train evaluate scan lesions froc"
    assert names == expected.split()
    for name, *arguments in calls:  # the real commands know these options
        main.commands[name].make_context(name, arguments)
    assert calls[-1][1:] == ["detections", "truth", "--scores", "scans/summary.csv", "--out", "froc", "--overwrite"]
    assert sorted(path.name for path in (camelyon / "data" / "truth").iterdir()) == ["test_001.xml"]
    assert sorted(path.name for path in (camelyon / "data" / "detections").iterdir()) == ["test_001.csv", "test_002.csv"]
    found = {slide.name: slide for slide in read_manifest(camelyon / "data" / "manifest.csv")}
    assert sorted(found) == ["normal_001", "normal_002", "test_001", "test_002", "tumor_001", "tumor_010"], "as ONLY says"
    assert {name for name, slide in found.items() if slide.truth} == {"test_001", "tumor_001", "tumor_010"}
    assert {name for name, slide in found.items() if slide.split == "test"} == {"test_001", "test_002"}
    assert found["tumor_010"].partly
    again = [call[0] for call in _recipe(camelyon, ONLY="*_0*", HARD="1")]
    assert again == ["scan", "scan", "lesions", "froc"], "what is done is not done again"


@pytest.mark.parametrize("model", ["model", "model_hard"])
def test_the_recipe_resumes_a_training_that_was_killed(camelyon: Path, model: str) -> None:
    """After its first epoch it has a model, and until its end the checkpoint beside it."""
    data = camelyon / "data"
    _recipe(camelyon, HARD="1")
    checkpoint = data / f"{model}.checkpoint"
    checkpoint.touch()
    trained = [call for call in _recipe(camelyon, HARD="1") if call[0] == "train"]
    assert [(call[call.index("--out") + 1], call[-1]) for call in trained] == [(f"{model}.safetensors", "--resume")]
    checkpoint.unlink()
    assert "train" not in [call[0] for call in _recipe(camelyon, HARD="1")], "it is finished"


def test_the_recipe_says_what_it_passes_over(camelyon: Path) -> None:
    (camelyon / "data" / "patches").mkdir(parents=True)
    command = ["bash", str(EXAMPLES / "camelyon16.sh"), str(camelyon / "data")]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()
    assert told == ["patches: is there, so its step is passed over; remove it to do that again"]


def test_the_recipe_never_judges_by_a_model_of_other_slides(camelyon: Path) -> None:
    """A trial with a few slides, then all of them in the same folder: patches and model would be the trial's."""
    _recipe(camelyon, ONLY="*_00?")
    assert (camelyon / "data" / "scans" / "test_001.zarr").is_dir()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        _recipe(camelyon)
    assert "patches: cut from other slides than there are now; take another folder" in caught.value.stderr
    assert not (camelyon / "log").exists()


def test_the_recipe_stops_where_no_slide_has_such_a_name(camelyon: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        _recipe(camelyon, ONLY="nothing_*")
    assert "no slide has a name like 'nothing_*'" in caught.value.stderr
    assert not (camelyon / "log").exists()


def test_examples_do_not_end_well_with_nothing(
    tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    (slides / "bad.tif").write_text("no slide")
    (slides / "notes.txt").write_text("no slide either")
    with pytest.raises(SystemExit, match="none of the 1 slides could be scanned"):
        _run("scan_folder.py", slides, tmp_path / "a", model_file, monkeypatch=monkeypatch)
    with pytest.raises(SystemExit, match="no slide has findings"):
        _run("pipeline.py", slides, tmp_path / "b", model_file, monkeypatch=monkeypatch)
    assert "notes.txt: no .tif; passed over" in capsys.readouterr().err
    write_store(tmp_path / "s.zarr", np.full((4, 5), np.nan, np.float32))
    with pytest.raises(SystemExit, match="no cell was scanned"):
        _run("hottest_cells.py", tmp_path / "s.zarr", monkeypatch=monkeypatch)
    write_store(tmp_path / "part.zarr", np.full((4, 5), 0.5, np.float32), complete=False)
    _run("hottest_cells.py", tmp_path / "part.zarr", monkeypatch=monkeypatch)
    assert "part.zarr: not all of the slide was scanned; hotter cells may be missing" in capsys.readouterr().err


def test_the_recipe_stops_at_tumor_without_outlines(camelyon: Path) -> None:
    (camelyon / "bucket" / "annotations" / "tumor_001.xml").unlink()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        _recipe(camelyon)
    assert "images/tumor_001.tif: no outlines; it would pass for normal" in caught.value.stderr


def test_the_script_for_qupath_has_our_colours_and_our_names(tmp_path: Path) -> None:
    """It cannot be run here; what it takes from our files is compared with what they have."""
    script = (EXAMPLES / "show_in_qupath.groovy").read_text()
    stops = [int(colour, 16) for colour in re.findall(r"0x([0-9a-f]{6})\b", script)]
    assert stops == [int(to_hex(colormaps[COLOUR_MAP](step / 8))[1:], 16) for step in range(9)]
    heatmap = write_store(tmp_path / "s.zarr", np.full((5, 5), 0.9, np.float32), bounds=Bounds(40, 30, 500, 400))
    frame = json.loads(export(heatmap, tmp_path / "s.geojson").read_text())["wsi_meta"]
    assert '["wsi_meta"]' in script
    assert [frame[name] for name in re.findall(r"frame\?\.(\w+)", script)] == [40, 30]
