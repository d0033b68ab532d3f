"""How threads share a device: on a CPU one of them computes at a time, on a GPU each in a stream of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Protocol

import torch

__all__ = ["SharedDevice", "share_device"]


class SharedDevice(Protocol):
    """A device that several threads compute with."""

    def turn(self) -> AbstractContextManager[None]:
        """Let this thread compute: what it sends, computes and fetches meanwhile is one piece of work."""

    def send(self, pixels: torch.Tensor) -> torch.Tensor:
        """Bring a tensor from memory to the device."""

    def fetch(self, logits: torch.Tensor) -> torch.Tensor:
        """Bring a tensor back to memory; waits for this thread's own work only."""

    def passing(self) -> AbstractContextManager[object]:
        """Surround a pass of the network."""


def share_device(device: str, *, exact: bool, compiled: bool) -> SharedDevice:
    """Return a device to threads that share it.

    Parameters
    ----------
    device : ``cpu``, ``cuda`` or ``cuda:N``
    exact : convolve float32 numbers as such, where torch by itself rounds them to TF32's 10 bits on a GPU
    compiled : whether passes are of compiled code, which is not for several threads at once
    """
    return _Processor() if device == "cpu" else _Streams(device, exact=exact, compiled=compiled)


class _Processor:
    """A CPU, all cores of which one thread uses."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._lock, torch.inference_mode():
            yield

    def send(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    def fetch(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def passing(self) -> AbstractContextManager[object]:
        return nullcontext()


class _Streams:
    """A GPU. Pixels travel from pinned memory, so that it goes on with other threads' work meanwhile.

    Streams are handed on from thread to thread, no more of them than threads compute at a time: torch keeps memory for each.
    """

    def __init__(self, device: str, *, exact: bool, compiled: bool) -> None:
        self._device = torch.device(device)
        self._exact, self._alone = exact, exact or compiled
        self._free: list[torch.cuda.Stream] = []
        self._lock = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        stream = self._take()
        try:
            with torch.cuda.stream(stream), torch.inference_mode():
                yield
        finally:
            self._free.append(stream)  # what is still under way in it comes before what follows

    def send(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.pin_memory().to(self._device, non_blocking=True)

    def fetch(self, logits: torch.Tensor) -> torch.Tensor:
        here = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True).copy_(logits, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return here

    @contextmanager
    def passing(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self._alone:  # the GPU goes on meanwhile
                stack.enter_context(self._lock)
            if self._exact:  # a setting of the whole process: put back before another thread's pass
                stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
            yield

    def _take(self) -> torch.cuda.Stream:
        try:
            return self._free.pop()
        except IndexError:
            stream = torch.cuda.Stream(self._device)
            stream.wait_stream(torch.cuda.default_stream(self._device))  # by which the weights came
            return stream
