"""Labelled patches in batches, decoded by processes of their own."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Iterator
from multiprocessing import current_process
from typing import TYPE_CHECKING, Any

from wsi_meta.errors import DataError, DeviceError, WsiMetaError, whole_number
from wsi_meta.words import first_line

if TYPE_CHECKING:
    import torch

    from wsi_meta.datasets.patches import Patches

__all__ = ["batches_of", "check_workers", "read_batches"]

ENDED = re.compile(r"DataLoader worker \(pid|shared memory|unable to write to file </torch_|items of ancdata")
"""What torch and Python say of a process that ended, or could not hand over what it had."""


def check_workers(workers: int) -> int:
    """Return a number of processes that decode patches; OptionsError where it is none.

    It is 0 in a process that may have none of its own, such as those of :class:`multiprocessing.Pool`.
    """
    workers = whole_number("workers", workers, "a whole number, 0 or more", least=0)
    return 0 if current_process().daemon else workers


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


def batches_of(loader: Iterable[Any]) -> Iterator[Any]:
    """Return a loader's batches: of patches, uint8 images (n, patch_px, patch_px, 3) and labels (n,).

    A DataError from a process that decodes patches is raised with its own message, without that process's traceback; where such
    a process ends, DeviceError says what to do.
    """
    told: WsiMetaError | None = None
    try:
        yield from _begin(loader)
    except (DataError, RuntimeError, ConnectionError, EOFError) as error:
        told = _told_by(error)
        if told is None:
            raise
        error.__traceback__ = None  # its frames hold the loader, whose processes would live until some later garbage collection
    if told is not None:
        raise told


def _begin(loader: Iterable[Any]) -> Iterator[Any]:
    """Return a loader's iterator, without torch's handler of the end of a process: it raises wherever this process is then.

    The iterator itself looks every few seconds whether its processes are there.
    """
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if before is not None and signal.getsignal(signal.SIGCHLD) is not before:
        signal.signal(signal.SIGCHLD, before)
    return batches


def _told_by(error: Exception) -> WsiMetaError | None:
    """Return what to tell of an error from a loader; None for one of another kind than those of :func:`batches_of`."""
    if isinstance(error, DataError):
        return DataError(str(error).rsplit("DataError: ", 1)[-1].strip())
    if str(error).startswith("Caught "):  # it raised that itself, and its traceback comes first
        error = RuntimeError(str(error).strip().rpartition("\n")[2])
    cut_off = isinstance(error, ConnectionError | EOFError)  # it was about to hand over a batch
    if not (cut_off or ENDED.search(str(error))):
        return None
    told = f"a process that decodes patches has ended, as where memory or /dev/shm is short ({first_line(error)})"
    return DeviceError(f"{told}; expected it to go on: take fewer workers (--workers), or 0, which decodes in this process")
