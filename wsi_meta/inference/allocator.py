"""How this process's memory is kept while a CPU computes: what glibc's allocator and oneDNN are asked for."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from functools import lru_cache
from pathlib import Path

__all__ = ["MemoryBound", "give_back_memory", "keep_freed_memory", "prepare_memory", "share_memory"]

KERNELS = 64
"""Shapes of layers whose code oneDNN keeps, and torch for it."""
MOST_SPARE, LEAST_SPARE = 144 << 20, 48 << 20
"""Bytes, see :class:`MemoryBound`."""


def keep_freed_memory() -> None:
    """Ask glibc's allocator to keep freed memory for the next batch instead of giving it back to the kernel.

    Activations of hundreds of MB are otherwise mapped and zeroed anew for every layer: measured a quarter to a third of
    the time on a CPU (docs/benchmarks.md). Does nothing on other systems. To be called before there are other threads, see
    :func:`share_memory`.
    """
    share_memory()
    if libc := _glibc():
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 64 << 20)


def share_memory() -> None:
    """Ask glibc's allocator to let threads that start later share the main thread's pool.

    In pools of their own each keeps what it freed, and what does not fit into one (64 MB) is mapped anew each time.
    """
    if libc := _glibc():
        m_arena_max = -8  # malloc.h
        libc.mallopt(m_arena_max, 1)


def give_back_memory() -> None:
    """Ask glibc's allocator to give the kernel what is free between what is not; takes milliseconds, getting it back more."""
    if libc := _glibc():
        libc.malloc_trim(0)


class MemoryBound:
    """Keeps a process's memory within bounds while tensors of ever other shapes come and go.

    What one leaves hardly fits the next, so that free bits and pieces add up to several times what is in use. They are given
    back when the process has grown by MOST_SPARE since this was made, and by LEAST_SPARE since the last time.
    """

    def __init__(self) -> None:
        give_back_memory()
        self._first = self._last = _resident()

    def check(self) -> None:
        """Hand free memory back to the kernel if it is time; quick otherwise."""
        if _resident() > max(self._first + MOST_SPARE, self._last + LEAST_SPARE):
            give_back_memory()
            self._last = _resident()


def prepare_memory(*, in_bands: bool) -> None:
    """Set up this process's memory for a CPU's network, before its first pass.

    oneDNN keeps the code that it made for the latest thousand shapes of layers, and so does torch, which loads it: up to a
    gigabyte where rectangles have many sizes; a pass needs fewer than KERNELS. Bands suit the allocator as it is.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, str(KERNELS))
    if in_bands:
        share_memory()
    else:
        keep_freed_memory()


def _resident() -> int:
    """Return the bytes of this process that are in memory; 0 where there is no glibc to give any back."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() if _glibc() else 0


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    """Return the C library where it is glibc; other systems' allocators are left alone."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
