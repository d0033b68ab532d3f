"""``wsi-meta froc`` and ``wsi-meta stage``: what the Camelyon challenges ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsi_meta.cli import options

__all__ = ["froc", "stage"]


@click.command(epilog=options.example("wsi-meta froc detections/ annotations/ --out froc/"))
@click.argument("detections", type=options.PATH)
@click.argument("truth", type=options.PATH)
@click.option("--out", type=options.PATH, help="Folder for froc.json, froc.csv (the curve) and froc.png.")
@click.option(
    "--exclude",
    type=options.FILE_OR_WORD,
    default="camelyon16",
    show_default=True,
    help="Slides to leave out: a CSV slide,task,reason; camelyon16, those known to be wrong; or none.",
)
@click.option("--scores", type=options.PATH, help="CSV slide,score.  [each slide's highest detection]")
@click.option(
    "--mask-level", type=click.IntRange(0, 20), default=0, show_default=True, help="Level of a mask TIFF's first image."
)
@options.tumor_option
@options.exclude_class_option
@click.option(
    "--slides",
    type=options.PATH,
    help="Folder of slides or heatmaps, for QuPath's GeoJSON of MRXS, SCN and others; heatmaps that are not complete are told.",
)
@click.option(
    "--corrections",
    type=options.PATH,
    help="Folder of heatmaps that were corrected in wsi-meta view: missed lesions are tumor, false ones are not.",
)
@options.overwrite_option
@options.as_json_option
def froc(detections: Path, truth: Path, as_json: bool, **settings: Any) -> None:
    """Judge detections by Camelyon16's lesion score (FROC), and slides by AUC, with 95 % intervals.

    DETECTIONS is a folder of <slide>.csv with lines probability,x,y in level-0 pixels; a file without lines means none were
    found. TRUTH is a folder of <slide>.xml, .annotations, .json, .geojson or .tif. A slide without truth is normal.

    QuPath counts from the corner of the part of a slide that it shows; --slides finds that corner.
    """
    from wsi_meta.challenges.camelyon16 import froc as judge

    options.print_result(judge(detections, truth, progress=True, **settings).to_dict(), as_json=as_json)


@click.command(epilog=options.example("wsi-meta stage nodes.csv --reference stage_labels.csv"))
@click.argument("nodes", type=options.PATH)
@click.option("--reference", type=options.PATH, help="CSV with the true stages, for kappa.")
@click.option("--out", type=options.NEW_FILE, help="CSV to write, in the challenge's format.")
@options.overwrite_option
@options.as_json_option
def stage(nodes: Path, reference: Path | None, out: Path | None, overwrite: bool, as_json: bool) -> None:
    """Stage patients by CAMELYON17's rules (pN) from the labels of their five nodes.

    NODES is a CSV in the challenge's format: patient,stage with rows like patient_000_node_0.tif,macro.
    """
    from wsi_meta.challenges.staging import stage as stage_patients

    found = stage_patients(nodes, reference=reference, out=out, overwrite=overwrite)
    told = vars(found) | {"compared": None if reference is None else len(found.stages)}
    names = ("stages", "kappa", "agreeing", "compared", "in_reference")
    options.print_result({name: told[name] for name in names}, as_json=as_json)
