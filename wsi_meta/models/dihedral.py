"""The eight views of a square: four quarter turns, each also mirrored (the dihedral group D4).

A patch of tissue has no up or left, so every view is an equally good picture of it: training draws one at random, test-time
averaging takes the mean of some or all, and their spread says how certain that mean is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wsi_meta.errors import OptionsError, is_truth, whole_number

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = [
    "AVERAGED",
    "VIEWS",
    "averaging_of",
    "count_views",
    "dihedral",
    "mean_over_views",
    "spread_over_views",
    "turn",
    "turn_back",
]

VIEWS = 8
"""How many views a square has."""
AVERAGED = {1: (0,), 2: (0, 2), 4: (0, 1, 2, 3), VIEWS: tuple(range(VIEWS))}
"""Which views are averaged, by how many they are, each as :func:`turn` takes it. Each set is a group: of a picture that is
turned or mirrored by one of its views, the same pictures are shown, so the mean stays the same."""


def count_views(tta: bool | int) -> int:
    """Return how many views of each patch are shown.

    Parameters
    ----------
    tta : as it was asked for: False is 1, True is all 8, a number is so many

    Raises
    ------
    OptionsError
        when it is no number of :data:`AVERAGED`.
    """
    expected = "2, 4 or 8, True for 8, or False for one"
    views = (VIEWS if tta else 1) if is_truth(tta) else whole_number("tta", tta, expected)
    if views not in AVERAGED:
        raise OptionsError(f"tta {tta!r}; expected {expected}")
    return views


def averaging_of(views: int) -> bool | int:
    """Return what a scan's identity says of so many views: False of 1, True of 8 (as stores said when there were no others)."""
    return {1: False, VIEWS: True}.get(views, views)


def dihedral(images: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Return each image in one of the square's eight views.

    Parameters
    ----------
    images : tensor (n, side, side, channels)
    view : int64 tensor (n,), 0 to 7: quarter turns ``view % 4``, mirrored first when ``view >= 4``

    Returns
    -------
    tensor of the same shape and dtype; `images` is not changed.
    """
    import torch

    n, side = images.shape[:2]
    places = torch.arange(side * side, device=images.device).view(1, side, side)
    seen = torch.stack([turn(places, value).flatten() for value in range(VIEWS)])[view]  # where each pixel comes from
    return images.flatten(1, 2)[torch.arange(n, device=images.device)[:, None], seen].view_as(images)


def turn(images: torch.Tensor, view: int) -> torch.Tensor:
    """Return images, tensor (n, height, width, ...), in one of the eight views; odd quarter turns swap the sides."""
    return (images.flip(2) if view >= 4 else images).rot90(view % 4, (1, 2))


def turn_back(maps: torch.Tensor, view: int) -> torch.Tensor:
    """Undo :func:`turn` on what was computed from a view: tensor (n, rows, cols, ...)."""
    back = maps.rot90(-(view % 4), (1, 2))
    return back.flip(2) if view >= 4 else back


def mean_over_views(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean over the last axis; a single view is returned unchanged.

    The views are added one after the other in float64, so an element's mean does not depend on the array around it.

    Parameters
    ----------
    values : float32 array (..., views); NaN stays NaN

    Returns
    -------
    float32 array (...).
    """
    return _mean(values).astype(np.float32)


def spread_over_views(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the population standard deviation over the last axis, summed as in :func:`mean_over_views`.

    Parameters
    ----------
    values : float32 array (..., views); NaN stays NaN

    Returns
    -------
    float32 array (...); exactly 0 where all views agree, at most 0.5 for probabilities.
    """
    return np.sqrt(_mean(np.square(values - _mean(values)[..., None]))).astype(np.float32)


def _mean(values: NDArray[np.floating]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.zeros(values.shape[:-1])
    for view in range(values.shape[-1]):
        total += values[..., view]
    total /= values.shape[-1]
    return total
