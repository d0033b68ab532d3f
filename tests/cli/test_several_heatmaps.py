"""``lesions``, ``export``, ``overlay`` and ``score`` of several heatmaps: a file for each, and a line for each that fails."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from json_output import results_of
from slide_files import texture, write_ome_zarr, write_slide
from stores import write_store

from wsi_meta.cli import main
from wsi_meta.cli.running import over_heatmaps
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.slides.slide import open_slide

COMMANDS = {
    "lesions": ("lesions --out", ".csv"),
    "detections": ("lesions --detections", ".csv"),
    "export": ("export --out", ".geojson"),
    "overlay": ("overlay --max-side 100 --out", ".png"),
}


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """Two heatmaps in a folder."""
    (tmp_path / "maps").mkdir()
    for name in ("a.1", "b"):
        write_store(tmp_path / "maps" / f"{name}.zarr", np.full((3, 4), 0.9, np.float32))
    return tmp_path / "maps"


def run(command: str, *words: str | Path) -> Any:
    return CliRunner().invoke(main, [*command.split(), *map(str, words)])


@pytest.mark.parametrize(("command", "ending"), COMMANDS.values(), ids=COMMANDS)
def test_each_has_a_file(command: str, ending: str, maps: Path, tmp_path: Path) -> None:
    """Its folder is made, as that of several scans is, also where a link leads to it; a folder above it is not."""
    (tmp_path / "new").symlink_to("made")
    ended = run(command, tmp_path / "new" / f"{{name}}{ending}", maps, "--json")
    assert (ended.exit_code, len(results_of(ended.stdout))) == (0, 2), ended.output
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [f"a.1{ending}", f"b{ending}"]
    one = run(command, tmp_path / f"one-{{name}}{ending}", maps / "b.zarr")
    assert one.exit_code == 0, one.output
    assert (tmp_path / f"one-b{ending}").is_file()
    above = run(command, tmp_path / "x" / "y" / f"{{name}}{ending}", maps)
    assert (above.exit_code, above.stderr.count("Error: "), "make it first" in above.stderr) == (1, 1, True)


@pytest.mark.parametrize(("command", "ending"), COMMANDS.values(), ids=COMMANDS)
def test_one_file_for_several_is_refused(command: str, ending: str, maps: Path, tmp_path: Path) -> None:
    ended = run(command, tmp_path / f"o{ending}", maps)
    assert ended.exit_code == 2
    option = command.split()[-1]
    assert f"one file for 2 heatmaps; expected {{name}} in it, such as {option} '{tmp_path}/{{name}}{ending}'" in ended.stderr
    assert not (tmp_path / f"o{ending}").exists()


@pytest.mark.parametrize(("command", "ending"), COMMANDS.values(), ids=COMMANDS)
def test_one_that_fails_leaves_the_others(command: str, ending: str, maps: Path, tmp_path: Path) -> None:
    """One is torn, the file of one is there, one has the name of another."""
    out = tmp_path / "out"
    out.mkdir()
    write_store(maps / "c.zarr", np.full((3, 4), 0.9, np.float32))
    shutil.rmtree(maps / "c.zarr" / "0")
    (out / f"b{ending}").write_text("mine")
    other = shutil.copytree(maps / "a.1.zarr", tmp_path / "a.1.zarr")
    ended = run(command, out / f"{{name}}{ending}", maps, maps / "b.zarr", other, "--json")
    errors = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
    assert (ended.exit_code, len(results_of(ended.stdout)), len(errors)) == (1, 1, 3), ended.output
    assert f"{out}/b{ending}: exists" in errors[0]
    assert f"{maps}/c.zarr: " in errors[1]
    assert f"{other}: its {out}/a.1{ending} was that of {maps}/a.1.zarr; give it by itself" in errors[2]
    assert (out / f"b{ending}").read_text() == "mine"


def test_an_error_that_nobody_foresaw_leaves_the_others(maps: Path) -> None:
    def work(heatmap: Heatmap) -> dict[str, Any]:
        if heatmap.path.name == "a.1.zarr":
            raise ZeroDivisionError("of a library")
        return {"done": heatmap.path.name}

    @click.command()
    @click.option("--debug", is_flag=True)
    def command(debug: bool) -> None:
        del debug
        over_heatmaps([maps], work, as_json=False)

    ended = CliRunner().invoke(command)
    assert (ended.exit_code, ended.stdout) == (1, "done: b.zarr\n"), ended.output
    assert ended.stderr.startswith(f"Error: {maps}/a.1.zarr: ZeroDivisionError (of a library); 'wsi-meta --debug ...' shows")
    assert "Traceback" in CliRunner().invoke(command, ["--debug"]).stderr


def test_each_has_its_slide(tmp_path: Path) -> None:
    """In the folder that is given; one slide for several is refused, and what is wrong for one names it."""
    maps, slides, out = tmp_path / "maps", tmp_path / "slides", tmp_path / "out"
    maps.mkdir()
    slides.mkdir()
    for number, name in enumerate("ab"):
        slide = write_slide(slides / f"{name}.tif", texture(96, 128, seed=number))
        with open_slide(slide) as opened:
            write_store(maps / f"{name}.zarr", np.zeros((3, 4), np.float32), mpp=opened.mpp, slide=opened.fingerprint())
    for command, ending in [("overlay --max-side 100 --largest 2 --out", ".png"), ("export --out", ".groovy")]:
        assert run(command, out / f"{{name}}{ending}", maps, "--slide", slides).exit_code == 0
        one = run(command, out / f"{{name}}{ending}", maps, "--slide", slides / "a.tif")
        assert (one.exit_code, "one file for 2 heatmaps; expected a folder of their slides" in one.stderr) == (2, True)
    gone = run("overlay --out", tmp_path / "new" / "{name}.png", maps, "--slide", tmp_path / "gone")
    assert (gone.exit_code, "gone: no such folder; expected one with the slides of 2 heatmaps" in gone.stderr) == (1, True)
    assert not (tmp_path / "new").exists()
    lost = run("export --out", out / "{name}.groovy", maps, "--overwrite")
    assert (lost.exit_code, lost.stderr.count("Error: ")) == (2, 1), "the same is wrong for all"
    shutil.move(slides / "a.tif", tmp_path / "a.tif")
    sheet = run("overlay --max-side 100 --largest 2 --out", out / "{name}.png", maps, "--overwrite")
    assert (sheet.exit_code, f"Error: {maps}/b.zarr: a sheet of 2 lesions" in sheet.stderr) == (1, True)


def test_a_folder_in_which_nothing_was_written_is_not_left(maps: Path, tmp_path: Path) -> None:
    new = tmp_path / "new" / "{name}.csv"
    assert run("lesions --out", new, "--detections", new, maps).exit_code == 1
    assert not new.parent.exists()


OVER_A_FOLDER = {
    "check": ("check maps", 0, ""),
    "score": ("score maps", 0, ""),
    "lesions": ("lesions maps --out lesions.csv", 0, ""),
    "overlay": ("overlay maps --max-side 100 --out overlay.png", 0, ""),
    "export": ("export maps --out map.geojson", 0, ""),
    "view": ("view maps --static page", 0, ""),
    "summary": ("summary maps", 0, ""),
    "fit-score": ("fit-score maps --labels labels.csv --out score.json", 1, "0 patients in the smaller class"),
}
"""Command, exit code and error for a folder with one heatmap, whatever else lies there."""


@pytest.mark.parametrize(("command", "code", "told"), OVER_A_FOLDER.values(), ids=OVER_A_FOLDER)
def test_what_is_no_heatmap_is_passed_over_and_named_once(
    command: str, code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(_foreign(tmp_path / "maps" / "other.zarr").with_name("ours.zarr"), np.full((3, 4), 0.9, np.float32))
    write_ome_zarr(tmp_path / "maps" / "slide.ome.zarr", texture(128, 128))
    (tmp_path / "labels.csv").write_text("slide,label\nours,tumor\n")
    monkeypatch.chdir(tmp_path)
    ended = run(command)
    assert (ended.exit_code, told in ended.stderr) == (code, True), ended.output
    named = [line for line in ended.stderr.splitlines() if "other.zarr" in line]
    assert named == ["maps: passed over, since no heatmap from 'wsi-meta scan': other.zarr"]
    assert "slide.ome" not in ended.output


@pytest.mark.parametrize("command", [*(words.split()[0] for words, *_ in OVER_A_FOLDER.values()), "info"])
def test_what_is_no_heatmap_is_an_error_where_it_is_named(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _foreign(tmp_path / "maps" / "other.zarr")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.csv").write_text("slide,label\n")
    words = OVER_A_FOLDER.get(command, ("info maps",))[0]
    ended = run(words.replace("maps", "maps/other.zarr"))
    assert (ended.exit_code, "other.zarr" in ended.output) == (1, True), ended.output


def test_a_damaged_heatmap_is_never_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in [("cut", b"{"), ("lost", None), ("bare", b"{}")]:
        record = write_store(_folder(tmp_path / "maps") / f"{name}.zarr", np.full((3, 4), 0.9, np.float32)).path / "zarr.json"
        record.unlink()
        if content is not None:
            record.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    for command in ("check maps", "score maps", "summary maps"):
        ended = run(command)
        assert all(f"{name}.zarr" in ended.output for name in ("cut", "lost", "bare")), ended.output
        assert "passed over" not in ended.output


def test_slides_that_are_folders_are_no_folder_of_heatmaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ome_zarr(_folder(tmp_path / "maps") / "slide.ome.zarr", texture(128, 128))
    monkeypatch.chdir(tmp_path)
    assert run("info maps").stderr == "Error: maps: a directory; expected a slide, a model file or a heatmap\n"
    assert "no heatmap in this folder" in run("check maps").stderr


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def _foreign(path: Path) -> Path:
    """A zarr store of somebody else, in a folder of its own."""
    zarr.create_group(_folder(path.parent) / path.name, zarr_format=3, attributes={"x": 1})
    return path


def test_a_heatmap_that_is_given_twice_is_done_once(maps: Path) -> None:
    for command in ("check", "score"):
        assert len(results_of(run(command, maps / "b.zarr", maps, maps / "b.zarr", "--json").stdout)) == 2


def test_scores_of_a_folder(maps: Path) -> None:
    ended = CliRunner().invoke(main, ["score", str(maps), "--json"])
    assert [row["slide"] for row in results_of(ended.stdout)] == ["a.1", "b"]


@pytest.mark.parametrize(("value", "told"), [(2e-5, "2e-05"), (0.99997, "0.99997"), (0.123456, "0.1235")])
def test_no_score_is_rounded_to_certainty(tmp_path: Path, value: float, told: str) -> None:
    store = write_store(tmp_path / "a.zarr", np.full((5, 5), value, np.float32)).path
    for command in ("score", "info"):
        assert f"\nscore: {told}\n" in run(command, store).stdout
    assert f"threshold: {told}\n" in run("lesions", store, "--threshold", str(value)).stdout


@pytest.mark.parametrize("command", [("score",), ("lesions",), ("export", "--out", "{name}.geojson")])
def test_a_result_says_of_which_heatmap_it_is(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """Several slides may have one name."""
    monkeypatch.chdir(tmp_path)
    rows = results_of(run(command[0], *command[1:], maps, "--json").stdout)
    assert [row["heatmap"] for row in rows] == [str(maps / f"{name}.zarr") for name in ("a.1", "b")]
    if command == ("score",):
        assert f"heatmap: {maps / 'b.zarr'}\nslide: b\n" in run("score", maps / "b.zarr").stdout
