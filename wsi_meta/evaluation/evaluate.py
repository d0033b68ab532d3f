"""How well a model separates tumor from normal on labelled patches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.datasets.batches import read_batches
from wsi_meta.datasets.layouts import Patches, open_patches, refuse_idle, tell_folders
from wsi_meta.datasets.patches import content_of, contents_of
from wsi_meta.datasets.shifts import SHIFTS
from wsi_meta.datasets.stains import stain_hue
from wsi_meta.errors import DataError, OptionsError, WsiMetaError, require
from wsi_meta.evaluation.report import check_report, write_report
from wsi_meta.evaluation.results import Agreement, Evaluation, Subject, warn
from wsi_meta.evaluation.robustness import Seen, judge_shifts
from wsi_meta.inference.agreement import AT_ONCE, NetworkFactory, compare_precisions, networks_on
from wsi_meta.inference.options import InferenceOptions
from wsi_meta.inference.predictor import Predictor
from wsi_meta.inference.torch_settings import cpu_settings, own_modes
from wsi_meta.models.card import read_card
from wsi_meta.models.features import MIN_PATCHES, FeatureStatistics
from wsi_meta.models.model import Model, describe_patches, load_model, model_path, save_model, stored_weights
from wsi_meta.progress import note, progress_bar

if TYPE_CHECKING:
    import torch

__all__ = [
    "INT8_PATCHES",
    "check_evaluation",
    "compare_int8",
    "evaluate",
    "evaluate_patches",
    "int8_metrics",
    "look_at",
    "store_feature_statistics",
]

DESCRIBED = 4000
"""Patches that tell what a training set looks like: 64 numbers and how they vary together."""
INT8_PATCHES = (1000, 3000)
"""Fewest patches that int8 is judged by (of fewer, all but a thousandth are all), and how many of more are drawn."""


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

    Raises
    ------
    DataError, ModelFileError, DeviceError
    OutputExistsError
        when `out` exists and not `overwrite`, or is no report.
    OutputPathError
        when `out` cannot be written.
    """
    InferenceOptions(device, precision, batch_size, tta)  # refuses what does not exist
    patches, words = check_evaluation(model, data, split=split, out=out, overwrite=overwrite, tell=True)
    patches.check()
    model = model.as_it_is() if isinstance(model, Model) else load_model(model)
    subject = Subject.of(model, patches, data=tell_folders(data), split=words, tta=tta) if out is not None else None
    predictor = Predictor(model, device=device, precision=precision, batch_size=batch_size, tta=tta)
    evaluation = evaluate_patches(predictor, patches, workers=workers, progress=progress, intervals=True, shifts=shifts)
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
    tell: bool = False,
) -> tuple[Patches, str]:
    """Refuse what :func:`evaluate` would refuse before its work, without importing torch, which takes seconds.

    Parameters
    ----------
    model, data, split, out, overwrite : as for :func:`evaluate`
    tell : warn of what lies among the patches and is not read

    Returns
    -------
    The patches, and in words which ones they are of all.

    Raises
    ------
    DataError, DeviceError, ModelFileError, OutputExistsError, OutputPathError
    """
    require("train", "evaluating")
    if out is not None:
        check_report(out, overwrite=overwrite)
    card = model.card if isinstance(model, Model) else read_card(model_path(model))
    if card.foreign and out is not None:
        raise OptionsError(
            f"{card.architecture}, out: the report shows where a ResNet50 looked; expected no out for another module"
        )
    splits = open_patches(data, tell=tell)
    wanted = split or next(name for name in ("test", "valid", "train") if name in splits)
    if wanted not in splits:
        raise DataError(f"{tell_folders(data)}: no '{wanted}' split; found {', '.join(splits)}")
    if split is None:
        refuse_idle(data, splits[wanted], wanted)
    splits[wanted].check_mpp(card.preprocessing.mpp, tell=tell)
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
    evaluation = replace(evaluation, contents=read, known_patches=None if known is None else known.count(read))
    warn(card, patches, evaluation, tell=True)
    if not shifts:
        return evaluation
    seen = Seen(logits[1:], np.array(hues))
    return replace(evaluation, robustness=judge_shifts(logits[0], seen, patches.labels, card, groups=groups))


def compare_int8(
    model: Model,
    patches: Patches,
    *,
    workers: int = 2,
    progress: bool = False,
    device: str = "cpu",
    bounds: tuple[int, int] = INT8_PATCHES,
    networks: NetworkFactory | None = None,
) -> dict[str, Agreement]:
    """Return how well int8 agrees with float32, in patch mode as ``int8`` and in dense mode as ``int8_dense``.

    Parameters
    ----------
    model : with its calibration; dense mode is judged where its card allows it
    patches : labelled, of both classes
    workers, progress : as for :func:`evaluate`
    device : where int8 is computed in floats, to the same result but for rare roundings, if this CPU has no VNNI
    bounds : fewest patches, and the most that are drawn
    networks : makes networks; None for :func:`.agreement.networks_on`

    Returns
    -------
    Empty where there are too few patches or one class alone.
    """
    if len(patches) < bounds[0] or model.card.foreign:
        return {}
    drawn = np.random.default_rng(0).permutation(len(patches))[: min(bounds[1], len(patches)) // AT_ONCE * AT_ONCE]
    chosen, modes = patches.select(drawn), (False, True) if model.card.dense else (False,)
    if len(set(chosen.labels)) < 2:
        return {}
    networks = networks or networks_on(device)
    with progress_bar(len(chosen), "patches", "int8 against fp32", enabled=progress) as bar:
        batches = _batches(chosen, workers, bar.update)
        logits = compare_precisions(replace(model, network=model.network.cpu()), batches, modes, networks=networks)
    found = (Agreement.of(exact, rounded, chosen.labels, model.card.calibration) for exact, rounded in logits)
    return dict(zip(("int8", "int8_dense"), found, strict=False))


def int8_metrics(found: Mapping[str, Agreement]) -> dict[str, float]:
    """Return what :func:`compare_int8` found, under the names by which a card decides whether int8 may be chosen unasked."""
    figures = [{f"{mode}_fp32_auc": agreement.usual_auc} | agreement.to_metrics(mode) for mode, agreement in found.items()]
    return {name: value for figure in figures for name, value in figure.items()}


def _batches(patches: Patches, workers: int, report: Callable[[int], None]) -> Iterator[torch.Tensor]:
    """Yield the patches, as many at a time as are compared, and report them once they were used."""
    for images, _ in read_batches(patches, AT_ONCE, workers):
        yield images
        report(len(images))


def store_feature_statistics(model: str | Path | Model, patches: Patches, *, workers: int = 2, progress: bool = False) -> bool:
    """Write into a model file what its training patches look like to it; all else in it stays as it is.

    By this a scan tells which slides are unlike the training (:mod:`wsi_meta.models.features`).

    Parameters
    ----------
    model : model file, or what was loaded from one; the file is replaced
    patches, workers, progress : as for :func:`look_at`

    Returns
    -------
    Whether it was written: not for fewer than 200 patches, which do not tell what is usual.

    Raises
    ------
    DataError, ModelFileError, OutputPathError
    """
    loaded = model if isinstance(model, Model) else load_model(model)
    seen = look_at(patches, loaded, workers=workers, progress=progress)
    if seen is not None:
        save_model(loaded.path, stored_weights(loaded), loaded.card, seen, loaded.known_patches)
    return seen is not None


def look_at(patches: Patches, model: Model, *, workers: int = 2, progress: bool = False) -> FeatureStatistics | None:
    """Return what patches look like to a model: 4,000 of them at most, drawn by chance with a fixed seed.

    It is computed on the CPU in float32, as :func:`wsi_meta.models.model.describe_patches` does it for a slide.

    Parameters
    ----------
    workers : processes that decode patches; 0 decodes in this one
    progress : show a bar on stderr

    Returns
    -------
    None for fewer than 200 patches, which do not tell what is usual.

    Raises
    ------
    DataError
    """
    if len(patches) < MIN_PATCHES:
        return None
    model.network.cpu()  # a training's network may be elsewhere
    chosen = patches.select(np.random.default_rng(0).permutation(len(patches))[:DESCRIBED])
    with progress_bar(len(chosen), "patches", "what they look like", enabled=progress) as bar:
        described = []
        for images in _batches(chosen, workers, bar.update):
            with cpu_settings():
                described.append(describe_patches(model, images.numpy()))
    return FeatureStatistics.of(np.concatenate(described))
