"""``wsi-meta score`` and ``wsi-meta fit-score``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from wsi_meta.cli import options

__all__ = ["fit_score", "score"]


@click.command(epilog=options.example("wsi-meta score heat.zarr"))
@click.argument("heatmaps", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model", type=click.Path(path_type=Path), help="File from fit-score; default: the score that needs no training."
)
@options.as_json_option
def score(heatmaps: tuple[Path, ...], model: Path | None, as_json: bool) -> None:
    """Score slides from their heatmaps, and tell what the score rests on."""
    from wsi_meta.heatmaps.score_model import score_heatmap

    options.print_results([asdict(score_heatmap(heatmap, model=model)) for heatmap in heatmaps], as_json=as_json)


@click.command("fit-score", epilog=options.example("wsi-meta fit-score scans/ --labels labels.csv --out score.json"))
@click.argument("scans", type=click.Path(path_type=Path))
@click.option("--labels", required=True, type=click.Path(path_type=Path), help="CSV slide,label and, where known, patient.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--seed", default=0, show_default=True, help="Of the cross-validation's parts.")
@options.overwrite_option
@options.as_json_option
def fit_score(scans: Path, labels: Path, out: Path, seed: int, overwrite: bool, as_json: bool) -> None:
    """Fit a slide score to the heatmaps in the folder SCANS; AUC by cross-validation over patients."""
    from wsi_meta.heatmaps.score_model import fit_score as fit

    options.print_result(asdict(fit(scans, labels, out=out, seed=seed, overwrite=overwrite)), as_json=as_json)
