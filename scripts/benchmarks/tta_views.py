"""What averaged views gain and cost: 1, 2, 4 and 8 of them, and which 2 and which 4, on labelled patches.

All eight views of each patch are computed once; every choice of views is a mean of some of these logits. A choice is judged in
each place that the eight views give it (shown turned, a patch is another patch), so that a choice is not judged by one start.
AUC, and calibration fitted on one half of the patches and judged on the other. Intervals are of the difference to one view, by
a bootstrap that draws the same patches for both. The cost is timed over all counts in turns.

    .venv/bin/python scripts/benchmarks/tta_views.py MODEL pcam/ [--split valid] [--patches 800] [--logits views.npz]

With --logits an older run's logits are read if the file exists, else written.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.evaluation.calibration import cross_fit
from wsi_meta.evaluation.metrics import auc_of, figures_of
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.dihedral import AVERAGED, VIEWS, turn
from wsi_meta.models.model import Model, load_model

DRAWS = 300
TIMED = 64
"""Patches of one timed pass."""
GROUPS = {
    "one view": (0,),
    "half turn": (0, 2),
    "quarter turn": (0, 1),
    "mirrored left to right": (0, 4),
    "mirrored along a diagonal": (0, 5),
    "mirrored top to bottom": (0, 6),
    "mirrored along the other diagonal": (0, 7),
    "four turns": (0, 1, 2, 3),
    "half turn, and mirrored along the sides": (0, 2, 4, 6),
    "half turn, and mirrored along the diagonals": (0, 2, 5, 7),
    "eight views": tuple(range(VIEWS)),
}
"""Choices of views, as :func:`wsi_meta.models.dihedral.turn` counts them. All but the quarter turn are groups."""


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="valid")
    parser.add_argument("--patches", type=int, help="so many, drawn at random; default: all")
    parser.add_argument("--logits", type=Path, help="file (.npz) for the logits of all views")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--turns", type=int, default=3, help="timed passes for each number of views; 0 times nothing")
    arguments = parser.parse_args()
    model, patches = load_model(arguments.model), open_patches(arguments.data)[arguments.split]
    order = np.random.default_rng(0).permutation(len(patches))[: arguments.patches]
    settings = {"device": arguments.device, "precision": arguments.precision}
    logits, labels = _logits(model, patches, order, arguments.logits, settings)
    _print_gain(logits, labels)
    if arguments.turns:
        _print_cost(model, patches, order, arguments.turns, settings)


def _logits(
    model: Model, patches: Patches, order: NDArray[np.int64], kept: Path | None, settings: dict[str, str]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the logits of all views of the patches, (n, 8), and their labels; from a file where they are kept."""
    if kept is not None and kept.exists():
        with np.load(kept) as stored:
            return stored["logits"], stored["labels"]
    predictor = Predictor(model, tta=VIEWS, device=settings["device"], precision=settings["precision"])
    parts = [predictor.predict_views(_images(patches, some)) for some in np.array_split(order, -(-len(order) // TIMED))]
    logits, labels = np.concatenate(parts), patches.labels[order]
    if kept is not None:
        np.savez(kept, logits=logits, labels=labels)
    return logits, labels


def _images(patches: Patches, chosen: NDArray[np.int64]) -> torch.Tensor:
    return torch.stack([torch.as_tensor(patches[int(number)][0]) for number in chosen])


def _product(first: int, second: int) -> int:
    """Return the view that comes of turning a view once more."""
    places = torch.arange(9).view(1, 3, 3)
    wanted = turn(turn(places, first), second)
    return next(view for view in range(VIEWS) if torch.equal(turn(places, view), wanted))


def _places(views: tuple[int, ...]) -> list[list[int]]:
    """Return the sets of views that a choice comes to on a patch that is itself shown in each of the eight views."""
    found = {tuple(sorted(_product(start, view) for view in views)) for start in range(VIEWS)}
    return [list(places) for places in sorted(found)]


def _print_gain(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
    print(f"{len(labels)} patches, {int(labels.sum())} tumor\n")
    print("| views | | AUC | gain (95 %) | ECE | gain (95 %) |\n|---|---|---|---|---|---|")
    single = _judge([logits[:, place] for place in range(VIEWS)], labels)
    for words, views in GROUPS.items():
        means = [logits[:, places].mean(1) for places in _places(views)]
        judged = _judge(means, labels)
        parts = [f"{values[0]:.4f} | {_gain(values, before)}" for values, before in zip(judged, single, strict=True)]
        name = words + (" (`--tta`)" if AVERAGED.get(len(views)) == views and len(views) > 1 else "")
        print(f"| {len(views)} | {name} | {' | '.join(parts)} |")


def _gain(values: NDArray[np.float64], before: NDArray[np.float64]) -> str:
    if np.array_equal(values, before):
        return ""
    low, high = np.percentile((values - before)[1:], [2.5, 97.5])
    return f"{values[0] - before[0]:+.4f} ({low:+.4f} to {high:+.4f})"


def _judge(means: list[NDArray[np.float32]], labels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return AUC and ECE, each the mean over the places of a choice: of all patches first, then of each draw."""
    random = np.random.default_rng(0)
    draws = [np.arange(len(labels)), *(random.integers(len(labels), size=len(labels)) for _ in range(DRAWS))]
    probabilities = [cross_fit(mean, labels)[0] for mean in means]
    auc = [[auc_of(mean[draw], labels[draw]) for mean in means] for draw in draws]
    ece = [[_ece(probability[draw], labels[draw]) for probability in probabilities] for draw in draws]
    return np.mean(auc, 1), np.mean(ece, 1)


def _ece(probability: NDArray[np.float32], labels: NDArray[np.uint8]) -> float:
    return float(figures_of(probability, labels)["ece"])


def _print_cost(model: Model, patches: Patches, order: NDArray[np.int64], turns: int, settings: dict[str, str]) -> None:
    """Print how fast patches are predicted with each number of views."""
    images = _images(patches, order[:TIMED])
    seconds: dict[int, list[float]] = {views: [] for views in AVERAGED}
    predictors = {
        views: Predictor(model, tta=views, device=settings["device"], precision=settings["precision"]) for views in AVERAGED
    }
    for _ in range(turns):
        for views, predictor in predictors.items():
            begun = time.perf_counter()
            predictor.predict_patches(images)
            seconds[views].append(time.perf_counter() - begun)
    alone = statistics.median(seconds[1])
    print(f"\n{predictors[1].device}, {predictors[1].precision}\n\n| views | patches/s | times the work |\n|---|---|---|")
    for views, taken in seconds.items():
        middle = statistics.median(taken)
        print(f"| {views} | {len(images) / middle:.1f} | {middle / alone:.2f} |")


if __name__ == "__main__":
    _main()
