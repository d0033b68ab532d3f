"""The weights that training starts from: torchvision's ImageNet weights, a file's, or random ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.hub import load_state_dict_from_url
from torch.overrides import TorchFunctionMode

from wsi_meta.errors import ModelFileError, first_line
from wsi_meta.models.resnet import IMAGENET_WEIGHTS
from wsi_meta.models.weights import read_weights

__all__ = ["STAGES", "Start", "build_seeded", "initialise", "source_of", "stage_of"]

STAGES = ("none", "stem", "layer1", "layer2", "layer3", "layer4", "head")
"""The stages of a ResNet50, the one nearest to the input first; "none" means no stage at all."""


@dataclass(frozen=True)
class Start:
    """A network before its first step, and which of its weights were loaded."""

    network: nn.Module
    loaded: frozenset[str]
    """Names of the loaded entries of its ``state_dict``; the others are random."""
    source: str
    """Name of the file, ``imagenet`` or ``none``."""
    summary: str
    """One line for a person: what was loaded and what was not."""


def stage_of(name: str) -> str:
    """Return the stage that a parameter belongs to."""
    module = name.split(".")[0]
    return {"conv1": "stem", "bn1": "stem", "fc": "head"}.get(module, module)


def build_seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a network whose random weights depend on the seed alone.

    The weights are those that ``torch.manual_seed(seed)`` would give, but torch's global generator is neither used nor changed.
    """
    with _DrawFrom(torch.Generator().manual_seed(seed)):
        return build()


class _DrawFrom(TorchFunctionMode):
    """Gives its generator to every call that passes one, as all of ``torch.nn.init`` do. It affects the calling thread only."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if "generator" in kwargs:
            kwargs["generator"] = self.generator
        return function(*args, **kwargs)


def initialise(network: nn.Module, init: str | Path) -> Start:
    """Load initial weights into a network. What does not fit stays random, and the summary says so.

    Parameters
    ----------
    network : changed in place
    init : ``imagenet``, ``none`` or a file: ``.safetensors``, or a ``.pth``/``.pt`` state dict (read without running code)

    Raises
    ------
    ModelFileError
        when the file is missing or unreadable, when none of its tensors fits, or when the download fails.
    """
    if str(init) == "none":
        return Start(network, frozenset(), "none", "all weights random")
    state = _download_imagenet() if str(init) == "imagenet" else read_weights(Path(init))
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


def source_of(init: str | Path) -> dict[str, str]:
    """Return where initial weights come from, as a card records it: a name and, of a file, the SHA-256 of its bytes."""
    named = {"init": Path(init).name}
    return named if str(init) in ("imagenet", "none") else named | {"init_sha256": sha256(Path(init).read_bytes()).hexdigest()}


def _download_imagenet() -> dict[str, torch.Tensor]:
    try:
        return dict(load_state_dict_from_url(IMAGENET_WEIGHTS, map_location="cpu", check_hash=True, weights_only=True))
    except Exception as error:  # a missing connection, a broken download and a wrong hash each raise another kind
        raise ModelFileError(
            f"--init imagenet: the download failed ({first_line(error)}); pass a file of weights as --init FILE, or --init none"
        ) from error
