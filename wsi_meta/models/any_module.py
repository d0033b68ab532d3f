"""A network of any kind under the contract of ours: patches in, one logit out; and a hash that says which network it is."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from wsi_meta.errors import OptionsError
from wsi_meta.models.card import ModelCard
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.weights import ADDRESS, bytes_of
from wsi_meta.words import first_line

__all__ = ["TumorLogit", "hash_module", "name_of"]

TRIED = 3
"""Patches that a module is tried on: as many logits cannot be taken for one or two logits of each patch."""
BEYOND = 100.0
"""So many times as large as a patch's input is one at which logits are far from 0."""
SAME = 1e-3
"""Largest difference of logits, for each unit of the largest, that the rounding of sums explains."""
PLAIN = (bool, int, float, str, tuple, type(None))


class TumorLogit(nn.Module):
    """A module whose output is the logit of tumor, tensor (n, 1), in float32 and in evaluation mode.

    Parameters
    ----------
    module : copied, so that it is not changed
    tumor_class : which of two logits is the tumor's; the logit is that one less the other one

    Raises
    ------
    OptionsError
        when `tumor_class` is neither 0 nor 1, or the module cannot be copied.
    """

    def __init__(self, module: nn.Module, tumor_class: int = 1) -> None:
        super().__init__()
        if tumor_class not in (0, 1):
            raise OptionsError(f"tumor_class {tumor_class!r}; expected 0 or 1, the place of the tumor's logit among two")
        try:
            self.module, self.tumor_class = copy.deepcopy(module).float().cpu(), tumor_class
        except Exception as error:  # whatever a module of anybody's raises
            raise OptionsError(
                f"{name_of(module)}: cannot be copied ({first_line(error)}); expected a module that can"
            ) from error
        self.eval().requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits (n, 1) of model input (n, 3, height, width)."""
        found: torch.Tensor = self.module(inputs.contiguous())
        if found.ndim == 1:
            return found[:, None]
        return found if found.shape[1] == 1 else found[:, [self.tumor_class]] - found[:, [1 - self.tumor_class]]

    def check(self, preprocessing: Preprocessing) -> None:
        """Try the module on a few patches of noise.

        Raises
        ------
        OptionsError
            when it cannot take them, does not return one or two finite logits for each, returns probabilities, or what depends
            on other patches or on chance.
        """
        name, side = name_of(self.module), preprocessing.patch_px
        pixels = np.random.default_rng(0).integers(0, 256, (TRIED, side, side, 3), np.uint8)
        inputs = preprocessing.to_input(torch.from_numpy(pixels)).contiguous()
        found = self._tried(self.module, inputs)
        if not isinstance(found, torch.Tensor) or tuple(found.shape) not in ((TRIED,), (TRIED, 1), (TRIED, 2)):
            told = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
            raise OptionsError(
                f"{name}: returns {told} for {TRIED} patches; expected one logit for each or two: a tensor of shape "
                f"({TRIED},), ({TRIED}, 1) or ({TRIED}, 2)"
            )
        if not (found.is_floating_point() and found.isfinite().all()):
            raise OptionsError(f"{name}: returns {found.dtype} that are not all finite numbers; expected logits")
        if found.shape[1:] == (2,) and bool((found >= 0).all()) and torch.allclose(found.sum(1), torch.ones_like(found[:, 0])):
            raise OptionsError(f"{name}: returns probabilities, which sum up to 1; expected logits: leave its softmax out")
        if self._stays_within_1(preprocessing, inputs):
            told = "returns probabilities, which lie between 0 and 1 whatever it is shown"
            raise OptionsError(f"{name}: {told}; expected logits: leave its sigmoid out")
        if not self._stays_the_same(inputs):
            told = "gives a patch another logit beside other patches or each time (BatchNorm of the batch? dropout?)"
            raise OptionsError(f"{name}: {told}; expected one that depends on the patch alone")

    def _tried(self, call: Callable[[torch.Tensor], Any], inputs: torch.Tensor) -> Any:
        """Return what `call` makes of patches; OptionsError where it fails."""
        try:
            with torch.inference_mode():
                return call(inputs.clone())  # a module may change what it is given
        except Exception as error:  # whatever a module of anybody's raises
            told = f"cannot take patches {tuple(inputs.shape)} ({type(error).__name__}: {first_line(error)})"
            raise OptionsError(f"{name_of(self.module)}: {told}; expected one that returns a logit for each") from error

    def _stays_the_same(self, inputs: torch.Tensor) -> bool:
        """Tell whether patches have the same logits a second time, and among paler ones, but for the rounding of sums."""
        batches = (inputs, inputs, torch.cat([inputs, inputs[:2] / 4]))
        first, *again = (self._tried(self, batch)[:TRIED] for batch in batches)
        allowed = SAME * float(first.abs().max())
        return all(other.shape == first.shape and torch.allclose(first, other, rtol=0, atol=allowed) for other in again)

    def _stays_within_1(self, preprocessing: Preprocessing, inputs: torch.Tensor) -> bool:
        """Tell whether outputs differ, but lie between 0 and 1 of noise, of black, grey and white, and of far larger inputs."""
        plain = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None, None].expand(-1, *inputs.shape[2:], 3)
        shown = (inputs, preprocessing.to_input(plain).contiguous(), BEYOND * inputs, -BEYOND * inputs)
        try:
            with torch.inference_mode():
                found = torch.cat([self.module(batch.clone()) for batch in shown])
        except Exception:  # a module may refuse what no patch looks like
            return False
        return bool(((found >= 0) & (found <= 1)).all() and (found != found[0]).any())


def name_of(module: nn.Module) -> str:
    """Return the full name of a module's class."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def hash_module(network: nn.Module, card: ModelCard) -> str:
    """Return a SHA-256, hexadecimal, of all of a network that can be read off it.

    These are the card; of each part its class, what it prints of itself, its plain attributes, and the source of its class
    where Python has it and it is not torch's own; all weights and buffers, and what it saves besides (quantized weights, extra
    state). Not among them are functions that the classes call, hooks, and attributes that are objects.
    """
    digest = hashlib.sha256(json.dumps(card.to_dict(), sort_keys=True).encode())
    digest.update("\n".join(_words(network)).encode())
    numbers = dict(chain(network.named_parameters(), network.named_buffers()))
    told = {id(tensor) for tensor in numbers.values()}
    besides = {name: value for name, value in network.state_dict(keep_vars=True).items() if id(value) not in told}
    for name, value in chain(numbers.items(), besides.items()):
        digest.update(f"{name} ".encode())
        for part in bytes_of(value):
            digest.update(part)
    return digest.hexdigest()


def _words(network: nn.Module) -> Iterator[str]:
    """Yield what identifies the parts of a network besides their numbers; the source of each class once."""
    seen: set[type] = set()
    for name, part in network.named_modules():
        plain = {key: value for key, value in vars(part).items() if isinstance(value, PLAIN) and not key.startswith("_")}
        yield ADDRESS.sub("", f"{name}: {name_of(part)}({part.extra_repr()}) {sorted(plain.items())}")
        if type(part) not in seen and type(part).__module__.partition(".")[0] not in ("torch", "torchvision", "wsi_meta"):
            seen.add(type(part))
            yield _source(type(part))


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed at a prompt, or made by a function
        return ""
