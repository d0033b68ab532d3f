"""Many slides in one call: a store each, and one table."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from wsi_meta.errors import DataError, OptionsError, OutputExistsError, OutputPathError, WsiMetaError, one_line
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs import check_folder, written_whole
from wsi_meta.scanning.scanner import Scanner

__all__ = ["COLUMNS", "scan_slides", "summarise"]

COLUMNS = (
    "slide",
    "heatmap",
    "score",
    "fitted_score",
    "complete",
    "tissue_fraction",
    "scanned",
    "background",
    "unreadable",
    "error",
)
"""Columns of ``summary.csv``; what a failed slide lacks is empty, never 0."""
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

    A slide that cannot be scanned gets a row with its error; the others go on. Slides that were finished before are
    not scanned again; rows of slides that are not among `slides` stay in the table.

    Parameters
    ----------
    slides : whole-slide images, no two of the same name
    out : folder, made if it does not exist
    scanner : one to use, which stays open; None makes one of `settings`
    mpp, reader, tissue_mask, overwrite : for each slide, as :func:`wsi_meta.scan`
    settings : as :class:`wsi_meta.Scanner`; none where a scanner is given

    Returns
    -------
    A dict with :data:`COLUMNS` per slide, in order; None where unknown.

    Raises
    ------
    DataError
        when two slides have the same name.
    OutputPathError
        when `out` is a file or cannot be made.
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
    table = _read_summary(out / "summary.csv")
    of_slide = {"mpp": mpp, "reader": reader, "tissue_mask": tissue_mask, "overwrite": overwrite}
    with nullcontext(scanner) if scanner is not None else Scanner(**settings) as used:
        stores = [out / f"{name}.zarr" for name in names]
        rows: list[dict[str, Any]] = []
        for row in _in_stream(used, slides, stores, of_slide):
            rows.append(row)
            _write_summary(out / "summary.csv", table | {row["slide"]: row for row in rows})
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
    check_folder(out)
    out.mkdir(exist_ok=True)


def _in_stream(
    scanner: Scanner, slides: Sequence[str | Path], stores: Sequence[Path], of_slide: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Scan slides, :data:`IN_WORK` at a time; yield their rows in order, as they are done."""
    turns = [scanner.line_up() for _ in slides]

    def scan_one(number: int) -> dict[str, Any]:
        slide = slides[number]
        scanner.note(f"[{number + 1}/{len(slides)}] {slide}")
        try:
            return summarise(slide, scanner.scan(slide, stores[number], turn=turns[number], **of_slide))
        except InterruptedError:
            raise
        except (WsiMetaError, OSError) as error:
            told = one_line(error)
            scanner.note(f"Error: {told}")
            return dict.fromkeys(COLUMNS) | {"slide": str(slide), "complete": False, "error": told}

    with ThreadPoolExecutor(IN_WORK, "slides") as pool:
        try:
            yield from pool.map(scan_one, range(len(slides)))
        except BaseException:  # Ctrl-C above all: threads would go on
            for turn in turns:
                turn.interrupt()
            raise


def summarise(slide: str | Path, heatmap: Heatmap) -> dict[str, Any]:
    """Return the summary's row for a scan that came to its end: a dict with :data:`COLUMNS`."""
    record, result = heatmap.record, heatmap.record.result
    assert result is not None  # the scan came to its end
    cells = result.cells
    error = f"{cells['unreadable']} cells could not be read; scan again to retry them" if cells["unreadable"] else None
    return {
        "slide": str(slide),
        "heatmap": str(heatmap.path),
        "score": result.score,
        "fitted_score": result.fitted_score["score"] if result.fitted_score else None,
        "complete": result.complete,
        "tissue_fraction": record.tissue.fraction,
        "scanned": cells["scanned"],
        "background": cells["background"],
        "unreadable": cells["unreadable"],
        "error": error,
    }


def _read_summary(path: Path) -> dict[str, dict[str, Any]]:
    """Return an earlier summary's rows by slide; OutputExistsError if the file is not a summary."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) == COLUMNS:
            return {row["slide"]: row for row in reader}
    raise OutputExistsError(f"{path}: exists and is not a summary of scans; it is never replaced; choose another --out")


def _write_summary(path: Path, table: dict[str, dict[str, Any]]) -> None:
    with written_whole(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table.values())
