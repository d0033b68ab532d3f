"""CSV tables that users provide: opened and checked in one place, with one line for what is wrong."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from wsi_meta.errors import DataError, first_line

__all__ = ["read_table"]


def read_table(path: Path, columns: Sequence[str], what: str, *, optional: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """Read some columns of a CSV file with a header; other columns, with or without a name, are ignored.

    Parameters
    ----------
    path : UTF-8 file, with or without the byte order mark that spreadsheets write
    columns : names that the header must hold
    what : what the rows are, in the plural, for the error ("labels")
    optional : names that it may hold

    Returns
    -------
    list with a tuple per row: the values of `columns` and `optional` in that order, stripped; "" where a row is too short or
    has no such column.

    Raises
    ------
    DataError
        when the file is missing, is no text or no CSV, or lacks a column.
    """
    wanted = " and ".join(f"'{column}'" for column in columns)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not set(columns) <= set(reader.fieldnames or ()):
                raise DataError(f"{path}: columns {reader.fieldnames or 'none'}; expected {wanted}")
            return [tuple((row.get(column) or "").strip() for column in (*columns, *optional)) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table of {what} ({first_line(error)}); expected CSV with {wanted}") from error
