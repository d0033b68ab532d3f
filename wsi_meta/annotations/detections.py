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

from wsi_meta.errors import DataError, first_line
from wsi_meta.outputs import check_output, written_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["COLUMNS", "Detections", "read_detections", "write_detections"]

COLUMNS = ("probability", "x", "y")


@dataclass(frozen=True, eq=False)
class Detections:
    """Points that a method calls lesions on one slide; arrays (n,)."""

    scores: NDArray[np.float64]
    """At least 0; higher is more certain."""
    x: NDArray[np.int64]
    """Level-0 pixels."""
    y: NDArray[np.int64]
    """Level-0 pixels."""

    @property
    def highest(self) -> float:
        """The highest score, 0 without detections."""
        return float(self.scores.max(initial=0))


def read_detections(path: str | Path) -> Detections:
    """Read a slide's detections, with or without a header; an empty file means that there are none.

    Parameters
    ----------
    path : CSV with a line ``probability,x,y`` per detection; x and y may have decimals, which are cut off

    Raises
    ------
    DataError
        when the file is missing or is no text, or a line is not three numbers of at least 0.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(number, row) for number, row in enumerate(csv.reader(file), 1) if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a list of detections ({first_line(error)}); expected lines probability,x,y") from error
    if lines and not any(map(_is_number, lines[0][1])):
        del lines[0]  # names, not numbers
    values = np.array([_numbers(path, number, row) for number, row in lines], np.float64).reshape(-1, 3)
    return Detections(values[:, 0], values[:, 1].astype(np.int64), values[:, 2].astype(np.int64))


def write_detections(path: str | Path, detections: Detections, *, overwrite: bool = False) -> Path:
    """Write a slide's detections as the challenge wants them: no header, an empty file where there are none.

    Raises
    ------
    OutputExistsError, OutputPathError
    """
    target = check_output(path, overwrite=overwrite)
    with written_whole(target) as partial, partial.open("w", newline="") as file:
        rows = zip(detections.scores.tolist(), detections.x.tolist(), detections.y.tolist(), strict=True)
        csv.writer(file, lineterminator="\n").writerows(rows)
    return target


def _is_number(part: str) -> bool:
    try:
        float(part)
    except ValueError:
        return False
    return True


def _numbers(path: Path, number: int, row: list[str]) -> tuple[float, float, float]:
    try:
        score, x, y = map(float, row)
        good = all(math.isfinite(value) and 0 <= value < 2**62 for value in (score, x, y))
    except ValueError:
        good = False
    if not good:
        raise DataError(f"{path}: line {number} is '{','.join(row)[:60]}'; expected probability,x,y, none below 0")
    return score, x, y
