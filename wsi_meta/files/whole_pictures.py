"""Pillow refuses pictures that end early, whatever the program around has told it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["whole_pictures"]


class _Refusal:
    """Whether pictures that end early are refused, by how many threads, and what Pillow had been told before."""

    def __init__(self) -> None:
        self.lock, self.held, self.before = threading.Lock(), 0, False

    def begin(self) -> None:
        from PIL import ImageFile

        with self.lock:
            if not self.held:
                self.before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
            self.held += 1

    def end(self) -> None:
        from PIL import ImageFile

        with self.lock:
            self.held -= 1
            if not self.held:
                ImageFile.LOAD_TRUNCATED_IMAGES = self.before

    def begin_anew(self) -> None:
        """Forget the threads that read: after a fork they are in the other process."""
        self.lock = threading.Lock()
        while self.held:
            self.end()


_refusal = _Refusal()
"""One for the process, because the setting is that of the process. It is no state: nothing is changed but while reading."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_refusal.begin_anew)


@contextmanager
def whole_pictures() -> Iterator[None]:
    """Let Pillow refuse a picture that ends early, from any number of threads. The setting is put back after the last of them.

    Told to load truncated pictures, it fills what is missing with black: a mask without tumor, a patch half black.
    """
    _refusal.begin()
    try:
        yield
    finally:
        _refusal.end()
