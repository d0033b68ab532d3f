"""``wsi-meta doctor``."""

from __future__ import annotations

from pathlib import Path

import click

from wsi_meta.cli import options
from wsi_meta.words import printable

__all__ = ["doctor"]


@click.command(epilog=options.example("wsi-meta doctor --out results/"))
@click.option("--out", default=".", show_default=True, type=options.PATH, help="Folder that heatmaps are to go to.")
@click.option("--scheduler", metavar="ADDRESS", help="Look at the dask cluster of this scheduler, tcp://HOST:PORT, too.")
@click.option("--self-test/--no-self-test", default=True, show_default=True, help="Scan a drawn slide, in some seconds.")
@options.as_json_option
def doctor(out: Path, scheduler: str | None, self_test: bool, as_json: bool) -> None:
    """Look at all that scans need on this machine, and scan a drawn slide. What it prints belongs in every bug report.

    Versions, processor, GPUs, precision, decoders, memory, locks and renames in the output folder, and by how many cells maps
    and exports of the drawn slide are off. It names no users, hosts or folders. Exits with 1 when something is broken.
    """
    from wsi_meta.checkup.doctor import doctor as look

    found = look(out, scheduler=scheduler, self_test=self_test, progress=True)
    if as_json:
        options.print_result(found.to_dict(), as_json=True)
    else:
        print("\n".join([found.text, *(f"PROBLEM    {printable(problem)}" for problem in found.problems)]))
    if found.problems:
        raise click.ClickException(f"problems found: {len(found.problems)}; each says what to do")
