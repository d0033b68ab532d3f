"""A demonstration that needs no data: draw a synthetic slide, scan it, draw its overlay."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.demo.pyramid_writer import write_pyramid
from wsi_meta.demo.synthetic import draw_lymph_node
from wsi_meta.errors import OutputExistsError, OutputPathError, whole_number
from wsi_meta.evaluation.metrics import auc_of
from wsi_meta.inference.options import InferenceOptions, resolve_inference
from wsi_meta.outputs.kept_files import refuse_inside_store
from wsi_meta.outputs.paths import as_path, real_path, told_by_the_system
from wsi_meta.pictures.overlay import draw_overlay
from wsi_meta.progress import note
from wsi_meta.scanning.scan import scan
from wsi_meta.tiling.grid import PatchGrid

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Demo", "refuse_others", "run_demo", "separation"]

SLIDE_MPP = 0.243
"""Micrometres per pixel of Camelyon16's level 0."""
DRAWN = "drawn by wsi-meta demo: no patient's tissue"
"""What the slide's file says of itself."""
MASK_DOWNSAMPLE = 4
"""Slide pixels per pixel of the drawn tumor's mask."""


@dataclass(frozen=True)
class Demo:
    """What :func:`run_demo` made."""

    slide: Path
    heatmap: Path
    overlay: Path
    score: float | None
    auc: float | None
    """How well the heatmap separates scanned cells that are all drawn tumor from scanned cells that hold none of it; None where
    the drawing has only one kind."""


def run_demo(folder: str | Path, *, side_px: int = 8192, seed: int = 0, device: str = "auto", progress: bool = False) -> Demo:
    """Draw a slide of synthetic lymph-node tissue with tumor islands, scan it with the default model, draw the overlay.

    Parameters
    ----------
    folder : for slide, heatmap and overlay; made if it does not exist; files of an earlier demo are replaced, no others
    side_px : side of the slide, level-0 pixels of 0.243 um
    seed : of the drawing
    device : ``auto``, ``cpu``, ``cuda`` or ``cuda:N``
    progress : show notes and bars on stderr

    Returns
    -------
    The three files, the slide's score, and how well the map separates drawn tumor from the rest.

    Raises
    ------
    DeviceError
    OutputExistsError
        when a file of that name in it is not of a demo.
    OutputPathError
        when the folder cannot be made.
    """
    asked = InferenceOptions(device)  # refuses what does not exist
    side_px, seed = whole_number("side_px", side_px, "1 px or more", least=1), whole_number("seed", seed, least=0)
    folder = _make_folder(as_path("folder", folder))
    slide, store, picture = (folder / f"synthetic-node{ending}" for ending in (".tif", ".zarr", ".png"))
    refuse_others(slide, store, picture)
    resolve_inference(asked)  # refuses what this machine lacks
    note("drawing a slide of synthetic lymph-node tissue", enabled=progress)
    image, tumor = draw_lymph_node(side_px, side_px, seed=seed)
    write_pyramid(slide, image, mpp=SLIDE_MPP, description=DRAWN)
    heatmap = scan(slide, store, device=device, overwrite=True, progress=progress)
    overlay = draw_overlay(heatmap, picture, slide=slide, overwrite=True)
    score = heatmap.result.score if heatmap.result else None
    return Demo(slide, heatmap.path, overlay, score, separation(heatmap.probability, heatmap.grid, tumor))


def _make_folder(folder: Path) -> Path:
    refuse_inside_store(folder / "synthetic-node.tif")
    try:
        real_path(folder).mkdir(parents=True, exist_ok=True)  # of a link, what it leads to
    except OSError as error:
        raise OutputPathError(f"{folder}: cannot be made ({told_by_the_system(error)}); choose another folder") from error
    return folder


def refuse_others(slide: Path, *beside: Path) -> None:
    """Refuse to replace files that no demo made: a demo draws its slide first, which says so in the file."""
    import tifffile

    drawn = False
    with suppress(Exception):  # tifffile raises anything where there is no TIFF
        if slide.is_file():
            with tifffile.TiffFile(slide) as file:
                drawn = file.pages.first.description == DRAWN
    if not drawn and (there := [path for path in (slide, *beside) if path.exists()]):
        raise OutputExistsError(f"{there[0]}: exists and is not of a demo; it is never replaced; choose another --out")


def separation(probability: NDArray[np.float32], grid: PatchGrid, tumor: NDArray[np.bool_]) -> float | None:
    """Return the AUC between cells drawn as tumor and as normal; None when there is only one kind."""
    share = _share_of_tumor(tumor, grid.shape, round(grid.cell_l0 / MASK_DOWNSAMPLE))
    judged = np.isfinite(probability) & ((share == 0) | (share == 1))
    truth = share[judged] == 1
    return auc_of(probability[judged], truth) if 0 < truth.sum() < truth.size else None


def _share_of_tumor(tumor: NDArray[np.bool_], shape: tuple[int, int], side: int) -> NDArray[np.float64]:
    """Return the share of each cell that is drawn tumor; shape (rows, cols)."""
    rows, cols = shape
    padded = np.zeros((rows * side, cols * side))
    padded[: tumor.shape[0], : tumor.shape[1]] = tumor
    return np.asarray(padded.reshape(rows, side, cols, side).mean((1, 3)))
