"""A stand-in for the network that remembers what it was shown, and the scan command with it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from wsi_meta.cli import main
from wsi_meta.heatmaps.summary import summarise
from wsi_meta.inference.options import InferencePlan
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.card import ModelCard
from wsi_meta.models.model import Model
from wsi_meta.scanning.scanner import Scanner

__all__ = ["HashPredictor", "scan_command"]


class HashPredictor(Predictor):
    """Gives each patch a logit that is a hash of its pixels.

    Attributes
    ----------
    seen : the patch of each probability that was given, uint8 (96, 96, 3)
    """

    def __init__(self) -> None:
        from torch import nn

        self.model = Model(nn.Identity(), ModelCard(), "0" * 64, Path("hash"))
        self.plan = InferencePlan("cpu", "fp32", 64, tta=False)
        self.device, self.precision, self.batch_size = self.plan.device, self.plan.precision, self.plan.batch_size
        self.compiled, self.views, self.halo_px = False, 1, 0
        self.seen: dict[float, NDArray[np.uint8]] = {}

    def pieces(self, wanted: NDArray[np.bool_], stride_px: int) -> list[tuple[slice, slice]]:
        rows, cols = (slice(0, cells * stride_px + 96 - stride_px) for cells in wanted.shape)
        return [(rows, cols)]

    def predict_block(
        self,
        pieces: Iterable[NDArray[np.uint8]],
        wanted: NDArray[np.bool_],
        stride_px: int,
        report: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        (image,) = pieces
        logits = np.full((*wanted.shape, 1), np.nan, np.float32)
        for row, col in np.argwhere(wanted):
            patch = image[row * stride_px : row * stride_px + 96, col * stride_px : col * stride_px + 96].copy()
            share = (zlib.crc32(patch.tobytes()) + 1) / (2**32 + 1)
            logits[row, col] = np.log(share / (1 - share))
            self.seen[float(self.model.card.calibration.to_probability(logits[row, col])[0])] = patch
        if report is not None:
            report(int(wanted.sum()))
        return logits


def scan_command(predictor: HashPredictor) -> click.Group:
    """Return a command line whose ``scan SLIDE OUT [--tissue-mask none]`` scans with the stand-in; errors end as they always do."""
    group = type(main)("wsi-meta", params=main.params, callback=main.callback)

    @group.command()
    @click.argument("slide", type=click.Path(path_type=Path))
    @click.argument("out", type=click.Path(path_type=Path))
    @click.option("--tissue-mask")
    def scan(slide: Path, out: Path, tissue_mask: str | None) -> None:
        with Scanner(predictor=predictor, progress=False) as scanner:
            row = summarise(slide, scanner.scan(slide, out, tissue_mask=tissue_mask))
        if row["error"]:
            raise click.ClickException(f"{slide}: {row['error']}")

    return group
