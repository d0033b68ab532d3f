"""What is done with a model file: ``evaluate``, ``calibrate``, ``import-model`` and ``export-model``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from wsi_meta.cli import options, running

__all__ = ["calibrate", "evaluate", "export_model", "import_model"]


Command = Callable[..., Any]


def computing_options(command: Command) -> Command:
    """Add how a model is computed on patches, and what becomes of the result."""
    added = (options.batch_size_option, options.workers_option, options.device_option, options.precision_option)
    for option in reversed((*added, options.overwrite_option, options.as_json_option)):
        command = option(command)
    return command


def fitting_options(command: Command) -> Command:
    """Add what a model is fitted to labelled patches by."""
    prior = options.NumberRange(0, 1, min_open=True, max_open=True)
    command = click.option("--prior", type=prior, help="Share of tumor to expect in use.")(computing_options(command))
    splits = click.Choice(["train", "valid", "test"])
    return click.option("--split", type=splits, help="Default: valid, or the only one there is.")(command)


@click.command(
    cls=options.CommandWithViews, epilog=options.example("wsi-meta evaluate default pcam/ --split valid --out report/")
)
@click.argument("model", type=options.FILE_OR_WORD)
@click.argument("data", nargs=-1, required=True, type=options.PATH)
@click.option("--split", type=click.Choice(["train", "valid", "test"]), help="Default: test, else valid, else all.")
@click.option("--out", type=options.PATH, help="Folder to make: report.html and its figures as PNG.")
@options.tta_option
@click.option(
    "--shifts",
    is_flag=True,
    help="Also show each patch in 24 other stains, colours, sharpnesses and pixel sizes; takes 25 times as long.",
)
@computing_options
@running.with_logs
def evaluate(model: str, data: tuple[Path, ...], as_json: bool, **settings: Any) -> None:
    """Measure how well MODEL (a file, or 'default') classifies the labelled patches in DATA.

    Figures come with 95 % bootstrap intervals: by patient or slide where these are known, else by patch; of fewer than about
    10 they are too narrow. ece_noise is the calibration error (ece) that chance alone would show. With --out also as a report
    that shows the patches it was most wrong about. With --shifts both also tell what the stains and scanners of other
    laboratories would cost, in sentences, the worst first.
    """
    from wsi_meta.evaluation.evaluate import evaluate as evaluate_model

    with options.tuned_memory(settings["device"]):
        evaluation = evaluate_model(model, data, progress=True, **settings)
    options.print_result(evaluation.to_dict() if as_json else evaluation.to_lines(), as_json=as_json)


@click.command(epilog=options.example("wsi-meta calibrate default my_patches/ --prior 0.05 --out mine.safetensors"))
@click.argument("model", type=options.FILE_OR_WORD)
@click.argument("data", nargs=-1, required=True, type=options.PATH)
@click.option("--out", required=True, type=options.NEW_FILE, help="Model file to write (.safetensors).")
@fitting_options
@running.with_logs
def calibrate(model: str, data: tuple[Path, ...], out: Path, as_json: bool, **settings: Any) -> None:
    """Fit the probabilities and thresholds of MODEL (a file, or 'default') to labelled patches that it has not seen.

    The weights do not change. With --prior, probabilities are fitted to this share of tumor instead of the share in DATA.
    """
    from wsi_meta.evaluation.calibrate import calibrate as calibrate_model

    with options.tuned_memory(settings["device"]):
        card = calibrate_model(model, data, out, progress=True, **settings).to_dict()
    result = {"model": str(out)} | {name: card[name] for name in ("calibration", "thresholds", "metrics")}
    options.print_result(result, as_json=as_json)


@click.command(
    "import-model",
    epilog=options.example(
        "wsi-meta import-model resnet50-pcam.pth --data pcam/ --out tia.safetensors\n"
        "  wsi-meta import-model my.pth --pixels imagenet --mpp 0.972 --data pcam/ --out mine.safetensors"
    ),
)
@click.argument("file", type=options.PATH)
@click.option("--data", multiple=True, required=True, type=options.PATH, help="Folder of labelled patches; repeatable.")
@click.option("--out", required=True, type=options.NEW_FILE, help="Model file to write (.safetensors).")
@click.option(
    "--naming",
    type=click.Choice(["auto", "torchvision", "timm", "tiatoolbox"]),
    default="auto",
    show_default=True,
    help="Whose names the weights have; timm's resnet50 has torchvision's.",
)
@click.option(
    "--pixels",
    type=click.Choice(["imagenet", "0..1", "-1..1"]),
    help="What the network was shown: pixels less ImageNet's mean, or of 0..1 or -1..1.  [TIAToolbox: 0..1]",
)
@click.option("--mean", type=float, nargs=3, help="Mean of pixels of 0..1 in red, green and blue, instead of --pixels.")
@click.option("--std", type=float, nargs=3, help="Their standard deviation.")
@click.option(
    "--mpp", type=options.NumberRange(0, min_open=True), help="Micrometres per pixel of its patches.  [TIAToolbox: 1.0]"
)
@click.option("--tumor-class", metavar="0|1|NAME", help="Which of two logits is tumor.  [1, or the name that says so]")
@click.option("--config", type=options.PATH, help="A TorchScript's config.json; default: the one beside it.")
@fitting_options
@running.with_logs
def import_model(file: Path, data: tuple[Path, ...], out: Path, as_json: bool, **settings: Any) -> None:
    """Make a model file of a ResNet50 of another tool, calibrated and measured on labelled patches in DATA.

    FILE holds weights (.pth, .pt, .safetensors; code in them is never run) under torchvision's, timm's or TIAToolbox's names,
    or is a TorchScript of WSInfer's zoo with its config.json. Patches are 96 px.
    """
    from wsi_meta.exchange.importing import import_model as import_file

    with options.tuned_memory(settings["device"]):
        card = import_file(file, data, out, progress=True, **settings)
    result = {"model": str(out), "imported": card.training["imported"], "dense": card.dense, "int8": card.allows_int8}
    fields = card.to_dict()
    result |= {name: fields[name] for name in ("preprocessing", "calibration", "thresholds", "metrics")}
    options.print_result(result, as_json=as_json)


@click.command("export-model", epilog=options.example("wsi-meta export-model default --out for_wsinfer/"))
@click.argument("model", type=options.FILE_OR_WORD)
@click.option("--out", required=True, type=options.PATH, help="Folder to write into; made if it does not exist.")
@click.option(
    "--format",
    type=click.Choice(["torchscript", "onnx"]),
    default="torchscript",
    show_default=True,
    help="torchscript: with WSInfer's config.json. onnx: takes pixels; its metadata say what it is.",
)
@options.overwrite_option
@options.as_json_option
@running.with_logs
def export_model(model: str, out: Path, as_json: bool, **settings: Any) -> None:
    """Write MODEL (a file, or 'default') for other programs; the softmax of its two logits is the calibrated probability.

    What was written is loaded again, and its logits are compared with the model's own.
    """
    from wsi_meta.exchange.exporting import export_model as export_file

    options.print_result(export_file(model, out, **settings).to_dict(), as_json=as_json)
