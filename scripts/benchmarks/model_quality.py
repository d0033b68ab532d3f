"""What a model is worth on labelled patches: single view, eight views, and dense mode in mosaics of strangers, in one run.

Calibration and threshold are fitted on one half of the patches and judged on the other, and the other way round. Dense mode is
compared with patch mode on the same patches and in the same precision.

    .venv/bin/python scripts/benchmarks/model_quality.py MODEL pcam/ [--split valid]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.evaluation.calibrate import cross_fit, validation_metrics
from wsi_meta.evaluation.evaluate import evaluate_patches
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.model import load_model
from wsi_meta.training.mosaics import Agreement, predict_in_mosaics

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
    logits: dict[str, np.ndarray] = {}
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
    alone, inside = (cross_fit(logits[name], patches.labels)[0] for name in ("single view", "dense"))
    found = Agreement.of(alone, inside, patches.labels)
    agreed = Agreement.of(
        *(model.card.calibration.to_probability(logits[name]) for name in ("single view", "dense")), patches.labels
    )
    for words, figures in (("each calibrated for itself", found), ("by the card's one calibration", agreed)):
        print(
            f"dense against single view, {words}: AUC {figures.dense_auc - figures.patch_auc:+.4f}, "
            f"mean difference of probability {figures.mean_difference:.4f}, same decision {figures.same_decision:.4f}"
        )


if __name__ == "__main__":
    _main()
