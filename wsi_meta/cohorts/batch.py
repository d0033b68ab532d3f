"""Many slides in one call: a store each, and one table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_meta.cohorts.inputs import SlideInput, find_slides
from wsi_meta.cohorts.retry import retry_command
from wsi_meta.cohorts.summary import add_row, check_summary, failed, summarise
from wsi_meta.cohorts.worklist import Worklist
from wsi_meta.errors import OptionsError, OutputPathError, WsiMetaError, first_line, one_line, printable
from wsi_meta.heatmaps.ownership import is_store, refuse_inside_store
from wsi_meta.outputs import check_folder
from wsi_meta.scanning.scanner import Scanner
from wsi_meta.scanning.threads import interrupt_all

__all__ = ["Job", "check_batch_folder", "groups_of", "jobs_of", "opener", "scan_jobs", "scan_slides", "tell_failure"]

logger = logging.getLogger("wsi_meta")

IN_WORK = 2
"""Slides in work: one is computed, the next one prepared."""


OpenScanner = Callable[[dict[str, Any]], AbstractContextManager[Scanner]]
"""Opens a scanner with some settings of its own, ``model`` and ``stride_px`` at most."""


@dataclass(frozen=True)
class Job:
    """One slide of a batch."""

    place: str
    """Which one of how many: ``[2/5]``."""
    slide: SlideInput
    store: Path
    of_slide: dict[str, Any]
    """``mpp``, ``reader``, ``tissue_mask`` and ``overwrite``, its own where it has them."""
    settings: dict[str, Any] | None = None
    """Of its scanner, its own where it has them; None where they are not known."""

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row of the summary with what the manifest says of the slide, and how to scan it again if that failed."""
        slide = self.slide
        drawn = None if slide.annotations is None else str(slide.annotations.absolute())
        row = row | {"patient": slide.patient or None, "label": slide.label or None, "annotations": drawn}
        if row["error"] is None or self.settings is None:
            return row
        asked = self.settings | self.of_slide
        return row | {"retry": retry_command(slide.path, self.store, asked, why=str(row["error"]))}


def scan_slides(
    slides: Sequence[str | Path],
    out: str | Path,
    *,
    manifest: str | Path | None = None,
    recursive: bool = False,
    extensions: Sequence[str] = (),
    scanner: Scanner | None = None,
    mpp: float | None = None,
    reader: str = "auto",
    tissue_mask: str | Path | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Scan slides as one stream into ``<out>/<slide>.zarr`` and write ``<out>/summary.csv``.

    One scanner serves all. While a slide is computed the next one is opened and its tissue found; its first
    blocks are read while the last ones before are computed. The maps are those that :func:`wsi_meta.scan` makes of each.

    A slide that cannot be scanned, whatever the reason, gets a row with its error; the others go on. Slides that were finished
    before are not scanned again. Rows of slides that are not among `slides` stay in the table, also those that another batch
    writes at the same time. Where a scan fails but the slide has a finished heatmap, the table keeps what that says.

    Parameters
    ----------
    slides : whole-slide images, folders of them, or patterns; see :func:`wsi_meta.find_slides`
    out : folder, made if it does not exist
    manifest : CSV file of slides with settings of their own, which come before those given here; see
        :func:`wsi_meta.read_scan_manifest`. Slides with the same model and stride are scanned one after the other
    recursive, extensions : for folders; see :func:`wsi_meta.find_slides`
    scanner : one to use, which stays open; None makes one of `settings`
    mpp, reader, tissue_mask, overwrite : for each slide, as :func:`wsi_meta.scan`
    settings : as :class:`wsi_meta.Scanner`; none where a scanner is given

    Returns
    -------
    A dict with :data:`wsi_meta.cohorts.table.COLUMNS` per slide, in order; None where unknown.

    Raises
    ------
    DataError
        when two slides have the same name, there is none, or the manifest is wrong.
    OutputPathError
        when `out` is a file or a heatmap store, lies in one, or cannot be made.
    OutputExistsError
        when ``summary.csv`` is there and not ours.
    OptionsError
        when both a scanner and settings for one are given, or the settings do not go together.
    """
    open_scanner = opener(scanner, settings)
    found = find_slides(slides, manifest=manifest, recursive=recursive, extensions=extensions)
    of_slide = {"mpp": mpp, "reader": reader, "tissue_mask": tissue_mask, "overwrite": overwrite}
    jobs = jobs_of(found, Path(out), of_slide, settings if scanner is None else None)
    return scan_jobs(jobs, Path(out), open_scanner)


def opener(scanner: Scanner | None, settings: dict[str, Any]) -> OpenScanner:
    """Return what gives the scanner that is there, which stays open, or one that it makes of settings.

    Raises
    ------
    OptionsError
        when there are both.
    """
    if scanner is None:
        return lambda own: Scanner(**settings | own)
    if settings:
        raise OptionsError(f"{', '.join(settings)}: the scanner that is given has its own; expected one or the other")

    def given(own: dict[str, Any]) -> AbstractContextManager[Scanner]:
        if own:
            raise OptionsError(f"scanner: the manifest has its own {' and '.join(own)}; expected no scanner with it")
        return nullcontext(scanner)

    return given


def scan_jobs(jobs: Sequence[Job], out: Path, open_scanner: OpenScanner) -> list[dict[str, Any]]:
    """Scan slides as :func:`scan_slides`; the settings of all are refused before the first one is scanned."""
    check_batch_folder(out, len(jobs))
    out.mkdir(exist_ok=True)
    groups = groups_of(jobs)
    for own, _ in groups if len(groups) > 1 else ():
        with open_scanner(own):
            pass
    rows: dict[str, dict[str, Any]] = {}
    with Worklist(out, len(jobs)) as worklist:
        for own, together in groups:
            with open_scanner(own) as scanner:
                scanner.begin()  # before the threads of the stream: a thread keeps the memory settings that it started with
                for job, row in zip(together, _in_stream(scanner, together, worklist), strict=True):
                    rows[job.place] = row
                    add_row(out, row, job.store)
                    worklist.tell()
    return [rows[job.place] for job in jobs]


def jobs_of(
    found: Sequence[SlideInput],
    out: Path,
    of_slide: dict[str, Any],
    settings: dict[str, Any] | None = None,
    *,
    alone: bool = False,
) -> list[Job]:
    """Return a job for each slide, with its own settings before those of all.

    Parameters
    ----------
    out : folder of the stores; `alone`, the one slide's store itself
    of_slide : ``mpp``, ``reader``, ``tissue_mask`` and ``overwrite`` of slides that have none of their own
    settings : of the scanner, for slides that have none of their own; None where they are not known
    """
    return [
        Job(
            f"[{number}/{len(found)}]",
            slide,
            out if alone else out / f"{slide.name}.zarr",
            of_slide | slide.slide_settings,
            None if settings is None else settings | slide.scanner_settings,
        )
        for number, slide in enumerate(found, 1)
    ]


def groups_of(jobs: Sequence[Job]) -> list[tuple[dict[str, Any], list[Job]]]:
    """Return the jobs that one scanner serves together, so that a network is loaded once, with its settings."""
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.slide.scanner_settings.items()), []).append(job)
    return [(dict(own), together) for own, together in groups.items()]


def check_batch_folder(out: Path, slides: int) -> None:
    """Make sure that a folder may hold, or be made for, so many slides' heatmaps.

    Raises
    ------
    OutputPathError, OutputExistsError
    """
    if out.exists() and not out.is_dir():
        raise OutputPathError(f"{out}: a file; expected a folder for the heatmaps of {slides} slides")
    if is_store(out):
        raise OutputPathError(f"{out}: a heatmap store, not a folder for the heatmaps of {slides} slides; choose another --out")
    refuse_inside_store(out)
    check_folder(out)
    check_summary(out)


def _in_stream(scanner: Scanner, jobs: Sequence[Job], worklist: Worklist) -> Iterator[dict[str, Any]]:
    """Scan slides, :data:`IN_WORK` at a time; yield their rows in order, as they are done."""
    turns = [scanner.line_up(job.place) for job in jobs]

    def scan_one(number: int) -> dict[str, Any]:
        job, slide = jobs[number], jobs[number].slide.path
        if job.slide.told:
            scanner.note(f"{job.place} {slide}: {job.slide.told}")
        try:
            heatmap = scanner.scan(slide, job.store, turn=turns[number], **job.of_slide)
            with scanner.journal.opened(slide):
                worklist.add_picture(heatmap, slide)
            return job.row(summarise(slide, heatmap))
        except InterruptedError:
            raise
        except Exception as error:  # whatever one slide brings, the others go on
            told = tell_failure(slide, error)
            logger.debug("%s: failed", slide, exc_info=error)
            scanner.note(told, level=logging.ERROR, event="failed", place=job.place, slide=str(slide), error=told)
            return job.row(failed(slide, told))

    with ThreadPoolExecutor(IN_WORK, "slides") as pool:
        try:
            yield from pool.map(scan_one, range(len(jobs)))
        except BaseException:  # Ctrl-C above all: threads would go on
            interrupt_all(turns)
            raise


def tell_failure(slide: str | Path, error: Exception) -> str:
    """Return one line that says what a slide failed with."""
    if isinstance(error, WsiMetaError | OSError):
        return one_line(error)
    if isinstance(error, MemoryError):
        return printable(f"{slide}: there is not enough memory for it; end other programs, or use a larger machine")
    if type(error).__name__ == "OutOfMemoryError":  # torch's, on a GPU
        return printable(f"{slide}: the GPU's memory does not suffice; end other programs that use it, or lower --batch-size")
    return printable(f"{slide}: cannot be scanned ({type(error).__name__}: {first_line(error)})")
