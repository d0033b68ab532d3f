"""A manifest: which slides to cut patches from, where their tumor is outlined, and which split they belong to."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wsi_meta.annotations.camelyon_slides import PARTLY, loose, patient_of
from wsi_meta.annotations.class_names import DEFAULT_NAMES, ClassNames
from wsi_meta.annotations.outline_files import OUTLINE_ENDINGS, read_drawn
from wsi_meta.annotations.outlines import refuse_absent
from wsi_meta.annotations.tables import NO, YES, Row, path_in, read_table
from wsi_meta.datasets.layouts import NAMES, SPLITS
from wsi_meta.errors import DataError, OptionsError, number, one_of, whole_number
from wsi_meta.files.address import slide_name
from wsi_meta.outputs.paths import as_path
from wsi_meta.outputs.zarr_folder import is_zarr_image
from wsi_meta.slides.pixel_size import listed_mpp

__all__ = ["SourceSlide", "deal_splits", "read_manifest"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceSlide:
    """A row of the manifest."""

    path: Path
    truth: Path | None
    """Outlines or mask of its tumor; None for a normal slide."""
    patient: str
    split: str
    """One of :data:`wsi_meta.datasets.layouts.SPLITS`; empty where none was chosen yet."""
    partly: bool
    """Whether it may contain tumor outside its outlines, so that no part of it is known to be normal."""
    mpp: float | None = None
    """Micrometres per level-0 pixel, for a slide whose file does not say; else None."""
    names: ClassNames = DEFAULT_NAMES
    """Which classes of its outlines are tumor."""

    @property
    def name(self) -> str:
        """The file's name without its ending: column ``wsi`` of PCam's meta table."""
        return slide_name(self.path)


def read_manifest(path: str | Path, *, tumor: Sequence[str] = (), exclude_class: Sequence[str] = ()) -> tuple[SourceSlide, ...]:
    """Read a manifest: a CSV file with a row per slide.

    Columns: ``slide``, a file or an OME-Zarr folder; ``annotations``, its outlines or mask, empty for a slide without tumor;
    where known ``patient`` (else what CAMELYON17's and TCGA's names tell), ``split`` (train, valid or test),
    ``partly`` (1 where not all tumor is outlined, 0 where it is) and ``mpp``. Where ``partly`` is empty, the slides of
    Camelyon16 in :data:`wsi_meta.annotations.camelyon_slides.PARTLY` count as 1, with a warning. Paths are relative to the
    manifest.

    Parameters
    ----------
    tumor, exclude_class : classes of outlines that are tumor, or removed from it; see :func:`wsi_meta.read_annotations`

    Raises
    ------
    DataError
        when it is missing or damaged, has other columns, names a file that is not there, or a slide twice, or when no outline
        of any slide has a class that was told.
    """
    path, classes = as_path("manifest", path), ClassNames.parse(tumor, exclude_class)
    known = {loose(slide) for (slide,) in read_table(PARTLY, ("slide",), "slides partly annotated")}
    rows = read_table(path, ("slide", "annotations"), "slides", optional=("patient", "split", "partly", "mpp"), strict=True)
    slides = [_read_row(path, row, known) for row in rows]
    names = [slide.name for slide in slides]
    if not slides:
        raise DataError(f"{path}: no slides in it; expected a row per slide")
    for name, row in zip(names, rows, strict=True):
        if (first := rows[names.index(name)]) is not row:
            told = f"lines {first.line} and {row.line}"
            raise DataError(f"{path}: several slides named '{name}', {told}; expected names of their own")
    if assumed := [slide.name for slide, row in zip(slides, rows, strict=True) if slide.partly and not row[4]]:
        logger.warning(
            "%s: no negatives from %s: known to be partly annotated; a column 'partly' overrides that", path, ", ".join(assumed)
        )
    if classes.all_told:
        truths = [slide.truth for slide in slides if slide.truth and slide.truth.suffix.lower() in OUTLINE_ENDINGS]
        refuse_absent(classes, map(read_drawn, truths), str(path))
    return tuple(replace(slide, names=classes) for slide in slides)


def deal_splits(
    slides: Sequence[SourceSlide], *, valid: float, test: float, by: str, seed: int
) -> dict[str, tuple[SourceSlide, ...]]:
    """Return the slides of each split. Slides without one are distributed at random, those with and without tumor separately.

    Parameters
    ----------
    valid, test : share of the slides (or patients) without a split that go to this split; at least one of each class where
        the share is not 0 and there are enough
    by : ``patient``, so that a patient's slides stay together, or ``slide``
    seed : of the random distribution

    Raises
    ------
    DataError
        when the manifest puts slides of one patient into different splits.
    OptionsError
        for options out of their range.
    """
    valid, test = (number(name, one, "a share, 0 or more", least=0) for name, one in (("valid", valid), ("test", test)))
    if valid + test >= 1:
        raise OptionsError(f"valid {valid}, test {test}; expected shares of under 1 together")
    by = one_of("by", by, ("patient", "slide"))
    seed = whole_number("seed", seed, "0 or more", least=0)
    given: dict[str, str] = {}
    for slide in slides:
        group = _group(slide, by)
        if slide.split and given.setdefault(group, slide.split) != slide.split:
            raise DataError(
                f"{slide.path}: in split {slide.split}, other slides of '{group}' in {given[group]}; expected one split"
            )
    rng = np.random.default_rng(seed)
    groups = {_group(slide, by): False for slide in slides if _group(slide, by) not in given}
    for slide in slides:
        if (group := _group(slide, by)) in groups:
            groups[group] |= slide.truth is not None
    for tumor in (True, False):
        of_class = [group for group, has_tumor in groups.items() if has_tumor == tumor]
        dealt = [of_class[index] for index in rng.permutation(len(of_class))]
        for split, share in (("valid", valid), ("test", test)):
            count = min(max(1, round(share * len(of_class))) if share else 0, len(dealt) - 1)
            given |= dict.fromkeys(dealt[: max(0, count)], split)
            dealt = dealt[max(0, count) :]
        given |= dict.fromkeys(dealt, "train")
    placed = [replace(slide, split=given[_group(slide, by)]) for slide in slides]
    return {split: found for split in SPLITS if (found := tuple(slide for slide in placed if slide.split == split))}


def _read_row(path: Path, row: Row, known: Collection[str]) -> SourceSlide:
    """Check a row; `known` are the names of partly annotated slides."""
    slide, truth, patient, split, partly, mpp = row
    place = f"{path}: line {row.line}"
    if split.lower() not in ("", *NAMES):
        raise DataError(f"{place}: split '{split}' of '{slide}'; expected {', '.join(SPLITS)} or nothing")
    if partly.lower() not in ("", *YES, *NO):
        raise DataError(f"{place}: partly '{partly}' of '{slide}'; expected 1, 0 or nothing")
    if not slide:
        raise DataError(f"{place}: names no slide; expected one in each row; remove the row")
    source = _there(place, path.parent, slide, or_folder=True)
    return SourceSlide(
        source,
        _there(place, path.parent, truth) if truth else None,
        patient or patient_of(slide_name(source)),
        NAMES.get(split.lower(), ""),
        partly.lower() in YES or (not partly and loose(slide_name(source)) in known),
        listed_mpp(place, mpp, source),
    )


def _there(place: str, folder: Path, text: str, *, or_folder: bool = False) -> Path:
    """Return the path of a file that is there, or of a slide that is a folder."""
    path = path_in(place, folder, text)
    if isinstance(path, Path) and (path.is_file() or (or_folder and is_zarr_image(path))):
        return path
    raise DataError(f"{place}: there is no file '{path}'; expected paths relative to the manifest")


def _group(slide: SourceSlide, by: str) -> str:
    return slide.patient if by == "patient" else slide.name
