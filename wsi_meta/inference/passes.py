"""Passes of a network for which a GPU may have too little memory."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from wsi_meta.errors import DeviceError, first_line
from wsi_meta.inference.batches import ROWS_ALIKE

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

__all__ = ["HalvedPasses"]

logger = logging.getLogger("wsi_meta")


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
                "%s: its memory does not suffice for batches of %d, so they are halved; --batch-size %d does so from the start",
                self._device,
                rows,
                half,
            )

    def _refused(self, images: torch.Tensor, told: str) -> DeviceError:
        what, remedy = f"batches of {len(images)}", "lower --batch-size or --workers"
        if len(images) == 1:
            what = f"a picture of {images.shape[2]} x {images.shape[1]} px"
            remedy = "lower --workers, or pass --mode patch and a lower --batch-size"
        return DeviceError(
            f"{self._device}: its memory does not suffice for {what} ({told}); end other programs that use it, {remedy}"
        )
