"""How much each part of the training recipe gains: the same training with one thing changed at a time, judged on validation.

Trains every arm for --epochs on a fixed share of the training patches. Prints AUC and accuracy (single view; each half of the
validation patches calibrated on the other), and the difference to the first arm with a paired bootstrap 95 % interval. Finished
arms are not trained again; interrupted ones go on. Choose recipes by this, and never by the test split.

    .venv/bin/python scripts/benchmarks/recipe_ablation.py pcam/ --init stem_to_layer3.safetensors --out ablation/

--arms "no mosaics,one stage" trains those two beside the first arm.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.evaluation.calibrate import cross_fit
from wsi_meta.evaluation.evaluate import evaluate_patches
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.card import ModelCard
from wsi_meta.models.model import Model, build_network, half_precision, load_model
from wsi_meta.training.checkpoint import checkpoint_path
from wsi_meta.training.recipe import Augmentation, Recipe
from wsi_meta.training.train import train

BASE = Recipe()
FIRST = "as it is"
NO_AVERAGE = "no weight averaging"
ARMS: dict[str, Recipe] = {
    FIRST: BASE,
    "no stain jitter": replace(BASE, augmentation=Augmentation().without("stain")),
    "no mosaics": replace(BASE, mosaics=0),
    NO_AVERAGE: BASE,  # the same run's weights before averaging
    "one stage": replace(BASE, head_epochs=0),
    "from scratch": BASE,
    "no shift, blur, JPEG": replace(BASE, augmentation=Augmentation().without("shift", "blur", "jpeg")),
    "no label smoothing": replace(BASE, label_smoothing=0),
    "nothing frozen": replace(BASE, freeze="none"),
}


def _share(data: Path, folder: Path, share: float) -> Path:
    """Link a fixed share of the training patches and all validation patches into a folder."""
    if folder.exists():
        return folder
    found, rng = open_patches(data), np.random.default_rng(0)
    chosen = rng.permutation(len(found["train"]))[: round(share * len(found["train"]))]
    for split, patches in (("train", found["train"].select(np.sort(chosen))), ("valid", found["valid"])):
        for path, label in zip(patches.files, patches.labels, strict=True):
            place = folder / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            (place / path.name).symlink_to(path.resolve())
    return folder


def _train_arm(name: str, data: Path, arguments: argparse.Namespace) -> Model:
    """Train an arm, or load it where it is finished; the first one keeps its checkpoint for the arm without averaging."""
    out = arguments.out / f"{FIRST if name == NO_AVERAGE else name}.safetensors".replace(" ", "_")
    recipe = replace(ARMS[name], epochs=arguments.epochs)
    finished = out.with_suffix(".finished")
    if not finished.exists():
        init = "none" if name == "from scratch" else arguments.init
        train(
            data,
            out,
            init=init,
            recipe=recipe,
            device=arguments.device,
            workers=arguments.workers,
            resume=True,
            keep_checkpoint=name in (FIRST, NO_AVERAGE),
            progress=True,
        )
        finished.touch()
    if name != NO_AVERAGE:
        return load_model(out)
    network = build_network()
    state = torch.load(checkpoint_path(out), map_location="cpu", weights_only=True)["learner"]["network"]
    network.load_state_dict(half_precision(state))
    return Model(network.eval(), ModelCard(), "", out)


def _logits(name: str, data: Path, patches: Patches, arguments: argparse.Namespace) -> NDArray[np.float32]:
    kept = arguments.out / f"{name}.logits.npy".replace(" ", "_")
    if not kept.exists():
        predictor = Predictor(_train_arm(name, data, arguments), device=arguments.device)
        np.save(kept, evaluate_patches(predictor, patches, workers=arguments.workers, progress=True).logits)
    logits: NDArray[np.float32] = np.load(kept)
    return logits


def _row(name: str, truth: NDArray[np.bool_], logits: NDArray[np.float32], base: NDArray[np.float32]) -> str:
    """Return an arm's line of the table: its figures, and what they gain over those of the first arm."""
    right, base_right = (cross_fit(values, truth.astype(np.uint8))[1] == truth for values in (logits, base))

    def by_auc(chosen: NDArray[np.intp]) -> float:
        return float(roc_auc_score(truth[chosen], logits[chosen]) - roc_auc_score(truth[chosen], base[chosen]))

    def by_accuracy(chosen: NDArray[np.intp]) -> float:
        return float(right[chosen].mean() - base_right[chosen].mean())

    gains = ["", ""] if name == FIRST else [_difference(figure, len(truth)) for figure in (by_auc, by_accuracy)]
    return f"| {name} | {roc_auc_score(truth, logits):.4f} | {gains[0]} | {right.mean():.4f} | {gains[1]} |"


def _difference(figure: Callable[[NDArray[np.intp]], float], n: int) -> str:
    """Return a figure over all patches, and its 95 % interval over resampled ones."""
    rng = np.random.default_rng(0)
    low, high = np.percentile([figure(rng.integers(0, n, n)) for _ in range(1000)], [2.5, 97.5])
    return f"{figure(np.arange(n)):+.4f} ({low:+.4f} to {high:+.4f})"


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--init", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1 / 3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = _share(arguments.data, arguments.out / "patches", arguments.share)
    valid = open_patches(data)["valid"]
    base = _logits(FIRST, data, valid, arguments)
    print("| arm | AUC | difference | accuracy | difference |\n|---|---|---|---|---|")
    for name in arguments.arms:
        print(_row(name, valid.labels.astype(bool), _logits(name, data, valid, arguments), base), flush=True)


if __name__ == "__main__":
    _main()
