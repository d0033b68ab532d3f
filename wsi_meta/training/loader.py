"""Batches of training patches: which patches, in which order, and in which process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from wsi_meta.datasets.layouts import Patches
from wsi_meta.training.distributed import Processes
from wsi_meta.training.recipe import Recipe

__all__ = ["EpochBatches", "make_loader"]


class EpochBatches(Sampler[list[int]]):
    """The batches of an epoch, of each the share of this process. The order depends on seed and epoch alone.

    Parameters
    ----------
    n : number of training patches; those that do not fill a last batch are left out of the epoch
    recipe : gives batch size and seed
    processes : each batch is divided among them
    """

    def __init__(self, n: int, recipe: Recipe, processes: Processes) -> None:
        self.n, self.recipe, self.processes = n, recipe, processes
        self.epoch = 1
        """Number of the epoch, from 1. Set it before each iteration."""

    def __len__(self) -> int:
        return self.n // self.recipe.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.recipe.seed, self.epoch)).permutation(self.n)
        batches = order[: len(self) * self.recipe.batch_size].reshape(len(self), -1)
        return iter(batches[:, self.processes.rank :: self.processes.count].tolist())


def make_loader(
    patches: Patches, batches: EpochBatches, workers: int, processes: Processes
) -> DataLoader[tuple[torch.Tensor, int]]:
    """Make a loader of uint8 batches that decodes in `workers` processes; batches for a GPU are in pinned memory."""
    return DataLoader(
        patches,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=processes.device.startswith("cuda"),
        generator=torch.Generator(),  # else the workers' seeds are drawn from the global one
    )
