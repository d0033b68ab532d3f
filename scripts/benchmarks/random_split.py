"""How good a model looks on a random split, where both parts hold patches of the same slides: the figure usually published.

Of the patches whose names begin with --prefix, a seeded random tenth is held out for judging and a twentieth for choosing the
epoch and calibrating. Trains on the other training patches and judges once. Compare it with the figure on unseen slides.

    .venv/bin/python scripts/benchmarks/random_split.py pcam/ --init stem_to_layer3.safetensors --out split/ [--epochs 8]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.evaluation.evaluate import evaluate
from wsi_meta.training.recipe import RECIPES
from wsi_meta.training.train import train


def _split(data: Path, folder: Path, prefix: str, seed: int) -> Path:
    """Link the training patches into a folder of three splits."""
    patches = open_patches(data)["train"]
    order = np.random.default_rng(seed).permutation([i for i, path in enumerate(patches.files) if path.name.startswith(prefix)])
    tenth = len(order) // 10
    splits = np.full(len(patches), "train")
    splits[order[:tenth]], splits[order[tenth : tenth + tenth // 2]] = "test", "valid"
    for split, label, path in zip(splits.tolist(), patches.labels.tolist(), patches.files, strict=True):
        place = folder / split / str(label)
        place.mkdir(parents=True, exist_ok=True)
        (place / path.name).symlink_to(path.resolve())
    return folder


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--init", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prefix", default="kaggle_")
    parser.add_argument("--recipe", default="light", choices=list(RECIPES))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--consistency", type=float, help="instead of the recipe's")
    parser.add_argument("--mosaics", type=float, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    data, model = arguments.out / "patches", arguments.out / "model.safetensors"
    if not data.exists():
        _split(arguments.data, data, arguments.prefix, arguments.seed)
    changes = {name: value for name in ("consistency", "mosaics") if (value := getattr(arguments, name)) is not None}
    recipe = replace(RECIPES[arguments.recipe], epochs=arguments.epochs, **changes)
    options = {"device": arguments.device, "workers": arguments.workers}
    train(data, model, init=arguments.init, recipe=recipe, resume=True, progress=True, **options)
    for words, tta in (("single view", False), ("eight views", True)):
        figures = evaluate(model, data, split="test", tta=tta, progress=True, **options)
        low, high = (figures.intervals or {})["accuracy"]
        print(
            f"{words}: {figures.n} patches held out, AUC {figures.auc:.4f}, accuracy {figures.accuracy:.4f} "
            f"({low:.4f} to {high:.4f}), at the card's threshold {figures.accuracy_at_threshold:.4f}, ECE {figures.ece:.4f}"
        )


if __name__ == "__main__":
    _main()
