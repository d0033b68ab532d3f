"""How good a model looks on a random split, where both parts hold patches of the same slides: the figure usually published.

Of the training patches whose names begin with --prefix, a seeded random tenth is held out for judging and a twentieth for
calibration. Trains on the other training patches, without a look at either, and judges the last epoch once. Compare it with
the figure on unseen slides. A recipe can be changed by --set, and --courses averages further trainings as for the default
model: --epochs 4 --courses 3 are ten epochs. --training-seed repeats a training by itself.

    .venv/bin/python scripts/benchmarks/random_split.py pcam/ --init stem_to_layer3.safetensors --out split/ [--epochs 8]
        [--set consistency=1 mosaics=0]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recipe_ablation import Bench, train_arm
from recipe_arms import Arm

from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.evaluation.evaluate import evaluate_patches
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.dihedral import VIEWS
from wsi_meta.models.model import Model, network_of, save_model
from wsi_meta.outputs.checks import check_output
from wsi_meta.training.distributed import joined_processes
from wsi_meta.training.recipe import RECIPES, Recipe, TrainOptions


def split_patches(patches: Patches, prefix: str, seed: int) -> tuple[Patches, Patches, Patches]:
    """Return patches to train on, to calibrate on and to judge on."""
    named = [index for index, path in enumerate(patches.files) if path.name.startswith(prefix)]
    order = np.random.default_rng(seed).permutation(named)
    tenth = len(order) // 10
    judged, calibrated = order[:tenth], order[tenth : tenth + tenth // 2]
    others: NDArray[np.intp] = np.setdiff1d(np.arange(len(patches)), order[: tenth + tenth // 2])
    return patches.select(others), patches.select(np.sort(calibrated)), patches.select(np.sort(judged))


def with_changes(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """Return a recipe with settings of its own or its augmentation's changed, each as ``name=value``."""
    for name, text in (change.split("=") for change in changes):
        if hasattr(recipe, name):
            recipe = replace(recipe, **{name: _read(getattr(recipe, name), text)})
        else:
            look = recipe.augmentation
            recipe = replace(recipe, augmentation=replace(look, **{name: _read(getattr(look, name), text)}))
    return recipe


def _read(like: Any, text: str) -> Any:
    """Return what a text says, of the kind of another value."""
    if isinstance(like, bool | str):
        return text == "True" if isinstance(like, bool) else text
    return int(text) if text.isdecimal() else float(text)


def judge(bench: Bench, model: Model, patches: Patches) -> Iterator[str]:
    """Return a line for single and for eight views."""
    for words, tta in (("single view", False), ("eight views", VIEWS)):
        predictor = Predictor(model, device=bench.processes.device, precision=bench.precision, tta=tta)
        figures = evaluate_patches(predictor, patches, workers=bench.options.workers, intervals=True)
        low, high = (figures.intervals or {})["accuracy"]
        yield (
            f"{words}: {figures.n} patches held out, AUC {figures.auc:.4f}, accuracy {figures.accuracy:.4f} "
            f"({low:.4f} to {high:.4f}), at the card's threshold {figures.accuracy_at_threshold:.4f}, ECE {figures.ece:.4f}"
        )


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--init", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prefix", default="kaggle_")
    parser.add_argument("--recipe", default="light", choices=list(RECIPES))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--courses", type=int, default=0, help="further trainings of half the epochs, which are averaged")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--training-seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    out = check_output(arguments.out / "model.safetensors", overwrite=False)
    train, calibrated, judged = split_patches(open_patches(arguments.data)["train"], arguments.prefix, arguments.seed)
    arm = Arm(with_changes(RECIPES[arguments.recipe], arguments.set), courses=arguments.courses)
    options = TrainOptions(device=arguments.device, precision=arguments.precision, workers=arguments.workers, progress=True)
    with joined_processes(arguments.device) as processes:
        bench = Bench(arguments.init, arguments.out, train, calibrated, processes, options, {})
        weights = train_arm(bench, arm, arguments.epochs, arguments.training_seed)
        validation = bench.validation()
        card = validation.card(weights, validation.logits(weights), {}, mosaics=False)
        save_model(out, weights, card)
        for line in judge(bench, Model(network_of(weights), card, "", out), judged):
            print(line, flush=True)


if __name__ == "__main__":
    _main()
