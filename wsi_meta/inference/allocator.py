"""Memory of a process that computes on a CPU: glibc's allocator and oneDNN, tuned for as long as a context lasts."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MemoryBound", "give_back_memory", "resident_memory", "tuned_memory"]

KERNELS = 64
"""Shapes of layers for which oneDNN keeps code, and torch its own copy."""
MOST_SPARE, LEAST_SPARE = 144 << 20, 48 << 20
"""Bytes, see :class:`MemoryBound`."""


@dataclass(frozen=True)
class _Setting:
    """A setting of glibc's allocator."""

    number: int
    """Of ``mallopt`` (malloc.h)."""
    variable: str
    """The environment variable from which glibc reads it when a process starts."""
    default: int

    def in_force(self, environment: Mapping[str, str]) -> int:
        """Return the value that glibc would start with in an environment."""
        try:
            return int(environment[self.variable])
        except (KeyError, ValueError):
            return self.default


_TRIM_THRESHOLD = _Setting(-1, "MALLOC_TRIM_THRESHOLD_", 128 << 10)
_TOP_PAD = _Setting(-2, "MALLOC_TOP_PAD_", 128 << 10)
_MMAP_THRESHOLD = _Setting(-3, "MALLOC_MMAP_THRESHOLD_", 128 << 10)
_MMAP_MAX = _Setting(-4, "MALLOC_MMAP_MAX_", 65536)
_ARENA_MAX = _Setting(-8, "MALLOC_ARENA_MAX", 8 * (os.cpu_count() or 1))  # mallopt takes no 0; without a limit it is this many

_SHARED = {_ARENA_MAX: 1}
"""Threads use one pool."""
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20, _MMAP_THRESHOLD: _MMAP_THRESHOLD.default}
"""Freed memory stays in the process."""


@contextmanager
def tuned_memory(*, in_bands: bool) -> Iterator[None]:
    """Tune this process's memory for computing on a CPU; on leaving, undo that and give free memory back to the kernel.

    The settings are those of the whole process, so the library never makes them. The command line does, and a service may.
    Enter before other threads start, because a thread keeps the pool of memory that it got first, and before the first pass
    of a network. Contexts may be nested; contexts of two threads must not overlap. Does nothing where the C library is not
    glibc.

    - Threads that start later share the main thread's pool. With pools of their own, each thread keeps what it has freed, and
      memory that does not fit into a pool (64 MB) is mapped anew each time.
    - Unless `in_bands`, the allocator keeps freed memory for the next batch. Otherwise activations of hundreds of MB are mapped
      and zeroed anew for every layer (docs/benchmarks.md).
    - oneDNN and torch keep code for :data:`KERNELS` shapes of layers each. By themselves they keep a thousand: up to a gigabyte
      where rectangles have many sizes. What the user has set in the environment stays.

    The environment variables from which glibc reads its settings are set as well. So an inner context knows what to go back
    to, and processes that start meanwhile have the same settings.

    On leaving, the environment variables are as they were, and the allocator has the settings that they ask for, or glibc's
    defaults. Four things cannot be undone. Once a thread has asked for a pool while the limit was one, the limit stays one.
    Once `in_bands` was False, glibc no longer adapts the size from which it maps memory: it stays at 128 KiB. Gaps below blocks
    that are still in use stay part of the heap: what is allocated there later is not given back when it is freed, only by
    :func:`give_back_memory`. And oneDNN and torch keep to the variables that they read at their first pass.

    Parameters
    ----------
    in_bands : whether the network computes in bands (:func:`wsi_meta.inference.options.runs_in_bands`): those suit the
        allocator as it is
    """
    library = _glibc()
    if library is None:
        yield
        return
    settings = _SHARED if in_bands else _SHARED | _KEPT
    caches = {name: os.environ.get(name, str(KERNELS)) for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")}
    try:
        with _environment(caches | {setting.variable: str(value) for setting, value in settings.items()}):
            _follow_environment(library, settings)
            yield
    finally:
        _follow_environment(library, settings)
        library.malloc_trim(0)


def give_back_memory() -> None:
    """Give the kernel what is free between blocks in use. Changes no setting; takes milliseconds, and more to get it back."""
    if library := _glibc():
        library.malloc_trim(0)


def resident_memory() -> int:
    """Return the bytes of this process that are in memory; 0 where :func:`give_back_memory` does nothing."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() if _glibc() else 0


class MemoryBound:
    """Keeps a process's memory within bounds while tensors of many shapes come and go.

    The space that one tensor leaves hardly fits the next, so free fragments add up to several times what is in use.
    :meth:`check` gives them back to the kernel when the process has grown by `most_spare` since this object was made, and by
    `least_spare` since the last time.

    Parameters
    ----------
    most_spare, least_spare : bytes
    measure : returns the bytes of this process that are in memory
    give_back : gives free memory back to the kernel
    """

    def __init__(
        self,
        *,
        most_spare: int = MOST_SPARE,
        least_spare: int = LEAST_SPARE,
        measure: Callable[[], int] = resident_memory,
        give_back: Callable[[], None] = give_back_memory,
    ) -> None:
        self._most_spare, self._least_spare = most_spare, least_spare
        self._measure, self._give_back = measure, give_back
        give_back()
        self._first = self._last = measure()

    def check(self) -> None:
        """Give free memory back to the kernel if it is time; otherwise return at once."""
        if self._measure() > max(self._first + self._most_spare, self._last + self._least_spare):
            self._give_back()
            self._last = self._measure()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables; on leaving, put back what they were."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _follow_environment(library: ctypes.CDLL, settings: Iterable[_Setting]) -> None:
    """Give settings the values that the environment asks for now."""
    for setting in settings:
        library.mallopt(setting.number, setting.in_force(os.environ))


def _glibc() -> ctypes.CDLL | None:
    """Return the C library where it is glibc; other systems' allocators are left alone."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
