"""Average the weights of several trainings from one start into one model, with statistics, calibration and figures of its own.

The mean of weights along a training, or of several that began at the same weights, often generalises better than each of
them (Izmailov et al. 2018, "Averaging weights leads to wider optima"; Wortsman et al. 2022, "Model soups"). BatchNorm's
statistics belong to other weights and are measured anew, on training patches that are augmented as the first source's recipe
says. As at the end of a training, the weights are then made for int8, and calibration, operating points and figures are fitted
on the validation patches. The card names the sources.

Each SOURCE is a model file, or the checkpoint that `wsi-meta train --keep-checkpoint` leaves (its moving average); the first
one must be a model file, whose recipe and data the new card names.

    .venv/bin/python scripts/benchmarks/average_models.py SOURCE SOURCE ... --data pcam/ --out model.safetensors
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsi_meta.datasets.batches import batches_of
from wsi_meta.datasets.checks import check_patches
from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.evaluation.model_parts import store_feature_statistics
from wsi_meta.inference.batches import make_mosaics
from wsi_meta.inference.device import resolve_device, resolve_precision
from wsi_meta.models.card import RANGES, ModelCard, read_card
from wsi_meta.models.known_patches import KnownPatches
from wsi_meta.models.model import build_network, load_model, network_of, stored_weights, write_model
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.resnet import cell_logits
from wsi_meta.models.weights import half_precision, read_weights
from wsi_meta.outputs.checks import check_output
from wsi_meta.training.augment import augment
from wsi_meta.training.distributed import Processes
from wsi_meta.training.loader import EpochBatches, make_loader
from wsi_meta.training.mosaics import mosaic_side
from wsi_meta.training.recipe import Augmentation, Recipe
from wsi_meta.training.validation import Validation

__all__ = ["average_models", "conclude", "mark_patches", "mean_of", "measure_statistics", "recipe_of", "weights_of"]

STATISTICS_PATCHES = 8192
"""Training patches on which BatchNorm's statistics are measured."""


def weights_of(source: Path) -> dict[str, torch.Tensor]:
    """Return the weights that a model file or a checkpoint holds."""
    if source.suffix == ".safetensors":
        return read_weights(source)
    learner = torch.load(source, map_location="cpu", weights_only=True)["learner"]
    weights: dict[str, torch.Tensor] = learner["average"] or learner["network"]
    return half_precision(weights)


def mean_of(states: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Average what is real, in float32; counters are the last one's."""
    return {
        name: torch.stack([state[name].float() for state in states]).mean(0) if last.is_floating_point() else last.clone()
        for name, last in states[-1].items()
    }


def recipe_of(training: dict[str, Any]) -> Recipe:
    """Return the recipe that a card records."""
    fields = training["recipe"]
    return Recipe(**fields | {"augmentation": Augmentation(**fields["augmentation"])})


def measure_statistics(
    weights: dict[str, torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    recipe: Recipe,
    *,
    device: str,
    precision: str,
    build: Callable[[], nn.Module] = build_network,
) -> dict[str, torch.Tensor]:
    """Return the weights with BatchNorm's statistics as the mean over batches, which are shown as the recipe shows them.

    Parameters
    ----------
    weights : a ``state_dict``; it is not changed
    batches : uint8 images (n, patch_px, patch_px, 3), and labels, which are not used
    recipe : gives augmentation, seed and the share of pictures in mosaics
    device, precision : as resolved
    build : makes the network that the weights belong to
    """
    network = network_of({name: tensor.clone() for name, tensor in weights.items()}, build)
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over all batches
    generator, show = torch.Generator(device).manual_seed(recipe.seed), Preprocessing().to_input
    mosaics_so_far = 0.0
    for images, _ in batches:
        shown = augment(images.to(device), recipe.augmentation, generator)
        mosaics_so_far += recipe.mosaics
        if mosaics_so_far >= 1:
            shown, mosaics_so_far = make_mosaics(shown, mosaic_side(len(shown))), mosaics_so_far - 1
        with torch.no_grad(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            cell_logits(network, show(shown), step=3)
    return network.state_dict()


def average_models(
    sources: Sequence[Path], data: dict[str, Patches], validation: Validation, *, patches: int = STATISTICS_PATCHES
) -> tuple[dict[str, torch.Tensor], ModelCard]:
    """Return weights and card of the average of models.

    Parameters
    ----------
    sources : model files, or checkpoints after the first
    data : `train` for BatchNorm's statistics
    validation : of the patches to calibrate and judge on; gives device, precision, workers and the kind of network
    patches : number of training patches to measure statistics on
    """
    training = {name: fact for name, fact in read_card(sources[0]).training.items() if name != RANGES}
    recipe, train = recipe_of(training), data["train"]
    where = Processes(0, 1, validation.device)
    loader = make_loader(train, EpochBatches(len(train), recipe, where), validation.workers, where, memory=0)
    steps = min(len(loader), max(1, patches // recipe.batch_size))
    if not steps:
        raise SystemExit(f"{len(train)} training patches; expected {recipe.batch_size}, a batch, to measure statistics on")
    weights = measure_statistics(
        mean_of([weights_of(source) for source in sources]),
        itertools.islice(batches_of(loader), steps),
        recipe,
        device=validation.device,
        precision=validation.precision,
        build=validation.build_network,
    )
    averaged = [{"name": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()} for source in sources]
    facts = training | {"averaged": averaged, "statistics_measured_on": steps * recipe.batch_size}
    stored = half_precision(weights)
    card = validation.card(stored, validation.logits(stored), facts, mosaics=recipe.mosaics > 0)
    finished, card, _ = validation.finished(stored, card, train)
    return finished, card


def conclude(out: Path, card: ModelCard, train_set: Patches, validation: Validation) -> None:
    """Write into a finished model file what its training patches look like, and which they are; print its figures."""
    store_feature_statistics(out, train_set, workers=validation.workers, progress=validation.progress)
    mark_patches(out, train_set, validation.patches, workers=validation.workers, progress=validation.progress)
    print(f"{out}: dense {card.dense}, int8 unasked {card.prefers_int8}")
    for name, value in card.metrics.items():
        print(f"  {name}: {value:.4f}")


def mark_patches(out: Path, train_set: Patches, valid_set: Patches, *, workers: int, progress: bool) -> None:
    """Write into a model file which patches it was made with, as `wsi-meta train` does; all else in it stays as it is."""
    checked = check_patches(train_set, valid_set, None, duplicates="refuse", workers=workers, progress=progress)
    model = load_model(out)
    known = KnownPatches.of({"train": checked.train.contents, "valid": checked.valid.contents})
    write_model(out, stored_weights(model), model.card, model.features, known)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--patches", type=int, default=STATISTICS_PATCHES, help="to measure BatchNorm's statistics on")
    arguments = parser.parse_args()
    out, device = check_output(arguments.out, overwrite=False), resolve_device(arguments.device)
    data, precision = open_patches(arguments.data), resolve_precision(arguments.precision, device)
    validation = Validation(data["valid"], device, precision, arguments.workers, progress=True)
    weights, card = average_models(arguments.sources, data, validation, patches=arguments.patches)
    write_model(out, weights, card)
    conclude(out, card, data["train"], validation)


if __name__ == "__main__":
    _main()
