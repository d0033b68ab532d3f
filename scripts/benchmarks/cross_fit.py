"""What trainings that did not see a patch say of it: labels for the arm `cross-fitted labels` of recipe_ablation.py.

The training patches are divided into four folds. For each, a network is trained on the other three, and the mean logit over
eight views of every patch of the fold is kept as a probability. A label that the patches around it contradict gets a
probability in between. Trainings are of the recipe `light`, which is the best one on slides that it has seen, with two
pictures of each patch and no mosaics. Start several at once with the same --out: each makes the folds that no other has begun.

    .venv/bin/python scripts/benchmarks/cross_fit.py pcam/ --init stem_to_layer3.safetensors --out soft/
    .venv/bin/python scripts/benchmarks/recipe_ablation.py pcam/ --init stem_to_layer3.safetensors --out ablation/ \\
        --arms "cross-fitted labels" --soft-labels soft/
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from recipe_ablation import Bench, digest_of_init, train_recipe
from scipy.special import expit
from soft_labels import FOLDS, fold_path, folds_of, has_fold, write_fold

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.errors import OutputExistsError
from wsi_meta.evaluation.evaluate import evaluate_patches
from wsi_meta.files.locks import locked
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.card import ModelCard
from wsi_meta.models.dihedral import VIEWS
from wsi_meta.models.model import Model, network_of
from wsi_meta.training.distributed import joined_processes
from wsi_meta.training.recipe import RECIPES, Recipe, TrainOptions

TEACHER = replace(RECIPES["light"], consistency=1.0, mosaics=0)


def fit_folds(bench: Bench, teacher: Recipe) -> Iterator[str]:
    """Train without each fold that has no labels yet; keep what the network says of it, and return a line about it.

    Raises
    ------
    DataError
        when a fold has labels that were made with other patches, weights or settings.
    """
    settings = {"init": digest_of_init(bench.init), "recipe": asdict(teacher)}
    for number in range(FOLDS):
        with suppress(OutputExistsError), locked(fold_path(bench.out, number)):  # what another process makes is its own
            if not has_fold(bench.out, number, bench.train, settings):
                yield _fit_fold(bench, teacher, number, settings)


def _fit_fold(bench: Bench, teacher: Recipe, number: int, settings: dict[str, Any]) -> str:
    fold = folds_of(bench.train)[number]
    others = bench.train.select(np.setdiff1d(np.arange(len(bench.train)), fold))
    weights = train_recipe(replace(bench, train=others, decoded=[]), bench.init, teacher)
    model = Model(network_of(weights, bench.parts.build_network), ModelCard(), "", bench.out)
    predictor = Predictor(model, device=bench.processes.device, precision=bench.precision, tta=VIEWS)
    patches = bench.train.select(fold)
    logits = evaluate_patches(predictor, patches, workers=bench.options.workers, progress=bench.options.progress).logits
    write_fold(bench.out, number, bench.train, expit(logits), settings)
    right = np.mean((logits > 0) == patches.labels)
    return f"fold {number}: {len(fold)} patches, {right:.2%} of their labels are what the others say"


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--init", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    data, options = open_patches(arguments.data), TrainOptions(device=arguments.device, workers=arguments.workers)
    with joined_processes(arguments.device) as processes:
        bench = Bench(arguments.init, arguments.out, data["train"], data["valid"], processes, options, {})
        for line in fit_folds(bench, replace(TEACHER, epochs=arguments.epochs)):
            print(line, flush=True)


if __name__ == "__main__":
    _main()
