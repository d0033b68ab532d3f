"""Which of several models works best on slides from elsewhere: validation, shifts of stain and scanner, clusters of stains.

Judges every MODEL on the same patches: as they are, under each shift of `wsi-meta evaluate --shifts`, by clusters of their
stains, in dense mode and with averaged views. Prints one table; every difference is to the first model, with a paired 95 %
interval (bootstrap over slides where these are known, else over patches). "Judge" is the mean of validation, mean shift and
mean cluster: choose recipes by it, never by validation alone, and write down how many choices were tried.

    .venv/bin/python scripts/benchmarks/model_shifts.py MODEL MODEL ... --data pcam/ [--out judged/] [--patches 700]

With --out, the shifted patches (0.7 MB for each) and the logits of each model are kept there, and what is kept is not computed
again. With --write-cards the figures on shifts and clusters are added to the card in each model's file. For models that an
ablation trained, and others beside them: recipe_ablation.py --table --also FILE.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from judging import Judge, for_card, table
from numpy.typing import NDArray

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.datasets.shifts import SHIFTS
from wsi_meta.evaluation.metrics import figures_of
from wsi_meta.inference.options import InferenceOptions, resolve_inference
from wsi_meta.models.model import Model, load_model, save_model, stored_weights


def _calibration(name: str, model: Model, logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> str:
    """Return a line on how far the card's calibration and threshold carry."""
    threshold = model.card.thresholds["default"]
    whole, *shifted = (figures_of(row, labels, threshold) for row in model.card.calibration.to_probability(logits))
    told = []
    for figure, worst in (("ece", max), ("sensitivity_at_threshold", min), ("specificity_at_threshold", min)):
        values = [found[figure] for found in shifted]
        words = figure.removesuffix("_at_threshold")
        told.append(f"{words} {whole[figure]:.4f}, over shifts {np.mean(values):.4f}, worst {worst(values):.4f}")
    return f"{name}, by its card: {'; '.join(told)}"


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="valid")
    parser.add_argument("--patches", type=int, help="judge on a seeded choice of so many patches")
    parser.add_argument("--out", type=Path, help="folder in which logits are kept")
    parser.add_argument("--write-cards", action="store_true", help="write each model's figures into its file")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--tta", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    patches = open_patches(arguments.data)[arguments.split]
    if arguments.patches is not None:
        patches = patches.select(np.sort(np.random.default_rng(0).permutation(len(patches))[: arguments.patches]))
    plan = resolve_inference(InferenceOptions(arguments.device, arguments.precision))
    settings = {"workers": arguments.workers, "tta": arguments.tta, "progress": True}
    models = {name: load_model(name) for name in arguments.models}
    with tempfile.TemporaryDirectory() as folder:
        out = arguments.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        judge = Judge(patches, out, plan.device, plan.precision, **settings)
        ending = f"{patches.fingerprint()[:16]}.{plan.precision}{'.tta' if arguments.tta else ''}.npz"
        judged = {name: judge.judge_once(model, out / f"{model.hash[:16]}.{ending}") for name, model in models.items()}
    found = judge.judged_set
    print(f"{len(patches)} patches, {int(patches.labels.sum())} tumor; {len(SHIFTS)} shifts; {len(found.clusters)} clusters\n")
    print("\n".join(table({name: {0: one} for name, one in judged.items()}, found, n=arguments.resamples)), end="\n\n")
    for name, model in models.items():
        print(_calibration(name, model, judged[name].shown, patches.labels))
        if arguments.write_cards:
            card = replace(model.card, metrics=model.card.metrics | for_card(found.figures(judged[name])))
            save_model(model.path, stored_weights(model), card, model.features, model.known_patches)


if __name__ == "__main__":
    _main()
