"""``wsi-meta score`` and ``wsi-meta fit-score``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from wsi_meta.cli import options

__all__ = ["fit_score", "score"]


@click.command(epilog=options.example("wsi-meta score heat.zarr"))
@click.argument("heatmaps", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.score_model_option
@options.as_json_option
def score(heatmaps: tuple[Path, ...], score_model: Path | None, as_json: bool) -> None:
    """Score slides from their heatmaps, and print the features of each map."""
    from wsi_meta.heatmaps.score_model import score_heatmap

    scores = [asdict(score_heatmap(heatmap, score_model=score_model)) for heatmap in heatmaps]
    options.print_results(scores, as_json=as_json)


@click.command("fit-score", epilog=options.example("wsi-meta fit-score scans/ --labels labels.csv --out score.json"))
@click.argument("scans", type=click.Path(path_type=Path))
@click.option("--labels", required=True, type=click.Path(path_type=Path), help="CSV slide,label and, where known, patient.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--seed", default=0, show_default=True, help="Seed of the cross-validation's parts.")
@options.overwrite_option
@options.as_json_option
def fit_score(scans: Path, labels: Path, out: Path, seed: int, overwrite: bool, as_json: bool) -> None:
    """Fit a score model to the heatmaps in the folder SCANS; its AUC comes from cross-validation over patients."""
    from wsi_meta.heatmaps.score_model import fit_score as fit

    options.print_result(asdict(fit(scans, labels, out=out, seed=seed, overwrite=overwrite)), as_json=as_json)
