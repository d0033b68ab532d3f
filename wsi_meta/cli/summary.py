"""``wsi-meta summary``."""

from __future__ import annotations

from pathlib import Path

import click

from wsi_meta.cli import options

__all__ = ["summary"]


@click.command(epilog=options.example("wsi-meta summary scans/"))
@click.argument("folder", type=click.Path(path_type=Path))
@options.as_json_option
def summary(folder: Path, as_json: bool) -> None:
    """Make summary.csv of the FOLDER anew from the heatmaps in it, and print it."""
    from wsi_meta.heatmaps.summary import summarise_folder

    options.print_results(summarise_folder(folder), as_json=as_json)
