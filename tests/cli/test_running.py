"""What a long command tells, and where; and the file of its options that it leaves and starts from."""

from __future__ import annotations

import json
import logging
import os
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from fakes import write_darkness_model
from json_output import result_of, results_of
from slide_files import damage_tile, texture, write_slide

from wsi_meta.cli import config, main, options, running
from wsi_meta.cohorts import batch
from wsi_meta.errors import OutputPathError
from wsi_meta.heatmaps.store import Heatmap

logger = logging.getLogger("wsi_meta")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_darkness_model(tmp_path_factory.mktemp("model") / "m.safetensors")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a slide a.tif in slides/: glass without tissue, so that no network runs."""
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "a.tif", np.full((100, 130, 3), 244, np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["scan", *map(str, arguments)])


def test_logs_hold_all_and_the_hosts_logging_is_as_it_was(folder: Path, model: Path) -> None:
    before = (list(logger.handlers), logger.level, list(logging.getLogger().handlers))
    (folder / "slides" / "bad.tif").write_text("no slide")
    write_slide(folder / "slides" / "a.tif", texture(100, 130))
    common = (
        "slides",
        "--out",
        "out",
        "--model",
        model,
        "--stride",
        96,
        "--batch-size",
        4,
        "--log-file",
        "log",
        "--log-json",
        "log.jsonl",
    )
    loud = run(*common, "-v")
    assert (list(logger.handlers), logger.level, list(logging.getLogger().handlers)) == before
    assert loud.exit_code == 1
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    named = [event["event"] for event in events if event["event"] != "message"]
    assert (named[0], named[-2:]) == ("run begun", ["run finished", "command failed"])
    assert sorted(named[1:-2]) == ["failed", "finished", "slide begun", "slide begun", "traceback"]
    assert "bad.tif: not a slide" in events[-1]["error"]
    assert [event["trace"][0] for event in events if "trace" in event] == ["Traceback (most recent call last):"]
    of_bad = [event for event in events if event.get("error_kind")]
    assert [(event["event"], event["slide"], event["error_kind"]) for event in of_bad] == [
        ("traceback", "slides/bad.tif", "SlideReadError"),
        ("failed", "slides/bad.tif", "SlideReadError"),
    ]
    text = (folder / "log").read_text()
    assert text.count("Z ERROR slides/bad.tif: not a slide") == 2, "when it happened, and as the command's end"
    assert "Traceback (most recent call last):" in loud.stderr
    assert loud.stderr.count("\nError: slides/bad.tif: not a slide") == 2, "when it happened, and as the end"
    closing = next(event["text"] for event in events if event["event"] == "run finished")
    assert closing in loud.stderr
    assert closing.startswith("2 slides in ")
    where = "look: wsi-meta view out\nworklist: out/report/index.html\ntable: out/summary.csv\n"
    assert where in loud.stderr[loud.stderr.index(closing) :]

    (folder / "slides" / "bad.tif").unlink()
    quiet = run(*common, "--quiet", "--overwrite")
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert "score" in quiet.stdout
    assert len((folder / "log").read_text()) > len(text)
    assert run(*common, "-q", "-v").exit_code == 2


def test_what_tifffile_says_is_not_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Python shows warnings for which nobody has a handler, such as those of a library, as they are."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    tifffile = logging.getLogger("tifffile")
    with running.console():
        tifffile.warning("<tifffile.TiffPages @720> invalid offset")
    assert capsys.readouterr().err == ""
    tifffile.warning("<tifffile.TiffPages @720> invalid offset")
    assert "invalid offset" in capsys.readouterr().err


def test_a_scan_says_where_it_is_seen(folder: Path, model: Path) -> None:
    (folder / "my scans").mkdir()
    common = ("slides/a.tif", "--model", model, "--stride", 96, "--device", "cpu")
    latin = os.fsdecode(b"caf\xe9.zarr")  # a shell takes the word back
    told = [run(*common, "--out", out).stderr.splitlines()[-1] for out in ("my scans/a.zarr", latin, "slides/a.zarr")]
    assert told[0] == "look: wsi-meta view 'my scans/a.zarr' --slide slides/a.tif"
    assert told[1:] == [r"look: wsi-meta view $'caf\xe9.zarr' --slide slides/a.tif", "look: wsi-meta view slides/a.zarr"]
    assert run(*common, "--out=-a.zarr").stderr.splitlines()[-1] == "look: wsi-meta view ./-a.zarr --slide slides/a.tif"
    again = run(*common, "--out", latin, "--json")
    assert result_of(again.stdout)["heatmap"] == (folder / latin).as_uri(), "as the table has it"
    assert f"heatmap: {(folder / latin).as_uri()}\n" in run(*common, "--out", latin).stdout


def test_slides_with_a_score_have_not_failed(folder: Path, model: Path) -> None:
    for name in "bc":
        damage_tile(write_slide(folder / "slides" / f"{name}.tif", texture(320, 320)), 3)
    (folder / "slides" / "d.tif").write_bytes(b"no slide")
    ended = run("slides", "--out", "out", "--model", model, "--stride", 96, "--device", "cpu", "-q")
    assert ended.stderr.splitlines()[-1] == "Error: of 4 slides 1 failed, 2 incomplete"


def test_results_are_printed_where_their_table_cannot_be_written(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mf.csv").write_text("slide,label\nslides/a.tif,macro\nslides/bad.tif,micro\n")
    common = ("--manifest", "mf.csv", "--out", "out", "--model", model, "--stride", 96, "--device", "cpu", "--json", "-q")
    with monkeypatch.context() as patched:
        patched.setattr(batch, "add_row", lambda *_: (_ for _ in ()).throw(OutputPathError("no room")))
        first = run(*common, "--overwrite")
    told = "Error: out: the table lacks 2 rows (no room); when that is mended, run the same scan again without --overwrite: "
    assert (first.exit_code, first.stderr.splitlines()[-1].startswith(told)) == (1, True)
    assert [(row["label"], row["complete"]) for row in results_of(first.stdout)] == [("macro", True), ("micro", False)]
    assert results_of(run(*common).stdout) == results_of(first.stdout)
    kept = json.loads((folder / "out" / "summary.json").read_text())["slides"]
    assert [(Path(row["slide"]).name, row["label"]) for row in kept] == [("a.tif", "macro"), ("bad.tif", "micro")]


def test_two_logs_of_one_name_are_refused(folder: Path) -> None:
    ended = run("slides", "--out", "out", "--log-file", "l.log", "--log-json", f"../{folder.name}/l.log")
    assert (ended.exit_code, "is to be written twice, as --log-file and --log-json" in ended.stderr) == (1, True)
    assert not (folder / "l.log").exists()


@pytest.mark.parametrize("option", ["--log-file", "--log-json"])
def test_a_log_and_an_output_of_one_name_are_refused(folder: Path, option: str) -> None:
    for out in ("--out", "--out-dir"):
        ended = run("slides", out, "l.zarr", option, f"../{folder.name}/l.zarr")
        assert (ended.exit_code, f"is to be written twice, as {option} and {out};" in ended.stderr) == (1, True), ended.stderr
    assert not (folder / "l.zarr").exists()


def test_ctrl_c_and_what_nobody_foresaw_are_logged(folder: Path) -> None:
    for error, told, traced in (
        (KeyboardInterrupt(), "interrupted; run again", False),
        (RuntimeError("x"), "RuntimeError (x)", True),
    ):

        @click.command
        @running.with_logs
        def fail(error: BaseException = error) -> None:
            raise error

        group = type(main)("wsi-meta", {"fail": fail})
        ended = CliRunner().invoke(group, ["fail", "--log-file", "log"])
        assert ended.stderr.count("Error: ") == 1
        last = (folder / "log").read_text().split("Z ERROR ")[-1]
        assert last.startswith(told)
        assert ("Traceback" in last) == traced


def test_a_run_starts_again_from_the_options_that_it_left(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("slides", "--out", "out", "--model", model.name, "--stride", 96, "--reader", "openslide", "--tta", 2)
    (folder / model.name).symlink_to(model)
    assert run(*given, "--dry-run").exit_code == 0
    assert not (folder / "out").exists(), "a dry run writes nothing"
    first = run(*given)
    assert first.exit_code == 0, first.output
    kept = (folder / "out" / "run.toml").read_text()
    facts = tomllib.loads(kept)
    assert facts["slides"] == [str(folder / "slides")]
    assert (facts["out"], facts["model"]) == (str(folder / "out"), str(folder / model.name))
    assert (facts["stride"], facts["reader"], facts["tta"], facts["uncertainty"]) == (96, "openslide", 2, False)
    assert "overwrite" not in facts

    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    again = run("--config", "../out/run.toml")
    assert again.exit_code == 0, again.output
    assert "nothing was left to scan" in again.stderr
    assert [path.name for path in (folder / "out").glob("*.toml")] == ["run.toml"], "the same options are kept once"
    other = run("--config", "../out/run.toml", "--out-dir", "here", "--stride", 64, "--tta")
    assert other.exit_code == 0, other.output
    identity = Heatmap.open("here/a.zarr").record.identity
    assert (identity.grid.stride_px, identity.views) == (64, 8), "what the command line says wins"
    assert tomllib.loads(Path("here/run.toml").read_text())["out-dir"] == str(folder / "elsewhere" / "here")


@click.command
@click.argument("slides", nargs=-1, type=options.SLIDE)
@click.option("--manifest", type=options.PATH)
@click.option("--out", type=options.PATH, required=True)
@click.option("--workers", type=click.IntRange(0), default=2)
@config.configurable
def work(slides: tuple[Path, ...], manifest: Path | None, out: Path, workers: int) -> None:
    """A command that keeps its options as a scan does."""

    @contextmanager
    def nothing(_own: dict[str, Any]) -> Iterator[Any]:
        yield None

    out.mkdir(exist_ok=True)
    with config.keeping_config(nothing, out, alone=False)({}):
        click.echo(f"{[path.name for path in slides]} {manifest and manifest.name} {workers}")


def run_work(*arguments: object) -> Result:
    return CliRunner().invoke(work, list(map(str, arguments)))


def test_nothing_that_lies_there_is_replaced(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "run.toml").write_text("mine")
    for more in ((), ("--workers", 1), ("--workers", 1), ("--workers", 3)):
        assert run_work("slides", "--out", "out", *more).exit_code == 0
    assert (folder / "out" / "run.toml").read_text() == "mine"
    workers = {path.name: tomllib.loads(path.read_text())["workers"] for path in (folder / "out").glob("run-*.toml")}
    assert workers == {"run-2.toml": 2, "run-3.toml": 1, "run-4.toml": 3}
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["run-2.toml", "run-3.toml", "run-4.toml", "run.toml"]


def test_several_at_once_keep_the_same_once(folder: Path) -> None:
    (folder / "out").mkdir()
    with ThreadPoolExecutor(4) as pool:
        contexts = [work.make_context("work", ["a.tif", "--out", "out", "--workers", str(3 + n % 2)]) for n in range(8)]
        list(pool.map(work.invoke, contexts))
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["run-2.toml", "run.toml"]


def test_what_to_scan_is_of_the_file_or_of_the_command_line(folder: Path) -> None:
    (folder / "a.toml").write_text("slides = ['a.tif', 'b.tif']\nout = 'out'\nworkers = 0\n")
    (folder / "m.toml").write_text("manifest = 'm.csv'\nout = 'out'\n")
    assert run_work("--config", "a.toml").output == "['a.tif', 'b.tif'] None 0\n"
    assert run_work("c.tif", "--config", "a.toml", "--workers", 4).output == "['c.tif'] None 4\n"
    assert run_work("--manifest", "n.csv", "--config", "a.toml").output == "[] n.csv 0\n"
    assert run_work("--config", "m.toml").output == "[] m.csv 2\n"
    assert run_work("c.tif", "--config", "m.toml").output == "['c.tif'] None 2\n"


def test_names_that_toml_cannot_hold_as_they_are_are_kept_and_found_again(folder: Path) -> None:
    for number, name in enumerate(("caf\udce9 %.tif", 'caf\u00e9 "x" \x7f\n\\.tif')):
        out = folder / f"out{number}"
        assert run_work(name, "--out", out).exit_code == 0
        (kept,) = tomllib.loads((out / "run.toml").read_text("utf-8"))["slides"]
        assert kept == (folder / name).as_uri()
        assert run_work("--config", out / "run.toml").output == f"{[name]} None 2\n"
        assert run_work(kept, "--out", f"FILE://localhost{out}").output == f"{[name]} None 2\n"
        assert len(list(out.iterdir())) == 1, "options that were read back are the same options"


def test_one_slide_keeps_its_options_beside_its_store(folder: Path, model: Path) -> None:
    common = ("--model", model, "--stride", 96)
    assert run("gone.tif", "--out", "h.zarr", *common).exit_code == 1
    assert not (folder / "h.zarr.run.toml").exists(), "where there are no results there is nothing to keep"
    assert run("slides/a.tif", "--out", "h.zarr", *common).exit_code == 0
    assert run("--config", "h.zarr.run.toml").exit_code == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("out = ", "run.toml: no TOML (Invalid value"),
        ("\xe9", "run.toml: no TOML ("),
        ("outt = 'x'", "run.toml: outt is no option of scan; expected some of slides, manifest,"),
        ("config = 'x'", "run.toml: config is no option of scan"),
        ("[out]\nx = 1", 'run.toml: out = {"x": 1}: expected a text in quotes'),
        ("workers = '2'", 'run.toml: workers = "2": expected a whole number'),
        ("out = 'a'\nslides = [\"a\\u0000.tif\"]", 'run.toml: slides = ["a\\u0000.tif"]: holds a character of number 0'),
        ("out = 'file://x'", 'run.toml: out = "file://x": file://x: no file of this machine; expected '),
        ("out = 'file://x/a%00'", 'run.toml: out = "file://x/a%00": file://x/a%00: no file of this machine;'),
        (f"mpp = {10**400}", "run.toml: mpp = 1000"),
        ("workers = true", "run.toml: workers = true: expected a whole number"),
        ("workers = -1", "run.toml: workers = -1: -1 is not in the range"),
        ("mpp = '0.25'", 'run.toml: mpp = "0.25": expected a number'),
        ("mode = 'psychic'", "run.toml: mode = \"psychic\": 'psychic' is not one of"),
        ("stride = 20", "run.toml: stride = 20: 20 is not a multiple of 8"),
        ("slides = 'a.tif'", 'run.toml: slides = "a.tif": expected a list, each a text in quotes'),
        ("slides = [1]", "run.toml: slides = [1]: expected a list"),
        ("overwrite = 'yes'", 'run.toml: overwrite = "yes": expected true or false'),
        ("tta = 3", "run.toml: tta = 3: 3 is not 2, 4 or 8"),
        ("out-dir = 'x'\nout_dir = 'y'", "run.toml: out-dir stands there twice"),
        (None, "run.toml: cannot be read (No such file or directory)"),
    ],
)
def test_a_wrong_file_of_options_is_one_line(folder: Path, text: str | None, told: str) -> None:
    if text is not None:
        (folder / "run.toml").write_text(text, "latin-1")
    ended = run("slides", "--out", "out", "--config", "run.toml")
    assert ended.exit_code == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"Error: {told}"), line
    assert not (folder / "out").exists()


def test_paths_in_a_file_count_from_it(folder: Path, model: Path) -> None:
    (folder / "conf").mkdir()
    text = f"slides = ['../slides/*.tif']\nout_dir = '../out'\nmodel = '{model}'\nstride = 96\ntta = false\nrecursive = true\n"
    (folder / "conf" / "mine.toml").write_text(text, "utf-8-sig")  # as editors on Windows do
    ended = run("--config", "conf/mine.toml")
    assert ended.exit_code == 0, ended.output
    assert Heatmap.open(folder / "out" / "a.zarr").finished
