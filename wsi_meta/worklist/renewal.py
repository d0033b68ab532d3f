"""The table of a folder of heatmaps made anew: the rows of its stores, and of slides that have none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsi_meta.errors import HeatmapError, kind_name
from wsi_meta.files.address import name_in
from wsi_meta.files.locks import locked
from wsi_meta.heatmaps.ownership import NO_HEATMAP, is_store, stores_in
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.paths import as_path
from wsi_meta.words import one_line, printable
from wsi_meta.worklist.summary import (
    FROM_OUTSIDE,
    WAIT_S,
    failed,
    from_outside,
    is_made_from,
    of_another,
    open_or_error,
    summarise,
)
from wsi_meta.worklist.table import Row, open_table, whole
from wsi_meta.worklist.worklist import renew_worklist

__all__ = ["summarise_folder"]


def summarise_folder(folder: str | Path) -> list[Row]:
    """Make ``summary.csv``, ``summary.json`` and ``report/index.html`` of a folder anew from the heatmaps in it.

    What a heatmap does not keep (the slide's path, its patient, label and annotations) and the rows of slides without a
    heatmap are taken from the table that is there. A slide whose heatmap is not there any more keeps a row only where the
    table has its patient, label or annotations.

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


def _rows_of(stores: Sequence[Path], before: Sequence[Row]) -> list[Row]:
    """Return the rows of stores, then those of slides without one, by what the stores and the rows until now say."""
    known = {printable(name_in(row["heatmap"])): row for row in before if row["heatmap"]}
    here = {printable(store.name) for store in stores}
    without = [row for row in before if not row["heatmap"]]
    lost = [_of_lost(row) for name, row in known.items() if name not in here]
    found = []
    for store in stores:
        heatmap, own = open_or_error(store), known.get(printable(store.name))
        if isinstance(heatmap, Heatmap) and own is not None and is_made_from(heatmap, own["slide"]) is False:
            without.append(of_another(heatmap, own))
            own = None
        found.append((store, heatmap, own))
    rows = [
        _of_store(heatmap, own, without + lost) if isinstance(heatmap, Heatmap) else _of_damaged(store, heatmap, own)
        for store, heatmap, own in found
    ]
    told = {printable(row["slide"]) for row in rows}
    without += (row for row in lost if any(row[name] for name in FROM_OUTSIDE))
    return rows + [row for row in without if row["slide"] not in told]


def _of_damaged(store: Path, error: Exception, before: Row | None) -> Row:
    row = failed(before["slide"] if before else store.stem, one_line(error), kind_name(error))
    row["heatmap"] = str(store.absolute())
    return row | (from_outside(row, before) if before else {})


def _of_lost(before: Row) -> Row:
    """Return the row of a slide whose heatmap is not there any more."""
    told = f"{before['heatmap']}: not there any more; put it back, or scan again"
    row = failed(before["slide"], told, HeatmapError.__name__)
    return row | from_outside(row, before)


def _of_store(heatmap: Heatmap, before: Row | None, without: Sequence[Row]) -> Row:
    """Return a store's row.

    Parameters
    ----------
    before : the store's row until now; None where it had none
    without : rows of slides without a heatmap; one whose file is the store's slide was this slide's, or else the only one
        with the name of that, unless its file is another one
    """
    name = printable(heatmap.record.slide.file)
    named = [row for row in without if printable(name_in(row["slide"])) == name]
    if heatmap.result is not None and (before is None or before["slide"] == name):
        made = [(row, is_made_from(heatmap, row["slide"])) for row in named]
        likely = [row for row, same in made if same] or [row for row, same in made if same is None and before is None]
        if len(likely) == 1:
            before = likely[0]
    row = summarise(before["slide"] if before else heatmap.record.slide.file, heatmap)
    twins = [other for other in named if other["slide"] == printable(row["slide"])]
    if before is None and twins and not row["error"]:  # its path says no more than the name: one row has to tell both
        row |= {name: twins[0][name] for name in ("error", "error_kind")}
    return row | (from_outside(row, before) if before else {})
