"""``wsi-meta sample``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from wsi_meta.cli import options, running

__all__ = ["sample"]


@click.command(epilog=options.example("wsi-meta sample slides.csv --out patches/"))
@click.argument("manifest", type=options.PATH)
@click.option("--out", required=True, type=options.PATH, help="Folder for PCam's HDF5 files and meta tables.")
@click.option(
    "--patches",
    type=click.IntRange(2),
    default=262144,
    show_default=True,
    help="Largest number for training; validation and test get up to an eighth of it each.",
)
@click.option(
    "--valid",
    type=options.NumberRange(0, 1, max_open=True),
    default=0.2,
    show_default=True,
    help="Share of slides for validation.",
)
@click.option(
    "--test", type=options.NumberRange(0, 1, max_open=True), default=0.0, show_default=True, help="Share of slides for test."
)
@click.option(
    "--by",
    type=click.Choice(["patient", "slide"]),
    default="patient",
    show_default=True,
    help="What is never divided between splits.",
)
@options.tumor_option
@options.exclude_class_option
@click.option("--mine", type=options.PATH, help="Folder of heatmaps <slide>.zarr, for hard negatives.")
@click.option(
    "--mined",
    type=options.NumberRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="With --mine: share of the negatives that are hard.",
)
@click.option(
    "--model",
    type=options.FILE_OR_WORD,
    default="default",
    show_default=True,
    help="Model file, or 'default'; says the patches' mpp.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of splits, places and order.")
@options.reading_workers_option
@options.overwrite_option
@options.as_json_option
@running.with_logs
def sample(manifest: Path, out: Path, as_json: bool, **settings: Any) -> None:
    """Cut labelled patches from slides into a data set in PCam's layout, for wsi-meta train.

    MANIFEST is a CSV: slide,annotations and, where known, patient,split,partly,mpp. A slide without annotations has no tumor.
    Slides with partly = 1 (not all tumor outlined) give no negatives; those of Camelyon16 are recognised by name.
    """
    from wsi_meta.datasets.sampling import sample as sample_patches

    done = sample_patches(manifest, out, progress=True, **settings)
    options.print_result({"folder": str(out)} | {split: asdict(part) for split, part in done.items()}, as_json=as_json)
