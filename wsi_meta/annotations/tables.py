"""CSV tables that users provide: opened and checked in one place, with one line for what is wrong."""

from __future__ import annotations

import codecs
import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from wsi_meta.errors import DataError, SlideReadError, shown
from wsi_meta.files.address import Address, SlidePath, name_in, slide_path
from wsi_meta.files.slide_file import SLIDE_EXTENSIONS
from wsi_meta.words import first_line, some_of

__all__ = [
    "LABELS",
    "NO",
    "SEPARATORS",
    "YES",
    "NamedRows",
    "Row",
    "label_of",
    "last_part",
    "one_form",
    "path_in",
    "read_lines",
    "read_table",
    "refuse_longer",
    "refuse_twice",
    "without_ending",
]

SEPARATORS = (",", ";", "\t")
"""What may stand between the values of a row."""
BLANK = ',; \t\r\n"'
"""Of what a line without any value consists."""
SLIDE_ENDINGS = (*SLIDE_EXTENSIONS, ".isyntax", ".qptiff", ".png", ".jpg", ".jpeg", ".zip")
"""Endings that are surely not a part of a slide's name."""

NORMAL, TUMOR = ("0", "normal", "negative", "0.0", "false"), ("1", "tumor", "itc", "micro", "macro", "1.0", "true")
LABELS = dict.fromkeys(NORMAL, False) | dict.fromkeys(TUMOR, True)
"""Words for the label of a slide or patch; pandas writes 1.0, a spreadsheet TRUE."""
YES, NO = ("1", "yes", "true", "1.0"), ("0", "no", "false", "0.0")
"""Words, in lower case, of a column that says yes or no."""

Value = TypeVar("Value")


class Row(tuple[str, ...]):
    """The values of a row."""

    line: int
    """Line of the file on which the row ends; the first is 1."""

    @classmethod
    def on(cls, line: int, values: Iterable[str]) -> Row:
        """Return the row that ends on a line of the file."""
        row = cls(values)
        row.line = line
        return row


class NamedRows(Generic[Value]):
    """What a table says of slides, by names that may be paths and may have endings.

    A slide is found under its whole name, or else under a name that without its ending is the slide's: ``a.b`` is not taken for
    ``a`` where both are there, because names may hold dots. A name that its map was given comes before that of its file, which
    several slides may have.
    """

    def __init__(
        self, path: Path, rows: Iterable[tuple[str, int, Value]], *, given: Sequence[str] = (), lower: bool = False
    ) -> None:
        """Collect name, line and value of each row; DataError when two rows have the same name.

        Parameters
        ----------
        path : of the table
        rows : of the table
        given : of each row the name that its map was given, or nothing; where two have one name, it is no such name
        lower : ignore case
        """
        self._path = path
        self._rows: dict[str, list[tuple[int, Value]]] = {}
        self._shorter: dict[str, list[tuple[int, Value]]] = {}
        parts = [(last_part(name), line, value) for name, line, value in rows]
        own = [one_form(name.lower() if lower else name) for name in given or [""] * len(parts)]
        own = own if len(set(filter(None, own))) == sum(map(bool, own)) else [""] * len(parts)
        files = [name.lower() if lower else name for name, _, _ in parts]
        named = [(name or file, line, value) for name, file, (_, line, value) in zip(own, files, parts, strict=True)]
        refuse_twice(path, ((name, line) for name, line, _ in named))
        for name, line, value in named:
            self._rows.setdefault(name, []).append((line, value))
            stem = PurePosixPath(name).stem
            # an ending of slides is never a part of the name, so such a row counts as much as one without
            if without_ending(name) != name:
                self._rows.setdefault(stem, []).append((line, value))
            self._shorter.setdefault(stem, []).append((line, value))
        alike = Counter(files)
        for name, file, (_, line, value) in zip(own, files, parts, strict=True):
            for other in {file, PurePosixPath(file).stem} if name and alike[file] == 1 else ():
                self._shorter.setdefault(other, []).append((line, value))

    def get(self, slide: str) -> Value | None:
        """Return what the table says of a slide; None where it says nothing; DataError when several rows are of it."""
        slide = one_form(slide)
        found = self._rows.get(slide) or self._shorter.get(slide) or []
        if len(found) > 1:
            raise _twice(self._path, slide, found[0][0], found[1][0])
        return found[0][1] if found else None


def read_table(
    path: Path, columns: Sequence[str], what: str, *, optional: Sequence[str] = (), strict: bool = False
) -> list[Row]:
    """Read some columns of a CSV file with a header; other columns, with or without a name, are ignored.

    Parameters
    ----------
    path : text as :func:`read_lines` reads it; its values are separated by one of :data:`SEPARATORS`; rows without any
        value are skipped
    columns : names that the header must hold, in any case and order
    what : what the rows are, in the plural, for the error ("labels")
    optional : names that it may hold
    strict : refuse other columns, and values in none, instead of ignoring them

    Returns
    -------
    list with a row for each: the values of `columns` and `optional` in that order, stripped; "" where a row is too short or
    has no such column.

    Raises
    ------
    DataError
        when the file is missing, is no text or no CSV, lacks a column or has it twice, or has a row longer than its header.
    """
    known, wanted = (*columns, *optional), " and ".join(f"'{column}'" for column in columns)
    try:
        lines = read_lines(path)
        before = next((number for number, line in enumerate(lines) if line.strip(BLANK)), 0)
        separator, header = _split_header(lines[before] if lines else "", columns)
        names = [name.strip().lower() for name in header]
        if not set(columns) <= set(names):
            raise DataError(
                f"{path}: columns {f'[{some_of([shown(name) for name in header])}]' if header else 'none'}; expected {wanted}"
            )
        if double := [name for name in known if names.count(name) > 1]:
            raise DataError(f"{path}: column '{double[0]}' twice; expected it once")
        if strict and (strange := [name for name in names if name and name not in known]):
            raise DataError(f"{path}: line {before + 1}: unknown column '{strange[0]}'; expected some of {', '.join(known)}")
        places = [names.index(name) if name in names else None for name in known]
        rows = list(_rows(csv.reader(lines[before + 1 :], delimiter=separator, strict=True), before + 1))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected a table of {what}, CSV with {wanted}") from error
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table of {what} ({first_line(error)}); expected CSV with {wanted}") from error
    refuse_longer(path, len(header), rows)
    if strict:
        _refuse_surplus(path, rows, places)
    return [
        Row.on(line, ("" if place is None or place >= len(values) else values[place] for place in places))
        for line, values in rows
    ]


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text in UTF-8 or UTF-16, with their ends.

    Raises
    ------
    OSError, UnicodeError
    DataError
        when it holds a character of number 0, with which a file system fills what a loss of power took.
    """
    lines = io.StringIO(_decode(path.read_bytes()), newline="").readlines()
    if lines and lines[0].strip(BLANK).lower().startswith("sep="):  # it only tells Excel the separator
        lines[0] = "\n"
    if (damaged := next((number for number, line in enumerate(lines, 1) if "\0" in line), None)) is not None:
        told = "holds a character of number 0; expected text in UTF-8, or in UTF-16 with its mark; save or copy the file again"
        raise DataError(f"{path}: line {damaged} {told}")
    return lines


def _decode(content: bytes) -> str:
    """Return a text in UTF-8, with or without a byte order mark, or in UTF-16 with one, as spreadsheets write.

    Raises
    ------
    UnicodeError
    """
    text = content.decode("utf-16") if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ""
    if not any(separator in text for separator in SEPARATORS):  # any bytes may happen to be UTF-16
        text = content.decode("utf-8-sig")
    return text


def refuse_twice(path: Path, keys: Iterable[tuple[str, int]]) -> None:
    """Raise DataError when a key is in two lines of a table."""
    lines: dict[str, int] = {}
    for key, line in keys:
        if lines.setdefault(key, line) != line:
            raise _twice(path, key, lines[key], line)


def refuse_longer(path: Path, columns: int, rows: Iterable[tuple[int, Sequence[str]]]) -> None:
    """Raise DataError where a row (its line and values) has more values than its header: others are shifted."""
    for line, values in rows:
        if any(map(str.strip, values[columns:])):
            raise DataError(
                f"{path}: line {line} has {len(values)} values, the header {columns}; expected no more than there; "
                "write decimal points, quotes round text with a separator, and a name for each column"
            )


def label_of(text: str) -> bool | None:
    """Return whether a label, in any case, means tumor; None where it is none of :data:`LABELS`."""
    return LABELS.get(text.strip().lower())


def without_ending(name: str) -> str:
    """Return a slide's name without an ending of slide files; dots within names stay."""
    stem, dot, ending = name.rpartition(".")
    return stem if stem and (dot + ending).lower() in SLIDE_ENDINGS else name


def _twice(path: Path, key: str, first: int, second: int) -> DataError:
    return DataError(f"{path}: '{key}' in line {first} and again in line {second}; expected it once; remove one of them")


def last_part(name: str) -> str:
    """Return the last part of a path of this or another system, of a file URI or of an address, in :func:`one_form`."""
    return one_form(name_in(name.replace("\\", "/")))


def one_form(name: str) -> str:
    """Return a name in the one form in which names of files and of tables are compared: macOS may write an accent by itself."""
    return unicodedata.normalize("NFC", name)


def path_in(place: str, folder: Path, text: str) -> SlidePath:
    """Return the path, from a table's `folder` on, or the address that a value of the table stands for.

    Raises
    ------
    DataError
        with the value's `place`, where it is neither.
    """
    try:
        given = slide_path(text)
    except SlideReadError as error:
        raise DataError(f"{place}: {error}") from error
    return given if isinstance(given, Address) else folder / given


def _split_header(line: str, columns: Sequence[str]) -> tuple[str, list[str]]:
    """Return the separator under which a header has the most of the columns, and its names."""
    found = [(separator, next(csv.reader([line], delimiter=separator), [])) for separator in SEPARATORS]
    return max(found, key=lambda parts: len({name.strip().lower() for name in parts[1]} & set(columns)))


def _rows(reader: Any, before: int) -> Iterator[tuple[int, list[str]]]:
    """Yield line and stripped values of each row that holds any; the reader begins after some lines."""
    for values in reader:
        if any(map(str.strip, values)):
            yield before + reader.line_num, [value.strip() for value in values]


def _refuse_surplus(path: Path, rows: Iterable[tuple[int, list[str]]], places: Sequence[int | None]) -> None:
    """Raise DataError where a row has a value in a column without a name: a comma in a name shifts what follows."""
    for line, values in rows:
        if surplus := [value for place, value in enumerate(values) if value and place not in places]:
            raise DataError(f"{path}: line {line}: '{surplus[0]}' stands in no column; expected quotes round what has a comma")
