"""How well a cohort's scores and lesions agree with the labels and annotations that its manifest names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_meta.annotations.camelyon_slides import EXCLUDED, Exclusion, loose, read_excluded
from wsi_meta.annotations.class_names import DEFAULT_NAMES
from wsi_meta.annotations.detections import Detections
from wsi_meta.annotations.outline_files import OUTLINE_ENDINGS, read_drawn
from wsi_meta.annotations.tables import LABELS, label_of
from wsi_meta.annotations.truth import sort_truth
from wsi_meta.challenges.cohort import match_slide
from wsi_meta.challenges.froc import FALSE_POSITIVES, FrocCurve, SlideHits, froc_curve, froc_interval
from wsi_meta.errors import HeatmapError, WsiMetaError
from wsi_meta.evaluation.roc import delong
from wsi_meta.files.address import from_file_uri, name_in
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.words import counted, one_line, some_of
from wsi_meta.worklist.table import Row

__all__ = ["CohortAgreement", "CohortAuc", "CohortFroc", "judge_rows", "why_not_comparable"]


@dataclass(frozen=True)
class CohortAuc:
    """How well a score separates slides that are labelled tumor from those labelled normal."""

    score: str
    """Which one: a column of the summary."""
    auc: float
    interval: tuple[float, float] | None
    """95 %, by DeLong; None where a class has one slide, or the AUC is 0 or 1."""
    tumor: int
    normal: int


@dataclass(frozen=True, eq=False)
class CohortFroc:
    """How the lesions that were found agree with the annotations, by Camelyon16's rules."""

    curve: FrocCurve
    interval: tuple[float, float] | None
    """95 %, bootstrap over slides; None where fewer than two have lesions, or all resamples agree."""
    slides: int
    lesions: int
    isolated: int
    """Isolated tumor cells, which count neither way."""

    @property
    def at(self) -> dict[float, float]:
        """Sensitivity by false positives a slide."""
        return dict(zip(FALSE_POSITIVES, self.curve.at.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class CohortAgreement:
    """What labels and annotations say."""

    aucs: tuple[CohortAuc, ...]
    froc: CohortFroc | None
    notes: tuple[str, ...]
    """What was left out, in sentences."""


def judge_rows(folder: Path, rows: Sequence[Row], names: Sequence[str], *, lesions: bool) -> CohortAgreement | None:
    """Compare rows of a summary with their own labels and annotations; None where they have none.

    Labels are those of :func:`wsi_meta.fit_score`. Slides of Camelyon16 that are known to be wrong are left out, as
    :func:`wsi_meta.froc` does. The lesions are those in the stores: found by the model's thresholds.

    Parameters
    ----------
    folder : of the stores
    rows : of its summary
    names : the slide's name of each row
    lesions : whether to compare lesions, too, for which annotations and stores are read
    """
    if not any(row["label"] or row["annotations"] for row in rows):
        return None
    excluded = read_excluded(EXCLUDED)
    notes = _unknown_labels(rows)
    if known := [name for name, row in zip(names, rows, strict=True) if _left_out(excluded, name, "slides") and row["label"]]:
        notes.append(f"Left out, as they are known to be labelled wrongly: {', '.join(known)}.")
    counted = [row for name, row in zip(names, rows, strict=True) if not _left_out(excluded, name, "slides")]
    fitted = [row for row in counted if row["fitted_score"] is not None]
    if why := why_not_comparable(fitted):
        notes.append(f"There is no AUC of the fitted score: {why}.")
    aucs = tuple(filter(None, (_auc(counted, "score"), None if why else _auc(fitted, "fitted_score"))))
    partly = [row for row in counted if row["score"] is not None and not row["complete"]]
    if part := sum(is_tumor(row["label"]) is not None or bool(row["annotations"]) for row in partly):
        notes.append(f"Slides that were not wholly read, whose score is of what was read: {part}.")
    froc = None
    if any(row["annotations"] for row in rows):
        if lesions:
            judged = [(n, r) for n, r in zip(names, rows, strict=True) if not _left_out(excluded, n, "lesions")]
            froc = _froc(folder, judged, notes)
        else:
            notes.append("The FROC curve of the lesions is computed when the run has ended.")
    return CohortAgreement(aucs, froc, tuple(notes))


def why_not_comparable(fitted: Sequence[Row]) -> str | None:
    """Return why the fitted scores of rows cannot be compared; None where they can."""
    models = {row["score_model"] for row in fitted}
    if None in models:
        return "of some, the table does not say by which score model; wsi-meta summary makes it anew"
    return f"they are of {len(models)} score models" if len(models) > 1 else None


def is_tumor(label: str | None) -> bool | None:
    """Return what a label means; None where it is empty or no word for it is known."""
    return label_of(label or "")


def _left_out(excluded: dict[str, Exclusion], name: str, task: str) -> bool:
    exclusion = excluded.get(loose(name))
    return exclusion is not None and exclusion.task in (task, "both")


def _unknown_labels(rows: Sequence[Row]) -> list[str]:
    """Return a sentence on labels that say neither tumor nor normal, and one on labelled slides without a score."""
    notes = []
    if unknown := sorted({str(row["label"]) for row in rows if row["label"] and is_tumor(row["label"]) is None}):
        told = some_of([f"'{label}'" for label in unknown])
        notes.append(f"Labels that are not counted: {told}; known are {', '.join(LABELS)}.")
    if without := sum(is_tumor(row["label"]) is not None and row["score"] is None for row in rows):
        notes.append(f"Labelled slides without a score, which count nowhere: {without}.")
    return notes


def _auc(rows: Sequence[Row], score: str) -> CohortAuc | None:
    """Return the AUC of a score; None where a class has no slide with that score."""
    known = [(row[score], truth) for row in rows if row[score] is not None and (truth := is_tumor(row["label"])) is not None]
    labels = np.array([truth for _, truth in known], bool)
    if labels.all() or not labels.any():
        return None
    auc, interval = delong(np.array([value for value, _ in known], np.float64), labels)
    return CohortAuc(score, auc, interval, int(labels.sum()), int((~labels).sum()))


def _froc(folder: Path, slides: Sequence[tuple[str, Row]], notes: list[str]) -> CohortFroc | None:
    """Return the FROC curve of the slides that are annotated or labelled normal; None where no lesion counts."""
    hits, failures = [], []
    for name, row in slides:
        if row["score"] is None or not (row["annotations"] or is_tumor(row["label"]) is False):
            continue
        try:
            hits.append(_hits(folder, name, row))
        except (WsiMetaError, OSError) as error:
            failures.append(one_line(error))
    if failures:
        notes.append(f"{counted(len(failures), 'slide')} could not be compared with annotations, the first: {failures[0]}.")
    lesions = sum(slide.lesions for slide in hits)
    if not lesions:
        notes.append("There is no FROC curve: no annotated lesion counts.")
        return None
    isolated = sum(slide.isolated for slide in hits)
    return CohortFroc(froc_curve(hits, hits=np.float32), froc_interval(hits), len(hits), lesions, isolated)


def _hits(folder: Path, name: str, row: Row) -> SlideHits:
    """Compare a store's lesions with what was drawn on its slide."""
    record = Heatmap.open(folder / name_in(row["heatmap"])).record
    found = (record.lesions or {"found": []})["found"]
    scores, x, y = (np.array([lesion[key] for lesion in found]) for key in ("max_probability", "peak_x", "peak_y"))
    points = Detections(scores.astype(np.float64), x.astype(np.int64), y.astype(np.int64))
    drawn = Path(from_file_uri(row["annotations"])) if row["annotations"] else None
    extent = record.slide.width, record.slide.height
    if drawn is not None and drawn.suffix.lower() in OUTLINE_ENDINGS:
        file, corner = read_drawn(drawn), record.slide.corner
        if file.origin is None and corner is None:
            raise HeatmapError(
                f"{row['heatmap']}: of an early version, which does not say from where QuPath counts; scan again"
            )
        outlines = sort_truth(file, DEFAULT_NAMES, corner or (0, 0))
        return match_slide(name, points, outlines, extent=extent).hits
    return match_slide(name, points, drawn, None, extent=extent).hits
