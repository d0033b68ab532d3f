"""A score model fitted to slides whose label is known; :mod:`wsi_meta.heatmaps.score_model` reads and applies it."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.annotations.camelyon_slides import patient_of
from wsi_meta.annotations.tables import LABELS, NamedRows, label_of, read_table
from wsi_meta.errors import DataError, OutputPathError, require, whole_number
from wsi_meta.files.address import name_in
from wsi_meta.heatmaps.ownership import NO_HEATMAP, stores_in
from wsi_meta.heatmaps.score_model import FEATURES, FORMAT, ScoreModel, how_maps_differ, kind_of_map, map_features
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.checks import check_output, refuse_input
from wsi_meta.outputs.paths import as_path
from wsi_meta.outputs.writing import written_whole
from wsi_meta.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from wsi_meta.heatmaps.record import ScanRecord

__all__ = ["fit_score"]

logger = logging.getLogger(__name__)

STRENGTH = 1.0
"""Inverse strength of the L2 penalty on standardised features (scikit-learn's C)."""
FOLDS = 5
"""Largest number of parts for cross-validation."""


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
        where known, ``patient``; without it CAMELYON17's and TCGA's names tell it. A manifest of scans is one, too,
        and so is ``summary.csv``: ``name`` or ``heatmap`` says what a store is called. Rows without a store are ignored.
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
        when a table or folder is missing or damaged, a store has no label, or a class has fewer than two patients; when maps
        are of several models, modes or strides, or one bears another slide's name. A warning names two of one slide: for the
        cross-validation they are one patient's, unless the table gives that slide two labels.
    HeatmapError, OutputExistsError, OutputPathError, DeviceError
    """
    require("train", "fitting a score")
    scans, labels, out = as_path("scans", scans), as_path("labels", labels), as_path("out", out)
    seed = whole_number("seed", seed, "0 to 4294967295", least=0, most=2**32 - 1)
    if out.suffix.lower() != ".json":
        raise OutputPathError(f"{out}: ending '{out.suffix}'; expected .json for a score model")
    target = check_output(out, overwrite=overwrite)
    refuse_input(target, "the table of labels", labels)
    if not (stores := stores_in(scans, warn=True)):
        raise DataError(f"{scans}: {NO_HEATMAP}")
    table = _read_labels(labels)
    if missing := [store.stem for store in stores if table.get(store.stem) is None]:
        raise DataError(f"{labels}: no label of {len(missing)} scans, first '{missing[0]}'; expected a row for each")
    opened = [Heatmap.open(store) for store in stores]
    records = [heatmap.record for heatmap in opened]
    maps = _common_kind(stores, records)
    truth, patients = _labelled(stores, records, table, labels)
    fewest = min(len(set(patients[truth == label])) for label in (False, True))
    if fewest < 2:
        raise DataError(f"{labels}: {fewest} patients in the smaller class; expected two or more for cross-validation")
    features = []
    with progress_bar(len(stores), "heatmaps", "reading", enabled=progress) as bar:
        for heatmap in opened:
            features.append(map_features(open_sound(heatmap)))
            bar.update(1)
    values = np.array([[row[name] for name in FEATURES] for row in features], np.float64)
    validation = _validate(values, truth, patients, min(FOLDS, fewest), seed)
    model = replace(_fit(values, truth, validation), maps=maps)
    with written_whole(target, overwrite=overwrite) as partial:
        partial.write_text(json.dumps({"format": FORMAT, **asdict(model)}, indent=1) + "\n")
    return model


def _common_kind(stores: Sequence[Path], records: Sequence[ScanRecord]) -> dict[str, Any]:
    """Return of which kind all maps are; DataError where they are of several."""
    first, *others = (kind_of_map(record.identity) for record in records)
    for store, kind in zip(stores[1:], others, strict=True):
        if told := how_maps_differ(first, kind):
            raise DataError(f"{stores[0]} and {store}: maps of two kinds: {told}; expected one; keep them in two folders")
    return first


def _labelled(
    stores: Sequence[Path], records: Sequence[ScanRecord], table: NamedRows[tuple[bool, str]], labels: str | Path
) -> tuple[NDArray[np.bool_], NDArray[np.str_]]:
    """Return label and patient of each map; maps of a slide with one label have one patient, so that none is judged by another.

    DataError where a map bears another slide's name.
    """
    known, first = [row for store in stores if (row := _row_of(table, store.stem))], dict[str, int]()
    patients = [patient for _, patient in known]
    told = {(record.identity.slide, label) for record, (label, _) in zip(records, known, strict=True)}
    contradictory = {slide for slide, label in told if (slide, not label) in told}
    for place, (store, record) in enumerate(zip(stores, records, strict=True)):
        name, file = record.slide.name, record.slide.file
        # a manifest may name a store otherwise than its slide, but not after another one
        if table.get(name) is not table.get(store.stem) and _row_of(table, name) not in (None, known[place]):
            other = f"of which {labels} has another label or patient"
            raise DataError(f"{store}: the map of slide {name}, {other}; rename the store as its slide, or mend the table")
        if (earlier := first.setdefault(record.identity.slide, place)) == place:
            continue
        both = f"{stores[earlier]} and {store}: maps of one slide, {file}"
        if record.identity.slide in contradictory:
            logger.warning("%s, which %s calls tumor and normal; one is wrong: mend it, or move that map away", both, labels)
            continue
        logger.warning("%s; it counts twice; move one away", both)
        same = {patients[place]: patients[earlier]}
        patients = [same.get(patient, patient) for patient in patients]
    return np.array([label for label, _ in known]), np.array(patients)


def _row_of(table: NamedRows[tuple[bool, str]], name: str) -> tuple[bool, str] | None:
    """Return label and patient of a slide; None where the table has no row of it."""
    row = table.get(name)
    return None if row is None else (row[0], row[1] or patient_of(name))


def _read_labels(path: Path) -> NamedRows[tuple[bool, str]]:
    """Return label and patient by slide; the patient is empty where the table does not say."""
    rows = read_table(path, ("slide", "label"), "labels", optional=("patient", "name", "heatmap"))
    for row in rows:
        if label_of(row[1]) is None:
            raise DataError(f"{path}: label '{row[1]}' of '{row[0]}', line {row.line}; expected one of {', '.join(LABELS)}")
    given = [name or Path(name_in(heatmap)).stem for *_, name, heatmap in rows]
    return NamedRows(path, [(row[0], row.line, (bool(label_of(row[1])), row[2])) for row in rows], given=given)


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
