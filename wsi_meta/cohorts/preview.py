"""What a command would scan, without scanning it: what is new, unfinished, finished and refused, with cells and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_meta.cohorts.batch import OpenScanner, opener, tell_failure
from wsi_meta.cohorts.copies import Stage, refuse_elsewhere
from wsi_meta.cohorts.jobs import Job, SlideSettings, groups_of
from wsi_meta.cohorts.request import Batch, Request
from wsi_meta.errors import HeatmapError
from wsi_meta.files.address import Address, SlidePath, portable
from wsi_meta.heatmaps.effort import ScanEffort
from wsi_meta.heatmaps.ownership import refuse_to_replace, stores_in
from wsi_meta.heatmaps.record import ScanIdentity
from wsi_meta.heatmaps.soundness import damaged_blocks
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.outputs.checks import check_folder, check_name
from wsi_meta.outputs.kept_files import refuse_inside_store
from wsi_meta.scanning.identity import cells_of, find_store, refuse_other_slide, tissue_print
from wsi_meta.scanning.scanner import Scanner
from wsi_meta.slides.slide import Slide, open_slide
from wsi_meta.tiling.tissue import as_tissue_mask
from wsi_meta.words import duration, printable

__all__ = ["BatchPreview", "SlidePreview", "measured_rate", "preview_batch", "preview_scans"]

LEAST_S = 10.0
"""So long the scans that are there must have taken to tell a rate."""


@dataclass(frozen=True)
class SlidePreview:
    """What would become of one slide."""

    slide: SlidePath
    store: Path
    state: str
    """``new``, ``unfinished`` (it would go on), ``finished`` (nothing to do) or ``refused``."""
    cells: int | None
    """Cells that would be scanned; None where it is refused."""
    told: str
    """Why it is refused, or how it comes to be scanned where that is not plain; else empty."""
    patient: str
    label: str

    @property
    def line(self) -> str:
        """The slide in one line."""
        if self.state == "refused":
            named = self.told if self.told.startswith(printable(str(self.slide))) else f"{self.slide}: {self.told}"
            return printable(f"refused     {named}")
        left = {
            "new": f"{self.cells:,} cells" if self.cells else "no tissue to scan",
            "unfinished": f"{self.cells:,} cells left",
            "finished": "nothing to do",
        }
        told = f" ({self.told})" if self.told else ""
        return printable(f"{self.state:<10}  {self.slide}{told}: {left[self.state]}, {self.store}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return vars(self) | {"slide": portable(self.slide), "store": portable(self.store)}


@dataclass(frozen=True)
class BatchPreview:
    """What would become of slides."""

    slides: tuple[SlidePreview, ...]
    seconds: float | None
    """Time for the cells that are left, by the rate of earlier scans into the same folder; None where none tells it."""
    rate: str
    """The rates, and the scans that they were measured on, in words."""

    @property
    def cells(self) -> int:
        """Cells that would be scanned."""
        return sum(slide.cells or 0 for slide in self.slides)

    @property
    def refused(self) -> int:
        """How many slides are refused."""
        return sum(slide.state == "refused" for slide in self.slides)

    @property
    def line(self) -> str:
        """The sums in one line."""
        states = [slide.state for slide in self.slides]
        counts = ", ".join(f"{states.count(state)} {state}" for state in ("new", "unfinished", "finished", "refused"))
        time = "time not known yet" if self.seconds is None else f"about {duration(self.seconds)} ({self.rate})"
        left = f"{self.cells:,} cells, {time}" if self.cells else "nothing to scan"
        return printable(f"{len(states)} slide{'s' if len(states) > 1 else ''}: {counts}; {left}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and sums as plain JSON values."""
        slides = [slide.to_dict() for slide in self.slides]
        return {"slides": slides, "cells": self.cells, "refused": self.refused, "seconds": self.seconds, "rate": self.rate}


def preview_scans(
    slides: str | Path | Address | Sequence[str | Path | Address],
    out: str | Path,
    *,
    manifest: str | Path | None = None,
    recursive: bool = False,
    extensions: str | Sequence[str] = (),
    scanner: Scanner | None = None,
    mpp: float | None = None,
    reader: str = "auto",
    tissue_mask: str | Path | None = None,
    overwrite: bool = False,
    shard: str | tuple[int, int] | None = None,
    stage: str | Path | Stage | None = None,
    **settings: Any,
) -> BatchPreview:
    """Tell what :func:`wsi_meta.scan_slides` would do when it is called alike, without scanning or writing anything.

    Tissue is found, which takes a second for a large slide; torch is not imported unless a GPU or int8 is asked for. So what
    ``auto`` comes to for device and precision is not compared with the heatmaps that are there.

    Parameters
    ----------
    all : see :func:`wsi_meta.scan_slides`; nothing is copied to `stage`, but what refuses it there does so here

    Returns
    -------
    What would become of each slide, in order, and the time for the cells that are left, where earlier scans tell it.

    Raises
    ------
    DataError, OutputPathError, OutputExistsError, OptionsError
        as :func:`wsi_meta.scan_slides`.
    """
    open_scanner, of_slide = opener(scanner, settings), SlideSettings(mpp, reader, tissue_mask, overwrite)
    request = Request(slides, out, of_slide, manifest, recursive, extensions, shard, stage)
    return preview_batch(request.batch(), open_scanner)


def preview_batch(
    batch: Batch, open_scanner: OpenScanner, report: Callable[[SlidePreview], None] | None = None
) -> BatchPreview:
    """Return what would become of a batch's slides; `report` is told of each as soon as that is known."""
    told: dict[str, SlidePreview] = {}
    seconds: float | None = 0.0
    rates = []
    for own, together in groups_of(batch.jobs):
        with open_scanner(own) as scanner:
            refuse_elsewhere(scanner, batch.stage)
            known = scanner.known_identity()
            for job in together:
                told[job.place] = _preview(scanner, job, known)
                if report is not None:
                    report(told[job.place])
            if cells := sum(told[job.place].cells or 0 for job in together):
                rate, words = measured_rate(batch.folder.absolute(), known, scanner.options.stride_px)
                seconds = None if rate is None or seconds is None else seconds + cells / rate
                rates += [words] if rate is not None else []
    return BatchPreview(tuple(told[job.place] for job in batch.jobs), seconds, "" if seconds is None else "; ".join(rates))


def measured_rate(folder: Path, known: Mapping[str, Any], stride_px: int) -> tuple[float | None, str]:
    """Return the cells a second of finished scans of the same kind, and in words what they are; None where there is none.

    It is what these scans took, from each slide's opening to its result. The newest scan decides which device and precision
    count.

    Parameters
    ----------
    folder : of the stores
    known : of the identity of the scans that are to come, by the names of its fields
    """
    alike = ("model", "mode", "test_time_averaging", "uncertainty", "device", "precision", "compiled")
    taken: dict[tuple[str, str, bool], list[ScanEffort]] = {}
    newest, kind = 0.0, None
    for heatmap, written in _finished_in(folder):
        identity, effort = heatmap.record.identity, heatmap.record.effort
        same = all(known.get(name, getattr(identity, name)) == getattr(identity, name) for name in alike)
        if same and identity.grid.stride_px == stride_px and effort is not None and effort.cells:
            taken.setdefault(_kind_of(identity), []).append(effort)
            newest, kind = max((newest, kind), (written, _kind_of(identity)))
    if kind is None:
        return None, ""
    together, (device, precision, compiled), count = ScanEffort().with_others(*taken[kind]), kind, len(taken[kind])
    if together.cells_per_s is None or together.passed_s < LEAST_S:
        return None, ""
    words = f"{precision} on {device}{', compiled' if compiled else ''}, {known['mode']} mode"
    scans = f"{count} earlier scan{'s' if count > 1 else ''}"
    return together.cells_per_s, f"{together.cells_per_s:,.0f} cells/s as in {scans} into {folder}: {words}"


def _preview(scanner: Scanner, job: Job, known: Mapping[str, Any]) -> SlidePreview:
    """Tell what would become of a slide; whatever refuses it, the others go on."""
    source = job.slide
    try:
        scanner.journal.refuse(source.path)
        with open_slide(source.path, mpp=job.of_slide.mpp, reader=job.of_slide.reader) as slide:
            state, cells = _state_of(scanner, slide, job, known)
    except Exception as error:
        told = tell_failure(source.path, error)
        return SlidePreview(source.path, job.store, "refused", None, told, source.patient, source.label)
    return SlidePreview(source.path, job.store, state, cells, source.told, source.patient, source.label)


def _state_of(scanner: Scanner, slide: Slide, job: Job, known: Mapping[str, Any]) -> tuple[str, int]:
    """Return what a slide's scan would begin with, and its cells; raises what the scan would refuse."""
    store, overwrite = job.store, job.of_slide.overwrite
    check_name(store, temporary=True)
    refuse_inside_store(store)
    if job.alone or store.parent.is_dir():
        check_folder(store)
    if overwrite:
        refuse_to_replace(store, overwrite=True)
    grid = scanner.options.grid(slide, scanner.networks.card)
    there = None if overwrite else find_store(store)
    if there is not None:
        refuse_other_slide(there, slide, grid)
    tissue = as_tissue_mask(job.of_slide.tissue_mask, slide)
    if there is None:
        return "new", int(tissue.cells(grid).sum())
    refuse_other_slide(there, slide, grid, **known, tissue=tissue_print(tissue, there))
    if not there.finished:
        return "unfinished", _cells_left(there)
    cells = cells_of(tissue, grid, there)
    damaged = damaged_blocks(there, cells)
    if not damaged:
        return "finished", 0
    return "unfinished", sum(int(cells[block.cells].sum()) for block in damaged) or _cells_left(there)


def _cells_left(there: Heatmap) -> int:
    """Return the cells of the blocks that are open; of all where that is damaged, since the scan mends it."""
    try:
        status = there.status
    except HeatmapError:
        return there.grid.shape[0] * there.grid.shape[1]
    return sum(int((status[block.cells] != Status.BACKGROUND).sum()) for block in there.open_blocks(status))


def _finished_in(folder: Path) -> Iterator[tuple[Heatmap, float]]:
    """Yield the finished heatmaps of a folder, and when they were written; those that cannot be opened tell nothing here."""
    for path in stores_in(folder):
        try:
            heatmap, written = Heatmap.open(path), (path / "zarr.json").stat().st_mtime
        except (HeatmapError, OSError):
            continue
        if heatmap.finished:
            yield heatmap, written


def _kind_of(identity: ScanIdentity) -> tuple[str, str, bool]:
    return identity.device, identity.precision, identity.compiled
