"""Labelled patches in batches, decoded by processes of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from wsi_meta.errors import DataError, whole_number

if TYPE_CHECKING:
    import torch

    from wsi_meta.datasets.patches import Patches

__all__ = ["batches_of", "check_workers", "read_batches"]


def check_workers(workers: int) -> int:
    """Return a number of processes that decode patches; OptionsError where it is none."""
    return whole_number("workers", workers, "a whole number, 0 or more", least=0)


def read_batches(patches: Patches, size: int, workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Return all patches in their order, as :func:`batches_of` gives them, `size` at a time.

    Parameters
    ----------
    workers : processes that decode patches; 0 decodes in this one

    Raises
    ------
    OptionsError
        when `workers` is no such number.
    """
    workers = check_workers(workers)
    import torch
    from torch.utils.data import DataLoader

    # a generator of its own: else the seeds of the workers are drawn from the global one
    return batches_of(DataLoader(patches, size, num_workers=workers, generator=torch.Generator()))


def batches_of(loader: Iterable[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Return a loader's batches: uint8 images (n, patch_px, patch_px, 3) and labels (n,).

    A DataError from a process that decodes patches is raised with its own message, without that process's traceback.
    """
    told = None
    try:
        yield from loader
    except DataError as error:
        told = str(error).rsplit("DataError: ", 1)[-1].strip()
        error.__traceback__ = None  # its frames hold the loader, whose processes would live until some later garbage collection
    if told is not None:
        raise DataError(told)
