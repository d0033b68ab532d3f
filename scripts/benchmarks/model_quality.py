"""How good a model is on labelled patches: single view, eight views, and dense mode in mosaics of strangers, in one run.

Calibration and threshold are fitted on one half of the patches and judged on the other, then the halves
change places. Dense mode is compared with patch mode on the same patches and in the same precision.

    .venv/bin/python scripts/benchmarks/model_quality.py MODEL pcam/ [--split valid]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.evaluation.calibration import cross_fit, validation_metrics
from wsi_meta.evaluation.evaluate import evaluate_patches
from wsi_meta.evaluation.results import Agreement
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.card import Calibration
from wsi_meta.models.model import load_model
from wsi_meta.training.mosaics import predict_in_mosaics

COLUMNS = ("auc", "accuracy", "accuracy_at_threshold", "sensitivity", "specificity", "log_loss", "brier", "ece")


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="valid")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    patches, model = open_patches(arguments.data)[arguments.split], load_model(arguments.model)
    logits: dict[str, NDArray[np.float32]] = {}
    for name, tta in (("single view", False), ("eight views", True)):
        predictor = Predictor(model, device=arguments.device, precision=arguments.precision, tta=tta)
        logits[name] = evaluate_patches(predictor, patches, workers=arguments.workers, progress=True).logits
    device, precision = predictor.device, predictor.precision
    logits["dense"] = predict_in_mosaics(
        model, patches, device=device, precision=precision, workers=arguments.workers, progress=True
    )
    print(f"{len(patches)} patches, {int(patches.labels.sum())} tumor, {device}, {precision}\n")
    print(f"| | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for name, values in logits.items():
        figures = validation_metrics(values, patches.labels)
        print(f"| {name} | {' | '.join(f'{figures[column]:.4f}' for column in COLUMNS)} |")
    both = logits["single view"], logits["dense"]
    alone, inside = (_log_odds(cross_fit(values, patches.labels)[0]) for values in both)
    _print_agreement("each calibrated for itself", Agreement.of(alone, inside, patches.labels, Calibration()))
    _print_agreement("by the card's one calibration", Agreement.of(*both, patches.labels, model.card.calibration))


def _log_odds(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    limited = np.clip(probabilities.astype(np.float64), 1e-12, 1 - 1e-12)
    return np.asarray(np.log(limited / (1 - limited)), np.float32)


def _print_agreement(words: str, found: Agreement) -> None:
    print(
        f"dense against single view, {words}: AUC {found.other_auc - found.usual_auc:+.4f}, "
        f"mean difference of probability {found.mean_difference:.4f}, same decision {found.same_decision:.4f}"
    )


if __name__ == "__main__":
    _main()
