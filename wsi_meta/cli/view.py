"""``wsi-meta view``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsi_meta.cli import options

__all__ = ["view"]


@click.command(epilog=options.example("wsi-meta view heat.zarr --slide slide.tif"))
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--slide", type=click.Path(path_type=Path), help="The slide, or a folder of slides; without it they are looked for."
)
@click.option("--host", help="Address to listen at, 0.0.0.0 for all; the link then holds a token.  [this machine alone]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen at.  [one that is free]")
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page in the browser.")
def view(stores: tuple[Path, ...], **settings: Any) -> None:
    """Show heatmaps over their slides in the browser, until Ctrl-C; nothing is loaded from the network.

    STORES are heatmaps, or folders of them. Lesions can be marked as false and missed ones drawn; they are kept in
    NAME.corrections.geojson beside the store.
    """
    from wsi_meta.viewer.view import view as view_heatmaps

    view_heatmaps(*stores, opened=lambda link: click.echo(f"{link}\nCtrl-C ends it."), **settings)
