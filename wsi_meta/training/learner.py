"""A network that learns, with all that one step needs: optimiser, schedule, moving average."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from wsi_meta.files.process_settings import no_warnings
from wsi_meta.inference.batches import make_mosaics
from wsi_meta.inference.device import resolve_precision
from wsi_meta.inference.options import compiler_errors, compiler_found
from wsi_meta.models.dihedral import VIEWS, turn
from wsi_meta.models.resnet import cell_logits
from wsi_meta.progress import tell
from wsi_meta.training.augment import augment
from wsi_meta.training.distributed import Processes
from wsi_meta.training.initial_weights import Start, highest_rate, learns
from wsi_meta.training.loader import send
from wsi_meta.training.recipe import Recipe

__all__ = ["PICTURES_REPAY", "Learner", "PatchLogits", "choose_precision", "make_learner"]

PICTURES_REPAY = 20_000
"""Pictures of a training from which compiling is repaid: it takes about five minutes, as long as it saves on so many."""
compiling = partial(compiler_errors, "pass --precision fp32, which is not compiled")


class PatchLogits(nn.Module):
    """The network as training calls it: one logit for each patch, for single patches and for mosaics."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the logit of each patch, (n,); of several batches in one step, one after the other."""
        return torch.cat([cell_logits(self.network, pictures, step=3).flatten() for pictures in inputs])


class _Recorded:
    """Calls a network on one GPU by graphs: each shape of batch is recorded once, with its backward pass, and then replayed.

    A step on 64 patches keeps a large GPU busy for a fraction of the time that it takes to launch its 700 kernels one by one.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._recorded: dict[tuple[torch.Size, ...], Callable[..., torch.Tensor]] = {}

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        shapes = tuple(pictures.shape for pictures in inputs)
        if shapes not in self._recorded:
            self._recorded[shapes] = self._record(*inputs)
        return self._recorded[shapes](*inputs)

    def _record(self, *inputs: torch.Tensor) -> Callable[..., torch.Tensor]:
        kept = [buffer.clone() for buffer in self._network.buffers()]
        with no_warnings():  # torch tells once that the gradients come from another stream
            recorded = torch.cuda.make_graphed_callables(
                PatchLogits(self._network), tuple(pictures.clone() for pictures in inputs)
            )
            replay = cast(Callable[..., torch.Tensor], recorded)
            torch.autograd.backward(replay(*inputs).sum())
        torch._foreach_copy_(list(self._network.buffers()), kept)  # some passes were made before the recorded one
        return replay


@dataclass
class Learner:
    """A network that learns, and its optimiser, schedule and moving average. All processes hold the same."""

    start: Start
    recipe: Recipe
    processes: Processes
    precision: str
    steps_per_epoch: int
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: nn.Module | None
    """Moving average of the weights and of BatchNorm's statistics; None when the recipe has none."""
    steps: int = 0
    """Number of steps so far."""
    forward: Callable[..., torch.Tensor] | None = None
    """The network, compiled and distributed where this training does that; :meth:`enter` makes it."""

    @property
    def network(self) -> nn.Module:
        """The network that learns."""
        return self.start.network

    def enter(self, epoch: int) -> None:
        """Prepare for an epoch (from 1): choose the parameters that learn in it."""
        changed = self.forward is None
        for name, parameter in self.network.named_parameters():
            changed |= (now := learns(name, epoch, self.start, self.recipe)) != parameter.requires_grad
            parameter.requires_grad_(now)
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
        """Make one optimiser step on a batch.

        Parameters
        ----------
        images : uint8 tensor (n, patch_px, patch_px, 3)
        labels : tensor (n,), 1 tumor, 0 normal
        generator : gives the augmentation its random numbers; on the learner's device
        mosaic_side : patches along a mosaic's side; 1 shows single patches

        Returns
        -------
        The mean loss, a scalar on the learner's device. Reading its value waits for the step.
        """
        device = self.processes.device
        images, labels = send(images, device), send(labels, device).float()
        targets = self._targets(images, labels)
        with compiling():  # the first steps compile, forwards and backwards
            loss = self._loss(images, targets, generator, mosaic_side)
            self.optimiser.zero_grad()
            loss.backward()
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        self.optimiser.step()
        self.schedule.step()
        self.steps += 1
        self._update_average()
        return loss.detach()

    def _targets(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return what the network is to answer: smoothed labels, mixed with the teacher's answers where there is one."""
        smoothing = self.recipe.label_smoothing
        targets = labels * (1 - smoothing) + smoothing / 2
        share = self.recipe.teacher * self.steps / (self.recipe.epochs * self.steps_per_epoch)
        return torch.lerp(targets, self._taught(images), share) if share else targets

    @torch.no_grad()
    def _taught(self, images: torch.Tensor) -> torch.Tensor:
        """Return the moving average's probability for unchanged patches, (n,): of the mean logit over four views."""
        assert self.average is not None, "a recipe with a teacher has a moving average"
        views = range(4, VIEWS) if self.steps % 2 else range(4)  # mirrored in every other step
        shown = torch.cat([turn(images, view) for view in views])
        with self._autocast():
            logits = cell_logits(self.average, self.start.preprocessing.to_input(shown), step=3).float()
        return logits.view(len(views), len(images)).mean(0).sigmoid()

    def _autocast(self) -> torch.autocast:
        kind = torch.device(self.processes.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=kind == "cpu")

    def _loss(self, images: torch.Tensor, targets: torch.Tensor, generator: torch.Generator, mosaic_side: int) -> torch.Tensor:
        """Return the mean loss of patches that are on the device, augmented here; with `consistency`, of two of each.

        Of those two, a step with mosaics shows one by itself and the other one in a mosaic: both modes are to agree.
        """
        assert self.forward is not None, "call enter() before the first step"
        if self.recipe.consistency:
            images, targets = torch.cat([images, images]), torch.cat([targets, targets])
        shown = [augment(images, self.recipe.augmentation, generator)]
        if mosaic_side > 1:
            *single, strangers = shown[0].chunk(2 if self.recipe.consistency else 1)
            shown = [*single, make_mosaics(strangers, mosaic_side)]
        with self._autocast():
            logits = self.forward(*(self.start.preprocessing.to_input(pictures) for pictures in shown)).float()
        loss = binary_cross_entropy_with_logits(logits, targets)
        if self.recipe.consistency:
            loss = loss + self.recipe.consistency * _disagreement(*logits.chunk(2))
        return loss

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the ``state_dict`` to validate and store: the moving average where there is one."""
        return (self.network if self.average is None else self.average).state_dict()

    def state(self) -> dict[str, Any]:
        """Return all that another process needs to continue from here."""
        return {
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "steps": self.steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.steps = state["steps"]

    def _update_average(self) -> None:
        if self.average is not None:
            _move_towards(self.average, self.network, 1 - self.recipe.ema_decay(self.steps_per_epoch, self.steps))

    def _make_forward(self) -> Callable[..., torch.Tensor]:
        device = self.processes.device
        on_gpu = device.startswith("cuda")
        if on_gpu and self.processes.count == 1:
            return _Recorded(self.network)
        logits: nn.Module = PatchLogits(self.network)
        if self.processes.count > 1:
            logits = nn.parallel.DistributedDataParallel(logits, device_ids=[device] if on_gpu else None)
        if not _worth_compiling(self):
            return logits
        if self.processes.first:
            told = "the network is compiled in the first steps, which takes several minutes the first time"
            tell(f"{told}; --precision fp32 does without, and is slower afterwards")
        with compiling():
            return torch.compile(logits)


def make_learner(start: Start, recipe: Recipe, steps_per_epoch: int, processes: Processes, precision: str) -> Learner:
    """Put the network on its device and give it optimiser, schedule and moving average."""
    network = start.network.to(processes.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if processes.count > 1 and processes.device.startswith("cuda"):
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    start = replace(start, network=network)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        groups.setdefault(highest_rate(name, start, recipe), []).append(parameter)
    optimiser = torch.optim.AdamW(
        [{"params": group} for group in groups.values()],
        weight_decay=recipe.weight_decay,
        fused=True if processes.device.startswith("cuda") else None,
    )
    steps = max(2, recipe.epochs * steps_per_epoch)  # its last step is tiny: a single one would learn nothing
    if math.isclose(steps * recipe.warm_up, 1):
        steps += 1  # OneCycleLR divides by steps * warm_up - 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, list(groups), steps, pct_start=float(recipe.warm_up))
    average = copy.deepcopy(network).eval().requires_grad_(False) if recipe.ema_epochs else None
    precision = choose_precision(precision, processes.device, recipe.pictures(steps_per_epoch * recipe.batch_size))
    return Learner(start, recipe, processes, precision, steps_per_epoch, optimiser, schedule, average)


def choose_precision(
    precision: str, device: str, pictures: int, *, resolve: Callable[[str, str], str] = resolve_precision
) -> str:
    """Return the precision to train in.

    On a CPU ``auto`` is bf16 only where it is compiled: with a compiler, and in a training that is long enough to repay it.
    Otherwise bf16 is slow in training.

    Parameters
    ----------
    precision : ``auto``, ``fp32`` or ``bf16``
    device : as :func:`wsi_meta.inference.device.resolve_device` returns it
    pictures : that the whole training shows, so that one that goes on is computed as it began
    resolve : returns what ``auto`` is on this machine
    """
    resolved = resolve(precision, device)
    compiled = compiler_found() and pictures >= PICTURES_REPAY
    return "fp32" if precision == "auto" and device == "cpu" and not compiled else resolved


@torch.no_grad()
def _move_towards(average: nn.Module, network: nn.Module, share: float) -> None:
    """Move weights and statistics towards the network's by a share of the difference; copy integers, which count batches.

    torch's own AveragedModel waits for a GPU in every update.
    """
    means, values = ([*module.parameters(), *module.buffers()] for module in (average, network))
    (real_means, counts), (real_values, new_counts) = (
        [[one for one in tensors if one.is_floating_point() is kind] for kind in (True, False)] for tensors in (means, values)
    )
    torch._foreach_lerp_(real_means, real_values, share)
    if counts:
        torch._foreach_copy_(counts, new_counts)


def _disagreement(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the mean over pairs of logits of the two Kullback-Leibler divergences between their probabilities, halved.

    A squared difference of logits would weigh most where both are certain and agree; this weighs what a reader sees.
    """
    return ((one.sigmoid() - other.sigmoid()) * (one - other)).mean() / 2


def _worth_compiling(learner: Learner) -> bool:
    """Tell whether to compile the network: bf16 on a CPU then takes a fifth of the time."""
    return learner.processes.device == "cpu" and learner.precision == "bf16"
