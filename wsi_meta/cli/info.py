"""``wsi-meta info``."""

from __future__ import annotations

import click

from wsi_meta.cli import options

__all__ = ["info"]


@click.command(epilog=options.example("wsi-meta info slide.tif"))
@click.argument("path")
@options.reader_option
@options.as_json_option
def info(path: str, reader: str, as_json: bool) -> None:
    """Print what is known of a slide, a model file (or 'default') or a heatmap."""
    from wsi_meta.metadata import info as tell

    options.print_result(tell(path, reader=reader), as_json=as_json)
