"""The table of a folder of heatmaps, ``summary.csv`` and ``summary.json``: what its stores say, and why a slide has none.

It is derived from the stores, and :mod:`wsi_meta.worklist.renewal` makes it again at any time. Several batches may write it:
each takes its lock, reads it, and adds its own rows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from wsi_meta.errors import DataError, HeatmapError
from wsi_meta.files.address import Address, SlidePath, is_address, name_in
from wsi_meta.files.locks import locked
from wsi_meta.heatmaps.effort import ScanEffort
from wsi_meta.heatmaps.lesions import MEND_UNREAD
from wsi_meta.heatmaps.regions import largest_lesion
from wsi_meta.heatmaps.scanned_slide import is_scanned_slide
from wsi_meta.heatmaps.scoring import kept_lesions
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.kept_files import is_heatmap
from wsi_meta.words import printable
from wsi_meta.worklist.table import COLUMNS, Row, Table, open_table, whole

__all__ = [
    "FROM_OUTSIDE",
    "INCOMPLETE",
    "SHARED_ROW",
    "UNFINISHED",
    "WAIT_S",
    "add_row",
    "check_summary",
    "failed",
    "from_outside",
    "is_made_from",
    "of_another",
    "open_or_error",
    "refuse_shared_rows",
    "summarise",
]

logger = logging.getLogger(__name__)

SHARED_ROW = "a row of the summary knows nothing of what stands behind the '?' of an address"
"""Why slides whose addresses differ in their query alone are refused in one folder."""
WAIT_S = 60.0
"""For how long to wait until another process has written its row, which takes milliseconds."""
UNFINISHED, INCOMPLETE = "unfinished", "incomplete"
"""Kinds of what the table calls an error where nothing failed: a scan that can go on, and one with cells that were not read."""
FROM_OUTSIDE = ("patient", "label", "annotations")
"""What no heatmap knows: it is kept until a scan says otherwise."""


def check_summary(folder: Path) -> None:
    """Make sure that a folder's ``summary.csv`` and ``summary.json`` are ours or missing; OutputExistsError if not."""
    open_table(folder)


def refuse_shared_rows(folder: Path, slides: Mapping[str, SlidePath]) -> None:
    """Refuse an address whose row in a folder's table is another heatmap's, which stands: it may differ behind the ``?``.

    Parameters
    ----------
    slides : by the name of the store that each will have

    Raises
    ------
    DataError
    """
    addresses = {name: slide for name, slide in slides.items() if isinstance(slide, Address)}
    table = open_table(folder) if addresses else None
    for name, slide in addresses.items():
        row = table.of_slide(str(slide)) if table else None
        other = name_in(row["heatmap"] or name) if row else name
        if other != name and is_heatmap(folder / other):
            raise DataError(
                f"{slide}: has a row in {folder / 'summary.csv'} already, with the heatmap {other}, not {name}; {SHARED_ROW}; "
                "choose another --out, or the same name"
            )


def add_row(folder: Path, row: Row, store: Path, source: SlidePath | None = None) -> None:
    """Add the row of a slide's scan to a folder's table, whatever other processes add meanwhile.

    Where the scan failed but the finished store of the same slide stands, the row is the store's: the same by its fingerprint,
    or, while the slide cannot be opened, by what the table says.

    Parameters
    ----------
    row : from :func:`summarise` or :func:`failed`
    store : where the slide's heatmap stands if there is one
    source : the slide; None where the row's path says all
    """
    with locked(folder / "summary.csv", wait_s=WAIT_S):
        own, same = _finished_store(store, source or row["slide"]) if row["heatmap"] is None else (None, None)
        table = open_table(folder)
        before, owner = table.of_slide(str(row["slide"])), table.of_store(store.name)
        if before is not None:
            row = row | from_outside(row, before)
        if own is not None and _is_theirs(own, same, before, owner):
            known = summarise(row["slide"], own)
            row = known | from_outside(known, row)
        if row["heatmap"] is not None and owner is not None and owner is not before:
            row = _take_over(table, row, owner, store)
        table.put(row)
        table.write()


def _is_theirs(own: Heatmap, same: bool | None, before: Row | None, owner: Row | None) -> bool:
    """Tell whether a finished store is that of a slide whose scan failed.

    Parameters
    ----------
    same : whether it was made from that slide; None where this cannot be seen
    before, owner : the rows that the slide and the store have; None where they have none
    """
    if owner is None or not same:
        return bool(same) or (same is None and owner is not None and owner is before)
    return owner is before or is_made_from(own, owner["slide"]) is None  # where it was before, there is no slide any more


def _take_over(table: Table, row: Row, owner: Row, store: Path) -> Row:
    """Return the row of a store with what a person gave of its slide in the row that the store had, which goes.

    Where that was of another slide, it stays as one whose heatmap was replaced, if a person gave anything of it.
    """
    heatmap = open_or_error(store)
    made = is_made_from(heatmap, owner["slide"]) if isinstance(heatmap, Heatmap) else None
    table.rows.remove(owner)
    if not any(owner[name] for name in FROM_OUTSIDE):
        return row
    if made is False and isinstance(heatmap, Heatmap):
        table.put(of_another(heatmap, owner))
        return row
    if made is None and _without_place(whole(row)) != _without_place(owner):
        told = "%s: patient, label and annotations are those of %s, which is not there any more; if that was another slide, "
        logger.warning(told + "give its own with 'wsi-meta scan --manifest'", store, owner["slide"])
    return row | from_outside(row, owner)


def _without_place(row: Row) -> Row:
    """Return what a row says of the scan itself."""
    return {name: value for name, value in row.items() if name not in ("slide", "heatmap", "retry", *FROM_OUTSIDE)}


def summarise(slide: str | SlidePath, heatmap: Heatmap) -> Row:
    """Return the summary's row for a scan, at its end or on its way: a dict with :data:`wsi_meta.worklist.table.COLUMNS`.

    Parameters
    ----------
    slide : the row has its absolute path; a text is written as it is
    """
    record, result = heatmap.record, heatmap.record.result
    if result is None:
        return failed(slide, f"{record.why_incomplete}; scan again to continue", UNFINISHED) | {"heatmap": str(heatmap.root)}
    cells, kept = result.cells, kept_lesions(heatmap)
    found = kept["found"] if kept else None
    largest = largest_lesion(found or ())
    tissue = sum(cells.values()) - cells["background"]
    error = f"{record.why_incomplete}; {MEND_UNREAD}" if cells["unreadable"] else None
    return (
        dict.fromkeys(COLUMNS)
        | {
            "slide": _written(slide),
            "heatmap": str(heatmap.root),
            "score": result.score,
            "fitted_score": result.fitted_score["score"] if result.fitted_score else None,
            "complete": result.complete,
            "verdict": record.verdict.summary if record.verdict else None,
            "verdict_figures": record.verdict.summary_with_figures if record.verdict else None,
            "lesions": None if found is None or record.nothing_scanned else len(found),
            "largest_lesion": largest["size_class"] if largest else None,
            "largest_lesion_mm": largest["diameter_mm"] if largest else None,
            "largest_lesion_cut": largest["cut"] if largest else None,
            "tissue_fraction": record.tissue.fraction,
            "scanned": cells["scanned"],
            "background": cells["background"],
            "unreadable": cells["unreadable"],
            "unreadable_fraction": cells["unreadable"] / tissue if tissue else None,
            "device": record.device,
            "version": record.versions.get("wsi-meta"),
            "score_model": result.fitted_score["sha256"] if result.fitted_score else None,
            "error": error,
            "error_kind": INCOMPLETE if error else None,
        }
        | _effort(record.effort)
    )


def failed(slide: str | SlidePath, told: str, kind: str | None = None) -> Row:
    """Return the summary's row for a slide that could not be scanned; `kind` is the name of the error's class."""
    return dict.fromkeys(COLUMNS) | {"slide": _written(slide), "complete": False, "error": told, "error_kind": kind}


def _written(slide: str | SlidePath) -> str:
    """Return a slide as a row has it: it means the same from any folder. A text, of a table or a store, stays as it is."""
    return slide if isinstance(slide, str) else str(slide.absolute())


def _effort(effort: ScanEffort | None) -> Row:
    """Return what a scan took; nothing where that is not known."""
    if effort is None:
        return {}
    return {
        "seconds": effort.passed_s,
        "tissue_s": effort.tissue_s,
        "reading_s": effort.reading_s,
        "computing_s": effort.computing_s,
        "writing_s": effort.writing_s,
        "cells_per_second": effort.cells_per_s,
        "tiles_decoded": effort.tiles_decoded,
        "peak_memory_bytes": effort.peak_memory_bytes,
        "hosts": " ".join(effort.hosts),
    }


def from_outside(row: Row, before: Row) -> Row:
    """Return what no heatmap knows: as a row says it, or else as an earlier one did."""
    names = (*FROM_OUTSIDE, "retry") if row["error"] else FROM_OUTSIDE
    return {name: before[name] if row[name] is None else row[name] for name in names}


def _finished_store(store: Path, slide: str | SlidePath) -> tuple[Heatmap | None, bool | None]:
    """Return the finished store that stands where a failed scan would have written, and whether it is of this slide.

    None for what is not known: there is no finished store, it is damaged, or the slide cannot be opened now.
    """
    heatmap = open_or_error(store)
    if isinstance(heatmap, Heatmap) and heatmap.result is not None:
        return heatmap, is_scanned_slide(heatmap, slide)
    return None, None


def open_or_error(store: Path) -> Heatmap | HeatmapError | OSError:
    """Return a store, or why it cannot be opened."""
    try:
        return open_sound(store)
    except (HeatmapError, OSError) as error:
        return error


def is_made_from(heatmap: Heatmap, slide: str) -> bool | None:
    """Tell whether a heatmap was made from the slide of a row; None where only the name says so."""
    known = None if is_address(slide) else is_scanned_slide(heatmap, slide)  # hundreds of addresses would take too long
    return False if known is None and printable(name_in(slide)) != printable(heatmap.record.slide.file) else known


def of_another(heatmap: Heatmap, before: Row) -> Row:
    """Return the row of a slide where another slide's heatmap now stands."""
    scanned = heatmap.record
    told = (
        f"{heatmap.path}: made from {scanned.slide.file} (fingerprint {scanned.identity.slide[:16]}), not from "
        f"{before['slide']}; put the right store back, or scan again"
    )
    row = failed(before["slide"], told, HeatmapError.__name__)
    return row | from_outside(row, before)
