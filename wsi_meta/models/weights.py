"""Weights of any network read from a file, without running what is in it."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from wsi_meta.errors import ModelFileError, first_line

__all__ = ["read_weights"]

WITHIN = ("state_dict", "model_state_dict", "model")
"""Under one of these names a checkpoint holds its weights, beside epoch and optimiser."""


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a ``state_dict`` by their names: of ``.safetensors``, else of what ``torch.save`` wrote.

    A file of torch is a pickle, of which only tensors are read: code in it is never run. Of a checkpoint its weights are taken;
    the ``module.`` that parallel training puts before names is left out.

    Raises
    ------
    ModelFileError
        when the file is missing, damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; expected weights as .safetensors or .pth, 'imagenet' or 'none'")
    from safetensors.torch import load_file

    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else _load_pickled(path)
    except pickle.UnpicklingError as error:
        told = "holds code or objects beside tensors, or is damaged; code is never run"
        raise ModelFileError(
            f"{path}: its weights cannot be read: it {told}; expected a state_dict: torch.save(network.state_dict(), FILE)"
        ) from error
    except Exception as error:  # what a damaged file raises depends on the damage
        raise ModelFileError(f"{path}: its weights cannot be read ({first_line(error)})") from error
    content = content if isinstance(content, Mapping) else {}
    content = next((content[name] for name in WITHIN if isinstance(content.get(name), Mapping)), content)
    tensors = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _load_pickled(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about old pickles and then refuses them
        return torch.load(path, map_location="cpu", weights_only=True)
