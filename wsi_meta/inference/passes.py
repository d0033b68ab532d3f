"""Passes of a network for which a GPU may have too little memory."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from wsi_meta.errors import DeviceError
from wsi_meta.inference.batches import ROWS_ALIKE
from wsi_meta.words import first_line

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

__all__ = ["FewShapes", "HalvedPasses", "OneProcess"]

logger = logging.getLogger("wsi_meta")

SIDE_STEP_PX = 1024
"""A filled image's sides are multiples of this and 64 px, so a whole block of 120 cells with its halo fits exactly."""
GLASS = 255
"""Grey level of what an image is filled up with: it looks like what is beside a slide's tissue."""


class OneProcess:
    """Refuses to be entered in a process that was forked after it was made, where torch would wait for threads for ever."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def __enter__(self) -> None:
        if os.getpid() != self._process:
            raise DeviceError(
                "the predictor was made before this process was forked; make another one here, in a thread that is new, or "
                "start processes by multiprocessing's spawn or forkserver"
            )

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


class FewShapes:
    """Runs a dense network over images that it fills up at the right and below, so that they have few shapes.

    For each new shape a GPU's library chooses its kernels anew, which takes ten times as long as a pass over a block. What is
    filled up lies beyond the halo of the cells that are asked for, and changes their logits by some 0.00003 at most.

    Parameters
    ----------
    network : called with uint8 images (n, height, width, 3); returns the logits (n, rows, cols) of all their cells
    """

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._network = network

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of the images' own cells."""
        n, height, width, channels = images.shape
        filled = images.new_full((n, _filled_side(height), _filled_side(width), channels), GLASS)
        filled[:, :height, :width] = images
        return self._network(filled)[:, : height // 32 - 2, : width // 32 - 2]


def _filled_side(side_px: int) -> int:
    return -(-(side_px - 64) // SIDE_STEP_PX) * SIDE_STEP_PX + 64


class HalvedPasses:
    """Runs a network over batches; once the device's memory does not suffice for one, over each in two halves from then on.

    Parameters
    ----------
    network : called with a batch of images (n, ...); returns a tensor with n rows
    device : its name, for messages
    """

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor], device: str) -> None:
        self._network, self._device = network, device
        self._halved = False

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the network makes of a batch.

        Raises
        ------
        DeviceError
            when the memory does not suffice for half a batch, or for one image.
        """
        import torch

        half = -(-len(images) // (2 * ROWS_ALIKE)) * ROWS_ALIKE  # rows of which each half has the same number
        if not self._halved or half >= len(images):
            result, told = self._try(images)
            if result is not None:
                return result
            if half >= len(images):
                raise self._refused(images, told)
            self._halve(len(images), half)
        (first, told), (last, told_last) = self._try(images[:half]), self._try(images[-half:])
        if first is None or last is None:
            raise self._refused(images[:half], told or told_last)
        return torch.cat((first, last[2 * half - len(images) :]))

    def _try(self, images: torch.Tensor) -> tuple[torch.Tensor | None, str]:
        """Return the network's result; where memory does not suffice for it, None and what torch says, with all let go."""
        import torch

        try:
            return self._network(images), ""
        except torch.OutOfMemoryError as error:
            told = first_line(error)
        torch.cuda.empty_cache()  # pieces of other shapes, of which none was large enough
        return None, told

    def _halve(self, rows: int, half: int) -> None:
        if not self._halved:
            self._halved = True
            logger.warning(
                "%s: its memory does not suffice for batches of %d, so each is computed as two of %d, which rounds otherwise; "
                "end other programs that use it, or lower --workers",
                self._device,
                rows,
                half,
            )

    def _refused(self, images: torch.Tensor, told: str) -> DeviceError:
        what, remedy = f"batches of {len(images)}", "or lower --workers"
        if len(images) == 1:
            what = f"a picture of {images.shape[2]} x {images.shape[1]} px"
            remedy = "lower --workers, or pass --mode patch"
        return DeviceError(
            f"{self._device}: its memory does not suffice for {what} ({told}); end other programs that use it, {remedy}"
        )
