"""How a model is trained, and how the training is run.

The recipe is stored in the model's card. The options belong to one run on one machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wsi_meta.datasets.batches import check_workers
from wsi_meta.errors import DeviceError, OptionsError, number, of_kind, one_of, settle, truth, whole_number
from wsi_meta.inference.options import InferenceOptions
from wsi_meta.models.model import model_path
from wsi_meta.outputs.paths import as_path

__all__ = ["CHOICES", "RECIPES", "Augmentation", "Recipe", "TrainOptions", "initial_file"]

_LIMITS = {
    "epochs": (1, math.inf),
    "head_epochs": (0, math.inf),
    "batch_size": (2, math.inf),
    "lr": (0, 1e6),
    "lr_loaded": (0, 1e6),
    "lr_decay": (0, 1),
    "weight_decay": (0, math.inf),
    "warm_up": (0, 0.9),
    "label_smoothing": (0, 0.9),
    "clip_norm": (0, math.inf),
    "ema_epochs": (0, math.inf),
    "mosaics": (0, 1),
    "consistency": (0, 100),
    "teacher": (0, 1),
    "patience": (0, math.inf),
    "valid_fraction": (0, 0.9),
    "seed": (0, 2**32 - 1),
    "shift_px": (0, 32),
    "zoom": (0, 0.5),
    "stain": (0, 1),
    "stain_offset": (0, 1),
    "brightness": (0, 1),
    "levels": (0, 128),
    "contrast": (0, 1),
    "gain": (0, 0.9),
    "saturation": (0, 1),
    "blur": (0, 1),
    "jpeg": (0, 1),
}
CHOICES = {"freeze": ("none", "stem", "layer1", "layer2", "layer3"), "batchnorm": ("adapt", "frozen")}


def _settle(settings: Augmentation | Recipe) -> None:
    """Make the values of settings plain, each by its type and range; OptionsError for those that no training can use."""
    for one in fields(settings):
        name, value = one.name, getattr(settings, one.name)
        if name in CHOICES:
            plain: Any = one_of(name, value, CHOICES[name])
        elif name in _LIMITS:
            least, most = _LIMITS[name]
            expected = f"at least {least}" if math.isinf(most) else f"{least} to {most}"
            whole = one.type == "int"
            door = whole_number if whole else number
            plain = door(name, value, f"{expected}, a whole number" if whole else expected, least=least, most=most)
        else:
            plain = truth(name, value) if one.type == "bool" else of_kind(name, value, Augmentation, "an Augmentation")
        settle(settings, **{name: plain})


@dataclass(frozen=True)
class Augmentation:
    """How much patches are changed at random before the network sees them; 0 (or False) turns a change off."""

    turn: bool = True
    """Show one of the eight turned and mirrored views."""
    shift_px: int = 4
    """Largest shift along each axis. It is small, so that the label still describes the centre."""
    stain: float = 0.2
    """Largest relative change of each stain's amount (Tellez et al. 2019, "HED-strong")."""
    stain_offset: float = 0.02
    """Largest absolute change of each stain's amount, in optical density."""
    brightness: float = 0.1
    """Largest relative change of brightness, as by the lamp."""
    levels: float = 0.0
    """Largest absolute change of brightness, in grey levels of 0 to 255."""
    contrast: float = 0.15
    """Largest relative change of contrast, around the patch's mean."""
    blur: float = 0.2
    """Share of the patches that are blurred, as if out of focus."""
    gain: float = 0.0
    """Largest relative change of each colour channel by itself, as by another white balance."""
    saturation: float = 0.0
    """Largest relative change of saturation."""
    jpeg: float = 0.2
    """Share of the patches that are damaged as JPEG compression does."""
    zoom: float = 0.0
    """Largest relative change of magnification, about the centre; half of the patches keep theirs."""

    def __post_init__(self) -> None:
        _settle(self)

    def without(self, *names: str) -> Augmentation:
        """Return a copy with the named changes turned off; OptionsError for a name that does not exist.

        A name is a setting's, without its ``_px`` and with ``-`` or ``_``.
        """
        names = tuple(of_kind("augmentation", name, str, "names").replace("-", "_") for name in names)
        known = {known.name.removesuffix("_px"): known.name for known in fields(self)}
        if unknown := set(names) - set(known):
            raise OptionsError(f"augmentation {', '.join(sorted(unknown))}: not known; expected some of {', '.join(known)}")
        return replace(self, **{known[name]: known[name] != "turn" and 0 for name in names})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; stored in its card. Its defaults are the recipe ``light``."""

    epochs: int = 4
    head_epochs: int = 1
    """Number of first epochs in which only the new layers learn and every loaded layer stays as it is. It has no effect
    where no weights were loaded."""
    freeze: str = "layer1"
    """Last stage of the network whose loaded kernels never change: none, stem, layer1, layer2 or layer3.
    BatchNorm's running statistics adapt in every stage."""
    batch_size: int = 64
    """Patches in one step, over all processes."""
    lr: float = 1e-3
    """Highest learning rate of AdamW for layers that start from random weights."""
    lr_loaded: float = 4e-4
    """Highest learning rate for layer4, the last stage, where its weights were loaded."""
    lr_decay: float = 0.75
    """Factor on the learning rate for each stage nearer to the input: earlier loaded layers learn more slowly."""
    weight_decay: float = 0.01
    warm_up: float = 0.2
    """Share of all steps in which the one-cycle schedule (Smith & Topin 2018) rises to the highest learning rate."""
    label_smoothing: float = 0.05
    """Sum of the distances of the two targets from 0 and 1 (Szegedy et al. 2016)."""
    clip_norm: float = 5.0
    """Largest norm of a step's gradient; a longer gradient is scaled down to it. 0: no limit."""
    ema_epochs: float = 0.3
    """Time constant, in epochs, of the moving average of the weights, which is validated and stored. 0: no average; the
    weights themselves are."""
    mosaics: float = 0.5
    """Share of the patches' pictures that are shown in mosaics (4x4 patches in one), so that the network can be used in dense
    mode. With `consistency`, of two pictures of a patch at most one is in a mosaic, so a half is the most."""
    consistency: float = 0.0
    """Weight of the disagreement of two pictures of the same patch, each augmented by itself (Liang et al. 2021, "R-Drop").
    Every step then shows each of its patches twice, which takes twice as long. 0: once."""
    teacher: float = 0.0
    """Share of the targets that a teacher gives instead of the labels, at the end of the training; it rises evenly from 0. The
    teacher is the moving average, and its answer to a patch the mean over four views of it, unchanged (Tarvainen & Valpola
    2017, "Mean teacher"): the network learns to see in one view what it sees in all. Takes twice as long. 0: labels alone."""
    batchnorm: str = "adapt"
    """``adapt``: use the batch's statistics and update the running ones; ``frozen``: use the loaded running statistics."""
    patience: int = 3
    """Stop after this many epochs in a row without a new lowest validation loss while the training loss falls; 0: never."""
    valid_fraction: float = 0.1
    """Share of each class that is held out for validation where the data have no validation split."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0

    def __post_init__(self) -> None:
        _settle(self)
        if self.teacher and not self.ema_epochs:
            raise OptionsError(
                f"teacher {self.teacher} without ema_epochs: the moving average is the teacher; set both or none"
            )
        if self.consistency and self.mosaics > 0.5:
            raise OptionsError(
                f"mosaics {self.mosaics} with consistency; expected at most 0.5: of a patch's two pictures one is shown alone"
            )

    @property
    def steps_with_mosaics(self) -> float:
        """Share of the steps that show mosaics: with `consistency` one of the two pictures of each patch, else all."""
        return 2 * self.mosaics if self.consistency else self.mosaics

    def pictures(self, patches: int) -> int:
        """Return how many pictures a training on so many patches shows, in all its epochs."""
        return self.epochs * (patches - patches % self.batch_size) * (2 if self.consistency else 1)

    @staticmethod
    def named(name: str | Recipe | None) -> Recipe:
        """Return the recipe of a name, ``strong``, as of None, or ``light``; one as it is. OptionsError for something else."""
        return name if isinstance(name, Recipe) else RECIPES[one_of("recipe", "strong" if name is None else name, RECIPES)]

    def ema_decay(self, steps_per_epoch: int, step: int) -> float:
        """Return the weight of the old average at a step (from 1): exp(-1 / time constant), less in the first steps."""
        steps = self.ema_epochs * steps_per_epoch
        return min(math.exp(-1 / steps), (1 + step) / (10 + step)) if steps else 0.0


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "light": Recipe(),
        "strong": Recipe(
            epochs=8,
            head_epochs=0,
            freeze="none",
            lr=6e-4,
            lr_loaded=6e-4,
            lr_decay=0.62,
            weight_decay=0.05,
            clip_norm=1.0,
            ema_epochs=1.0,
            consistency=1.0,
            augmentation=Augmentation(
                stain=0.4, stain_offset=0.06, brightness=0, levels=25, contrast=0.25, gain=0.15, saturation=0.4
            ),
        ),
    }
)
"""Recipes by name. ``strong``, what :func:`wsi_meta.train` takes: every layer learns, from two pictures of each patch whose
colours differ as much as between laboratories and scanners; chosen by an ablation (docs/benchmarks.md). ``light``: early layers
stay as loaded, colours change a little; four times as fast on a CPU, and weaker on slides from elsewhere."""


@dataclass(frozen=True)
class TrainOptions:
    """Where a training runs and what it does with files; nothing here belongs to the recipe.

    Raises
    ------
    DeviceError
        when `device` or `precision` does not exist, or `precision` is not for training.
    OptionsError
        when `workers` is no whole number of at least 0.
    """

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    precision: str = "auto"
    """``auto``, ``fp32`` or ``bf16``."""
    workers: int = 2
    """Processes that decode patches; 0 decodes in this process."""
    drop_duplicates: bool = False
    """Drop training patches that are also in validation instead of refusing them."""
    resume: bool = False
    """Continue from the checkpoint beside the model file, if there is one."""
    keep_checkpoint: bool = False
    """Keep the last checkpoint when the training has finished."""
    overwrite: bool = False
    """Replace the model file and the files beside it if they exist."""
    tensorboard: str | Path | None = None
    """Folder for TensorBoard's logs; None writes none."""
    progress: bool = False
    """Show bars and notes on stderr."""

    def __post_init__(self) -> None:
        InferenceOptions(self.device, self.precision)  # checks both names
        if self.precision == "int8":
            raise DeviceError("--precision int8: not for training; expected auto, fp32 or bf16")
        names = ("drop_duplicates", "resume", "keep_checkpoint", "overwrite", "progress")
        settle(self, **{name: truth(name, getattr(self, name)) for name in names}, workers=check_workers(self.workers))
        if self.tensorboard is not None:
            settle(self, tensorboard=as_path("tensorboard", self.tensorboard))


def initial_file(init: str | Path) -> str | Path:
    """Return initial weights as they were named, or for ``default`` the embedded model's file, which is as any other."""
    as_path("init", init, expected="imagenet, default, none, or a file of weights")
    return model_path(init) if os.fspath(init) == "default" else os.fspath(init)
