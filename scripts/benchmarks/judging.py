"""What models are judged by: the same patches as they are, under all shifts, by clusters of stains, in dense mode and turned.

Logits are computed once for a model and kept in a file of some hundred kB. All figures and their paired intervals come from
these, on any machine that has the patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from shown_patches import show_patches

from wsi_meta.datasets.layouts import Patches
from wsi_meta.datasets.shifts import SHIFTS
from wsi_meta.datasets.stains import cluster_by_hue, stain_hue
from wsi_meta.errors import DataError
from wsi_meta.evaluation.calibration import cross_fit
from wsi_meta.evaluation.metrics import auc_of, figures_of
from wsi_meta.evaluation.robustness import CLUSTERS, FEWEST
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.dihedral import AVERAGED, VIEWS, mean_over_views
from wsi_meta.models.model import Model
from wsi_meta.outputs.writing import written_whole
from wsi_meta.training.mosaics import predict_in_mosaics

__all__ = ["COLUMNS", "Judge", "Judged", "Set", "for_card", "table"]

AVERAGES = tuple(views for views in AVERAGED if views > 1)
COLUMNS = (
    *("validation", "accuracy", "mean shift", "worst shift", "mean cluster", "worst cluster", "judge", "dense"),
    *(f"TTA {views}" for views in AVERAGES),
)
"""The figures of a model: AUC, but for `accuracy`. "Judge" is the mean of validation, mean shift and mean cluster."""
SHOWN_AT_ONCE = 64
"""Patches that are sent to the device together, each under all shifts."""
ELSEWHERE = {
    "mean shift": "mean_shift_auc",
    "worst shift": "worst_shift_auc",
    "mean cluster": "mean_cluster_auc",
    "worst cluster": "worst_cluster_auc",
    "ECE over shifts": "ece_over_shifts",
}
"""Figures that a model's card may also have, by their names there."""


@dataclass(frozen=True)
class Judged:
    """What a model says of the patches: raw logits, float32."""

    fingerprint: str
    """Of the patches."""
    shown: NDArray[np.float32]
    """Of each patch as it is, and then under each shift; (1 + shifts, n)."""
    views: NDArray[np.float32]
    """Of each of the eight views of each patch as it is; (n, 8)."""
    dense: NDArray[np.float32]
    """Of each patch in a mosaic of strangers, as dense mode sees it; (n,)."""
    ece: float
    """Mean over the shifts of the expected calibration error, by the model's card."""

    def save(self, path: Path) -> None:
        """Write a ``.npz`` file, whole or not at all."""
        with written_whole(path) as partial, partial.open("wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Judged:
        """Read what :meth:`save` wrote; DataError when it is missing or of patches with another fingerprint."""
        if not path.exists():
            raise DataError(f"{path}: missing; expected logits of a judged model; copy it here, or judge the model again")
        with np.load(path) as kept:
            found = cls(**{field.name: kept[field.name] for field in fields(cls)})
        found = replace(found, fingerprint=str(found.fingerprint), ece=float(found.ece))
        if found.fingerprint != fingerprint:
            raise DataError(f"{path}: logits of other patches; expected these; judge on the same share of the same folder")
        return found


@dataclass(frozen=True)
class Judge:
    """Computes what models say of the patches."""

    patches: Patches
    folder: Path
    """Of the file of shifted patches."""
    device: str
    precision: str
    workers: int = 0
    tta: bool = False
    """Average eight views under each shift as well."""
    progress: bool = False

    @cached_property
    def shown(self) -> NDArray[np.uint8]:
        """The patches under all shifts: made, or read where they are made."""
        return show_patches(self.patches, self.folder, workers=self.workers, progress=self.progress)

    @cached_property
    def judged_set(self) -> Set:
        """What the figures are computed with."""
        return Set.of(self.patches)

    def judge(self, model: Model) -> Judged:
        """Return what a model says."""
        shown = self.shown
        rows = self._predict(model, shown.reshape(-1, *shown.shape[2:]), tta=self.tta)
        logits = np.ascontiguousarray(mean_over_views(rows).reshape(shown.shape[:2]).T)
        probabilities, labels = model.card.calibration.to_probability(logits[1:]), self.patches.labels
        return Judged(
            fingerprint=self.patches.fingerprint(),
            shown=logits,
            views=self._predict(model, shown[:, 0], tta=VIEWS),
            dense=predict_in_mosaics(
                model, self.patches, device=self.device, precision=self.precision, workers=self.workers, progress=self.progress
            ),
            ece=float(np.mean([figures_of(row, labels)["ece"] for row in probabilities])),
        )

    def judge_once(self, model: Model, kept: Path) -> Judged:
        """Return what a model says, from a file where it is kept, else computed and kept there."""
        if not kept.exists():
            self.judge(model).save(kept)
        return Judged.load(kept, self.patches.fingerprint())

    def _predict(self, model: Model, images: NDArray[np.uint8], *, tta: bool | int) -> NDArray[np.float32]:
        """Return the logit of every view of images (n, patch_px, patch_px, 3)."""
        predictor = Predictor(model, device=self.device, precision=self.precision, tta=tta)
        at_once = SHOWN_AT_ONCE * (1 + len(SHIFTS))
        parts = (np.array(images[start : start + at_once]) for start in range(0, len(images), at_once))
        return np.concatenate([predictor.predict_views(torch.from_numpy(part)) for part in parts])


@dataclass(frozen=True)
class Set:
    """Labels, and what is resampled for intervals, of the patches on which models are judged."""

    labels: NDArray[np.uint8]
    clusters: tuple[NDArray[np.intp], ...]
    """Indices of the patches of each cluster that has enough of both classes."""
    groups: NDArray[np.intp]
    """Number of the slide of each patch, or of the patch itself."""

    @classmethod
    def of(cls, patches: Patches) -> Set:
        """Group patches by their stains."""
        hues = np.array([stain_hue(patches.read(index)) for index in range(len(patches))])
        cluster, labels = cluster_by_hue(hues, CLUSTERS), patches.labels
        members = [np.flatnonzero(cluster == number) for number in range(int(cluster.max()) + 1)]
        kept = tuple(chosen for chosen in members if np.bincount(labels[chosen], minlength=2).min() >= FEWEST)
        names = np.arange(len(labels)) if patches.slides is None else patches.slides
        return cls(labels, kept, np.unique(names, return_inverse=True)[1].reshape(-1))

    def resamples(self, n: int, seed: int = 0) -> Iterator[NDArray[np.intp]]:
        """Return how often each patch is drawn, (n patches,): whole slides are drawn, and both classes are held."""
        rng, count = np.random.default_rng(seed), int(self.groups.max()) + 1
        for _ in range(n):
            times = np.bincount(rng.integers(count, size=count), minlength=count)[self.groups]
            if 0 < times[self.labels == 1].sum() < times.sum():
                yield times

    def judge(self, judged: Judged, times: NDArray[np.integer] | None = None) -> NDArray[np.float64]:
        """Return the values of :data:`COLUMNS`.

        Parameters
        ----------
        judged : what a model says of these patches
        times : how often each patch is drawn, (resamples, n); None draws each once

        Returns
        -------
        float64 (resamples, columns), or (columns,) without `times`. Clusters of which only one class was drawn are left out;
        NaN where there is no cluster.
        """
        weights = np.ones((1, len(self.labels))) if times is None else times.astype(np.float64)
        whole, *shifted = (_aucs(row, self.labels, weights) for row in judged.shown)
        parts = [_aucs(judged.shown[0, chosen], self.labels[chosen], weights[:, chosen]) for chosen in self.clusters]
        by_cluster = np.reshape(parts, (-1, len(weights)))
        right = cross_fit(judged.shown[0], self.labels)[1] == self.labels.astype(bool)
        mean, cluster = np.mean(shifted, axis=0), _mean(by_cluster)
        values = [
            *(whole, weights @ right / weights.sum(1), mean, np.min(shifted, axis=0)),
            *(cluster, np.fmin.reduce(by_cluster, axis=0, initial=np.nan), _mean(np.array([whole, mean, cluster]))),
            _aucs(judged.dense, self.labels, weights),
            *(_aucs(mean_over_views(judged.views[:, AVERAGED[views]]), self.labels, weights) for views in AVERAGES),
        ]
        found = np.array(values, np.float64).T
        return found[0] if times is None else found

    def figures(self, judged: Judged) -> dict[str, float]:
        """Return :data:`COLUMNS` and the calibration error over the shifts, by name; NaN as in :meth:`judge`."""
        return dict(zip(COLUMNS, self.judge(judged).tolist(), strict=True)) | {"ECE over shifts": judged.ece}


def for_card(figures: Mapping[str, float]) -> dict[str, float]:
    """Return those of :meth:`Set.figures` that a card may hold, by their names there; no NaN."""
    return {told: figures[name] for name, told in ELSEWHERE.items() if np.isfinite(figures[name])}


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the first axis of what is not NaN; NaN where nothing is left."""
    held = (~np.isnan(values)).sum(0)
    return np.asarray(np.divide(np.nansum(values, axis=0), held, out=np.full(held.shape, np.nan), where=held > 0))


def _aucs(scores: NDArray[np.float32], labels: NDArray[np.uint8], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area under the ROC curve for each row of weights (resamples, n); NaN where a class has none."""
    order = np.argsort(scores, kind="stable")
    ranked, tumor, weights = scores[order], labels[order] == 1, weights[:, order]
    below = np.zeros((len(weights), len(ranked) + 1))
    np.cumsum(weights * ~tumor, axis=1, out=below[:, 1:])  # normal patches with a lower score, and ties
    least, most = (below[:, np.searchsorted(ranked, ranked[tumor], side)] for side in ("left", "right"))
    possible = below[:, -1] * weights[:, tumor].sum(1)
    pairs = ((least + most) / 2 * weights[:, tumor]).sum(1)
    return np.asarray(np.divide(pairs, possible, out=np.full(len(weights), np.nan), where=possible > 0))


def table(
    judged: Mapping[str, Mapping[int, Judged]], patches: Set, *, n: int = 1000, seconds: Mapping[str, float] | None = None
) -> list[str]:
    """Return the lines of a markdown table: each model's figures, and how they differ from those of the first one.

    Figures are means over a model's seeds; a difference is taken over the seeds that both have, over all where they share none.
    Its 95 % interval is over patches, drawn alike for both, and not over trainings.

    Parameters
    ----------
    judged : what models say, by name and seed
    patches : what they judged
    n : number of resamples
    seconds : how long a training took, by name
    """
    times, base = np.array(list(patches.resamples(n))), dict[int, NDArray[np.float64]]()
    titles = ["model", "seeds", *COLUMNS, "ECE over shifts", "worst shift is", "s"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for name, by_seed in judged.items():
        figures = {seed: np.vstack([patches.judge(found), patches.judge(found, times)]) for seed, found in by_seed.items()}
        values = np.mean([found[0] for found in figures.values()], axis=0)
        cells = ["" if np.isnan(value) else f"{value:.4f}" for value in values]
        if base:
            shared = set(base) & set(figures)
            ours, its = (np.mean([of[seed] for seed in of if seed in shared or not shared], axis=0) for of in (figures, base))
            cells = [f"{cell}{told}" for cell, told in zip(cells, _differences(ours - its), strict=True)]
        base, took = base or figures, (seconds or {}).get(name)
        ece = np.mean([float(found.ece) for found in by_seed.values()])
        cells += [f"{ece:.4f}", _worst_shift(list(by_seed.values()), patches.labels), "" if took is None else f"{took:.0f}"]
        lines.append(f"| {name} | {len(by_seed)} | {' | '.join(cells)} |")
    return lines


def _worst_shift(judged: Sequence[Judged], labels: NDArray[np.uint8]) -> str:
    """Return the name of the shift with the lowest AUC, as a mean over seeds."""
    aucs = np.mean([[auc_of(row, labels) for row in found.shown[1:]] for found in judged], axis=0)
    return SHIFTS[int(np.argmin(aucs))].name


def _differences(found: NDArray[np.float64]) -> list[str]:
    """Return each column's difference (first row) and its interval (the other rows) in words; nothing where there is none."""
    told = []
    for value, draws in zip(found[0], found[1:].T, strict=True):
        low, high = (np.nan, np.nan) if np.isnan(draws).all() else np.nanpercentile(draws, (2.5, 97.5))
        told.append("" if np.isnan([value, low]).any() else f", {value:+.4f} ({low:+.4f} to {high:+.4f})")
    return told
