"""``wsi-meta lesions``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsi_meta.cli import options

__all__ = ["lesions"]


@click.command(epilog=options.example("wsi-meta lesions heat.zarr --out lesions.geojson"))
@click.argument("heatmap", type=click.Path(path_type=Path))
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    help="Probability that all cells of a lesion have at least.  [model's default]",
)
@click.option(
    "--peak",
    type=click.FloatRange(0, 1, min_open=True),
    help="Probability that one of them has at least.  [model's specificity_99]",
)
@click.option("--min-area", type=click.FloatRange(0), default=0.0, show_default=True, help="Leave out smaller lesions, mm2.")
@click.option("--out", type=click.Path(path_type=Path), help="Table (.csv), or outlines for QuPath (.geojson).")
@click.option("--detections", type=click.Path(path_type=Path), help="CSV of peaks in Camelyon16's format, for froc.")
@options.overwrite_option
@options.as_json_option
def lesions(heatmap: Path, as_json: bool, **settings: Any) -> None:
    """Find the lesions of a heatmap: place, size, size class, probability.

    Positions are level-0 pixels of OpenSlide. Outlines for QuPath count from the corner of what QuPath shows of the slide, and
    the file says so.
    """
    from wsi_meta.heatmaps.lesions import find_lesions

    found = find_lesions(heatmap, **settings)
    options.print_result({"lesions": [lesion.to_dict() for lesion in found]}, as_json=as_json)
