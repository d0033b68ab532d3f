"""Camelyon16's two scores of a folder of detections: FROC for lesions, the area under the ROC curve for slides."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsi_meta.annotations.camelyon_slides import EXCLUDED, Exclusion, loose, read_excluded
from wsi_meta.annotations.class_names import ClassNames
from wsi_meta.challenges.cohort import Cohort, JudgedSlide, Reading, Scores, judge_slides, read_scores
from wsi_meta.challenges.froc import FALSE_POSITIVES, SlideHits, froc_curve, froc_interval, script_curve
from wsi_meta.challenges.froc_figure import draw_froc
from wsi_meta.challenges.results import FrocResult, SlideAuc
from wsi_meta.errors import DataError, OutputPathError, truth, whole_number
from wsi_meta.evaluation.metrics import bootstrap_intervals
from wsi_meta.evaluation.roc import delong, roc_points
from wsi_meta.outputs.checks import check_folder, check_output, refuse_input
from wsi_meta.outputs.paths import as_path
from wsi_meta.outputs.writing import write_together
from wsi_meta.words import counted, some_of

__all__ = ["FILES", "froc"]

logger = logging.getLogger(__name__)

FILES = ("froc.json", "froc.csv", "froc.png")
"""What is written: all figures; the curve; its picture."""


def froc(
    detections: str | Path,
    truth: str | Path,
    *,
    out: str | Path | None = None,
    exclude: str | Path | None = "camelyon16",
    scores: str | Path | None = None,
    mask_level: int = 0,
    tumor: Sequence[str] = (),
    exclude_class: Sequence[str] = (),
    slides: str | Path | None = None,
    corrections: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> FrocResult:
    """Judge detections by Camelyon16's rules; see :mod:`wsi_meta.challenges.froc` for the protocol.

    Each CSV file in `detections` is a slide. Its truth is the file of the same name in `truth` (case and an ending ``_mask``
    do not matter); a slide without one is normal. Outlines do not say how large the slide is, so any detection beyond them
    counts as on background. Intervals come from 1,000 resamples of the slides, which are always the same.

    Parameters
    ----------
    detections : folder of ``<slide>.csv`` with lines ``probability,x,y``, level-0 pixels; an empty file for none
    truth : folder of ``<slide>.xml``, ``.annotations``, ``.json``, ``.geojson`` (outlines), ``.tif`` or ``.tiff`` (mask)
    out : folder for :data:`FILES`, made if it does not exist
    exclude : slides to leave out: a CSV with columns ``slide``, ``task`` (lesions, slides or both) and ``reason``;
        ``camelyon16``, the slides of Camelyon16 that are known to be wrong; or ``none`` (or None)
    scores : CSV with columns ``slide`` and ``score``, such as ``summary.csv`` of a scan; None takes each slide's highest
        detection, 0 without any. Where it has a column ``complete``, slides that were not wholly read are told
    mask_level : level of the slide that the first image of each mask TIFF is as large as; 0 is the slide itself. With `slides`
        each mask is compared with its slide; else those of implausibly small slides are told
    tumor, exclude_class : classes of outlines that are tumor, or removed from it; see :func:`wsi_meta.read_annotations`
    slides : folder of the slides, or of their heatmaps ``<slide>.zarr``. QuPath counts from the corner of
        :attr:`wsi_meta.Slide.bounds`, which is added to its GeoJSON; None takes GeoJSON as level-0 pixels, with a warning,
        unless the file says where it counts from, as what `wsi-meta lesions` writes does. Slides whose heatmap is not complete,
        or knows no cell, are told
    corrections : folder of ``<slide>.corrections.geojson``, which `wsi-meta view` writes beside heatmaps: missed lesions are
        added to the truth, and what is marked as false is taken off it
    overwrite : replace those files in `out`
    progress : show a bar on stderr

    Returns
    -------
    FROC curve and score, the AUC of the slides, their intervals, and what was left out.

    Raises
    ------
    DataError
        when a folder or file is missing or damaged, or files contradict each other: a truth without detections, detections
        outside a mask, a mask that does not fit its slide, outlines that enclose nothing on it, a slide without a score.
    OutputExistsError, OutputPathError
    """
    target = _check_out(as_path("out", out), overwrite=overwrite) if out is not None else None
    if target is not None:
        refuse_input(target, "what is judged", detections, truth)  # whose files it would be the next time
        for name in FILES:
            refuse_input(target / name, "what is judged", exclude, scores)
    left_out, table = _left_out(exclude), None if scores is None else read_scores(scores)
    names = ClassNames.parse(tumor, exclude_class)
    reading = Reading(
        whole_number("mask_level", mask_level, "0 or more", least=0),
        names,
        None if slides is None else as_path("slides", slides),
        None if corrections is None else as_path("corrections", corrections),
    )
    judged, truth = as_path("detections", detections), as_path("truth", truth)
    cohort = judge_slides(judged, truth, excluded=left_out, reading=reading, progress=progress)
    strange = sorted(left_out.keys() - {loose(name) for name in cohort.excluded})
    if strange and exclude != "camelyon16":
        logger.warning("%s: names no slide that is here: %s; expected their names as in the folders", exclude, some_of(strange))
    hits = [slide.hits for slide in cohort.of("lesions")]
    if not hits:
        raise DataError(f"{detections}: every slide is left out; expected others, or --exclude none")
    curve, lesions = script_curve(hits), _count_lesions(hits)
    result = FrocResult(
        curve=curve,
        score=curve.score if lesions else None,
        float64_score=_tell_float64(curve.score, froc_curve(hits).score) if lesions else None,
        interval=froc_interval(hits),
        sensitivity=dict(zip(map(str, FALSE_POSITIVES), curve.at.tolist(), strict=True)) if lesions else {},
        slides=len(hits),
        lesions=lesions,
        isolated=sum(slide.isolated for slide in hits),
        slide_auc=_slide_auc(cohort.of("slides"), table, scores),
        excluded={name: f"{exclusion.task}: {exclusion.reason}" for name, exclusion in cohort.excluded.items()},
        incomplete=_tell_incomplete(cohort, table),
    )
    if target is not None:
        _write(target, result)
    return result


def _count_lesions(hits: Sequence[SlideHits]) -> int:
    """Return how many lesions count; a warning says why there is no score where none does."""
    lesions, isolated = sum(slide.lesions for slide in hits), sum(slide.isolated for slide in hits)
    if not lesions:
        logger.warning("no lesion counts (%s of isolated tumor cells): no score", counted(isolated, "group", "groups"))
    return lesions


def _tell_float64(score: float, in_float64: float) -> float:
    """Return the score in float64; a warning says both where they differ."""
    if abs(score - in_float64) > 1e-12:
        told = (
            "hits and false positives share scores: score %.4f with hits in float32, as the organisers' script; %.4f in float64"
        )
        logger.warning(told, score, in_float64)
    return in_float64


def _tell_incomplete(cohort: Cohort, table: Scores | None) -> dict[str, str]:
    """Return why slides were not wholly read, by their heatmaps or the table of scores; a warning names them."""
    known = {} if table is None else {slide.name: table.get(slide.name) for slide in cohort.slides}
    told = {name: row[1] for name, row in known.items() if row is not None and row[1] is not None} | cohort.incomplete
    if told:
        named = some_of([f"{name} ({why})" for name, why in sorted(told.items())])
        logger.warning("%d slides were not wholly read; their score is of what was read: %s", len(told), named)
    return dict(sorted(told.items()))


def _slide_auc(slides: Sequence[JudgedSlide], table: Scores | None, path: str | Path | None) -> SlideAuc | None:
    """Return the AUC of the slides' scores: from the table, which was read from `path`, else each slide's highest detection."""
    scores = {slide.name: slide.highest for slide in slides}
    if table is not None:
        known = {name: table.get(name) or (None, None) for name in scores}
        scores = {name: score for name, (score, _) in known.items() if score is not None}
        if missing := sorted(known.keys() - scores.keys()):
            why = f" ({reason})" if (reason := known[missing[0]][1]) else ""
            raise DataError(f"{path}: no score of {len(missing)} slides, first '{missing[0]}'{why}; expected one for each")
    labels = np.array([slide.tumor for slide in slides], bool)
    values = np.array(list(scores.values()), np.float64)
    if labels.all() or not labels.any():
        told = "%d of %d slides have tumor: no AUC, which compares slides with tumor and without"
        logger.warning(told, labels.sum(), len(labels))
        return None
    auc, interval = delong(values, labels)
    return SlideAuc(
        auc=auc,
        delong=interval,
        bootstrap=bootstrap_intervals(values, labels.astype(np.int64)).get("auc"),
        tumor=int(labels.sum()),
        normal=int((~labels).sum()),
        roc=tuple(roc_points(values, labels.astype(np.int64))),
    )


def _left_out(exclude: str | Path | None) -> dict[str, Exclusion]:
    """Return what a table names, or what the words ``camelyon16`` and ``none`` stand for."""
    if exclude is None or exclude == "none":
        return {}
    return read_excluded(EXCLUDED if exclude == "camelyon16" else as_path("exclude", exclude))


def _check_out(folder: Path, *, overwrite: bool) -> Path:
    """Make sure that the files can be written. The folder itself is made only when there is something to write."""
    overwrite = truth("overwrite", overwrite)
    if folder.is_dir():
        for name in FILES:
            check_output(folder / name, overwrite=overwrite)
    elif folder.exists():
        raise OutputPathError(f"{folder}: a file; expected a folder for {', '.join(FILES)}")
    else:
        check_folder(folder, temporary=False)
    return folder


def _write(folder: Path, result: FrocResult) -> None:
    curve, table = result.curve, io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["threshold", "false_positives_per_slide", "sensitivity"])
    writer.writerows(
        zip(*(part.tolist() for part in (curve.thresholds, curve.false_positives, curve.sensitivity)), strict=True)
    )
    figures = json.dumps(result.to_dict(), indent=1) + "\n"
    contents = (figures.encode(), table.getvalue().encode(), draw_froc(result))
    write_together(folder, dict(zip(FILES, contents, strict=True)))
