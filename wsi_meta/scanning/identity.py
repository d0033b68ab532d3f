"""What makes two scans the same, and the store of this very scan: the one that is there, or a new one."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_meta.errors import HeatmapError, OutputExistsError
from wsi_meta.heatmaps.effort import ScanEffort
from wsi_meta.heatmaps.inspection import contradictions
from wsi_meta.heatmaps.ownership import is_torn_store, refuse_to_replace
from wsi_meta.heatmaps.record import ScanIdentity, ScannedSlide, ScannedTissue, ScanRecord
from wsi_meta.heatmaps.soundness import clear_damage
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.models.dihedral import averaging_of
from wsi_meta.quality.cell_measures import MEASURES
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.versions import library_versions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsi_meta.models.model import Model
    from wsi_meta.scanning.options import ScanPlan
    from wsi_meta.slides.slide import Slide
    from wsi_meta.tiling.tissue import TissueMask

__all__ = ["cells_of", "continue_or_refuse", "find_store", "keep_effort", "make_record", "refuse_other_slide", "tissue_print"]

logger = logging.getLogger("wsi_meta")


def find_store(out: Path) -> Heatmap | None:
    """Open what stands at `out`; None where nothing does.

    Raises
    ------
    OutputExistsError
        when it is no heatmap store.
    """
    if not out.exists():
        return None
    try:
        return Heatmap.open(out)
    except HeatmapError as error:
        if is_torn_store(out):
            refuse_to_replace(out, overwrite=False)
        told = str(error).removeprefix(f"{out}: ")
        raise OutputExistsError(f"{out}: exists and is not a heatmap store ({told}); choose another --out") from error


def make_record(
    slide: Slide, model: Model, plan: ScanPlan, grid: PatchGrid, tissue: TissueMask, *, compiled: bool, there: Heatmap | None
) -> ScanRecord:
    """Return what a store keeps of a scan before its first block; `there` is the store to continue, if there is one."""
    identity = ScanIdentity(
        slide=_fingerprint_of(slide, there),
        reader=slide.reader,
        model=model.hash,
        mode=plan.mode,
        halo_px=plan.halo_px,
        grid=grid,
        tissue=tissue_print(tissue, there),
        device=plan.inference.device_kind,
        precision=plan.inference.precision,
        compiled=compiled,
        test_time_averaging=averaging_of(plan.views),
        uncertainty=plan.uncertainty,
    )
    return ScanRecord(
        identity=identity,
        slide=_scanned(slide),
        tissue=ScannedTissue(tissue.source, tissue.fraction, tissue.inked, tissue.unread),
        model=model.card,
        device=plan.inference.device,
        versions=library_versions(),
        measures=MEASURES,
    )


def cells_of(tissue: TissueMask, grid: PatchGrid, there: Heatmap | None) -> NDArray[np.bool_]:
    """Return the cells that a scan counts as tissue, bool (rows, cols).

    Those of the store that is there, where parts of an overview could not be read, then or now, which count as tissue; with
    what is found now, where the store was begun without some parts.
    """
    cells = tissue.cells(grid)
    if there is not None and _keeps_cells(there, tissue):
        with suppress(HeatmapError):  # damaged, which is mended with the cells of now
            before: NDArray[np.bool_] = there.status != Status.BACKGROUND
            return before | cells if there.record.tissue.unread else before
    return cells


def tissue_print(tissue: TissueMask, there: Heatmap | None) -> str:
    """Return the fingerprint of a scan's tissue; that in the store that is there, where the scan keeps its cells."""
    return there.record.identity.tissue if there and _keeps_cells(there, tissue) else tissue.fingerprint()


def _keeps_cells(there: Heatmap, tissue: TissueMask) -> bool:
    before = there.record.tissue
    return before.source == tissue.source == "found" and (before.unread or tissue.unread)


def _scanned(slide: Slide) -> ScannedSlide:
    return ScannedSlide(
        slide.path.name, slide.name, slide.width, slide.height, slide.mpp, slide.stated_mpp, slide.reader_reason, slide.bounds
    )


def continue_or_refuse(there: Heatmap, record: ScanRecord, tissue: NDArray[np.bool_]) -> Heatmap:
    """Return the store that is there when it is of this very scan; what is damaged in it counts as not scanned.

    Parameters
    ----------
    record : of this scan, as :func:`make_record` returns it; replaces that of the store where that is damaged
    tissue : cells that hold tissue, bool (rows, cols)

    Raises
    ------
    OutputExistsError
        when it is another scan's; the message names the differences.
    """
    _refuse_differences(there, record.identity)
    if not there.intact:
        logger.warning("%s: damaged: the record of its scan is not as it was written; that is made anew", there.path)
        kept = tuple(name for name in MEASURES if (there.path / name).exists())
        there = there.write_record(replace(record, measures=kept))
    heatmap = clear_damage(there, tissue)
    if told := "; ".join(contradictions(heatmap)):
        logger.warning("%s: damaged: %s; that is made anew", there.path, told)
        return heatmap.reopen()
    return heatmap


def keep_effort(heatmap: Heatmap, effort: ScanEffort) -> None:
    """Keep in a store what a run took that did not reach the scan's end; nothing where an earlier one did, or it cannot be."""
    if heatmap.result is None:
        with suppress(HeatmapError, OSError):  # what ended the run is told instead
            heatmap.write_record(heatmap.record.with_run(effort))


def refuse_other_slide(there: Heatmap, slide: Slide, grid: PatchGrid, **known: Any) -> None:
    """Refuse a store of another slide or grid before the work begins; :func:`continue_or_refuse` compares all.

    Parameters
    ----------
    known : what else is known of the scan's identity, by the names of its fields

    Raises
    ------
    OutputExistsError
    """
    this = replace(there.record.identity, slide=_fingerprint_of(slide, there), reader=slide.reader, grid=grid, **known)
    _refuse_differences(there, this)


def _fingerprint_of(slide: Slide, there: Heatmap | None) -> str:
    """Return a slide's fingerprint; the one in a store that is there, where that is the slide's by another rule."""
    told = there and there.record.identity.slide
    return told if told and slide.has_fingerprint(told) else slide.fingerprint()


def _refuse_differences(there: Heatmap, identity: ScanIdentity) -> None:
    before = there.record.identity
    if names := before.differences(identity):
        told = "; ".join(f"{name} is {_brief(getattr(before, name))}, now {_brief(getattr(identity, name))}" for name in names)
        raise OutputExistsError(
            f"{there.path}: holds another scan: {told}; choose another --out, or pass --overwrite to replace it"
        )


def _brief(value: Any) -> str:
    """Return a fingerprint's first letters, a grid's stride, any other value as it is."""
    if isinstance(value, PatchGrid):
        return f"stride {value.stride_px}, {value.slide_mpp} um per pixel, blocks of {value.block_px} px"
    return str(value)[:12]
