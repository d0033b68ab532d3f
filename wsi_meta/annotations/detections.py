"""What a method calls a lesion on a slide: the Camelyon16 challenge's CSV files, one per slide.

A line is ``probability,x,y``: a probability, and a point in level-0 pixels. A slide without detections has an empty file.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.annotations.tables import SEPARATORS, read_lines, refuse_longer
from wsi_meta.errors import DataError, OptionsError, array, of_kind, shown
from wsi_meta.outputs.checks import check_output
from wsi_meta.outputs.paths import as_path
from wsi_meta.outputs.writing import written_whole
from wsi_meta.words import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["COLUMNS", "PROBABILITY", "Detections", "read_detections", "write_detections"]

COLUMNS = ("probability", "x", "y")
EXPECTED = "arrays (n,) of finite numbers, 0 or more, of one length"
PROBABILITY = ("probability", "confidence", "score", "prob", "p")
"""Names that a header may have for the probability."""
LARGEST_PROBABILITIES = (1, 100)
"""Of probabilities, and of percentages. No detection lies so near a slide's edge."""


@dataclass(frozen=True, eq=False)
class Detections:
    """Points that a method calls lesions on one slide; arrays (n,).

    Raises
    ------
    OptionsError
        when they are no such arrays, differ in length, or hold what is no finite number of at least 0.
    """

    scores: NDArray[np.float64]
    """At least 0; higher is more certain."""
    x: NDArray[np.int64]
    """Level-0 pixels."""
    y: NDArray[np.int64]
    """Level-0 pixels."""

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            array(name, values, EXPECTED, kinds="iuf", ndim=1)
            if len(values) != len(self.scores) or not ((values >= 0) & (values < np.inf)).all():
                raise OptionsError(f"{name}: {shown(values)}; expected {EXPECTED}")

    @property
    def highest(self) -> float:
        """The highest score, 0 without detections."""
        return float(self.scores.max(initial=0))


def read_detections(path: str | Path) -> Detections:
    """Read a slide's detections; an empty file means that there are none.

    Parameters
    ----------
    path : CSV with a line ``probability,x,y`` per detection, separated by one of
        :data:`wsi_meta.annotations.tables.SEPARATORS`; x and y may have decimals, which are cut off. A first line without any
        number is a header, and says which column is which: ``x``, ``y`` and one of :data:`PROBABILITY`, in any case

    Returns
    -------
    Scores and level-0 places, in the file's order.

    Raises
    ------
    DataError
        when the file is missing or is no text, its header lacks a column, a line is longer than it or is not three numbers of
        at least 0, or there is no header and the second or third column looks like the probability.
    """
    path = as_path("path", path)
    try:
        text = read_lines(path)
        first = next((line for line in text if line.strip(", ;\t\r\n")), "")
        separator = next((mark for mark in SEPARATORS[1:] if mark in first), SEPARATORS[0])
        rows = csv.reader(text, delimiter=separator)
        lines = [(number, row) for number, row in enumerate(rows, 1) if any(map(str.strip, row))]
        found = {number: f"{path}: line {number} is '{separator.join(row)[:60]}'" for number, row in lines}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected a list of detections, lines probability,x,y") from error
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: not a list of detections ({first_line(error)}); expected lines probability,x,y") from error
    if headed := bool(lines) and not any(map(_is_number, lines[0][1])):
        places = _places(path, lines[0][1])
        refuse_longer(path, len(lines[0][1]), lines[1:])
        lines = [(number, [row[place] if place < len(row) else "" for place in places]) for number, row in lines[1:]]
    values = np.array([_numbers(found[number], row) for number, row in lines], np.float64).reshape(-1, 3)
    if not headed and len(values):
        _refuse_swapped(path, lines[0][1], *values.max(0).tolist())
    return Detections(values[:, 0], values[:, 1].astype(np.int64), values[:, 2].astype(np.int64))


def write_detections(path: str | Path, detections: Detections, *, overwrite: bool = False) -> Path:
    """Write a slide's detections as the challenge wants them: no header, an empty file where there are none.

    Returns
    -------
    The file.

    Raises
    ------
    OutputExistsError, OutputPathError
    """
    of_kind("detections", detections, Detections, "Detections, as to_detections returns them")
    target = check_output(path, overwrite=overwrite)
    with written_whole(target, overwrite=overwrite) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        rows = zip(detections.scores.tolist(), detections.x.tolist(), detections.y.tolist(), strict=True)
        csv.writer(file, lineterminator="\n").writerows(rows)
    return target


def _is_number(part: str) -> bool:
    try:
        float(part)
    except ValueError:
        return False
    return True


def _numbers(found: str, row: list[str]) -> tuple[float, float, float]:
    try:
        score, x, y = map(float, row)
        good = all(math.isfinite(value) and 0 <= value < 2**62 for value in (score, x, y))
    except ValueError:
        good = False
    if not good:
        raise DataError(f"{found}; expected probability,x,y, none below 0, with decimal points")
    return score, x, y


def _refuse_swapped(path: Path, first: list[str], score: float, x: float, y: float) -> None:
    """Raise DataError when the largest numbers of the columns are those of a place and a probability, whole or in percent."""
    for most in LARGEST_PROBABILITIES:
        if score > most and min(x, y) <= most:
            column = "second" if x <= y else "third"
            told = f"the first column of '{','.join(first)[:60]}' reaches {score:g}, the {column} only {min(x, y):g}"
            raise DataError(f"{path}: {told}; expected probability,x,y in this order, or a header that names the columns")


def _places(path: Path, header: list[str]) -> list[int]:
    """Return the columns of probability, x and y by the names of a header."""
    names = [name.strip().lower() for name in header]
    wanted = [{*PROBABILITY}, {"x"}, {"y"}]
    places = [[place for place, name in enumerate(names) if name in known] for known in wanted]
    if any(len(found) != 1 for found in places):
        raise DataError(f"{path}: first line '{','.join(header)[:60]}'; expected numbers, or a header probability,x,y")
    return [found[0] for found in places]
