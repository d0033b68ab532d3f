"""Heatmap stores that tests write for themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_meta.heatmaps.lesions import lesion_facts
from wsi_meta.heatmaps.record import ScanIdentity, ScannedSlide, ScannedTissue, ScanRecord, ScanResult
from wsi_meta.heatmaps.scoring import score_slide
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.models.card import ModelCard
from wsi_meta.quality.verdict import Verdict
from wsi_meta.readers.reader import Bounds
from wsi_meta.tiling.grid import Block, PatchGrid

SLIDE_MPP = 0.243


def make_record(
    grid: PatchGrid,
    *,
    name: str = "s",
    slide: str = "none",
    model: str = "0" * 64,
    reader: str = "direct",
    device: str = "cpu",
    uncertainty: bool = False,
    tissue_fraction: float = 1.0,
    thresholds: dict[str, float] | None = None,
    bounds: Bounds | None = None,
) -> ScanRecord:
    """The record of a scan that has not reached its end; `slide` is the slide's fingerprint, `model` that of the model file."""
    identity = ScanIdentity(
        slide=slide,
        reader=reader,
        model=model,
        mode="patch",
        halo_px=0,
        grid=grid,
        tissue="1" * 64,
        device=device.partition(":")[0],
        precision="fp32",
        compiled=False,
        test_time_averaging=uncertainty,
        uncertainty=uncertainty,
    )
    return ScanRecord(
        identity=identity,
        slide=ScannedSlide(f"{name}.tif", name, grid.width, grid.height, grid.slide_mpp, bounds=bounds),
        tissue=ScannedTissue("found", tissue_fraction),
        model=ModelCard(thresholds={"default": 0.5} | (thresholds or {})),
        device=device,
        versions={"torch": "2.6.0"},
    )


def write_block(
    heatmap: Heatmap, block: Block, probability: NDArray[np.float32], status: NDArray[np.uint8], **others: NDArray[np.float32]
) -> None:
    """Write a block; `others` are uncertainty and measures, where the store keeps them."""
    heatmap.write_block(block, {"0": probability, "status": status, **others})


def write_store(
    path: Path,
    probability: NDArray[np.float32],
    *,
    mpp: float = SLIDE_MPP,
    cut: int = 0,
    complete: bool = True,
    unreadable: NDArray[np.bool_] | None = None,
    verdict: Verdict | None = None,
    slide: str = "none",
    model: str = "0" * 64,
    reader: str = "direct",
    device: str = "cpu",
    bounds: Bounds | None = None,
    **thresholds: float,
) -> Heatmap:
    """A finished heatmap with these values; the slide ends `cut` level-0 pixels before the last cells do.

    Cells without a value are background, but for those that are `unreadable`; with one of these it is not complete.
    """
    rows, cols = probability.shape
    side = 0.972 / mpp * 32
    grid = PatchGrid(round(cols * side) - cut, round(rows * side) - cut, mpp, 0.972, 96, 32, block_px=1920)
    assert grid.shape == probability.shape
    scanned = np.isfinite(probability)
    unread = np.zeros(probability.shape, bool) if unreadable is None else unreadable & ~scanned
    complete = complete and not unread.any()
    fraction = float(scanned.mean())
    record = make_record(
        grid,
        name=path.stem,
        slide=slide,
        model=model,
        reader=reader,
        device=device,
        tissue_fraction=fraction,
        thresholds=thresholds,
        bounds=bounds,
    )
    heatmap = Heatmap.create(path, record, scanned | unread, overwrite=True)
    status = np.where(scanned, Status.SCANNED, np.where(unread, Status.UNREADABLE, Status.BACKGROUND)).astype(np.uint8)
    for block in grid.blocks():
        write_block(heatmap, block, probability[block.cells], status[block.cells])
    cells = {state.name.lower(): int((status == state).sum()) for state in Status}
    heatmap.finalise(ScanResult(score_slide(probability), complete, cells), lesion_facts(record, probability, status), verdict)
    return Heatmap.open(path)
