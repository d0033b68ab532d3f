"""The fitted score of a slide: a logistic regression on a few interpretable features of its map, kept in a JSON file."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.annotations.camelyon_slides import patient_of
from wsi_meta.annotations.tables import LABELS, NamedRows, label_of, read_table
from wsi_meta.errors import DataError, HeatmapError, OutputPathError, first_line, require
from wsi_meta.heatmaps.lesions import default_lesions, default_threshold
from wsi_meta.heatmaps.ownership import stores_in
from wsi_meta.heatmaps.regions import SIZE_CLASSES
from wsi_meta.heatmaps.scoring import PieceScore, score_pieces, score_slide
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.checks import check_output, refuse_input
from wsi_meta.outputs.writing import written_whole
from wsi_meta.progress import progress_bar
from wsi_meta.quality.verdict import Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FEATURES",
    "ScoreModel",
    "SlideScore",
    "fit_score",
    "fitted_score",
    "load_score_model",
    "map_features",
    "score_heatmap",
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
STRENGTH = 1.0
"""Inverse strength of the L2 penalty on standardised features (scikit-learn's C)."""
LARGEST = 1e30
"""Numbers of a score model are smaller, and scales larger than one over it: within these limits a score stays a number."""
FOLDS = 5
"""Largest number of parts for cross-validation."""


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

    def probability(self, features: dict[str, float]) -> float:
        """Return the probability of tumor."""
        logit = self.intercept + sum(
            self.coefficients[name] * (features[name] - self.mean[name]) / self.scale[name] for name in FEATURES
        )
        return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def score_heatmap(heatmap: str | Path | Heatmap, *, score_model: str | Path | None = None) -> SlideScore:
    """Score a slide from its heatmap.

    Parameters
    ----------
    heatmap : store, or path of one
    score_model : file from :func:`fit_score`, for the fitted score beside the default one

    Raises
    ------
    HeatmapError
        when there is no heatmap, or nothing was scanned.
    DataError
        when `score_model` is not such a file.
    """
    loaded = None if score_model is None else load_score_model(score_model)
    heatmap = open_sound(heatmap)
    features = map_features(heatmap)
    fitted = None if loaded is None else loaded.probability(features)
    record, pieces = heatmap.record, score_pieces(heatmap)
    return SlideScore(record.slide.name, features["score"], fitted, heatmap.finished, record.verdict, features, pieces)


def fitted_score(heatmap: Heatmap, score_model: str | Path) -> dict[str, Any]:
    """Return what a store keeps of a fitted score.

    Parameters
    ----------
    score_model : file from :func:`fit_score`

    Returns
    -------
    dict of plain JSON values: ``score`` (None where nothing was scanned), and the score model's ``file`` name and ``sha256``.

    Raises
    ------
    DataError
        when `score_model` is not such a file.
    """
    loaded, path = load_score_model(score_model), Path(score_model)
    features = _features(heatmap)
    score = None if features is None else loaded.probability(features)
    return {"score": score, "file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


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


def fit_score(
    scans: str | Path,
    labels: str | Path,
    *,
    out: str | Path,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> ScoreModel:
    """Fit a score model to slides whose label is known: an L2-regularised logistic regression (scikit-learn).

    Parameters
    ----------
    scans : folder of heatmap stores ``<slide>.zarr``, as ``wsi-meta scan`` of several slides makes it
    labels : CSV with columns ``slide`` (name or file, once), ``label`` (tumor or normal, 1 or 0, or CAMELYON17's words) and,
        where known, ``patient``; without it the part of a name before ``_node_`` is the patient. Rows without a store are
        ignored.
    out : JSON file to write; not `labels`
    seed : of the folds
    overwrite : replace `out` if it exists
    progress : show a bar on stderr

    Returns
    -------
    The model fitted on all slides; ``validation`` has the AUC of slides scored by models fitted on other patients.

    Raises
    ------
    DataError
        when a table or folder is missing or damaged, a store has no label, or a class has fewer than two patients.
    HeatmapError, OutputExistsError, OutputPathError, DeviceError
    """
    require("train", "fitting a score")
    if Path(out).suffix.lower() != ".json":
        raise OutputPathError(f"{out}: ending '{Path(out).suffix}'; expected .json for a score model")
    target = check_output(out, overwrite=overwrite)
    refuse_input(target, "the table of labels", labels)
    if not (stores := stores_in(Path(scans))):
        raise DataError(f"{scans}: no heatmap stores; expected a folder of <slide>.zarr from 'wsi-meta scan'")
    table = _read_labels(Path(labels))
    found = {store.stem: table.get(store.stem) for store in stores}
    if missing := [name for name, row in found.items() if row is None]:
        raise DataError(f"{labels}: no label of {len(missing)} scans, first '{missing[0]}'; expected a row for each")
    known = [(row[0], row[1] or patient_of(name)) for name, row in found.items() if row is not None]
    truth, patients = (np.array(part) for part in zip(*known, strict=True))
    fewest = min(len(set(patients[truth == label])) for label in (False, True))
    if fewest < 2:
        raise DataError(f"{labels}: {fewest} patients in the smaller class; expected two or more for cross-validation")
    features = []
    with progress_bar(len(stores), "heatmaps", "reading", enabled=progress) as bar:
        for store in stores:
            features.append(map_features(open_sound(store)))
            bar.update(1)
    values = np.array([[row[name] for name in FEATURES] for row in features], np.float64)
    validation = _validate(values, truth, patients, min(FOLDS, fewest), seed)
    model = _fit(values, truth, validation)
    with written_whole(target) as partial:
        partial.write_text(json.dumps({"format": FORMAT, **asdict(model)}, indent=1) + "\n")
    return model


def load_score_model(path: str | Path) -> ScoreModel:
    """Read a file from :func:`fit_score`; DataError when it is not one."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        model = ScoreModel(**content)
        mean, scale, weights = ([part[name] for name in FEATURES] for part in (model.mean, model.scale, model.coefficients))
        numbers = [*mean, *scale, *weights, model.intercept]
        if not all(type(number) in (int, float) and abs(number) <= LARGEST for number in numbers) or min(scale) < 1 / LARGEST:
            raise ValueError("impossible numbers")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{path}: not a score model ({told}); expected a file from 'wsi-meta fit-score'") from error
    return model


def _features(heatmap: Heatmap) -> dict[str, float] | None:
    """Return the features of a heatmap; None where nothing was scanned."""
    probability = heatmap.probability
    if (score := score_slide(probability)) is None:
        return None
    lesions, scanned = default_lesions(heatmap, probability), probability[np.isfinite(probability)]
    micro = dict(SIZE_CLASSES)["micrometastasis"]
    return {
        "score": score,
        "log_diameter": math.log1p(max((lesion.diameter_mm for lesion in lesions), default=0.0)),
        "log_area": math.log1p(sum(lesion.area_mm2 for lesion in lesions)),
        "log_metastases": math.log1p(sum(lesion.diameter_mm > micro for lesion in lesions)),
        "surest_mean": max((lesion.mean_probability for lesion in lesions), default=0.0),
        "share": float((scanned >= default_threshold(heatmap)).mean()),
    }


def _read_labels(path: Path) -> NamedRows[tuple[bool, str]]:
    """Return label and patient by slide; the patient is empty where the table does not say."""
    rows = read_table(path, ("slide", "label"), "labels", optional=("patient",))
    for row in rows:
        if label_of(row[1]) is None:
            raise DataError(f"{path}: label '{row[1]}' of '{row[0]}', line {row.line}; expected one of {', '.join(LABELS)}")
    return NamedRows(path, [(row[0], row.line, (bool(label_of(row[1])), row[2])) for row in rows])


def _regression() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))


def _fit(values: NDArray[np.float64], truth: NDArray[np.bool_], validation: dict[str, float]) -> ScoreModel:
    scaler, regression = (step for _, step in _regression().fit(values, truth).steps)
    mean, scale, weights = (
        dict(zip(FEATURES, part.tolist(), strict=True)) for part in (scaler.mean_, scaler.scale_, regression.coef_[0])
    )
    return ScoreModel(mean, scale, weights, float(regression.intercept_[0]), validation)


def _validate(
    values: NDArray[np.float64], truth: NDArray[np.bool_], patients: NDArray[np.str_], folds: int, seed: int
) -> dict[str, float]:
    """Score each slide by a model fitted on other patients."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    outside = cross_val_predict(_regression(), values, truth, groups=patients, cv=parts, method="predict_proba")[:, 1]
    return {
        "auc": float(roc_auc_score(truth, outside)),
        "auc_of_default_score": float(roc_auc_score(truth, values[:, 0])),
        "slides": len(truth),
        "tumor": int(truth.sum()),
        "patients": len(set(patients)),
        "folds": folds,
    }
