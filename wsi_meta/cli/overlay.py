"""``wsi-meta overlay``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsi_meta.cli import options

__all__ = ["overlay"]


@click.command(epilog=options.example("wsi-meta overlay heat.zarr --slide slide.tif --out overlay.png"))
@click.argument("heatmap", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Picture to write.")
@click.option("--slide", type=click.Path(path_type=Path), help="The slide it was made from; without it the map alone.")
@click.option(
    "--layer",
    type=click.Choice(["probability", "uncertainty"]),
    default="probability",
    show_default=True,
    help="What to draw; uncertainty needs a heatmap from scan --tta --uncertainty.",
)
@click.option("--alpha", type=click.FloatRange(0, 1), default=0.7, show_default=True, help="Opacity of the highest value.")
@click.option(
    "--threshold", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Values below it are not coloured."
)
@click.option("--max-side", type=click.IntRange(100, 20000), default=2000, show_default=True, help="Longer side, pixels.")
@click.option("--lesions", is_flag=True, help="Outline and number the lesions, as wsi-meta lesions finds them.")
@options.overwrite_option
@options.as_json_option
def overlay(heatmap: Path, out: Path, as_json: bool, **settings: Any) -> None:
    """Draw a heatmap over its slide: colour bar, scale bar, name and score."""
    from wsi_meta.heatmaps.overlay import draw_overlay

    options.print_result({"overlay": str(draw_overlay(heatmap, out, **settings))}, as_json=as_json)
