"""What a loaded model consists of, in one word: it tells whether network or card were changed since."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.models.card import ModelCard

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ADDRESS", "bytes_of", "digest_of"]

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""Place of an object in memory, as Python prints functions: another one in each process."""


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
