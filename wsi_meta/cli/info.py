"""``wsi-meta info``."""

from __future__ import annotations

import click

from wsi_meta.cli import options
from wsi_meta.errors import printable

__all__ = ["info"]


@click.command(epilog=options.example("wsi-meta info slide.tif"))
@click.argument("path")
@options.reader_option
@options.as_json_option
def info(path: str, reader: str, as_json: bool) -> None:
    """Print what is known of a slide, a model file (or 'default') or a heatmap.

    Of a slide that cannot be scanned, all that is known is printed, then why not; the exit code is 1.
    """
    from wsi_meta.metadata import describe

    facts = describe(path, reader=reader)
    problem = facts.get("problem")
    options.print_result(facts if as_json else facts | {"problem": None}, as_json=as_json)
    if problem:
        raise click.ClickException(printable(problem))
