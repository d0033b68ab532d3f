"""A network in training and what changes it: optimiser, schedule, moving average, the step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from wsi_meta.errors import DeviceError
from wsi_meta.inference.device import resolve_precision
from wsi_meta.inference.fast_network import compiler_found
from wsi_meta.models.model import cell_logits
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.training.augment import augment
from wsi_meta.training.distributed import Processes
from wsi_meta.training.initial_weights import STAGES, Start, stage_of
from wsi_meta.training.mosaics import make_mosaics
from wsi_meta.training.recipe import Recipe

__all__ = ["Learner", "make_learner"]

COMPILE_STEPS = 2000
"""A training of fewer steps is not compiled on a GPU: it would take longer to compile than it saves."""


class _PatchLogits(nn.Module):
    """The network as training sees it: one logit a patch, from single patches and from mosaics alike."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return cell_logits(self.network, inputs, step=3).flatten()


@dataclass
class Learner:
    """A network and what changes it; the same in every process."""

    start: Start
    recipe: Recipe
    processes: Processes
    precision: str
    steps_per_epoch: int
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: nn.Module | None
    """Moving average over the weights; None when the recipe wants none."""
    steps: int = 0
    """Taken so far."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    forward: Callable[[torch.Tensor], torch.Tensor] | None = None
    """The network, compiled and distributed where that is due; made by :meth:`enter`."""

    @property
    def network(self) -> nn.Module:
        """The network that learns."""
        return self.start.network

    def enter(self, epoch: int) -> None:
        """Make ready for an epoch (from 1): let only those parameters learn that it is meant for."""
        last = STAGES[-2] if epoch <= self.recipe.head_epochs else self.recipe.freeze
        frozen = STAGES[: STAGES.index(last) + 1]
        changed = self.forward is None
        for name, parameter in self.network.named_parameters():
            learns = not (name in self.start.loaded and stage_of(name) in frozen)
            changed |= learns != parameter.requires_grad
            parameter.requires_grad_(learns)
        if changed:
            self.forward = self._make_forward()
        self.network.train()
        if self.recipe.batchnorm == "frozen":
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
                    module.eval()

    def stage(self, epoch: int) -> str:
        """Return the stage of training that an epoch (from 1) belongs to: ``head`` or ``all``."""
        return "head" if epoch <= self.recipe.head_epochs and self.start.loaded else "all"

    def step(self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator, mosaic_side: int) -> torch.Tensor:
        """Take one optimiser step on a batch.

        Parameters
        ----------
        images : uint8 tensor (n, patch_px, patch_px, 3)
        labels : tensor (n,), 1 tumor, 0 normal
        generator : of the augmentation, on the learner's device
        mosaic_side : patches along a mosaic's side; 1 shows them singly

        Returns
        -------
        The mean loss, a scalar on the learner's device: reading it waits for the step.
        """
        assert self.forward is not None  # enter() made it
        device, smoothing = self.processes.device, self.recipe.label_smoothing
        images = augment(images.to(device, non_blocking=True), self.recipe.augmentation, generator)
        targets = labels.to(device, torch.float32, non_blocking=True) * (1 - smoothing) + smoothing / 2
        if mosaic_side > 1:
            images = make_mosaics(images, mosaic_side)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.forward(self.preprocessing.to_input(images))
        loss = binary_cross_entropy_with_logits(logits.float(), targets)
        self.optimiser.zero_grad()
        loss.backward()
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        self.optimiser.step()
        self.schedule.step()
        self._follow()
        return loss.detach()

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the ``state_dict`` to judge and store: the moving average where there is one."""
        return (self.network if self.average is None else self.average).state_dict()

    def state(self) -> dict[str, Any]:
        """Return all that a later process needs to go on from here."""
        return {
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "steps": self.steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.steps = state["steps"]

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the weights; BatchNorm's statistics are averaged with them."""
        self.steps += 1
        if self.average is None:
            return
        share = 1 - self.recipe.ema_decay(self.steps_per_epoch, self.steps)
        mean, now = self.average.state_dict(), self.network.state_dict()
        real = [name for name, tensor in mean.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([mean[name] for name in real], [now[name] for name in real], share)
        for name in mean.keys() - set(real):
            mean[name].copy_(now[name])

    def _make_forward(self) -> Callable[[torch.Tensor], torch.Tensor]:
        device = self.processes.device
        logits: nn.Module = _PatchLogits(self.network)
        if self.processes.count > 1:
            on_gpu = device.startswith("cuda")
            logits = nn.parallel.DistributedDataParallel(logits, device_ids=[device] if on_gpu else None)
        return torch.compile(logits) if _worth_compiling(self) else logits


def make_learner(start: Start, recipe: Recipe, steps_per_epoch: int, processes: Processes, precision: str) -> Learner:
    """Put the network on its device and give it optimiser, schedule and moving average."""
    network = start.network.to(processes.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if processes.count > 1 and processes.device.startswith("cuda"):
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    start = Start(network, start.loaded, start.source, start.summary)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        groups.setdefault(_peak_step(name, start, recipe), []).append(parameter)
    optimiser = torch.optim.AdamW([{"params": group} for group in groups.values()], weight_decay=recipe.weight_decay)
    steps = recipe.epochs * steps_per_epoch
    if math.isclose(steps * recipe.warm_up, 1):
        steps += 1  # OneCycleLR divides by steps * warm_up - 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, list(groups), steps, pct_start=float(recipe.warm_up))
    average = copy.deepcopy(network).eval().requires_grad_(False) if recipe.ema_epochs else None
    precision = _choose_precision(precision, processes.device)
    return Learner(start, recipe, processes, precision, steps_per_epoch, optimiser, schedule, average)


def _peak_step(name: str, start: Start, recipe: Recipe) -> float:
    """Return a parameter's largest step: the new layers' own; less and less from layer4 to the stem for loaded ones."""
    if name not in start.loaded:
        return recipe.lr
    return recipe.lr_loaded * recipe.lr_decay ** max(0, STAGES.index("layer4") - STAGES.index(stage_of(name)))


def _choose_precision(precision: str, device: str) -> str:
    """Resolve ``auto`` for training: bf16 on a CPU needs a C++ compiler, for only compiled does it use the fast kernels."""
    if precision == "int8":
        raise DeviceError("--precision int8: not for training; expected auto, fp32 or bf16")
    resolved = resolve_precision(precision, device)
    return "fp32" if precision == "auto" and device == "cpu" and not compiler_found() else resolved


def _worth_compiling(learner: Learner) -> bool:
    """Tell whether to compile: always for bf16 on a CPU (a fifth of the time), on one GPU where the steps repay it.

    Not on several: torch's SyncBatchNorm breaks the graph at each of 53 places.
    """
    if learner.processes.device == "cpu":
        return learner.precision == "bf16"
    if learner.processes.count > 1:
        return False
    return compiler_found(learner.processes.device) and learner.recipe.epochs * learner.steps_per_epoch >= COMPILE_STEPS
