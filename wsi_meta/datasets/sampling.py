"""From slides and outlines of their tumor to a data set of patches in PCam's layout."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsi_meta.datasets.candidates import KINDS, Candidates, find_candidates, quotas_of
from wsi_meta.datasets.cutting import PatchCutter
from wsi_meta.datasets.layouts import SPLITS
from wsi_meta.datasets.manifest import SourceSlide, deal_splits, read_manifest
from wsi_meta.datasets.pcam import RECORD, PcamWriter, pcam_files
from wsi_meta.errors import (
    OVER_0,
    DataError,
    OptionsError,
    OutputExistsError,
    OutputPathError,
    number,
    require,
    truth,
    whole_number,
)
from wsi_meta.files.locks import locked
from wsi_meta.models.card import read_card
from wsi_meta.models.model import model_path
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.outputs.checks import check_folder
from wsi_meta.outputs.kept_files import refuse_inside_store
from wsi_meta.outputs.paths import as_path
from wsi_meta.outputs.writing import filled_folder, finish_replacing, replace_files, written_whole
from wsi_meta.progress import note, progress_bar
from wsi_meta.slides.slide import open_slide
from wsi_meta.words import counted, some_of

__all__ = ["Sampled", "sample"]

logger = logging.getLogger(__name__)

PATCH_PX, LABEL_PX, OTHER_SPLITS = 96, 32, 8
"""PCam's geometry, as the layout of its files has no other; validation and test each have an eighth as many patches."""
MINED = 0.5
"""Share of hard patches among the normal ones, unasked."""


@dataclass
class Sampled:
    """What was written for one split."""

    patches: int = 0
    """All patches; half of them tumor."""
    hard: int = 0
    """Normal patches that a scan mistook for tumor."""
    slides: int = 0
    """Slides that patches were cut from."""
    blank: int = 0
    """Patches that were left out as background by PCam's rule."""
    unreadable: int = 0
    """Patches that were left out because they could not be read."""


@dataclass(frozen=True)
class _Plan:
    """What is the same for all slides of a call."""

    folder: Path
    """Temporary folder of the files until all are written."""
    preprocessing: Preprocessing
    mined: float
    scans: Path | None
    seed: int
    progress: bool
    looked_at: dict[str, Path] = field(default_factory=dict)
    """Slides by fingerprint: one in two splits would be trained on and judged on."""


@dataclass(frozen=True, eq=False)
class _Source:
    """A slide, and the cells of it whose patches may be cut."""

    slide: SourceSlide
    candidates: dict[str, Candidates]


def sample(
    manifest: str | Path,
    out: str | Path,
    *,
    patches: int = 262144,
    valid: float = 0.2,
    test: float = 0.0,
    by: str = "patient",
    tumor: Sequence[str] = (),
    exclude_class: Sequence[str] = (),
    mine: str | Path | None = None,
    mined: float = MINED,
    model: str | Path | None = None,
    seed: int = 0,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Sampled]:
    """Cut labelled patches from slides into PCam's HDF5 files, which :func:`wsi_meta.train` reads as they are.

    A patch is one of the 96 px squares at the model's mpp that a scan would score. Its label says whether a pixel of its
    centre 32 x 32 px is tumor. Half of the patches of each split are tumor. They are shared out among the slides of a split as
    evenly as possible. Background is left out by PCam's rule, see :func:`wsi_meta.datasets.cutting.is_blank`.

    The same manifest, slides and options give the same files for any number of workers. Few patches are in memory at a time.

    Parameters
    ----------
    manifest : CSV of slides and their annotations, see :func:`wsi_meta.datasets.manifest.read_manifest`
    out : folder for the files, made if it does not exist
    patches : largest number of training patches, half of them tumor; validation and test each get an eighth of it
    valid, test : shares of the slides without a split in the manifest that go to these splits
    by : ``patient`` keeps a patient's slides in one split, ``slide`` distributes slide by slide
    tumor, exclude_class : classes of outlines that are tumor, or removed from it; see :func:`wsi_meta.read_annotations`
    mine : folder of heatmaps ``<slide>.zarr``, for hard negatives: normal tissue that the scan mistook for tumor
    mined : share of hard patches among the normal ones, where there are enough; only with `mine`
    model : model file whose card holds the mpp; None for the embedded one
    seed : of splits, places and order
    workers : number of patches that are read at the same time
    overwrite : replace all files of an earlier sampling
    progress : show a bar and notes on stderr

    Returns
    -------
    What was written, by split.

    Raises
    ------
    DataError
        when manifest, outlines or masks are damaged, do not fit, or leave a split without one of the classes.
    OptionsError
        for options out of their range.
    SlideReadError, MissingMppError, ModelFileError, HeatmapError, OutputExistsError, OutputPathError, DeviceError
    """
    require("train", "sampling")
    out, workers = as_path("out", out), whole_number("workers", workers)
    patches, seed = whole_number("patches", patches, "2 or more", least=2), whole_number("seed", seed, "0 or more", least=0)
    mined = number("mined", mined, "a share over 0 up to 1", least=OVER_0, most=1)
    if mine is None and mined != MINED:
        raise OptionsError(f"mined {mined:g} without heatmaps; expected mine, too")
    with _claimed(out, overwrite=truth("overwrite", overwrite)) as partial:
        listed = read_manifest(manifest, tumor=tumor, exclude_class=exclude_class)
        splits = deal_splits(listed, valid=valid, test=test, by=by, seed=seed)
        scans = None if mine is None else _check_scans(as_path("mine", mine), splits)
        plan = _Plan(partial, _pcam_geometry(model), mined, scans, seed, progress)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            # before any patch is cut: a split without a class is told at once
            sources = {split: _look_at_all(split, slides, plan) for split, slides in splits.items()}
            done = {split: _write_split(split, found, patches, plan, pool) for split, found in sources.items()}
        with written_whole(partial / RECORD) as record:
            record.write_text(json.dumps(_record(manifest, plan, splits, done), indent=1) + "\n")
        replace_files(partial, out, _names())
        return done


@contextmanager
def _claimed(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Hold a folder for one sampling; yield a temporary one for the new files, which goes in the end."""
    check_folder(folder)
    refuse_inside_store(folder / RECORD)
    with locked(folder):
        finish_replacing(folder, _names())
        _check_out(folder, overwrite=overwrite)
        with filled_folder(folder, alone=True) as partial:
            yield partial


def _look_at_all(split: str, slides: Sequence[SourceSlide], plan: _Plan) -> list[_Source]:
    """Find the cells of a split's slides; DataError where there are none of a class."""
    note(f"{split}: looking for tissue and tumor on {len(slides)} slides", enabled=plan.progress)
    sources = [_look(slide, plan) for slide in slides]
    _refuse_absent(split, sources)
    return sources


def _look(slide: SourceSlide, plan: _Plan) -> _Source:
    # seeded by the slide's name, so that the other slides of the manifest make no difference
    seed = [plan.seed, *slide.name.encode(errors="surrogateescape")]
    with open_slide(slide.path, mpp=slide.mpp) as opened:
        if (first := plan.looked_at.setdefault(opened.fingerprint(), slide.path)) != slide.path:
            raise DataError(f"{slide.path}: the same slide as {first}, under another name; expected each slide once")
        return _Source(slide, find_candidates(slide, opened, plan.preprocessing, seed=seed, scans=plan.scans))


def _refuse_absent(split: str, sources: Sequence[_Source]) -> None:
    """Raise DataError where a class has no cell on any slide of a split."""
    for name, kinds in (("tumor", KINDS[:1]), ("normal", KINDS[1:])):
        if not any(source.candidates[kind].left for source in sources for kind in kinds):
            names = some_of([source.slide.name for source in sources])
            raise DataError(
                f"{split}: no {name} patches on its {len(sources)} slides ({names}); expected slides with and without tumor in "
                "each split; see the manifest's columns annotations, split and partly"
            )


def _write_split(split: str, sources: Sequence[_Source], patches: int, plan: _Plan, pool: Executor) -> Sampled:
    """Cut a split's patches, slide after slide, and write its files; `patches` is the number for training.

    What blank and unreadable patches leave missing is shared out again among the slides that have more, until none has.
    """
    each, sampled, kinds = max(1, (patches if split == "train" else patches // OTHER_SPLITS) // 2), Sampled(), list[str]()
    candidates = [source.candidates for source in sources]
    quotas = quotas_of(candidates, each, plan.mined, Counter())
    with (
        PcamWriter(plan.folder, split, plan.preprocessing.patch_px, plan.preprocessing.mpp) as writer,
        progress_bar(sum(map(sum, quotas.values())), "patches", split, enabled=plan.progress) as bar,
    ):
        while any(map(any, quotas.values())):
            for index, source in enumerate(sources):
                if not any(wanted := [quotas[kind][index] for kind in KINDS]):
                    continue
                with open_slide(source.slide.path, mpp=source.slide.mpp) as slide:
                    cutter = PatchCutter(slide, plan.preprocessing, pool)
                    for kind, number in zip(KINDS, wanted, strict=True):
                        for pixels, place in cutter.cut(source.candidates[kind], number, tumor=kind == "tumor"):
                            writer.add(pixels, place)
                            kinds.append(kind)
                            bar.update(1)
                sampled.blank, sampled.unreadable = sampled.blank + cutter.blank, sampled.unreadable + cutter.unreadable
            quotas = quotas_of(candidates, each, plan.mined, Counter(kinds))
        writer.refuse_one_class(f"{sampled.blank} were left out as blank (without colour), {sampled.unreadable} as unreadable")
        order = writer.write(np.random.default_rng([plan.seed, *split.encode()]))
    sampled.patches, sampled.hard = len(order), sum(kinds[number] == "hard" for number in order)
    sampled.slides = len({writer.places[number].wsi for number in order})
    _tell(split, sampled, each)
    return sampled


def _tell(split: str, sampled: Sampled, each: int) -> None:
    if sampled.patches < 2 * each:
        found = counted(sampled.patches, "patch", "patches")
        logger.warning("%s: %s, fewer than the %d asked for: there are no more", split, found, 2 * each)
    if sampled.unreadable:
        lost = counted(sampled.unreadable, "patch", "patches")
        logger.warning("%s: left out, since it could not be read: %s; copy the slides again", split, lost)


def _pcam_geometry(model: str | Path | None) -> Preprocessing:
    """Return a model's preprocessing; DataError where its patches do not fit PCam's files."""
    preprocessing = read_card(path := model_path(model)).preprocessing
    if (preprocessing.patch_px, preprocessing.label_px) != (PATCH_PX, LABEL_PX):
        raise DataError(
            f"{path}: patches of {preprocessing.patch_px} px, labels of {preprocessing.label_px} px; "
            f"expected {PATCH_PX} and {LABEL_PX}, as PCam's files have them"
        )
    return preprocessing


def _check_scans(folder: Path, splits: Mapping[str, Sequence[SourceSlide]]) -> Path:
    """Make sure that there are heatmaps of the slides; DataError where there are none."""
    names = [slide.name for slides in splits.values() for slide in slides]
    without = [name for name in names if not (folder / f"{name}.zarr").exists()]
    if len(without) == len(names):
        raise DataError(f"{folder}: no heatmap of any slide; expected {names[0]}.zarr and so on, from 'wsi-meta scan'")
    if without:
        told = counted(len(without), "slide")
        logger.warning("%s: no heatmap, and so no hard negatives, of %s, first '%s'", folder, told, without[0])
    return folder


def _names() -> list[str]:
    """Return the names of all files of a sampling; the record is its mark."""
    return [*(path.name for split in SPLITS for path in pcam_files(Path(), split)), RECORD]


def _check_out(folder: Path, *, overwrite: bool) -> None:
    """Make sure that the files can be written. Files of an earlier sampling are never mixed with new ones."""
    if folder.exists() and not folder.is_dir():
        raise OutputPathError(f"{folder}: a file; expected a folder for PCam's files")
    if (there := [path for name in _names() if (path := folder / name).exists()]) and not (folder / RECORD).is_file():
        raise OutputExistsError(f"{there[0]}: exists, and is not from 'wsi-meta sample'; never replaced; choose another --out")
    if there and not overwrite:
        raise OutputExistsError(f"{there[-1]}: exists; choose another --out, or pass --overwrite to replace the sampling there")


def _record(
    manifest: str | Path, plan: _Plan, splits: Mapping[str, Sequence[SourceSlide]], done: Mapping[str, Sampled]
) -> dict[str, Any]:
    """Return what was sampled and how, as plain JSON values."""
    return {
        "manifest": Path(manifest).name,
        "mpp": plan.preprocessing.mpp,
        "seed": plan.seed,
        "mined": None if plan.scans is None else plan.mined,
        "splits": {split: asdict(done[split]) | {"of": [slide.name for slide in splits[split]]} for split in done},
    }
