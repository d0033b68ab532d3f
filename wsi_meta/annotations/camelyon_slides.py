"""Camelyon's slides: how their names are compared, whose they are, and which are left out, as those known to be wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from wsi_meta.annotations.tables import last_part, read_table, refuse_twice, without_ending
from wsi_meta.errors import DataError

__all__ = ["EXCLUDED", "PARTLY", "TASKS", "Exclusion", "loose", "patient_of", "read_excluded"]

EXCLUDED = Path(__file__).parent / "camelyon16_excluded.csv"
"""Slides of Camelyon16 that are known to be wrong, with the task they are left out of and the reason."""
PARTLY = Path(__file__).parent / "camelyon16_partly.csv"
"""Slides of Camelyon16 that hold tumor outside their outlines, each with the source."""
TASKS = ("lesions", "slides", "both")
"""What slides are left out of."""
TCGA_PATIENT = r"TCGA-\w{2}-\w{4}(?=-)"
"""The parts of the name of a slide of TCGA (``TCGA-A1-A0SB-01Z-00-DX1.<UUID>``) that are its patient's; several are common."""


@dataclass(frozen=True)
class Exclusion:
    """From which task a slide is excluded, and why."""

    task: str
    """One of :data:`TASKS`."""
    reason: str


def loose(name: str) -> str:
    """Return a slide's name in lower case and without the zeros before its numbers: ``Normal_086`` is ``normal_86``."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", name.lower())


def patient_of(name: str) -> str:
    """Return the patient that a name tells in any case: before ``_node_``, as in CAMELYON17, or in TCGA's; others are whole."""
    barcode = re.match(TCGA_PATIENT, name, flags=re.IGNORECASE)
    return barcode[0] if barcode else re.split("_node_", name, maxsplit=1, flags=re.IGNORECASE)[0]


def read_excluded(path: str | Path) -> dict[str, Exclusion]:
    """Read a table of slides to exclude: columns ``slide``, ``task`` (one of :data:`TASKS`) and ``reason``.

    Returns
    -------
    dict by the slide's name as :func:`loose` gives it.

    Raises
    ------
    DataError
    """
    path = Path(path)
    table: dict[str, Exclusion] = {}
    rows = read_table(path, ("slide", "task", "reason"), "slides to leave out")
    names = [loose(without_ending(last_part(row[0]))) for row in rows]
    refuse_twice(path, ((name, row.line) for name, row in zip(names, rows, strict=True)))
    for name, (slide, task, reason) in zip(names, rows, strict=True):
        if task not in TASKS:
            raise DataError(f"{path}: task '{task}' of '{slide}'; expected one of {', '.join(TASKS)}")
        table[name] = Exclusion(task, reason)
    return table
