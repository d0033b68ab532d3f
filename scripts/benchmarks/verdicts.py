"""How often a verdict is right: false alarms on patches as they are, hits on the same patches spoiled in known ways.

Patches of one split are grouped by the colours of their stains; up to 64 of a group stand for a slide. Of each group, as it is
and under each condition, the figures and the words of a verdict are made as a scan makes them. Then each slide that is named, a
drawn one, and overviews with ink (--ink, taken for --ink-mpp micrometres per pixel).

    .venv/bin/python scripts/benchmarks/verdicts.py default pcam/ SLIDE... --ink THUMBNAIL... [--split valid] [--clusters 40]
    .venv/bin/python scripts/benchmarks/verdicts.py default pcam/ --fit     # the rule of wsi_meta/quality/nuclei.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.datasets.shifts import SHIFTS
from wsi_meta.datasets.stains import cluster_by_hue, stain_hue, to_density, to_pixels
from wsi_meta.demo.synthetic import MPP, draw_lymph_node
from wsi_meta.models.model import Model, describe_patches, load_model
from wsi_meta.quality.cell_measures import measure_cells
from wsi_meta.quality.judging import EVERY
from wsi_meta.quality.nuclei import band_powers, guess_pixel_size, rich_in_nuclei
from wsi_meta.quality.sample import PATCHES
from wsi_meta.quality.verdict import LIMITS, Verdict, blurred_share, folded_share, pronounce
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.tissue import inked_share
from wsi_meta.tiling.tissue_colours import join_tissue, segment_by_colour

Images = NDArray[np.uint8]
Change = Callable[[Images, np.random.Generator], Images]
"""Changes patches (n, side, side, 3)."""
FEWEST = 24
GLASS = 225
FACTORS = (0.5, 0.7, 0.85, 1, 1.18, 1.41, 2)
"""Pixel sizes to which the rule is fitted."""
RIDGE = 1.0


def blur(patch: Images, sigma_px: float, quality: int = 80) -> Images:
    """Blur a patch, then store it as a scanner would."""
    stored = BytesIO()
    soft = gaussian_filter(patch.astype(np.float32), (sigma_px, sigma_px, 0), mode="mirror")
    Image.fromarray(np.rint(soft).astype(np.uint8)).save(stored, "jpeg", quality=quality)
    return np.asarray(Image.open(stored))


def rescale(patch: Images, factor: float) -> Images:
    """Show a patch at `factor` times its pixel size, about its centre; what is beyond its edges is mirrored."""
    side = len(patch)
    beyond = max(0, int(np.ceil((factor - 1) * side / 2)))
    wider = np.pad(patch, ((beyond, beyond), (beyond, beyond), (0, 0)), mode="reflect")
    near, far = (beyond + side / 2 * (1 + sign * factor) for sign in (-1, 1))
    return np.asarray(Image.fromarray(wider).resize((side, side), Image.Resampling.BICUBIC, box=(near, near, far, far)))


def fold(patches: Images, random: np.random.Generator, share: float) -> Images:
    """Lay a second layer of the same group's tissue over a share of the patches."""
    folded, count = patches.copy(), round(share * len(patches))
    folded[:count] = to_pixels(to_density(patches[:count]) + to_density(patches[random.permutation(len(patches))[:count]]))
    return folded


def _each(change: Callable[[Images], Images]) -> Change:
    return lambda patches, _random: np.stack([change(patch) for patch in patches])


SHIFT = {shift.name: shift.change for shift in SHIFTS}
CONDITIONS: dict[str, Change] = {
    "as they are": lambda patches, _random: patches,
    **{f"blurred, sigma {sigma:g} px": _each(partial(blur, sigma_px=sigma)) for sigma in (0.5, 1, 1.5, 2, 3, 4)},
    **{f"pixel size {factor:g}x": _each(partial(rescale, factor=factor)) for factor in (0.5, 0.8, 1.25, 2)},
    "stains by Ruifrok": _each(SHIFT["stains_ruifrok"]),
    "stains by ImageJ": _each(SHIFT["stains_imagej"]),
    "red and blue swapped": _each(lambda patch: patch[..., ::-1]),
    "a tenth folded": partial(fold, share=0.1),
    "a fifth folded": partial(fold, share=0.2),
}


def judge(model: Model, patches: Images, *, network: bool = True) -> Verdict:
    """Return the verdict on patches that stand for a slide's sample, and for all its cells."""
    cells = measure_cells(patches.reshape(-1, *patches.shape[2:]), model.card.preprocessing.label_px)
    unlike = None
    if network and model.features is not None:
        unlike = model.features.unlikeness(describe_patches(model, patches[::EVERY]))
    return pronounce(
        {
            "blurred": blurred_share(cells["focus"]),
            "folded": folded_share(cells["darkness"]),
            "pixel_size": guess_pixel_size(patches, model.card.preprocessing.mpp),
            "unlikeness": None if unlike is None else float(np.median(unlike)),
        }
    )


def groups(patches: Patches, clusters: int, at_most: int) -> list[Images]:
    """Return patches that are stained alike, up to 64 of each group."""
    random = np.random.default_rng(0)
    pixels = np.stack(patches.read_many(np.sort(random.permutation(len(patches))[:5000]).tolist()))
    group = cluster_by_hue(np.array([stain_hue(patch) for patch in pixels]), clusters)
    members = [random.permutation(np.flatnonzero(group == number))[:PATCHES] for number in range(clusters)]
    usable = [pixels[some] for some in members if len(some) >= FEWEST]
    return usable[:: max(1, len(usable) // at_most)][:at_most]


def cut(image: Images, patch_px: int, count: int = PATCHES) -> Images:
    """Cut an image into overlapping patches, without those that are glass, and choose some of them."""
    rows, cols = (range(0, side - patch_px + 1, 32) for side in image.shape[:2])
    patches = [image[row : row + patch_px, col : col + patch_px] for row in rows for col in cols]
    held = [patch for patch in patches if patch.mean() < GLASS]
    return np.stack([held[int(place)] for place in np.random.default_rng(0).permutation(len(held))[:count]])


def others(model: Model, slides: list[Path]) -> Iterator[tuple[str, Images]]:
    """Return patches of drawn tissue and of slides, the slides also at pixel sizes that are not theirs."""
    shown = model.card.preprocessing
    drawn, _ = draw_lymph_node(4096, 4096, seed=0)
    side = round(4096 * MPP / shown.mpp)
    yield "drawn tissue", cut(np.asarray(Image.fromarray(drawn).resize((side, side), Image.Resampling.BOX)), shown.patch_px)
    for path in slides:
        with open_slide(path) as slide:
            for factor in (1, 0.6, 2):
                mpp = factor * shown.mpp
                sides = (int(length * slide.mpp / mpp) for length in (slide.width, slide.height))
                name = path.stem if factor == 1 else f"{path.stem}, pixel size {factor:g}x"
                yield name, cut(slide.read_at(mpp, 0, 0, *sides), shown.patch_px)


def fit(patches: Patches) -> tuple[NDArray[np.float64], float]:
    """Return weights and offset of the rule that tells the pixel size, fitted by ridge regression."""
    random = np.random.default_rng(0)
    pixels = np.stack(patches.read_many(np.sort(random.permutation(len(patches))[:1600]).tolist()))
    powers, sizes = [], []
    for factor in FACTORS:
        shown = [rescale(patch, factor * 2 ** random.uniform(-0.05, 0.05)) for patch in pixels[rich_in_nuclei(pixels)]]
        soft = [blur(patch, random.uniform(0.3, 1), 95) if random.random() < 0.5 else patch for patch in shown]
        powers.append(band_powers(np.stack(soft)))
        sizes += [np.log2(factor)] * len(soft)
    values, wanted = np.concatenate(powers), np.array(sizes)
    mean, centred = values.mean(0), values - values.mean(0)
    weights = np.linalg.solve(centred.T @ centred + RIDGE * np.eye(values.shape[1]), centred.T @ (wanted - wanted.mean()))
    return weights, float(wanted.mean() - mean @ weights)


def row(name: str, found: list[Verdict]) -> str:
    """Return a line of the table: of each word how many groups it is told of, of those measured, and the figure's median."""
    cells = []
    for figure, limit in LIMITS.items():
        if known := [value for verdict in found if (value := verdict.figures.get(figure)) is not None]:
            told = sum(limit.word in verdict.words for verdict in found)
            cells.append(f"{limit.word}: {told} of {len(known)} ({np.median(known):.2f})")
    return f"| {name} | {len(found)} | {' | '.join(cells)} |"


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("slides", type=Path, nargs="*")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--clusters", type=int, default=40)
    parser.add_argument("--groups", type=int, default=40, help="at most so many under each condition")
    parser.add_argument("--network-groups", type=int, default=40, help="so many are shown to the network")
    parser.add_argument("--ink", type=Path, nargs="*", default=[])
    parser.add_argument("--ink-mpp", type=float, default=16.0)
    parser.add_argument("--fit", action="store_true", help="print the rule of the pixel size, and nothing else")
    arguments = parser.parse_args()
    splits = open_patches(arguments.data)
    if arguments.fit:
        print(*fit(splits["train"]))
        return
    model = load_model(arguments.model)
    as_slides = groups(splits[arguments.split], arguments.clusters, arguments.groups)
    for name, change in CONDITIONS.items():
        random = np.random.default_rng(0)
        shown = [change(patches, random) for patches in as_slides]
        found = [judge(model, patches, network=place < arguments.network_groups) for place, patches in enumerate(shown)]
        print(row(name, found), flush=True)
    for name, patches in others(model, arguments.slides):
        print(row(name, [judge(model, patches)]), flush=True)
    for path in arguments.ink:
        image, mpp = np.asarray(Image.open(path).convert("RGB")), arguments.ink_mpp
        coloured, ink = segment_by_colour(image, mpp)
        share = inked_share(join_tissue(coloured, ink, np.ones(ink.shape, bool), mpp), ink, mpp)
        print(row(path.stem, [pronounce({"inked": share})]))


if __name__ == "__main__":
    _main()
