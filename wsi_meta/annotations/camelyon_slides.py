"""Camelyon's slides: how their names are compared, whose they are, and which slides of Camelyon16 are known to be wrong."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["EXCLUDED", "PARTLY", "loose", "patient_of"]

EXCLUDED = Path(__file__).parent / "camelyon16_excluded.csv"
"""Slides of Camelyon16 that are known to be wrong, with the task they are left out of and the reason."""
PARTLY = Path(__file__).parent / "camelyon16_partly.csv"
"""Slides of Camelyon16 that hold tumor outside their outlines, each with the source."""


def loose(name: str) -> str:
    """Return a slide's name in lower case and without the zeros before its numbers: ``Normal_086`` is ``normal_86``."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", name.lower())


def patient_of(name: str) -> str:
    """Return the patient that a slide's name tells, CAMELYON17's way: the part before ``_node_``; other names are whole."""
    return name.partition("_node_")[0]
