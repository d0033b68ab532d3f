"""How much each part of the training recipe gains: trainings with one thing changed at a time, each with several seeds.

Every run trains on the same share of the training patches, writes its model and what that says of the validation patches, as
they are and under all shifts of stain and scanner (`judging.py`), and then appends a line with its figures to
OUT/results.jsonl. Runs that have a line there are not made again, so a run that is killed costs itself only. After --budget-s
no run is begun. A training step leaves most of a fast GPU idle: start four of these at once with the same --out. Each makes
the runs that no other one has begun.

    .venv/bin/python scripts/benchmarks/recipe_ablation.py pcam/ --out ablation/ --shifts-only --workers 16
    .venv/bin/python scripts/benchmarks/recipe_ablation.py pcam/ --init stem_to_layer3.safetensors --out ablation/
    .venv/bin/python scripts/benchmarks/recipe_ablation.py pcam/ --out ablation/ --table --also default OTHER.safetensors

The patches under all shifts are made once, by the first of these calls or else by the first run that is judged, and kept in OUT
(0.7 MB for each patch). The table has a row for each arm and for each model file of --also; it needs the lines and the `.npz`
files in OUT, not the models of the runs. Weights are those after the last epoch, not those of the best by validation: an epoch
that is chosen flatters. Choose recipes by column "judge", and never by the test split.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from average_models import mean_of, measure_statistics
from judging import Judge, Judged, for_card
from judging import table as judged_table
from recipe_arms import ARMS, FIRST, Arm, find_arm
from safetensors.torch import load
from soft_labels import read_soft_labels

from wsi_meta.datasets.batches import batches_of
from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.errors import DataError, OutputExistsError
from wsi_meta.files.locks import locked
from wsi_meta.models.card import ModelCard, read_card
from wsi_meta.models.model import Model, model_path, network_of, write_model
from wsi_meta.models.weights import half_precision
from wsi_meta.training.checkpoint import differences
from wsi_meta.training.distributed import Processes, joined_processes
from wsi_meta.training.epochs import Job, Parts, Run, card_facts, train_epoch
from wsi_meta.training.initial_weights import build_seeded, initialise, source_of
from wsi_meta.training.learner import PICTURES_REPAY, choose_precision
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
    shifts_share: float = 1.0
    """Of the validation patches: the part on which runs are judged. Their calibration is fitted on all."""
    soft_labels: Path | None = None
    """Folder of what cross_fit.py wrote, for arms that learn from it."""
    decoded: list[torch.Tensor] = field(default_factory=list)
    """Images and labels of `train` on the device, once they are decoded: by the first run."""

    @property
    def precision(self) -> str:
        """The precision that all runs train and are judged in: that of a long training."""
        return choose_precision(self.options.precision, self.processes.device, PICTURES_REPAY)

    def validation(self) -> Validation:
        """Return what measures weights on the validation patches."""
        device, workers = self.processes.device, self.options.workers
        return self.parts.make_validation(self.valid, device, self.precision, workers, False, self.parts.build_network)

    @cached_property
    def judge(self) -> Judge:
        """What judges the models of runs, and others."""
        patches, device = choose_share(self.valid, self.shifts_share), self.processes.device
        return Judge(patches, self.out, device, self.precision, self.options.workers, progress=self.options.progress)

    def judge_file(self, path: Path) -> Judged:
        """Return what a finished model file says; it is kept in the folder, so that the file is judged once."""
        content, card = path.read_bytes(), read_card(path)
        sha256 = hashlib.sha256(content).hexdigest()
        model = Model(network_of(load(content), self.parts.build_network), card, sha256, path)
        return self.judge.judge_once(model, self.out / f"also-{sha256[:16]}.npz")

    def results(self) -> list[dict[str, Any]]:
        """Return the lines so far, of this process and of others."""
        path = self.out / "results.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def model(self, arm: str, seed: int) -> Path:
        """Return the model file of a run; its logits lie beside it."""
        return self.out / f"{arm}-{seed}.safetensors".replace(" ", "_")


def run_arms(bench: Bench, runs: list[tuple[str, int]], epochs: int, *, budget_s: float) -> Iterator[dict[str, Any]]:
    """Make each run that has no result yet, until the time is up; append and return its line.

    Raises
    ------
    DataError
        when a run has a line that was made with other epochs, weights, patches or settings.

    Parameters
    ----------
    bench : what all runs share
    runs : names of arms, each with a seed
    epochs : number of epochs of an arm that is not longer
    budget_s : seconds from now after which no run is begun
    """
    began = time.perf_counter()
    for name, seed in runs:
        if time.perf_counter() - began >= budget_s:
            return
        with suppress(OutputExistsError), locked(bench.model(name, seed)):  # what another process makes is its own
            asked = made_with(bench, name, epochs, seed)
            if (line := next((one for one in bench.results() if (one["arm"], one["seed"]) == (name, seed)), None)) is not None:
                _refuse_other(bench, line, asked, f"'{name}' with seed {seed} was made with other settings")
                continue
            line = _run_arm(bench, name, epochs, seed, asked)
            with (bench.out / "results.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")  # one write: several processes append
            yield line


def made_with(bench: Bench, name: str, epochs: int, seed: int) -> dict[str, Any]:
    """Return what a run is made with, as its line holds it: what differs makes another run."""
    arm, soft = bench.arms[name], bench.soft_labels
    taught = hashlib.sha256(read_soft_labels(soft, bench.train).tobytes()) if arm.cross_fitted and soft is not None else None
    return shared_by_all(bench, epochs) | {
        "recipe": asdict(arm.with_epochs(epochs, seed)),
        "courses": arm.courses,
        "cross_fitted": arm.cross_fitted,
        "soft_labels": None if taught is None else taught.hexdigest(),
    }


def shared_by_all(bench: Bench, epochs: int) -> dict[str, Any]:
    """Return what runs must have in common to be compared."""
    return {
        "epochs": epochs,
        "init": digest_of_init(bench.init),
        "patches": len(bench.train),
        "train": bench.train.fingerprint(),
    }


def digest_of_init(init: str | Path) -> str:
    """Return the SHA-256 of the file of initial weights, or the word that stands for some."""
    return str(source_of(init).get("init_sha256", init))


def _refuse_other(bench: Bench, line: dict[str, Any], asked: dict[str, Any], what: str) -> None:
    """Refuse a line that was not made with what is asked, as far as it says; DataError."""
    if told := "; ".join(differences(line, asked)):
        raise DataError(f"{bench.out / 'results.jsonl'}: {what}: {told}; choose another --out")


def _run_arm(bench: Bench, name: str, epochs: int, seed: int, made: dict[str, Any]) -> dict[str, Any]:
    arm, start = bench.arms[name], time.perf_counter()
    weights = train_arm(bench, arm, epochs, seed)
    seconds = round(time.perf_counter() - start, 1)
    facts = {"arm": name, "seed": seed, "device": bench.processes.device, "seconds": seconds, **shared_by_all(bench, epochs)}
    return facts | made | judge(bench, weights, bench.model(name, seed), arm.with_epochs(epochs, seed), facts)


def judge(bench: Bench, weights: dict[str, torch.Tensor], out: Path, recipe: Recipe, facts: dict[str, Any]) -> dict[str, Any]:
    """Write a run's model, calibrated, and beside it what it says of the patches; return its figures.

    They are the card's, and under ``judged`` those of the table; None where there is none.
    """
    validation = bench.validation()
    job = Job(out, recipe, bench.options, bench.processes, bench.parts)
    training = card_facts(job, bench.init, bench.train, validation) | {"ablation": facts}
    card = validation.card(weights, validation.logits(weights), training, mosaics=recipe.mosaics > 0)
    weights, card, _ = validation.finished(weights, card, bench.train)
    judged = bench.judge.judge(Model(network_of(weights, bench.parts.build_network), card, "", out))
    values = bench.judge.judged_set.figures(judged)
    metrics = card.metrics | for_card(values)
    write_model(out, weights, replace(card, metrics=metrics))
    judged.save(out.with_suffix(".npz"))
    return metrics | {"judged": {name: value if np.isfinite(value) else None for name, value in values.items()}}


def train_arm(bench: Bench, arm: Arm, epochs: int, seed: int) -> dict[str, torch.Tensor]:
    """Train as an arm says; return the weights as a model file holds them."""
    first = arm.with_epochs(epochs, seed)
    weights = train_recipe(bench, bench.init, first, cross_fitted=arm.cross_fitted)
    if not arm.courses:
        return weights
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start.safetensors"
        write_model(start, weights, ModelCard())
        courses = [
            train_recipe(bench, start, arm.course(number + 1, epochs, seed), cross_fitted=arm.cross_fitted)
            for number in range(arm.courses)
        ]
    measured = measure_statistics(
        mean_of(courses),
        batches_of(_batches(bench, first)),
        first,
        device=bench.processes.device,
        precision=bench.precision,
        build=bench.parts.build_network,
    )
    return half_precision(measured)


def train_recipe(bench: Bench, init: str | Path, recipe: Recipe, *, cross_fitted: float = 0) -> dict[str, torch.Tensor]:
    """Train all epochs of a recipe, without a look at the validation patches; return the weights as a model file holds them.

    Parameters
    ----------
    bench : what all runs share
    init : initial weights
    recipe : how to train
    cross_fitted : see :class:`recipe_arms.Arm`
    """
    parts, processes = bench.parts, bench.processes
    start = initialise(build_seeded(parts.build_network, recipe.seed), init)
    batches = _batches(bench, recipe, cross_fitted)
    learner = parts.make_learner(start, recipe, len(batches), processes, bench.precision)
    run = Run(Job(bench.out, recipe, bench.options, processes, parts), learner, bench.train, bench.validation(), {}, {})
    for epoch in range(1, recipe.epochs + 1):
        batches.batches.epoch = epoch
        train_epoch(run, batches, epoch)
    return half_precision(learner.weights())


def _batches(bench: Bench, recipe: Recipe, cross_fitted: float = 0) -> HeldBatches:
    """Return batches of the training patches, which are decoded once for all runs."""
    if not bench.decoded:
        device, workers = bench.processes.device, bench.options.workers
        bench.decoded.extend(decode_all(bench.train, workers, device, progress=bench.options.progress))
    images, labels = bench.decoded
    if cross_fitted:
        if bench.soft_labels is None:
            raise DataError("no --soft-labels; expected the folder that cross_fit.py wrote, for the arm `cross-fitted labels`")
        soft = torch.from_numpy(read_soft_labels(bench.soft_labels, bench.train)).to(images.device)
        labels = torch.lerp(labels.float(), soft, cross_fitted)
    return HeldBatches(images, labels, EpochBatches(len(bench.train), recipe, bench.processes))


def choose_share(patches: Patches, share: float) -> Patches:
    """Return a fixed random share of patches."""
    chosen = np.random.default_rng(0).permutation(len(patches))[: round(share * len(patches))]
    return patches.select(np.sort(chosen))


def table(bench: Bench, also: Sequence[str | Path] = (), *, n: int = 1000) -> Iterator[str]:
    """Return the lines of a table with a row for each arm and each further model, compared with the first arm.

    Parameters
    ----------
    bench : gives the folder of results and the patches
    also : model files, or ``default``
    n : number of resamples for intervals

    Raises
    ------
    DataError
        when the lines are of runs that cannot be compared: of other epochs, weights or patches.
    """
    lines = bench.results()
    for line in lines:
        first = {name: lines[0][name] for name in shared_by_all(bench, 0) if name in lines[0]}
        _refuse_other(bench, line, first, "holds runs that cannot be compared")
    judged: dict[str, dict[int, Judged]] = {}
    seconds: dict[str, list[float]] = {}
    for name in dict.fromkeys((FIRST, *bench.arms)):
        for line in (line for line in lines if line["arm"] == name):
            kept = bench.model(name, line["seed"]).with_suffix(".npz")
            judged.setdefault(name, {})[line["seed"]] = Judged.load(kept, bench.judge.patches.fingerprint())
            seconds.setdefault(name, []).append(line["seconds"])
    more = {str(name): {-1: bench.judge_file(model_path(name))} for name in also}
    means = {name: float(np.mean(values)) for name, values in seconds.items()}
    yield from judged_table(judged | more, bench.judge.judged_set, n=n, seconds=means)
    arms = len({line["arm"] for line in lines})
    yield ""
    yield (
        f"{len(bench.judge.patches)} patches. Looked at: {arms} arms, {len(lines)} runs (an arm with a seed) and {len(also)} "
        f"further models. Differences are to the first row, over the seeds that both have; 95 % intervals are over patches."
    )


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--init", default="imagenet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0, help="of the training patches; default all")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1])
    parser.add_argument("--budget-s", type=float, default=float("inf"))
    parser.add_argument("--table", action="store_true", help="only print the table of results so far")
    parser.add_argument("--also", nargs="+", default=[], help="with --table: model files that get a row, judged once")
    parser.add_argument("--shifts-share", type=float, default=1.0, help="of the validation patches, to judge on; default all")
    parser.add_argument("--shifts-only", action="store_true", help="only make the shifted patches")
    parser.add_argument("--soft-labels", type=Path, help="folder that cross_fit.py wrote, for the arm `cross-fitted labels`")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = open_patches(arguments.data)
    options = TrainOptions(device=arguments.device, precision=arguments.precision, workers=arguments.workers)
    with joined_processes(arguments.device) as processes:
        train, share = choose_share(data["train"], arguments.share), arguments.shifts_share
        arms = ARMS | {name: find_arm(name) for name in arguments.arms}
        shared = {"shifts_share": share, "soft_labels": arguments.soft_labels}
        bench = Bench(arguments.init, arguments.out, train, data["valid"], processes, options, arms, **shared)
        if arguments.shifts_only:
            print(f"{len(bench.judge.shown)} patches under all shifts")
            return
        if arguments.table:
            print("\n".join(table(bench, arguments.also)))
            return
        runs = [(name, seed) for seed in arguments.seeds for name in arguments.arms]
        for line in run_arms(bench, runs, arguments.epochs, budget_s=arguments.budget_s):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    _main()
