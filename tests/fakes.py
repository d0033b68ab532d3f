"""Stand-ins for the network where a test is about geometry or bookkeeping, not about tumor."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from wsi_meta.inference.predictor import Predictor


class DarknessPredictor(Predictor):
    """Gives as logit the share of dark pixels in the label square of each patch; each further view adds 1 to it."""

    def pieces(self, wanted: NDArray[np.bool_], stride_px: int) -> list[tuple[slice, slice]]:
        beyond = 2 * self.halo_px + 96 - stride_px
        rows, cols = (slice(0, cells * stride_px + beyond) for cells in wanted.shape)
        return [(rows, cols)]

    def predict_block(
        self,
        pieces: Iterable[NDArray[np.uint8]],
        wanted: NDArray[np.bool_],
        stride_px: int,
        report: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        (image,) = pieces
        image = image[self.halo_px : len(image) - self.halo_px, self.halo_px : image.shape[1] - self.halo_px]
        logits = np.full((*wanted.shape, self.views), np.nan, np.float32)
        for row, col in np.argwhere(wanted):
            patch = image[row * stride_px : row * stride_px + 96, col * stride_px : col * stride_px + 96]
            assert patch.shape == (96, 96, 3)
            logits[row, col] = (1 - patch[32:64, 32:64] / 255).mean() + np.arange(self.views)
        if report is not None:
            report(int(wanted.sum()))
        return logits
