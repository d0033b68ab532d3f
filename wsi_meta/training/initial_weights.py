"""Where training starts from: torchvision's ImageNet weights, a file, or nothing."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsi_meta.errors import ModelFileError, first_line

__all__ = ["STAGES", "Start", "initialise", "stage_of"]

STAGES = ("none", "stem", "layer1", "layer2", "layer3", "layer4", "head")
"""A ResNet50's stages from the input on; "none" stands before the first."""


@dataclass(frozen=True)
class Start:
    """A network and which of its parameters did not start at random."""

    network: nn.Module
    loaded: frozenset[str]
    """Names of the state's entries that were loaded."""
    source: str
    summary: str
    """One line: what was and what was not loaded."""


def stage_of(name: str) -> str:
    """Return the stage that a parameter belongs to."""
    module = name.split(".")[0]
    return {"conv1": "stem", "bn1": "stem", "fc": "head"}.get(module, module)


def initialise(network: nn.Module, init: str | Path) -> Start:
    """Load initial weights into a network; whatever does not fit stays random, and the summary says so.

    Parameters
    ----------
    network : changed in place
    init : ``imagenet``, ``none`` or a file: ``.safetensors``, or a ``.pth``/``.pt`` state dict (read without running code)

    Raises
    ------
    ModelFileError
        when the file is missing, unreadable or has not one fitting tensor, or the download fails.
    """
    if str(init) == "none":
        return Start(network, frozenset(), "none", "all weights random")
    state = _download_imagenet() if str(init) == "imagenet" else _read_state(Path(init))
    own = network.state_dict()
    fitting = {name: tensor for name, tensor in state.items() if name in own and tensor.shape == own[name].shape}
    if not fitting:
        raise ModelFileError(f"{init}: none of its {len(state)} tensors fits; expected torchvision's ResNet50 names and shapes")
    network.load_state_dict(fitting, strict=False)
    missing = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
    unused = len(state) - len(fitting)
    stages = sorted({stage_of(name) for name in missing}, key=STAGES.index)
    summary = f"loaded {len(fitting)} tensors from {Path(init).name}"
    summary += f"; random: {', '.join(stages)} ({len(missing)} tensors)" if missing else "; nothing left random"
    summary += f"; not used: {unused}" if unused else ""
    return Start(network, frozenset(fitting), Path(init).name, summary)


def _download_imagenet() -> dict[str, torch.Tensor]:
    from torchvision.models import ResNet50_Weights

    try:
        return dict(ResNet50_Weights.IMAGENET1K_V2.get_state_dict(progress=True, check_hash=True))
    except Exception as error:  # no network, a broken download, a wrong hash: each its own kind, all mean the same here
        raise ModelFileError(
            f"--init imagenet: the download failed ({first_line(error)}); pass a file of weights as --init FILE, or --init none"
        ) from error


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; expected weights as .safetensors or .pth, 'imagenet' or 'none'")
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old pickles, which it then refuses
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its damage leads to
        raise ModelFileError(f"{path}: its weights cannot be read ({first_line(error)})") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    entries = content.items() if isinstance(content, dict) else ()
    return {str(name).removeprefix("module."): tensor for name, tensor in entries if isinstance(tensor, torch.Tensor)}
