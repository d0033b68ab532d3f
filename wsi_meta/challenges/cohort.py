"""The slides of a challenge: the detections of each compared with its truth, without the slides that are known to be bad."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_meta.annotations.camelyon_slides import Exclusion, loose
from wsi_meta.annotations.class_names import DEFAULT_NAMES, ClassNames
from wsi_meta.annotations.corrected import Corrected, read_corrected
from wsi_meta.annotations.detections import Detections, read_detections
from wsi_meta.annotations.outline_files import OUTLINE_ENDINGS, read_drawn
from wsi_meta.annotations.outlines import Annotations, refuse_absent
from wsi_meta.annotations.tables import YES, NamedRows, one_form, read_table, without_ending
from wsi_meta.annotations.truth import draw_outlines, read_fitting_mask, sort_truth, warn_of_small_masks
from wsi_meta.annotations.truth_files import PICTURES, files_by_slide, refuse_unread_truth, slide_of
from wsi_meta.challenges.froc import DOWNSAMPLE, SlideHits, match
from wsi_meta.errors import DataError, HeatmapError, WsiMetaError
from wsi_meta.files.address import name_in, slide_name
from wsi_meta.heatmaps.ownership import stores_in
from wsi_meta.heatmaps.scanned_slide import SlideFrame, frame_of, slide_test_and_corner
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.masks.tumor_masks import MASK_ENDINGS
from wsi_meta.outputs.kept_files import CORRECTED
from wsi_meta.outputs.paths import as_path
from wsi_meta.progress import progress_bar
from wsi_meta.words import one_line, some_of

__all__ = [
    "Cohort",
    "JudgedSlide",
    "Reading",
    "Scores",
    "judge_slides",
    "match_slide",
    "read_scores",
]

logger = logging.getLogger(__name__)

Scores = NamedRows[tuple[float | None, str | None]]
"""By slide, its score, None where it has none, and why it was not wholly read; None where it was, or nothing says so."""
AS_WHOLE = ("", *YES)
"""What a table of scores says in a column ``complete`` of a slide that was wholly read; the first is nothing."""


@dataclass(frozen=True)
class Reading:
    """How truth is read."""

    mask_level: int = 0
    """Level of the slide that the first image of each mask is as large as."""
    names: ClassNames = DEFAULT_NAMES
    """Which classes of outlines are tumor."""
    slides: Path | None = None
    """Folder of the slides or their heatmaps, which know how large a slide is, and where QuPath's outlines count from."""
    corrections: Path | None = None
    """Folder of what was corrected on their maps."""


@dataclass(frozen=True, eq=False)
class JudgedSlide:
    """The detections of a slide, compared with its truth."""

    name: str
    hits: SlideHits
    tumor: bool
    """Whether its truth contains any tumor."""
    highest: float
    """Highest score of a detection; 0 where there is none."""


@dataclass(frozen=True, eq=False)
class Cohort:
    """The judged slides of a challenge."""

    slides: tuple[JudgedSlide, ...]
    """In the order of their names, without those that are excluded from both tasks."""
    excluded: dict[str, Exclusion]
    """By name, the slides that are excluded from a task or from both."""
    incomplete: dict[str, str]
    """By name, why not all of a judged slide was scanned, by its heatmap where there is one."""

    def of(self, task: str) -> list[JudgedSlide]:
        """Return the slides that count for ``lesions`` or ``slides``."""
        return [slide for slide in self.slides if slide.name not in self.excluded or self.excluded[slide.name].task != task]


def judge_slides(detections: Path, truth: Path, *, excluded: dict[str, Exclusion], reading: Reading, progress: bool) -> Cohort:
    """Read and judge all slides; parameters and errors as :func:`wsi_meta.froc`."""
    found = files_by_slide(detections, (".csv",), "<slide>.csv")
    truths = files_by_slide(truth, OUTLINE_ENDINGS + MASK_ENDINGS, f"<slide>{', '.join(OUTLINE_ENDINGS + MASK_ENDINGS)}")
    refuse_unread_truth(truth, found, truths, stores_in(truth))
    left_out = {name: excluded[loose(name)] for name in sorted({*found, *truths}) if loose(name) in excluded}
    skipped = {name for name, exclusion in left_out.items() if exclusion.task == "both"}
    if alone := sorted(set(truths) - set(found) - skipped):
        told = f"{len(alone)} slides with truth have no detections, first '{alone[0]}'"
        raise DataError(f"{detections}: {told}; expected {alone[0]}.csv, empty where nothing was found")
    judged_names = sorted(set(found) - skipped)
    outlined = [name for name in judged_names if name in truths and truths[name].suffix.lower() in OUTLINE_ENDINGS]
    drawn = {name: read_drawn(truths[name]) for name in outlined}
    refuse_absent(reading.names, drawn.values(), str(truth))
    masks = [name for name in judged_names if name in truths and name not in drawn]
    qupath = [name for name, file in drawn.items() if file.origin is None]
    shown = _find_slides(truth, qupath, judged_names, reading.slides)
    corners = {name: frame.corner or (0, 0) for name, frame in shown.items()}
    outlines = {name: sort_truth(file, reading.names, corners.get(name, (0, 0))) for name, file in drawn.items()}
    corrected = {} if reading.corrections is None else _read_corrections(reading.corrections, judged_names)
    points = {name: read_detections(found[name]) for name in judged_names}
    judged = []
    with progress_bar(len(judged_names), "slides", "judging", enabled=progress) as bar:
        for name in judged_names:
            drawn_of, extent = outlines.get(name, truths.get(name)), shown[name].extent if name in shown else None
            if extent is not None:
                _refuse_beyond(found[name], points[name], extent)
            judged.append(match_slide(name, points[name], drawn_of, reading.mask_level, corrected.get(name), extent))
            bar.update(1)
    warn_of_small_masks([truths[name] for name in masks if name not in shown], reading.mask_level, _reach(points, outlines))
    return Cohort(tuple(judged), left_out, _find_incomplete([reading.slides, reading.corrections], judged_names))


def read_scores(path: str | Path) -> Scores:
    """Read slides' scores: columns ``slide`` (name or file) and ``score``, as ``summary.csv`` of a scan has them.

    The score may be empty, as of a slide that could not be scanned. A column ``heatmap`` says what a slide's map is called.

    Returns
    -------
    By the slides' names in lower case. Whether one was wholly read is told by columns ``complete`` and ``error``, if any.

    Raises
    ------
    DataError
        when the table is damaged, a score no number, or a slide is in it twice.
    """
    path = as_path("scores", path)
    scores: list[tuple[str, int, tuple[float | None, str | None]]] = []
    table = read_table(path, ("slide", "score"), "slide scores", optional=("complete", "error", "heatmap"))
    for row in table:
        slide, text, complete, error, _ = row
        try:
            score = float(text) if text else None
        except ValueError:
            told = f"score '{text}' of '{slide}', line {row.line}"
            raise DataError(f"{path}: {told}; expected a number for each slide, with a decimal point") from None
        if score is not None and not np.isfinite(score):
            raise DataError(f"{path}: a score that is not finite, line {row.line}; expected a number for each slide")
        why = None if complete.lower() in AS_WHOLE else error or f"complete is {complete} in {path.name}"
        scores.append((slide, row.line, (score, why)))
    return NamedRows(path, scores, given=[Path(name_in(row[-1])).stem for row in table], lower=True)


def _find_slides(truth: Path, qupath: Sequence[str], judged: Sequence[str], slides: Path | None) -> dict[str, SlideFrame]:
    """Return what is known of the judged slides that are there; those whose outlines are QuPath's must be."""
    if slides is None:
        if qupath:
            told = (
                "%s: GeoJSON of %d slides is taken as level-0 pixels; pass --slides if they are MRXS, SCN or others with bounds"
            )
            logger.warning(told, truth, len(qupath))
        return {}
    if not slides.is_dir():
        raise DataError(f"{slides}: no such folder; expected one with the slides or their heatmaps")
    files: dict[str, list[Path]] = {}
    for path in sorted(slides.iterdir(), key=lambda path: path.suffix != ".zarr"):  # a heatmap is opened sooner
        if path.suffix.lower() not in (*PICTURES, ".csv") and without_ending(path.name) != path.name and path.name[0] != ".":
            files.setdefault(one_form(slide_name(path).lower()), []).append(path)
    shown = {name: frame for name in judged for path in files.get(name, [])[:1] if (frame := _frame_of(path)) is not None}
    for name in qupath:
        frames = (frame_of(path) for path in files.get(name, []))
        if (frame := next((frame for frame in frames if frame.corner is not None), None)) is None:
            raise DataError(f"{slides}: no slide or heatmap of '{name}', whose outlines are QuPath's; expected {name}.zarr")
        shown[name] = frame
    return shown


def _refuse_beyond(path: Path, points: Detections, extent: tuple[int, int]) -> None:
    """Raise DataError where a detection lies beyond its slide: it is another one's, or not in level-0 pixels."""
    beyond = (points.x > extent[0]) | (points.y > extent[1])
    if beyond.any():
        first = int(np.flatnonzero(beyond)[0])
        raise DataError(
            f"{path}: a detection lies at x {points.x[first]}, y {points.y[first]}, the slide has {extent[0]} x {extent[1]} "
            "level-0 px; expected points of the same slide, in level-0 pixels"
        )


def _reach(points: dict[str, Detections], outlines: dict[str, Annotations]) -> int:
    """Return the largest level-0 coordinate of a detection or an outline."""
    drawn = [outline.vertices.max() for annotations in outlines.values() for outline in annotations.tumor]
    return int(max([0, *drawn, *(max(part.x.max(initial=0), part.y.max(initial=0)) for part in points.values())]))


def _read_corrections(folder: Path, names: Sequence[str]) -> dict[str, Corrected]:
    """Return the corrections of the slides with these names; DataError where there is none at all."""
    files = sorted(folder.glob("*" + CORRECTED)) if folder.is_dir() else []
    by_name = {slide_of(Path(path.name.removesuffix(CORRECTED) + ".zarr")): path for path in files}
    if not by_name.keys() & set(names):
        raise DataError(f"{folder}: holds no corrections of these slides; expected <slide>{CORRECTED} of wsi-meta view")
    if others := [path.name for name, path in by_name.items() if name not in names]:
        logger.warning("%s: of no slide that is judged: %s", folder, some_of(others))
    ours = {
        name: (path, folder / f"{path.name.removesuffix(CORRECTED)}.zarr") for name, path in by_name.items() if name in names
    }
    return {name: read_corrected(path, *slide_test_and_corner(store)) for name, (path, store) in ours.items()}


def _find_incomplete(folders: Iterable[Path | None], names: Sequence[str]) -> dict[str, str]:
    """Return why, by name, not all of a slide was scanned, for those with a heatmap in one of the folders."""
    stores = [store for folder in folders if folder is not None for store in stores_in(folder)]
    found = {}
    for store in stores:
        if (name := slide_of(store)) in names:
            try:
                why = Heatmap.open(store).record.why_incomplete
            except (HeatmapError, OSError) as error:
                why = one_line(error)
            if why is not None:
                found[name] = why
    return found


def _frame_of(path: Path) -> SlideFrame | None:
    """Return what a slide or its heatmap says of its frame; None where it is damaged, which is told elsewhere."""
    try:
        return frame_of(path)
    except (WsiMetaError, OSError):
        return None


def match_slide(
    name: str,
    points: Detections,
    truth: Annotations | Path | None,
    mask_level: int | None = 0,
    corrected: Corrected | None = None,
    extent: tuple[int, int] | None = None,
) -> JudgedSlide:
    """Compare a slide's detections with its outlines, the file of its mask, or, for a normal slide, None.

    Parameters
    ----------
    mask_level : level of the slide that the first image of a mask is as large as; None as `extent` says
    corrected : what was corrected on its map: missed lesions are tumor, too, and false ones are not
    extent : (width, height) of the slide, level-0 pixels, which its truth must fit; None where it is not known

    Raises
    ------
    DataError
        when the mask is damaged or of another slide, or no outline of tumor, or of what was missed, encloses anything on it.
    """
    tumor = None
    if isinstance(truth, Annotations):
        tumor = draw_outlines(truth, DOWNSAMPLE, extent)
    elif truth is not None:
        tumor = read_fitting_mask(truth, points, DOWNSAMPLE, mask_level, extent)
    if corrected is not None:
        tumor = corrected.correct(tumor, DOWNSAMPLE, extent)
    return JudgedSlide(name, match(points, tumor), tumor is not None and bool(tumor.any()), points.highest)
