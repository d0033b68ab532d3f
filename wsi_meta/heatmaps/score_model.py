"""The fitted score of a slide: a logistic regression on a few interpretable features of its map, kept in a JSON file."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_meta.errors import DataError, HeatmapError
from wsi_meta.heatmaps.lesions import default_threshold, lesions_at, warn_if_unfinished
from wsi_meta.heatmaps.record import ScanIdentity
from wsi_meta.heatmaps.regions import SIZE_CLASSES
from wsi_meta.heatmaps.scoring import PieceScore, mean_of_highest, score_pieces
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.paths import as_path
from wsi_meta.quality.verdict import Verdict
from wsi_meta.words import first_line, from_json

__all__ = [
    "FEATURES",
    "ScoreFile",
    "ScoreModel",
    "SlideScore",
    "fitted_score",
    "how_maps_differ",
    "kind_of_map",
    "load_score_model",
    "map_features",
    "score_heatmap",
    "score_model_for",
]

FEATURES = {
    "score": "mean of the ten highest cells after 3x3 averaging",
    "log_diameter": "log(1 + longest diameter of a lesion, mm)",
    "log_area": "log(1 + area of all lesions, mm2)",
    "log_metastases": "log(1 + lesions over 0.2 mm)",
    "surest_mean": "mean probability of the lesion where that is highest; 0 without",
    "share": "share of scanned cells at or over the threshold",
}
"""What a score model uses, in order."""
FORMAT = "wsi-meta slide score 1"
LARGEST = 1e30
"""Numbers of a score model are smaller, and scales larger than one over it: within these limits a score stays a number."""


@dataclass(frozen=True)
class SlideScore:
    """A slide's scores, and the features of its map."""

    slide: str
    score: float
    """The default score, 0 to 1; see :func:`wsi_meta.score_slide`."""
    fitted_score: float | None
    """Probability of tumor by a score model; None where none was given."""
    complete: bool
    """Whether all tissue was scanned."""
    verdict: Verdict | None
    """What may be wrong with the slide; None in older stores."""
    features: dict[str, float]
    """By the names of :data:`FEATURES`."""
    pieces: tuple[PieceScore, ...]
    """Results of each piece of tissue, from the left; see :func:`wsi_meta.heatmaps.scoring.score_pieces`."""


@dataclass(frozen=True)
class ScoreModel:
    """A logistic regression on standardised features."""

    mean: dict[str, float]
    """Of each feature over the slides it was fitted on."""
    scale: dict[str, float]
    """Standard deviation of each."""
    coefficients: dict[str, float]
    """Of each standardised feature, so that they compare."""
    intercept: float
    validation: dict[str, float]
    """AUC of slides scored by models that were fitted on other patients, AUC of the default score on them, and counts."""
    maps: dict[str, Any] | None = None
    """What its maps have in common, as :func:`kind_of_map` says it; None in older files: nothing is compared."""

    def probability(self, features: dict[str, float]) -> float:
        """Return the probability of tumor."""
        logit = self.intercept + sum(
            self.coefficients[name] * (features[name] - self.mean[name]) / self.scale[name] for name in FEATURES
        )
        return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


@dataclass(frozen=True)
class ScoreFile:
    """A score model, and the file that it was read from once: that may be replaced or moved afterwards."""

    name: str
    sha256: str
    model: ScoreModel


def score_heatmap(heatmap: str | Path | Heatmap, *, score_model: str | Path | None = None) -> SlideScore:
    """Score a slide from its heatmap.

    Parameters
    ----------
    heatmap : store, or path of one
    score_model : file from :func:`wsi_meta.fit_score`, for the fitted score beside the default one

    Returns
    -------
    The default score, the fitted one where `score_model` is given, the verdict, and the same of each piece of tissue.

    Raises
    ------
    HeatmapError
        when there is no heatmap, or nothing was scanned.
    DataError
        when `score_model` is not such a file, or was fitted to maps of another model, mode or stride.
    """
    heatmap = heatmap if isinstance(heatmap, Heatmap) else Heatmap.open(heatmap)
    kind, of = kind_of_map(heatmap.record.identity), str(heatmap.path)
    loaded = None if score_model is None else score_model_for(score_model, kind, of)
    heatmap = open_sound(heatmap)
    features = map_features(heatmap)
    fitted = None if loaded is None else loaded.model.probability(features)
    record, pieces = heatmap.record, score_pieces(heatmap)
    return SlideScore(record.slide.name, features["score"], fitted, heatmap.finished, record.verdict, features, pieces)


def fitted_score(heatmap: Heatmap, score_file: ScoreFile) -> dict[str, Any]:
    """Return what a store keeps of a fitted score.

    Parameters
    ----------
    score_file : from :func:`score_model_for`

    Returns
    -------
    dict of plain JSON values: ``score`` (None where nothing was scanned), and the score model's ``file`` name and ``sha256``.
    """
    features = _features(heatmap)
    score = None if features is None else score_file.model.probability(features)
    return {"score": score, "file": score_file.name, "sha256": score_file.sha256}


def map_features(heatmap: Heatmap) -> dict[str, float]:
    """Return the :data:`FEATURES` of a heatmap, lesions by the defaults of :func:`wsi_meta.find_lesions`.

    Raises
    ------
    HeatmapError
        when nothing was scanned.
    """
    if (features := _features(heatmap)) is None:
        raise HeatmapError(
            f"{heatmap.path}: no cell was scanned, so there is no score; look at the slide, or scan it to the end"
        )
    return features


def kind_of_map(identity: ScanIdentity) -> dict[str, Any]:
    """Return what the maps of one score have in common: the model file, which says the mpp, the mode and the stride.

    Precision and device change features less than slides do, so that maps may differ in them.
    """
    return {"model": identity.model, "mode": identity.mode, "stride_px": identity.grid.stride_px}


def how_maps_differ(here: dict[str, Any], there: dict[str, Any]) -> str:
    """Return in words in what two kinds of maps differ, a model file by the first letters of its hash; empty if in nothing."""
    names = (name for name in here if here[name] != there.get(name))
    return ", ".join(f"{name} {str(here[name])[:12]} and {str(there.get(name))[:12]}" for name in names)


def score_model_for(path: str | Path, kind: dict[str, Any], of: str) -> ScoreFile:
    """Read a file from :func:`wsi_meta.fit_score` that is to score maps of a kind.

    Parameters
    ----------
    kind : of the maps, as :func:`kind_of_map` says it
    of : whose kind it is, in words

    Raises
    ------
    DataError
        when it is not such a file, or was fitted to maps of another kind.
    """
    read = load_score_model(path)
    if read.model.maps is not None and (told := how_maps_differ(read.model.maps, kind)):
        raise DataError(
            f"{path}: fitted to other maps than {of}: {told}; fit a score to maps of this kind (wsi-meta fit-score)"
        )
    return read


def load_score_model(path: str | Path) -> ScoreFile:
    """Read a file from :func:`wsi_meta.fit_score`; DataError when it is not one."""
    path = as_path("score model", path)
    try:
        content = from_json((written := path.read_bytes()).decode())
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        model = ScoreModel(**content)
        mean, scale, weights = ([part[name] for name in FEATURES] for part in (model.mean, model.scale, model.coefficients))
        numbers = [*mean, *scale, *weights, model.intercept]
        if not isinstance(model.maps, dict | None):
            raise TypeError("maps of no kind")
        if not all(type(number) in (int, float) and abs(number) <= LARGEST for number in numbers) or min(scale) < 1 / LARGEST:
            raise ValueError("impossible numbers")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected a score model from 'wsi-meta fit-score'") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{path}: not a score model ({told}); expected a file from 'wsi-meta fit-score'") from error
    return ScoreFile(path.name, hashlib.sha256(written).hexdigest(), model)


def _features(heatmap: Heatmap) -> dict[str, float] | None:
    """Return the features of a heatmap; None where nothing was scanned."""
    probability = heatmap.probability
    if (score := mean_of_highest(probability)) is None:
        return None
    warn_if_unfinished(heatmap)
    (lesions, _), scanned = lesions_at(heatmap.record, probability, heatmap.status), probability[np.isfinite(probability)]
    micro = dict(SIZE_CLASSES)["micrometastasis"]
    return {
        "score": score,
        "log_diameter": math.log1p(max((lesion.diameter_mm for lesion in lesions), default=0.0)),
        "log_area": math.log1p(sum(lesion.area_mm2 for lesion in lesions)),
        "log_metastases": math.log1p(sum(lesion.diameter_mm > micro for lesion in lesions)),
        "surest_mean": max((lesion.mean_probability for lesion in lesions), default=0.0),
        "share": float((scanned >= default_threshold(heatmap)).mean()),
    }
