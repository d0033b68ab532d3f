"""A model file becomes what other programs run: TorchScript for WSInfer, or ONNX; compared with the model itself."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_meta.errors import ModelFileError, OutputExistsError, one_of, require, truth
from wsi_meta.exchange.zoo_config import ZooConfig
from wsi_meta.files.locks import locked
from wsi_meta.inference.device import announce_torch
from wsi_meta.inference.torch_settings import own_modes
from wsi_meta.models.card import read_card
from wsi_meta.models.model import Model, load_model, model_path
from wsi_meta.outputs.checks import check_folder, refuse_input
from wsi_meta.outputs.kept_files import refuse_inside_store
from wsi_meta.outputs.paths import as_path
from wsi_meta.outputs.writing import filled_folder, finish_replacing, replace_files

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

__all__ = ["FORMATS", "Exported", "check_export", "export_model", "write_exported"]

SCRIPT, CONFIG = "torchscript_model.pt", "config.json"
"""Names that WSInfer's zoo gives them."""
ONNX = "model.onnx"
FORMATS = {"torchscript": (SCRIPT, CONFIG), "onnx": (ONNX,)}
"""Files of each format; the last one is written last."""
CLASSES = ("normal", "tumor")
TRIED = 5
"""Patches of noise on which what was written is compared; another number than it was traced with."""
AGREES = 1e-4
"""Largest difference of logits, for each unit of the largest, that another order of sums can make."""


@dataclass(frozen=True)
class Exported:
    """What :func:`export_model` wrote."""

    files: tuple[Path, ...]
    largest_difference: float
    """Of the calibrated logits of a few patches of noise, from those of the model itself."""
    tolerance: float
    """Which it was held to."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            "files": [str(file) for file in self.files],
            "largest_difference": self.largest_difference,
            "tolerance": self.tolerance,
        }


@own_modes()
def export_model(
    model: str | Path | None,
    out: str | Path,
    *,
    format: str = "torchscript",  # noqa: A002  (as the option is called)
    overwrite: bool = False,
) -> Exported:
    """Write a model for other programs. Its two logits are 0 and the calibrated one, so their softmax is our probability.

    ``torchscript`` writes ``torchscript_model.pt``, which takes normalised patches, float32 (n, 3, patch_px, patch_px), and
    WSInfer's ``config.json``. ``onnx`` writes ``model.onnx``, which takes ``pixels``, uint8 (n, patch_px, patch_px, 3), and
    gives ``logits``, float32 (n, 2), and ``probability``, float32 (n,); its metadata hold the card. What was written is loaded
    again and compared with the model.

    Parameters
    ----------
    model : model file, ``default`` or None for the embedded one
    out : folder to write into; made if it does not exist
    format : ``torchscript`` or ``onnx``; the second needs the extra ``onnx``
    overwrite : replace an older export in `out`

    Returns
    -------
    The files, and how far their logits are from the model's.

    Raises
    ------
    ModelFileError
        when the model cannot be read, or what was written gives other logits.
    OptionsError
        when the format does not exist.
    DeviceError
        when what the format needs is not installed.
    OutputExistsError, OutputPathError
    """
    check_export(model, out, format=format, overwrite=overwrite)
    announce_torch()
    return write_exported(load_model(model), Path(out), format, overwrite=overwrite)


def check_export(
    model: str | Path | None,
    out: str | Path,
    *,
    format: str = "torchscript",  # noqa: A002  (as the option is called)
    overwrite: bool = False,
) -> None:
    """Refuse what :func:`export_model` would refuse before its work, without importing torch.

    Raises
    ------
    DeviceError, ModelFileError, OptionsError, OutputExistsError, OutputPathError
    """
    out, overwrite = as_path("out", out), truth("overwrite", overwrite)
    one_of("format", format, FORMATS)
    read_card(model_path(model))
    if format == "onnx":
        require("onnx", "ONNX", instead="; --format torchscript needs nothing more")
    check_folder(out)
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out}: a file; expected the name of a folder to write into")
    refuse_inside_store(out / CONFIG)
    with locked(out):
        finish_replacing(out, FORMATS[format])
    for name in FORMATS[format]:
        refuse_input(out / name, "the model to export", model_path(model))
    _refuse_older(out, format, overwrite=overwrite)


def _refuse_older(out: Path, kind: str, *, overwrite: bool) -> None:
    there = [name for name in FORMATS[kind] if (out / name).exists()]
    if there and not overwrite:
        raise OutputExistsError(f"{out}: holds {there[0]}; choose another --out, or pass --overwrite to replace it")


def write_exported(model: Model, out: Path, kind: str, *, overwrite: bool = True) -> Exported:
    """Write a loaded model as :func:`export_model` does, over an older one, whole or not at all; `kind` is the format."""
    names, network = FORMATS[kind], calibrated_network(model)
    with locked(out), filled_folder(out, alone=True) as made:
        _refuse_older(out, kind, overwrite=overwrite)  # loading the model took a while
        apart, limit = (_write_script if kind == "torchscript" else _write_onnx)(made, model, network)
        if not apart <= limit:
            raise ModelFileError(f"{model.path}: as {kind} its logits differ by {apart:.2g}; expected {limit:.1g} at most")
        replace_files(made, out, names)
    return Exported(tuple(out / name for name in names), apart, limit)


def calibrated_network(model: Model) -> nn.Module:
    """Return a copy of a model's network with two logits whose softmax is the calibrated probability.

    Its kernels lie in memory with the channels last, which a CPU computes half as fast again.
    """
    import torch
    from torch import nn

    from wsi_meta.exchange.states import two_logits

    network = copy.deepcopy(model.network).eval().requires_grad_(False)
    head = network.get_submodule("fc")
    weight, bias = two_logits(head.get_parameter("weight"), head.get_parameter("bias"), model.card.calibration)
    network.fc = nn.Linear(weight.shape[1], 2, device="meta")  # no random numbers of the caller's
    network.fc.weight, network.fc.bias = (nn.Parameter(part, requires_grad=False) for part in (weight, bias))
    channels_last: nn.Module = network.to(memory_format=torch.channels_last)
    return channels_last


def _write_script(folder: Path, model: Model, network: nn.Module) -> tuple[float, float]:
    """Write TorchScript and configuration; return how far its logits are from the model's, and how far they may be."""
    from wsi_meta.exchange.torchscript import load_script, script_logits, write_script

    shown = model.card.preprocessing
    write_script(folder / SCRIPT, network, shown.patch_px)
    (folder / CONFIG).write_text(json.dumps(ZooConfig(CLASSES, shown).to_dict(), indent=2) + "\n", "utf-8")
    found = script_logits(load_script(folder / SCRIPT), shown.to_input(_noise(model)), folder / SCRIPT)
    return _compare(model, found.numpy())


def _write_onnx(folder: Path, model: Model, network: nn.Module) -> tuple[float, float]:
    from wsi_meta.exchange.onnx_file import run_onnx, write_onnx

    write_onnx(folder / ONNX, network, model)
    return _compare(model, run_onnx(folder / ONNX, _noise(model).numpy()))


def _noise(model: Model) -> torch.Tensor:
    """Return patches of noise, uint8 (n, patch_px, patch_px, 3)."""
    import numpy as np
    import torch

    side = model.card.preprocessing.patch_px
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (TRIED, side, side, 3), np.uint8))


def _compare(model: Model, found: NDArray[np.float32]) -> tuple[float, float]:
    """Return the largest difference of two logits' difference from the model's calibrated logit, and its limit."""
    import numpy as np
    import torch

    with torch.inference_mode():
        raw = model.network(model.card.preprocessing.to_input(_noise(model)))[:, 0].double().numpy()
    ours = raw / model.card.calibration.temperature + model.card.calibration.bias
    apart = np.abs(found[:, 1].astype(np.float64) - found[:, 0] - ours)
    return float(apart.max()), AGREES * max(1.0, float(np.abs(ours).max()))
