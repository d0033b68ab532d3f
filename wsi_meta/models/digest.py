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
    """Return a digest, hexadecimal, of a network's card, and of each weight and buffer by its CRC-32.

    It takes a ResNet50 a twentieth of a second. What else a module keeps of itself may change as it computes, and is no part.
    """
    import torch

    digest = hashlib.sha256(json.dumps(card.to_dict(), sort_keys=True).encode())
    for name, tensor in network.state_dict().items():
        content = zlib.crc32(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {content}\n".encode())
    return digest.hexdigest()
