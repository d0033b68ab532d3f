"""Camelyon16's lesion score: free-response ROC as its organisers compute it. Pure numpy and scikit-image.

The protocol of the challenge's evaluation code (Ehteshami Bejnordi et al. 2017, JAMA 318(22):2199-2210): the tumor's mask
at level 5 of 0.243 um/px; lesions closer than 75 um are one; lesions under 275 um are isolated tumor cells, which count
neither way. The organisers' script keeps each lesion's best hit in float32 and the false positives in float64, so that a hit
and a false positive of the same score may not be equal; :func:`script_curve` gives its score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.annotations.detections import Detections
from wsi_meta.evaluation.roc import NO_SPREAD

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "DOWNSAMPLE",
    "DROPPED",
    "FALSE_POSITIVES",
    "FrocCurve",
    "SlideHits",
    "froc_curve",
    "froc_interval",
    "label_lesions",
    "match",
    "script_curve",
]

DOWNSAMPLE = 32
"""Level-0 pixels along a side of the evaluation mask's pixel: level 5."""
PIXEL_UM = 0.243 * DOWNSAMPLE
"""Side of the mask's pixel, um; the organisers take 0.243 um per level-0 pixel for every slide."""
MERGE_UM = 75.0
"""Lesions nearer to each other than this are one lesion (the organisers: the size of five tumor cells)."""
ISOLATED_UM = 275.0
"""Lesions whose major axis is shorter are isolated tumor cells."""
FALSE_POSITIVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per slide at which sensitivity is averaged."""
RESAMPLES = 1000
"""Draws of :func:`froc_interval`; those without lesions are left out."""


@dataclass(frozen=True, eq=False)
class SlideHits:
    """The lesions that a slide's detections hit, and its false positives."""

    false_positives: NDArray[np.float64]
    """Scores of the detections outside lesions; shape (n,)."""
    best: NDArray[np.float64]
    """Best score on each lesion, 0 where missed; shape (lesions,). Isolated tumor cells are included, with 0."""
    lesions: int
    """Lesions that count: all but the isolated tumor cells."""

    @property
    def isolated(self) -> int:
        """Lesions that are isolated tumor cells."""
        return len(self.best) - self.lesions


DROPPED = "the lowest of all scores (0 stands for a missed lesion) is no threshold, as in the organisers' script"
"""The rule that leaves a threshold out, as :func:`wsi_meta.froc` tells it."""


@dataclass(frozen=True, eq=False)
class FrocCurve:
    """Sensitivity over false positives; arrays (n,), from the lowest threshold to the highest and then (0, 0)."""

    thresholds: NDArray[np.float64]
    """A detection counts at or over it; the last is infinite."""
    false_positives: NDArray[np.float64]
    """Mean false positives a slide, falling to 0."""
    sensitivity: NDArray[np.float64]
    """Share of lesions found; NaN where there are no lesions."""
    dropped: float | None
    """The score that is left out of the thresholds, see :data:`DROPPED`; None where there is no score."""

    @property
    def left_out(self) -> dict[str, Any] | None:
        """The threshold that was dropped and the rule, plain JSON values; None where there is none."""
        return None if self.dropped is None else {"threshold": self.dropped, "rule": DROPPED}

    @property
    def at(self) -> NDArray[np.float64]:
        """Sensitivity at each of :data:`FALSE_POSITIVES`, interpolated linearly between points of the curve."""
        return np.interp(FALSE_POSITIVES, self.false_positives[::-1], self.sensitivity[::-1])

    @property
    def score(self) -> float:
        """Mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives a slide; NaN where there are no lesions."""
        return float(self.at.mean())


def label_lesions(tumor: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return a slide's lesions as labels, and which of them are isolated tumor cells.

    Parameters
    ----------
    tumor : bool (height, width) at level 5

    Returns
    -------
    labels : int32 (height, width); 0 is no lesion
    isolated : bool (lesions,); index 0 is lesion 1
    """
    from scipy.ndimage import binary_fill_holes, distance_transform_edt
    from skimage.measure import label, regionprops

    labels = np.zeros(tumor.shape, np.int32)
    if not tumor.any():
        return labels, np.zeros(0, bool)
    reach = MERGE_UM / (PIXEL_UM * 2)
    # only pixels near tumor can get a label; the margin separates holes from the outside
    window = tuple(_span(np.asarray(tumor.any(axis)), int(reach) + 2) for axis in (1, 0))
    near = distance_transform_edt(~tumor[window]) < reach
    labels[window] = label(binary_fill_holes(near), connectivity=2)
    shortest = ISOLATED_UM / PIXEL_UM
    return labels, np.array([region.axis_major_length < shortest for region in regionprops(labels[window])], bool)


def match(detections: Detections, tumor: NDArray[np.bool_] | None) -> SlideHits:
    """Compare a slide's detections with its tumor.

    Parameters
    ----------
    detections : of the slide, level-0 pixels
    tumor : bool (height, width) at level 5; there is no tumor outside of it; None for a normal slide
    """
    labels, isolated = label_lesions(np.zeros((0, 0), bool) if tumor is None else tumor)
    row, col = detections.y // DOWNSAMPLE, detections.x // DOWNSAMPLE
    inside = (row < labels.shape[0]) & (col < labels.shape[1])
    hit = np.zeros(len(row), np.int64)
    hit[inside] = labels[row[inside], col[inside]]
    best = np.zeros(len(isolated))
    counts = (hit > 0) & ~np.append(False, isolated)[hit]
    np.maximum.at(best, hit[counts] - 1, detections.scores[counts])
    return SlideHits(detections.scores[hit == 0], best, int((~isolated).sum()))


def froc_curve(slides: Sequence[SlideHits], *, hits: type[np.float32 | np.float64] = np.float64) -> FrocCurve:
    """Compute the curve over all slides, including those without detections.

    The thresholds are the distinct scores of all false positives and of every lesion's best hit (0 for missed lesions and
    isolated tumor cells), the lowest dropped, as the organisers do.

    Parameters
    ----------
    slides : what was hit on each
    hits : type of the lesions' best hits. With float32, that of the organisers' script, thresholds are compared with hits in
        float32 and with false positives in float64, as NumPy compares its arrays with numbers
    """
    false, best = _scores(slides, hits)
    thresholds = np.unique(np.concatenate([false, best.astype(np.float64)]))
    return _curve(slides, false, best, thresholds)


def script_curve(slides: Sequence[SlideHits]) -> FrocCurve:
    """Compute the curve to the digit as the organisers' script does under the installed NumPy.

    As :func:`froc_curve` with hits in float32, but in the script's own order of thresholds: it sorts a set of Python's floats
    and NumPy's float32. NumPy 2 calls a hit and a false positive equal that are equal in float32, so that the set's order
    remains, and in rare cases the false positives do not fall from threshold to threshold.
    """
    false, best = _scores(slides, np.float32)
    listed = [score for slide in slides for score in slide.false_positives.tolist()]
    listed += [score for slide in slides for score in slide.best.astype(np.float32)]
    return _curve(slides, false, best, np.array(sorted(set(listed)), np.float64))


def _scores(
    slides: Sequence[SlideHits], hits: type[np.float32 | np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float32 | np.float64]]:
    """Return the scores of all false positives and of all lesions' best hits, ascending."""
    nothing = np.zeros(0)
    false = np.sort(np.concatenate([nothing, *(slide.false_positives for slide in slides)]))
    return false, np.sort(np.concatenate([nothing, *(slide.best for slide in slides)])).astype(hits)


def _curve(
    slides: Sequence[SlideHits],
    false: NDArray[np.float64],
    best: NDArray[np.float32 | np.float64],
    thresholds: NDArray[np.float64],
) -> FrocCurve:
    """Count what reaches each threshold but the first, see :data:`DROPPED`; `false` and `best` are ascending."""
    dropped, thresholds = thresholds[:1], thresholds[1:]
    lesions = sum(slide.lesions for slide in slides)
    alarms = np.append(len(false) - np.searchsorted(false, thresholds), 0)
    found = np.append(len(best) - np.searchsorted(best, thresholds.astype(best.dtype)), 0)
    sensitivity = found / lesions if lesions else np.full(len(found), np.nan)
    return FrocCurve(
        np.append(thresholds, np.inf), alarms / max(1, len(slides)), sensitivity, float(dropped[0]) if len(dropped) else None
    )


def froc_interval(slides: Sequence[SlideHits], *, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % interval of the score: the percentile bootstrap over slides (Efron & Tibshirani 1993), hits in float32.

    Parameters
    ----------
    slides : as :func:`froc_curve`
    seed : of the draws

    Returns
    -------
    2.5th and 97.5th percentile, too narrow with fewer than about 10 slides (see :func:`.bootstrap_intervals`); None where
    fewer than two slides have lesions that count, as the lesions of one are always drawn together, and where every resample
    has the same score, such as 1.
    """
    if sum(slide.lesions > 0 for slide in slides) < 2:
        return None
    rng = np.random.default_rng(seed)
    drawn = np.sort([rng.integers(len(slides), size=len(slides)) for _ in range(RESAMPLES)], axis=1)  # in any order
    distinct, places = np.unique(drawn, axis=0, return_inverse=True)  # of few slides the same are often drawn
    scores = np.array([froc_curve([slides[index] for index in indices], hits=np.float32).score for indices in distinct])
    low, high = np.nanpercentile(scores[places.ravel()], (2.5, 97.5))
    return (float(low), float(high)) if high - low > NO_SPREAD else None


def _span(there: NDArray[np.bool_], margin: int) -> slice:
    """Return the range from the first to the last True, with `margin` more on each side."""
    first, last = np.flatnonzero(there)[[0, -1]].tolist()
    return slice(max(0, first - margin), last + margin + 1)
