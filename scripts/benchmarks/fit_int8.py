"""Make a finished model's weights fit 8-bit integers, as the end of a training does, and calibrate and judge it again.

For model files from before trainings did so, and for those whose weights were changed by hand.

    .venv/bin/python scripts/benchmarks/fit_int8.py MODEL --data pcam/ --out model.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

from average_models import conclude

from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.inference.device import resolve_device, resolve_precision
from wsi_meta.models.card import ModelCard, read_card
from wsi_meta.models.known_patches import read_known_patches
from wsi_meta.models.model import model_path, write_model
from wsi_meta.models.weights import read_weights
from wsi_meta.outputs.checks import check_output, refuse_input
from wsi_meta.training.validation import Validation

__all__ = ["fit_int8"]


def fit_int8(model: Path, out: Path, train_set: Patches, validation: Validation) -> ModelCard:
    """Write a model file with the weights of another, made for int8; return its card. What else the card says is kept.

    Parameters
    ----------
    model, out : model files
    train_set : patches that the model was trained on
    validation : of the patches to calibrate and judge on
    """
    state, card, _ = validation.finished(read_weights(model), read_card(model), train_set)
    write_model(out, state, card, known_patches=read_known_patches(model))
    return card


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model file, or default")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    model, out = model_path(arguments.model), check_output(arguments.out, overwrite=False)
    refuse_input(out, "the model to fit", model)
    data, device = open_patches(arguments.data), resolve_device(arguments.device)
    precision = resolve_precision(arguments.precision, device)
    validation = Validation(data["valid"], device, precision, arguments.workers, progress=True)
    conclude(out, fit_int8(model, out, data["train"], validation), data["train"], validation)


if __name__ == "__main__":
    _main()
