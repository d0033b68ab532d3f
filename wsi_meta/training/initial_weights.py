"""The weights that training starts from: torchvision's ImageNet weights, a file's, or random ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.hub import load_state_dict_from_url
from torch.overrides import TorchFunctionMode

from wsi_meta.datasets.patches import Patches
from wsi_meta.errors import ModelFileError, TrainingError
from wsi_meta.evaluation.cautions import LEAKS, UNKNOWN
from wsi_meta.models.card import CARD_KEY, INIT_INT8, read_card
from wsi_meta.models.known_patches import KnownPatches, known_to_weights, weights_know_all
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.resnet import IMAGENET_WEIGHTS
from wsi_meta.models.weights import COUNTS, check_weights, find_names, read_weights
from wsi_meta.models.weights_file import holds_pickle, read_metadata
from wsi_meta.slides.pixel_size import differs
from wsi_meta.training.recipe import RECIPES, Recipe
from wsi_meta.words import first_line

__all__ = [
    "STAGES",
    "Start",
    "build_seeded",
    "highest_rate",
    "idle_settings",
    "initialise",
    "input_of",
    "learns",
    "source_of",
    "stage_of",
    "warn_of_known",
]

logger = logging.getLogger(__name__)

NO_FILES = ("imagenet", "none")
"""Initial weights that are no file."""
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
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """What the network is shown."""
    known_patches: KnownPatches | None = None
    """Marks of the patches that the loaded weights were made with; None where nothing says."""


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


def initialise(network: nn.Module, init: str | Path, preprocessing: Preprocessing | None = None) -> Start:
    """Load initial weights into a network, each stage whole or not at all. The others stay random, and the summary says so.

    Parameters
    ----------
    network : changed in place
    init : ``imagenet``, ``none`` or a file: safetensors, or a state dict of torch (read without running code), under
        torchvision's, timm's or TIAToolbox's names, whatever stands before them
    preprocessing : what the network will be shown; None is the usual

    Raises
    ------
    ModelFileError
        when the file is missing or unreadable, when none of its tensors fits, or a stage in part, when it holds several
        networks, or weights that no network computes with, or when the download fails.
    """
    preprocessing = preprocessing or Preprocessing()
    if str(init) == "none":
        return Start(network, frozenset(), "none", "all weights random", preprocessing)
    state = _download_imagenet() if str(init) == "imagenet" else read_weights(Path(init))
    match, own = find_names(state, network, init), network.state_dict()
    state = {match.names.get(name, name.removeprefix(match.prefix)): tensor for name, tensor in state.items()}
    fitting = {name: tensor for name, tensor in state.items() if name in own and tensor.shape == own[name].shape}
    if not fitting:
        told = f"none of its {len(state)} tensors fits; expected a ResNet50 with torchvision's, timm's or TIAToolbox's names"
        raise ModelFileError(f"{init}: {told}; its first: '{next(iter(state))}'")
    _refuse_parts(own, state, init)
    check_weights(fitting, init)
    network.load_state_dict(fitting, strict=False)
    missing = [name for name in own if name not in fitting and not name.endswith(COUNTS)]
    stages = sorted({stage_of(name) for name in missing}, key=STAGES.index)
    if early := [stage for stage in stages if stage not in STAGES[-2:]]:
        logger.warning("%s: has no weights of %s, which start from random ones", Path(init).name, ", ".join(early))
    summary = f"loaded {len(fitting)} tensors from {Path(init).name}{match.prefix and f' ({match.prefix}*)'}"
    summary += f"; random: {', '.join(stages)} ({len(missing)} tensors)" if missing else "; nothing left random"
    summary += f"; not used: {unused}" if (unused := len(state) - len(fitting)) else ""
    return Start(network, frozenset(fitting), Path(init).name, summary, preprocessing, _known_to(init))


def highest_rate(name: str, start: Start, recipe: Recipe) -> float:
    """Return a parameter's highest learning rate: new layers have their own, loaded ones learn less the earlier they are."""
    if name not in start.loaded:
        return recipe.lr
    return recipe.lr_loaded * recipe.lr_decay ** max(0, STAGES.index("layer4") - STAGES.index(stage_of(name)))


def learns(name: str, epoch: int, start: Start, recipe: Recipe) -> bool:
    """Tell whether a parameter learns in an epoch (from 1): what was loaded does not where it is frozen."""
    last = STAGES[-2] if epoch <= recipe.head_epochs else recipe.freeze
    return not (name in start.loaded and stage_of(name) in STAGES[: STAGES.index(last) + 1])


def idle_settings(start: Start, recipe: Recipe) -> list[str]:
    """Describe each setting of a recipe that has no effect on what these initial weights become.

    Raises
    ------
    TrainingError
        when no parameter ever learns.
    """
    names, usual = [name for name, _ in start.network.named_parameters()], RECIPES.values()
    learning = [name for name in names if learns(name, 1, start, recipe) or learns(name, recipe.epochs, start, recipe)]
    if not any(highest_rate(name, start, recipe) > 0 for name in learning):
        rates = f"lr {recipe.lr:g} of new layers, lr_loaded {recipe.lr_loaded:g} of loaded ones"
        raise TrainingError(f"nothing learns: {rates}; expected more than 0 where there are such layers (--lr, --lr-loaded)")
    why, idle = "no layer starts from random weights", [name for name in ("lr",) if start.loaded.issuperset(names)]
    if not start.loaded:
        why, idle = "no weights were loaded", ["lr_loaded", "lr_decay", "head_epochs", "freeze"]
    told = [name for name in idle if all(getattr(recipe, name) != getattr(one, name) for one in usual)]
    found = [f"{name} {getattr(recipe, name)} has no effect: {why}" for name in told]
    if start.loaded and recipe.head_epochs >= recipe.epochs:
        found.append(f"the trunk stays as it was loaded: head_epochs {recipe.head_epochs} of {recipe.epochs} epochs")
    return found


def _refuse_parts(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], init: str | Path) -> None:
    """Refuse weights of which a stage fits in part: they are of another network, and make no start; ModelFileError."""
    for stage in STAGES[1:]:
        ours, theirs = (
            {name: tensors[name].shape for name in tensors if stage_of(name) == stage and not name.endswith(COUNTS)}
            for tensors in (own, state)
        )
        if ours == theirs or not ours.items() & theirs.items():
            continue
        name = next(name for name in (*ours, *theirs) if ours.get(name) != theirs.get(name))
        found, expected = (str(tuple(shapes[name])) if name in shapes else "absent" for shapes in (theirs, ours))
        raise ModelFileError(
            f"{init}: {stage} fits in part: '{name}' is {found}, expected {expected}; is it another network than a ResNet50?"
        )


def input_of(init: str | Path, patches: Patches) -> Preprocessing:
    """Return what a training shows the network: what its initial weights were shown, at the pixel size of the patches.

    Parameters
    ----------
    init : as for :func:`initialise`; only a model file of wsi-meta says what it was shown
    patches : to train on; where they do not tell their pixel size, it is that of `init`, with a warning unless it is PCam's

    Raises
    ------
    ModelFileError
        when the model file is damaged, or is shown patches of another size.
    """
    preprocessing = Preprocessing()
    if _is_model(init):
        preprocessing = read_card(init).preprocessing
        if preprocessing.patch_px != patches.patch_px:
            told = f"is shown patches of {preprocessing.patch_px} px"
            raise ModelFileError(f"{init}: {told}; expected {patches.patch_px} px, as the patches to train on have")
        patches.warn_of_unknown_mpp(preprocessing.mpp)
        if patches.mpp is not None and differs(patches.mpp, preprocessing.mpp):
            told = "%s: was shown %g um per pixel, and the patches have %g: the new model is shown that"
            logger.warning(told, Path(init).name, preprocessing.mpp, patches.mpp)
    return preprocessing if patches.mpp is None else replace(preprocessing, mpp=patches.mpp)


def source_of(init: str | Path) -> dict[str, Any]:
    """Return where initial weights come from, as a card records it: a name and, of a file, the SHA-256 of its bytes.

    Of a file that does not say which patches it was made with, also that; and of one that int8 needs ranges for.
    """
    named: dict[str, Any] = {"init": Path(init).name}
    if str(init) not in NO_FILES:
        named["init_sha256"] = sha256(Path(init).read_bytes()).hexdigest()
    known: dict[str, Any] = {} if _says_all(init) else {"init_known": False}
    return named | known | ({} if _suits_int8(init) else {INIT_INT8: False})


def warn_of_known(init: str | Path, valid: Patches, test: Patches | None) -> None:
    """Warn of patches that are to judge a training, and that its initial weights were made with.

    What their epoch was chosen on may choose another one, and is no warning in validation.

    Parameters
    ----------
    init : as for :func:`initialise`
    valid, test : with their contents
    """
    name, known = Path(init).name, _known_to(init)
    for split, patches, parts in (("validation", valid, ("train",)), ("test", test, ("train", "valid"))):
        counts = {} if known is None or patches is None or patches.contents is None else known.count(patches.contents)
        for part in parts:
            if patches is not None and (count := counts.get(part)):
                told = LEAKS[part].format(f"{count:,} of these {len(patches):,} patches")
                logger.warning("--init %s, patches of the %s split: %s", name, split, told)
    if not _says_all(init):
        logger.warning("--init %s: %s", name, UNKNOWN.format("it"))


def _is_model(init: str | Path) -> bool:
    """Tell whether initial weights are those of a model file of wsi-meta."""
    return str(init) not in NO_FILES and not holds_pickle(Path(init)) and CARD_KEY in read_metadata(Path(init))


def _known_to(init: str | Path) -> KnownPatches | None:
    return None if str(init) in NO_FILES else known_to_weights(Path(init))


def _says_all(init: str | Path) -> bool:
    """Tell whether all patches that initial weights were made with are known; the pictures of ImageNet are no patches."""
    if str(init) in NO_FILES:
        return True
    return weights_know_all(Path(init)) if _is_model(init) else not _decides(Path(init))


def _suits_int8(init: str | Path) -> bool:
    """Tell whether int8 may compute with what initial weights become by BatchNorm alone; of a tumor's bare ones none knows."""
    if str(init) in NO_FILES:
        return True
    if not _is_model(init):
        return not _decides(Path(init))
    card = read_card(init)
    return card.int8_ranges is None and card.allows_int8


def _decides(init: Path) -> bool:
    """Tell whether weights end in a head of one or two outputs, as those that tell tumor do; ImageNet's has a thousand."""
    return any(weights.ndim == 2 and len(weights) <= 2 for weights in read_weights(init).values())


def _download_imagenet() -> dict[str, torch.Tensor]:
    try:
        return dict(load_state_dict_from_url(IMAGENET_WEIGHTS, map_location="cpu", check_hash=True, weights_only=True))
    except Exception as error:  # a missing connection, a broken download and a wrong hash each raise another kind
        raise ModelFileError(
            f"--init imagenet: the download failed ({first_line(error)}); pass a file of weights as --init FILE, or --init none"
        ) from error
