"""Batches of training patches: which patches, in which order, in which process, and where they are decoded.

A GPU with room for them holds all patches, decoded once: no process feeds it, and nothing is copied to it in a step. Else
worker processes decode each batch anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from wsi_meta.datasets.batches import read_batches
from wsi_meta.datasets.layouts import Patches
from wsi_meta.progress import progress_bar
from wsi_meta.training.distributed import Processes
from wsi_meta.training.recipe import Recipe

__all__ = ["EpochBatches", "HeldBatches", "Loader", "decode_all", "make_loader", "send"]

HELD_SHARE = 0.25
"""Share of a GPU's free memory that decoded patches may take."""
READ_PATCHES = 256
"""Patches that are decoded at a time where all are held."""


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


class HeldBatches:
    """The same batches as a loader's, from decoded patches that are held on the device that trains.

    Parameters
    ----------
    images : uint8 tensor (n, patch_px, patch_px, 3)
    labels : tensor (n,), on the same device
    batches : which of them make a batch
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, batches: EpochBatches) -> None:
        self.images, self.labels, self.batches = images, labels, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        for chosen in torch.tensor(list(self.batches), device=self.images.device):  # one copy for a whole epoch
            yield [self.images[chosen], self.labels[chosen]]


Loader: TypeAlias = DataLoader[tuple[torch.Tensor, int]] | HeldBatches


def make_loader(
    patches: Patches,
    batches: EpochBatches,
    workers: int,
    processes: Processes,
    *,
    memory: int | None = None,
    progress: bool = False,
) -> Loader:
    """Make a loader of uint8 batches.

    Parameters
    ----------
    patches : what `batches` chooses from
    batches : which patches make a batch
    workers : processes that decode patches; 0 decodes in this one
    processes : gives the device
    memory : bytes that decoded patches may take on the device. If they fit, all are decoded here and held. None: a quarter of
        a GPU's free memory, and nothing on a CPU, which decodes a hundred times as fast as it trains
    progress : show a bar on stderr while patches that will be held are decoded

    Raises
    ------
    DataError
        when a patch that is to be held cannot be read.
    """
    if len(patches) * patches.patch_px**2 * 3 <= (_memory_for_patches(processes.device) if memory is None else memory):
        images, labels = decode_all(patches, workers, processes.device, progress=progress)
        return HeldBatches(images, labels, batches)
    return DataLoader(
        patches,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # else the workers' seeds are drawn from the global one
    )


def send(batch: torch.Tensor, device: str) -> torch.Tensor:
    """Return a batch on the device; to a GPU it travels from pinned memory while the step before it is computed.

    It is pinned here and not by a thread of the loader: no other thread may allocate such memory while a step is recorded.
    """
    if device.startswith("cuda") and not batch.is_cuda:
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


def _memory_for_patches(device: str) -> int:
    return round(HELD_SHARE * torch.cuda.mem_get_info(device)[0]) if device.startswith("cuda") else 0


def decode_all(patches: Patches, workers: int, device: str, *, progress: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode all patches, in `workers` processes; return them on a device, as :class:`HeldBatches` takes them, with labels."""
    images = torch.empty((len(patches), patches.patch_px, patches.patch_px, 3), dtype=torch.uint8, device=device)
    labels, done = torch.from_numpy(patches.labels.astype(np.int64)).to(device), 0
    with progress_bar(len(patches), "patches", "decoding", enabled=progress) as bar:
        for decoded, _ in read_batches(patches, READ_PATCHES, workers):
            images[done : done + len(decoded)] = decoded.to(device)
            done += len(decoded)
            bar.update(len(decoded))
    return images, labels
