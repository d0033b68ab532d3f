"""``wsi-meta sample`` and ``wsi-meta train``: slides become patches, and patches a model."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from wsi_meta.cli import options, running

__all__ = ["sample", "train"]

CHANGES = [
    "turn",
    "shift",
    "zoom",
    "stain",
    "stain-offset",
    "brightness",
    "levels",
    "contrast",
    "blur",
    "gain",
    "saturation",
    "jpeg",
]


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


def _take_defaults_from(context: click.Context, _option: click.Parameter, name: str) -> str:
    """Let the settings that are not given be those of a recipe."""
    from wsi_meta.training.recipe import RECIPES

    context.default_map = dict(vars(RECIPES[name]))
    return name


@click.command(epilog=options.example("wsi-meta train pcam/ --init imagenet --epochs 8 --out model.safetensors"))
@click.argument("data", nargs=-1, required=True, type=options.PATH)
@click.option("--out", required=True, type=options.NEW_FILE, help="Model file to write (.safetensors).")
@click.option(
    "--init",
    type=options.FILE_OR_WORD,
    default="imagenet",
    show_default=True,
    help="imagenet (a download), default (the embedded model), none, or a file of weights.",
)
@click.option(
    "--recipe",
    "name",
    type=click.Choice(["light", "strong"]),
    default="strong",
    show_default=True,
    is_eager=True,
    callback=_take_defaults_from,
    help="Settings to start from; shown are strong's, for slides from elsewhere. light: four times as fast.",
)
@click.option("--epochs", type=click.IntRange(1), default=8, show_default=True, help="Passes over the training patches.")
@click.option("--batch-size", type=click.IntRange(2), default=64, show_default=True, help="Patches in one step.")
@click.option("--lr", type=options.NumberRange(0, min_open=True), default=6e-4, show_default=True, help="Top rate, new layers.")
@click.option("--lr-loaded", type=options.NumberRange(0), default=6e-4, show_default=True, help="Top rate, loaded layers.")
@click.option("--head-epochs", type=click.IntRange(0), default=0, show_default=True, help="First epochs: new layers only.")
@click.option(
    "--freeze",
    type=click.Choice(["none", "stem", "layer1", "layer2", "layer3"]),
    default="none",
    show_default=True,
    help="Last stage whose loaded kernels never change.",
)
@click.option(
    "--lr-decay", type=options.NumberRange(0, 1), default=0.62, show_default=True, help="Rate factor per earlier stage."
)
@click.option("--mosaics", type=options.NumberRange(0, 1), default=0.5, show_default=True, help="Share of pictures in mosaics.")
@click.option(
    "--consistency",
    type=options.NumberRange(0),
    default=1.0,
    show_default=True,
    help="Weight of two pictures' disagreement on a patch; doubles the time. 0: off.",
)
@click.option(
    "--teacher",
    type=options.NumberRange(0, 1),
    default=0.0,
    show_default=True,
    help="Last share of targets from the average's four views; doubles the time. 0: off.",
)
@click.option(
    "--ema-epochs",
    type=options.NumberRange(0),
    default=1.0,
    show_default=True,
    help="Time constant of the weights' moving average; 0: none.",
)
@click.option(
    "--label-smoothing",
    type=options.NumberRange(0, 0.9),
    default=0.05,
    show_default=True,
    help="Targets' distance from 0 and 1.",
)
@click.option(
    "--clip-norm", type=options.NumberRange(0), default=1.0, show_default=True, help="Largest gradient norm; 0: no limit."
)
@click.option(
    "--batchnorm",
    type=click.Choice(["adapt", "frozen"]),
    default="adapt",
    show_default=True,
    help="Statistics: adapted, or as loaded.",
)
@click.option(
    "--patience", type=click.IntRange(0), default=3, show_default=True, help="Epochs without a better validation loss; 0: any."
)
@click.option(
    "--without",
    multiple=True,
    type=click.Choice(CHANGES),
    help="Augmentation to turn off; may be given several times.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of split, order, weights and augmentation."
)
@click.option("--resume", is_flag=True, help="Continue from the checkpoint beside --out, if there is one.")
@click.option("--keep-checkpoint", is_flag=True, help="Keep the last checkpoint at the end.")
@click.option(
    "--tensorboard", type=options.PATH, metavar="FOLDER", help="Also write each epoch's figures there as TensorBoard's logs."
)
@click.option("--drop-duplicates", is_flag=True, help="Drop training patches that are also in validation.")
@options.workers_option
@options.device_option
@options.training_precision_option
@options.overwrite_option
@options.as_json_option
@running.with_logs
def train(data: tuple[Path, ...], out: Path, as_json: bool, name: str, without: tuple[str, ...], **settings: Any) -> None:
    """Train a ResNet50 on labelled patches: PCam HDF5 files, the Kaggle folder, or folders 0/ and 1/.

    Each DATA is a folder; several are joined. Writes the model with the highest validation AUC, its history and curves.
    """
    from wsi_meta.inference.device import announce_torch, resolve_device
    from wsi_meta.models.card import read_card
    from wsi_meta.training.history import check_training
    from wsi_meta.training.recipe import RECIPES, Recipe, TrainOptions

    chosen = {field: settings.pop(field) for field in list(settings) if field in Recipe.__dataclass_fields__}
    recipe = replace(RECIPES[name], **chosen, augmentation=RECIPES[name].augmentation.without(*without))
    init = settings.pop("init")
    check_training(data, out, init=init, options=TrainOptions(**settings))
    announce_torch()
    from wsi_meta.training.train import train as train_model  # torch comes with it

    with options.tuned_memory(resolve_device(settings["device"])):
        result = train_model(data, out, init=init, recipe=recipe, progress=True, **settings)
    if result.rank == 0:
        printed: dict[str, Any] = {"model": str(result.model), "history": str(result.history), "curves": str(result.curves)}
        printed |= {"best_epoch": result.best_epoch, "stopped": result.stopped}
        card = read_card(result.model)
        printed |= {"dense": card.dense, "int8": card.prefers_int8}
        options.print_result(printed | card.metrics, as_json=as_json)
