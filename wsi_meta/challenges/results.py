"""What Camelyon16's rules find in a folder of detections."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wsi_meta.challenges.froc import FrocCurve

__all__ = ["FrocResult", "SlideAuc"]


@dataclass(frozen=True)
class SlideAuc:
    """How well the slides' scores separate slides with tumor from the others."""

    auc: float
    delong: tuple[float, float] | None
    """95 % interval; None where a class has one slide, or the method knows no spread, as at an AUC of 1."""
    bootstrap: tuple[float, float] | None
    """95 % interval, percentile bootstrap over slides; None as above."""
    tumor: int
    """Slides with tumor."""
    normal: int
    """Slides without tumor."""
    roc: tuple[tuple[float, float], ...]
    """For each score, from the highest down: the shares of normal slides and of slides with tumor that reach it."""

    def to_dict(self) -> dict[str, Any]:
        """Return all but the curve as plain JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "roc"}


@dataclass(frozen=True, eq=False)
class FrocResult:
    """What :func:`froc` found."""

    curve: FrocCurve
    score: float | None
    """Mean sensitivity at 1/4 to 8 false positives a slide, as the organisers' script computes it, with hits in float32; None
    where the truth has no lesion that counts."""
    float64_score: float | None
    """The score where hits and false positives are both compared in float64; the same unless they share scores."""
    interval: tuple[float, float] | None
    """95 %, percentile bootstrap over slides; None where fewer than two have lesions, or all resamples agree."""
    sensitivity: dict[str, float]
    """By false positives a slide; empty where there is no score."""
    slides: int
    """Slides that were judged for lesions, including those without detections."""
    lesions: int
    """Lesions that count: all but isolated tumor cells."""
    isolated: int
    """Isolated tumor cells, which count neither as found nor as missed."""
    slide_auc: SlideAuc | None
    """None where the slides are all of one class."""
    excluded: dict[str, str]
    """Slides that the table excludes: from which task, and why."""
    incomplete: dict[str, str]
    """Judged slides that were not wholly read, by their heatmap or the table of scores, and why: lesions may be missing
    there, and their score is of what was read."""

    def to_dict(self) -> dict[str, Any]:
        """Return all but the curves as plain JSON values."""
        fields = {name: value for name, value in vars(self).items() if name != "curve"}
        return fields | {"dropped": self.curve.left_out, "slide_auc": self.slide_auc.to_dict() if self.slide_auc else None}
