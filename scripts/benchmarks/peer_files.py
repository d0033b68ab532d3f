"""The files that other tools need to scan the same cells with the same network, and the results that they write.

Files only: other tools run in environments of their own, where this package is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from stopwatch import Timing

from wsi_meta.exchange.exporting import write_exported
from wsi_meta.models.card import Calibration
from wsi_meta.models.model import Model
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.tiling.tissue import TissueMask

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "PatchRun",
    "compare",
    "first_part",
    "read_tiatoolbox",
    "read_wsinfer",
    "whole_slide_seconds",
    "write_mask",
    "write_tiatoolbox_inputs",
    "write_wsinfer_inputs",
    "write_wsinfer_patches",
]


@dataclass(frozen=True)
class PatchRun:
    """A tool's run: the cells it scored, and its clock."""

    cells: int
    timing: Timing


def first_part(tissue: TissueMask, share: float) -> TissueMask:
    """Return the upper part of the tissue that holds about `share` of it, by whole rows of the mask."""
    held = np.cumsum(tissue.mask.sum(1))
    end = int(np.searchsorted(held, share * held[-1])) + 1
    mask = tissue.mask.copy()
    mask[end:] = False
    return TissueMask(mask, tissue.downsample, f"{share:.3g} of {tissue.source}")


def whole_slide_seconds(part: PatchRun, least: PatchRun, cells: int) -> float:
    """Estimate what a tool takes for a whole slide from a part of it and from almost nothing of it.

    Start-up is what the small run took; it is not multiplied.
    """
    rate = (part.cells - least.cells) / (part.timing.seconds - least.timing.seconds)
    return least.timing.seconds + (cells - least.cells) / rate


def compare(ours: Mapping[tuple[int, int], float], theirs: Mapping[tuple[int, int], float]) -> dict[str, float]:
    """Return how many cells both scored, either alone, and how far their probabilities are apart."""
    both = sorted(ours.keys() & theirs.keys())
    apart = np.array([abs(ours[cell] - theirs[cell]) for cell in both]) if both else np.array([np.nan])
    return {
        "both": len(both),
        "only ours": len(ours.keys() - theirs.keys()),
        "only theirs": len(theirs.keys() - ours.keys()),
        "mean difference": float(apart.mean()),
        "largest difference": float(apart.max()),
    }


def write_mask(path: Path, tissue: TissueMask) -> None:
    """Write tissue as an RGB picture, white on black: what TIAToolbox takes for a mask."""
    from PIL import Image

    Image.fromarray(np.repeat(tissue.mask[..., None].astype(np.uint8) * 255, 3, -1)).save(path)


def write_tiatoolbox_inputs(folder: Path, model: Model) -> None:
    """Write ``weights.pt``, the network's ``state_dict``."""
    import torch

    torch.save(model.network.state_dict(), folder / "weights.pt")


def read_tiatoolbox(store: Path, grid: PatchGrid) -> dict[tuple[int, int], float]:
    """Read TIAToolbox's zarr store: probability of tumor by the (row, col) of the cell in the patch's centre."""
    import zarr

    group: Any = zarr.open_group(store, mode="r")
    corners, margin = np.asarray(group["coordinates"])[:, :2], (grid.patch_px - grid.stride_px) // 2
    cells = (corners + margin) // grid.stride_px
    probabilities = np.asarray(group["probabilities"])[:, 1]
    return {(int(row), int(col)): float(p) for (col, row), p in zip(cells, probabilities, strict=True)}


def write_wsinfer_inputs(folder: Path, model: Model, grid: PatchGrid, cells: NDArray[np.bool_], slide: Path) -> None:
    """Write what WSInfer needs to run offline on given patches.

    ``model.pt`` and ``config.json``, as ``wsi-meta export-model`` writes them but before calibration; and what
    :func:`write_wsinfer_patches` writes.
    """
    raw = replace(model, card=replace(model.card, calibration=Calibration()))
    for file, name in zip(write_exported(raw, folder / "model", "torchscript").files, ("model.pt", "config.json"), strict=True):
        file.replace(folder / name)
    write_wsinfer_patches(folder, grid, cells, slide)


def write_wsinfer_patches(folder: Path, grid: PatchGrid, cells: NDArray[np.bool_], slide: Path) -> None:
    """Write what WSInfer needs of a slide and its patches.

    ``slides/`` with a link to the slide (WSInfer takes folders of slides); ``results/`` with the patches' corners and an empty
    mask, which make it skip its own search for tissue; ``home/`` with an empty registry of models, which it otherwise
    downloads, even to show its help.
    """
    import h5py

    results = folder / "results"
    for part in ("slides", "results/patches", "results/masks", "home/.wsinfer-zoo"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    link = folder / "slides" / slide.name
    link.unlink(missing_ok=True)
    link.symlink_to(slide.absolute())
    (folder / "home/.wsinfer-zoo/wsinfer-zoo-registry.json").write_text('{"models": {}}')
    rows, cols = np.nonzero(cells)
    margin = (grid.patch_px - grid.stride_px) // 2
    per_px = grid.mpp / grid.slide_mpp
    corners = np.rint((np.stack([cols, rows], 1) * grid.stride_px - margin) * per_px).astype(np.int64)
    with h5py.File(results / "patches" / f"{slide.stem}.h5", "w") as file:
        coordinates = file.create_dataset("/coords", data=corners, compression="gzip")
        attributes = {"patch_size": round(grid.patch_px * per_px), "patch_level": 0, "patch_spacing_um_px": grid.mpp}
        coordinates.attrs.update(attributes)
    (results / "masks" / f"{slide.stem}.jpg").touch()


def read_wsinfer(folder: Path, slide: Path, grid: PatchGrid) -> dict[tuple[int, int], float]:
    """Read WSInfer's table: probability of tumor by the (row, col) of the cell in the patch's centre."""
    import csv

    margin, per_px = (grid.patch_px - grid.stride_px) // 2, grid.mpp / grid.slide_mpp
    with (folder / "results" / "model-outputs-csv" / f"{slide.stem}.csv").open(newline="") as file:
        rows = [(float(row["minx"]), float(row["miny"]), float(row["prob_tumor"])) for row in csv.DictReader(file)]
    cell = grid.stride_px
    return {(round((y / per_px + margin) / cell), round((x / per_px + margin) / cell)): p for x, y, p in rows}
