"""The eight views of a square: four quarter turns, each also mirrored (the dihedral group D4).

A patch of tissue has no up or left, so every view is an equally good picture of it: training draws one at random, test-time
averaging takes the mean of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["VIEWS", "dihedral"]

VIEWS = 8
"""How many views a square has."""


def dihedral(images: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Give each image in one of the square's eight views.

    Parameters
    ----------
    images : tensor (n, side, side, channels)
    view : int64 tensor (n,), 0 to 7: quarter turns ``view % 4``, mirrored first when ``view >= 4``

    Returns
    -------
    tensor of the same shape and dtype; `images` is left as it was.
    """
    import torch

    seen = torch.empty_like(images)
    for value in range(VIEWS):
        chosen = view == value
        part = images[chosen].flip(2) if value >= 4 else images[chosen]
        seen[chosen] = torch.rot90(part, value % 4, (1, 2))
    return seen
