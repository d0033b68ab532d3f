"""Many slides in one call: a store each, and one table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from wsi_meta.errors import DataError, OutputExistsError, OutputPathError, WsiMetaError, one_line
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs import check_folder, written_whole
from wsi_meta.progress import note
from wsi_meta.scanning.relay import Turn
from wsi_meta.scanning.scan import scan
from wsi_meta.scanning.worker import forget

__all__ = ["COLUMNS", "scan_slides", "summarise"]

COLUMNS = (
    "slide",
    "heatmap",
    "score",
    "learned_score",
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
    slides: Sequence[str | Path], out: str | Path, *, progress: bool = False, **settings: Any
) -> list[dict[str, Any]]:
    """Scan slides as one stream into ``<out>/<slide>.zarr`` and write ``<out>/summary.csv``.

    Model and compiled network are made once. While a slide is computed the next one is opened and its tissue found; its first
    blocks are read while the last ones before are computed. The maps are those that :func:`wsi_meta.scan` makes of each.

    A slide that cannot be scanned gets a row with its error; the others go on. Slides that were finished before are
    not scanned again; rows of slides that are not among `slides` stay in the table.

    Parameters
    ----------
    slides : whole-slide images, no two of the same name
    out : folder, made if it does not exist
    progress, settings : as :func:`wsi_meta.scan`

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
    """
    out, names = Path(out), [Path(slide).stem for slide in slides]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{min(twice)}: the name of several slides; expected names of their own; scan them into several --out")
    if out.exists() and not out.is_dir():
        raise OutputPathError(f"{out}: a file; expected a folder for the heatmaps of {len(slides)} slides")
    check_folder(out)
    out.mkdir(exist_ok=True)
    summary = out / "summary.csv"
    table = _read_summary(summary)
    turns = _line_up(len(slides))
    rows: list[dict[str, Any]] = []

    def scan_one(number: int) -> dict[str, Any]:
        slide = slides[number]
        note(f"[{number + 1}/{len(slides)}] {slide}", enabled=progress)
        try:
            store = out / f"{names[number]}.zarr"
            return summarise(slide, scan(slide, store, progress=progress, turn=turns[number], **settings))
        except (WsiMetaError, OSError) as error:
            told = one_line(error)
            note(f"Error: {told}", enabled=progress)
            return dict.fromkeys(COLUMNS) | {"slide": str(slide), "complete": False, "error": told}

    try:
        with ThreadPoolExecutor(IN_WORK) as pool:
            try:
                for row in pool.map(scan_one, range(len(slides))):
                    rows.append(row)
                    _write_summary(summary, table | {row["slide"]: row for row in rows})
            except BaseException:  # Ctrl-C above all: threads would go on
                for turn in turns:
                    turn.interrupt()
                raise
    finally:
        forget()
    return rows


def _line_up(count: int) -> list[Turn]:
    """Return a turn for each slide, after the one before it."""
    turns: list[Turn] = []
    for _ in range(count):
        turns.append(Turn(turns[-1] if turns else None))
    return turns


def summarise(slide: str | Path, heatmap: Heatmap) -> dict[str, Any]:
    """Return a finished scan's row of the summary: a dict with :data:`COLUMNS`."""
    facts = heatmap.facts
    cells = facts["result"]["cells"]
    error = f"{cells['unreadable']} cells could not be read; scan again to retry them" if cells["unreadable"] else None
    return {
        "slide": str(slide),
        "heatmap": str(heatmap.path),
        "score": facts["result"]["score"],
        "learned_score": facts["result"].get("learned_score", {}).get("score"),
        "complete": facts["result"]["complete"],
        "tissue_fraction": facts["tissue"]["fraction"],
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
