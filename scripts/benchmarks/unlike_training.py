"""Does the distance of features tell what is unlike training: other slides, changed colours, skin, drawn, fluorescence?

Statistics are made of training patches (:mod:`wsi_meta.models.features`); then the unlikeness of the patches of several sets is
printed and drawn: validation patches, these under all shifts of stain and scanner and in false colours, drawn tissue, and each
slide that is named.

    .venv/bin/python scripts/benchmarks/unlike_training.py MODEL pcam/ SLIDE... --out unlike.png [--patches 300]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.datasets.shifts import SHIFTS
from wsi_meta.demo.synthetic import MPP, draw_lymph_node
from wsi_meta.evaluation.model_parts import look_at
from wsi_meta.models.model import Model, describe_patches, load_model
from wsi_meta.slides.slide import open_slide

Images = list[NDArray[np.uint8]]
PATCH_PX = 96
GLASS = 225
"""Patches brighter than this on average are left out."""
FALSE_COLOURS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "grey": lambda patch: np.asarray(Image.fromarray(patch).convert("L").convert("RGB")),
    "red and blue swapped": lambda patch: patch[..., ::-1],
    "negative": lambda patch: 255 - patch,
}


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("slides", type=Path, nargs="*")
    parser.add_argument("--out", type=Path, required=True, help="picture to draw")
    parser.add_argument("--patches", type=int, default=200, help="at most so many of each set, of changed ones half")
    arguments = parser.parse_args()
    model, splits = load_model(arguments.model), open_patches(arguments.data)

    training = look_at(splits["train"], model, progress=True)
    if training is None:
        raise SystemExit(f"{arguments.data}: too few training patches to tell what is usual")
    found = {
        name: training.unlikeness(describe_patches(model, np.stack(images)))
        for name, images in _sets(model, splits["valid"], arguments.slides, arguments.patches).items()
    }
    print(f"statistics of {training.patches} training patches; {len(str(training.to_dict()))} letters\n")
    print("| patches | | median | 90 % below | over 1 |\n|---|---|---|---|---|")
    for name, values in found.items():
        print(
            f"| {name} | {len(values)} | {np.median(values):.2f} | {np.quantile(values, 0.9):.2f} | {(values > 1).mean():.0%} |"
        )
    _draw(found, arguments.out)


def _sets(model: Model, valid: Patches, slides: list[Path], at_most: int) -> dict[str, Images]:
    shown = _drawn_from(valid, at_most)
    sets = {"validation": shown}
    changes = {shift.words: shift.change for shift in SHIFTS} | FALSE_COLOURS
    sets |= {f"validation, {words}": [change(patch) for patch in shown[: at_most // 2]] for words, change in changes.items()}
    image, _ = draw_lymph_node(6144, 6144, seed=0)
    side = round(6144 * MPP / model.card.preprocessing.mpp)
    sets["drawn tissue"] = _some(_cut(np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))), at_most)
    for path in slides:
        with open_slide(path) as slide:
            mpp = model.card.preprocessing.mpp
            width, height = (int(length * slide.mpp / mpp) for length in (slide.width, slide.height))
            sets[path.stem] = _some(_cut(slide.read_at(mpp, 0, 0, width, height)), at_most)
    return sets


def _drawn_from(patches: Patches, count: int) -> Images:
    return [np.asarray(patches.read(int(n))) for n in np.random.default_rng(0).permutation(len(patches))[:count]]


def _cut(image: NDArray[np.uint8]) -> Images:
    """Cut an image into patches side by side, without those that are glass."""
    rows, cols = (range(0, length - PATCH_PX + 1, PATCH_PX) for length in image.shape[:2])
    patches = [image[row : row + PATCH_PX, col : col + PATCH_PX] for row in rows for col in cols]
    return [patch for patch in patches if patch.mean() < GLASS]


def _some(images: Images, count: int) -> Images:
    return [images[int(number)] for number in np.random.default_rng(0).permutation(len(images))[:count]]


def _draw(found: dict[str, NDArray[np.float32]], out: Path) -> None:
    """Draw the distribution of each set as a row of points, with its median."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.32 * len(found) + 1.4), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    random = np.random.default_rng(0)
    for place, values in enumerate(found.values()):
        over = values > 1
        heights = place + random.uniform(-0.3, 0.3, len(values))
        for points, colour in ((~over, "#4c78a8"), (over, "#d1495b")):
            axes.scatter(values[points], heights[points], s=7, c=colour, alpha=0.6, linewidths=0)
        axes.plot([np.median(values)] * 2, [place - 0.38, place + 0.38], color="black", linewidth=2)
    axes.axvline(1, color="grey", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(found)), [f"{name} ({len(values)})" for name, values in found.items()])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlabel("unlikeness to training; bars: medians")
    figure.savefig(out)


if __name__ == "__main__":
    _main()
