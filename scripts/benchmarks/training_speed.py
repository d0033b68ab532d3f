"""Images per second of training on this machine: the loader alone, the step alone, and both together, in one run.

The three take turns and each figure is a median, so a drift of the machine's speed affects all alike. Without --data, patches
are cut from drawn tissue and written as JPEG first.

    .venv/bin/python scripts/benchmarks/training_speed.py [--data pcam/] [--workers 2] [--turns 3] [--seconds 20]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from PIL import Image

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.demo.synthetic import draw_lymph_node
from wsi_meta.inference.allocator import tuned_memory
from wsi_meta.inference.device import resolve_device
from wsi_meta.models.model import build_network
from wsi_meta.training.distributed import joined_processes
from wsi_meta.training.initial_weights import STAGES, Start
from wsi_meta.training.learner import Learner, make_learner
from wsi_meta.training.loader import EpochBatches, make_loader
from wsi_meta.training.mosaics import mosaic_side
from wsi_meta.training.recipe import Recipe

FULL_SET = 262_144
"""Patches of PatchCamelyon's training split."""


def _draw_patches(folder: Path, n: int) -> Path:
    image, _ = draw_lymph_node(3072, 3072, seed=0)
    places = itertools.islice(itertools.product(range(0, 2976, 48), range(0, 2976, 48)), n)
    for number, (y, x) in enumerate(places):
        place = folder / "train" / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[y : y + 96, x : x + 96]).save(place / f"{number}.jpg", quality=75)
    return folder


def _endless(loader: torch.utils.data.DataLoader[tuple[torch.Tensor, int]]) -> Iterator[list[torch.Tensor]]:
    while True:
        yield from loader


def _rate(turn: Iterator[object], batch_size: int, seconds: float, device: str) -> float:
    for _ in range(2):  # a step of each shape: single patches and mosaics are compiled apart
        next(turn)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(turn)
        count += 1
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return count * batch_size / (time.perf_counter() - began)


def _steps(learner: Learner, batches: Iterator[list[torch.Tensor]], side: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator(learner.processes.device).manual_seed(0)
    for number, (images, labels) in enumerate(batches):
        yield learner.step(images, labels, generator, side if number % 2 else 1)


def _measure(arguments: argparse.Namespace, data: Path) -> dict[str, list[float]]:
    recipe = Recipe(batch_size=arguments.batch_size, epochs=10, head_epochs=0, freeze=arguments.freeze)
    patches = open_patches(data)["train"]
    rates: dict[str, list[float]] = {"loader alone": [], "step alone": [], "training": []}
    with joined_processes(arguments.device) as processes:
        start = Start(build_network(), frozenset(build_network().state_dict()), "none", "")
        learner = make_learner(start, recipe, FULL_SET // recipe.batch_size, processes, arguments.precision)
        learner.enter(1)
        loader = make_loader(patches, EpochBatches(len(patches), recipe, processes), arguments.workers, processes)
        side, device = mosaic_side(recipe.batch_size), processes.device
        images, labels = next(iter(loader))
        same = itertools.repeat([images.to(device), labels.to(device)])
        turns: dict[str, Callable[[], Iterator[object]]] = {
            "loader alone": lambda: _endless(loader),
            "step alone": lambda: _steps(learner, same, side),
            "training": lambda: _steps(learner, _endless(loader), side),
        }
        for _, (name, turn) in itertools.product(range(arguments.turns), turns.items()):
            rates[name].append(_rate(turn(), recipe.batch_size, arguments.seconds, device))
        print(f"{len(patches)} patches, batch {recipe.batch_size}, {device}, {learner.precision}, {arguments.workers} workers")
    return rates


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--freeze", default="layer1", choices=STAGES[:5])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    memory = tuned_memory(in_bands=False) if resolve_device(arguments.device) == "cpu" else nullcontext()
    with memory, tempfile.TemporaryDirectory() as folder:  # tuned as the command line does for a training
        rates = _measure(arguments, arguments.data or _draw_patches(Path(folder), 2048))
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:<14}{median[name]:9.1f} images/s   ({min(values):.1f} to {max(values):.1f})")
    print(f"loader / step {median['loader alone'] / median['step alone']:9.2f}")
    print(f"share of the smaller limit {median['training'] / min(median['loader alone'], median['step alone']):.2f}")
    print(f"10 epochs of {FULL_SET:,} patches: {10 * FULL_SET / median['training'] / 60:.0f} minutes")


if __name__ == "__main__":
    _main()
