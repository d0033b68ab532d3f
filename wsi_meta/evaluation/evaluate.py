"""How well a model separates tumor from normal on labelled patches."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsi_meta.datasets.batches import check_workers, read_batches
from wsi_meta.datasets.layouts import SPLITS, Patches, open_patches, paths_of, refuse_idle, tell_folders
from wsi_meta.datasets.patches import content_of, contents_of
from wsi_meta.datasets.shifts import SHIFTS
from wsi_meta.datasets.stains import stain_hue
from wsi_meta.errors import DataError, OptionsError, WsiMetaError, one_of, require, truth
from wsi_meta.evaluation.cautions import cautions_of
from wsi_meta.evaluation.report import check_report, write_report
from wsi_meta.evaluation.results import Evaluation, Subject
from wsi_meta.evaluation.robustness import Seen, judge_shifts
from wsi_meta.inference.device import announce_torch
from wsi_meta.inference.options import InferenceOptions
from wsi_meta.inference.predictor import Predictor
from wsi_meta.inference.torch_settings import own_modes
from wsi_meta.models.card import read_card
from wsi_meta.models.known_patches import knows_all
from wsi_meta.models.model import Model, load_model, model_path
from wsi_meta.progress import note, progress_bar

__all__ = ["check_evaluation", "evaluate", "evaluate_patches"]

logger = logging.getLogger(__name__)


@own_modes()
def evaluate(
    model: str | Path | Model | None,
    data: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    out: str | Path | None = None,
    tta: bool | int = False,
    shifts: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 64,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Evaluate a model on labelled patches, with 95 % intervals and, where asked for, a report.

    Parameters
    ----------
    model : model file, ``default`` or None for the embedded one, or a loaded model
    data : folders of labelled patches (see :func:`wsi_meta.datasets.layouts.open_patches`)
    split : ``train``, ``valid`` or ``test``; None takes ``test``, else ``valid``, else all patches
    out : folder to make for the report (see :func:`wsi_meta.evaluation.report.write_report`); None writes none
    tta : average the logit over 2, 4 or 8 (True) views of each patch, which takes so many times as long
    shifts : also evaluate the patches as other laboratories and scanners would show them (:mod:`wsi_meta.datasets.shifts`), and
        by clusters of their stains; takes 25 times as long
    device, precision, batch_size : see :class:`wsi_meta.inference.predictor.Predictor`
    workers : processes that decode patches; 0 decodes in this one
    overwrite : replace a report at `out`
    progress : show a bar on stderr

    Returns
    -------
    The figures and their intervals; with `shifts` also those of each shift and cluster of stains.

    Raises
    ------
    DataError, ModelFileError, DeviceError, OptionsError
    OutputExistsError
        when `out` exists and not `overwrite`, or is no report.
    OutputPathError
        when `out` cannot be written.
    """
    InferenceOptions(device, precision, batch_size, tta)  # refuses what does not exist
    data, shifts, workers = paths_of(data), truth("shifts", shifts), check_workers(workers)
    patches, words = check_evaluation(model, data, split=split, out=out, overwrite=overwrite)
    patches.check()
    announce_torch()
    model = model.as_it_is() if isinstance(model, Model) else load_model(model)
    subject = Subject.of(model, patches, data=tell_folders(data), split=words, tta=tta) if out is not None else None
    predictor = Predictor(model, device=device, precision=precision, batch_size=batch_size, tta=tta)
    evaluation = evaluate_patches(predictor, patches, workers=workers, progress=progress, intervals=True, shifts=shifts)
    for told in cautions_of(model.card, patches, evaluation):
        logger.warning("%s", told)
    if out is not None and subject is not None:
        try:
            write_report(out, subject, evaluation, overwrite=overwrite)
        except (OSError, WsiMetaError):
            note(f"there is no report of these figures: {json.dumps(evaluation.to_dict())}", enabled=progress)
            raise
    return evaluation


def check_evaluation(
    model: str | Path | Model | None,
    data: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> tuple[Patches, str]:
    """Refuse what :func:`evaluate` would refuse before its work, without importing torch, which takes seconds.

    Parameters
    ----------
    model, data, split, out, overwrite : as for :func:`evaluate`

    Returns
    -------
    The patches, and in words which ones they are of all.

    Raises
    ------
    DataError, DeviceError, ModelFileError, OptionsError, OutputExistsError, OutputPathError
    """
    require("train", "evaluating")
    if out is not None:
        check_report(out, overwrite=overwrite)
    card = model.card if isinstance(model, Model) else read_card(model_path(model))
    if card.foreign and out is not None:
        raise OptionsError(
            f"{card.architecture}, out: the report shows where a ResNet50 looked; expected no out for another module"
        )
    split = None if split is None else one_of("split", split, SPLITS)
    splits = open_patches(data)
    wanted = split or next(name for name in ("test", "valid", "train") if name in splits)
    if wanted not in splits:
        raise DataError(f"{tell_folders(data)}: no '{wanted}' split; found {', '.join(splits)}")
    if split is None:
        refuse_idle(data, splits[wanted], wanted)
    splits[wanted].check_mpp(card.preprocessing.mpp)
    return splits[wanted], "all there is" if split is None and list(splits) == ["train"] else wanted


def evaluate_patches(
    predictor: Predictor,
    patches: Patches,
    *,
    workers: int = 2,
    progress: bool = False,
    intervals: bool = False,
    shifts: bool = False,
) -> Evaluation:
    """Evaluate a predictor on patches that are already opened; see :func:`evaluate`.

    With `intervals`, the bootstrap draws patients (or slides, whose names tell none) where they are known, else patches. With
    `shifts`, each patch is read once and shown under all shifts.
    """
    import torch

    expected_px = predictor.model.card.preprocessing.patch_px
    if expected_px != patches.patch_px:
        raise DataError(f"patches of {patches.patch_px} px; expected {expected_px} px, which the model is shown")
    changes = SHIFTS if shifts else ()
    parts, hues, contents = [], [], []
    with progress_bar(len(patches) * (1 + len(changes)), "patches", "evaluating", enabled=progress) as bar:
        for images, _ in read_batches(patches, predictor.batch_size, workers):
            rows = [predictor.predict_patches(images)]
            contents += [content_of(patch) for patch in images.numpy()]
            bar.update(len(images))
            for shift in changes:
                rows.append(predictor.predict_patches(torch.from_numpy(shift.show(images.numpy()))))
                bar.update(len(images))
            parts.append(np.stack(rows))
            if shifts:
                hues += [stain_hue(patch) for patch in images.numpy()]
    logits, card = np.concatenate(parts, axis=1), predictor.model.card
    groups = patches.groups
    evaluation = Evaluation.of(logits[0], patches.labels, card, groups=groups, intervals=intervals)
    read, known = contents_of(contents), predictor.model.known_patches
    counts = None if known is None else known.count(read)
    evaluation = replace(evaluation, contents=read, known_patches=counts, all_patches_known=knows_all(card.training, known))
    if not shifts:
        return evaluation
    seen = Seen(logits[1:], np.array(hues))
    return replace(evaluation, robustness=judge_shifts(logits[0], seen, patches.labels, card, groups=groups))
