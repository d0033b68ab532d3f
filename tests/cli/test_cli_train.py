from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from json_output import result_of
from PIL import Image
from tiny import TINY, logits_of_auc, script, use_parts

from wsi_meta.challenges.camelyon16 import froc
from wsi_meta.challenges.score_fitting import fit_score
from wsi_meta.challenges.staging import stage
from wsi_meta.cli import main
from wsi_meta.datasets.sampling import sample
from wsi_meta.demo.demo import run_demo
from wsi_meta.errors import DataError
from wsi_meta.evaluation.calibrate import calibrate
from wsi_meta.evaluation.evaluate import evaluate
from wsi_meta.heatmaps.lesions import find_lesions
from wsi_meta.heatmaps.score_model import score_heatmap
from wsi_meta.metadata import info
from wsi_meta.models.card import read_card
from wsi_meta.pictures.overlay import draw_overlay
from wsi_meta.scanning.scan import scan
from wsi_meta.training.recipe import RECIPES, Recipe
from wsi_meta.training.train import train

HERE = ["--device", "cpu", "--precision", "fp32", "--workers", "0"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refusal(*arguments: str | Path) -> str:
    """The one line with which a command fails on bad input: the last on stderr, after bars and notes."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    *before, line = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert not any("Error" in text or "Traceback" in text for text in before)
    return line


def write_classes(folder: Path, n: tuple[int, int] = (2, 2)) -> Path:
    for number in range(sum(n)):
        place = folder / ("0" if number < n[0] else "1")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (96, 96), (40 * number, 90, 120)).save(place / f"{number}.png")
    return folder


# --- help


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_command(flag: str) -> None:
    result = run(flag)

    assert result.exit_code == 0
    assert all(f"\n  {name} " in result.stdout for name in ("train", "evaluate", *main.commands))


# --- commands say what the library says

ONLY_IN_PYTHON = {"progress", "side_px", "block_px", "scheduler", "predictor"}
"""Options of the library that no command has."""


OF_THE_COMMAND = {"as_json", "config", "everything", "log_file", "log_json", "quiet", "verbose"}
"""Options of a command that say how it tells its result and its progress, or where the others come from."""

WHO_SCANS = ("gpus", "scheduler", "scheduler_file", "shard", "stage", "stage_budget")
"""Options of ``scan`` that come to one scheduler, or belong to a batch."""


def options_of(command: str, *required: str) -> dict[str, Any]:
    """What a command takes its options for where only those it must have are given; all but those, ``--json`` and the like."""
    context = main.commands[command].make_context(command, list(required))
    options = [one.name for one in context.command.params if isinstance(one, click.Option) and not one.required]
    return {str(name): context.params[str(name)] for name in options if name not in OF_THE_COMMAND}


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


@pytest.mark.parametrize(
    ("command", "function", "required"),
    [
        ("calibrate", calibrate, "default data --out m.safetensors"),
        ("evaluate", evaluate, "default data"),
        ("fit-score", fit_score, "scans --labels labels.csv --out score.json"),
        ("froc", froc, "detections truth"),
        ("info", info, "slide.tif"),
        ("lesions", find_lesions, "h.zarr"),
        ("overlay", draw_overlay, "h.zarr --out o.png"),
        ("sample", sample, "slides.csv --out patches"),
        ("scan", scan, "slide.tif --out h.zarr"),
        ("score", score_heatmap, "h.zarr"),
        ("stage", stage, "nodes.csv"),
    ],
)
def test_a_command_has_the_librarys_options_and_defaults(command: str, function: Callable[..., Any], required: str) -> None:
    expected = {name: value for name, value in defaults(function).items() if name not in ONLY_IN_PYTHON}
    if "model" in expected:
        assert expected["model"] is None
        expected["model"] = "default"  # both stand for the embedded model

    options = options_of(command, *required.split())
    if command == "scan":  # one of two outputs; a command's own; where slides are looked for
        for name in ("out", "out_dir", "retry_crashed", "dry_run", "manifest", "recursive", "extensions", *WHO_SCANS):
            options.pop(name)
    assert options == expected


def test_demo_has_the_librarys_defaults() -> None:
    options = options_of("demo")
    options.pop("out")

    assert options == {name: value for name, value in defaults(run_demo).items() if name not in ONLY_IN_PYTHON}


def call_of(function: Callable[..., Any], *arguments: str) -> dict[str, Any]:
    """The values with which a command calls a function of the library; the call is broken off before its first line.

    A profiler looks on: nothing is put in the function's place.
    """
    calls = []

    def break_off(frame: FrameType, event: str, _value: Any) -> None:
        if event == "call" and frame.f_code is inspect.unwrap(function).__code__:
            calls.append(dict(frame.f_locals))
            raise DataError("far enough")

    sys.setprofile(break_off)
    try:
        told = refusal(*arguments)
    finally:
        sys.setprofile(None)
    assert "far enough" in told
    (call,) = calls
    return call


def test_train_has_the_librarys_defaults(patch_folder: Path, tmp_path: Path) -> None:
    one, two, out = write_classes(tmp_path / "one"), patch_folder, tmp_path / "m.safetensors"
    called = call_of(train, "train", str(one), str(two), "--out", str(out))

    given = {"data": (one, two), "out": out}
    assert called == given | defaults(train) | {"recipe": RECIPES["strong"], "progress": True}


def test_train_passes_every_option_on(patch_folder: Path, tmp_path: Path) -> None:
    weights, out = tmp_path / "w.pth", tmp_path / "m.safetensors"
    weights.touch()
    recipe = replace(
        RECIPES["strong"],
        epochs=7,
        head_epochs=2,
        freeze="layer3",
        batch_size=5,
        lr=0.25,
        lr_loaded=0.125,
        lr_decay=0.5,
        mosaics=0.375,
        consistency=1.25,
        teacher=0.5,
        ema_epochs=1.5,
        label_smoothing=0.2,
        clip_norm=2.5,
        batchnorm="frozen",
        patience=9,
        augmentation=RECIPES["strong"].augmentation.without("stain", "jpeg"),
        seed=11,
    )
    words = "--epochs 7 --head-epochs 2 --freeze layer3 --batch-size 5 --lr 0.25 --lr-loaded 0.125 --lr-decay 0.5 --seed 11"
    more = "--mosaics 0.375 --ema-epochs 1.5 --label-smoothing 0.2 --clip-norm 2.5 --batchnorm frozen --patience 9"
    rest = f"--without stain --without jpeg --init {weights} --device cpu --precision bf16 --workers 3 --overwrite"
    flags = "--consistency 1.25 --teacher 0.5 --resume --keep-checkpoint --drop-duplicates"

    called = call_of(train, "train", str(patch_folder), "--out", str(out), *f"{words} {more} {rest} {flags}".split())

    assert called.pop("recipe") == recipe
    assert called == {
        "data": (patch_folder,),
        "out": out,
        "init": str(weights),
        "drop_duplicates": True,
        "device": "cpu",
        "precision": "bf16",
        "workers": 3,
        "resume": True,
        "keep_checkpoint": True,
        "tensorboard": None,
        "overwrite": True,
        "progress": True,
    }


def test_train_takes_what_is_not_given_from_the_named_recipe(patch_folder: Path, tmp_path: Path) -> None:
    strong = RECIPES["strong"]

    def recipe_of(words: str) -> Recipe:
        called = call_of(train, "train", str(patch_folder), "--out", str(tmp_path / "m.safetensors"), *words.split())
        recipe = called["recipe"]
        assert isinstance(recipe, Recipe)
        return recipe

    assert recipe_of("--recipe strong") == recipe_of("") == strong
    fewer = replace(strong, epochs=4, freeze="stem", consistency=0.5, augmentation=strong.augmentation.without("gain", "jpeg"))
    words = "--epochs 4 --freeze stem --recipe strong --consistency 0.5 --without gain --without jpeg"
    assert recipe_of(words) == fewer
    assert recipe_of("--recipe light --without gain") == Recipe()


def test_the_help_shows_what_the_usual_recipe_sets() -> None:
    shown = {option.name: option.default for option in main.commands["train"].params}

    recipe = vars(RECIPES["strong"])
    assert {name: shown[name] for name in recipe if name in shown} == {name: recipe[name] for name in recipe if name in shown}


def test_evaluate_passes_every_option_on(patch_folder: Path, model_file: Path, tmp_path: Path) -> None:
    words = (
        f"--split train --out {tmp_path / 'report'} --tta --shifts --device cpu --precision bf16 --workers 3 --batch-size 5"
        " --overwrite"
    )

    assert call_of(evaluate, "evaluate", str(model_file), str(patch_folder), *words.split()) == {
        "model": str(model_file),
        "data": (patch_folder,),
        "split": "train",
        "out": tmp_path / "report",
        "tta": True,
        "shifts": True,
        "device": "cpu",
        "precision": "bf16",
        "workers": 3,
        "batch_size": 5,
        "overwrite": True,
        "progress": True,
    }


# --- results


def test_evaluate_prints_a_line_for_each_figure(model_file: Path, patch_folder: Path) -> None:
    result = run("evaluate", model_file, patch_folder, "--batch-size", "8", *HERE)

    assert result.exit_code == 0
    figures = dict(line.split(": ") for line in result.stdout.splitlines())
    assert figures["n"] == "8"
    assert {"auc", "accuracy"} <= set(figures)
    assert 0 <= float(figures["auc"]) <= 1


def test_train_prints_what_the_card_says(patch_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not figures that were judged on the patches that the calibration was fitted on."""
    use_parts(monkeypatch, TINY)
    out = tmp_path / "m.safetensors"

    printed = run(
        "train",
        patch_folder,
        "--out",
        out,
        "--init",
        "none",
        "--recipe",
        "light",
        "--epochs",
        "1",
        "--batch-size",
        "4",
        *HERE,
        "--json",
    )

    result, card = result_of(printed.stdout), read_card(out)
    assert {name: result[name] for name in card.metrics} == card.metrics
    assert (result["dense"], result["int8"]) == (card.dense, card.prefers_int8)


# --- bad input


def test_train_on_bad_data_names_the_place(tmp_path: Path) -> None:
    out: tuple[str | Path, ...] = ("--out", tmp_path / "m.safetensors", "--init", "none", *HERE)
    wrong_size = write_classes(tmp_path / "wrong", (3, 3))
    Image.new("RGB", (50, 96)).save(wrong_size / "1" / "9.png")
    no_image = write_classes(tmp_path / "none", (3, 3))
    (no_image / "0" / "9.jpg").write_text("no image")

    assert "9.png: 50x96 px" in refusal("train", wrong_size, *out)
    assert "9.jpg: does not decode" in refusal("train", no_image, *out)
    assert "3 tumor and 0 normal patches" in refusal("train", write_classes(tmp_path / "single", (0, 3)), *out)
    assert "do not fill one batch" in refusal("train", write_classes(tmp_path / "few", (3, 3)), *out)
    assert not (tmp_path / "m.safetensors").exists()


def test_train_refuses_an_init_that_is_none(patch_folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pth"
    torch.save({"weights": torch.zeros(3)}, bad)
    out: tuple[str | Path, ...] = ("--out", tmp_path / "m.safetensors", "--batch-size", "8", *HERE)

    assert "none of its 1 tensors fits" in refusal("train", patch_folder, "--init", bad, *out)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def test_train_ends_in_one_line_when_the_loss_is_no_number(
    patch_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, [float("nan")] * 2, [])

    result = run("train", patch_folder, "--out", tmp_path / "m.safetensors", "--init", "none", "--batch-size", "8", *HERE)

    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: the loss became nan")
    assert "Traceback" not in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"m.augmented.png", "m.checkpoint"}


def test_a_training_that_stops_early_says_why(patch_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--init", "none", "--batch-size", "8", "--mosaics", "0", "--epochs", "4", "--patience", "1"]
    script(monkeypatch, [0.6, 0.6, 0.5, 0.5], [logits_of_auc(12), logits_of_auc(12, 3)])
    shown = run("train", patch_folder, "--out", tmp_path / "m.safetensors", *words, *HERE)
    script(monkeypatch, [0.6, 0.6, 0.5, 0.5], [logits_of_auc(12), logits_of_auc(12, 3)])
    printed = run("train", patch_folder, "--out", tmp_path / "n.safetensors", *words, *HERE, "--json")

    assert (shown.exit_code, printed.exit_code) == (0, 0)
    reason = result_of(printed.stdout)["stopped"]
    assert reason.startswith("stopped early: the validation loss has not come below")
    assert f"stopped: {reason}" in shown.stdout.splitlines()
    assert reason in shown.stderr.splitlines()


def test_resume_without_an_unfinished_training_is_one_line(patch_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    out.write_text("finished")

    assert "its training is finished" in refusal("train", patch_folder, "--out", out, "--resume")
    out.with_suffix(".checkpoint").write_text("damaged")
    words = ("--init", "none", "--batch-size", "8", *HERE)
    assert "m.checkpoint: not a checkpoint" in refusal("train", patch_folder, "--out", out, "--resume", *words)
    assert "go on with --resume, start anew with --overwrite" in refusal("train", patch_folder, "--out", out, *words)
    assert out.read_text() == "finished"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: fork beside torch's threads
def test_an_image_that_fails_to_decode_midway_is_one_line(model_file: Path, tmp_path: Path, workers: int) -> None:
    data = write_classes(tmp_path / "data")
    path = data / "1" / "2.png"
    path.write_bytes(path.read_bytes()[:-40])

    result = run("evaluate", model_file, data, "--batch-size", "4", *HERE, "--workers", str(workers))

    assert result.exit_code == 1
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert f"Error: {path}: does not decode" in last
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        "train",
        "train data",
        "train --out m.safetensors",
        "train data --out m.safetensors --epochs 0",
        "train data --out m.safetensors --epochs many",
        "train data --out m.safetensors --batch-size 1",
        "train data --out m.safetensors --lr 0",
        "train data --out m.safetensors --freeze layer9",
        "train data --out m.safetensors --workers -1",
        "train data --out m.safetensors --precision fp8",
        "train data --out m.safetensors --dropout 0.5",
        "train data --out m.safetensors --lr nan",
        "train data --out m.safetensors --lr inf",
        "train data --out m.safetensors --lr 1e7",
        "train data --out m.safetensors --lr-loaded nan",
        "train data --out m.safetensors --lr-decay 2",
        "train data --out m.safetensors --mosaics 1.5",
        "train data --out m.safetensors --mosaics nan",
        "train data --out m.safetensors --mosaics 0.6",
        "train data --out m.safetensors --label-smoothing 0.95",
        "train data --out m.safetensors --ema-epochs inf",
        "train data --out m.safetensors --batchnorm off",
        "train data --out m.safetensors --patience -1",
        "train data --out m.safetensors --without colour",
        "train data --out m.safetensors --recipe best",
        "train data --out m.safetensors --consistency -1",
        "train data --out m.safetensors --seed -1",
        "train data --out m.safetensors --seed 4294967296",
        "evaluate",
        "evaluate default",
        "evaluate default data --split all",
        "evaluate default data --batch-size 0",
        "evaluate default data --threshold 0.3",
        "scan s.tif",
        "scan --out x.zarr",
        "scan s.tif --out x.zarr --stride 20",
        "scan s.tif --out x.zarr --stride 128",
        "scan s.tif --out x.zarr --mode psychic",
        "overlay x.zarr --out x.png --alpha 2",
        "overlay x.zarr --out x.png --layer status",
        "diagnose",
    ],
)
def test_wrong_usage_exits_2(arguments: str) -> None:
    result = run(*arguments.split())

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage:" in result.stderr
    assert "Traceback" not in result.stderr
