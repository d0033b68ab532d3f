"""Writes into a model file what its training patches look like to it; weights, card and calibration stay as they are.

    .venv/bin/python scripts/benchmarks/describe_model.py MODEL pcam/ --out new.safetensors [--patches 4000]

`wsi-meta calibrate` writes the same of the patches that it is given. A scan compares a slide with them (docs/benchmarks.md,
"Verdicts").
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.models.features import FeatureStatistics
from wsi_meta.models.model import describe_patches, load_model, save_model


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--patches", type=int, default=4000)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    model, patches = load_model(arguments.model), open_patches(arguments.data)[arguments.split]
    chosen = np.random.default_rng(0).permutation(len(patches))[: arguments.patches]
    described = [describe_patches(model, np.stack(patches.read_many(some.tolist()))) for some in np.array_split(chosen, 50)]
    features = FeatureStatistics.of(np.concatenate(described))
    save_model(arguments.out, load_file(model.path), model.card, features)
    print(f"{arguments.out}: {features.patches} patches, usual distance {features.usual:.3f}")


if __name__ == "__main__":
    _main()
