"""From a slide to its heatmap: the recipe. The only place where dask appears."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from wsi_meta.errors import HeatmapError, OutputExistsError, SlideReadError
from wsi_meta.grid import STRIDES, Block, PatchGrid
from wsi_meta.heatmap import Heatmap, Status
from wsi_meta.model import ModelCard, load_model, model_path, read_card
from wsi_meta.predictor import DENSE_STRIDE_PX, Predictor, resolve_device, resolve_precision
from wsi_meta.progress import note, progress_bar
from wsi_meta.scoring import score_slide
from wsi_meta.slide import Slide, open_slide
from wsi_meta.tissue import TissueMask, find_tissue, read_tissue_mask
from wsi_meta.versions import library_versions
from wsi_meta.views import mean_over_views, spread_over_views

__all__ = ["MODES", "ScanOptionsError", "scan"]

logger = logging.getLogger("wsi_meta")

MODES = ("auto", "patch", "dense")


class ScanOptionsError(ValueError):
    """Options of a scan that do not go together: wrong usage, not bad input."""


@dataclass(frozen=True)
class _Job:
    """What a worker needs to open slide, model and store by itself; travels instead of pixels."""

    slide: str
    mpp: float | None
    reader: str
    model: str
    mode: str
    device: str
    precision: str
    batch_size: int
    tta: bool


@dataclass(frozen=True)
class _Worker:
    """A job's opened slide and predictor."""

    slide: Slide
    predictor: Predictor


def scan(
    slide: str | Path,
    out: str | Path,
    *,
    model: str | Path | None = None,
    mode: str = "auto",
    stride_px: int = 32,
    mpp: float | None = None,
    reader: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 64,
    tta: bool = False,
    uncertainty: bool = False,
    workers: int = 2,
    tissue_mask: str | Path | None = None,
    block_px: int = 1920,
    scheduler: Any = "threads",
    overwrite: bool = False,
    progress: bool = False,
) -> Heatmap:
    """Scan a slide into a heatmap store; go on where an interrupted scan of the same identity stopped.

    Parameters
    ----------
    slide : whole-slide image
    out : store to write (a folder, by custom ``.zarr``)
    model : model file; ``default`` or None for the embedded one
    mode : ``patch``, a patch of its own for every cell; ``dense``, one pass of the network over a whole block, for cells of
        32 px and models whose card says ``dense``; ``auto``, dense where that is possible
    stride_px : side of a cell, pixels at the model's mpp; a multiple of 8 up to 96
    mpp, reader : micrometres per level-0 pixel, where the slide does not say; who decodes it: see :func:`wsi_meta.open_slide`
    device, precision, batch_size, tta : see :class:`wsi_meta.predictor.Predictor`; with `tta` a cell's probability is the
        calibrated mean logit of its eight views
    uncertainty : keep the standard deviation of the probability over the eight views as well; needs `tta`
    workers : blocks in work at the same time: one is read while another is predicted
    tissue_mask : image over the slide, not 0 = tissue; ``none`` scans everything; None finds it by colour
    block_px : side of a block, pixels at the model's mpp; part of the store's layout
    scheduler : ``threads``, ``synchronous``, or a ``distributed.Client``
    overwrite : replace an older heatmap at `out`
    progress : show a bar and notes on stderr

    Returns
    -------
    The finished store. Its ``result`` holds ``score`` and counts; where regions could not be read ``complete`` is False
    and scanning again retries them.

    Raises
    ------
    SlideReadError, MissingMppError, ModelFileError, DataError, DeviceError, OutputPathError
    OutputExistsError
        when `out` is something else, or the heatmap of another scan; it names the difference.
    ScanOptionsError
        (a ValueError) for a mode or stride that does not exist or that the model does not allow, or `uncertainty` without
        `tta`.
    """
    if uncertainty and not tta:
        raise ScanOptionsError("uncertainty is the spread over the eight views of tta; expected tta with it")
    device, model_file = resolve_device(device), model_path(model)
    job = _Job(
        slide=str(Path(slide).absolute()),
        mpp=mpp,
        reader=reader,
        model=str(model_file.absolute()),
        mode=_resolve_mode(mode, stride_px, read_card(model_file)),
        device=device,
        precision=resolve_precision(precision, device),
        batch_size=batch_size,
        tta=tta,
    )
    worker = _open(job)
    try:
        grid = _make_grid(worker, stride_px, block_px)
        tissue = find_tissue(worker.slide) if tissue_mask is None else read_tissue_mask(tissue_mask, worker.slide)
        heatmap = _open_or_create(Path(out), worker, grid, tissue, uncertainty=uncertainty, overwrite=overwrite)
        if not heatmap.finished:
            _warn_of_tissue(tissue, worker.slide, enabled=progress)
            _scan_blocks(job, heatmap, workers, scheduler, progress=progress)
            heatmap.finalise(_sum_up(heatmap))
        return _refuse_nothing(heatmap, worker.slide)
    except KeyboardInterrupt:
        worker.predictor.stop()
        raise
    finally:
        _open.cache_clear()


def _resolve_mode(mode: str, stride_px: int, card: ModelCard) -> str:
    """Give ``patch`` or ``dense``; ``auto`` is dense when the model's card allows it and the stride is the trunk's."""
    if mode not in MODES or stride_px not in STRIDES:
        raise ScanOptionsError(f"mode {mode!r}, stride {stride_px}; expected one of {MODES} and one of {STRIDES}")
    if mode == "dense" and stride_px != DENSE_STRIDE_PX:
        raise ScanOptionsError(f"mode dense, stride {stride_px}; expected stride {DENSE_STRIDE_PX}, or mode patch")
    if mode == "dense" and not card.dense:
        raise ScanOptionsError("mode dense: the model's card does not allow it (dense: false); expected mode patch")
    if mode == "auto":
        return "dense" if card.dense and stride_px == DENSE_STRIDE_PX else "patch"
    return mode


@lru_cache(maxsize=1)
def _open(job: _Job) -> _Worker:
    """Open slide and model once per process, whatever the number of blocks."""
    slide = open_slide(job.slide, mpp=job.mpp, reader=job.reader)
    predictor = Predictor(
        load_model(job.model),
        device=job.device,
        precision=job.precision,
        batch_size=job.batch_size,
        tta=job.tta,
        dense=job.mode == "dense",
    )
    return _Worker(slide, predictor)


def _make_grid(worker: _Worker, stride_px: int, block_px: int) -> PatchGrid:
    slide, preprocessing = worker.slide, worker.predictor.model.card.preprocessing
    slide.check_resolution(preprocessing.mpp)
    return PatchGrid(
        slide.width, slide.height, slide.mpp, preprocessing.mpp, preprocessing.patch_px, stride_px, block_px=block_px
    )


def _open_or_create(
    out: Path, worker: _Worker, grid: PatchGrid, tissue: TissueMask, *, uncertainty: bool, overwrite: bool
) -> Heatmap:
    """Open the store of this very scan, or make a new one."""
    slide, predictor = worker.slide, worker.predictor
    identity = {
        "slide": slide.fingerprint(),
        "reader": slide.reader,
        "model": predictor.model.hash,
        "mode": "dense" if predictor.halo_px else "patch",
        "grid": grid.to_dict(),
        "tissue": tissue.fingerprint(),
        "precision": predictor.precision,
        "compiled": False,
        "test_time_averaging": predictor.views > 1,
        "uncertainty": uncertainty,
    }
    if out.exists() and not overwrite:
        return _reopen(out, identity)
    facts = {
        "identity": identity,
        "slide": {"file": slide.path.name, "name": slide.name, "width": slide.width, "height": slide.height, "mpp": slide.mpp},
        "tissue": {"source": tissue.source, "fraction": tissue.fraction},
        "model": predictor.model.card.to_dict(),
        "device": predictor.device,
        "versions": library_versions(),
    }
    return Heatmap.create(out, grid, tissue.cells(grid), facts, uncertainty=uncertainty, overwrite=overwrite)


def _reopen(out: Path, identity: dict[str, Any]) -> Heatmap:
    """Open an existing store if it is this scan's; OutputExistsError that names the difference if not."""
    try:
        heatmap = Heatmap.open(out)
    except HeatmapError as error:
        raise OutputExistsError(f"{out}: exists and is not a heatmap store ({error}); choose another --out") from error
    there = {"uncertainty": False, "reader": "openslide"} | heatmap.facts["identity"]  # the first stores do not say
    if different := [name for name, value in identity.items() if there.get(name) != value]:
        told = "; ".join(f"{name} is {_brief(there.get(name))}, now {_brief(identity[name])}" for name in different)
        raise OutputExistsError(f"{out}: holds another scan: {told}; choose another --out, or pass --overwrite to replace it")
    return heatmap


def _brief(value: Any) -> str:
    """Give a fingerprint's first letters, a grid's stride, any other value as it is."""
    if isinstance(value, dict):
        return f"stride {value.get('stride_px')}, {value.get('slide_mpp')} um per pixel, blocks of {value.get('block_px')} px"
    return str(value)[:12]


def _warn_of_tissue(tissue: TissueMask, slide: Slide, *, enabled: bool) -> None:
    if not tissue.mask.any():
        logger.warning(
            "%s: NO TISSUE FOUND, nothing will be scanned; look at the slide, or pass --tissue-mask none", slide.path
        )
    note(f"{slide.name}: tissue on {tissue.fraction:.1%} of the slide", enabled=enabled)


def _scan_blocks(job: _Job, heatmap: Heatmap, workers: int, scheduler: Any, *, progress: bool) -> None:
    """Run one task per open block on a dask scheduler."""
    blocks, status = heatmap.open_blocks(), heatmap.status
    cells = sum(int((status[block.cells] != Status.BACKGROUND).sum()) for block in blocks)
    worker, grid = _open(job), heatmap.grid
    worker.slide.expect(grid.mpp, [grid.window(block, worker.predictor.halo_px) for block in blocks])
    with progress_bar(cells, "cells", "scanning", enabled=progress) as bar:
        if hasattr(scheduler, "submit"):
            from distributed import as_completed

            futures = [scheduler.submit(_scan_block, job, heatmap.path, block, pure=False) for block in blocks]
            for future in as_completed(futures):
                bar.update(future.result())
        else:
            from dask.base import compute
            from dask.delayed import delayed

            def report(cells: int) -> None:
                with bar.get_lock():
                    bar.update(cells)

            task = delayed(_scan_block, pure=False, traverse=False)
            # dask takes tasks by the order of their names: neighbours follow each other and share stored tiles
            tasks = [
                task(job, heatmap.path, block, report, dask_key_name=f"block-{number:08d}")
                for number, block in enumerate(blocks)
            ]
            compute(*tasks, scheduler=scheduler, num_workers=max(1, workers), optimize_graph=False)


def _scan_block(job: _Job, store: Path, block: Block, report: Callable[[int], None] | None = None) -> int:
    """Read, predict and write one block; give the number of its cells that were dealt with."""
    worker, heatmap = _open(job), Heatmap.open(store)
    calibration, grid = worker.predictor.model.card.calibration, heatmap.grid
    wanted = heatmap.read_status(block) != Status.BACKGROUND
    try:
        image = worker.slide.read_at(grid.mpp, *grid.window(block, worker.predictor.halo_px))
    except SlideReadError:
        heatmap.write_block(block, None, np.where(wanted, Status.UNREADABLE, Status.BACKGROUND).astype(np.uint8))
        return int(wanted.sum())
    logits = worker.predictor.predict_block(image, wanted, grid.stride_px, report)
    # the mean of logits, not of probabilities: the calibration then leads from the stored value back to it
    probability = calibration.to_probability(mean_over_views(logits))
    uncertainty = spread_over_views(calibration.to_probability(logits)) if heatmap.has_uncertainty else None
    status = np.where(wanted, Status.SCANNED, Status.BACKGROUND).astype(np.uint8)
    heatmap.write_block(block, probability, status, uncertainty)
    return int(wanted.sum())


def _sum_up(heatmap: Heatmap) -> dict[str, Any]:
    status = heatmap.status
    counts = {state.name.lower(): int((status == state).sum()) for state in Status}
    complete = counts["pending"] == counts["unreadable"] == 0
    return {"score": score_slide(heatmap.probability), "complete": complete, "cells": counts}


def _refuse_nothing(heatmap: Heatmap, slide: Slide) -> Heatmap:
    """Leave no store behind that holds nothing but unreadable tissue."""
    counts = heatmap.result["cells"] if heatmap.result else {}
    if counts.get("unreadable") and not counts["scanned"]:
        heatmap.remove()
        raise SlideReadError(f"{slide.path}: none of its tissue can be read; no heatmap was kept; copy the slide again")
    return heatmap
