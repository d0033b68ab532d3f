"""What a loaded model consists of, in one word: it tells whether network or card were changed since."""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import TYPE_CHECKING

from wsi_meta.models.card import ModelCard

if TYPE_CHECKING:
    from torch import nn

__all__ = ["digest_of"]


def digest_of(network: nn.Module, card: ModelCard) -> str:
    """Return a digest, hexadecimal, of a network and its card; it takes a ResNet50 a twentieth of a second.

    Of a ResNet50 these are its card, and each weight and buffer by its CRC-32; of a module of one's own all that
    :func:`.hash_module` tells.
    """
    import torch

    from wsi_meta.models.any_module import hash_module

    if card.foreign:
        return hash_module(network, card)
    digest = hashlib.sha256(json.dumps(card.to_dict(), sort_keys=True).encode())
    for name, tensor in network.state_dict().items():
        content = zlib.crc32(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {content}\n".encode())
    return digest.hexdigest()
