"""Camelyon16's two scores of a folder of detections: FROC for lesions, the area under the ROC curve for slides."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_meta.annotations.camelyon_slides import EXCLUDED, Exclusion, loose, read_excluded
from wsi_meta.annotations.class_names import ClassNames
from wsi_meta.errors import DataError, OutputPathError, counted, some_of
from wsi_meta.evaluation.cohort import Cohort, JudgedSlide, Reading, Scores, judge_slides, read_scores
from wsi_meta.evaluation.froc import FALSE_POSITIVES, FrocCurve, delong, froc_curve, froc_interval, roc_points, script_curve
from wsi_meta.evaluation.metrics import bootstrap_intervals
from wsi_meta.outputs.checks import check_folder, check_output, refuse_input
from wsi_meta.outputs.writing import written_whole

__all__ = ["FILES", "FrocResult", "SlideAuc", "draw_froc", "froc"]

logger = logging.getLogger(__name__)

LINE, DOTS = "#2b6f99", "#a8386b"
FILES = ("froc.json", "froc.csv", "froc.png")
"""What is written: all figures; the curve; its picture."""


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
    """Judge detections by Camelyon16's rules; see :mod:`wsi_meta.evaluation.froc` for the protocol.

    Each CSV file in `detections` is a slide. Its truth is the file of the same name in `truth` (case and an ending ``_mask``
    do not matter); a slide without one is normal. Outlines do not say how large the slide is, so any detection beyond them
    counts as on background. Intervals come from 1,000 resamples of the slides, which are always the same.

    Parameters
    ----------
    detections : folder of ``<slide>.csv`` with lines ``probability,x,y``, level-0 pixels; an empty file for none
    truth : folder of ``<slide>.xml``, ``.json``, ``.geojson`` (outlines), ``.tif`` or ``.tiff`` (mask)
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

    Raises
    ------
    DataError
        when a folder or file is missing or damaged, or files contradict each other: a truth without detections, detections
        outside a mask, a mask that does not fit its slide, outlines that enclose nothing on it, a slide without a score.
    OutputExistsError, OutputPathError
    """
    target = _check_out(Path(out), overwrite=overwrite) if out is not None else None
    if target is not None:
        refuse_input(target, "what is judged", detections, truth)  # whose files it would be the next time
        for name in FILES:
            refuse_input(target / name, "what is judged", exclude, scores)
    left_out, table = _left_out(exclude), None if scores is None else read_scores(scores)
    names = ClassNames.told(tumor, exclude_class)
    reading = Reading(
        mask_level,
        names,
        None if slides is None else Path(slides),
        None if corrections is None else Path(corrections),
    )
    cohort = judge_slides(Path(detections), Path(truth), excluded=left_out, reading=reading, progress=progress)
    strange = sorted(left_out.keys() - {loose(name) for name in cohort.excluded})
    if strange and exclude != "camelyon16":
        logger.warning("%s: names no slide that is here: %s; expected their names as in the folders", exclude, some_of(strange))
    hits = [slide.hits for slide in cohort.of("lesions")]
    if not hits:
        raise DataError(f"{detections}: every slide is left out; expected others, or --exclude none")
    curve, lesions = script_curve(hits), sum(slide.lesions for slide in hits)
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


def _tell_float64(score: float, in_float64: float) -> float:
    """Return the score in float64; a warning says both where they differ."""
    if abs(score - in_float64) > 1e-12:
        told = (
            "hits and false positives share scores: score %.4f with hits in float32, as the organisers' script; %.4f in float64"
        )
        logger.warning(told, score, in_float64)
    return in_float64


def draw_froc(result: FrocResult, out: Path) -> None:
    """Draw the FROC curve and, where there is one, the ROC curve of the slides beside it; write a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10 if result.slide_auc else 6, 4.2), layout="constrained", dpi=150)
    left, *right = figure.subplots(1, 2, squeeze=False, width_ratios=(3, 2))[0] if result.slide_auc else [figure.add_subplot()]
    _draw_lesions(left, result)
    if result.slide_auc:
        _draw_slides(right[0], result.slide_auc)
    figure.savefig(out, format="png")


def _draw_lesions(axes: Any, result: FrocResult) -> None:
    """Draw the FROC curve, logarithmic from 1/8 to 16, with the six points of the score."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    places = np.geomspace(1 / 8, 16, 500)  # the straight lines between points of the curve are not straight on this scale
    curve = np.interp(places, result.curve.false_positives[::-1], result.curve.sensitivity[::-1])
    axes.plot(places, curve, color=LINE, lw=2)
    axes.plot(FALSE_POSITIVES, result.curve.at, "o", color=DOTS, ms=7, mec="white", clip_on=False, label="make the score")
    axes.set(xscale="log", xlim=(1 / 8, 16), ylim=(0, 1.02), xlabel="false positives per slide", ylabel="lesions found")
    axes.xaxis.set_major_locator(FixedLocator([1 / 8, *FALSE_POSITIVES, 16]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}" if value >= 1 else f"1/{1 / value:g}"))
    axes.grid(color="#e3e5ea")
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", frameon=False)
    axes.set_title(_title(result), loc="left", fontsize=11)


def _draw_slides(axes: Any, slides: SlideAuc) -> None:
    """Draw the ROC curve of the slides and the line of chance."""
    interval = f" (95 %: {slides.delong[0]:.3f} to {slides.delong[1]:.3f})" if slides.delong else ""
    axes.plot((0, 1), (0, 1), color="#9aa0aa", lw=1, ls="--")
    axes.plot(*np.transpose(slides.roc), color=LINE, lw=2)
    axes.set(
        xlim=(-0.01, 1.01), ylim=(0, 1.02), aspect="equal", xlabel="normal slides called tumor", ylabel="tumor slides found"
    )
    axes.grid(color="#e3e5ea")
    axes.set_axisbelow(True)
    axes.set_title(f"Slides, AUC {slides.auc:.3f}{interval}", loc="left", fontsize=11)


def _title(result: FrocResult) -> str:
    score = "no score: no lesions" if result.score is None else f"score {result.score:.3f}"
    interval = f" (95 %: {result.interval[0]:.3f} to {result.interval[1]:.3f})" if result.interval else ""
    return f"FROC, {score}{interval}, {counted(result.lesions, 'lesion')} on {counted(result.slides, 'slide')}"


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
        known = {name: table.get(name) for name in scores}
        if missing := sorted(name for name, row in known.items() if row is None):
            raise DataError(f"{path}: no score of {len(missing)} slides, first '{missing[0]}'; expected a row for each")
        scores = {name: row[0] for name, row in known.items() if row is not None}
    labels = np.array([slide.tumor for slide in slides], bool)
    values = np.array(list(scores.values()), np.float64)
    if labels.all() or not labels.any():
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
    return read_excluded(EXCLUDED if exclude == "camelyon16" else exclude)


def _check_out(folder: Path, *, overwrite: bool) -> Path:
    """Make sure that the files can be written. The folder itself is made only when there is something to write."""
    if folder.is_dir():
        for name in FILES:
            check_output(folder / name, overwrite=overwrite)
    elif folder.exists():
        raise OutputPathError(f"{folder}: a file; expected a folder for {', '.join(FILES)}")
    else:
        check_folder(folder, temporary=False)
    return folder


def _write(folder: Path, result: FrocResult) -> None:
    folder.mkdir(exist_ok=True)
    figures, table, picture = (folder / name for name in FILES)
    with written_whole(figures) as partial:
        partial.write_text(json.dumps(result.to_dict(), indent=1) + "\n")
    with written_whole(table) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["threshold", "false_positives_per_slide", "sensitivity"])
        curve = result.curve
        writer.writerows(
            zip(*(part.tolist() for part in (curve.thresholds, curve.false_positives, curve.sensitivity)), strict=True)
        )
    with written_whole(picture) as partial:
        draw_froc(result, partial)
