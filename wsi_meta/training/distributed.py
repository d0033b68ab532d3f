"""The processes that train together: one alone, or those that ``torchrun`` started, one per GPU or several on CPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from wsi_meta.errors import DeviceError, TrainingError
from wsi_meta.inference.device import resolve_device
from wsi_meta.words import printable

__all__ = ["Processes", "find_processes", "joined_processes"]

LONGEST_WAIT = timedelta(hours=6)
"""How long processes wait for the first one while it validates. NCCL would give up after ten minutes."""


@dataclass(frozen=True)
class Processes:
    """The place of this process among those that train together."""

    rank: int
    """Number of this process, from 0; process 0 validates, writes and prints."""
    count: int
    """Number of processes."""
    device: str
    """Device of this process."""

    @property
    def first(self) -> bool:
        """Whether this is the process that validates, writes and prints."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """Return, in every process, the value that the first process passes."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=torch.device(self.device))
        return box[0]

    def mean(self, value: torch.Tensor) -> float:
        """Return the mean of a scalar over all processes, the same in each. This waits for the device."""
        if self.count > 1:
            value = value.clone()
            distributed.all_reduce(value)
            value /= self.count
        return value.item()


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, each on a GPU of its own (NCCL) or all on the CPU (gloo).

    The current CUDA device is set for the duration and then put back.

    Parameters
    ----------
    device : ``auto``, ``cpu``, ``cuda`` or, for a single process, ``cuda:N``

    Raises
    ------
    DeviceError
        when the device is not available, there are fewer GPUs than processes, or torchrun's environment is incomplete.
    TrainingError
        when another process ended while this one waited for it.
    """
    processes = find_processes(resolve_device(device))
    with _current_device(processes.device):
        if processes.count == 1:
            yield processes
            return
        distributed.init_process_group("nccl" if processes.device.startswith("cuda") else "gloo", timeout=LONGEST_WAIT)
        try:
            # wait until all have joined: a process that ends now cannot make another one's joining fail
            processes.mean(torch.zeros((), device=processes.device))
            yield processes
        except RuntimeError as error:
            if _tells_of_an_end(error):
                raise TrainingError(f"process {processes.rank}: another process ended; its message tells why") from error
            raise
        finally:
            distributed.destroy_process_group()


def find_processes(device: str) -> Processes:
    """Return this process's place, from the environment that torchrun sets."""
    count = _number("WORLD_SIZE") if os.environ.get("WORLD_SIZE") else 1
    if count == 1:
        return Processes(0, 1, device)
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise DeviceError(f"WORLD_SIZE is {count} without {', '.join(missing)}; start it with torchrun, or unset WORLD_SIZE")
    rank, local_rank, _ = map(_number, ("RANK", "LOCAL_RANK", "MASTER_PORT"))
    if rank >= count:
        raise DeviceError(f"RANK is {rank}; expected one below WORLD_SIZE, {count}; start it with torchrun")
    if device.startswith("cuda"):
        if torch.cuda.device_count() <= local_rank:
            raise DeviceError(f"--nproc-per-node: {torch.cuda.device_count()} GPUs here; expected one for each process")
        device = f"cuda:{local_rank}"
    return Processes(rank, count, device)


def _number(name: str) -> int:
    """Return the number that a variable of the environment holds; DeviceError where it is none."""
    if not (told := os.environ[name]).isdecimal():
        raise DeviceError(
            f"{name} is '{printable(told)}'; expected a whole number; start it with torchrun, or unset WORLD_SIZE"
        )
    return int(told)


def _current_device(device: str) -> AbstractContextManager[object]:
    """Make a numbered GPU the current one for a while: memory is pinned for the current one."""
    return torch.cuda.device(device) if device.startswith("cuda:") else nullcontext()


def _tells_of_an_end(error: RuntimeError) -> bool:
    """Tell whether an error means that another process is gone."""
    return isinstance(error, distributed.DistError) or "Connection closed" in str(error) or "Connection reset" in str(error)
