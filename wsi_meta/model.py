"""The classifier, its card, and the one file that holds both.

A model file is one ``.safetensors``: tensors under torchvision's names, and in its metadata, under ``wsi_meta``, the card as
JSON. Nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_meta.errors import ModelFileError
from wsi_meta.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["FORMAT_VERSION", "Calibration", "Model", "ModelCard", "build_network", "load_model", "read_card", "save_model"]

FORMAT_VERSION = 1
"""Version of the card's layout; a file with a newer one is refused."""

DEFAULT_MODEL = Path(__file__).parent / "models" / "default.safetensors"


@dataclass(frozen=True)
class Calibration:
    """Maps a logit to the probability that is shown: ``sigmoid(logit / temperature + bias)``.

    Platt scaling (Platt 1999) in the form of Guo et al. 2017 with a bias; the neutral values leave the sigmoid as it is.
    """

    temperature: float = 1.0
    bias: float = 0.0

    def to_probability(self, logits: torch.Tensor) -> torch.Tensor:
        """Give calibrated probabilities (float32) of logits of any shape; NaN stays NaN."""
        import torch

        return torch.sigmoid(logits.float() / self.temperature + self.bias)


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
        """Give the card as plain JSON values."""
        return asdict(self) | {"classes": list(self.classes), "preprocessing": self.preprocessing.to_dict()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelCard:
        """Make a card from :meth:`to_dict`'s fields; KeyError, TypeError or ValueError when they do not fit."""
        fields = dict(fields)
        fields["classes"] = tuple(fields["classes"])
        fields["preprocessing"] = Preprocessing.from_dict(fields["preprocessing"])
        fields["calibration"] = Calibration(**fields["calibration"])
        return cls(**fields)


@dataclass(frozen=True)
class Model:
    """A network with its card, as :func:`load_model` gives it."""

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
    path = DEFAULT_MODEL if path is None or str(path) == "default" else Path(path)
    card = read_card(path)
    from safetensors.torch import load

    content = path.read_bytes()
    network = build_network()
    try:
        network.load_state_dict(load(content))
    except Exception as error:  # safetensors and torch raise several kinds for damaged weights; all mean the same here
        raise ModelFileError(f"{path}: the weights do not fit a ResNet50 with one logit ({_first_line(error)})") from error
    return Model(network.eval(), card, hashlib.sha256(content).hexdigest(), path)


def save_model(path: str | Path, state: dict[str, torch.Tensor], card: ModelCard) -> None:
    """Write weights and card as one model file, whole or not at all (a temporary file is renamed into place).

    Parameters
    ----------
    path : where to write; replaced if it exists
    state : the network's ``state_dict``, stored as it is (see :func:`half_precision`)
    """
    from safetensors.torch import save

    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        partial.write_bytes(save(tensors, metadata={"wsi_meta": json.dumps(card.to_dict())}))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def half_precision(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give a copy of a ``state_dict`` whose kernels are float16 (half the file); BatchNorm and biases stay float32."""
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
    header = _read_header(path)
    stored = header.get("__metadata__", {}).get("wsi_meta")
    if stored is None:
        raise ModelFileError(
            f"{path}: safetensors without a wsi-meta card; expected a file from 'wsi-meta train' (bare weights go to 'train --init')"
        )
    try:
        fields = json.loads(stored)
        version = int(fields["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: its card cannot be read ({_first_line(error)}); train or download it again") from error
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: card format {version} is newer than {FORMAT_VERSION}, the newest known here; update wsi-meta"
        )
    try:
        card = ModelCard.from_dict(fields)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: its card is incomplete ({_first_line(error)}); train or download it again") from error
    if card.architecture != "resnet50":
        raise ModelFileError(f"{path}: architecture '{card.architecture}' is not known here; expected 'resnet50'")
    return card


def _read_header(path: Path) -> dict[str, Any]:
    """Read the JSON header of a safetensors file: 8 bytes of length (little endian), then JSON, then tensors."""
    if not path.exists():
        raise ModelFileError(f"{path}: no such model file; expected a .safetensors file from 'wsi-meta train', or 'default'")
    if path.is_dir():
        raise ModelFileError(f"{path}: a directory; expected a .safetensors model file")
    with path.open("rb") as file:
        start = file.read(8)
        if start[:2] == b"PK" or start[:1] == b"\x80":
            raise ModelFileError(
                f"{path}: a pickle, which can run code when it is opened; expected safetensors (weights can go to 'train --init')"
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        try:
            header = json.loads(file.read(length)) if 2 <= length <= path.stat().st_size - 8 else None
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelFileError(f"{path}: not a safetensors file, or a truncated one; train or download it again") from None
    if path.stat().st_size != 8 + length + end:
        raise ModelFileError(
            f"{path}: truncated: {path.stat().st_size} bytes, expected {8 + length + end}; train or download it again"
        )
    return dict(header)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
