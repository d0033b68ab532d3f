"""Every example in the documentation runs, or says why not; every command in it exists, with its options."""

from __future__ import annotations

import contextlib
import io
import shlex
import shutil
from pathlib import Path

import click
import pytest
from pages import PAGES, Example, examples_of, name_of
from slide_files import texture, write_slide

from wsi_meta import scan
from wsi_meta.cli import main
from wsi_meta.models.model import model_path
from wsi_meta.pictures.overlay import draw_overlay

EXAMPLES = [example for page in PAGES for example in examples_of(page)]
RUN = [
    page
    for page in PAGES
    if any(not example.left_out and example.language in ("bash", "python") for example in examples_of(page))
]
SQUARE = """<ASAP_Annotations><Annotations><Annotation Name="0" PartOfGroup="Tumor"><Coordinates>
<Coordinate Order="0" X="10" Y="10"/><Coordinate Order="1" X="90" Y="10"/><Coordinate Order="2" X="90" Y="90"/>
</Coordinates></Annotation></Annotations></ASAP_Annotations>"""
NODES = "patient,stage\n" + "".join(f"patient_000_node_{node}.tif,negative\n" for node in range(5))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, few_patches: Path) -> Path:
    """What the pages take for granted: a slide and its map, a folder of slides, patches, annotations; never change it."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in ("slides", "annotations"):
        (folder / name).mkdir()
    for number, name in enumerate(("slide.tif", "slides/a.tif")):
        write_slide(folder / name, texture(96, 96, number))
    with contextlib.chdir(folder):
        scan("slide.tif", "heat.zarr")
    (folder / "model.safetensors").symlink_to(model_path("default"))
    (folder / "annotations" / "slide.xml").write_text(SQUARE)
    (folder / "nodes.csv").write_text(NODES)
    (folder / "stage_labels.csv").write_text(NODES.replace("patient,stage\n", "patient,stage\npatient_000.zip,pN0\n"))
    shutil.copytree(few_patches, folder / "pcam")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_a_page_exist_with_their_options(page: Path) -> None:
    for example in examples_of(page):
        for name, *arguments in example.commands if example.language == "bash" else ():
            if any("$" in word for word in arguments) or "--config" in arguments:  # of which the values are not here
                known = {option for parameter in main.commands[name].params for option in parameter.opts}
                assert {word for word in arguments if word.startswith("--")} <= known, arguments
            else:
                main.commands[name].make_context(name, arguments)


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        main.commands["scan"].make_context("scan", ["slide.tif", "--out", "heat.zarr", "--no-such"])


@pytest.fixture
def _small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an example does not say how large a picture is, it is small, for time."""
    assert draw_overlay.__kwdefaults__ is not None
    monkeypatch.setitem(draw_overlay.__kwdefaults__, "max_side", 300)
    (option,) = (option for option in main.commands["overlay"].params if option.name == "max_side")
    monkeypatch.setattr(option, "default", 300)


@pytest.mark.usefixtures("_small_pictures")
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_examples_of_a_page_run_in_their_order(
    page: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "desk"
    shutil.copytree(prepared, folder, symlinks=True)
    if page.name == "README.md":  # which shows no way to them
        (folder / "detections").mkdir()
        (folder / "detections" / "slide.csv").touch()
    monkeypatch.chdir(folder)
    for example in examples_of(page):
        if example.left_out:
            continue
        if example.language == "bash":
            _run_commands(example)
        elif example.language == "python":
            exec(compile(example.code, f"{page.name}", "exec"), {"__name__": "__main__"})


def test_blocks_that_are_not_run_are_known() -> None:
    """A language that no test runs needs a title that says so; what is output or a formula has no language, or is text."""
    for example in EXAMPLES:
        assert example.language in ("", "text", "bash", "python") or example.left_out, (example.page, example.code)


def _run_commands(example: Example) -> None:
    for line in example.lines:
        program, *arguments = shlex.split(line, comments=True)
        if [program, *arguments[:1]] == ["mkdir", "-p"]:
            Path(arguments[1]).mkdir(parents=True, exist_ok=True)
        else:
            assert program == "wsi-meta", f"{example.page}: not wsi-meta's: {line}"
            with contextlib.redirect_stdout(io.StringIO()):
                main.main(arguments, standalone_mode=False)
