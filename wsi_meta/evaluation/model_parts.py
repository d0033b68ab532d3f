"""What a model file says by labelled patches: how well int8 agrees with float32, and what its training patches look like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.datasets.batches import read_batches
from wsi_meta.datasets.layouts import Patches
from wsi_meta.evaluation.results import Agreement
from wsi_meta.inference.agreement import AT_ONCE, NetworkFactory, compare_precisions, networks_on
from wsi_meta.inference.torch_settings import cpu_settings
from wsi_meta.models.features import MIN_PATCHES, FeatureStatistics
from wsi_meta.models.model import Model, describe_patches, load_model, stored_weights, write_model
from wsi_meta.progress import progress_bar

if TYPE_CHECKING:
    import torch

__all__ = ["INT8_PATCHES", "compare_int8", "int8_metrics", "look_at", "store_feature_statistics"]

DESCRIBED = 4000
"""Patches that tell what a training set looks like: 64 numbers and how they vary together."""
INT8_PATCHES = (1000, 3000)
"""Fewest patches that int8 is judged by (of fewer, all but a thousandth are all), and how many of more are drawn."""


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
        write_model(loaded.path, stored_weights(loaded), loaded.card, seen, loaded.known_patches)
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
