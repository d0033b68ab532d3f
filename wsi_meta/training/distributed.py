"""One process or many: what ``torchrun`` starts, a process per GPU (or several on CPUs), joined for training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from wsi_meta.errors import DeviceError, TrainingError
from wsi_meta.inference.device import resolve_device

__all__ = ["Processes", "joined_processes"]

LONGEST_WAIT = timedelta(hours=6)
"""For the first process, which validates while the others wait; NCCL would give up after ten minutes."""


@dataclass(frozen=True)
class Processes:
    """Which of the processes that train together is the one that runs here."""

    rank: int
    """0 is the first: the one that validates, writes and prints."""
    count: int
    device: str
    """Of this process."""

    @property
    def first(self) -> bool:
        """Whether this is the process that validates, writes and prints."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """Send every process what the first one holds."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=torch.device(self.device))
        return box[0]

    def mean(self, value: torch.Tensor) -> float:
        """Return the mean of a scalar over the processes, the same in each; waits for the device."""
        if self.count > 1:
            value = value.clone()
            distributed.all_reduce(value)
            value /= self.count
        return value.item()


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, each on a GPU of its own (NCCL) or all on the CPU (gloo).

    Parameters
    ----------
    device : ``auto``, ``cpu``, ``cuda`` or, for a single process, ``cuda:N``

    Raises
    ------
    DeviceError
        when the device is not to be had, there are fewer GPUs than processes, or torchrun's environment is incomplete.
    TrainingError
        when another process ended while this one waited for it.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    device = resolve_device(device)
    if count == 1:
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)  # the loader's pinning thread asks for the current one
        yield Processes(0, 1, device)
        return
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise DeviceError(f"WORLD_SIZE is {count} without {', '.join(missing)}; start it with torchrun, or unset WORLD_SIZE")
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if device.startswith("cuda"):
        if torch.cuda.device_count() <= local_rank:
            raise DeviceError(f"--nproc-per-node: {torch.cuda.device_count()} GPUs here; expected one for each process")
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=LONGEST_WAIT)
    processes = Processes(rank, count, device)
    try:
        processes.mean(torch.zeros((), device=device))  # all are there: one that ends now does not end another's joining
        yield processes
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "Connection closed" in str(error) or "Connection reset" in str(error):
            raise TrainingError(f"process {rank}: another process ended; its message tells why") from error
        raise
    finally:
        distributed.destroy_process_group()
