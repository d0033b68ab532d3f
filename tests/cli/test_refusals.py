"""What can be refused is refused before the work: in one line, at once, and without torch, which takes seconds to import."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from slide_files import texture, write_slide
from stores import write_store

from wsi_meta.models.card import ModelCard

WITHOUT_TORCH = """
import json, sys, time, traceback

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise RuntimeError(f"{name} is imported:" + "".join(traceback.format_stack()[-8:-1]))

sys.meta_path.insert(0, NoTorch())
from click.testing import CliRunner
from wsi_meta.cli import main
told = []
for words in json.load(sys.stdin):
    start = time.perf_counter()
    result = CliRunner().invoke(main, words)
    told.append([result.exit_code, result.stderr, time.perf_counter() - start])
json.dump(told, sys.stdout)
"""

REFUSALS: dict[str, tuple[str, int, str]] = {
    "scan a missing slide": ("scan none.tif --out h.zarr", 1, "none.tif: no such file"),
    "scan an address of another kind": ("scan gs://a/s.svs --out h.zarr", 1, "gs://a/s.svs: an address of another kind"),
    "scan a file of another machine": ("scan file://a/s.tif --out h.zarr", 1, "file://a/s.tif: no file of this machine; exp"),
    "scan a missing slide by its URI": ("scan file:///none.tif --out h.zarr", 1, "/none.tif: no such file"),
    "scan what is no slide": ("scan labels.csv --out h.zarr", 1, "labels.csv: not a slide"),
    "scan an empty file": ("scan empty.tif --out h.zarr", 1, "empty.tif: an empty file"),
    "scan a cut slide": ("scan cut.tif --out h.zarr", 1, "cut.tif: "),
    "scan a slide of too coarse mpp": ("scan s.tif --mpp 5 --out h.zarr", 1, "s.tif: 5 um per pixel is too coarse"),
    "scan with impossible mpp": ("scan s.tif --mpp 1e-9 --out h.zarr", 1, "s.tif: --mpp says 1e-09 um per pixel"),
    "scan with a missing model": ("scan s.tif --model none.safetensors --out h.zarr", 1, "none.safetensors: no such model"),
    "scan with a foreign model": ("scan s.tif --model foreign.safetensors --out h.zarr", 1, "foreign.safetensors: safetens"),
    "scan with a pickle": ("scan s.tif --model pickle.pth --out h.zarr", 1, "pickle.pth: a pickle"),
    "scan with a cut model": ("scan s.tif --model cut.safetensors --out h.zarr", 1, "cut.safetensors: not a safetensors file"),
    "scan with a bad threshold": ("scan s.tif --model bad.safetensors --out h.zarr", 1, "bad.safetensors: its card is"),
    "scan into a picture": ("scan s.tif --out mask.png", 1, "mask.png: exists and is not a heatmap store"),
    "scan into this folder": ("scan s.tif --out .", 1, ".: exists and is not a heatmap store"),
    "scan into a link to itself": ("scan s.tif --out loop.zarr", 1, "loop.zarr: a link to loop.zarr, which leads nowhere"),
    "scan into no folder": ("scan s.tif --out none/h.zarr", 1, "none/h.zarr: there is no folder"),
    "scan over another slide's": ("scan s.tif --out other.zarr", 1, "other.zarr: holds another scan: slide is none"),
    "scan with a missing mask": ("scan s.tif --tissue-mask none.png --out h.zarr", 1, "none.png: "),
    "scan with a mask that does not fit": ("scan s.tif --tissue-mask mask.png --out h.zarr", 1, "mask.png: "),
    "scan with a missing score model": ("scan s.tif --score-model none.json --out h.zarr", 1, "none.json: "),
    "scan on no device": ("scan s.tif --device tpu --out h.zarr", 1, "--device 'tpu': not supported"),
    "scan dense with another stride": ("scan s.tif --mode dense --stride 64 --out h.zarr", 2, "mode dense, stride 64"),
    "scan uncertainty without tta": ("scan s.tif --uncertainty --out h.zarr", 2, "uncertainty is the spread"),
    "scan with a budget of no stage": ("scan s.tif --stage-budget -3 --out h.zarr", 2, "stage budget -3 GB without a stage"),
    "scan nothing": ("scan --out scans", 2, "Expected SLIDE or --manifest"),
    "scan a folder without slides": ("scan empty --out scans", 1, "empty: no slides; expected"),
    "scan by a missing manifest": (
        "scan --manifest none.csv --out scans",
        1,
        "none.csv: no such file; expected a table of slides",
    ),
    "scan by another table": ("scan --manifest meta.csv --out scans", 1, "meta.csv: line 1: unknown column 'stain'"),
    "preview slides": ("scan none.tif --manifest slides.csv --dry-run --out scans", 1, "1 of 2 slides would be refused"),
    "preview another slide's": ("scan s.tif --dry-run --out other.zarr", 1, "1 of 1 slides would be refused"),
    "scan a slide twice": ("scan s.tif ./s.tif --out scans", 1, "s.tif: is given twice"),
    "scan several into a store": ("scan s.tif labels.csv --out other.zarr", 1, "other.zarr: a heatmap store, not a folder"),
    "train on nothing": ("train none --init none --out m.safetensors", 1, "none: no such folder"),
    "train on no patches": ("train empty --init none --out m.safetensors", 1, "empty: no labelled patches"),
    "train over a model": ("train patches --init none --out foreign.safetensors", 1, "foreign.safetensors: exists"),
    "train into no folder": ("train patches --init none --out none/m.safetensors", 1, "none/m.safetensors: there is no folder"),
    "train into a folder": ("train patches --init none --out empty", 1, "empty: no name of a model file"),
    "train with a bad recipe": ("train patches --lr 1e9 --init none --out m.safetensors", 2, "lr 1000000000.0; expected"),
    "train from nothing": ("train patches --init none.pth --out m.safetensors", 1, "none.pth: no such file"),
    "train on no device": ("train patches --device tpu --init none --out m.safetensors", 1, "--device 'tpu': not supported"),
    "evaluate nothing": ("evaluate default none", 1, "none: no such folder"),
    "evaluate a missing model": ("evaluate none.safetensors patches", 1, "none.safetensors: no such model"),
    "evaluate a folder": ("evaluate empty patches", 1, "empty: a directory"),
    "evaluate a missing split": ("evaluate default patches --split test", 1, "patches: no 'test' split"),
    "evaluate on no device": ("evaluate default patches --device tpu", 1, "--device 'tpu': not supported"),
    "evaluate into a folder of others": ("evaluate default patches --out patches", 1, "patches: exists"),
    "calibrate on nothing": ("calibrate default none --out m.safetensors", 1, "none: no such folder"),
    "calibrate over a file": ("calibrate default patches --out foreign.safetensors", 1, "foreign.safetensors: exists"),
    "calibrate a foreign model": ("calibrate foreign.safetensors patches --out m.safetensors", 1, "foreign.safetensors: safe"),
    "calibrate on too few": ("calibrate default patches --out m.safetensors", 1, "patches: 1 tumor and 1 normal patches"),
    "import over a file": (
        "import-model net.pth --data patches --out foreign.safetensors",
        1,
        "foreign.safetensors: exists",
    ),
    "import nothing": ("import-model none.pth --data patches --out m.safetensors", 1, "none.pth: no such file"),
    "import on too few": ("import-model net.pth --data patches --out m.safetensors", 1, "patches: 1 tumor and 1 normal"),
    "import on no device": (
        "import-model net.pth --data patches --out m.safetensors --device tpu",
        1,
        "--device 'tpu': not supported",
    ),
    "export a missing model": ("export-model none.safetensors --out exported", 1, "none.safetensors: no such model"),
    "export into a file": ("export-model default --out mask.png", 1, "mask.png: a file; expected the name of a folder"),
    "demo on no device": ("demo --device tpu --out d", 1, "--device 'tpu': not supported"),
    "sample from nothing": ("sample none.csv --out sampled", 1, "none.csv: "),
    "sample by a foreign model": ("sample slides.csv --model foreign.safetensors --out sampled", 1, "foreign.safetensors: "),
    "sample over patches": ("sample slides.csv --out pcam", 1, "sampling.json: exists"),
    "scan an empty text": ('scan "" --out h.zarr', 2, "'SLIDE...': an empty text; expected a path"),
    "scan into an empty text": ('scan s.tif --out ""', 2, "'--out': an empty text; expected a path"),
    "summary of an empty text": ('summary ""', 2, "'FOLDER': an empty text; expected a path"),
    "scan by an empty model": ('scan s.tif --model "" --out h.zarr', 2, "'--model': an empty text; exp"),
    "write to an empty text": ('tissue s.tif --out ""', 2, "'--out': an empty text; expected a path"),
    "scan by options with an empty text": ("scan s.tif --config empty.toml", 1, 'empty.toml: out = "": an empty text; exp'),
    "write to a stream": ("tissue s.tif --out -", 2, "'--out': - is no stream here; expected a path; a file of that name"),
    "scan a stream": ("scan - --out h.zarr", 2, "'SLIDE...': - is no stream here"),
    "view an address": (
        "view https://me:secret@a.b/h.zarr?key=secret",
        1,
        "https://a.b/h.zarr: an address; expected a path on a disk",
    ),
    "scan with a mask at an address": (
        "scan s.tif --out h.zarr --tissue-mask https://me:secret@a.b/m.png?key=secret",
        1,
        "https://a.b/m.png: an address; expected a path on a disk",
    ),
    "scan with a model at an address": (
        "scan s.tif --out h.zarr --model s3://me:secret@b/m?key=secret",
        1,
        "s3://b/m: an address; expected a path on a disk",
    ),
    "scan a mangled address": (
        "scan https:/me:secret@a.b/s.tif?key=secret --out h.zarr",
        1,
        "https://a.b/s.tif: an address that was made a path; expected it as text",
    ),
    "scan by a table that names an address": (
        "scan --manifest address.csv --out h",
        1,
        "annotations: there is no file https://a.b/a.xml",
    ),
    "evaluate on an address": ("evaluate default s3://b/p.h5", 1, "s3://b/p.h5: an address; expected a path on a disk"),
    "train to an address": ("train patches --out gs://b/m.safetensors", 1, "gs://b/m.safetensors: an address; expected a path"),
    "overlay of nothing": ("overlay none.zarr --out o.png", 1, "none.zarr: no such store"),
    "export of a map by thresholds": (
        "export other.zarr --out o.ome.tif --threshold 0.9",
        2,
        "threshold 0.9: ome-tiff has none",
    ),
    "export of lesions from least": ("export other.zarr --out o.geojson --least 0.4", 2, "least 0.4: qupath has none"),
    "demo of no seed": ("demo --seed -1 --out d", 2, "-1 is not in the range x>=0"),
    "fit a score by no seed": ("fit-score maps --labels labels.csv --out s.json --seed -1", 2, "-1 is not in the range x>=0"),
    "overlay of several heatmaps": (
        "overlay maps other.zarr --out o.png",
        2,
        "--out o.png: one file for 2 heatmaps; expected {name} in it, such as --out '{name}.png'",
    ),
    "score of a slide": ("score s.tif", 1, "s.tif: not a folder; expected a heatmap from 'wsi-meta scan'"),
    "view of a slide": ("view s.tif", 1, "s.tif: not a folder; expected a heatmap from 'wsi-meta scan'"),
    "overlay into a folder": ("overlay other.zarr --out sub/", 1, "sub/: a folder; expected the name of a file"),
    "lesions into one file twice": ("lesions other.zarr --out a.csv --detections a.csv", 1, "a.csv: is to be written "),
    "export into a file of another ending": ("export other.zarr --as qupath --out x.csv", 1, "x.csv: ending '.csv'; expected"),
    "lesions into a folder": ("lesions other.zarr --out l.csv/", 1, "l.csv/: a folder; expected the name of a file"),
    "overlay to nowhere": ("overlay other.zarr --out /dev/null", 1, "/dev/null: "),
    "overlay of an unknown kind": ("overlay other.zarr --out o.xyz", 1, "o.xyz: "),
    "froc of nothing": ("froc none patches", 1, "none: "),
    "stage of nothing": ("stage none.csv", 1, "none.csv: "),
    "score of nothing": ("score none.zarr", 1, "none.zarr: no such store"),
    "score by nothing": ("score other.zarr --score-model none.json", 1, "none.json: "),
    "lesions of nothing": ("lesions none.zarr", 1, "none.zarr: no such store"),
    "check of nothing": ("check none.zarr", 1, "none.zarr: no such store"),
    "info of nothing": ("info none", 1, "none: no such file; expected a slide, a model file or a heatmap"),
    "info of a missing slide": ("info none.tif", 1, "none.tif: no such file"),
    "info of a folder of heatmaps": ("info maps", 1, "maps: a folder of heatmaps; name one of them, such as maps/a.zarr"),
    "info of another folder": ("info empty", 1, "empty: a directory; expected a slide, a model file or a heatmap"),
    "score of a folder": ("score empty", 1, "empty: no heatmap in this folder; expected"),
}
"""Command, exit code, and what its line begins with."""


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, float]]:
    """What a process that cannot import torch says to all of them."""
    folder = tmp_path_factory.mktemp("refusals")
    write_slide(folder / "s.tif", texture(300, 400))
    write_store(folder / "other.zarr", np.full((4, 5), 0.25, np.float32))
    Image.fromarray(np.full((30, 900), 255, np.uint8)).save(folder / "mask.png")
    (folder / "empty.tif").touch()
    (folder / "cut.tif").write_bytes((folder / "s.tif").read_bytes()[:-20_000])
    (folder / "empty.toml").write_text('out = ""\n')
    (folder / "address.csv").write_text("slide,annotations\ns.tif,https://me:secret@a.b/a.xml?key=secret\n")
    (folder / "labels.csv").write_text("slide,label\n" + "x" * 2000)
    (folder / "slides.csv").write_text("slide,annotations\ns.tif,\n")
    (folder / "meta.csv").write_text("slide,stain\ns.tif,HE\n")
    (folder / "empty").mkdir()
    (folder / "loop.zarr").symlink_to("loop.zarr")
    (folder / "maps").mkdir()
    write_store(folder / "maps" / "a.zarr", np.full((4, 5), 0.25, np.float32))
    (folder / "pcam").mkdir()
    (folder / "pcam" / "sampling.json").write_text("{}")
    for label in "01":
        (folder / "patches" / "train" / label).mkdir(parents=True)
        Image.fromarray(texture(96, 96)).save(folder / "patches" / "train" / label / "a.png")
    weights = {"fc.weight": np.zeros((1, 8), np.float32)}
    save_file(weights, folder / "foreign.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "foreign.safetensors").read_bytes()[:-10])
    (folder / "net.pth").touch()
    torch.save({"fc.weight": torch.zeros(1, 8)}, folder / "pickle.pth")
    card = ModelCard().to_dict() | {"thresholds": {"default": 2}}
    save_file(weights, folder / "bad.safetensors", metadata={"wsi_meta": json.dumps(card)})
    before = _contents(folder)
    commands = json.dumps([shlex.split(words) for words, _, _ in REFUSALS.values()])
    surroundings = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        check=False,
        cwd=folder,
        env=surroundings,
        input=commands,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    after = _contents(folder)
    assert {path: after.get(path) for path in before} == before
    assert {path.name for path in set(after) - set(before)} <= {"scans"}, "nothing but a batch's folder is left behind"
    return {name: tuple(found) for name, found in zip(REFUSALS, json.loads(done.stdout), strict=True)}


@pytest.mark.parametrize("name", REFUSALS)
def test_it_is_refused_in_one_line_without_torch(name: str, told: dict[str, tuple[int, str, float]]) -> None:
    _, expected_code, expected = REFUSALS[name]
    code, stderr, _ = told[name]
    lines = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    assert code == expected_code, stderr
    assert len(lines) == 1, stderr
    assert expected in lines[0]
    assert "is imported" not in stderr
    assert "secret" not in stderr


def test_refusals_are_quick(told: dict[str, tuple[int, str, float]]) -> None:
    """The first few also import what the others need."""
    assert np.median([seconds for _, _, seconds in told.values()]) < 0.25
