"""Many slides in one call: a store each, and one table."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from wsi_meta.errors import DataError, OptionsError, OutputPathError, WsiMetaError, first_line, one_line, printable
from wsi_meta.heatmaps.ownership import is_store, refuse_inside_store
from wsi_meta.heatmaps.summary import add_row, check_summary, failed, summarise
from wsi_meta.outputs import check_folder
from wsi_meta.scanning.scanner import Scanner

__all__ = ["scan_slides"]

logger = logging.getLogger("wsi_meta")

IN_WORK = 2
"""Slides in work: one is computed, the next one prepared."""


def scan_slides(
    slides: Sequence[str | Path],
    out: str | Path,
    *,
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
    slides : whole-slide images, no two of the same name
    out : folder, made if it does not exist
    scanner : one to use, which stays open; None makes one of `settings`
    mpp, reader, tissue_mask, overwrite : for each slide, as :func:`wsi_meta.scan`
    settings : as :class:`wsi_meta.Scanner`; none where a scanner is given

    Returns
    -------
    A dict with :data:`wsi_meta.heatmaps.summary.COLUMNS` per slide, in order; None where unknown.

    Raises
    ------
    DataError
        when two slides have the same name.
    OutputPathError
        when `out` is a file or a heatmap store, lies in one, or cannot be made.
    OutputExistsError
        when ``summary.csv`` is there and not ours.
    OptionsError
        when both a scanner and settings for one are given, or the settings do not go together.
    """
    if scanner is not None and settings:
        raise OptionsError(f"{', '.join(settings)}: the scanner that is given has its own; expected one or the other")
    out = Path(out)
    names = _names_of(slides)
    _make_folder(out, len(slides))
    check_summary(out)
    of_slide = {"mpp": mpp, "reader": reader, "tissue_mask": tissue_mask, "overwrite": overwrite}
    with nullcontext(scanner) if scanner is not None else Scanner(**settings) as used:
        used.begin()  # before the threads of the stream: a thread keeps the memory settings that it started with
        stores = [out / f"{name}.zarr" for name in names]
        rows: list[dict[str, Any]] = []
        for row in _in_stream(used, slides, stores, of_slide):
            rows.append(row)
            add_row(out, row, stores[len(rows) - 1])
        return rows


def _names_of(slides: Sequence[str | Path]) -> list[str]:
    """Return the slides' names; DataError when two have the same."""
    names = [Path(slide).stem for slide in slides]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{min(twice)}: the name of several slides; expected names of their own; scan them into several --out")
    return names


def _make_folder(out: Path, slides: int) -> None:
    if out.exists() and not out.is_dir():
        raise OutputPathError(f"{out}: a file; expected a folder for the heatmaps of {slides} slides")
    if is_store(out):
        raise OutputPathError(f"{out}: a heatmap store, not a folder for the heatmaps of {slides} slides; choose another --out")
    refuse_inside_store(out)
    check_folder(out)
    out.mkdir(exist_ok=True)


def _in_stream(
    scanner: Scanner, slides: Sequence[str | Path], stores: Sequence[Path], of_slide: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Scan slides, :data:`IN_WORK` at a time; yield their rows in order, as they are done."""
    turns = [scanner.line_up() for _ in slides]

    def scan_one(number: int) -> dict[str, Any]:
        slide = slides[number]
        scanner.note(f"[{number + 1}/{len(slides)}] {printable(str(slide))}")
        try:
            return summarise(slide, scanner.scan(slide, stores[number], turn=turns[number], **of_slide))
        except InterruptedError:
            raise
        except Exception as error:  # whatever one slide brings, the others go on
            told = _told(slide, error)
            logger.debug("%s: failed", slide, exc_info=error)
            scanner.note(f"Error: {told}")
            return failed(slide, told)

    with ThreadPoolExecutor(IN_WORK, "slides") as pool:
        try:
            yield from pool.map(scan_one, range(len(slides)))
        except BaseException:  # Ctrl-C above all: threads would go on
            for turn in turns:
                turn.interrupt()
            raise


def _told(slide: str | Path, error: Exception) -> str:
    """Return one line that says what a slide failed with."""
    if isinstance(error, WsiMetaError | OSError):
        return one_line(error)
    if isinstance(error, MemoryError):
        return printable(f"{slide}: there is not enough memory for it; end other programs, or use a larger machine")
    if type(error).__name__ == "OutOfMemoryError":  # torch's, on a GPU
        return printable(f"{slide}: the GPU's memory does not suffice; end other programs that use it, or lower --batch-size")
    return printable(f"{slide}: cannot be scanned ({type(error).__name__}: {first_line(error)})")
