"""The classifier, its card, and the one file that holds both.

A model file is one ``.safetensors``: tensors under torchvision's names, and in its metadata, under ``wsi_meta``, the card as
JSON. Nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from wsi_meta.errors import ModelFileError, OptionsError, of_kind
from wsi_meta.files.same_file import SameFile
from wsi_meta.models.card import CARD_KEY, Calibration, ModelCard, check_card, read_card
from wsi_meta.models.features import FEATURES_KEY, STAGE, FeatureStatistics, describe_features, read_features
from wsi_meta.models.known_patches import PATCHES_KEY, KnownPatches, read_known_patches
from wsi_meta.models.weights import check_weights, digest_of
from wsi_meta.models.weights_file import check_model_name, check_written, with_metadata
from wsi_meta.outputs.checks import check_output
from wsi_meta.outputs.kept_files import MODEL
from wsi_meta.outputs.paths import as_path
from wsi_meta.outputs.writing import written_whole
from wsi_meta.words import first_line

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray
    from torch import nn

    from wsi_meta.models.preprocessing import Preprocessing

__all__ = [
    "Model",
    "build_network",
    "describe_patches",
    "load_model",
    "model_path",
    "network_of",
    "save_model",
    "stored_weights",
    "write_model",
]

PATCHES_AT_ONCE = 16
"""Patches that are described in one pass: little memory."""
REPLACED = "was replaced while it was opened; start again"
DEFAULT_MODEL = Path(__file__).parent / "default.safetensors"


@dataclass(frozen=True)
class Model:
    """A network with its card, as :func:`load_model` returns it, or :meth:`from_module` makes it."""

    network: nn.Module
    """In evaluation mode, float32, on the CPU: uint8 patches through ``card.preprocessing.to_input`` in, logits (n, 1) out."""
    card: ModelCard
    hash: str
    """SHA-256 of the model file, hexadecimal; of a module's parts, see :meth:`from_module`."""
    path: Path
    """The model file; of a module the name of its class."""
    features: FeatureStatistics | None = None
    """What the patches in its file look like to it; None where the file does not say."""
    made_of: str | None = field(default=None, repr=False, compare=False)
    """Digest of network and card as they were when it was loaded or made: what `hash` is of. None where that is not known."""
    known_patches: KnownPatches | None = field(default=None, repr=False, compare=False)
    """Marks of the patches that it was made with; None where its file does not say."""

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        preprocessing: Preprocessing,
        *,
        tumor_class: int = 1,
        calibration: Calibration | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> Self:
        """Make a model of any module, to scan with in patch mode and in float32, in this process.

        A heatmap is continued only by the same model. Its hash is of the weights and buffers, of the classes of all parts with
        what they print of themselves, their plain attributes and their source where Python has it, of the preprocessing and the
        calibration. What else a module computes with (functions that it calls, hooks, a library's version) it does not tell.
        Of later changes to the model's own copy those of weights, buffers and what it saves besides make it another model;
        attributes do not, for a module may keep something of each pass.

        Parameters
        ----------
        module : patches through ``preprocessing.to_input``, float32 (n, 3, patch_px, patch_px), in; logits out: (n,), (n, 1)
            or (n, 2). It is copied and not changed
        preprocessing : pixel size, patch size, mean and standard deviation that it was trained with
        tumor_class : which of two logits is the tumor's
        calibration : from logit to probability; None leaves the sigmoid as it is
        thresholds : named operating points; None is a default of 0.5

        Raises
        ------
        OptionsError
            when it returns something else, or cannot take such patches, or a value is not possible.
        """
        from wsi_meta.models.any_module import TumorLogit, hash_module, name_of

        expected = "a dict of numbers by name"
        points = of_kind("thresholds", thresholds or {}, Mapping, expected)  # type: ignore[type-abstract]
        card = ModelCard(
            architecture=name_of(module),
            preprocessing=preprocessing,
            calibration=calibration or Calibration(),
            thresholds={"default": 0.5} | dict(points),
        )
        try:
            card = ModelCard.from_dict(card.to_dict())
        except (ValueError, TypeError) as error:
            raise OptionsError(f"{card.architecture}: {first_line(error)}") from error
        network = TumorLogit(module, tumor_class)
        network.check(card.preprocessing)
        return cls(network, card, hash_module(network, card), Path(card.architecture), made_of=digest_of(network, card))

    def as_it_is(self) -> Self:
        """Return this model; where what its network saves, or its card, was changed since, with a hash of its own.

        A ResNet that is trained on at the moment, or was moved or rounded, is copied as :attr:`network` is to be.
        """
        from wsi_meta.models.resnet import at_rest

        network = self.network if self.card.foreign else at_rest(self.network)
        if self.made_of is None or (now := digest_of(network, self.card)) == self.made_of:
            return self if network is self.network else replace(self, network=network)
        return replace(self, network=network, hash=hashlib.sha256(f"{self.hash} {now}".encode()).hexdigest(), made_of=now)


def build_network() -> nn.Module:
    """Make a ResNet50 (v1.5) with one logit, randomly initialised."""
    from torch import nn

    from wsi_meta.models.resnet import ResNet

    network = ResNet()
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


def describe_patches(model: Model, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the numbers that describe patches, in float32 on the CPU; see :mod:`wsi_meta.models.features`.

    Call it within :func:`wsi_meta.inference.torch_settings.cpu_settings` where a program around may have set torch otherwise.

    Parameters
    ----------
    patches : uint8 (n, patch_px, patch_px, 3), RGB at the model's mpp; at least one

    Returns
    -------
    float32 array (n, 64).
    """
    import torch

    from wsi_meta.models.resnet import features_after

    # every pass is of as many patches: of fewer, torch convolves in a way that depends on the number of threads
    filled = np.concatenate([patches, np.zeros((-len(patches) % PATCHES_AT_ONCE, *patches.shape[1:]), np.uint8)])
    with torch.inference_mode():
        inputs = map(model.card.preprocessing.to_input, torch.from_numpy(filled).split(PATCHES_AT_ONCE))
        found = [features_after(STAGE, model.network, some).mean((2, 3)).numpy() for some in inputs]
    return np.concatenate([describe_features(some) for some in found])[: len(patches)]


def model_path(path: str | Path | None) -> Path:
    """Return the path of a model file; None and the word ``default`` stand for the embedded default model."""
    return DEFAULT_MODEL if path is None or str(path) == "default" else as_path("model", path)


def load_model(path: str | Path | None = None) -> Model:
    """Load a model file; without a path, or with the word ``default``, the embedded default model.

    Parameters
    ----------
    path : model file (``.safetensors``) or None

    Returns
    -------
    The network on the CPU, ready to predict, its card, and the SHA-256 of its file.

    Raises
    ------
    ModelFileError
        when the file is missing, damaged, a pickle or replaced meanwhile, or its card or weights are none that can be used.
    """
    path = model_path(path)
    before = SameFile.at(path) if path.exists() else None
    card, features, known = read_card(path), read_features(path), read_known_patches(path)
    from safetensors.torch import load

    content = path.read_bytes()
    if SameFile.at(path) != before:  # a training writes its model after each epoch that was the best
        raise ModelFileError(f"{path}: {REPLACED}")
    with _fitting(path):
        weights = load(content)
        check_written(content, path)
        check_weights(weights, path, card.int8_ranges)
        network = network_of(weights)
    return Model(network, card, hashlib.sha256(content).hexdigest(), path.absolute(), features, digest_of(network, card), known)


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Raise ModelFileError for what is raised within: safetensors and torch raise several kinds for weights that do not fit."""
    try:
        yield
    except ModelFileError:
        raise
    except Exception as error:
        raise ModelFileError(f"{path}: the weights do not fit a ResNet50 with one logit ({first_line(error)})") from error


def stored_weights(model: Model) -> dict[str, torch.Tensor]:
    """Return the weights as the file holds them that a model was loaded from; ModelFileError where it was replaced since."""
    from safetensors.torch import load

    content = model.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != model.hash:
        raise ModelFileError(f"{model.path}: {REPLACED}")
    return load(content)


def save_model(
    path: str | Path,
    state: dict[str, torch.Tensor],
    card: ModelCard,
    features: FeatureStatistics | None = None,
    known_patches: KnownPatches | None = None,
) -> None:
    """Write weights and card as one model file, whole or not at all (a temporary file is renamed into place).

    What :func:`load_model` would refuse is not written. Weights that were trained from those of a file with ``int8_ranges`` in
    its card get ranges by ``wsi-meta train`` alone: let `card.training` say ``{"init_int8": False}``, and int8 is refused.

    Parameters
    ----------
    path : where to write, ``.safetensors``; a model file there is replaced
    state : a ResNet50's ``state_dict``, stored as it is (see :func:`wsi_meta.models.weights.half_precision`)
    features : what patches are like that the model was fitted to, for :func:`wsi_meta.models.features.read_features`
    known_patches : marks of the patches that it was made with

    Raises
    ------
    ModelFileError
        when card or weights are none that can be used; an older file stays.
    OutputPathError
        when it cannot be written, or its name or the file there is of another kind; an older file stays.
    """
    path, mend = as_path("path", path), "nothing was written: mend it"
    check_model_name(path)
    check_output(path, overwrite=True, replaces=MODEL)
    card = check_card(of_kind("card", card, ModelCard, "a ModelCard").to_dict(), path, mend)
    with _fitting(path):
        check_weights(state, path, card.int8_ranges)
        network_of(state)
    write_model(path, state, card, features, known_patches)


def write_model(
    path: Path,
    state: Mapping[str, torch.Tensor],
    card: ModelCard,
    features: FeatureStatistics | None = None,
    known_patches: KnownPatches | None = None,
) -> None:
    """Write what is known to be right as :func:`save_model` does, also another network, which no :func:`load_model` takes."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {CARD_KEY: json.dumps(card.to_dict())}
    if features is not None:
        metadata[FEATURES_KEY] = json.dumps(features.to_dict())
    if known_patches is not None:
        metadata[PATCHES_KEY] = known_patches.to_json()
    with written_whole(path) as partial:
        partial.write_bytes(with_metadata(save(tensors), metadata))
