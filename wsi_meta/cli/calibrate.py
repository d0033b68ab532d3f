"""``wsi-meta calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsi_meta.cli import options

__all__ = ["calibrate"]


@click.command(epilog=options.example("wsi-meta calibrate default my_patches/ --prior 0.05 --out mine.safetensors"))
@click.argument("model")
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Model file to write (.safetensors).")
@click.option("--split", type=click.Choice(["train", "valid", "test"]), help="Default: valid, or the only one there is.")
@click.option("--prior", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Share of tumor to expect in use.")
@options.batch_size_option
@options.workers_option
@options.device_option
@options.precision_option
@options.overwrite_option
@options.as_json_option
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
