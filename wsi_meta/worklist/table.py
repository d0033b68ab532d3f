"""``summary.csv`` and ``summary.json`` of a folder of heatmaps: how they are read and written.

The CSV is the one that counts; the JSON says the same with types, for machines. No value holds a line end, so a row is a line
in both, and a row that is added leaves the lines of the others as they are: at 2,000 rows that takes a fifth of the time.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

from wsi_meta import __version__
from wsi_meta.annotations.tables import decode_table, lines_of, split_header
from wsi_meta.errors import OutputExistsError
from wsi_meta.files.address import is_address
from wsi_meta.outputs.writing import written_whole
from wsi_meta.words import first_line, printable

__all__ = ["COLUMNS", "FIRST_COLUMNS", "Row", "Table", "from_here", "open_table"]

logger = logging.getLogger(__name__)

FIRST_COLUMNS = (
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
"""Columns of the first version's ``summary.csv``."""
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
    "error": str,
    "error_kind": str,
    "retry": str,
}
COLUMNS = tuple(KINDS)
"""Columns of ``summary.csv``; what is not known is empty, never 0."""

Row = dict[str, Any]
"""A dict with :data:`COLUMNS`; None where unknown."""


@dataclass
class Table:
    """The rows that both files hold."""

    folder: Path
    lines: list[str]
    """Each row as it stands in the CSV."""
    objects: list[str]
    """Each row as it stands in the JSON."""

    def slides(self) -> list[str]:
        """Return the slide of each row, absolute."""
        return [from_here(_first_two(line)[0]) for line in self.lines]

    def stores(self) -> list[str]:
        """Return the name of each row's heatmap, as it is written; empty where it has none."""
        return [Path(store).name if store else "" for _, store in map(_first_two, self.lines)]

    def row(self, number: int) -> Row:
        """Return a row with its values' types."""
        return _typed(dict(zip(COLUMNS, next(csv.reader([self.lines[number]])), strict=True)))

    def rows(self) -> list[Row]:
        """Return all rows with their values' types."""
        return [_typed(dict(zip(COLUMNS, values, strict=True))) for values in csv.reader(self.lines)]

    def put(self, row: Row) -> None:
        """Add a row; one of the same slide is replaced."""
        slides, (line, written) = self.slides(), _written(row)
        if (slide := from_here(printable(str(row["slide"])))) in slides:
            self.lines[slides.index(slide)], self.objects[slides.index(slide)] = line, written
        else:
            self.lines.append(line)
            self.objects.append(written)

    def remove(self, number: int) -> None:
        """Take out a row."""
        del self.lines[number], self.objects[number]

    def write(self) -> None:
        """Write both files, each whole; OutputPathError where one cannot be written."""
        content = "".join(f"{line}\r\n" for line in (",".join(COLUMNS), *self.lines)).encode()
        with written_whole(self.folder / "summary.csv") as partial:
            partial.write_bytes(content)
        with written_whole(self.folder / "summary.json") as partial:
            partial.write_text(_json_of(self.objects, content), encoding="utf-8")

    @classmethod
    def of(cls, folder: Path, rows: Iterable[Mapping[str, Any]]) -> Table:
        """Return a table of rows; what a row does not say is unknown."""
        written = [_written(row) for row in rows]
        return cls(folder, [line for line, _ in written], [text for _, text in written])


def open_table(folder: Path) -> Table:
    """Return the table of a folder, an empty one where there is none.

    A table with the columns of the first version is read as well; what it lacks is unknown. So is one that a spreadsheet saved
    with other separators or in another encoding. Rows without a slide, such as those that were cleared there, are left out.

    Raises
    ------
    OutputExistsError
        when ``summary.csv`` or ``summary.json`` is there and not ours.
    """
    content = _ours(folder / "summary.csv")
    head = _ours(folder / "summary.json")
    if head is not None and head.strip(b"\0") and not head.startswith(_HEAD):  # empty after a loss of power
        raise _foreign(folder / "summary.json", head, _HEAD.decode())
    if content is None or not content.strip(NOTHING):
        return Table(folder, [], [])
    stored = [*dropwhile(lambda line: not line.strip(), lines_of(_decoded(folder / "summary.csv", content)))]
    lines = [line.rstrip("\r\n") for line in stored]
    if lines[0] != ",".join(COLUMNS) or any(line.count('"') % 2 for line in lines):
        try:
            return Table.of(folder, _rows_by_name(stored))
        except (ValueError, csv.Error):
            raise _foreign(folder / "summary.csv", content, ",".join(FIRST_COLUMNS[:4])) from None
    lines[1:] = [line for line in lines[1:] if _first_two(line)[0].strip()]
    objects = _objects(head, content, len(lines) - 1)
    if objects is None:
        return Table.of(folder, [_typed(dict(zip(COLUMNS, values, strict=False))) for values in csv.reader(lines[1:])])
    return Table(folder, lines[1:], objects)


def _rows_by_name(lines: Sequence[str]) -> list[Row]:
    """Return the rows of a table by what its header says; ValueError or csv.Error where these are not our columns."""
    separator, _ = split_header(lines[0], COLUMNS)
    reader = csv.DictReader(lines, delimiter=separator)
    if not (set(FIRST_COLUMNS) <= set(reader.fieldnames or ()) <= set(COLUMNS)):
        raise ValueError(reader.fieldnames)
    named = (row for row in reader if (row["slide"] or "").strip())
    return [_typed({name: row.get(name) or "" for name in COLUMNS}, decimal_comma=separator != ",") for row in named]


def from_here(slide: str) -> str:
    """Return a row's slide as an absolute path. A relative one, in a table of before, counts from where this process is."""
    if slide.startswith("/") and "//" not in slide and "/." not in slide:
        return slide  # as this version writes it: thousands of rows are asked for each that is added
    return slide if is_address(slide) else printable(str(Path(slide).absolute()))


NOTHING = b"\0\xef\xbb\xbf\xff\xfe \t\r\n,;"
"""What is left of a table whose cells were all cleared, or after a loss of power."""
_HEAD = b'{"made_by": "wsi-meta '
"""What the JSON begins with."""


def _json_of(objects: Sequence[str], content: bytes) -> str:
    """Return the JSON: who made it, the checksum of the CSV that it belongs to, and a line for each row."""
    head = f'{_HEAD.decode()}{__version__}", "csv_crc32": {zlib.crc32(content)}, "slides": ['
    return head + "".join(f"\n{text}," for text in objects).rstrip(",") + "\n]}\n"


def _objects(head: bytes | None, content: bytes, rows: int) -> list[str] | None:
    """Return the rows of the JSON as they are written; None where it does not belong to this CSV."""
    if head is None or f'"csv_crc32": {zlib.crc32(content)}, '.encode() not in head[:200]:
        return None
    lines = head.decode("utf-8", errors="replace").split("\n")[1:-2]
    return [line.removesuffix(",") for line in lines] if len(lines) == rows else None


def _ours(path: Path) -> bytes | None:
    """Return a file's content, None where there is none; OutputExistsError where a folder or another thing has its name."""
    if not path.exists():
        return None
    if not path.is_file():
        raise OutputExistsError(f"{path}: a folder or a device; expected a summary of scans; move it, or choose another folder")
    return path.read_bytes()


def _decoded(path: Path, content: bytes) -> str:
    """Return the text of a table; lines that are not UTF-8 are taken for what spreadsheets on Windows write, with a warning.

    Raises
    ------
    OutputExistsError
        where they are neither: text that is lost would be written back.
    """
    with suppress(UnicodeError):
        return decode_table(content)
    try:
        text = "\n".join(map(_decoded_line, content.removeprefix(codecs.BOM_UTF8).split(b"\n")))
    except UnicodeError as error:
        told = "neither UTF-8 nor Windows-1252; save it as CSV in UTF-8, or move it away"
        raise OutputExistsError(f"{path}: {first_line(error)}: {told}") from error
    logger.warning("%s: not UTF-8; read as Windows-1252, as spreadsheets save it; look at names with accents", path)
    return text


def _decoded_line(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeError:
        return line.decode("cp1252")


def _foreign(path: Path, content: bytes, expected: str) -> OutputExistsError:
    begin = printable(content[:200].decode(errors="replace").split("\n")[0].strip()[:60])
    return OutputExistsError(
        f"{path}: exists and is not a summary of scans: begins with '{begin}'; expected '{expected}'; it is never replaced; "
        "move it away, or choose another folder"
    )


def _first_two(line: str) -> list[str]:
    """Return the first two values of a line, quickly."""
    return (
        next(csv.reader([line]))[:2] if line.startswith('"') or ',"' in line[: line.find(",") + 2] else line.split(",", 2)[:2]
    )


def _typed(texts: Mapping[str, str], *, decimal_comma: bool = False) -> Row:
    """Return a row's values with their types; what cannot be read is unknown."""
    return {name: _value(texts.get(name, ""), kind, decimal_comma=decimal_comma) for name, kind in KINDS.items()}


def _value(text: str, kind: type, *, decimal_comma: bool) -> Any:
    if kind is bool:
        return text.strip().lower() == "true" if text.strip() else None  # a spreadsheet writes TRUE
    if kind is int:  # pandas and spreadsheets write 3.0; in 12,000 a comma or a point may be of thousands
        text = re.sub(r"[.,]00?$", "", text.strip())
    if kind is float and decimal_comma:
        text = text.replace(",", ".")
    try:
        return kind(text) if text else None
    except ValueError:
        return None


def _written(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return a row's line of the CSV, and its object of the JSON."""
    values = {name: row.get(name) for name in COLUMNS}
    values = {name: printable(value) if isinstance(value, str) else value for name, value in values.items()}
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="").writerow(values.values())
    return file.getvalue(), json.dumps(values)
