"""From a slide to its heatmap: the recipe. The only place where dask appears."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from wsi_meta.errors import OptionsError, SlideReadError
from wsi_meta.heatmaps.lesions import lesion_facts
from wsi_meta.heatmaps.score_model import learned_score, load_score_model
from wsi_meta.heatmaps.scoring import score_slide
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.inference.allocator import give_back_memory, prepare_memory
from wsi_meta.inference.predictor import DENSE_HALO_PX, runs_in_bands
from wsi_meta.models.model import Model, ModelCard, model_path, read_card
from wsi_meta.models.versions import library_versions
from wsi_meta.progress import note, progress_bar
from wsi_meta.scanning.identity import open_or_create
from wsi_meta.scanning.options import NetworkChoice, choose_compiled, choose_network
from wsi_meta.scanning.relay import Turn
from wsi_meta.scanning.worker import Job, begin_loading, forget, scan_block
from wsi_meta.slides.slide import Slide
from wsi_meta.tiling.grid import BLOCK_PX, Block, PatchGrid
from wsi_meta.tiling.tissue import TissueMask, find_tissue, read_tissue_mask

__all__ = ["scan"]

logger = logging.getLogger("wsi_meta")


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
    compiled: str = "auto",
    batch_size: int = 64,
    tta: bool = False,
    uncertainty: bool = False,
    workers: int = 2,
    tissue_mask: str | Path | None = None,
    score_model: str | Path | None = None,
    block_px: int = BLOCK_PX,
    scheduler: Any = "threads",
    overwrite: bool = False,
    progress: bool = False,
    turn: Turn | None = None,
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
    device, precision, batch_size, tta : see :class:`.Predictor`; with `tta` a cell's probability is the
        calibrated mean logit of its eight views
    compiled : ``yes`` or ``no`` to compile the network first; ``auto`` does so where the slide is long enough to repay it
        (:func:`.worth_compiling`) and there is a C++ compiler, and goes on with a store as it was begun
    uncertainty : keep the standard deviation of the probability over the eight views as well; needs `tta`
    workers : blocks in work at the same time: one is read while another is predicted
    tissue_mask : image over the slide, not 0 = tissue; ``none`` scans everything; None finds it by colour
    score_model : file from :func:`wsi_meta.fit_score`; its score is kept beside the default one, as ``learned_score``
    block_px : side of a block, pixels at the model's mpp; part of the store's layout
    scheduler : ``threads``, ``synchronous``, or a ``distributed.Client``
    overwrite : replace an older heatmap at `out`
    progress : show a bar and notes on stderr
    turn : the slide's place in a stream, see :func:`wsi_meta.scanning.batch.scan_slides`

    Returns
    -------
    The finished store. Its ``result`` holds ``score`` and counts, ``facts["lesions"]`` the lesions; where regions could not
    be read ``complete`` is False and scanning again retries them.

    Raises
    ------
    SlideReadError, MissingMppError, ModelFileError, DataError, DeviceError, OutputPathError
    OutputExistsError
        when `out` is something else, or the heatmap of another scan; it names the difference.
    OptionsError
        (a ValueError) for a mode or stride that does not exist or the model does not allow, or `uncertainty` without `tta`.
    """
    place = turn or Turn()
    try:
        if uncertainty and not tta:
            raise OptionsError("uncertainty is the spread over the eight views of tta; expected tta with it")
        if score_model is not None:
            load_score_model(score_model)  # refused before the work, not after it
        asked = NetworkChoice(str(model_path(model)), mode, device, precision, compiled, batch_size, tta)
        job = Job(str(Path(slide).absolute()), mpp, reader, choose_network(asked, stride_px))
        if job.network.device == "cpu":
            in_bands = runs_in_bands("cpu", dense=job.network.mode == "dense", compiled=compiled == "yes")
            prepare_memory(in_bands=in_bands)  # before the workers' threads are there
        place.prepare()
        opened, out = job.open_slide(), Path(out)
        grid = _make_grid(opened, read_card(job.network.model), stride_px, block_px)
        loading = begin_loading(job)  # takes as long as finding tissue
        tissue = find_tissue(opened) if tissue_mask is None else read_tissue_mask(tissue_mask, opened)
        loaded = loading.result()
        give_back_memory()
        cells = tissue.cells(grid)
        use = choose_compiled(job.network, int(cells.sum()), None if overwrite else out, progress=progress)
        job = replace(job, network=replace(job.network, compiled=use))
        heatmap = open_or_create(
            out, grid, cells, _facts(job, opened, loaded, grid, tissue, uncertainty=uncertainty), overwrite=overwrite
        )
        if not heatmap.finished:
            _warn_of_tissue(tissue, opened, enabled=progress)
            del tissue  # tens of megabytes of a large slide
            _scan_blocks(job, heatmap, workers, scheduler, place, progress=progress)
            give_back_memory()  # before lesions are sought, which needs some
            heatmap.finalise(_sum_up(heatmap), lesion_facts(heatmap))
        _refuse_nothing(heatmap, opened)
        if score_model is not None:
            heatmap.amend(learned_score=learned_score(heatmap, score_model))
        return heatmap
    except KeyboardInterrupt:
        place.interrupt()
        raise
    finally:
        place.end()
        if turn is None:
            forget()


def _make_grid(slide: Slide, card: ModelCard, stride_px: int, block_px: int) -> PatchGrid:
    preprocessing = card.preprocessing
    slide.check_resolution(preprocessing.mpp)
    return PatchGrid(
        slide.width, slide.height, slide.mpp, preprocessing.mpp, preprocessing.patch_px, stride_px, block_px=block_px
    )


def _facts(job: Job, slide: Slide, model: Model, grid: PatchGrid, tissue: TissueMask, *, uncertainty: bool) -> dict[str, Any]:
    """Return what the store says of its scan; under ``identity`` all that makes two scans the same."""
    identity = {
        "slide": slide.fingerprint(),
        "reader": slide.reader,
        "model": model.hash,
        "mode": job.network.mode,
        "halo_px": DENSE_HALO_PX if job.network.mode == "dense" else 0,
        "grid": grid.to_dict(),
        "tissue": tissue.fingerprint(),
        "device": job.network.device.partition(":")[0],  # CPUs and GPUs round sums differently
        "precision": job.network.precision,
        "compiled": job.network.compiled == "yes",
        "test_time_averaging": job.network.tta,
        "uncertainty": uncertainty,
    }
    return {
        "identity": identity,
        "slide": {"file": slide.path.name, "name": slide.name, "width": slide.width, "height": slide.height, "mpp": slide.mpp},
        "tissue": {"source": tissue.source, "fraction": tissue.fraction},
        "model": model.card.to_dict(),
        "device": job.network.device,
        "versions": library_versions(),
    }


def _warn_of_tissue(tissue: TissueMask, slide: Slide, *, enabled: bool) -> None:
    if not tissue.mask.any():
        logger.warning(
            "%s: NO TISSUE FOUND, nothing will be scanned; look at the slide, or pass --tissue-mask none", slide.path
        )
    note(f"{slide.name}: tissue on {tissue.fraction:.1%} of the slide", enabled=enabled)


def _scan_blocks(job: Job, heatmap: Heatmap, workers: int, scheduler: Any, place: Turn, *, progress: bool) -> None:
    """Run one task per open block on a dask scheduler, when it is this slide's turn."""
    blocks, status, grid = heatmap.open_blocks(), heatmap.status, heatmap.grid
    wanted = [status[block.cells] != Status.BACKGROUND for block in blocks]
    cells = sum(int(part.sum()) for part in wanted)
    place.begin(len(blocks))
    how = f"{job.network.mode} mode, {job.network.precision}{', compiled' if job.network.compiled == 'yes' else ''}"
    note(f"{heatmap.path.stem}: {cells:,} cells, {how}", enabled=progress)
    worker = job.open()
    windows = (worker.windows(grid, block, part) for block, part in zip(blocks, wanted, strict=True))
    worker.slide.expect(grid.mpp, chain.from_iterable(windows))
    place.stop = worker.predictor.stop
    with progress_bar(cells, "cells", "scanning", enabled=progress) as bar:
        if hasattr(scheduler, "submit"):
            from distributed import as_completed

            futures = [scheduler.submit(scan_block, job, heatmap.path, block, pure=False) for block in blocks]
            for future in as_completed(futures):
                place.take_block()
                bar.update(future.result())
        else:
            from dask.base import compute
            from dask.delayed import delayed

            def report(cells: int) -> None:
                with bar.get_lock():
                    bar.update(cells)

            def run(block: Block) -> None:
                place.take_block()
                scan_block(job, heatmap.path, block, report)

            task = delayed(run, pure=False, traverse=False)
            # dask takes tasks by the order of their names: neighbours follow each other and share stored tiles
            tasks = [task(block, dask_key_name=f"block-{number:08d}") for number, block in enumerate(blocks)]
            compute(*tasks, scheduler=scheduler, num_workers=max(1, workers), optimize_graph=False)


def _sum_up(heatmap: Heatmap) -> dict[str, Any]:
    status = heatmap.status
    counts = {state.name.lower(): int((status == state).sum()) for state in Status}
    complete = counts["pending"] == counts["unreadable"] == 0
    return {"score": score_slide(heatmap.probability), "complete": complete, "cells": counts}


def _refuse_nothing(heatmap: Heatmap, slide: Slide) -> None:
    """Leave no store behind that holds nothing but unreadable tissue."""
    counts = heatmap.result["cells"] if heatmap.result else {}
    if counts.get("unreadable") and not counts["scanned"]:
        heatmap.remove()
        raise SlideReadError(f"{slide.path}: none of its tissue can be read; no heatmap was kept; copy the slide again")
