"""How well slides and lesions are found: 20 slides assembled from real patches, lesions of known place and size on 12 of them.

    .venv/bin/python scripts/benchmarks/lesion_quality.py PATCHES [--model FILE] [--modes patch dense] [--seed 1]

PATCHES is a folder {0,1}/*.jpg of patches that the model was not trained on. Prints what the perfect map gives (diameters, size
classes), then for each mode slide AUC and FROC, by way of the challenge's files, and what other thresholds would find.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import pdist

from wsi_meta import Detections, Heatmap, find_lesions, froc, load_model, scan_slides, to_detections, write_detections
from wsi_meta.challenges.results import FrocResult
from wsi_meta.demo.pyramid_writer import write_pyramid
from wsi_meta.heatmaps.regions import SIZE_CLASSES, Lesion, label_regions, longest_distance, measure_regions
from wsi_meta.models.model import Model
from wsi_meta.tiling.grid import PatchGrid

MPP, PATCH, CELLS = 0.972, 96, 3
"""Micrometres per pixel, side of a patch in pixels, cells along it."""
CELL_PX = PATCH // CELLS
CELL_UM = CELL_PX * MPP
SMALL, LONG = (5, 7), (4, 26)
"""Sides of slides, patches: rows and columns."""
Shape = tuple[int, int]
NORMAL: list[tuple[Shape, Shape | None]] = [(SMALL, None)] * 8
LESIONS: list[tuple[Shape, Shape | None]] = [
    *((SMALL, (1, 1)) for _ in range(4)),  # isolated tumor cells
    *((SMALL, shape) for shape in ((2, 2), (3, 3), (2, 3), (3, 4))),  # micrometastases
    *((LONG, shape) for shape in ((2, 22), (2, 23), (1, 24), (2, 24))),  # macrometastases
]
"""Slide and lesion, a rectangle of rows x columns of patches."""


@dataclass(frozen=True)
class Assembled:
    """A slide that was assembled from patches."""

    name: str
    truth: NDArray[np.bool_]
    """Of its patches, whether they are tumor."""
    image: NDArray[np.uint8]

    @property
    def cells(self) -> NDArray[np.bool_]:
        return np.kron(self.truth, np.ones((CELLS, CELLS), bool))

    @property
    def diameter_um(self) -> float:
        """Of the lesion: the longest distance between corners of its patches."""
        rows, cols = np.nonzero(self.truth)
        corners = [
            (row + down, col + right) for row, col in zip(rows, cols, strict=True) for down in (0, 1) for right in (0, 1)
        ]
        return float(pdist(corners).max()) * PATCH * MPP


def _assemble(patches: Path, seed: int) -> list[Assembled]:
    rng = np.random.default_rng(seed)
    files = [sorted((patches / label).iterdir()) for label in "01"]
    drawn = [iter(rng.permutation(len(names))) for names in files]
    slides = []
    for number, (shape, lesion) in enumerate(NORMAL + LESIONS):
        truth = np.zeros(shape, bool)
        if lesion is not None:
            row, col = (int(rng.integers(0, side - length + 1)) for side, length in zip(shape, lesion, strict=True))
            truth[row : row + lesion[0], col : col + lesion[1]] = True
        image = np.zeros((shape[0] * PATCH, shape[1] * PATCH, 3), np.uint8)
        for (i, j), tumor in np.ndenumerate(truth):
            file = files[int(tumor)][next(drawn[int(tumor)])]
            image[i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH] = np.asarray(Image.open(file).convert("RGB"))
        slides.append(Assembled(f"slide_{number:02}", truth, image))
    return slides


def _size_class(diameter_um: float) -> str:
    return next(name for name, limit in SIZE_CLASSES if diameter_um > limit * 1000)


def _far(diameter_um: float) -> bool:
    """Whether it is further than two cells from the limits of size classes."""
    return all(abs(diameter_um - limit * 1000) > 2 * CELL_UM for _, limit in SIZE_CLASSES[:2])


def _judge_sizes(what: str, pairs: list[tuple[float, float]]) -> None:
    """Print how true and measured diameters (um) agree."""
    errors = [abs(measured - true) / CELL_UM for true, measured in pairs]
    far = [(true, measured) for true, measured in pairs if _far(true)]
    right = sum(_size_class(true) == _size_class(measured) for true, measured in far)
    print(
        f"perfect map, {what}: diameters off by {np.mean(errors):.2f} cells on average, {max(errors):.2f} at most; "
        f"size class right for {right} of {len(far)} that are further than two cells from a limit ({len(pairs)} in all)"
    )


def _perfect(slides: list[Assembled], seed: int) -> None:
    """Measure lesions on maps that are 1 where the tumor is: those of the cohort, and 200 discs."""
    pairs = []
    for slide in slides:
        found = _lesions(slide.cells)
        assert len(found) == int(slide.truth.any()), f"{slide.name}: {len(found)} lesions"
        pairs += [(slide.diameter_um, lesion.diameter_mm * 1000) for lesion in found]
    _judge_sizes("the cohort's lesions", pairs)
    rng, pairs = np.random.default_rng(seed), []
    for diameter, *centre in rng.uniform((3, 47, 47), (90, 53, 53), (200, 3)):
        inside = ((np.mgrid[:100, :100] + 0.5 - np.reshape(centre, (2, 1, 1))) ** 2).sum(0) <= diameter**2 / 4
        (lesion,) = _lesions(inside)
        pairs.append((diameter * CELL_UM, lesion.diameter_mm * 1000))
    _judge_sizes("200 discs of 3 to 90 cells", pairs)


def _lesions(tumor: NDArray[np.bool_]) -> tuple[Lesion, ...]:
    """Return the lesions of a map that is 1 in the given cells and 0 elsewhere."""
    probability, (rows, cols) = tumor.astype(np.float32), tumor.shape
    grid = PatchGrid(cols * CELL_PX, rows * CELL_PX, MPP, MPP, PATCH, CELL_PX)
    return measure_regions(probability, label_regions(probability, 0.5, 0.5), grid, 0)


def _scan(slides: list[Assembled], folder: Path, model: Model, mode: str) -> list[Heatmap]:
    """Scan the cohort and print its yardsticks."""
    stores, start = folder / f"{mode}_scans", time.perf_counter()
    files = [folder / f"{slide.name}.tif" for slide in slides]
    scan_slides(files, stores, model=model.path, mode=mode, tissue_mask="none")
    seconds = time.perf_counter() - start
    heatmaps = [Heatmap.open(stores / f"{slide.name}.zarr") for slide in slides]
    cells = sum(heatmap.probability.size for heatmap in heatmaps)
    print(f"{mode} mode: {cells} cells in {seconds:.0f} s")
    found, truth = folder / f"{mode}_detections", folder / f"{mode}_masks"
    threshold = model.card.thresholds["default"]
    _write_challenge(slides, heatmaps, found, truth, threshold)
    _print_froc(froc(found, truth, scores=stores / "summary.csv", exclude=None, mask_level=5))
    return heatmaps


def _write_challenge(slides: list[Assembled], heatmaps: list[Heatmap], found: Path, truth: Path, threshold: float) -> None:
    """Write detections and masks as the challenge's files: for pixels of 0.243 um, so places are four times as large."""
    found.mkdir()
    truth.mkdir()
    for slide, heatmap in zip(slides, heatmaps, strict=True):
        points = to_detections(find_lesions(heatmap, threshold=threshold, peak=threshold))
        write_detections(found / f"{slide.name}.csv", Detections(points.scores, points.x * 4, points.y * 4))
        if slide.truth.any():  # at level 5 a pixel is 8 of these
            mask = np.kron(slide.truth, np.ones((PATCH // 8, PATCH // 8), np.uint8)) * np.uint8(255)
            tifffile.imwrite(truth / f"{slide.name}_mask.tif", mask)


def _print_froc(result: FrocResult) -> None:
    auc = result.slide_auc
    assert auc is not None, "there are slides of both classes"
    assert auc.delong is not None, "there are several of each"
    assert result.interval is not None, "there are lesions that count"
    told = f"DeLong {auc.delong[0]:.3f} to {auc.delong[1]:.3f}; {auc.tumor} of {result.slides} with tumor"
    print(f"  slide AUC {auc.auc:.3f} ({told})")
    told = f"{result.interval[0]:.3f} to {result.interval[1]:.3f}; {result.lesions} lesions, {result.isolated} isolated cells"
    print(f"  FROC score {result.score:.3f} ({told})")
    at = ", ".join(f"{float(rate):g}: {value:.2f}" for rate, value in result.sensitivity.items())
    print(f"  sensitivity at false positives a slide: {at}")


def _compare_thresholds(slides: list[Assembled], heatmaps: list[Heatmap]) -> None:
    """Print for pairs of thresholds: lesions found, false regions, error of the diameter in cells."""
    normal = [map_.probability[1::CELLS, 1::CELLS][~slide.truth] for slide, map_ in zip(slides, heatmaps, strict=True)]
    strict = float(np.quantile(np.concatenate(normal), 0.99))
    print(f"  99 % of the normal patches are under {strict:.3f}")
    for threshold, peak in ((0.25, 0.5), (0.5, 0.5), (0.5, 0.9), (0.5, max(0.5, strict)), (0.7, max(0.7, strict))):
        false, errors = 0, []
        for slide, heatmap in zip(slides, heatmaps, strict=True):
            regions = label_regions(heatmap.probability, threshold, peak)
            hit = regions[slide.cells & (regions > 0)]
            false += regions.max() - len(set(hit.tolist()))
            if len(hit):
                length = longest_distance(np.argwhere(regions == np.bincount(hit).argmax()))
                errors.append(abs(length - longest_distance(np.argwhere(slide.cells))))
        off = f"{np.mean(errors):.1f}" if errors else "-"
        found = f"{len(errors)} of {len(LESIONS)} lesions, {false} false regions, diameters off by {off} cells"
        print(f"  cells at least {threshold}, one at least {peak:.3f}: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patches", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--modes", nargs="+", choices=["patch", "dense"], default=["patch", "dense"])
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    slides = _assemble(arguments.patches, arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _perfect(slides, arguments.seed)
        for slide in slides:
            write_pyramid(folder / f"{slide.name}.tif", slide.image, mpp=MPP, lossless=True)
        model = load_model(arguments.model)
        for mode in arguments.modes:
            if mode == "dense" and not model.card.dense:
                print("dense mode: the model's card does not allow it")
                continue
            _compare_thresholds(slides, _scan(slides, folder, model, mode))


if __name__ == "__main__":
    main()
