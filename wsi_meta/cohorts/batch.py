"""Many slides in one call: a store each, and one table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any

from wsi_meta.cohorts.copies import Stage, Staging, refuse_elsewhere, staging
from wsi_meta.cohorts.jobs import Job, SlideSettings, groups_of
from wsi_meta.cohorts.request import Batch, Request
from wsi_meta.cohorts.run_summary import Run, logged_run
from wsi_meta.errors import OptionsError, OutputPathError, WsiMetaError, kind_name
from wsi_meta.files.address import Address, SlidePath, several, slide_path
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.paths import as_path, real_path, told_by_the_system
from wsi_meta.scanning.scanner import Scanner
from wsi_meta.scanning.threads import Turn, interrupt_all
from wsi_meta.words import counted, first_line, one_line, out_of_memory, printable
from wsi_meta.worklist.summary import add_row, failed, summarise
from wsi_meta.worklist.worklist import Worklist

__all__ = ["opener", "scan_batch", "scan_slides", "tell_failure"]

logger = logging.getLogger("wsi_meta")

OpenScanner = Callable[[dict[str, Any]], AbstractContextManager[Scanner]]
"""Opens a scanner with some settings of its own, ``model`` and ``stride_px`` at most."""


def scan_slides(
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
) -> list[dict[str, Any]]:
    """Scan slides as one stream into ``<out>/<slide>.zarr``; write ``<out>/summary.csv`` and ``<out>/report/index.html``.

    One scanner serves all. While a slide is computed the next one is opened and its tissue found; its first
    blocks are read while the last ones before are computed. The maps are those that :func:`wsi_meta.scan` makes of each.

    A slide that cannot be scanned, whatever the reason, gets a row with its error; the others go on. Slides that were finished
    before are not scanned again. Rows of slides that are not among `slides` stay in the table, also those that another batch
    writes at the same time. Where a scan fails but the slide has a finished heatmap, the table keeps what that says.

    Parameters
    ----------
    slides : whole-slide images, their addresses, folders of them, or patterns; see :func:`wsi_meta.find_slides`
    out : folder, made if it does not exist
    manifest : CSV file of slides with settings of their own, which come before those given here; see
        :func:`wsi_meta.read_scan_manifest`. Slides with the same model and stride are scanned one after the other
    recursive, extensions : for folders; see :func:`wsi_meta.find_slides`
    scanner : one to use, which stays open; None makes one of `settings`
    mpp : for slides that state none; only that of one slide that is named overrules what it states
    reader, tissue_mask, overwrite : for each slide, as :func:`wsi_meta.scan`; a file of tissue is for one slide
    shard : ``I/N`` or the two numbers: only every N-th slide in the order of names, from the I-th on, counted from 0. N such
        calls with the same slides, on as many machines, share one `out`, and scan each slide once
    stage : folder on a fast disk that slides are copied to before they are scanned, and removed from afterwards; a
        :class:`.Stage` also says how much may lie there
    settings : as :class:`wsi_meta.Scanner`; none where a scanner is given

    Returns
    -------
    A dict with :data:`wsi_meta.worklist.table.COLUMNS` per slide, in order; None where unknown.

    Raises
    ------
    DataError
        when two slides have the same name, there is none, or the manifest is wrong.
    OutputPathError
        when `out` is a file or a heatmap store, lies in one, or cannot be made; when the folder of `stage` is missing or cannot
        be written to; at the end, when rows could not be written: its ``rows`` are what would have been returned.
    OutputExistsError
        when ``summary.csv`` or ``summary.json`` is there and not ours.
    OptionsError
        when both a scanner and settings for one are given, or the settings do not go together; when several slides would have
        one file as their tissue mask.
    """
    settings |= {name: _from_anywhere(name, settings[name]) for name in ("model", "score_model") if name in settings}
    open_scanner = opener(scanner, settings)
    of_slide = SlideSettings(mpp, reader, _from_anywhere("tissue mask", tissue_mask), overwrite)
    slides, asked = [slide_path(slide).absolute() for slide in several(slides)], settings if scanner is None else None
    request = Request(slides, out, of_slide, _from_anywhere("manifest", manifest), recursive, extensions, shard, stage, asked)
    return scan_batch(request.batch(), open_scanner)


def _from_anywhere(name: str, given: Any) -> Any:
    """Return a path so that it means the same when the program around went to another folder; words and other things stay."""
    is_path = isinstance(given, str | Path) and str(given) not in ("", "none", "default")
    return as_path(name.replace("_", " "), given).absolute() if is_path else given


def opener(scanner: Scanner | None, settings: dict[str, Any]) -> OpenScanner:
    """Return what gives the scanner that is there, which stays open, or one that it makes of settings.

    Raises
    ------
    OptionsError
        when there are both, or a setting does not exist.
    """
    if unknown := sorted(settings.keys() - signature(Scanner).parameters):
        told = "expected those of wsi_meta.Scanner; what a scan would do is told by preview_scans"
        raise OptionsError(f"{', '.join(unknown)}: no setting of a scanner; {told}")
    if scanner is None:
        return lambda own: Scanner(**settings | own)
    if settings:
        raise OptionsError(f"{', '.join(settings)}: the scanner that is given has its own; expected one or the other")

    def given(own: dict[str, Any]) -> AbstractContextManager[Scanner]:
        if own:
            raise OptionsError(f"scanner: the manifest has its own {' and '.join(own)}; expected no scanner with it")
        return nullcontext(scanner)

    return given


def scan_batch(batch: Batch, open_scanner: OpenScanner) -> list[dict[str, Any]]:
    """Return the rows of a batch's slides, in order, when all are scanned as :func:`scan_slides` does.

    One slide whose store lies anywhere gets no table; whatever refuses it is raised.
    """
    if batch.alone:
        return [_scan_alone(batch.jobs[0], open_scanner, batch.stage)]
    return _scan_into_folder(batch.jobs, batch.out, open_scanner, batch.stage)


def _scan_alone(job: Job, open_scanner: OpenScanner, stage: Stage | None) -> dict[str, Any]:
    with (
        logged_run(1, job.store, staged=stage is not None) as run,
        open_scanner({}) as run.scanner,
        staging(stage, run.scanner, [job]) as copies,
    ):
        turn = run.scanner.line_up()
        try:
            row = job.row(summarise(job.slide.path, _scan(run.scanner, job, turn, copies)))
        except BaseException:
            run.add(turn.stop_meter(), "failed")
            raise
        run.add(turn.stop_meter(), row["error_kind"])
        return row


def _scan_into_folder(jobs: list[Job], out: Path, open_scanner: OpenScanner, stage: Stage | None) -> list[dict[str, Any]]:
    """Scan slides into a folder with a table; the settings of all are refused before the first one is scanned."""
    real_path(out).mkdir(exist_ok=True)  # of a link, what it leads to
    folder = out.absolute()  # the process may go to another one meanwhile
    groups = groups_of(jobs)
    for own, _ in groups if len(groups) > 1 else ():
        with open_scanner(own):
            pass
    rows: dict[str, dict[str, Any]] = {}
    unwritten: list[tuple[Job, dict[str, Any]]] = []
    with logged_run(len(jobs), out, staged=stage is not None) as run, Worklist(folder, len(jobs)) as worklist:
        for own, together in groups:
            with open_scanner(own) as run.scanner:
                refuse_elsewhere(run.scanner, stage)
                run.scanner.begin()  # before the threads of the stream: a thread keeps the memory settings it started with
                with staging(stage, run.scanner, together) as copies:
                    for job, row in zip(together, _in_stream(run, together, copies, worklist), strict=True):
                        rows[job.place] = row
                        unwritten.append((job, row))
                        _add_rows(folder, unwritten)
                        worklist.tell()
    in_order = [rows[job.place] for job in jobs]
    if unwritten and (error := _add_rows(folder, unwritten)) is not None:
        told = f"{out}: the table lacks {counted(len(unwritten), 'row')} ({one_line(error)}); when that is mended, run"
        how = " without --overwrite" if any(job.of_slide.overwrite for job in jobs) else ""
        raised = OutputPathError(f"{told} the same scan again{how}: it adds them, and keeps the maps that are finished")
        raised.rows = in_order
        raise raised from error
    return in_order


def _add_rows(out: Path, unwritten: list[tuple[Job, dict[str, Any]]]) -> OSError | None:
    """Add rows to a folder's table; return why those that are left in the list could not be added, which is told once."""
    while unwritten:
        job, row = unwritten[0]
        try:
            add_row(out, row, job.store, job.slide.path)
        except OSError as error:  # a full disk, or a table that another one holds: the scans go on
            if len(unwritten) == 1:
                logger.warning("%s; the scans go on, and the row is tried again", one_line(error))
            return error
        del unwritten[0]
    return None


def _in_stream(run: Run, jobs: Sequence[Job], copies: Staging, worklist: Worklist) -> Iterator[dict[str, Any]]:
    """Scan slides, as many at a time as the run's scanner wants; yield their rows in order, as they are done."""
    scanner = run.scanner
    assert scanner is not None
    turns = [scanner.line_up(job.place) for job in jobs]

    def scan_one(number: int) -> dict[str, Any]:
        job, slide = jobs[number], jobs[number].slide.path
        try:
            heatmap = _scan(scanner, job, turns[number], copies)
            with scanner.journal.opened(slide):
                worklist.add_picture(heatmap, slide)
            row = job.row(summarise(slide, heatmap))
        except InterruptedError:
            run.add(turns[number].stop_meter(), None)
            raise
        except Exception as error:  # whatever one slide brings, the others go on
            told, kind = tell_failure(slide, error), kind_name(error)
            facts = {"place": job.place, "slide": str(slide), "error": told, "error_kind": kind}
            logger.debug("%s: failed", slide, exc_info=error, extra={"facts": facts | {"event": "traceback"}})
            scanner.note(told, level=logging.ERROR, event="failed", **facts)
            row = job.row(failed(slide, told, kind))
        run.add(turns[number].stop_meter(), row["error_kind"])
        return row

    with ThreadPoolExecutor(scanner.slides_in_work, "slides") as pool:
        try:
            yield from pool.map(scan_one, range(len(jobs)))
        except BaseException:  # Ctrl-C above all: threads would go on
            copies.stop()
            interrupt_all(turns)
            raise


def _scan(scanner: Scanner, job: Job, turn: Turn, copies: Staging) -> Heatmap:
    """Scan one slide, from its copy where there is one, in its turn."""
    slide = job.slide
    try:
        if slide.told:
            scanner.note(f"{turn.place} {slide.path}: {slide.told}".lstrip())
        with copies.copy_of(slide.path) as source:
            return scanner.scan(source, job.store, turn=turn, **vars(job.of_slide))
    finally:
        turn.end()  # also where its scan did not begin: the slides after it wait for that


def tell_failure(slide: str | SlidePath, error: Exception) -> str:
    """Return one line that says what a slide failed with."""
    if isinstance(error, WsiMetaError):
        return one_line(error)
    if isinstance(error, OSError):
        return told_by_the_system(error)
    short = out_of_memory(error)
    return printable(f"{slide}: {short or f'cannot be scanned ({type(error).__name__}: {first_line(error)})'}")
