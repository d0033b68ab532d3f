"""Stand-ins for the network where a test is about geometry or bookkeeping, not about tumor."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.inference.options import InferencePlan
from wsi_meta.inference.predictor import Predictor, PredictorParts
from wsi_meta.models.card import ModelCard, read_card
from wsi_meta.models.model import Model, build_network, load_model, model_path, save_model
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.resnet import ResNet, Stage
from wsi_meta.models.weights import half_precision
from wsi_meta.scanning.scan import scan
from wsi_meta.slides.slide import Slide


def thin_network(width: int) -> ResNet:
    """A ResNet of four blocks with one logit, and 128 to 1,024 features in place of 256 to 2,048.

    Parameters
    ----------
    width : of the first block's 3x3 convolution, which has 64 features in a ResNet50
    """
    first, second, third, fourth = (Stage(1, width * n, 128 * n) for n in (1, 2, 4, 8))
    return ResNet((first, second, third, fourth), classes=1).eval()


class PatchByPatch(Predictor):
    """Looks at each wanted patch by itself, in one piece of the image that holds all of them: :meth:`look` gives its logits.

    Its model stays as it was given, but of a network that is never asked no fast one is made.
    """

    def _set_up(self, model: Model, plan: InferencePlan, parts: PredictorParts, *, dense: bool, compiled: bool) -> None:
        asked = plan.precision == "int8" or compiled or model.card.foreign  # what a stand-in's layers are not made for
        built = model if asked else replace(model, network=Unused().eval())
        super()._set_up(built, plan, parts, dense=dense, compiled=compiled)
        self.model = model

    def look(self, patch: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
        raise NotImplementedError

    def predict_views(self, patches: torch.Tensor | NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.array([np.broadcast_to(self.look(patch), self.views) for patch in np.asarray(patches)], np.float32)

    def pieces(self, wanted: NDArray[np.bool_], stride_px: int) -> list[tuple[slice, slice]]:
        beyond = 2 * self.halo_px + 96 - stride_px
        rows, cols = (slice(first * stride_px, end * stride_px + beyond) for first, end in self._box(wanted))
        return [(rows, cols)]

    def _box(self, wanted: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """Return the first row of wanted cells and the one after the last, and columns likewise."""
        lines = (np.flatnonzero(wanted.any(axis)) for axis in (1, 0))
        return [(int(line[0]), int(line[-1]) + 1) for line in lines]

    def predict_block(
        self,
        pieces: Iterable[NDArray[np.uint8]],
        wanted: NDArray[np.bool_],
        stride_px: int,
        report: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        (image,) = pieces
        image = image[self.halo_px : len(image) - self.halo_px, self.halo_px : image.shape[1] - self.halo_px]
        (top, _), (left, _) = self._box(wanted)
        logits = np.full((*wanted.shape, self.views), np.nan, np.float32)
        for row, col in np.argwhere(wanted):
            y, x = (row - top) * stride_px, (col - left) * stride_px
            patch = image[y : y + 96, x : x + 96]
            assert patch.shape == (96, 96, 3)
            logits[row, col] = self.look(patch)
        if report is not None:
            report(int(wanted.sum()))
        return logits


class DarknessPredictor(PatchByPatch):
    """Gives as logit the share of dark pixels in the label square of each patch; each further view adds 1 to it."""

    def look(self, patch: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
        return np.asarray((1 - patch[32:64, 32:64] / 255).mean() + np.arange(self.views))


class Unused(nn.Module):
    """The least that a predictor can be made of: one layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 1, 32, stride=32)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1, 1)


def unused_model() -> Model:
    """The default model's card with a network that cannot be run, for predictors that never ask it: never in int8."""
    network, card = Unused().eval(), read_card(model_path(None))
    card = replace(card, metrics={name: value for name, value in card.metrics.items() if not name.startswith("int8")})
    return Model(network, card, hashlib.sha256(b"unused").hexdigest(), Path("unused.safetensors"))


def scan_darkness(
    slide: str | Path | Slide,
    out: str | Path,
    *,
    model: str | Path | Model | None = None,
    kind: type[Predictor] = DarknessPredictor,
    **settings: Any,
) -> Heatmap:
    """A scan by a stand-in for the network; everything else is as it always is.

    Without a model, the card is the default model's; its network, which a stand-in never asks, is spared.
    """
    inference = {name: settings.pop(name) for name in ("device", "precision", "batch_size", "tta") if name in settings}
    loaded = unused_model() if model is None else model if isinstance(model, Model) else load_model(model)
    return scan(slide, out, predictor=kind(loaded, **inference), **settings)


def write_darkness_model(path: Path, card: ModelCard | None = None) -> Path:
    """A model file, a ResNet50 like any other, whose logit is about the share of dark pixels in the patch."""
    card = card or ModelCard()
    save_model(path, half_precision(darkness_state(card.preprocessing)), card)
    return path


def darkness_state(shown: Preprocessing, build: Callable[[], nn.Module] = build_network) -> dict[str, torch.Tensor]:
    """Weights of a ResNet whose logit is about the share of dark pixels in the patch."""
    with torch.device("meta"):  # no random numbers for weights that are replaced at once
        shapes = build().state_dict()
    state = {name: torch.zeros(values.shape, dtype=values.dtype) for name, values in shapes.items()}
    for name, values in state.items():
        if name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight", "downsample.1.weight")):
            values.fill_(1)
        if name.endswith("downsample.0.weight"):
            values[0, 0] = 1
    for channel, deviation in enumerate(shown.std):  # back from model input to pixels: 1 is white
        state["conv1.weight"][0, channel] = -deviation / 3 / 49
    state["bn1.bias"][0] = 1 - sum(shown.mean) / 3
    state["fc.weight"][0, 0] = 1
    return state


def shifted(model: Model, shift: float) -> Model:
    """The same network with another bias, so that its map is another one."""
    network = copy.deepcopy(model.network)
    network.get_parameter("fc.bias").data -= shift
    return replace(model, network=network, hash=hashlib.sha256(f"{model.hash} {shift}".encode()).hexdigest())


def write_shifted(path: Path, model_file: Path, shift: float) -> None:
    """The same model with another bias, so that its map is another one."""
    model = load_model(model_file)
    state = {name: values.clone() for name, values in model.network.state_dict().items()}
    state["fc.bias"] -= shift
    save_model(path, state, model.card)
