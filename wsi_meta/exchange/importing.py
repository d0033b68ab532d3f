"""A network of another tool becomes a model file: found, checked, calibrated and measured on labelled patches."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_meta.datasets.layouts import Patches, choose_split, paths_of
from wsi_meta.errors import ModelFileError, numbers, require
from wsi_meta.evaluation.calibrate import expecting, fit_card, known_when_fitted, measuring_predictor
from wsi_meta.evaluation.model_parts import INT8_PATCHES, compare_int8, int8_metrics, look_at
from wsi_meta.exchange.foreign import Foreign, ImportOptions, check_foreign, read_foreign
from wsi_meta.exchange.zoo_config import read_zoo_config
from wsi_meta.files.locks import locked
from wsi_meta.inference.agreement import NetworkFactory
from wsi_meta.inference.device import announce_torch
from wsi_meta.inference.options import InferenceOptions
from wsi_meta.inference.predictor import Predictor
from wsi_meta.inference.torch_settings import own_modes
from wsi_meta.models.card import ModelCard
from wsi_meta.models.known_patches import known_to_weights, weights_know_all
from wsi_meta.models.model import Model, build_network, network_of, write_model
from wsi_meta.models.weights_file import check_model_name
from wsi_meta.outputs.checks import check_output, refuse_input
from wsi_meta.outputs.kept_files import MODEL
from wsi_meta.outputs.paths import as_path
from wsi_meta.versions import library_versions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

__all__ = ["ImportParts", "check_import", "import_model", "run_import"]

Folders = str | Path | Sequence[str | Path]

LEAST_PATCHES = 100
"""Fewer do not tell whether 97 % of decisions are the same."""

logger = logging.getLogger("wsi_meta")


def import_model(
    file: str | Path,
    data: Folders,
    out: str | Path,
    *,
    naming: str = "auto",
    pixels: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    mpp: float | None = None,
    tumor_class: str | int | None = None,
    config: str | Path | None = None,
    split: str | None = None,
    prior: float | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 64,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = False,
) -> ModelCard:
    """Make a model file of a ResNet50 of another tool.

    Its head of one logit, or of two whose difference is taken, which is exact, is calibrated on labelled patches, and all
    figures are measured on them. Dense mode and int8 are allowed where they were seen to agree on at least 100 patches (AUC
    within 0.004, the same decision on 97 %); unasked, int8 is taken by the bars of every model
    (:data:`wsi_meta.models.card.INT8_BARS`). The weights are kept as they are. Some networks (such as timm's resnetblur50)
    have a ResNet50's weights and compute something else: of bare weights only the figures tell, of a TorchScript its own
    logits.

    Parameters
    ----------
    file : weights (``.safetensors``, ``.pth``, ``.pt``), read without running code; or a TorchScript of WSInfer's zoo, whose
        weights are taken out and whose own logits must be the same
    data : folders of labelled patches that the model was not trained on
    out : model file to write
    naming : ``auto``, ``torchvision``, ``timm`` (the same names) or ``tiatoolbox``
    pixels : what the network was shown: ``imagenet`` (less ImageNet's mean, over its deviation), ``0..1`` or ``-1..1``. With
        TIAToolbox's names the default is ``0..1``
    mean, std : of pixels scaled to 0..1, three each, instead of `pixels`
    mpp : micrometres per pixel of its patches. With TIAToolbox's names the default is 1.0, as of its ``resnet50-pcam``
    tumor_class : which of two logits is the tumor's: 0 or 1, or its name in `config`; None is 1, or the name that says tumor
    config : a TorchScript's ``config.json``; None: the one beside it
    split, prior, device, precision, batch_size, workers, overwrite, progress : see :func:`wsi_meta.calibrate`

    Returns
    -------
    The card of the model file.

    Raises
    ------
    ModelFileError
        when it is another network, cannot be read, or tells tumor from normal worse than chance.
    OptionsError
        when what the file does not say is not said, or said twice.
    DataError, DeviceError, OutputExistsError, OutputPathError
    """
    options = ImportOptions(
        naming=naming,
        pixels=pixels,
        mean=None if mean is None else numbers("mean", mean, 3, "three numbers"),
        std=None if std is None else numbers("std", std, 3, "three numbers"),
        mpp=mpp,
        tumor_class=tumor_class,
        config=None if config is None else as_path("config", config),
        split=split,
        prior=prior,
        device=device,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
    )
    return run_import(as_path("file", file), paths_of(data), as_path("out", out), options)


def check_import(file: Path, data: Folders, out: Path, options: ImportOptions) -> Patches:
    """Refuse what :func:`import_model` would refuse before its work, without importing torch, which takes seconds.

    Parameters
    ----------
    file, data, out : as for :func:`import_model`
    options : its other ones

    Returns
    -------
    The patches to measure on.

    Raises
    ------
    ModelFileError, OptionsError, DataError, DeviceError, OutputExistsError, OutputPathError
    """
    InferenceOptions(options.device, options.precision, options.batch_size)  # refuses what does not exist
    require("train", "importing a model")
    check_model_name(out)
    check_output(out, overwrite=options.overwrite, replaces=MODEL)
    config = check_foreign(file, options)
    refuse_input(out, "the model to import", file, config)
    patches = choose_split(data, split=options.split)
    if config is not None and (seen_px := read_zoo_config(config).preprocessing.patch_px) != patches.patch_px:
        raise ModelFileError(
            f"{config}: the model is shown patches of {seen_px} px; expected {patches.patch_px} px, as labelled patches have; "
            "in Python, Model.from_module scans with it"
        )
    return patches


@own_modes()
def run_import(file: Path, data: Folders, out: Path, options: ImportOptions, parts: ImportParts | None = None) -> ModelCard:
    """Import as :func:`import_model` does; `parts` is what an import is made of, None: the usual parts."""
    parts = parts or ImportParts()
    patches = check_import(file, data, out, options)
    patches.check()
    announce_torch()
    foreign = read_foreign(file, options, parts.build_network)
    patches.check_mpp(foreign.preprocessing.mpp)
    told = {"imported": _origin(file, foreign)} | ({} if weights_know_all(file) else {"init_known": False})
    card = ModelCard(preprocessing=foreign.preprocessing, training=told)
    model = Model(network_of(foreign.state, parts.build_network), card, "", file, known_patches=known_to_weights(file))
    foreign.check(model, patches)
    predictor = measuring_predictor(model, InferenceOptions(options.device, options.precision, options.batch_size))
    asked: dict[str, Any] = {"workers": options.workers, "progress": options.progress}
    card, logits, patches = fit_card(predictor, patches, **asked, remedy=foreign.remedy)
    expecting(options.prior, card, logits, patches)  # refuses a prior before more work
    others = Others(replace(model, card=card), patches, logits, options)
    card = expecting(options.prior, others.allowed(predictor, parts.networks), logits, patches)
    seen = look_at(patches, model, **asked)
    with locked(out):
        check_output(out, overwrite=options.overwrite, replaces=MODEL)  # it took a while
        known = known_when_fitted(model, patches)
        write_model(out, foreign.compact_state(), replace(card, versions=library_versions()), seen, known)
    return card


def _origin(file: Path, foreign: Foreign) -> dict[str, Any]:
    """Return what a card keeps of where its network came from."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"file": file.name, "sha256": digest, "int8": False} | foreign.facts


@dataclass(frozen=True)
class Others:
    """Asks of the other ways to compute a model, dense mode and int8, whether they agree with the usual one."""

    model: Model
    """With the card that was fitted."""
    patches: Patches
    logits: NDArray[np.float32]
    """Of the patches, in patch mode, before calibration: (n,)."""
    options: ImportOptions

    def allowed(self, predictor: Predictor, networks: NetworkFactory | None) -> ModelCard:
        """Return the card that allows dense mode and int8 where they agree, and records how well they do.

        Parameters
        ----------
        predictor : which gave the logits
        networks : as for :func:`wsi_meta.evaluation.model_parts.compare_int8`
        """
        card, options = self.model.card, self.options
        if len(self.patches) < LEAST_PATCHES:
            told = "dense mode and int8 are not allowed: %d patches; expected at least %d to judge them by"
            logger.info(told, len(self.patches), LEAST_PATCHES)
            return card
        from wsi_meta.training.mosaics import compare_dense

        asked: dict[str, Any] = {"device": predictor.device, "workers": options.workers, "progress": options.progress}
        dense = compare_dense(self.model, self.patches, self.logits, precision=predictor.precision, **asked)
        card = replace(card, dense=dense.holds, metrics=card.metrics | dense.to_metrics("dense"))
        int8 = compare_int8(
            replace(self.model, card=card),
            self.patches,
            **asked,
            bounds=(LEAST_PATCHES, INT8_PATCHES[1]),
            networks=networks,
        )
        agrees = bool(int8) and all(found.holds for found in int8.values())
        imported = card.training["imported"] | {"int8": agrees}
        return replace(card, metrics=card.metrics | int8_metrics(int8), training=card.training | {"imported": imported})


@dataclass(frozen=True)
class ImportParts:
    """What an import is made of."""

    build_network: Callable[[], nn.Module] = build_network
    """Makes the network that the weights are for."""
    networks: NetworkFactory | None = None
    """Makes the networks that int8 is judged by; None: those of scans."""
