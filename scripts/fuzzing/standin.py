"""A stand-in for the network that remembers what it was shown, and the scan command with it."""

from __future__ import annotations

import zlib
from itertools import count
from pathlib import Path
from typing import Any

import click
import numpy as np
from fakes import PatchByPatch
from numpy.typing import NDArray

from fuzzing.commands import line_with
from wsi_meta.inference.options import InferencePlan
from wsi_meta.models.card import ModelCard
from wsi_meta.models.model import Model
from wsi_meta.scanning.scanner import Scanner
from wsi_meta.tiling.grid import BLOCK_PX
from wsi_meta.worklist.summary import summarise

__all__ = ["HashPredictor", "scan_command"]


class HashPredictor(PatchByPatch):
    """Gives each patch a logit that is a hash of its pixels.

    Parameters
    ----------
    apart : give two patches of one hash different logits, by which of them comes first; a map is then another one in a batch

    Attributes
    ----------
    seen : the patch of each probability that was given, uint8 (96, 96, 3)
    """

    def __init__(self, *, apart: bool = False) -> None:
        from torch import nn

        self._apart = apart
        self.model = Model(nn.Identity(), ModelCard(), "0" * 64, Path("hash"))
        self.plan = InferencePlan("cpu", "fp32", 64, views=1)
        self.device, self.precision, self.batch_size = self.plan.device, self.plan.precision, self.plan.batch_size
        self.compiled, self.views, self.halo_px = False, 1, 0
        self.seen: dict[float, NDArray[np.uint8]] = {}

    def look(self, patch: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
        for salt in count():  # of some thousands of patches two may have one hash
            share = (zlib.crc32(patch.tobytes(), salt) + 1) / (2**32 + 1)
            logit = np.array([np.log(share / (1 - share))], np.float32)
            probability = float(self.model.card.calibration.to_probability(logit)[0])
            if np.array_equal(self.seen.setdefault(probability, patch.copy()), patch) or not self._apart:
                break
        return logit


def scan_command(predictor: HashPredictor, *, block_px: int = BLOCK_PX) -> click.Group:
    """Return a command line whose ``scan SLIDE OUT [--tissue-mask none]`` uses the stand-in."""

    @click.command()
    @click.argument("slide", type=click.Path(path_type=Path))
    @click.argument("out", type=click.Path(path_type=Path))
    @click.option("--tissue-mask")
    def scan(slide: Path, out: Path, tissue_mask: str | None) -> None:
        with Scanner(predictor=predictor, block_px=block_px) as scanner:
            row = summarise(slide, scanner.scan(slide, out, tissue_mask=tissue_mask))
        if row["error"]:
            raise click.ClickException(f"{slide}: {row['error']}")

    return line_with(scan)
