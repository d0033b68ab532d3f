"""Which of several models works best on slides from elsewhere: validation, shifts of stain and scanner, clusters of stains.

Judges every MODEL on the same patches: as they are, under each shift of `wsi-meta evaluate --shifts`, and by clusters of their
stains. Prints one table; every difference is to the first model, with a paired 95 % interval (bootstrap over slides where these
are known, else over patches). "Judge" is the mean of validation, mean shift and mean cluster: choose recipes by it, never by
validation alone, and write down how many choices were tried.

    .venv/bin/python scripts/benchmarks/model_shifts.py MODEL MODEL ... --data pcam/ [--out judged/] [--patches 700]

With --out, the logits of each model are kept there, and what is kept is not computed again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.datasets.shifts import SHIFTS
from wsi_meta.datasets.stains import cluster_by_hue, stain_hue
from wsi_meta.evaluation.evaluate import evaluate_patches
from wsi_meta.evaluation.metrics import auc_of, figures_of
from wsi_meta.evaluation.robustness import CLUSTERS, FEWEST
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.model import Model, load_model

COLUMNS = ("validation", "mean shift", "worst shift", "mean cluster", "worst cluster", "judge")


@dataclass(frozen=True)
class Set:
    """The patches on which models are judged."""

    labels: NDArray[np.uint8]
    clusters: tuple[NDArray[np.intp], ...]
    """Indices of the patches of each cluster that has enough of both classes."""
    groups: NDArray[np.intp]
    """Number of the slide of each patch, or of the patch itself."""

    @classmethod
    def of(cls, patches: Patches) -> Set:
        """Group patches by their stains."""
        hues = np.array([stain_hue(patches.read(index)) for index in range(len(patches))])
        cluster, labels = cluster_by_hue(hues, CLUSTERS), patches.labels
        members = [np.flatnonzero(cluster == number) for number in range(int(cluster.max()) + 1)]
        kept = tuple(chosen for chosen in members if np.bincount(labels[chosen], minlength=2).min() >= FEWEST)
        names = np.arange(len(labels)) if patches.slides is None else patches.slides
        return cls(labels, kept, np.unique(names, return_inverse=True)[1].reshape(-1))

    def resamples(self, n: int, seed: int = 0) -> Iterator[NDArray[np.intp]]:
        """Return indices of drawn patches, whole slides of them, that hold both classes."""
        rng, count = np.random.default_rng(seed), int(self.groups.max()) + 1
        for _ in range(n):
            times = np.bincount(rng.integers(count, size=count), minlength=count)[self.groups]
            drawn = np.repeat(np.arange(len(times)), times)
            if 0 < self.labels[drawn].sum() < len(drawn):
                yield drawn

    def judge(self, logits: NDArray[np.float32], drawn: NDArray[np.intp] | None = None) -> NDArray[np.float64]:
        """Return the values of :data:`COLUMNS` for logits (1 + shifts, n), the unshifted ones first.

        A cluster of which only one class was drawn is left out.
        """
        drawn = np.arange(len(self.labels)) if drawn is None else drawn
        whole, *shifted = (auc_of(row[drawn], self.labels[drawn]) for row in logits)
        by_cluster = []
        for members in self.clusters:
            chosen = drawn[np.isin(drawn, members)]
            if 0 < self.labels[chosen].sum() < len(chosen):
                by_cluster.append(auc_of(logits[0, chosen], self.labels[chosen]))
        mean, cluster = float(np.mean(shifted)), float(np.mean(by_cluster)) if by_cluster else np.nan
        worst = min(by_cluster, default=np.nan)
        return np.array([whole, mean, min(shifted), cluster, worst, np.nanmean([whole, mean, cluster])])


def _logits(model: Model, patches: Patches, arguments: argparse.Namespace) -> NDArray[np.float32]:
    """Return logits (1 + shifts, n) of a model, kept or computed."""
    name = f"{model.hash[:16]}.{patches.fingerprint()[:16]}.{arguments.precision}{'.tta' if arguments.tta else ''}.npy"
    kept = None if arguments.out is None else arguments.out / name
    if kept is None or not kept.exists():
        predictor = Predictor(model, device=arguments.device, precision=arguments.precision, tta=arguments.tta)
        found = evaluate_patches(predictor, patches, workers=arguments.workers, progress=True, shifts=True)
        assert found.robustness is not None
        logits: NDArray[np.float32] = np.vstack([found.logits, found.robustness.logits])
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.save(kept, logits)
        return logits
    return np.asarray(np.load(kept), np.float32)


def table(judged: dict[str, NDArray[np.float32]], patches: Set, *, n: int = 1000) -> list[str]:
    """Return the lines of a markdown table: the figures of each model, and how they differ from the first one's.

    Parameters
    ----------
    judged : logits (1 + shifts, n patches) of each model, by its name
    patches : what they are logits of
    n : number of resamples
    """
    draws = list(patches.resamples(n))
    lines = [f"| model | {' | '.join(COLUMNS)} | worst shift is |", f"|{'---|' * (len(COLUMNS) + 2)}"]
    base: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    for name, logits in judged.items():
        values, drawn = patches.judge(logits), np.array([patches.judge(logits, chosen) for chosen in draws])
        cells = [f"{value:.4f}" for value in values]
        if base is not None:
            low, high = np.nanpercentile(drawn - base[1], (2.5, 97.5), axis=0)
            gains = zip(values - base[0], low, high, strict=True)
            cells = [
                f"{cell}, {gain:+.4f} ({least:+.4f} to {most:+.4f})"
                for cell, (gain, least, most) in zip(cells, gains, strict=True)
            ]
        base = base or (values, drawn)
        aucs = [auc_of(row, patches.labels) for row in logits[1:]]
        lines.append(f"| {name} | {' | '.join(cells)} | {SHIFTS[int(np.argmin(aucs))].name} |")
    return lines


def _calibration(name: str, model: Model, logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> str:
    """Return a line on how far the card's calibration and threshold carry."""
    threshold = model.card.thresholds["default"]
    whole, *shifted = (figures_of(row, labels, threshold) for row in model.card.calibration.to_probability(logits))
    told = []
    for figure, worst in (("ece", max), ("sensitivity_at_threshold", min), ("specificity_at_threshold", min)):
        values = [found[figure] for found in shifted]
        words = figure.removesuffix("_at_threshold")
        told.append(f"{words} {whole[figure]:.4f}, over shifts {np.mean(values):.4f}, worst {worst(values):.4f}")
    return f"{name}, by its card: {'; '.join(told)}"


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="valid")
    parser.add_argument("--patches", type=int, help="judge on a seeded choice of so many patches")
    parser.add_argument("--out", type=Path, help="folder in which logits are kept")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--tta", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    patches = open_patches(arguments.data)[arguments.split]
    if arguments.patches is not None:
        patches = patches.select(np.sort(np.random.default_rng(0).permutation(len(patches))[: arguments.patches]))
    models = {name: load_model(name) for name in arguments.models}
    logits = {name: _logits(model, patches, arguments) for name, model in models.items()}
    judged = Set.of(patches)
    print(f"{len(patches)} patches, {int(patches.labels.sum())} tumor; {len(SHIFTS)} shifts; {len(judged.clusters)} clusters\n")
    print("\n".join(table(logits, judged, n=arguments.resamples)), end="\n\n")
    for name, model in models.items():
        print(_calibration(name, model, logits[name], patches.labels))


if __name__ == "__main__":
    _main()
