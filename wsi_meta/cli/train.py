"""``wsi-meta train``."""

from __future__ import annotations

from pathlib import Path

import click

from wsi_meta.cli import options

__all__ = ["train"]


@click.command(epilog=options.example("wsi-meta train pcam/ --init imagenet --epochs 4 --out model.safetensors"))
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Model file to write (.safetensors).")
@click.option("--init", default="imagenet", show_default=True, help="imagenet (a download), none, or a file of weights.")
@click.option("--epochs", type=click.IntRange(1), default=4, show_default=True, help="Passes over the training patches.")
@click.option("--batch-size", type=click.IntRange(2), default=64, show_default=True, help="Patches in one step.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=1e-3, show_default=True, help="Peak step, new layers.")
@click.option("--lr-loaded", type=click.FloatRange(0), default=3e-4, show_default=True, help="Peak step, loaded layers.")
@click.option("--head-epochs", type=click.IntRange(0), default=1, show_default=True, help="First epochs for new layers alone.")
@click.option(
    "--freeze",
    type=click.Choice(["none", "stem", "layer1", "layer2", "layer3"]),
    default="layer1",
    show_default=True,
    help="Last stage whose loaded kernels stay as they are.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of split, order, weights and augmentation.")
@click.option("--drop-duplicates", is_flag=True, help="Drop training patches that are also in validation.")
@options.workers_option
@options.device_option
@options.precision_option
@options.overwrite_option
@options.as_json_option
def train(
    data: tuple[Path, ...],
    out: Path,
    init: str,
    drop_duplicates: bool,
    device: str,
    precision: str,
    workers: int,
    overwrite: bool,
    as_json: bool,
    **recipe: float,
) -> None:
    """Train a ResNet50 on labelled patches: PCam HDF5 files, the Kaggle folder, or folders 0/ and 1/.

    Each DATA is a folder; several are joined. Writes the model with the highest validation AUC, its history and curves.
    """
    from wsi_meta.training.train import Recipe
    from wsi_meta.training.train import train as train_model

    result = train_model(
        data,
        out,
        init=init,
        recipe=Recipe(**recipe),  # type: ignore[arg-type]
        drop_duplicates=drop_duplicates,
        device=device,
        precision=precision,
        workers=workers,
        overwrite=overwrite,
        progress=True,
    )
    printed = {"model": str(result.model), "history": str(result.history), "curves": str(result.curves)}
    options.print_result(printed | {"best_epoch": result.best_epoch} | result.validation.to_dict(), as_json=as_json)
