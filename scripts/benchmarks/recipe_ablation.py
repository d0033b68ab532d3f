"""How much each part of the training recipe gains: trainings with one thing changed at a time, each with several seeds.

Every run trains on the same share of the training patches, writes its model and its validation logits, and then appends a line
to OUT/results.jsonl; runs that have a line there are not made again, so a run that is killed costs itself only. After
--budget-s no run is begun. A training step leaves most of a fast GPU idle: start four of these at once, with --part 1/4 to
--part 4/4 and the same --out.

    .venv/bin/python scripts/benchmarks/recipe_ablation.py pcam/ --init stem_to_layer3.safetensors --out ablation/
    .venv/bin/python scripts/benchmarks/recipe_ablation.py pcam/ --out ablation/ --table

Weights are those after the last epoch, not those of the best by validation: an epoch that is chosen flatters. `judge` is the
place for further figures. Choose recipes by this, and never by the test split.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from average_models import mean_of, measure_statistics
from numpy.typing import NDArray
from recipe_arms import ARMS, FIRST, Arm

from wsi_meta.datasets.layouts import Patches, open_patches, read_batches
from wsi_meta.evaluation.calibrate import cross_fit
from wsi_meta.evaluation.metrics import auc_of
from wsi_meta.models.card import ModelCard
from wsi_meta.models.model import half_precision, save_model
from wsi_meta.training.distributed import Processes, joined_processes
from wsi_meta.training.epochs import Job, Parts, Run, describe, train_epoch
from wsi_meta.training.initial_weights import build_seeded, initialise
from wsi_meta.training.learner import choose_precision
from wsi_meta.training.loader import EpochBatches, HeldBatches, decode_all
from wsi_meta.training.recipe import Recipe, TrainOptions
from wsi_meta.training.validation import Validation


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    init: str | Path
    """Initial weights of every first training."""
    out: Path
    """Folder of models, logits and results."""
    train: Patches
    valid: Patches
    processes: Processes
    options: TrainOptions
    arms: Mapping[str, Arm]
    parts: Parts = field(default_factory=Parts)
    decoded: list[torch.Tensor] = field(default_factory=list)
    """Images and labels of `train` on the device, once they are decoded: by the first run."""

    @property
    def precision(self) -> str:
        """The precision that all runs train and are judged in."""
        return choose_precision(self.options.precision, self.processes.device)

    def validation(self) -> Validation:
        """Return what measures weights on the validation patches."""
        device, workers = self.processes.device, self.options.workers
        return self.parts.make_validation(self.valid, device, self.precision, workers, False, self.parts.build_network)

    def results(self) -> list[dict[str, Any]]:
        """Return the lines so far, of this process and of others."""
        path = self.out / "results.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def model(self, arm: str, seed: int) -> Path:
        """Return the model file of a run; its logits lie beside it."""
        return self.out / f"{arm}-{seed}.safetensors".replace(" ", "_")


def run_arms(bench: Bench, runs: list[tuple[str, int]], epochs: int, *, budget_s: float) -> Iterator[dict[str, Any]]:
    """Make each run that has no result yet, until the time is up; append and return its line.

    Parameters
    ----------
    bench : what all runs share
    runs : names of arms, each with a seed
    epochs : number of epochs of an arm that is not longer
    budget_s : seconds from now after which no run is begun
    """
    began = time.perf_counter()
    for name, seed in runs:
        if any((line["arm"], line["seed"]) == (name, seed) for line in bench.results()):
            continue
        if time.perf_counter() - began >= budget_s:
            return
        arm, start = bench.arms[name], time.perf_counter()
        weights = train_arm(bench, arm, epochs, seed)
        facts = {
            "arm": name,
            "seed": seed,
            "epochs": epochs,
            "device": bench.processes.device,
            "patches": len(bench.train),
            "seconds": round(time.perf_counter() - start, 1),
        }
        line = facts | judge(bench, weights, bench.model(name, seed), arm.with_epochs(epochs, seed), facts)
        with (bench.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")  # one write: several processes append
        yield line


def judge(bench: Bench, weights: dict[str, torch.Tensor], out: Path, recipe: Recipe, facts: dict[str, Any]) -> dict[str, float]:
    """Write a run's model, calibrated, and its validation logits; return its figures.

    Judges of other patches belong here: they find the model file at `out`.
    """
    validation = bench.validation()
    logits = validation.logits(weights)
    np.save(out.with_suffix(".npy"), logits)
    job = Job(out, recipe, bench.options, bench.processes, bench.parts)
    training = describe(job, Path(bench.init).name, bench.train, validation) | {"ablation": facts}
    card = validation.card(weights, logits, training, mosaics=recipe.mosaics > 0)
    save_model(out, weights, card)
    return card.metrics


def train_arm(bench: Bench, arm: Arm, epochs: int, seed: int) -> dict[str, torch.Tensor]:
    """Train as an arm says; return the weights as a model file holds them."""
    first = arm.with_epochs(epochs, seed)
    weights = _train(bench, bench.init, first)
    if not arm.courses:
        return weights
    start = bench.out / f"start-{seed}.safetensors"
    save_model(start, weights, ModelCard())
    courses = [_train(bench, start, arm.course(number + 1, epochs, seed)) for number in range(arm.courses)]
    start.unlink()
    measured = measure_statistics(
        mean_of(courses),
        read_batches(_batches(bench, first)),
        first,
        device=bench.processes.device,
        precision=bench.precision,
        build=bench.parts.build_network,
    )
    return half_precision(measured)


def _train(bench: Bench, init: str | Path, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Train all epochs of a recipe, without a look at the validation patches."""
    parts, processes = bench.parts, bench.processes
    start = initialise(build_seeded(parts.build_network, recipe.seed), init)
    batches = _batches(bench, recipe)
    learner = parts.make_learner(start, recipe, len(batches), processes, bench.precision)
    run = Run(Job(bench.out, recipe, bench.options, processes, parts), learner, bench.train, bench.validation(), {})
    for epoch in range(1, recipe.epochs + 1):
        batches.batches.epoch = epoch
        train_epoch(run, batches, epoch)
    return half_precision(learner.weights())


def _batches(bench: Bench, recipe: Recipe) -> HeldBatches:
    """Return batches of the training patches, which are decoded once for all runs."""
    if not bench.decoded:
        device, workers = bench.processes.device, bench.options.workers
        bench.decoded.extend(decode_all(bench.train, workers, device, progress=bench.options.progress))
    images, labels = bench.decoded
    return HeldBatches(images, labels, EpochBatches(len(bench.train), recipe, bench.processes))


def choose_share(patches: Patches, share: float) -> Patches:
    """Return a fixed random share of patches."""
    chosen = np.random.default_rng(0).permutation(len(patches))[: round(share * len(patches))]
    return patches.select(np.sort(chosen))


def choose_part(runs: list[tuple[str, int]], part: str) -> list[tuple[str, int]]:
    """Return every n-th run, of part ``k/n``."""
    number, count = map(int, part.split("/"))
    return runs[number - 1 :: count]


def table(bench: Bench) -> Iterator[str]:
    """Return the lines of a table: figures of each arm as means over its seeds, and what they gain over the first arm's."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for line in bench.results():
        found.setdefault(line["arm"], {})[line["seed"]] = line
    yield "| arm | seeds | AUC | difference | accuracy | difference | dense AUC | s |\n|---|---|---|---|---|---|---|---|"
    for name in [name for name in bench.arms if name in found]:
        seeds = sorted(set(found[name]) & set(found.get(FIRST, found[name])))
        if seeds:
            yield _row(bench, name, seeds, list(found[name].values()), paired=name != FIRST and FIRST in found)


def _row(bench: Bench, name: str, seeds: list[int], lines: list[dict[str, Any]], *, paired: bool) -> str:
    labels = bench.valid.labels
    cells = []
    for figure in (_auc, _accuracy):
        ours, base = (
            [figure(np.load(bench.model(arm, seed).with_suffix(".npy")), labels) for arm in arms for seed in seeds]
            for arms in ([name], [FIRST] if paired else [])
        )
        everything = np.arange(len(labels))
        cells.append(f"{np.mean([one(everything) for one in ours]):.4f}")
        cells.append(_difference(ours, base, labels) if paired else "")
    dense = [line["dense_auc"] for line in lines if "dense_auc" in line]
    more = f"{np.mean(dense):.4f}" if dense else ""
    return f"| {name} | {len(seeds)} | {' | '.join(cells)} | {more} | {np.mean([line['seconds'] for line in lines]):.0f} |"


Figure = Callable[[NDArray[np.intp]], float]
"""A figure of some of the validation patches."""


def _auc(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> Figure:
    return lambda chosen: auc_of(logits[chosen], labels[chosen])


def _accuracy(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> Figure:
    right = cross_fit(logits, labels)[1] == labels.astype(bool)
    return lambda chosen: float(right[chosen].mean())


def _difference(ours: list[Figure], base: list[Figure], labels: NDArray[np.uint8]) -> str:
    """Return the mean difference over seeds, and its 95 % interval over patches resampled in each class, alike in both arms."""

    def gain(chosen: NDArray[np.intp]) -> float:
        return float(np.mean([mine(chosen) - its(chosen) for mine, its in zip(ours, base, strict=True)]))

    rng = np.random.default_rng(0)
    classes = [np.flatnonzero(labels == label) for label in (0, 1)]
    draws = (np.concatenate([rng.choice(places, len(places)) for places in classes]) for _ in range(1000))
    low, high = np.percentile([gain(chosen) for chosen in draws], [2.5, 97.5])
    return f"{gain(np.arange(len(labels))):+.4f} ({low:+.4f} to {high:+.4f})"


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--init", default="imagenet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0, help="of the training patches; default all")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1])
    parser.add_argument("--part", default="1/1", help="k/n: of every n runs, the k-th")
    parser.add_argument("--budget-s", type=float, default=float("inf"))
    parser.add_argument("--table", action="store_true", help="only print the table of results so far")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = open_patches(arguments.data)
    options = TrainOptions(device=arguments.device, precision=arguments.precision, workers=arguments.workers)
    with joined_processes(arguments.device) as processes:
        train = choose_share(data["train"], arguments.share)
        bench = Bench(arguments.init, arguments.out, train, data["valid"], processes, options, ARMS)
        if arguments.table:
            print("\n".join(table(bench)))
            return
        runs = choose_part([(name, seed) for seed in arguments.seeds for name in arguments.arms], arguments.part)
        for line in run_arms(bench, runs, arguments.epochs, budget_s=arguments.budget_s):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    _main()
