"""``wsi-meta evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from wsi_meta.cli import options

__all__ = ["evaluate"]


@click.command(epilog=options.example("wsi-meta evaluate default pcam/ --split valid --out report/"))
@click.argument("model")
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["train", "valid", "test"]), help="Default: test, else valid, else all.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to make: report.html and its figures as PNG.")
@click.option("--tta", is_flag=True, help="Average over the eight views of each patch (eight times as long).")
@options.batch_size_option
@options.workers_option
@options.device_option
@options.precision_option
@options.overwrite_option
@options.as_json_option
def evaluate(
    model: str,
    data: tuple[Path, ...],
    split: str | None,
    out: Path | None,
    tta: bool,
    batch_size: int,
    workers: int,
    device: str,
    precision: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Tell how well MODEL (a file, or 'default') knows the labelled patches in DATA.

    Figures come with 95 % bootstrap intervals: by slide where slides are known, else by patch. With --out also as a report
    to look at, with the patches it was most wrong about.
    """
    from wsi_meta.evaluation.evaluate import evaluate as evaluate_model

    result = evaluate_model(
        model,
        data,
        split=split,
        out=out,
        tta=tta,
        device=device,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
        overwrite=overwrite,
        progress=True,
    )
    options.print_result(result.to_dict(), as_json=as_json)
