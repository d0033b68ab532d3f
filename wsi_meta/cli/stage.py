"""``wsi-meta stage``."""

from __future__ import annotations

from pathlib import Path

import click

from wsi_meta.cli import options

__all__ = ["stage"]


@click.command(epilog=options.example("wsi-meta stage nodes.csv --reference stage_labels.csv"))
@click.argument("nodes", type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), help="CSV with the true stages, for kappa.")
@click.option("--out", type=click.Path(path_type=Path), help="CSV to write, in the challenge's format.")
@options.overwrite_option
@options.as_json_option
def stage(nodes: Path, reference: Path | None, out: Path | None, overwrite: bool, as_json: bool) -> None:
    """Stage patients by CAMELYON17's rules (pN) from the labels of their five nodes.

    NODES is a CSV in the challenge's format: patient,stage with rows like patient_000_node_0.tif,macro.
    """
    from wsi_meta.evaluation.staging import stage as stage_patients

    found = stage_patients(nodes, reference=reference, out=out, overwrite=overwrite)
    options.print_result({"stages": found.stages, "kappa": found.kappa, "agreeing": found.agreeing}, as_json=as_json)
