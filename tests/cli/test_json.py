"""One outline for what all commands print with ``--json``, of results and of failures; ``docs/json.md`` tells all of it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from json_output import PAGE, documented, failure_of, result_of, results_of
from slide_files import texture, write_slide
from stores import write_store

from wsi_meta.cli import main
from wsi_meta.evaluation.results import Evaluation
from wsi_meta.models.card import ModelCard
from wsi_meta.worklist.table import COLUMNS

LATIN = os.fsdecode(b"caf\xe9")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heatmaps with a lesion each, a slide, a table of nodes, and detections with their truth."""
    folder = tmp_path_factory.mktemp("json")
    probability = np.full((12, 10), 0.1, np.float32)
    probability[2:5, 3:7] = 0.99
    (folder / "scans").mkdir()
    for name in "ab":
        write_store(folder / "scans" / f"{name}.zarr", probability)
    write_slide(folder / "s.tif", texture(300, 400))
    (folder / "nodes.csv").write_text("patient,stage\n" + "".join(f"p_node_{number}.tif,macro\n" for number in range(5)))
    for place, text in (("found", "0.9,10,10\n"), ("truth", "<ASAP_Annotations/>")):
        (folder / place).mkdir()
        (folder / place / f"a.{'csv' if place == 'found' else 'xml'}").write_text(text)
    return folder


COMMANDS = {
    "tissue": "tissue s.tif",
    "summary": "summary scans",
    "check": "check scans",
    "view": "view scans/a.zarr --static page",
    "lesions": "lesions scans/a.zarr",
    "score": "score scans/a.zarr scans/b.zarr",
    "export": "export scans/a.zarr --out a.geojson --overwrite",
    "froc": "froc found truth",
    "stage": "stage nodes.csv",
}
"""Those that are quick. The tests of the others read what they print by the same functions."""


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_prints_is_on_the_page_and_the_other_way_round(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run = CliRunner().invoke(main, [*COMMANDS[name].split(), "--json"])
    assert run.exit_code == 0, run.output
    results = results_of(run.stdout)
    assert len(results) == (2 if name in ("summary", "check", "score") else 1)
    for field in documented(name) if name != "summary" else COLUMNS:  # its section is that of scan
        top = re.split(r"[.\[]", field)[0]
        assert all(top in result for result in results), f"{top} is not printed"


@pytest.mark.parametrize("words", ["info s.tif", "info default", "info scans/a.zarr"])
def test_info_prints_what_the_page_says(words: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert result_of(CliRunner().invoke(main, [*words.split(), "--json"]).stdout)["kind"]


def test_the_page_has_all_commands_in_their_order() -> None:
    assert re.findall(r"^## (\S+)$", PAGE.read_text(), re.MULTILINE) == list(main.commands)


def test_the_page_has_all_that_scans_and_evaluations_print() -> None:
    assert set(COLUMNS) <= documented("scan")
    figures = Evaluation.of(np.array([-1, 1], np.float32), np.array([0, 1], np.uint8), ModelCard()).to_dict()
    assert set(figures) <= documented("evaluate")


@pytest.mark.parametrize(
    ("words", "kind", "code", "told"),
    [
        ("lesions none.zarr", "HeatmapError", 1, "none.zarr: no such store; "),
        ("info none.tif", "SlideReadError", 1, "none.tif: no such file"),
        ("lesions scans/a.zarr --threshold 3", "OptionsError", 2, "3"),
        ("lesions scans/a.zarr --shape round", "OptionsError", 2, "--shape"),
        ("lesions https://a.b/h.zarr", "WsiMetaError", 1, "https://a.b/h.zarr: an address"),
    ],
)
def test_a_failure_is_json_too(
    words: str, kind: str, code: int, told: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run = CliRunner().invoke(main, [*words.split(), "--json"])
    error = failure_of(run.stdout)
    assert (error["kind"], error["exit_code"], run.exit_code) == (kind, code, code)
    assert told in error["message"]
    assert f"Error: {error['message']}" in run.stderr


def test_paths_that_are_no_text_are_file_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON with half of a character in it is refused or changed by other programs."""
    (tmp_path / LATIN).mkdir()
    store = write_store(tmp_path / LATIN / "a.zarr", np.full((3, 3), 0.5, np.float32)).path
    monkeypatch.chdir(tmp_path)
    told = result_of(CliRunner().invoke(main, ["check", f"{LATIN}/a.zarr", "--json"]).stdout)
    assert told["heatmap"] == store.as_uri()


def test_no_command_is_a_failure_without_a_name() -> None:
    run = CliRunner().invoke(main, ["scna", "--json"])
    assert json.loads(run.stdout)["command"] is None
    assert CliRunner().invoke(main, ["scna"]).stdout == ""


def test_json_behind_two_dashes_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(main, ["lesions", "--", "--json"])
    assert (run.stdout, run.stderr.startswith("Error: --json: no such store")) == ("", True)


# --- Python's words


@pytest.mark.parametrize(
    "words",
    [
        "lesions a.zarr --min_area 3",
        "fit_score a --labels b --out c",
        "export a.zarr --out x --as ome_zarr_0.4",
        "scan s.tif --tissue_mask none --out h",
    ],
)
def test_underscores_are_read_as_dashes(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(main, words.split())
    assert run.exit_code == 1, run.output  # the files are missing, no option is


@pytest.mark.parametrize(("words", "right"), [("scan s.tif --stride_px 32", "--stride"), ("export a.zarr --form asap", "--as")])
def test_a_word_of_python_is_answered_with_the_option(words: str, right: str) -> None:
    run = CliRunner().invoke(main, words.split())
    assert run.exit_code == 2
    assert run.stderr.rstrip().endswith(f"Did you mean '{right}'?"), run.stderr
