"""Weights of any network: read from a file without running what is in it, found under their names, told apart by a digest."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import ModelFileError
from wsi_meta.files.process_settings import no_warnings
from wsi_meta.models.card import ModelCard
from wsi_meta.models.weights_file import check_written, holds_pickle, refuse_damage, refuse_script, refuse_text
from wsi_meta.words import first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "ADDRESS",
    "COUNTS",
    "HEAD",
    "Match",
    "bytes_of",
    "check_weights",
    "digest_of",
    "find_names",
    "half_precision",
    "read_weights",
]

logger = logging.getLogger(__name__)

WITHIN = ("state_dict", "model_state_dict", "model")
"""Under one of these names a checkpoint most often holds its weights, beside epoch and optimiser."""
EXPECTED = "a state_dict: torch.save(network.state_dict(), FILE)"
HEAD = "fc."
"""Begins the names of the head in our networks, as in torchvision's."""
COUNTS = "num_batches_tracked"
"""Ends the names of entries that no result depends on; older files lack them."""
VARIANCES = ".running_var"
"""Ends the names of the variances of a BatchNorm."""
FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Types of numbers that are weights as they are; smaller ones stand for others by scales that are kept elsewhere."""
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""Place of an object in memory, as Python prints functions: another one in each process."""


@dataclass(frozen=True)
class Match:
    """What was found of a network under one naming and one prefix: our name of each entry, by its name in the file."""

    naming: str
    """``torchvision``, whose names timm's resnet50 has too, or ``tiatoolbox``."""
    prefix: str
    """Stands before all names, as ``model.`` or ``module.`` does."""
    names: dict[str, str]
    missing: tuple[str, ...]
    """Names that a file of this naming has, and this one lacks."""


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a ``state_dict`` by their names: of safetensors, or of what ``torch.save`` wrote.

    Its content tells which of the two a file is, not its name. A file of torch is a pickle, of which only tensors are read:
    code in it is never run. Of a checkpoint its weights are taken, under whatever key they stand.

    Raises
    ------
    ModelFileError
        when the file is missing, damaged, holds more than tensors and plain values, or none or several networks.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; expected weights as .safetensors or .pth, 'imagenet' or 'none'")
    refuse_script(path)
    try:
        content: Any = _load_pickled(path) if holds_pickle(path) else _load_written(path)
    except ModelFileError:
        raise
    except pickle.UnpicklingError as error:
        told = "holds code or objects beside tensors, or is damaged; code is never run"
        raise ModelFileError(f"{path}: its weights cannot be read: it {told}; expected {EXPECTED}") from error
    except Exception as error:  # what a damaged file raises depends on the damage
        refuse_text(path)
        told = f"its weights cannot be read ({first_line(error)}); expected {EXPECTED}, or safetensors"
        raise ModelFileError(f"{path}: {told}; copy or download it again") from error
    return _only_tensors(content, path)


def check_weights(state: Mapping[str, torch.Tensor], source: object, ranges: Mapping[str, float] | None = None) -> None:
    """Refuse weights that no network computes with: other than floats, not finite, or of a variance below 0.

    Computed in int8, such weights give numbers that look like any. A ResNet50 takes some milliseconds.

    Parameters
    ----------
    state : tensors that are taken, by name
    source : names the file, for messages
    ranges : of int8, as the card has them: of each BatchNorm one; None where there are none

    Raises
    ------
    ModelFileError
    """
    for name, tensor in state.items():
        if not name.endswith(COUNTS):
            _check_tensor(name, tensor, source)
    norms = {name.removesuffix(VARIANCES) for name in state if name.endswith(VARIANCES)}
    if ranges is not None and (other := norms ^ set(ranges)):
        told = f"'{min(other)}' is in only one of int8_ranges in its card and its BatchNorms"
        raise ModelFileError(f"{source}: {told}; expected a range for each; train it again")


def _check_tensor(name: str, tensor: torch.Tensor, source: object) -> None:
    import torch

    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in FLOATS or tensor.layout is not torch.strided or tensor.is_meta:
        kind += "" if tensor.layout is torch.strided else f", {str(tensor.layout).removeprefix('torch.')}"
        expected = f"expected one of {', '.join(FLOATS)}, dense; save the network as it was before it was quantised or packed"
        raise ModelFileError(f"{source}: '{name}' is of {kind}{', without values' if tensor.is_meta else ''}; {expected}")
    told, values = "", tensor.float() if kind == "float64" else tensor
    # a sum is quick and keeps what is not finite; of finite values it may only be too large
    if not math.isfinite(values.sum()) and not values.isfinite().all():
        told = "holds values that are no finite float32; expected numbers"
    elif name.endswith(VARIANCES) and values.numel() and values.min() < 0:
        told = f"holds a variance of {float(values.min()):g}; expected 0 or more"
    if told:
        raise ModelFileError(f"{source}: '{name}' ({kind}) {told}; take a whole copy, or weights of an earlier epoch")


def find_names(state: Mapping[str, torch.Tensor], network: nn.Module, source: object, naming: str = "auto") -> Match:
    """Return the naming and prefix under which most of a network's trunk is found.

    Parameters
    ----------
    state : tensors by the names in the file
    network : whose trunk is looked for
    source : names the file, for messages
    naming : ``auto``; ``torchvision`` or ``timm``, which are the same; ``tiatoolbox``: ``feat_extract.4.0.conv1.weight``

    Raises
    ------
    ModelFileError
        when as much of it is found under several prefixes, with other weights, as in a file of teacher and student.
    """
    own = [name for name in network.state_dict() if not name.startswith(HEAD) and not name.endswith(COUNTS)]
    places = {name: str(place) for place, (name, _) in enumerate(network.named_children())}

    def theirs(name: str) -> str:
        child, _, rest = name.partition(".")
        return f"feat_extract.{places[child]}.{rest}"

    namings = {"torchvision": {name: name for name in own}, "tiatoolbox": {theirs(name): name for name in own}}
    wanted = {"timm": "torchvision"}.get(naming, naming)
    matches = [_match(state, kind, names, source) for kind, names in namings.items() if wanted in ("auto", kind)]
    return max(matches, key=lambda match: len(match.names))


def _match(state: Mapping[str, torch.Tensor], naming: str, names: Mapping[str, str], source: object) -> Match:
    prefixes = {""} | {name[:start] for name in state for start in _starts(name) if name[start:] in names}
    found = {
        prefix: {prefix + theirs: name for theirs, name in names.items() if prefix + theirs in state}
        for prefix in sorted(prefixes)
    }
    prefix = max(found, key=lambda prefix: len(found[prefix]))
    missing = tuple(prefix + theirs for theirs in names if prefix + theirs not in state)
    others = [other for other in found if len(found[other]) == len(found[prefix]) > len(missing) and other != prefix]
    for other in others:
        if not all(map(_are_equal, map(state.get, found[prefix]), map(state.get, found[other]))):
            told = f"holds several networks with other weights, under '{prefix}*' and '{other}*'; expected one"
            raise ModelFileError(f"{source}: {told}; save the tensors of the one that is meant to a file of their own")
    return Match(naming, prefix, found[prefix], missing)


def _starts(name: str) -> Iterator[int]:
    """Yield where the parts of a dotted name begin, but for the first."""
    return (place + 1 for place, letter in enumerate(name) if letter == ".")


def _are_equal(one: Any, other: Any) -> bool:
    """Tell whether two tensors are the same, dense ones of one type."""
    import torch

    plain = all(tensor.layout is torch.strided and not tensor.is_meta for tensor in (one, other))
    return plain and one.dtype == other.dtype and torch.equal(one, other)


def _load_pickled(path: Path) -> Any:
    import torch

    if zipfile.is_zipfile(path):
        refuse_damage(path)
    # torch warns about old pickles and then refuses them; by their names, it would take some files for safetensors
    with no_warnings(), path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _load_written(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    content = path.read_bytes()
    tensors = load(content)
    check_written(content, path)
    return tensors


def _only_tensors(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a state, or of the one state that a checkpoint holds; ModelFileError for none or several."""
    content = content if isinstance(content, Mapping) else {}
    inner = {str(name): _tensors_in(value) for name, value in content.items() if isinstance(value, Mapping)}
    inner = {name: tensors for name, tensors in inner.items() if tensors}
    usual = [name for name in WITHIN if name in inner]
    if usual or (own := _tensors_in(content)) == {}:
        if not usual and len(inner) != 1:
            told = f"holds several networks ({', '.join(inner)})" if inner else "holds no tensors"
            keys = ", ".join(map(str, list(content)[:5])) or "none"
            raise ModelFileError(f"{path}: {told}; its keys: {keys}; expected {EXPECTED}")
        name = usual[0] if usual else next(iter(inner))
        if others := [other for other in inner if other != name and len(inner[other]) == len(inner[name])]:
            told = (
                "%s: the weights under '%s' are taken, not those under '%s'; are those meant, save them to a file of their own"
            )
            logger.warning(told, path, name, others[0])
        return inner[name]
    return own


def _tensors_in(content: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    import torch

    return {str(name): tensor.detach() for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}


def half_precision(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a copy of a ``state_dict`` whose kernels are float16 (half the file); BatchNorm and biases stay float32."""
    import torch

    return {
        name: tensor.detach().to(torch.float16 if tensor.ndim > 1 else tensor.dtype, copy=True).cpu()
        for name, tensor in state.items()
    }


def digest_of(network: nn.Module, card: ModelCard) -> str:
    """Return a digest, hexadecimal, of a network's card, and of all that it would save (its ``state_dict``) by CRC-32.

    It takes a ResNet50 a twentieth of a second. What else a module keeps of itself may change as it computes, and is no part.
    """
    digest = hashlib.sha256(json.dumps(card.to_dict(), sort_keys=True).encode())
    for name, value in network.state_dict().items():
        content = 0
        for part in bytes_of(value):
            content = zlib.crc32(part, content)
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


def bytes_of(value: Any) -> Iterator[bytes | memoryview]:
    """Yield the bytes of what a module saves: tensors, also in dicts and tuples, with type and shape; of the rest its text."""
    import torch

    if isinstance(value, torch.Tensor) and value.is_quantized:
        yield f"{value.dtype} {value.qscheme()} {_scales_of(value)}\n".encode()
        yield from bytes_of(value.int_repr())
    elif isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}\n".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"{value.dtype} {value.shape}\n".encode()
        yield value.tobytes()
    elif isinstance(value, Mapping | list | tuple):
        yield f"{type(value).__name__} of {len(value)}\n".encode()
        for part in value.items() if isinstance(value, Mapping) else value:
            yield from bytes_of(part)
    else:
        yield ADDRESS.sub("", f"{value!r}\n").encode()


def _scales_of(tensor: torch.Tensor) -> list[float]:
    """Return the scales of a quantized tensor, and its zero points after them."""
    import torch

    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return [tensor.q_scale(), tensor.q_zero_point()]
    scales: list[float] = tensor.q_per_channel_scales().tolist() + tensor.q_per_channel_zero_points().tolist()
    return scales
