"""Images per second of training on this machine: the loader alone, the step alone, and both together, in one run.

They take turns and each figure is a median, so a drift of the machine's speed affects all alike. "Held" is training on patches
that were decoded once and stay on the device, as a GPU with room for them does; a CPU decodes each batch. Without --data,
patches are cut from drawn tissue and written as JPEG first.

    .venv/bin/python scripts/benchmarks/training_speed.py [--data pcam/] [--workers 2] [--turns 3] [--seconds 20]
    .venv/bin/python scripts/benchmarks/training_speed.py --recipe strong --eager    # neither recorded nor compiled
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
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
from wsi_meta.training.learner import Learner, PatchLogits, make_learner
from wsi_meta.training.loader import EpochBatches, Loader, make_loader
from wsi_meta.training.mosaics import mosaic_side
from wsi_meta.training.recipe import RECIPES

FULL_SET = 262_144
"""Patches of PatchCamelyon's training split."""
HELD_BYTES = 2**31
"""What patches may take that are decoded once; without --data or with a part of PatchCamelyon they fit."""


def _draw_patches(folder: Path, n: int) -> Path:
    image, _ = draw_lymph_node(3072, 3072, seed=0)
    places = itertools.islice(itertools.product(range(0, 2976, 48), range(0, 2976, 48)), n)
    for number, (y, x) in enumerate(places):
        place = folder / "train" / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[y : y + 96, x : x + 96]).save(place / f"{number}.jpg", quality=75)
    return folder


def _endless(loader: Loader) -> Iterator[list[torch.Tensor]]:
    while True:
        yield from loader


def _rate(turn: Iterator[object], batch_size: int, seconds: float, device: str) -> float:
    for _ in range(2):  # a step of each shape: single patches and mosaics are compiled apart
        next(turn)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(turn)
        count += 1
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return count * batch_size / (time.perf_counter() - began)


def _waits(turn: Iterator[object]) -> int:
    """Return how often a step waits for the GPU, when those before it have made what is made once."""
    for _ in range(4):
        next(turn)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "Synchronization debug mode")  # about the mode itself
        torch.cuda.set_sync_debug_mode("warn")
        next(turn)
        torch.cuda.set_sync_debug_mode("default")
    for warning in told:
        print(f"waits: {warning.filename}:{warning.lineno}: {warning.message}")
    return len(told)


def _steps(learner: Learner, batches: Iterator[list[torch.Tensor]], side: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator(learner.processes.device).manual_seed(0)
    for number, (images, labels) in enumerate(batches):
        yield learner.step(images, labels, generator, side if number % 2 else 1)


def _measure(arguments: argparse.Namespace, data: Path) -> dict[str, list[float]]:
    recipe = replace(RECIPES[arguments.recipe], batch_size=arguments.batch_size, epochs=10, head_epochs=0)
    recipe = replace(recipe, freeze=arguments.freeze or recipe.freeze)
    patches = open_patches(data)["train"]
    rates: dict[str, list[float]] = {"loader alone": [], "step alone": [], "training": [], "held": []}
    with joined_processes(arguments.device) as processes:
        start = Start(build_network(), frozenset(build_network().state_dict()), "none", "")
        learner = make_learner(start, recipe, FULL_SET // recipe.batch_size, processes, arguments.precision)
        learner.schedule = torch.optim.lr_scheduler.ConstantLR(learner.optimiser)  # may go on for ever
        learner.enter(1)
        if arguments.eager:
            learner.forward = PatchLogits(learner.network)
        order = EpochBatches(len(patches), recipe, processes)
        loader, held = (make_loader(patches, order, arguments.workers, processes, memory=room) for room in (0, HELD_BYTES))
        side, device = mosaic_side(recipe.batch_size), processes.device
        images, labels = next(iter(loader))
        same = itertools.repeat([images.to(device), labels.to(device)])
        turns: dict[str, Callable[[], Iterator[object]]] = {
            "loader alone": lambda: _endless(loader),
            "step alone": lambda: _steps(learner, same, side),
            "training": lambda: _steps(learner, _endless(loader), side),
            "held": lambda: _steps(learner, _endless(held), side),
        }
        for _, (name, turn) in itertools.product(range(arguments.turns), turns.items()):
            rates[name].append(_rate(turn(), recipe.batch_size, arguments.seconds, device))
        if device.startswith("cuda"):
            print(f"a step waits for the GPU {_waits(turns['held']())} times")
        words = f"{len(patches)} patches, batch {recipe.batch_size}, recipe {arguments.recipe}, {device}, {learner.precision}"
        print(f"{words}, {'one kernel at a time' if arguments.eager else 'recorded or compiled'}, {arguments.workers} workers")
    return rates


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--recipe", default="light", choices=list(RECIPES))
    parser.add_argument("--freeze", choices=STAGES[:5], help="default: as the recipe says")
    parser.add_argument("--eager", action="store_true", help="neither record nor compile")
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
    print(f"held / step {median['held'] / median['step alone']:.2f}")
    print(f"10 epochs of {FULL_SET:,} patches: {10 * FULL_SET / median['training'] / 60:.0f} minutes")


if __name__ == "__main__":
    _main()
