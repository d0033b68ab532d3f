"""Where patches may be cut from a slide: cells with tumor, normal cells, and normal cells that a scan mistook for tumor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.annotations.class_names import DEFAULT_NAMES, ClassNames
from wsi_meta.annotations.corrected import corrections_beside, read_corrected
from wsi_meta.annotations.outline_files import OUTLINE_ENDINGS, read_drawn
from wsi_meta.annotations.outlines import Annotations
from wsi_meta.annotations.truth import encloses, sort_truth, tell_idle
from wsi_meta.datasets.manifest import SourceSlide
from wsi_meta.errors import DataError, MissingMppError, SlideReadError
from wsi_meta.heatmaps.lesions import default_threshold
from wsi_meta.heatmaps.scanned_slide import is_scan_of
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.masks.tumor_masks import tumor_squares
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.slides.resampling import exact_ratio
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.tiling.tissue import find_tissue

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KINDS", "Candidates", "find_candidates", "quotas_of", "share_out", "tumor_cells"]

KINDS = ("tumor", "hard", "normal")
"""Cells with tumor; normal ones that a scan mistook for tumor; the other normal ones."""


@dataclass(eq=False)
class Candidates:
    """Cells of one kind, in random order. Each is taken once."""

    cells: NDArray[np.int32]
    """Row and column in the grid of 32 px cells, shape (n, 2)."""
    near: NDArray[np.bool_]
    """Whether there is tumor anywhere in the cell's patch, shape (n,)."""
    taken: int = 0
    """Number of cells that were taken."""

    @property
    def left(self) -> int:
        """Number of cells that were not taken yet."""
        return len(self.cells) - self.taken

    def take(self, number: int) -> list[tuple[list[int], bool]]:
        """Return the next cells, up to `number` of them, in the order of the grid, and whether tumor is near each."""
        part = slice(self.taken, self.taken + number)
        self.taken += min(number, self.left)
        return sorted(zip(self.cells[part].tolist(), self.near[part].tolist(), strict=True))


def find_candidates(
    source: SourceSlide, slide: Slide, preprocessing: Preprocessing, *, seed: list[int], scans: Path | None = None
) -> dict[str, Candidates]:
    """Find the cells whose patches may be cut from a slide. Their whole patches lie on the slide.

    A cell is tumor when one of its pixels is (at the model's mpp); this is PCam's label of the patch round it. A normal cell
    contains tissue (:func:`wsi_meta.find_tissue`) and no tumor; a slide that is only partly annotated has no normal cells. A
    normal cell is hard when a scan gave it at least its model's threshold although its whole patch contains no tumor: nearer to
    an outline, the scan may be right and the outline wrong. What was corrected in ``wsi-meta view`` counts too, where
    ``<name>.corrections.geojson`` lies beside the heatmap: missed lesions are tumor, false ones are hard, also on a slide that
    is only partly annotated, and where the annotations say tumor. Of the latter, cells on a false one's edge are left out.

    Parameters
    ----------
    source, slide : row of the manifest, and the slide itself
    preprocessing : of the model
    seed : of their random order
    scans : folder with the slide's heatmap ``<name>.zarr``; without it no cell is hard

    Returns
    -------
    dict by :data:`KINDS`

    Raises
    ------
    SlideReadError, MissingMppError
    DataError
        when outlines, mask or corrections are damaged or another slide's.
    HeatmapError
        when the heatmap is damaged or another slide's.
    """
    try:
        slide.check_resolution(preprocessing.mpp)
    except (MissingMppError, SlideReadError) as error:  # both ask for --mpp
        raise type(error)(f"{error}: 'sample' takes it from the manifest's column mpp") from error
    grid = PatchGrid(
        slide.width, slide.height, slide.mpp, preprocessing.mpp, preprocessing.patch_px, stride_px=preprocessing.label_px
    )
    inside = _whole_patches(grid)
    tumor = np.zeros(grid.shape, bool)
    if source.truth is not None:
        tumor = tumor_cells(source.truth, grid, names=source.names, origin=slide.bounds.corner)
    store = None if scans is None or not (scans / f"{source.name}.zarr").exists() else scans / f"{source.name}.zarr"
    marked = None if store is None else _corrected(store, slide, grid)
    false = doubtful = np.zeros_like(tumor)
    if marked is not None:
        missed, touched, covered = marked
        doubtful = tumor & touched & ~covered & ~missed
        tumor, false = (tumor & ~touched) | missed, touched & ~missed
    near = _dilate(tumor | doubtful)
    tissue = np.zeros_like(tumor) if source.partly else find_tissue(slide).cells(grid)
    normal = ~(tumor | doubtful) & inside & (tissue | false)
    hard = normal & ~near & (_mistaken(store, slide, grid) | false) if store is not None else np.zeros_like(normal)
    rng = np.random.default_rng(seed)
    found = {}
    for kind, cells in zip(KINDS, (tumor & inside, hard, normal & ~hard), strict=True):
        places = rng.permutation(np.argwhere(cells).astype(np.int32))
        found[kind] = Candidates(places, near[places[:, 0], places[:, 1]])
    return found


def quotas_of(
    candidates: Sequence[Mapping[str, Candidates]], each: int, mined: float, cut: Mapping[str, int]
) -> dict[str, list[int]]:
    """Return how many patches of each kind to cut from each slide, until there are `each` of both labels, or no more.

    Normal ones make up for hard ones that are missing, and the other way round.

    Parameters
    ----------
    candidates : of each slide
    each : number of patches of each label
    mined : share of hard patches among the normal ones
    cut : number of patches of each kind that the split has
    """
    left = {kind: [of_slide[kind].left for of_slide in candidates] for kind in KINDS}
    total, normal = {kind: sum(counts) for kind, counts in left.items()}, cut["hard"] + cut["normal"]
    each = min(each, cut["tumor"] + total["tumor"], normal + total["hard"] + total["normal"])
    lacking = max(0, each - normal)
    hard = min(lacking, total["hard"], max(0, round(each * mined) - cut["hard"], lacking - total["normal"]))
    wanted = {"tumor": max(0, each - cut["tumor"]), "hard": hard, "normal": lacking - hard}
    return {kind: share_out(wanted[kind], left[kind]) for kind in KINDS}


def share_out(wanted: int, available: Sequence[int]) -> list[int]:
    """Divide `wanted` as evenly as `available` allows: no share is larger than what is available, the others make up for it.

    Returns
    -------
    Shares in the order of `available`. Their sum is `wanted`, or the sum of `available` if that is less.
    """
    shares, left = [0] * len(available), wanted
    # the smallest first: what it lacks is divided among the others
    for place, index in enumerate(sorted(range(len(available)), key=lambda index: available[index])):
        shares[index] = min(available[index], left // (len(available) - place))
        left -= shares[index]
    return shares


def tumor_cells(
    truth: Path, grid: PatchGrid, *, names: ClassNames = DEFAULT_NAMES, origin: tuple[int, int] = (0, 0)
) -> NDArray[np.bool_]:
    """Tell which cells contain a pixel of tumor, at the model's mpp; bool (rows, cols).

    Parameters
    ----------
    truth : outlines or mask TIFF
    grid : where the cells lie
    names : of the classes of outlines
    origin : corner that QuPath's outlines count from, as for :func:`wsi_meta.read_annotations`

    Raises
    ------
    DataError
        when the file is damaged or does not fit the slide.
    """
    downsample = float(exact_ratio(grid.mpp, grid.slide_mpp))
    cells = np.zeros(grid.shape, bool)
    if truth.suffix.lower() not in OUTLINE_ENDINGS:
        squares = tumor_squares(truth, (grid.width, grid.height), downsample, grid.stride_px)[
            : cells.shape[0], : cells.shape[1]
        ]
        cells[: squares.shape[0], : squares.shape[1]] = squares
        return cells
    annotations = sort_truth(read_drawn(truth), names, origin)
    tell_idle(annotations, [outline for outline in annotations.tumor if not encloses(outline)])
    _check_extent(truth, annotations, grid)
    cells, _ = _touched_and_covered(annotations, grid)
    if annotations.tumor and not cells.any():
        told = f"no outline of tumor holds a pixel of the slide, {grid.width} x {grid.height} px"
        raise DataError(
            f"{truth}: {told}; expected those of the same slide, in level-0 pixels; leave the file out if there is no tumor"
        )
    return cells


def _touched_and_covered(annotations: Annotations, grid: PatchGrid) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell which cells contain a pixel of tumor, at the model's mpp, and which contain nothing else."""
    downsample = float(exact_ratio(grid.mpp, grid.slide_mpp))
    touched, covered = np.zeros((2, *grid.shape), bool)
    for block in grid.blocks():
        shape = (block.rows * grid.stride_px, block.cols * grid.stride_px)
        mask = annotations.mask(shape, downsample, corner=(block.col * grid.stride_px, block.row * grid.stride_px))
        of_cells = mask.reshape(block.rows, grid.stride_px, block.cols, grid.stride_px)
        touched[block.cells], covered[block.cells] = of_cells.any((1, 3)), of_cells.all((1, 3))
    return touched, covered


def _corrected(store: Path, slide: Slide, grid: PatchGrid) -> tuple[NDArray[np.bool_], ...] | None:
    """Return the cells of missed lesions, and those that false ones touch, and cover, as marked on a heatmap; None without."""
    path = corrections_beside(store)
    if not path.exists():
        return None
    heatmap = Heatmap.open(store)
    scanned = heatmap.record.identity.slide if is_scan_of(heatmap, slide) else None
    corrected = read_corrected(path, lambda told: told == scanned or slide.has_fingerprint(told), slide.bounds.corner)
    tell_idle(corrected.missed, [outline for outline in corrected.missed.tumor if not encloses(outline)])
    missed, _ = _touched_and_covered(corrected.missed, grid)
    return missed, *_touched_and_covered(corrected.false, grid)


def _whole_patches(grid: PatchGrid) -> NDArray[np.bool_]:
    """Tell which cells have their whole patch on the slide."""
    px = exact_ratio(grid.slide_mpp, grid.mpp)  # pixels at the model's mpp per level-0 pixel
    margin = (grid.patch_px - grid.stride_px) // 2
    fits = []
    for cells, length in zip(grid.shape, (grid.height, grid.width), strict=True):
        start = np.arange(cells) * grid.stride_px - margin
        fits.append((start >= 0) & (start + grid.patch_px <= float(length * px)))
    return np.logical_and.outer(*fits)


def _dilate(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Add the eight neighbours of each cell: together they are as large as its patch."""
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(cells, np.ones((3, 3))))


def _mistaken(store: Path, slide: Slide, grid: PatchGrid) -> NDArray[np.bool_]:
    """Tell to which cells' centres a scan, of any stride, gave at least its model's threshold."""
    heatmap = open_sound(store)
    if not is_scan_of(heatmap, slide):
        raise DataError(f"{store}: is not of {slide.path}; expected scans of the manifest's slides, under their names")
    probability, scale = heatmap.probability, grid.cell_l0 / heatmap.grid.cell_l0
    rows, cols = (
        np.minimum(((np.arange(cells) + 0.5) * scale).astype(int), there - 1)
        for cells, there in zip(grid.shape, probability.shape, strict=True)
    )
    return np.asarray(probability[np.ix_(rows, cols)] >= default_threshold(heatmap))


def _check_extent(path: Path, annotations: Annotations, grid: PatchGrid) -> None:
    """Refuse outlines that reach beyond the slide, on any side, by more than the width of a patch."""
    if annotations.tumor:
        vertices = np.concatenate([outline.vertices for outline in annotations.tumor])
        (left, upper), (right, lower) = vertices.min(0), vertices.max(0)
        if max(-left, -upper, right - grid.width, lower - grid.height) > 3 * grid.cell_l0:
            raise DataError(
                f"{path}: outlines reach from x {left:.0f}, y {upper:.0f} to {right:.0f}, {lower:.0f}, the slide from 0, 0 "
                f"to {grid.width}, {grid.height}; expected those of the same slide, in level-0 pixels"
            )
