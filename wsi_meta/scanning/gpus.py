"""One process for each GPU of this machine: a dask cluster of its own that lives as long as the scan."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_meta.errors import DeviceError, OptionsError, of_kind
from wsi_meta.files.locks import own_folder

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["PINNED", "GpuProcesses", "dask_setup", "visible_device"]

PINNED = "CUDA_VISIBLE_DEVICES"
"""Environment variable that says which GPUs a process sees; CUDA reads it when it is first used."""
HERE = "127.0.0.1"
"""No other machine reaches the scheduler and the workers."""
THREADS = "OMP_NUM_THREADS"
"""Environment variable that says how many threads torch computes with on a CPU; it reads it when it is imported."""


@dataclass(frozen=True)
class GpuProcesses:
    """One process for each of some GPUs of this machine, as the ``scheduler`` of a scan.

    Each sees its own GPU only, and works on several blocks at the same time: one is read while another is predicted. With
    ``device="cpu"`` they are processes on the CPU, and share its cores. A Python script that uses them must start its work
    under ``if __name__ == "__main__":``, since each process imports it.

    Parameters
    ----------
    gpus : ``all``, which are those that torch sees, or their numbers as torch counts them, such as ``0,1``

    Raises
    ------
    OptionsError
        when `gpus` is something else, or a number comes twice.
    """

    gpus: str = "all"
    numbers: tuple[int, ...] | None = field(init=False)
    """None for all."""

    def __post_init__(self) -> None:
        of_kind("gpus", self.gpus, str, "all, or numbers such as 0,1")
        parts = self.gpus.replace(" ", "").split(",")
        if self.gpus != "all" and not (all(part.isdecimal() for part in parts) and len(set(map(int, parts))) == len(parts)):
            raise OptionsError(f"GPUs '{self.gpus}'; expected all, or numbers such as 0,1, each once")
        object.__setattr__(self, "numbers", None if self.gpus == "all" else tuple(map(int, parts)))

    def __str__(self) -> str:
        return f"GPUs {self.gpus}"

    def check(self, device: str) -> None:
        """Refuse a device that does not go with them; OptionsError."""
        if device not in ("auto", "cuda", "cpu"):
            raise OptionsError(f"GPUs {self.gpus}, device {device}; expected auto, cuda or cpu: each process has one GPU")
        if device == "cpu" and self.numbers is None:
            raise OptionsError("GPUs all, device cpu; expected numbers, such as 0,1 for two processes on the CPU")

    def found(self) -> tuple[int, ...]:
        """Return the numbers of the GPUs.

        Raises
        ------
        DeviceError
            when this machine has none, or not those.
        """
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise DeviceError(
                f"--gpus {self.gpus}: torch sees no GPU on this machine; leave --gpus out, or pass --device cpu for processes "
                "on the CPU ('wsi-meta doctor' says what is missing)"
            )
        if missing := [number for number in self.numbers or () if number >= count]:
            raise DeviceError(f"--gpus {self.gpus}: there is no GPU {missing[0]}; torch sees {count} here, counted from 0")
        return self.numbers or tuple(range(count))

    @contextmanager
    def started(self, device: str, blocks: int) -> Iterator[Client]:
        """Yield a client for a cluster of these processes; they end with the context, and with this process however it ends.

        Parameters
        ----------
        device : as it was asked for: ``cpu`` makes processes on the CPU
        blocks : how many blocks each has in work at the same time

        Raises
        ------
        DeviceError
            when there are no such GPUs, or this process may start no others.
        """
        if multiprocessing.current_process().daemon:
            raise DeviceError(
                f"GPUs {self.gpus}: this is a daemonic process, which may start no others; expected one that is not: "
                "multiprocessing.Process(daemon=False)"
            )
        import dask
        from distributed import Client, Nanny, Scheduler, SpecCluster

        on_cpu = device == "cpu"
        numbers = (self.numbers or ()) if on_cpu else self.found()
        with (
            own_folder(Path(tempfile.gettempdir()), "processes") as folder,
            _environment_kept("PYTHONHASHSEED", "__DASK_PARENT_PID"),
        ):
            common: dict[str, Any] = {"nthreads": max(1, blocks), "memory_limit": 0, "host": HERE, "dashboard": False}
            common |= {"silence_logs": logging.CRITICAL + 1, "local_directory": str(folder), "preload": [__name__]}
            workers = {
                f"gpu-{number}": {
                    "cls": Nanny,
                    "options": common | {"env": _environment(number, len(numbers), os.environ, on_cpu=on_cpu)},
                }
                for number in numbers
            }
            scheduler = {
                "cls": Scheduler,
                "options": {"host": HERE, "port": 0, "dashboard": False, "dashboard_address": f"{HERE}:0"},
            }
            quiet = {"distributed.nanny.pre-spawn-environ": {}, "distributed.admin.log-format": "%(message)s"}
            quiet |= {"temporary-directory": str(folder)}
            with (
                dask.config.set(quiet),
                SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL + 1) as cluster,
                Client(cluster, set_as_default=False) as client,
            ):
                yield client


def dask_setup(_worker: Any) -> None:
    """Leave Ctrl-C, and what there is to warn of, to the command: dask calls this as each process begins.

    A script that imports torch at its top has imported it here too, before the process was told its share of the cores.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("wsi_meta").setLevel(logging.ERROR)
    if "torch" in sys.modules and THREADS in os.environ:
        sys.modules["torch"].set_num_threads(int(os.environ[THREADS]))


def _environment(number: int, processes: int, here: Mapping[str, str], *, on_cpu: bool) -> dict[str, str]:
    """Return what is set in a process's environment before it imports torch: its GPU, or its share of the cores."""
    if not on_cpu:
        return {PINNED: visible_device(number, here.get(PINNED))}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(here[THREADS]) if here.get(THREADS, "").isdecimal() else max(1, cores // processes)
    return {PINNED: visible_device(number, None), THREADS: str(threads)}


def visible_device(number: int, visible: str | None) -> str:
    """Return what a process must be told to see one GPU only.

    Parameters
    ----------
    number : of the GPU, as torch counts those that this process sees
    visible : what this process was told itself; batch systems give it a list of numbers or names
    """
    return str(number) if not visible else visible.split(",")[number].strip()


@contextmanager
def _environment_kept(*names: str) -> Iterator[None]:
    """Put variables of this process back that dask sets for the processes it starts."""
    before = {name: os.environ[name] for name in names if name in os.environ}
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)
