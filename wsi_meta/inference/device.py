"""The device that computes: which one and in which precision, and how threads share it.

torch is imported only inside functions, so that importing this module is quick.
"""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from wsi_meta.errors import DeviceError
from wsi_meta.inference.torch_settings import cpu_settings, gpu_settings
from wsi_meta.progress import tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import torch

__all__ = [
    "PRECISIONS",
    "SharedDevice",
    "SharedGpu",
    "SharedProcessor",
    "announce_torch",
    "cpu_supports",
    "resolve_device",
    "resolve_precision",
    "share_device",
]

PRECISIONS = ("auto", "fp32", "bf16", "int8")


def announce_torch() -> None:
    """Log that torch is about to be imported, which takes seconds; nothing where it is there already."""
    if "torch" not in sys.modules:
        tell("loading torch, which takes some seconds")


def resolve_device(device: str = "auto") -> str:
    """Return the torch device to use: ``auto`` is the CUDA GPU that torch takes by itself, usually the first, else the CPU.

    Parameters
    ----------
    device : as :class:`wsi_meta.inference.options.InferenceOptions` allows it

    Raises
    ------
    DeviceError
        when the device is not on this machine.
    """
    announce_torch()
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise DeviceError(f"--device {device}: no CUDA GPU is available on this machine; use --device cpu")
    if (torch.device(device).index or 0) >= (count := torch.cuda.device_count()):
        raise DeviceError(f"--device {device}: this machine has {count} CUDA GPU(s); expected cuda:0 to cuda:{count - 1}")
    return device


def cpu_supports(instructions: str) -> bool:
    """Tell whether this CPU has some instructions: ``vnni``, ``avx512_bf16`` or ``amx_tile``.

    torch's questions about them are private. A torch that lacks one cannot say, and the answer is no.
    """
    import torch

    ask = getattr(torch.cpu, f"_is_{instructions}_supported", None)
    return ask is not None and bool(ask())


def resolve_precision(
    precision: str, device: str, *, int8_agrees: bool = False, supports: Callable[[str], bool] = cpu_supports
) -> str:
    """Return ``fp32``, ``bf16`` or ``int8``: ``auto`` is int8 where it agrees, else bf16 where that is fast, else fp32.

    int8 needs a CPU with VNNI. bf16 is fast where `device` multiplies it in hardware, on a CPU with AVX512-BF16 or AMX; other
    CPUs only emulate it, several times slower than fp32.

    Parameters
    ----------
    precision : ``auto``, ``fp32``, ``bf16`` or ``int8``
    device : as :func:`resolve_device` returns it
    int8_agrees : whether int8 was seen to be as good as float32 with the model, so that ``auto`` may be int8
    supports : tells which instructions the CPU has

    Raises
    ------
    DeviceError
        when `precision` is int8 and `device` is no CPU with VNNI, or this torch lacks the operators for it.
    """
    if precision == "int8":
        if device != "cpu" or not supports("vnni"):
            raise DeviceError("--precision int8: needs a CPU with VNNI (AVX512-VNNI or AVX-VNNI); use --precision auto")
        from wsi_meta.inference.int8 import check_operators

        check_operators()
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        import torch

        with torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if int8_agrees and supports("vnni") and _has_operators():
        return "int8"
    return "bf16" if supports("avx512_bf16") or supports("amx_tile") else "fp32"


def _has_operators() -> bool:
    """Tell whether this torch has the operators for int8, which are private to it."""
    from wsi_meta.inference.int8 import check_operators

    try:
        check_operators()
    except DeviceError:
        return False
    return True


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
    """Return a device for threads that share it.

    Parameters
    ----------
    device : ``cpu``, ``cuda`` or ``cuda:N``
    exact : convolve float32 numbers as they are; on a GPU torch otherwise rounds them to the 10 bits of TF32
    compiled : whether passes run compiled code, which only one thread may do at a time
    """
    return SharedProcessor() if device == "cpu" else SharedGpu(device, exact=exact, compiled=compiled)


class SharedProcessor:
    """A CPU. One thread computes at a time, on all its cores."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """See :class:`SharedDevice`."""
        import torch

        with self._lock, torch.inference_mode():
            yield

    def send(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the pixels, which are where they are needed."""
        return pixels

    def fetch(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits, which are where they are needed."""
        return logits

    def passing(self) -> AbstractContextManager[object]:
        """See :class:`SharedDevice`."""
        return cpu_settings()


class SharedGpu:
    """A GPU. Each thread computes in a stream of its own; pixels travel from pinned memory while other threads compute.

    A thread that has finished leaves its stream to the next one. So there are no more streams than threads that compute at the
    same time: torch keeps memory for each stream.
    """

    def __init__(self, device: str, *, exact: bool, compiled: bool) -> None:
        import torch

        self._device = torch.device(device)
        self._exact, self._compiled = exact, compiled
        self._free: list[torch.cuda.Stream] = []
        self._lock = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """See :class:`SharedDevice`."""
        import torch

        stream = self._take()
        try:
            with torch.cuda.stream(stream), torch.inference_mode():
                yield
        finally:
            self._free.append(stream)  # work still under way in it is done before the next thread's

    def send(self, pixels: torch.Tensor) -> torch.Tensor:
        """See :class:`SharedDevice`."""
        return pixels.pin_memory().to(self._device, non_blocking=True)

    def fetch(self, logits: torch.Tensor) -> torch.Tensor:
        """See :class:`SharedDevice`."""
        import torch

        here = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True).copy_(logits, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return here

    @contextmanager
    def passing(self) -> Iterator[None]:
        """See :class:`SharedDevice`. A thread only starts a pass here: the GPU goes on working when another is kept waiting."""
        with self._lock if self._compiled else nullcontext(), gpu_settings(exact=self._exact):
            yield

    def _take(self) -> torch.cuda.Stream:
        import torch

        try:
            return self._free.pop()
        except IndexError:
            stream = torch.cuda.Stream(self._device)
            stream.wait_stream(torch.cuda.default_stream(self._device))  # in which the weights came
            return stream
