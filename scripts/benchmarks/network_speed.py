"""Patches per second of the network on this machine: forward and training step, with and without the allocator's help.

Each figure is the median of several turns. The variants take turns, in processes of their own, so a drift of the machine's
speed affects all alike. Prints a table and ratios to the first variant of each kind.

    .venv/bin/python scripts/benchmarks/network_speed.py [--turns 3] [--seconds 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from wsi_meta.inference.allocator import tuned_memory
from wsi_meta.inference.device import resolve_device
from wsi_meta.models.model import build_network
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.training.initial_weights import STAGES, stage_of

BATCH = 64
"""Patches of a forward pass or a training step."""
VARIANTS = {
    "forward": ("forward plain", "forward keep", "forward keep bf16"),
    "training step": ("step plain", "step keep", "step keep frozen-layer1", "step keep head-only"),
}


def _measure(variant: str, seconds: float) -> float:
    """Return patches per second."""
    words, device = variant.split(), resolve_device()
    torch.manual_seed(0)
    network = build_network().to(device).to(memory_format=torch.channels_last)
    _freeze(network, {"frozen-layer1": "layer1", "head-only": "layer3"}.get(words[-1], "none"))
    network.train(words[0] == "step")
    patches = torch.randint(0, 256, (BATCH, 96, 96, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 2, (BATCH, 1), device=device).float()
    optimiser = torch.optim.AdamW(network.parameters())

    def forward() -> None:
        kind = torch.device(device).type
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled="bf16" in words):
            network(Preprocessing().to_input(patches))[0].cpu()

    def step() -> None:
        optimiser.zero_grad()
        binary_cross_entropy_with_logits(network(Preprocessing().to_input(patches)), labels).backward()
        optimiser.step()

    with tuned_memory(in_bands=False) if "keep" in words else nullcontext():
        return _rate(forward if words[0] == "forward" else step, seconds)


def _freeze(network: torch.nn.Module, last: str) -> None:
    """Freeze the stages up to and including `last`."""
    frozen = STAGES[: STAGES.index(last) + 1]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(stage_of(name) not in frozen)


def _rate(turn: Callable[[], None], seconds: float) -> float:
    turn()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        turn()
        count += 1
    return BATCH * count / (time.perf_counter() - start)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(_measure(arguments.variant, arguments.seconds))
        return
    for kind, variants in VARIANTS.items():
        rates: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(arguments.turns):
            for variant in variants:
                command = [sys.executable, __file__, "--variant", variant, "--seconds", str(arguments.seconds)]
                rates[variant].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(f"{kind:<28} patches/s   ratio")
        first = statistics.median(rates[variants[0]])
        for variant, values in rates.items():
            median = statistics.median(values)
            print(f"  {variant:<26} {median:9.1f} {median / first:7.2f}")


if __name__ == "__main__":
    _main()
