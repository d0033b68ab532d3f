"""The commands: what they print, how they fail. What they do is tested where it is done."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import weakref
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch
from children import start_child
from click.testing import CliRunner, Result
from json_output import result_of, results_of
from slide_files import damage_tile, texture, write_slide

import wsi_meta
from wsi_meta.__main__ import run as start
from wsi_meta.cli import main
from wsi_meta.cli.running import describe_error
from wsi_meta.cohorts.copies import BUDGET_GB
from wsi_meta.datasets.layouts import SPLITS
from wsi_meta.errors import SlideReadError
from wsi_meta.exchange.exporting import FORMATS as MODEL_FORMATS
from wsi_meta.exchange.foreign import NAMINGS, PIXELS
from wsi_meta.exports.export import FORMATS
from wsi_meta.inference.device import PRECISIONS
from wsi_meta.pictures.colours import LAYERS
from wsi_meta.readers.choice import READERS
from wsi_meta.scanning.options import COMPILED, MODES
from wsi_meta.training.recipe import CHOICES, RECIPES
from wsi_meta.words import printable

FULL = "Error: stdout: cannot be written (No space left on device); make room and run it again"
ALL = ("--tissue-mask", "none", "--stride", 96, "--batch-size", 4)


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "node.tif", texture(200, 260))


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _one_line_error(result: Result) -> str:
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.output
    return errors[0]


OWNERS: dict[str, Iterable[str]] = {
    "mode": MODES,
    "reader": READERS,
    "precision": PRECISIONS,
    "train precision": [name for name in PRECISIONS if name != "int8"],
    "compiled": COMPILED,
    "layer": LAYERS,
    "as": FORMATS,
    "by": ("patient", "slide"),
    "recipe": RECIPES,
    "freeze": CHOICES["freeze"],
    "batchnorm": CHOICES["batchnorm"],
    "without": [name.removesuffix("_px").replace("_", "-") for name in vars(RECIPES["strong"].augmentation)],
    "split": SPLITS,
    "naming": NAMINGS,
    "pixels": PIXELS,
    "format": MODEL_FORMATS,
}
"""What an option may be, by its name: as the part of the library says that takes it, and that the command imports late."""
CHOSEN = [
    (command, max(option.opts, key=len).lstrip("-"), option.type)
    for command in main.commands
    for option in main.commands[command].params
    if isinstance(option.type, click.Choice)
]


@pytest.mark.parametrize(("command", "option", "kind"), CHOSEN, ids=[f"{command}-{option}" for command, option, _ in CHOSEN])
def test_an_option_may_be_what_the_library_takes(command: str, option: str, kind: click.Choice[str]) -> None:
    assert sorted(kind.choices) == sorted(OWNERS.get(f"{command} {option}", OWNERS[option]))


def test_the_budget_of_copies_is_the_librarys() -> None:
    (option,) = (option for option in main.commands["scan"].params if option.name == "stage_budget")
    assert option.default == BUDGET_GB


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = _run(command, "--help")
    assert result.exit_code == 0
    assert f"Example:\n    wsi-meta {command}" in result.output
    assert "--json" in result.output


def test_every_option_has_help() -> None:
    for command in main.commands.values():
        for option in command.params:
            if option.param_type_name == "option":
                assert getattr(option, "help", None), f"{command.name} {option.opts}"


def test_help_and_import_load_nothing_heavy() -> None:
    code = (
        "import sys, wsi_meta; from wsi_meta.cli import main; main(['--help'], standalone_mode=False); "
        "heavy = {'torch', 'numpy', 'zarr', 'dask', 'distributed', 'openslide', 'matplotlib', 'skimage'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Scan slides:" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_installed_command_starts_with_the_collector_as_it_was() -> None:
    """While it loads there is no garbage; a scan that follows makes some."""
    installed = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    code = (
        "import atexit, gc, importlib, sys\n"
        "atexit.register(lambda: print('collects', gc.isenabled(), gc.get_freeze_count() > 10_000))\n"
        f"module, name = {installed['wsi-meta'].split(':')}\n"
        "getattr(importlib.import_module(module), name)()\n"
    )

    def run(*words: str) -> tuple[int, str]:
        end = subprocess.run([sys.executable, "-c", code, *words], check=False, capture_output=True, text=True)
        return end.returncode, end.stdout + end.stderr

    code_of_version, version = run("--version")
    assert (code_of_version, version) == (0, f"wsi-meta, version {wsi_meta.__version__}\ncollects True True\n")
    assert run("info", "nowhere.zarr")[0] == 1
    assert run("nothing-such")[0] == 2


def test_public_names_are_there() -> None:
    public = set(dir(wsi_meta))
    assert {
        "scan",
        "open_slide",
        "find_tissue",
        "load_model",
        "Heatmap",
        "score_slide",
        "draw_overlay",
        "train",
        "evaluate",
    } <= public
    stub = Path(wsi_meta.__file__).with_suffix(".pyi").read_text()
    for name in [line.split(" as ")[1] for line in stub.splitlines() if " as " in line]:
        assert getattr(wsi_meta, name).__doc__, name
        assert name in public


def test_scan_overlay_info(tmp_path: Path, slide_file: Path, model_file: Path) -> None:
    out = tmp_path / "heat.zarr"
    result = _run("scan", slide_file, "--out", out, "--model", model_file, "--stride", 96, "--batch-size", 4, "--json")
    assert result.exit_code == 0, result.output
    facts = result_of(result.stdout)
    assert facts["complete"] is True
    assert 0 <= facts["score"] <= 1
    assert facts["heatmap"] == str(out)
    assert _run("scan", slide_file, "--out", out, "--model", model_file, "--stride", 96).exit_code == 0
    assert "holds another scan" in _one_line_error(_run("scan", slide_file, "--out", out, "--model", model_file))
    result = _run("overlay", out, "--slide", slide_file, "--out", tmp_path / "o.png", "--max-side", 300)
    assert result.stdout.strip() == f"overlay: {tmp_path / 'o.png'}"
    assert (tmp_path / "o.png").stat().st_size > 1000
    for path, kind in [(slide_file, "slide"), (out, "heatmap"), (model_file, "model")]:
        assert result_of(_run("info", path, "--json").stdout)["kind"] == kind
        assert f"kind: {kind}" in _run("info", path).stdout


def test_test_time_averaging(tmp_path: Path, model_file: Path) -> None:
    out, picture = tmp_path / "heat.zarr", tmp_path / "o.png"
    slide_file = write_slide(tmp_path / "two-cells.tif", texture(96, 192))
    common = ("scan", slide_file, "--model", model_file, *ALL)
    assert _run(*common, "--out", out, "--tta", "--uncertainty").exit_code == 0
    facts = result_of(_run("info", out, "--json").stdout)
    assert (facts["tta"], facts["uncertainty"]) == (True, True)
    draw = ("--out", picture, "--max-side", 300, "--layer", "uncertainty")
    assert _run("overlay", out, "--slide", slide_file, *draw).stdout.strip() == f"overlay: {picture}"
    picture.unlink()
    assert _run(*common, "--out", tmp_path / "plain.zarr").exit_code == 0
    facts = result_of(_run("info", tmp_path / "plain.zarr", "--json").stdout)
    assert (facts["tta"], facts["uncertainty"]) == (False, False)
    told = _one_line_error(_run("overlay", tmp_path / "plain.zarr", *draw))
    assert "plain.zarr: holds no uncertainty; expected a heatmap from 'wsi-meta scan --tta --uncertainty'" in told
    assert not picture.exists()


def test_several_slides(tmp_path: Path, slide_file: Path, model_file: Path) -> None:
    other = write_slide(tmp_path / "other.tif", texture(200, 200, seed=2))
    result = _run("scan", slide_file, other, "--out", tmp_path / "all", "--model", model_file, *ALL, "--json")
    assert result.exit_code == 0
    assert [Path(row["heatmap"]).name for row in results_of(result.stdout)] == ["node.zarr", "other.zarr"]
    words = ["scan", slide_file, other, "--out", tmp_path / "all", "--model", model_file, *ALL]
    with redirect_stdout(None), pytest.raises(SystemExit) as ended:  # as after >&-
        main([*map(str, words)])
    assert ended.value.code == 0
    result = _run("scan", slide_file, tmp_path / "gone.tif", "--out", tmp_path / "all", "--model", model_file, *ALL)
    assert result.exit_code == 1
    assert "no such file" in result.stderr


def test_unreadable_cells_are_a_failure_that_keeps_the_store(tmp_path: Path, model_file: Path) -> None:
    path = write_slide(tmp_path / "torn.tif", texture(256, 512))
    damage_tile(path, 0)
    result = _run("scan", path, "--out", tmp_path / "h.zarr", "--model", model_file, *ALL, "--json")
    assert "cells could not be read" in _one_line_error(result)
    assert result_of(result.stdout)["complete"] is False
    assert (tmp_path / "h.zarr").is_dir()


@pytest.mark.parametrize("error", [SlideReadError, KeyboardInterrupt, RuntimeError, MemoryError])
def test_what_failed_work_held_is_let_go_before_the_command_ends(error: type[BaseException]) -> None:
    """Threads that end with the interpreter may abort it: those of torchrun's processes did."""
    held: list[weakref.ref[torch.Tensor]] = []

    @click.command
    def fail() -> None:
        something = torch.zeros(1)
        held.append(weakref.ref(something))
        raise error("s.tif: bad")

    # the class of the group of all commands, with one that fails
    done = CliRunner().invoke(type(main)("wsi-meta", {"fail": fail}), ["fail"])

    assert done.exit_code == (130 if error is KeyboardInterrupt else 1)
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert done.exc_info is not None, "the end of the command is still at hand"
    assert held[0]() is None


def test_the_console_script_runs() -> None:
    script = Path(sys.executable).with_name("wsi-meta")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout.strip() == f"wsi-meta, version {wsi_meta.__version__}"


@pytest.mark.shared_data
def test_shared_bad_slides(tmp_path: Path, shared_data: Path, model_file: Path) -> None:
    for name in ("broken.svs", "plain_not_pyramidal.tif", "camelyon16_overview_28um.dcm"):
        error = _one_line_error(
            _run("scan", shared_data / "slides" / name, "--out", tmp_path / "h.zarr", "--model", model_file)
        )
        assert name in error
        assert not (tmp_path / "h.zarr").exists()


# --- how a command ends


def _end(error: BaseException, *arguments: str) -> Result:
    """What comes of a command that raises an error."""

    @click.command
    def fail() -> None:
        raise error

    group = type(main)("wsi-meta", {"fail": fail}, params=main.params)
    return CliRunner().invoke(group, [*arguments, "fail"])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory; close other programs, or lower --workers or --batch-size"),
        (MemoryError("Unable to allocate 9 TiB"), "out of memory (Unable to allocate 9 TiB); close"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "out of memory (CUDA out of memory. Tried); close"),
        (RuntimeError("one\ntwo"), "RuntimeError (one two); 'wsi-meta --debug ...' shows where it came from"),
        (OverflowError(), "OverflowError; 'wsi-meta --debug"),
        (UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"), "UnicodeEncodeError ('utf-8' codec"),
        (KeyError("x"), "KeyError ('x'); "),
        (OSError(28, "No space left on device", "s.zarr"), "s.zarr: No space left on device; make room and"),
        (OSError(36, "File name too long", "x\n.zarr"), r"x\n.zarr: File name too long; choose a shorter name"),
        (PermissionError(13, "Permission denied", "a.tif"), "a.tif: Permission denied"),
        (SlideReadError("a\n\x1b[2J.tif: no such file"), r"a\n\x1b[2J.tif: no such file"),
        (BrokenPipeError(32, "Broken pipe"), "[Errno 32] Broken pipe"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_raised_becomes_one_line(error: Exception, told: str) -> None:
    line = _one_line_error(_end(error))

    assert line.startswith(f"Error: {told}")
    assert line.isprintable()


def test_debug_shows_the_traceback_before_the_line() -> None:
    shown = _end(RuntimeError("here\x1b[1m"), "--debug")

    assert shown.exit_code == 1
    *trace, last = shown.stderr.splitlines()
    assert trace[0] == "Traceback (most recent call last):"
    assert trace[-1] == r"RuntimeError: here\x1b[1m"
    assert any(Path(__file__).name in line for line in trace)
    assert last.startswith("Error: RuntimeError (here")


def _shell(line: str, **variables: object) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("wsi-meta")
    known = os.environ | {"WSI_META": str(script)} | {name: str(value) for name, value in variables.items()}
    return subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, env=known, check=False)


def test_a_reader_that_has_enough_ends_a_command_quietly(model_file: Path) -> None:
    """``head -c1`` may end before or after all is written; ``true`` has ended by then."""
    for reader in ("head -c1", "true", "(exec 0<&-; sleep 2)"):
        done = _shell(f'"$WSI_META" info "$MODEL" | {reader}', MODEL=model_file)
        assert done.stderr == ""
        assert done.returncode in (0, 1)


def test_an_output_that_cannot_be_written_is_one_line(model_file: Path) -> None:
    done = _shell('"$WSI_META" info "$MODEL" > /dev/full', MODEL=model_file)

    assert done.stderr.splitlines() == [FULL]
    assert done.returncode == 1


def test_a_name_that_stdout_cannot_show_is_escaped(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "\u65e5.tif", texture(300, 300))
    done = _shell('"$WSI_META" info "$SLIDE"', SLIDE=slide, PYTHONIOENCODING="latin1")
    assert (done.returncode, "\\u65e5.tif" in done.stdout, done.stderr) == (0, True, "")


def test_a_version_that_cannot_be_written_is_one_line() -> None:
    done = _shell('"$WSI_META" --version > /dev/full')
    assert (done.returncode, done.stderr) == (1, f"{FULL}\n")


def test_a_working_folder_that_is_gone_is_told(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    line = 'cd "$HERE" && rmdir "$HERE" && "$WSI_META" export-model "$MODEL" --out exported'
    done = _shell(line, MODEL=model_file, HERE=tmp_path / "here")
    told = "Error: the folder in which this command runs is not there any more; change to one that is, and run it again"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, told)


def test_ctrl_c_while_the_command_loads_ends_as_later(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "wsi_meta.cli", Interrupted("wsi_meta.cli"))
    monkeypatch.setattr(gc, "disable", lambda: None)
    with pytest.raises(SystemExit) as end:
        start()
    assert end.value.code == 130
    assert capsys.readouterr().err == f"Error: {describe_error(KeyboardInterrupt())}\n"


def test_ctrl_c_exits_130(tmp_path: Path, model_file: Path) -> None:
    """The signal comes after the first note, with some seconds of work ahead."""
    slide, log = write_slide(tmp_path / "node.tif", texture(1400, 1400)), tmp_path / "log"
    arguments = ["scan", slide, "--out", tmp_path / "h.zarr", "--model", model_file, "--device", "cpu", "--mode", "patch"]
    arguments += ["--batch-size", 4]  # a batch in work is not interrupted

    def hearing() -> None:
        # as Python starts; a shell's background jobs, and so the tests among them, are deaf to it
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main([str(argument) for argument in arguments], "wsi-meta")

    child = start_child(hearing, log)
    while child.poll() is None and not (log.exists() and "\n" in log.read_text()):
        time.sleep(0.01)
    child.interrupt()
    ended, errors = child.wait(), log.read_text()

    assert ended == 130, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("Error: interrupted; run again, a scan goes on where it was")


def test_names_of_any_bytes_reach_the_terminal_escaped(tmp_path: Path, slide_file: Path, model_file: Path) -> None:
    name = b"caf\xe9 two\nlines \x1b]0;title\x07\x1b[2J a$^$b"
    slide = tmp_path / os.fsdecode(name + b".tif")
    slide.write_bytes(slide_file.read_bytes())
    gone = tmp_path / os.fsdecode(name + b" gone.tif")
    out, picture = tmp_path / os.fsdecode(name + b".zarr"), tmp_path / os.fsdecode(name + b".png")
    commands: list[list[object]] = [
        ["scan", slide, "--out", out, "--model", model_file, "--device", "cpu", *ALL],
        ["overlay", out, "--out", picture, "--max-side", "300"],
        ["info", slide],
        ["info", gone],
    ]

    def run_all() -> None:
        """One after the other in one process, which spares each what the one before has imported."""
        for arguments in commands:
            with pytest.raises(SystemExit) as ended:
                main([str(argument) for argument in arguments], "wsi-meta")
            sys.stderr.flush()
            print(f"ended {ended.value.code}")

    code, shown = start_child(run_all, tmp_path / "log").wait(), (tmp_path / "log").read_text("utf-8")
    assert code == 0, shown
    parts = re.split(r"^ended (\d+)\n", shown, flags=re.MULTILINE)
    assert parts[1::2] == ["0", "0", "0", "1"], shown
    assert "Traceback" not in shown
    assert all(line.replace("\r", "").isprintable() for line in shown.split("\n")), ascii(shown)
    assert all(printable(slide.stem) in part for part in parts[:-1:2])
