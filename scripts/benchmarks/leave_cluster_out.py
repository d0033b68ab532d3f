"""How well a recipe works on stains that it has not seen: trained without one cluster of stains, judged on that cluster.

Groups a fixed share of all training and validation patches by the colours of their stains. For each cluster and each arm it
trains on the other clusters' training patches, chooses the epoch on their validation patches, and judges on all patches of the
cluster left out. Prints the AUC of each, and the mean; clusters with too few of a class are not left out. Finished trainings
are not repeated, interrupted ones go on.

    .venv/bin/python scripts/benchmarks/leave_cluster_out.py pcam/ --init stem_to_layer3.safetensors --out left_out/

The arms are those of recipe_arms.py, without their further courses: --arms 0.1.0,strong.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from recipe_arms import ARMS, FIRST
from safetensors.torch import load_file

from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.datasets.stains import cluster_by_hue, describe_hue, stain_hue
from wsi_meta.errors import OutputExistsError
from wsi_meta.evaluation.evaluate import evaluate_patches
from wsi_meta.evaluation.robustness import CLUSTERS, FEWEST
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.card import read_card
from wsi_meta.models.model import Model, network_of
from wsi_meta.training.epochs import Parts
from wsi_meta.training.recipe import Recipe, TrainOptions
from wsi_meta.training.train import RESNET50_PARTS, run_training


@dataclass(frozen=True)
class LeftOut:
    """One cluster of stains, left out of the training."""

    words: str
    data: Path
    """Folder of links: the other clusters' patches as ``train`` and ``valid``, its own as ``test``."""


def link_clusters(data: Path, folder: Path, *, share: float = 1 / 3, clusters: int = CLUSTERS) -> Iterator[LeftOut]:
    """Link a share of the patches into a folder for each cluster that is left out, which a later call finds as it is.

    Parameters
    ----------
    data : folder of labelled patches with the splits train and valid, as image files
    folder : where to make ``without_0`` and so on
    share : of the patches of each split; the choice is seeded
    clusters : number of groups

    Raises
    ------
    OutputExistsError
        when a folder holds other links: of another share, other clusters or other data.
    """
    splits, rng = open_patches(data), np.random.default_rng(0)
    chosen = {}
    for name in ("train", "valid"):
        order = rng.permutation(len(splits[name]))
        chosen[name] = splits[name].select(np.sort(order[: round(share * len(order))]))
    names = np.repeat(list(chosen), [len(patches) for patches in chosen.values()])
    hues = np.array([stain_hue(patches.read(index)) for patches in chosen.values() for index in range(len(patches))])
    labels = np.concatenate([patches.labels for patches in chosen.values()])
    cluster = cluster_by_hue(hues, clusters)
    for number in range(int(cluster.max()) + 1):
        inside = cluster == number
        if np.bincount(labels[inside], minlength=2).min() < FEWEST:
            continue
        place = folder / f"without_{number}"
        links: dict[Path, Path] = {}
        for name, patches in chosen.items():
            held = inside[names == name]
            links |= links_of(patches.select(np.flatnonzero(~held)), place / name, name)
            links |= links_of(patches.select(np.flatnonzero(held)), place / "test", name)
        _make(links, place)
        yield LeftOut(f"{describe_hue(hues, np.flatnonzero(inside))} ({inside.sum()} patches)", place)


def links_of(patches: Patches, place: Path, split: str) -> dict[Path, Path]:
    """Return where each link of patches goes, named by their split too, as two splits may have the same names."""
    files = zip(patches.files, patches.labels.tolist(), strict=True)
    return {place / str(label) / f"{split}_{path.name}": path.resolve() for path, label in files}


def _make(links: dict[Path, Path], place: Path) -> None:
    """Make the links in a folder that has none, or these; OutputExistsError for one with others."""
    there = {path: path.resolve() for path in place.rglob("*") if path.is_symlink() or path.is_file()}
    if there.items() - links.items():
        raise OutputExistsError(f"{place}: holds links of another share, other clusters or data; choose another --out")
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if link not in there:
            link.symlink_to(target)


def judge_arm(
    left_out: LeftOut, out: Path, recipe: Recipe, init: str, options: TrainOptions, *, parts: Parts = RESNET50_PARTS
) -> float:
    """Train without the cluster, and return the AUC on it.

    Parameters
    ----------
    left_out : the cluster
    out : model file to write; a training that is finished or interrupted there goes on
    recipe, init, options, parts : as :func:`wsi_meta.training.train.run_training` takes them
    """
    run_training(left_out.data, init, out, recipe, replace(options, resume=True), parts)
    model = Model(network_of(load_file(out), parts.build_network), read_card(out), "", out)
    predictor = Predictor(model, device=options.device, precision=options.precision)
    patches = open_patches(left_out.data)["test"]
    return evaluate_patches(predictor, patches, workers=options.workers, progress=options.progress).auc


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--init", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1 / 3)
    parser.add_argument("--clusters", type=int, default=CLUSTERS)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--arms", type=lambda text: text.split(","), default=[FIRST])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    options = TrainOptions(device=arguments.device, workers=arguments.workers, progress=True)
    clusters = list(link_clusters(arguments.data, arguments.out, share=arguments.share, clusters=arguments.clusters))
    print(f"| left out | {' | '.join(arguments.arms)} |\n|{'---|' * (1 + len(arguments.arms))}")
    found: list[NDArray[np.float64]] = []
    for number, left_out in enumerate(clusters):
        aucs = []
        for arm in arguments.arms:
            out = arguments.out / f"{arm} {number}.safetensors".replace(" ", "_")
            recipe = ARMS[arm].with_epochs(arguments.epochs, seed=0)
            aucs.append(judge_arm(left_out, out, recipe, arguments.init, options))
        found.append(np.array(aucs))
        print(_row(left_out.words, found[-1]), flush=True)
    print(_row("mean", np.mean(found, axis=0)))


def _row(words: str, aucs: NDArray[np.float64]) -> str:
    return f"| {words} | {' | '.join(f'{auc:.4f}' for auc in aucs)} |"


if __name__ == "__main__":
    _main()
