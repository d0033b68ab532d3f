"""A file of another tool, with what was said of it: weights under our names, and what the network is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_meta.datasets.batches import check_workers
from wsi_meta.errors import OVER_0, ModelFileError, OptionsError, number, one_of, settle, truth
from wsi_meta.evaluation.calibration import check_prior
from wsi_meta.exchange.zoo_config import ZooConfig, read_zoo_config
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.weights_file import is_script

if TYPE_CHECKING:
    import torch
    from torch import nn

    from wsi_meta.datasets.layouts import Patches
    from wsi_meta.models.model import Model

__all__ = ["NAMINGS", "PIXELS", "Foreign", "ImportOptions", "check_foreign", "read_foreign"]

Triple = tuple[float, float, float]

NAMINGS = ("auto", "torchvision", "timm", "tiatoolbox")
PIXELS: dict[str, tuple[Triple, Triple]] = {
    "imagenet": (Preprocessing().mean, Preprocessing().std),
    "0..1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "-1..1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and deviation, of pixels scaled to 0..1, by what the network is then shown."""
TIATOOLBOX_PIXELS, TIATOOLBOX_MPP = "0..1", 1.0
"""Of ``resnet50-pcam``, as TIAToolbox's list of pretrained models has it."""
SAYS_TUMOR = {"tumor", "tumour", "cancer", "malignant", "mets", "metastasis", "metastases"}
"""Names of classes that need no option to be known as the tumor's."""
TRIED = 32
"""Patches on which a script's own logits are compared."""
AGREES = 3e-5
"""Largest difference of logits, for each unit of the largest, by which sums that are added in another order may differ."""


@dataclass(frozen=True)
class ImportOptions:
    """What was said of a file that it does not say itself, and how it is measured; see :func:`wsi_meta.import_model`.

    Raises
    ------
    OptionsError
        when values do not exist, or do not go together.
    """

    naming: str = "auto"
    pixels: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    mpp: float | None = None
    tumor_class: str | int | None = None
    config: Path | None = None
    split: str | None = None
    prior: float | None = None
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 64
    workers: int = 2
    overwrite: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        settle(self, naming=one_of("naming", self.naming, NAMINGS), prior=check_prior(self.prior))
        if self.pixels is not None:
            settle(self, pixels=one_of("pixels", self.pixels, PIXELS))
        if self.mpp is not None:
            settle(self, mpp=number("mpp", self.mpp, "micrometres per pixel, over 0", least=OVER_0))
        settle(self, workers=check_workers(self.workers), overwrite=truth("overwrite", self.overwrite))
        if (self.mean is None) != (self.std is None) or (self.mean is not None and self.pixels is not None):
            raise OptionsError("mean and std go together, and instead of pixels; expected both, or pixels")

    def input_of(self, naming: str) -> Preprocessing:
        """Return what a network of bare weights is shown; OptionsError where that was not said, or cannot be."""
        of_tiatoolbox = naming == "tiatoolbox"
        pixels = self.pixels or (TIATOOLBOX_PIXELS if of_tiatoolbox else None)
        mpp = self.mpp or (TIATOOLBOX_MPP if of_tiatoolbox else None)
        missing = {"--mpp": mpp is None, "--pixels": pixels is None and self.mean is None}
        if any(missing.values()):
            names = " and ".join(name for name, absent in missing.items() if absent)
            raise OptionsError(f"weights do not say what the network was shown; expected {names} as it was trained with")
        mean, std = (self.mean, self.std) if self.mean is not None else PIXELS[pixels or ""]
        try:
            return Preprocessing.from_dict(Preprocessing().to_dict() | {"mpp": mpp, "mean": mean, "std": std})
        except (ValueError, TypeError) as error:
            raise OptionsError(str(error)) from error

    def class_of(self, names: tuple[str, ...]) -> int:
        """Return the place of the tumor's logit among two, or of the only one; OptionsError where names do not say it.

        Parameters
        ----------
        names : of the classes, as a config.json has them; empty for bare weights
        """
        told = self.tumor_class
        if told is None and names:
            told = next((name for name in names if name.lower() in SAYS_TUMOR), None)
            if told is None:
                turned = "; if it is not, turn the signs of the head's weight and bias" if len(names) == 1 else ""
                raise OptionsError(f"classes {', '.join(names)}; expected --tumor-class with the one that is tumor{turned}")
        if told in names:
            return names.index(str(told))
        place = "1" if told is None else str(told)
        if place not in ("0", "1"):
            raise OptionsError(f"tumor class {told}; expected one of {', '.join(('0', '1', *names))}")
        return int(place)


@dataclass(frozen=True)
class Foreign:
    """A network of another tool."""

    state: dict[str, torch.Tensor]
    """Under our names, with a head of one logit."""
    preprocessing: Preprocessing
    facts: dict[str, Any]
    """What it was found as: plain values for a card."""
    script: Any = None
    """The TorchScript that the weights were taken out of; None for bare weights."""
    tumor_class: int = 1

    @property
    def remedy(self) -> str:
        """What to do about a network that is worse than chance."""
        pixels = "--pixels, --mpp" if self.script is None else "its config.json"
        one = "is its one logit that of normal tissue (turn the signs of its head's weight and bias)"
        head = one if self.facts["logits"] == 1 else "is the other class the tumor's (--tumor-class)"
        return f"{head}, or are its pixels other ones ({pixels})?"

    def check(self, model: Model, patches: Patches) -> None:
        """Make sure that a script's own logits on some patches are those of the model that was made of it.

        Raises
        ------
        ModelFileError
            when they differ: the script computes something else than a ResNet50.
        """
        if self.script is None:
            return
        import torch

        from wsi_meta.exchange.torchscript import script_logits

        pixels = torch.stack([patches[place][0] for place in range(min(TRIED, len(patches)))])
        inputs = self.preprocessing.to_input(pixels)
        with torch.inference_mode():
            ours = model.network(inputs)[:, 0]
        theirs = script_logits(self.script, inputs, model.path)
        if theirs.shape[1] == 2 and torch.allclose(theirs.sum(1), torch.ones_like(theirs[:, 0])) and bool((theirs >= 0).all()):
            ours, theirs = ours.sigmoid(), theirs[:, self.tumor_class]  # a softmax of two is the sigmoid of their difference
        else:
            theirs = theirs[:, 0] if theirs.shape[1] == 1 else theirs[:, self.tumor_class] - theirs[:, 1 - self.tumor_class]
        apart, limit = float((ours - theirs).abs().max()), AGREES * max(1.0, float(theirs.abs().max()))
        if not apart <= limit:
            raise ModelFileError(
                f"{model.path}: its own logits differ from those of a ResNet50 with its weights by {apart:.2g}; expected "
                f"{limit:.1g} at most: it computes something else"
            )

    def compact_state(self) -> dict[str, torch.Tensor]:
        """Return the weights as the model file holds them."""
        from wsi_meta.exchange.states import compact

        return compact(self.state)


def check_foreign(file: Path, options: ImportOptions) -> Path | None:
    """Refuse what can be refused of a file without torch; return a script's configuration, None for bare weights.

    Raises
    ------
    ModelFileError, OptionsError
    """
    if not file.is_file():
        raise ModelFileError(f"{file}: no such file; expected weights (.pth, .pt, .safetensors) or a TorchScript")
    if not is_script(file):
        if options.config is not None:
            raise OptionsError(f"config {options.config}: {file} is no TorchScript; expected --pixels and --mpp")
        return None
    if (options.pixels, options.mean, options.mpp, options.naming) != (None, None, None, "auto"):
        raise OptionsError(f"{file}: its config.json says what it is shown; expected no naming, pixels, mean, std and mpp")
    path = options.config or file.with_name("config.json")
    options.class_of(read_zoo_config(path).class_names)
    return path


def read_foreign(file: Path, options: ImportOptions, build: Callable[[], nn.Module]) -> Foreign:
    """Read a network.

    Parameters
    ----------
    file : weights or TorchScript
    options : what was said of it
    build : makes the network that the weights are for

    Raises
    ------
    ModelFileError, OptionsError
    """
    from wsi_meta.exchange.states import find_state
    from wsi_meta.exchange.torchscript import load_script
    from wsi_meta.models.weights import read_weights

    path = check_foreign(file, options)
    config = None if path is None else read_zoo_config(path)
    tumor_class = options.class_of(() if config is None else config.class_names)
    script = None if config is None else load_script(file)
    state = read_weights(file) if script is None else script.state_dict()
    found = find_state(state, source=file, naming=options.naming, tumor_class=tumor_class, build=build)
    if found.logits == 1 and options.tumor_class not in (None, *(() if config is None else config.class_names)):
        raise OptionsError(f"tumor class {options.tumor_class}: the head of {file} has one logit, which is the tumor's")
    if config is not None and found.logits != len(config.class_names):
        names = ", ".join(config.class_names)
        raise ModelFileError(f"{path}: class_names {names}; expected {found.logits}, as many as the head of {file} has logits")
    shown = options.input_of(found.naming) if config is None else config.preprocessing
    facts = {"kind": "weights" if config is None else "TorchScript", "naming": found.naming, "logits": found.logits}
    facts |= _class_facts(config, found.logits, tumor_class)
    return Foreign(found.state, shown, facts, script, tumor_class)


def _class_facts(config: ZooConfig | None, logits: int, tumor_class: int) -> dict[str, Any]:
    if logits == 1:
        return {}
    return {"tumor_class": tumor_class if config is None else config.class_names[tumor_class]}
