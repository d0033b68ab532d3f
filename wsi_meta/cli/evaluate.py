"""``wsi-meta evaluate`` and ``wsi-meta calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsi_meta.cli import options, running

__all__ = ["calibrate", "evaluate"]


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
@options.batch_size_option
@options.workers_option
@options.device_option
@options.precision_option
@options.overwrite_option
@options.as_json_option
@running.told
def evaluate(model: str, data: tuple[Path, ...], as_json: bool, **settings: Any) -> None:
    """Measure how well MODEL (a file, or 'default') classifies the labelled patches in DATA.

    Figures come with 95 % bootstrap intervals: by slide where slides are known, else by patch. With --out also as a report
    that shows the patches it was most wrong about. With --shifts both also tell what the stains and scanners of other
    laboratories would cost, in sentences, the worst first.
    """
    from wsi_meta.evaluation.evaluate import check_evaluation
    from wsi_meta.evaluation.evaluate import evaluate as evaluate_model

    check_evaluation(model, data, **{name: settings[name] for name in ("split", "out", "overwrite")})  # before torch
    with options.tuned_memory(settings["device"]):
        evaluation = evaluate_model(model, data, progress=True, **settings)
    options.print_result(evaluation.to_dict() if as_json else evaluation.to_lines(), as_json=as_json)


@click.command(epilog=options.example("wsi-meta calibrate default my_patches/ --prior 0.05 --out mine.safetensors"))
@click.argument("model", type=options.FILE_OR_WORD)
@click.argument("data", nargs=-1, required=True, type=options.PATH)
@click.option("--out", required=True, type=options.PATH, help="Model file to write (.safetensors).")
@click.option("--split", type=click.Choice(["train", "valid", "test"]), help="Default: valid, or the only one there is.")
@click.option("--prior", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Share of tumor to expect in use.")
@options.batch_size_option
@options.workers_option
@options.device_option
@options.precision_option
@options.overwrite_option
@options.as_json_option
@running.told
def calibrate(model: str, data: tuple[Path, ...], out: Path, as_json: bool, **settings: Any) -> None:
    """Fit the probabilities and thresholds of MODEL (a file, or 'default') to labelled patches that it has not seen.

    The weights do not change. With --prior, probabilities are fitted to this share of tumor instead of the share in DATA.
    """
    from wsi_meta.evaluation.calibrate import calibrate as calibrate_model
    from wsi_meta.evaluation.calibrate import check_calibration

    check_calibration(model, data, out, split=settings["split"], overwrite=settings["overwrite"])  # before torch
    with options.tuned_memory(settings["device"]):
        card = calibrate_model(model, data, out, progress=True, **settings).to_dict()
    result = {"model": str(out)} | {name: card[name] for name in ("calibration", "thresholds", "metrics")}
    options.print_result(result, as_json=as_json)
