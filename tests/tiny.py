"""A tiny network in place of the ResNet50, for tests of how a training proceeds."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from wsi_meta.cli import main
from wsi_meta.training.contact_sheet import contact_sheet_path
from wsi_meta.training.distributed import Processes
from wsi_meta.training.epochs import Parts
from wsi_meta.training.history import curves_path
from wsi_meta.training.initial_weights import Start
from wsi_meta.training.learner import Learner, make_learner
from wsi_meta.training.recipe import Recipe, TrainOptions
from wsi_meta.training.train import TrainResult, run_training
from wsi_meta.training.validation import Validation

HERE: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 0}
ALONE = Processes(0, 1, "cpu")


class Tiny(nn.Module):
    """Stages by a ResNet50's names and its stride of 32 px; each feature sees its own 32 px and nothing beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 32, stride=32)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU())
        self.layer4 = nn.Sequential(nn.Conv2d(6, 5, 1), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(5, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.layer4(self.layer1(self.bn1(self.conv1(inputs))))
        logits: torch.Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


TINY = Parts(
    build_network=Tiny,
    draw_contact_sheet=lambda out, *_values: contact_sheet_path(out).write_text("picture"),
    draw_curves=lambda out, *_values: curves_path(out).write_text("picture"),
    store_feature_statistics=lambda *_values, **_settings: None,
)
"""Parts that train the tiny network and spare the time that pictures and descriptions take."""


def train_tiny(
    data: str | Path | Sequence[str | Path],
    out: Path,
    *,
    init: str | Path = "none",
    recipe: Recipe,
    parts: Parts = TINY,
    **options: Any,
) -> TrainResult:
    """Train as ``wsi_meta.train`` does, with other parts."""
    return run_training(data, init, out, recipe, TrainOptions(**options), parts)


def learners(kind: type[Learner]) -> Callable[..., Learner]:
    """What makes learners of a class of one's own."""

    def make(*values: Any) -> Learner:
        made = make_learner(*values)
        return kind(**{field.name: getattr(made, field.name) for field in fields(made)})

    return make


def tiny_learner(recipe: Recipe, *, loaded: tuple[str, ...] = (), steps_per_epoch: int = 4) -> Learner:
    """A learner of the tiny network (seed 0), of which the stages `loaded` count as loaded, in its first epoch."""
    torch.manual_seed(0)
    network = Tiny()
    names = frozenset(name for name in network.state_dict() if name.split(".")[0] in loaded)
    learner = make_learner(Start(network, names, "file", ""), recipe, steps_per_epoch, ALONE, "fp32")
    learner.enter(1)
    return learner


def draw_batch(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random patches and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 96, 96, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(2, (n,), generator=generator)


def logits_of_auc(sixteenths: int, spread: float = 1.0) -> NDArray[np.float32]:
    """Logits of four normal and then four tumor patches whose AUC is so many sixteenths."""
    below = [min(4, max(0, sixteenths - 4 * tumor)) for tumor in range(4)]
    return np.array([0, 1, 2, 3, *(normals - 0.5 for normals in below)], np.float32) * spread


def scripted(losses: Iterable[float], validated: Iterable[NDArray[np.float32]]) -> Parts:
    """Parts that compute nothing: given losses of the steps, given validation logits of the epochs."""
    loss, logits = iter(losses), iter(validated)

    class ScriptedLearner(Learner):
        def step(self, *_values: Any) -> torch.Tensor:
            with torch.no_grad():
                self.network.get_parameter("fc.bias").add_(1)
            self.optimiser.step()  # without gradients: does nothing
            self.schedule.step()
            return torch.tensor(next(loss))

    class ScriptedValidation(Validation):
        def logits(self, _state: dict[str, torch.Tensor]) -> NDArray[np.float32]:
            return next(logits)

    return replace(TINY, make_learner=learners(ScriptedLearner), make_validation=ScriptedValidation)


def use_parts(monkeypatch: pytest.MonkeyPatch, parts: Parts) -> None:
    """Let ``wsi_meta.train``, and so the command line, train with other parts."""
    # the module: its package may give the function the same name
    monkeypatch.setattr(importlib.import_module("wsi_meta.training.train"), "RESNET50_PARTS", parts)


def script(monkeypatch: pytest.MonkeyPatch, losses: list[float], judged: list[NDArray[np.float32]]) -> None:
    """Let the command line train as :func:`scripted` says."""
    use_parts(monkeypatch, scripted(losses, judged))


def run_command(words: str, parts: Parts) -> None:
    """Run the command line in this process with other parts; it ends the process."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_parts(monkeypatch, parts)
        main(words.split())
