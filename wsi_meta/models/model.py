"""The classifier, its card, and the one file that holds both.

A model file is one ``.safetensors``: tensors under torchvision's names, and in its metadata, under ``wsi_meta``, the card as
JSON. Nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import ModelFileError, first_line
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.outputs import written_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from numpy.typing import NDArray
    from torch import nn

__all__ = [
    "FORMAT_VERSION",
    "Calibration",
    "Model",
    "ModelCard",
    "build_network",
    "cell_logits",
    "load_model",
    "model_path",
    "network_of",
    "read_card",
    "save_model",
]

FORMAT_VERSION = 1
"""Version of the card's layout; a file with a newer one is refused."""

DEFAULT_MODEL = Path(__file__).parent / "default.safetensors"


@dataclass(frozen=True)
class Calibration:
    """Maps a logit to the probability that is shown: ``sigmoid(logit / temperature + bias)``.

    Platt scaling (Platt 1999) in the form of Guo et al. 2017 with a bias; the neutral values leave the sigmoid as it is.
    """

    temperature: float = 1.0
    bias: float = 0.0

    def to_probability(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return calibrated probabilities (float32) of logits of any shape; NaN stays NaN.

        An element's value does not depend on its neighbours: a vectorised sigmoid rounds its last few elements
        differently, which would show as a difference between block sizes.
        """
        from scipy.special import expit

        return np.asarray(expit(logits.astype(np.float64) / self.temperature + self.bias), np.float32)


@dataclass(frozen=True)
class ModelCard:
    """What a model is, what it was trained on and how good it was; travels inside the model file."""

    architecture: str = "resnet50"
    classes: tuple[str, ...] = ("tumor",)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    dense: bool = False
    """Trained so that one pass over a whole block may replace a pass per patch."""
    calibration: Calibration = field(default_factory=Calibration)
    thresholds: dict[str, float] = field(default_factory=lambda: {"default": 0.5})
    """Named operating points: calibrated probability at or over which a cell counts as tumor."""
    training: dict[str, Any] = field(default_factory=dict)
    """Data fingerprint and recipe."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Figures measured on the validation split with the weights as stored."""
    versions: dict[str, str] = field(default_factory=dict)
    """Library versions at the time of training."""
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain JSON values."""
        return asdict(self) | {"classes": list(self.classes), "preprocessing": self.preprocessing.to_dict()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelCard:
        """Make a card from :meth:`to_dict`'s fields, all of them; KeyError, TypeError or ValueError when they do not fit."""
        if missing := {field.name for field in dataclass_fields(cls)} - set(fields):
            raise KeyError(f"missing: {', '.join(sorted(missing))}")
        fields = dict(fields)
        fields["classes"] = tuple(fields["classes"])
        fields["preprocessing"] = Preprocessing.from_dict(fields["preprocessing"])
        fields["calibration"] = Calibration(
            temperature=fields["calibration"]["temperature"], bias=fields["calibration"]["bias"]
        )
        card = cls(**fields)
        _refuse_senseless(card)
        return card


@dataclass(frozen=True)
class Model:
    """A network with its card, as :func:`load_model` returns it."""

    network: nn.Module
    """In evaluation mode, float32, on the CPU: uint8 patches through ``card.preprocessing.to_input`` in, logits (n, 1) out."""
    card: ModelCard
    hash: str
    """SHA-256 of the model file, hexadecimal."""
    path: Path


def build_network() -> nn.Module:
    """Make torchvision's ResNet50 (v1.5) with one logit, randomly initialised."""
    from torch import nn
    from torchvision.models import resnet50

    network: nn.Module = resnet50(weights=None)
    network.fc = nn.Linear(2048, 1)
    return network


def network_of(state: Mapping[str, torch.Tensor], build: Callable[[], nn.Module] = build_network) -> nn.Module:
    """Return the network that `build` makes with all weights from `state`, in float32 and in evaluation mode."""
    import torch

    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        network = build()
    weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    network.load_state_dict(weights, assign=True)
    return network.eval()


def cell_logits(network: nn.Module, inputs: torch.Tensor, *, step: int = 1) -> torch.Tensor:
    """Return the logit of every cell of larger images by one pass of the trunk: dense mode.

    ResNet50's trunk has a stride of 32 px, so each of its features stands for a cell, and a patch of 96 px is 3x3 of them:
    their mean is what the head of the patch classifier sees. A single patch gives one logit, the same as ``network(inputs)``.

    Parameters
    ----------
    network : ResNet50 as :func:`build_network` makes it
    inputs : float32 tensor (n, 3, height, width), sides in multiples of 32 and at least 96
    step : features from one window to the next: 1 scores every cell, 3 every patch of a mosaic

    Returns
    -------
    tensor (n, rows, cols): ``(side / 32 - 3) // step + 1`` logits a side.
    """
    from torch.nn.functional import avg_pool2d

    features = inputs
    for name, stage in network.named_children():
        if name == "avgpool":
            break
        features = stage(features)
    pooled = avg_pool2d(features, kernel_size=3, stride=step)
    logits: torch.Tensor = network.get_submodule("fc")(pooled.permute(0, 2, 3, 1))[..., 0]
    return logits


def model_path(path: str | Path | None) -> Path:
    """Return the path of a model file; None and the word ``default`` stand for the embedded default model."""
    return DEFAULT_MODEL if path is None or str(path) == "default" else Path(path)


def load_model(path: str | Path | None = None) -> Model:
    """Load a model file; without a path, or with the word ``default``, the embedded default model.

    Parameters
    ----------
    path : model file (``.safetensors``) or None

    Raises
    ------
    ModelFileError
        when the file is missing, damaged, a pickle, has no card, or a card of a newer format.
    """
    path = model_path(path)
    card = read_card(path)
    from safetensors.torch import load

    content = path.read_bytes()
    try:
        network = network_of(load(content))
    except Exception as error:  # safetensors and torch raise several kinds for damaged weights; all mean the same here
        raise ModelFileError(f"{path}: the weights do not fit a ResNet50 with one logit ({first_line(error)})") from error
    return Model(network, card, hashlib.sha256(content).hexdigest(), path)


def save_model(path: str | Path, state: dict[str, torch.Tensor], card: ModelCard) -> None:
    """Write weights and card as one model file, whole or not at all (a temporary file is renamed into place).

    Parameters
    ----------
    path : where to write; replaced if it exists
    state : the network's ``state_dict``, stored as it is (see :func:`half_precision`)

    Raises
    ------
    OutputPathError
        when it cannot be written; an older file stays.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with written_whole(Path(path)) as partial:
        partial.write_bytes(save(tensors, metadata={"wsi_meta": json.dumps(card.to_dict())}))


def half_precision(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a copy of a ``state_dict`` whose kernels are float16 (half the file); BatchNorm and biases stay float32."""
    import torch

    return {
        name: tensor.detach().to(torch.float16 if tensor.ndim > 1 else tensor.dtype, copy=True).cpu()
        for name, tensor in state.items()
    }


def read_card(path: str | Path) -> ModelCard:
    """Read a model file's card without its weights and without importing torch.

    Raises
    ------
    ModelFileError
        as :func:`load_model`.
    """
    path = Path(path)
    stored = _read_metadata(path).get("wsi_meta")
    if stored is None:
        raise ModelFileError(
            f"{path}: safetensors without a wsi-meta card; expected a file from 'wsi-meta train' "
            "(bare weights can go to 'train --init')"
        )
    try:
        fields = json.loads(stored)
        version = int(fields["format_version"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"{path}: its card cannot be read ({first_line(error)}); train or download it again") from error
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: card format {version} is newer than {FORMAT_VERSION}, the newest known here; update wsi-meta"
        )
    try:
        card = ModelCard.from_dict(fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: its card is incomplete ({first_line(error)}); train or download it again") from error
    if card.architecture != "resnet50":
        raise ModelFileError(f"{path}: architecture '{card.architecture}' is not known here; expected 'resnet50'")
    return card


def _read_metadata(path: Path) -> dict[str, str]:
    """Read a safetensors file's metadata; safetensors itself checks that the file is whole."""
    if not path.exists():
        raise ModelFileError(f"{path}: no such model file; expected a .safetensors file from 'wsi-meta train', or 'default'")
    if path.is_dir():
        raise ModelFileError(f"{path}: a directory; expected a .safetensors model file")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        with path.open("rb") as content:
            start = content.read(2)
        if start == b"PK" or start[:1] == b"\x80":
            raise ModelFileError(
                f"{path}: a pickle, which can run code when it is opened; expected safetensors "
                "(weights can go to 'train --init')"
            ) from None
        raise ModelFileError(
            f"{path}: not a safetensors file, or a truncated one ({first_line(error)}); train or download it again"
        ) from error


def _refuse_senseless(card: ModelCard) -> None:
    numbers = [*card.thresholds.values(), *card.metrics.values(), card.calibration.bias, card.calibration.temperature]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers):
        raise ValueError("thresholds, metrics and calibration must be numbers")
    if "default" not in card.thresholds:
        raise ValueError("thresholds must name a default")
    if card.calibration.temperature <= 0 or not isinstance(card.dense, bool):
        raise ValueError("temperature must be over 0, dense true or false")
    if not isinstance(card.training, dict) or not all(isinstance(name, str) and len(name) > 1 for name in card.classes):
        raise ValueError("training must be an object, classes a list of names")
    if not all(isinstance(value, str) for value in card.versions.values()):
        raise ValueError("versions must be texts")
