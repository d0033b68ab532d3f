"""What a set of patches looks like to the network, in a few numbers, and how unlike them other patches look.

A patch is described by what the network's second stage makes of it, averaged over the patch: the square roots (they are never
negative, and a few are large), averaged over groups of neighbouring channels. Of a set of patches the mean and the covariance
of these numbers are kept in the model file, and of any patch the Mahalanobis distance to them can be told (as Lee et al. 2018,
arXiv 1807.03888, for one class). An early stage, since the late ones learn to overlook other stains, and with them all that is
strange. Groups of channels were better than principal components, which keep what the patches vary in, not what they never
have (docs/benchmarks.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from wsi_meta.errors import DataError, ModelFileError
from wsi_meta.models.weights_file import read_metadata
from wsi_meta.words import first_line, from_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FEATURES_KEY", "MIN_PATCHES", "FeatureStatistics", "describe_features", "read_features"]

FEATURES_KEY = "wsi_meta_features"
"""Where a model file's metadata holds the statistics, as JSON."""
STAGE = "layer2"
"""Stage of a ResNet whose output describes a patch; it has a stride of 8 px."""
GROUPS = 64
"""Numbers that describe a patch."""
USUAL = 0.99
"""Share of patches like those described whose unlikeness is at most 1."""
SMALLEST_USUAL = 1e-6
"""So that patches that are all the same can be told from others."""
LEAST_SHARE = 1e-6
"""Of the mean variance: added to each, so that no direction has none."""
FOLDS = 5
MIN_PATCHES = 200
"""Fewer patches do not tell what is usual."""


def describe_features(pooled: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return the numbers that describe patches.

    Parameters
    ----------
    pooled : (..., channels), the mean over a patch of the output of :data:`STAGE`, at least 0; `channels` a multiple of 64

    Returns
    -------
    float32 array (..., 64).
    """
    groups = np.sqrt(np.maximum(pooled, 0, dtype=np.float32)).reshape(*pooled.shape[:-1], GROUPS, -1)
    return np.asarray(groups.mean(-1), np.float32)


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What the described patches of a set are like."""

    mean: NDArray[np.float64]
    """(64,)"""
    covariance: NDArray[np.float64]
    """(64, 64), shrunk (Ledoit and Wolf 2004)."""
    usual: float
    """Mahalanobis distance that 99 % of such patches stay under; each fifth was judged by the others."""
    patches: int
    """How many there were."""

    @classmethod
    def of(cls, described: NDArray[np.float32]) -> Self:
        """Return the statistics of patches.

        Parameters
        ----------
        described : (n, 64), as :func:`describe_features` returns it, in random order

        Raises
        ------
        DataError
            when there are fewer than 200.
        """
        if len(described) < MIN_PATCHES:
            raise DataError(f"{len(described)} patches; expected at least {MIN_PATCHES} to tell what is usual; add some")
        fold = np.arange(len(described)) % FOLDS
        distances = [_distances(described[fold == n], *_fit(described[fold != n])) for n in range(FOLDS)]
        usual = max(float(np.quantile(np.concatenate(distances), USUAL)), SMALLEST_USUAL)
        return cls(*_fit(described), usual, len(described))

    def unlikeness(self, described: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return how unlike the set patches are: their Mahalanobis distance in units of the usual one, so over 1 is unlike.

        Parameters
        ----------
        described : (..., 64), as :func:`describe_features` returns it
        """
        return np.asarray(_distances(described, self.mean, self.covariance) / self.usual, np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: of the covariance, the rows of its lower triangle."""
        covariance = [[float(f"{value:.9g}") for value in row[: place + 1]] for place, row in enumerate(self.covariance)]
        mean = [float(f"{value:.9g}") for value in self.mean]
        return {"stage": STAGE, "patches": self.patches, "usual": self.usual, "mean": mean, "covariance": covariance}

    @classmethod
    def from_dict(cls, parts: dict[str, Any]) -> Self:
        """Make the statistics from :meth:`to_dict`'s parts; KeyError, TypeError or ValueError when they cannot be such."""
        mean, lower = np.array(parts["mean"], np.float64), np.zeros((GROUPS, GROUPS))
        for place, row in enumerate(parts["covariance"]):
            lower[place, : place + 1] = row
        covariance = np.tril(lower, -1).T + lower
        usual, patches = float(parts["usual"]), int(parts["patches"])
        if mean.shape != (GROUPS,) or not np.isfinite([*mean, *covariance.flat]).all() or not 0 < usual < np.inf:
            raise ValueError(f"expected {GROUPS} means, their covariance and a positive distance")
        np.linalg.cholesky(covariance)  # LinAlgError is a ValueError
        return cls(mean, covariance, usual, patches)


def read_features(path: str | Path) -> FeatureStatistics | None:
    """Read what the patches were like that a model file was fitted to; None where it does not say, or by another stage.

    Raises
    ------
    ModelFileError
        when the file cannot be read, or what it says cannot be.
    """
    stored = read_metadata(Path(path)).get(FEATURES_KEY)
    if stored is None:
        return None
    try:
        parts = from_json(stored)
        found = FeatureStatistics.from_dict(parts)  # of any stage: damage is told
        return found if parts.get("stage") == STAGE else None  # version 0.1.0 named none
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        told = f"its feature statistics are wrong ({first_line(error)}); calibrate it again, or download it again"
        raise ModelFileError(f"{path}: {told}") from error


def _fit(described: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and shrunk covariance."""
    from sklearn.covariance import ledoit_wolf

    values = described.astype(np.float64)
    covariance: NDArray[np.float64] = ledoit_wolf(values)[0]
    least = np.trace(covariance) / GROUPS * LEAST_SHARE + np.finfo(np.float32).tiny  # patches that are all the same
    return values.mean(0), covariance + least * np.eye(GROUPS)


def _distances(
    described: NDArray[np.float32], mean: NDArray[np.float64], covariance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return Mahalanobis distances (...) of (..., 64)."""
    off = np.linalg.solve(np.linalg.cholesky(covariance), (described - mean).reshape(-1, GROUPS).T)
    return np.asarray(np.linalg.norm(off, axis=0).reshape(described.shape[:-1]))
