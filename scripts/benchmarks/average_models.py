"""Average the weights of models from one course of training into one, calibrated and judged anew on the validation patches.

The mean of weights along a training often generalises better than each of them (Izmailov et al. 2018, "Averaging weights
leads to wider optima"). Each SOURCE is a model file, or the checkpoint that `wsi-meta train --keep-checkpoint` leaves (its
moving average); the first one must be a model file, whose recipe and data the new card names.

    .venv/bin/python scripts/benchmarks/average_models.py SOURCE SOURCE ... --data pcam/ --out model.safetensors
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.inference.device import resolve_device, resolve_precision
from wsi_meta.models.card import read_card
from wsi_meta.models.model import half_precision, save_model
from wsi_meta.outputs import check_output
from wsi_meta.training.validation import Validation


def _weights(source: Path) -> dict[str, torch.Tensor]:
    if source.suffix == ".safetensors":
        return load_file(source)
    learner = torch.load(source, map_location="cpu", weights_only=True)["learner"]
    weights: dict[str, torch.Tensor] = learner["average"] or learner["network"]
    return half_precision(weights)


def _mean(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Average what is real, BatchNorm's statistics with the rest; counters are the last one's."""
    return {
        name: torch.stack([state[name].float() for state in states]).mean(0).to(last.dtype)
        if last.is_floating_point()
        else last
        for name, last in states[-1].items()
    }


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    out, device = check_output(arguments.out, overwrite=False), resolve_device(arguments.device)
    validation = Validation(
        open_patches(arguments.data)["valid"],
        device,
        resolve_precision(arguments.precision, device),
        arguments.workers,
        progress=True,
    )
    weights = _mean([_weights(source) for source in arguments.sources])
    averaged = [
        {"name": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()} for source in arguments.sources
    ]
    facts = read_card(arguments.sources[0]).training | {"averaged": averaged}
    card = validation.card(weights, validation.logits(weights), facts, mosaics=True)
    save_model(out, weights, card)
    print(f"{out}: dense {card.dense}")
    for name, value in card.metrics.items():
        print(f"  {name}: {value:.4f}")


if __name__ == "__main__":
    _main()
