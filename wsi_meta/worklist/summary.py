"""The table of a folder of heatmaps, ``summary.csv`` and ``summary.json``: what its stores say, and why a slide has none.

It is derived from the stores and can be made again at any time. Several batches may write it: each takes its lock, reads it,
and adds its own rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsi_meta.errors import HeatmapError
from wsi_meta.files.address import SlidePath, is_address, name_in
from wsi_meta.files.locks import locked
from wsi_meta.heatmaps.effort import ScanEffort
from wsi_meta.heatmaps.lesions import MEND_UNREAD
from wsi_meta.heatmaps.ownership import NO_HEATMAP, is_store, stores_in
from wsi_meta.heatmaps.regions import largest_lesion
from wsi_meta.heatmaps.scanned_slide import is_scanned_slide
from wsi_meta.heatmaps.scoring import kept_lesions
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.paths import as_path
from wsi_meta.words import one_line, printable
from wsi_meta.worklist.table import COLUMNS, Row, from_here, open_table, whole
from wsi_meta.worklist.worklist import renew_worklist

__all__ = ["INCOMPLETE", "UNFINISHED", "add_row", "check_summary", "failed", "summarise", "summarise_folder"]

WAIT_S = 60.0
"""For how long to wait until another process has written its row, which takes milliseconds."""
UNFINISHED, INCOMPLETE = "unfinished", "incomplete"
"""Kinds of what the table calls an error where nothing failed: a scan that can go on, and one with cells that were not read."""
FROM_OUTSIDE = ("patient", "label", "annotations")
"""What no heatmap knows: it is kept until a scan says otherwise."""


def summarise_folder(folder: str | Path) -> list[Row]:
    """Make ``summary.csv``, ``summary.json`` and ``report/index.html`` of a folder anew from the heatmaps in it.

    What a heatmap does not keep (the slide's path, its patient, label and annotations) and the rows of slides without a
    heatmap are taken from the table that is there.

    Parameters
    ----------
    folder : of heatmap stores ``<slide>.zarr``, as :func:`wsi_meta.scan_slides` makes it

    Returns
    -------
    A dict with :data:`wsi_meta.worklist.table.COLUMNS` per slide; None where unknown.

    Raises
    ------
    HeatmapError
        when it is no folder, a heatmap store itself, or holds neither a heatmap nor a table.
    OutputExistsError
        when ``summary.json`` or ``summary.csv`` is there and not ours, or another process does not let it go.
    OutputPathError
    """
    folder = as_path("folder", folder)
    if not folder.is_dir() or is_store(folder):
        found = "a heatmap store" if is_store(folder) else "no such folder"
        raise HeatmapError(f"{folder}: {found}; expected a folder of heatmaps from 'wsi-meta scan' of several slides")
    before = open_table(folder).rows
    stores = stores_in(folder, warn=True)
    if not stores and not before:
        raise HeatmapError(f"{folder}: {NO_HEATMAP}")
    rows = [whole(row) for row in _rows_of(stores, before)]
    with locked(folder / "summary.csv", wait_s=WAIT_S):
        table = open_table(folder)
        known = {row["slide"]: row for row in before}
        newer = [row for row in table.rows if known.get(row["slide"]) != row]  # batches added them while the stores were read
        slides, named = ({row[name] for row in newer} for name in ("slide", "heatmap"))
        rows = [row for row in rows if row["slide"] not in slides and (row["heatmap"] or "") not in named]
        table.rows = [*rows, *newer]
        table.write()
    renew_worklist(folder, table.rows)
    return table.rows


def check_summary(folder: Path) -> None:
    """Make sure that a folder's ``summary.csv`` and ``summary.json`` are ours or missing; OutputExistsError if not."""
    open_table(folder)


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
    name, slide = printable(store.name), from_here(printable(str(row["slide"])))
    with locked(folder / "summary.csv", wait_s=WAIT_S):
        own, same = _finished_store(store, source or row["slide"]) if row["heatmap"] is None else (None, None)
        table = open_table(folder)
        slides, stores = table.slides(), table.stores()
        owner = slides[stores.index(name)] if name in stores else None
        if slide in slides:
            row = row | _from_outside(row, table.rows[slides.index(slide)])
        if own is not None and (owner == slide if same is None else same and owner in (slide, None)):
            known = summarise(row["slide"], own)
            row = known | _from_outside(known, row)
        elif row["heatmap"] is not None and owner is not None and owner != slide:
            del table.rows[stores.index(name)]  # the same slide by another path, or one whose heatmap was replaced
        table.put(row)
        table.write()


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


def _from_outside(row: Row, before: Row) -> Row:
    """Return what no heatmap knows: as a row says it, or else as an earlier one did."""
    names = (*FROM_OUTSIDE, "retry") if row["error"] else FROM_OUTSIDE
    return {name: before[name] if row[name] is None else row[name] for name in names}


def _finished_store(store: Path, slide: str | SlidePath) -> tuple[Heatmap | None, bool | None]:
    """Return the finished store that stands where a failed scan would have written, and whether it is of this slide.

    None for what is not known: there is no finished store, it is damaged, or the slide cannot be opened now.
    """
    heatmap = _open(store)
    if isinstance(heatmap, Heatmap) and heatmap.result is not None:
        return heatmap, is_scanned_slide(heatmap, slide)
    return None, None


def _rows_of(stores: Sequence[Path], before: Sequence[Row]) -> list[Row]:
    """Return the rows of stores, then those of slides without one, by what the stores and the rows until now say."""
    known = {printable(name_in(row["heatmap"])): row for row in before if row["heatmap"]}
    without = [row for row in before if not row["heatmap"]]
    found = []
    for store in stores:
        heatmap, own = _open(store), known.get(printable(store.name))
        if isinstance(heatmap, Heatmap) and own is not None and _is_made_from(heatmap, own["slide"]) is False:
            without.append(_of_another(heatmap, own))
            own = None
        found.append((store, heatmap, own))
    rows = [
        _of_store(heatmap, own, without) if isinstance(heatmap, Heatmap) else _of_damaged(store, heatmap, own)
        for store, heatmap, own in found
    ]
    told = {printable(row["slide"]) for row in rows}
    return rows + [row for row in without if row["slide"] not in told]


def _open(store: Path) -> Heatmap | HeatmapError | OSError:
    """Return a store, or why it cannot be opened."""
    try:
        return open_sound(store)
    except (HeatmapError, OSError) as error:
        return error


def _of_damaged(store: Path, error: Exception, before: Row | None) -> Row:
    row = failed(before["slide"] if before else store.stem, one_line(error), type(error).__name__)
    row["heatmap"] = str(store.absolute())
    return row | (_from_outside(row, before) if before else {})


def _is_made_from(heatmap: Heatmap, slide: str) -> bool | None:
    """Tell whether a heatmap was made from the slide of a row; None where only the name says so."""
    known = None if is_address(slide) else is_scanned_slide(heatmap, slide)  # hundreds of addresses would take too long
    return False if known is None and printable(name_in(slide)) != printable(heatmap.record.slide.file) else known


def _of_another(heatmap: Heatmap, before: Row) -> Row:
    """Return the row of a slide where another slide's heatmap now stands."""
    scanned = heatmap.record
    told = (
        f"{heatmap.path}: made from {scanned.slide.file} (fingerprint {scanned.identity.slide[:16]}), not from "
        f"{before['slide']}; put the right store back, or scan again"
    )
    row = failed(before["slide"], told, HeatmapError.__name__)
    return row | _from_outside(row, before)


def _of_store(heatmap: Heatmap, before: Row | None, without: Sequence[Row]) -> Row:
    """Return a store's row.

    Parameters
    ----------
    before : the store's row until now; None where it had none
    without : rows of slides without a heatmap; where one of them alone has the name of the store's slide, it was this slide's,
        unless its file is another one
    """
    name = printable(heatmap.record.slide.file)
    named = [row for row in without if printable(name_in(row["slide"])) == name]
    if heatmap.result is not None and (before is None or before["slide"] == name):
        likely = [(row, same) for row in named if (same := _is_made_from(heatmap, row["slide"])) is not False]
        if len(likely) == 1 and (before is None or likely[0][1]):
            before = likely[0][0]
    row = summarise(before["slide"] if before else heatmap.record.slide.file, heatmap)
    twins = [other for other in named if other["slide"] == printable(row["slide"])]
    if before is None and twins and not row["error"]:  # its path says no more than the name: one row has to tell both
        row |= {name: twins[0][name] for name in ("error", "error_kind")}
    return row | (_from_outside(row, before) if before else {})
