"""What a model loses on patches as other laboratories and scanners would show them, and on which stains it is worst.

Every shift is compared with the same patches unshifted: intervals are of the difference, by the same bootstrap resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.datasets.shifts import SHIFTS
from wsi_meta.datasets.stains import cluster_by_hue, describe_hue, nearest_to_mean
from wsi_meta.evaluation.metrics import bootstrap_intervals, figures_of, resampled_figures
from wsi_meta.evaluation.roc import NO_SPREAD
from wsi_meta.models.card import ModelCard

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Change", "ClusterFigures", "Robustness", "Seen", "ShiftFigures", "judge_shifts"]

COMPARED = ("sensitivity_at_threshold", "specificity_at_threshold", "auc", "ece")
"""The figures that are compared. No change of ``ece`` is certain: chance adds to it, see :attr:`.Evaluation.ece_noise`."""
TOLD = {
    "sensitivity_at_threshold": ("points of sensitivity", 0.01),
    "specificity_at_threshold": ("points of specificity", 0.01),
    "auc": ("of AUC", 0.005),
}
"""How a change is told, in percentage points, but for the AUC, and the smallest that is told."""
CLUSTERS = 6
FEWEST = 20
"""A cluster with fewer patches of a class has no figures."""
CALIBRATED = 500
"""A cluster with fewer patches has no calibration error: chance alone would make it some hundredths."""
EXAMPLES = 4
"""Patches that stand for a cluster in the report."""


@dataclass(frozen=True)
class Seen:
    """What was seen of patches while they were read once."""

    logits: NDArray[np.float32]
    """Logit of each patch under each of :data:`.SHIFTS`, before calibration; shape (shifts, n)."""
    hues: NDArray[np.float64]
    """:func:`.stain_hue` of each patch as it is; shape (n, 4)."""


@dataclass(frozen=True)
class Change:
    """A figure under a shift, and by how much it differs from the unshifted one."""

    value: float
    change: float
    interval: tuple[float, float] | None
    """95 % of the change, paired bootstrap; None where a class is on one slide, or no resample changes at all."""

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0; never where there is none."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class ShiftFigures:
    """A model's figures under one shift."""

    name: str
    """Of the shift; ``mean`` for the mean over all shifts."""
    words: str
    figures: dict[str, Change]
    """By the names in :data:`COMPARED`."""
    n: int
    """Patches that it was seen on."""

    @property
    def costs(self) -> dict[str, Change]:
        """The figures that are certainly worse, the one that lost most first."""
        return self._certain(-1)

    @property
    def gains(self) -> dict[str, Change]:
        """The figures that are certainly better, the one that gained most first."""
        return self._certain(1)

    @property
    def severity(self) -> float:
        """The largest certain cost, as a share; 0 where there is none."""
        return max((abs(found.change) for found in self.costs.values()), default=0.0)

    @property
    def sentence(self) -> str:
        """What this shift costs for certain, and what it gains, the most first. Other costs may be there all the same."""
        subject, auc = self.words[0].upper() + self.words[1:], self.figures["auc"]
        gains = f"; it gains {_told(self.gains)}" if self.gains else ""
        if self.costs:
            return f"{subject} costs {_told(self.costs)}{gains}."
        certain = any(found.certain and found.change < 0 for name, found in self.figures.items() if name in TOLD)
        interval = "no interval" if auc.interval is None else "{:+.3f} to {:+.3f}".format(*auc.interval)
        told = f"is certain on {self.n:,} patches (AUC {auc.change:+.3f}, {interval}){gains}"
        return f"{subject}: {'only a small' if certain else 'no'} cost {told}."

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; the interval of a change as ``<name>_change_ci``."""
        found: dict[str, Any] = {"name": self.name, "words": self.sentence}
        for name, figure in self.figures.items():
            found |= {name: figure.value, f"{name}_change": figure.change}
            if figure.interval is not None:
                found[f"{name}_change_ci"] = list(figure.interval)
        return found

    def _certain(self, way: int) -> dict[str, Change]:
        of = ((name, least, self.figures[name]) for name, (_, least) in TOLD.items())
        kept = {name: found for name, least, found in of if found.certain and way * found.change >= least}
        return dict(sorted(kept.items(), key=lambda item: -abs(item[1].change)))


@dataclass(frozen=True)
class ClusterFigures:
    """A model's figures on the patches of one cluster of stains."""

    words: str
    """How its stains differ from those of all patches."""
    n: int
    tumor: int
    figures: dict[str, float] | None
    """All of :func:`.figures_of`, ``ece`` from :data:`CALIBRATED` patches on; None where a class has too few."""
    auc_interval: tuple[float, float] | None
    """95 % interval of the AUC."""
    examples: tuple[int, ...]
    """Indices of the patches nearest to its mean hue."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; figures are null where there are too few patches."""
        figures = {name: (self.figures or {}).get(name) for name in COMPARED}
        interval = None if self.auc_interval is None else list(self.auc_interval)
        return {"words": self.words, "n": self.n, "tumor": self.tumor, **figures, "auc_ci": interval}


@dataclass(frozen=True)
class Robustness:
    """A model's figures under each shift, and on each cluster of stains."""

    unshifted: dict[str, float]
    """By the names in :data:`COMPARED`."""
    mean: ShiftFigures
    """The mean over all shifts."""
    shifts: tuple[ShiftFigures, ...]
    """The worst first: by the largest certain cost, then by the AUC."""
    clusters: tuple[ClusterFigures, ...]
    """The lowest AUC first, those without figures last."""
    logits: NDArray[np.float32]
    """Logit of each patch under each of :data:`.SHIFTS`, in their order, before calibration; shape (shifts, n)."""

    @property
    def lowest(self) -> ShiftFigures:
        """The shift with the lowest AUC."""
        return min(self.shifts, key=lambda shift: shift.figures["auc"].value)

    @property
    def judged_clusters(self) -> tuple[ClusterFigures, ...]:
        """The clusters that have figures, the lowest AUC first."""
        return tuple(cluster for cluster in self.clusters if cluster.figures is not None)

    @property
    def summary(self) -> str:
        """The mean shift, what it costs for certain, and the lowest AUC."""
        mean, at_worst = self.mean.figures["auc"], f"{self.lowest.figures['auc'].value:.3f} at worst, under {self.lowest.words}"
        averaged = f"the AUC is {mean.value:.3f} on average (unshifted {self.unshifted['auc']:.3f})"
        return f"Over {len(self.shifts)} shifts {averaged}, and {at_worst}. {self.mean.sentence}"

    @property
    def caution(self) -> str:
        """How many changes would look certain by chance alone, in one sentence."""
        count = sum(figure.interval is not None for shift in self.shifts for figure in shift.figures.values())
        if not count:
            return "There are no intervals, so that nothing is certain: too few slides (or patches) of a class, or no change."
        return f"Each interval stands by itself: of {count}, about {max(1, round(count / 20))} leave out 0 by chance alone."

    @property
    def cluster_summary(self) -> str:
        """The worst cluster beside the mean, and how many were left out, in one or two sentences."""
        judged = self.judged_clusters
        left_out = len(self.clusters) - len(judged)
        words = f"{left_out} of {len(self.clusters)} clusters of stains have fewer than {FEWEST} patches of a class: left out."
        if not judged:
            return words
        aucs = [cluster.figures["auc"] for cluster in judged if cluster.figures is not None]
        worst = f"an AUC of {aucs[0]:.3f} ({judged[0].words})"
        told = f"Of {len(judged)} clusters of stains the worst has {worst}, the mean is {np.mean(aucs):.3f}."
        if len(judged) == 1:
            told = f"The only cluster of stains with enough patches has {worst}."
        return f"{told} {words}" if left_out else told

    def to_lines(self) -> dict[str, str]:
        """Return what a person should know as names and sentences, the worst shift first."""
        told = {shift.name: shift.sentence for shift in self.shifts}
        return {"summary": self.summary, "caution": self.caution, **told, "clusters": self.cluster_summary}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the logits."""
        return {
            "summary": self.summary,
            "caution": self.caution,
            "cluster_summary": self.cluster_summary,
            "unshifted": self.unshifted,
            "mean": self.mean.to_dict(),
            "lowest_auc": self.lowest.name,
            "by_shift": [shift.to_dict() for shift in self.shifts],
            "clusters": [cluster.to_dict() for cluster in self.clusters],
        }


def judge_shifts(
    logits: NDArray[np.float32],
    seen: Seen,
    labels: NDArray[np.uint8],
    card: ModelCard,
    *,
    groups: NDArray[np.str_] | None = None,
) -> Robustness:
    """Compare a model's figures under each shift with those of the same patches unshifted, and judge each cluster of stains.

    Parameters
    ----------
    logits : of the unshifted patches, before calibration; shape (n,)
    seen : of the same patches
    labels : 1 tumor, 0 normal; both must occur; shape (n,)
    card : of the model: its calibration and its default threshold
    groups : patient or slide of each patch, shape (n,), for a bootstrap over these; None for one over patches
    """
    shown, threshold = np.vstack([logits, seen.logits]), card.thresholds["default"]
    probabilities, odds = card.calibration.to_probability(shown), card.calibration.to_log_odds(shown)
    values = [figures_of(row, labels, threshold, log_odds=exact) for row, exact in zip(probabilities, odds, strict=True)]
    resampled = resampled_figures(probabilities, labels, threshold, groups, log_odds=odds)
    table = {name: np.array([found[name] for found in values]) for name in COMPARED}
    shifts = [
        ShiftFigures(shift.name, shift.words, _changes(table, resampled, slice(place, place + 1)), len(labels))
        for place, shift in enumerate(SHIFTS, 1)
    ]
    return Robustness(
        unshifted={name: float(table[name][0]) for name in COMPARED},
        mean=ShiftFigures("mean", "the mean shift", _changes(table, resampled, slice(1, None)), len(labels)),
        shifts=tuple(sorted(shifts, key=lambda shift: (-shift.severity, shift.figures["auc"].value))),
        clusters=_judge_clusters(probabilities[0], odds[0], seen.hues, labels, threshold, groups),
        logits=seen.logits,
    )


def _told(changes: dict[str, Change]) -> str:
    """Return changes as a list in words, each without its sign and with its interval."""
    parts = []
    for name, found in changes.items():
        scale, digits = (1, 3) if name == "auc" else (100, 1)
        ends = sorted(scale * abs(end) for end in found.interval or ())
        interval = f" ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})" if ends else ""
        parts.append(f"{scale * abs(found.change):.{digits}f} {TOLD[name][0]}{interval}")
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _changes(
    table: dict[str, NDArray[np.float64]], resampled: dict[str, NDArray[np.float64]], places: slice
) -> dict[str, Change]:
    """Return the mean figures of some rows, compared with those of the first row."""
    found = {}
    for name, values in table.items():
        value, interval = float(values[places].mean()), None
        if name in resampled:
            low, high = np.percentile(resampled[name][places].mean(0) - resampled[name][0], (2.5, 97.5))
            interval = (float(low), float(high)) if max(-low, high) > NO_SPREAD else None
        found[name] = Change(value, value - float(values[0]), interval)
    return found


def _judge_clusters(
    probabilities: NDArray[np.float32],
    log_odds: NDArray[np.float64],
    hues: NDArray[np.float64],
    labels: NDArray[np.uint8],
    threshold: float,
    groups: NDArray[np.str_] | None,
) -> tuple[ClusterFigures, ...]:
    cluster, found = cluster_by_hue(hues, CLUSTERS), []
    for number in range(int(cluster.max()) + 1):
        members = np.flatnonzero(cluster == number)
        chosen, odds, truth = probabilities[members], log_odds[members], labels[members]
        tumor = int(truth.sum())
        figures, interval = None, None
        if min(tumor, len(members) - tumor) >= FEWEST:
            of = None if groups is None else groups[members]
            interval = bootstrap_intervals(chosen, truth, threshold, of, log_odds=odds).get("auc")
            figures = figures_of(chosen, truth, threshold, log_odds=odds)
            if len(members) < CALIBRATED:
                del figures["ece"]
        examples = tuple(nearest_to_mean(hues, members, EXAMPLES))
        found.append(ClusterFigures(describe_hue(hues, members), len(members), tumor, figures, interval, examples))
    return tuple(sorted(found, key=lambda cluster: 2.0 if cluster.figures is None else cluster.figures["auc"]))
