"""Can a cheap look leave out fat and empty stroma before the network, and lose no tumor?

Of each labelled patch some statistics are taken without a network, at four resolutions: how much haematoxylin there is, how
much of the patch is nuclei, how uneven it is. A threshold keeps all but 5 in 10,000 of the training split's tumor patches; then
it is judged on the validation split, whose slides are others, and (those at an overview's resolution) on overviews of whole
slides with their lesion masks. A gradient-boosted tree on all statistics shows what a fitted rule could do at most.

    .venv/bin/python scripts/benchmarks/cell_filter.py pcam/ [--overviews FOLDER] [--kept statistics.npz]

FOLDER holds NAME_overview.png at 15.55 um per pixel and NAME_lesion_mask.png.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import label
from skimage.color import hed_from_rgb
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import cross_val_predict

from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.demo.pyramid_writer import write_pyramid
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.tissue import find_tissue

Statistics = dict[str, NDArray[np.float32]]
"""By their names, a value of each for each patch."""
Rules = dict[str, tuple[Callable[[Statistics], NDArray[Any]], float]]
"""By their names, what scores patches, and the score under which one is left out."""
KEPT = 0.9995
"""Share of tumor patches that must be kept."""
PATCH_PX, CELL_PX, MPP = 96, 32, 0.972
REDUCED = {"0.97 um": 1, "1.9 um": 2, "7.8 um": 8, "15.6 um": 16}
"""Looks, and by how much each is coarser than the model's pixels."""
OVERVIEW = "15.6 um"
NUCLEUS = 0.6
"""Optical density of haematoxylin from which a pixel counts as nucleus."""
GLASS = 243.0
"""Glass in the patches; an overview's is brought to it."""
STAIN = hed_from_rgb[:, :2].astype(np.float32)
DENSITY = -np.log10(np.maximum(np.arange(256), 1) / 255).astype(np.float32)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--overviews", type=Path)
    parser.add_argument("--kept", type=Path, help="file (.npz) for the statistics: read if it exists, else written")
    arguments = parser.parse_args()
    splits = {name: part for name, part in open_patches(arguments.data).items() if name in ("train", "valid")}
    found = _read(splits, arguments.kept)
    labels = {name: part.labels for name, part in splits.items()}
    rules = _print_patches(found, labels)
    if arguments.overviews:
        for path in sorted(arguments.overviews.glob("*_overview.png")):
            _print_overview(path, rules)


def _read(splits: dict[str, Patches], kept: Path | None) -> dict[str, Statistics]:
    """Return of each split its statistics by name, each with a value for each patch."""
    if kept is not None and kept.exists():
        with np.load(kept) as stored:
            return {split: {name: stored[f"{split}/{name}"] for name in _names()} for split in splits}
    found = {split: _statistics_of(patches) for split, patches in splits.items()}
    if kept is not None:
        named: dict[str, Any] = {f"{split}/{name}": values for split, parts in found.items() for name, values in parts.items()}
        np.savez(kept, **named)
    return found


def _names() -> list[str]:
    return list(_statistics(np.zeros((1, PATCH_PX, PATCH_PX, 3), np.uint8)))


def _statistics_of(patches: Patches, at_once: int = 64) -> Statistics:
    parts = []
    for first in range(0, len(patches), at_once):
        numbers = range(first, min(first + at_once, len(patches)))
        parts.append(_statistics(np.stack([np.asarray(patches.read(number)) for number in numbers])))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _statistics(images: NDArray[np.uint8]) -> Statistics:
    """Return the statistics of patches, uint8 (n, 96, 96, 3), each float32 (n,): the more, the more like tumor."""
    found: Statistics = {}
    for look, factor in REDUCED.items():
        side = PATCH_PX // factor
        small = images.reshape(-1, side, factor, side, factor, 3).mean((2, 4), dtype=np.float32).round().astype(np.uint8)
        cell = slice(side // 3, side * 2 // 3)
        for name, values in _of_look(small, cell).items():
            found[f"{look}, {name}"] = values
    return found


def _of_look(images: NDArray[np.uint8], cell: slice) -> Statistics:
    density = DENSITY[images]
    blue = np.maximum(density @ STAIN, 0)[..., 0]
    inside = blue[:, cell, cell].reshape(len(images), -1)
    around = blue.reshape(len(images), -1)
    total = density.sum(-1)
    return {
        "haematoxylin of the cell": inside.mean(1),
        "most haematoxylin in the cell": np.percentile(inside, 95, axis=1).astype(np.float32),
        "haematoxylin of the patch": around.mean(1),
        "most haematoxylin in the patch": np.percentile(around, 95, axis=1).astype(np.float32),
        "nuclei in the patch": (around >= NUCLEUS).mean(1, dtype=np.float32),
        "density of the cell": total[:, cell, cell].mean((1, 2)),
        "density of the patch": total.mean((1, 2)),
        "unevenness of the patch": total.std((1, 2)),
    }


def _print_patches(found: dict[str, Statistics], labels: dict[str, NDArray[np.uint8]]) -> Rules:
    """Print what each statistic's threshold keeps and leaves out; return the rules."""
    tumor = {split: values == 1 for split, values in labels.items()}
    print(f"{tumor['train'].sum()} and {tumor['valid'].sum()} tumor patches in train and valid\n")
    print("| look | threshold | tumor kept, valid | lost | normal left out, train | valid |\n|---|---|---|---|---|---|")
    fitted = {look: _Fitted([name for name in found["train"] if name.startswith(look)]) for look in (*REDUCED, "")}
    rules: Rules = {name: (itemgetter(name), 0.0) for name in found["train"]}
    for look, rule in fitted.items():
        rules[f"{look or 'all looks'}, fitted"] = rule.fit(found["train"], labels["train"]), 0.0
    for name, (score, _) in rules.items():
        train = fitted[_look_of(name)].unseen if name.endswith("fitted") else score(found["train"])
        valid = score(found["valid"])
        limit = float(np.sort(train[tumor["train"]])[int((1 - KEPT) * tumor["train"].sum())])
        lost = int((valid[tumor["valid"]] < limit).sum())
        shares = " | ".join(
            f"{(values[~tumor[split]] < limit).mean():.2%}" for split, values in (("train", train), ("valid", valid))
        )
        print(f"| {name} | {limit:.4f} | {1 - lost / tumor['valid'].sum():.5f} | {lost} | {shares} |")
        rules[name] = (score, limit)
    return rules


def _look_of(name: str) -> str:
    return "" if name.startswith("all looks") else name.removesuffix(", fitted")


class _Fitted:
    """A gradient-boosted tree on some statistics.

    Attributes
    ----------
    unseen : score of each training patch by trees that were fitted to others, from which its threshold is taken
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.unseen: NDArray[np.float64] = np.empty(0)

    def fit(self, parts: Statistics, labels: NDArray[np.uint8]) -> Callable[[Statistics], NDArray[Any]]:
        """Fit it; return what scores patches by it."""
        model, values = HistGradientBoostingClassifier(max_iter=150, random_state=0), self._values(parts)
        self.unseen = cross_val_predict(model, values, labels, cv=5, method="decision_function")
        model.fit(values, labels)
        return lambda parts: np.asarray(model.decision_function(self._values(parts)))

    def _values(self, parts: Statistics) -> NDArray[np.float32]:
        return np.stack([parts[name] for name in self.names], 1)


def _print_overview(path: Path, rules: Rules) -> None:
    """Print what the thresholds at an overview's resolution leave out of a whole slide, and of its lesions.

    The last column is what a threshold that was chosen on these very lesions would leave out.
    """
    image = np.asarray(Image.open(path).convert("RGB"))
    lesion = np.asarray(Image.open(path.with_name(path.name.replace("overview", "lesion_mask")))) > 0
    rows, cols = image.shape[0] // 2, image.shape[1] // 2
    tissue = _by_cell(_tissue(image), rows, cols).any((2, 3))
    lesions, count = label(lesion)
    by_cell = _by_cell(lesions, rows, cols).reshape(rows, cols, 4)
    tumor = (by_cell > 0).any(-1)
    print(f"\n{path.stem}: {tissue.sum()} cells of tissue, {tumor.sum()} of them with lesion, {count} lesions\n")
    print("| look | tissue left out | lesion cells kept | lost | smallest share of a lesion kept | left out at most |")
    print("|---|---|---|---|---|---|")
    glass = np.median(_by_cell(image[..., 1], rows, cols)[~tissue].ravel())
    shown = np.clip(image * (GLASS / np.median(image[image[..., 1] >= glass], 0)), 0, 255).astype(np.uint8)
    padded = np.pad(shown, ((2, 2), (2, 2), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (6, 6), (0, 1))[::2, ::2][:rows, :cols].transpose(0, 1, 3, 4, 2)
    of_look = _of_look(np.ascontiguousarray(windows).reshape(-1, 6, 6, 3), slice(2, 4))
    found = {f"{OVERVIEW}, {name}": values for name, values in of_look.items()}
    for name in (*found, f"{OVERVIEW}, fitted"):
        score, limit = rules[name]
        by_place = score(found).reshape(rows, cols)
        kept = by_place >= limit
        lost = int((tumor & ~kept).sum())
        least = min(kept[(by_cell == number).any(-1)].mean() for number in range(1, count + 1))
        best = (by_place[tissue] < np.sort(by_place[tumor])[int((1 - KEPT) * tumor.sum())]).mean()
        left_out = (tissue & ~kept).sum() / tissue.sum()
        print(f"| {name} | {left_out:.1%} | {1 - lost / tumor.sum():.5f} | {lost} | {least:.3f} | {best:.1%} |")


def _by_cell(values: NDArray[Any], rows: int, cols: int) -> NDArray[Any]:
    return values[: 2 * rows, : 2 * cols].reshape(rows, 2, cols, 2).transpose(0, 2, 1, 3)


def _tissue(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where a scan would look."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overview.tif"
        write_pyramid(path, image, mpp=MPP * REDUCED[OVERVIEW], lossless=True)
        with open_slide(path) as slide:
            return find_tissue(slide).mask


if __name__ == "__main__":
    _main()
