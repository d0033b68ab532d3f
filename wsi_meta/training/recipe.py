"""How a model is trained: every choice in one place, stored in the model's card."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace

from wsi_meta.errors import OptionsError

__all__ = ["Augmentation", "Recipe"]

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
    "patience": (0, math.inf),
    "valid_fraction": (0, 0.9),
    "seed": (0, 2**32 - 1),
    "shift_px": (0, 32),
    "stain": (0, 1),
    "brightness": (0, 1),
    "blur": (0, 1),
    "jpeg": (0, 1),
}
_CHOICES = {"freeze": ("none", "stem", "layer1", "layer2", "layer3"), "batchnorm": ("adapt", "frozen")}


def _check(settings: Augmentation | Recipe) -> None:
    """Refuse settings that no training can use; ValueError."""
    for name, value in vars(settings).items():
        if name in _CHOICES and value not in _CHOICES[name]:
            raise OptionsError(f"{name} {value!r}; expected one of {', '.join(_CHOICES[name])}")
        least, most = _LIMITS.get(name, (-math.inf, math.inf))
        if name in _LIMITS and not (math.isfinite(value) and least <= value <= most):
            expected = f"at least {least}" if math.isinf(most) else f"{least} to {most}"
            raise OptionsError(f"{name} {value}; expected {expected}")


@dataclass(frozen=True)
class Augmentation:
    """How far patches are changed at random before the network sees them; 0 (or False) turns a change off."""

    turn: bool = True
    """One of the square's eight views."""
    shift_px: int = 4
    """Largest shift along each axis; small, so that the labelled centre stays the labelled centre."""
    stain: float = 0.2
    """Largest relative change of each stain's amount (Tellez et al. 2019, "HED-strong")."""
    brightness: float = 0.1
    """Largest relative change of brightness; contrast changes by half as much again."""
    blur: float = 0.2
    """Share of patches that are blurred, as if out of focus."""
    jpeg: float = 0.2
    """Share of patches that are damaged as by JPEG compression."""

    def __post_init__(self) -> None:
        _check(self)

    def without(self, *names: str) -> Augmentation:
        """Return the same with the changes of these names turned off; ValueError for a name that does not exist."""
        known = {known.name.removesuffix("_px"): known.name for known in fields(self)}
        if unknown := set(names) - set(known):
            raise OptionsError(f"augmentation {', '.join(sorted(unknown))}: not known; expected some of {', '.join(known)}")
        return replace(self, **{known[name]: 0 for name in names})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; stored in its card."""

    epochs: int = 4
    head_epochs: int = 1
    """First stage: epochs in which every loaded layer stays as it is and only the new ones learn (none where nothing was
    loaded)."""
    freeze: str = "layer1"
    """Last stage of the network whose loaded kernels stay as they are to the end: none, stem, layer1, layer2 or layer3.
    BatchNorm's running statistics adapt everywhere."""
    batch_size: int = 64
    """Patches in one step, over all processes."""
    lr: float = 1e-3
    """Peak step of AdamW for layers that start from random weights."""
    lr_loaded: float = 4e-4
    """Peak step for the last layers that start from loaded weights."""
    lr_decay: float = 0.75
    """Factor from each stage of the network to the one before: earlier layers take smaller steps."""
    weight_decay: float = 0.01
    warm_up: float = 0.2
    """Share of all steps in which the one-cycle schedule (Smith & Topin 2018) climbs to its peak."""
    label_smoothing: float = 0.05
    """How far the targets stay from 0 and 1, in total (Szegedy et al. 2016)."""
    clip_norm: float = 5.0
    """Longest gradient of a step; longer ones are shortened to it. 0: as they are."""
    ema_epochs: float = 0.3
    """Time constant, in epochs, of the moving average over the weights that is judged and stored; 0: the weights themselves."""
    mosaics: float = 0.5
    """Share of the steps on mosaics (4x4 patches in one picture), which makes the network fit for dense mode."""
    batchnorm: str = "adapt"
    """``adapt``: batch statistics, as usual; ``frozen``: the loaded running statistics, unchanged."""
    patience: int = 3
    """Stop after so many epochs in a row whose validation loss was over its lowest while training loss fell; 0: never."""
    valid_fraction: float = 0.1
    """Share of each class held out where the data bring no validation split."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)

    def ema_decay(self, steps_per_epoch: int, step: int) -> float:
        """Return the weight of the old average at a step: exp(-1 / time constant), smaller at the start."""
        steps = self.ema_epochs * steps_per_epoch
        return min(math.exp(-1 / steps), (1 + step) / (10 + step)) if steps else 0.0
