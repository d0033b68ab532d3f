"""A table of cells, a row each: for statistics in Python, R or a spreadsheet."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import require
from wsi_meta.heatmaps.store import Heatmap, Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["write_cell_table"]


def write_cell_table(heatmap: Heatmap, file: Path, *, least: float, parquet: bool) -> None:
    """Write scanned cells of at least a probability, and with `least` 0 also those that could not be read.

    Columns: ``row`` and ``col`` in the map, ``x`` and ``y`` of the cell's centre in level-0 pixels, ``probability``
    (empty where it is not known), ``status`` in words, and ``uncertainty`` where the store has it.

    Raises
    ------
    DeviceError
        for Parquet without pyarrow.
    """
    columns = _columns(heatmap, least)
    if parquet:
        _write_parquet(columns, file)
        return
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        values = [column.tolist() for column in columns.values()]
        writer.writerows([None if value != value else value for value in line] for line in zip(*values, strict=True))  # NaN


def _columns(heatmap: Heatmap, least: float) -> dict[str, NDArray[Any]]:
    probability, status, uncertainty = heatmap.probability, heatmap.status, heatmap.uncertainty
    wanted = probability >= least
    if least <= 0:
        wanted |= status == Status.UNREADABLE
    row, col = np.nonzero(wanted)
    names = np.array([status.name.lower() for status in Status])
    columns: dict[str, NDArray[Any]] = {
        "row": row,
        "col": col,
        "x": (col + 0.5) * heatmap.grid.cell_l0,
        "y": (row + 0.5) * heatmap.grid.cell_l0,
        "probability": probability[wanted],
        "status": names[status[wanted]],
    }
    return columns if uncertainty is None else columns | {"uncertainty": uncertainty[wanted]}


def _write_parquet(columns: dict[str, NDArray[Any]], file: Path) -> None:
    require("parquet", "a .parquet file", instead="; or write a .csv")
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [pa.array(column, from_pandas=True) for column in columns.values()]  # NaN is null
    pq.write_table(pa.table(arrays, names=list(columns)), file)
