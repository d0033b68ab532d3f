"""``summary.json`` and ``summary.csv`` of a folder of heatmaps: how they are read and written.

The JSON is the one that counts. The CSV is written from it, for people, and is read only where there is no JSON: in a folder
of the first version, and where the JSON was lost. No value holds a line end, so a row is a line in both.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from wsi_meta import __version__
from wsi_meta.errors import OutputExistsError, OutputPathError
from wsi_meta.files.address import from_file_uri, is_address, name_in, portable
from wsi_meta.outputs.paths import cannot_be_written, real_path
from wsi_meta.outputs.writing import written_whole
from wsi_meta.words import from_json, printable, some_of

__all__ = ["COLUMNS", "Row", "Table", "open_table", "whole"]

logger = logging.getLogger(__name__)

KINDS: dict[str, type] = {
    "slide": str,
    "heatmap": str,
    "score": float,
    "fitted_score": float,
    "complete": bool,
    "verdict": str,
    "verdict_figures": str,
    "lesions": int,
    "largest_lesion": str,
    "largest_lesion_mm": float,
    "largest_lesion_cut": bool,
    "tissue_fraction": float,
    "scanned": int,
    "background": int,
    "unreadable": int,
    "unreadable_fraction": float,
    "patient": str,
    "label": str,
    "annotations": str,
    "seconds": float,
    "tissue_s": float,
    "reading_s": float,
    "computing_s": float,
    "writing_s": float,
    "cells_per_second": float,
    "tiles_decoded": int,
    "peak_memory_bytes": int,
    "hosts": str,
    "device": str,
    "version": str,
    "score_model": str,
    "error": str,
    "error_kind": str,
    "retry": str,
}
COLUMNS = tuple(KINDS)
"""Columns of ``summary.csv``; what is not known is empty, never 0."""
PATHS = ("slide", "heatmap", "annotations")
"""Those that hold a path: one that is no printable text is kept as a file URI."""

Row = dict[str, Any]
"""A dict with :data:`COLUMNS`; None where unknown."""


@dataclass
class Table:
    """The rows that both files hold."""

    folder: Path
    rows: list[Row] = field(default_factory=list)
    written: tuple[int | None, ...] = ()
    """Checksums of the CSV as it was written last, and of the one before: a killed process leaves that beside a newer JSON."""

    def of_slide(self, slide: str) -> Row | None:
        """Return the row of a slide, also where it has that by another path, as through a link; None where there is none."""
        wanted = _from_here(printable(slide))
        found = (row for row in self.rows if _from_here(row["slide"]) == wanted)
        return next(found, None) or next((row for row in self.rows if _are_one_file(row["slide"], slide)), None)

    def of_store(self, name: str) -> Row | None:
        """Return the row of the heatmap with a name; None where there is none."""
        wanted = printable(name)
        return next((row for row in self.rows if row["heatmap"] and printable(name_in(row["heatmap"])) == wanted), None)

    def put(self, row: Row) -> None:
        """Add a row; one of the same slide is replaced."""
        before = self.of_slide(row["slide"])
        place = next((number for number, other in enumerate(self.rows) if other is before), len(self.rows))
        self.rows[place : place + 1] = [whole(row)]

    def write(self) -> None:
        """Write both files, each whole. A CSV that somebody changed is kept beside them, with a warning.

        Raises
        ------
        OutputPathError
            where one cannot be written.
        """
        rows = [whole(row) for row in self.rows]
        content, path = _csv_of(rows), self.folder / "summary.csv"
        found = _content(path)
        before = None if found is None else zlib.crc32(found)
        if before is not None and before not in self.written:
            _keep_changed(path)
            before = None
        marks = {"csv_crc32": zlib.crc32(content), "csv_crc32_before": before}
        with written_whole(self.folder / "summary.json") as partial:
            partial.write_text(_json_of(rows, marks), encoding="utf-8")
        with written_whole(path) as partial:
            partial.write_bytes(content)


def open_table(folder: Path) -> Table:
    """Return the table of a folder, an empty one where there is none.

    Raises
    ------
    OutputExistsError
        when ``summary.json`` is there and not ours; where it is missing, when ``summary.csv`` is not.
    """
    path = folder / "summary.json"
    kept, table = _content(path), _content(folder / "summary.csv")
    if kept is None:
        return Table(folder) if table is None else _imported(folder, table)
    try:
        parts = from_json(kept)
        return Table(folder, list(map(_checked, parts["slides"])), (parts["csv_crc32"], parts.get("csv_crc32_before")))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _refused(path, kept, HEAD) from None


def _from_here(slide: str) -> str:
    """Return a row's slide as an absolute path, as it is shown. A relative one, of before, counts from the current folder."""
    if slide.startswith("/") and "//" not in slide and "/." not in slide:
        return slide  # as this version writes it: thousands of rows are asked for each that is added
    return slide if is_address(slide) else printable(str(Path(from_file_uri(slide)).absolute()))


def _are_one_file(slide: str, other: str) -> bool:
    """Tell whether two paths of one name lead to one file. Those of other names are not looked at, which would take long."""
    if is_address(slide) or is_address(other) or name_in(slide) != name_in(other):
        return False
    return real_path(Path(from_file_uri(slide))) == real_path(Path(from_file_uri(other)))


HEAD = '{"made_by": "wsi-meta '
"""What the JSON begins with."""


def _content(path: Path) -> bytes | None:
    """Return a file's content, None where it has none; OutputExistsError where a folder or another thing has its name."""
    if not path.exists():
        return None
    if not path.is_file():
        raise OutputExistsError(f"{path}: a folder or a device; expected a summary of scans; move it, or choose another folder")
    content = path.read_bytes()
    return content if content.strip(b"\0 \r\n") else None  # nothing is left of it after a loss of power


def _imported(folder: Path, content: bytes) -> Table:
    """Return the table that a CSV of this version or another one holds, also one that an editor or a spreadsheet saved."""
    try:
        columns, *lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        texts = [dict(zip(columns, line, strict=True)) for line in lines]
        rows = [_checked({name: _value(text, KINDS[name]) for name, text in row.items()}) for row in texts]
        last_is_whole = content.endswith((b"\r", b"\n"))
        if {"slide", "heatmap"} <= set(columns) <= set(COLUMNS) and last_is_whole:
            return Table(folder, rows, (zlib.crc32(content),))
    except (ValueError, LookupError, csv.Error):
        pass
    raise _refused(folder / "summary.csv", content, ",".join(COLUMNS[:3]))


def _refused(path: Path, content: bytes, expected: str) -> OutputExistsError:
    begin = content.partition(b"\n")[0].decode("utf-8-sig", errors="replace").strip()
    found = f"begins with '{printable(begin[:60])}', expected '{expected}'"
    if begin.startswith(expected):
        found = "cut or changed since it was written" + (", and there is no summary.json" if path.suffix == ".csv" else "")
        if path.suffix == ".csv" and (others := [printable(name) for name in begin.split(",") if name not in COLUMNS]):
            found = f"columns of another version: {some_of(others)}"
    return OutputExistsError(
        f"{path}: exists and is not a summary of scans: {found}; it is never replaced; move it away, then the same scan again "
        f"makes one, or 'wsi-meta summary {path.parent}' of the heatmaps alone, or choose another folder"
    )


def _keep_changed(path: Path) -> None:
    """Move a CSV that somebody changed out of the way: what was entered there is not lost."""
    names = (f"summary.changed{f'.{number}' if number > 1 else ''}.csv" for number in count(1))
    kept = next(path.with_name(name) for name in names if not os.path.lexists(path.with_name(name)))
    try:
        path.rename(kept)
    except OSError as error:
        raise OutputPathError(cannot_be_written(f"{kept}:", error)) from error
    logger.warning(
        "%s: changed since it was written; kept as %s, and written anew from summary.json; patients and labels are given with "
        "'wsi-meta scan --manifest'",
        printable(str(path)),
        kept.name,
    )


def _checked(values: Mapping[str, Any]) -> Row:
    """Return a row that a file holds; ValueError where a value is not of its column's kind."""
    row = {name: values.get(name) for name in COLUMNS}
    if not row["slide"] or not all(value is None or _fits(value, KINDS[name]) for name, value in row.items()):
        raise ValueError(row)
    return row


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) in (int, float) and abs(value) < math.inf
    return type(value) is kind


def _value(text: str, kind: type) -> Any:
    if not text:
        return None
    return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)


def whole(row: Mapping[str, Any]) -> Row:
    """Return a row as a table keeps it: with all columns, and texts of one line each; what it does not say is unknown."""
    values = ((name, row.get(name)) for name in COLUMNS)
    return {name: _kept(name, value) if isinstance(value, str) else value for name, value in values}


def _kept(name: str, text: str) -> str:
    shown = printable(text)
    return portable(Path(text)) if shown != text and name in PATHS and text.startswith("/") else shown


def _csv_of(rows: Sequence[Row]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([COLUMNS, *(row.values() for row in rows)])
    return file.getvalue().encode()


def _json_of(rows: Sequence[Row], marks: Mapping[str, int | None]) -> str:
    """Return the JSON: who made it, the checksums of the CSVs, and a line for each row."""
    head = json.dumps({"made_by": f"wsi-meta {__version__}", **marks}).removesuffix("}")
    return f'{head}, "slides": [' + ",".join(f"\n{json.dumps(row, allow_nan=False)}" for row in rows) + "\n]}\n"
