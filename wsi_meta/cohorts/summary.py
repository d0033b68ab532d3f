"""The table of a folder of heatmaps, ``summary.csv``: what its stores say, and why a slide has none.

It is derived from the stores and can be made again at any time. Several batches may write it: each takes its lock, reads it,
and adds its own rows.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsi_meta.errors import HeatmapError, OutputExistsError, one_line, printable
from wsi_meta.heatmaps.ownership import is_store
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.locks import locked
from wsi_meta.outputs import written_whole

__all__ = ["COLUMNS", "add_row", "check_summary", "failed", "summarise", "summarise_folder"]

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
WAIT_S = 60.0
"""For how long to wait until another process has written its row, which takes milliseconds."""

Row = dict[str, Any]
"""A dict with :data:`COLUMNS`."""


def summarise_folder(folder: str | Path) -> list[Row]:
    """Make ``summary.csv`` of a folder anew from the heatmaps in it.

    A slide's path, which a heatmap does not keep, and the rows of slides without a heatmap are taken from the table that is
    there.

    Parameters
    ----------
    folder : of heatmap stores ``<slide>.zarr``, as :func:`wsi_meta.scan_slides` makes it

    Returns
    -------
    A dict with :data:`COLUMNS` per slide; None where unknown.

    Raises
    ------
    HeatmapError
        when it is no folder, or a heatmap store itself.
    OutputExistsError
        when ``summary.csv`` is there and not ours, or another process does not let it go.
    OutputPathError
    """
    folder = Path(folder)
    if not folder.is_dir() or is_store(folder):
        found = "a heatmap store" if is_store(folder) else "no such folder"
        raise HeatmapError(f"{folder}: {found}; expected a folder of heatmaps from 'wsi-meta scan' of several slides")
    path = folder / "summary.csv"
    with locked(path, wait_s=WAIT_S):
        before = _read(path)
        stores = sorted(store for store in folder.glob("*.zarr") if is_store(store))
        slides = {Path(row["heatmap"]).name: row["slide"] for row in before if row["heatmap"]}
        rows = [_of_store(store, slides.get(printable(store.name))) for store in stores]
        told = {row["slide"] for row in rows}
        rows += [_typed(row) for row in before if not row["heatmap"] and row["slide"] not in told]
        _write(path, rows)
    return rows


def check_summary(folder: Path) -> None:
    """Make sure that a folder's ``summary.csv`` is ours or missing; OutputExistsError if not."""
    _read(folder / "summary.csv")


def add_row(folder: Path, row: Row, store: Path) -> None:
    """Add the row of a slide's scan to a folder's ``summary.csv``, whatever other processes add meanwhile.

    Where the scan failed but the finished store of the same slide stands, the row is the store's.

    Parameters
    ----------
    row : from :func:`summarise` or :func:`failed`
    store : where the slide's heatmap stands if there is one
    """
    path, name, slide = folder / "summary.csv", printable(store.name), printable(str(row["slide"]))
    with locked(path, wait_s=WAIT_S):
        table = {line["slide"]: line for line in _read(path)}
        owner = next((line["slide"] for line in table.values() if line["heatmap"] and Path(line["heatmap"]).name == name), None)
        if row["heatmap"] is None:
            row = _known(row, store, mine=owner == slide, free=owner is None) or row
        elif owner is not None and owner != slide:
            del table[owner]  # the same slide by another path, or one whose heatmap was replaced
        _write(path, list((table | {slide: row}).values()))


def summarise(slide: str | Path, heatmap: Heatmap) -> Row:
    """Return the summary's row for a scan that came to its end: a dict with :data:`COLUMNS`."""
    record, result = heatmap.record, heatmap.record.result
    if result is None:
        return failed(slide, "not scanned to the end; scan again to continue") | {"heatmap": str(heatmap.path)}
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


def failed(slide: str | Path, told: str) -> Row:
    """Return the summary's row for a slide that could not be scanned."""
    return dict.fromkeys(COLUMNS) | {"slide": str(slide), "complete": False, "error": told}


def _known(row: Row, store: Path, *, mine: bool, free: bool) -> Row | None:
    """Return the row of the finished store that stands where a failed scan would have written, if it is the slide's own."""
    try:
        heatmap = Heatmap.open(store)
    except (HeatmapError, OSError):
        return None
    own = mine or (free and heatmap.record.slide.file == Path(row["slide"]).name)
    return summarise(row["slide"], heatmap) if own and heatmap.result is not None else None


def _of_store(store: Path, slide: str | None) -> Row:
    """Return a store's row; `slide` is the slide's path where it is known."""
    try:
        heatmap = Heatmap.open(store)
    except (HeatmapError, OSError) as error:
        return failed(slide or store.stem, one_line(error)) | {"heatmap": str(store)}
    return summarise(slide or heatmap.record.slide.file, heatmap)


def _read(path: Path) -> list[dict[str, str]]:
    """Return an earlier summary's rows; OutputExistsError if the file is not a summary."""
    if not path.exists():
        return []
    if path.is_file():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) == COLUMNS:
                return [{name: row[name] or "" for name in COLUMNS} for row in reader]
    raise OutputExistsError(f"{path}: exists and is not a summary of scans; it is never replaced; choose another --out")


def _typed(row: dict[str, str]) -> Row:
    """Return a failed slide's row as it was before it was written."""
    return failed(row["slide"], row["error"])


def _write(path: Path, rows: Sequence[Row]) -> None:
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: printable(value) if isinstance(value, str) else value for name, value in row.items()})
