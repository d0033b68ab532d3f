"""Settings that hold for the whole process: changed while something needs them so, and put back as the program had set them."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Setting", "SharedSettings", "Silence", "no_warnings", "whole_pictures"]


class Setting(NamedTuple):
    """A setting of the process, and what those that hold it want it to be."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    wanted: Any


class SharedSettings:
    """Changes settings while they are held. Threads that want the same may overlap; others wait, in the order they came.

    One for the process, because the settings are those of the process.
    """

    def __init__(self) -> None:
        self._entrance = threading.Lock()
        self._left = threading.Condition()
        self._holders: set[object] = set()
        self._held: object = None
        self._before = ExitStack()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.begin_anew)

    @property
    def awaited(self) -> bool:
        """Whether a thread waits until it may come in."""
        return self._entrance.locked()

    @contextmanager
    def holding(self, wanted: object, settings: Callable[[], list[Setting]]) -> Iterator[None]:
        """Hold these settings. They are put back when the last that holds them is done. Nested, all have to want the same.

        Parameters
        ----------
        wanted : what tells one list of settings from another
        settings : returns them
        """
        holder = object()
        try:
            with self._entrance, self._left:  # held while waiting too, so that later ones cannot keep this one out
                self._left.wait_for(lambda: not self._holders or self._held == wanted)
                if not self._holders:
                    self._before, self._held = _changed(settings()), wanted
                self._holders.add(holder)
            yield
        finally:  # also after Ctrl-C anywhere above
            with self._left:
                self._holders.discard(holder)
                if not self._holders:
                    self._before.close()
                self._left.notify_all()

    def begin_anew(self) -> None:
        """Put the settings back, and forget the threads that hold them: after a fork they are in the other process."""
        self._before.close()
        self._entrance, self._left, self._holders = threading.Lock(), threading.Condition(), set()


class Silence:
    """Keeps what a logger and those below it record off the screen while it is held, by any number of threads.

    By its level, which the loggers below it take over; were it disabled, they would still show theirs.

    Parameters
    ----------
    name : of the logger
    """

    def __init__(self, name: str) -> None:
        self._logger, self._level = logging.getLogger(name), SharedSettings()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the logger silent; the level is put back after the last thread."""
        with self._level.holding("silent", self._levels):
            yield

    def _levels(self) -> list[Setting]:
        return [Setting(lambda: self._logger.level, self._logger.setLevel, logging.CRITICAL + 1)]


_truncated, _warned = SharedSettings(), SharedSettings()
"""They are no state: nothing is changed but while they are held."""


@contextmanager
def no_warnings(message: str = "") -> Iterator[None]:
    """Let Python's warnings be ignored, from any number of threads. The filters are put back after the last of them.

    Python's own ``catch_warnings``, of two threads at once, may leave the whole program without warnings for good.

    Parameters
    ----------
    message : pattern of how those begin that are ignored; not to be nested with another one
    """
    with _warned.holding(message, partial(_warning, message)):
        yield


def _warning(message: str) -> list[Setting]:
    caught = ExitStack()

    def ignore(wanted: bool) -> None:
        if wanted:
            caught.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message)
        else:
            caught.close()

    return [Setting(lambda: False, ignore, True)]


@contextmanager
def whole_pictures() -> Iterator[None]:
    """Let Pillow refuse a picture that ends early, from any number of threads. The setting is put back after the last of them.

    Told to load truncated pictures, it fills what is missing with black: a mask without tumor, a patch half black.
    """
    with _truncated.holding(False, _loading_truncated):
        yield


def _loading_truncated() -> list[Setting]:
    from PIL import ImageFile

    name = "LOAD_TRUNCATED_IMAGES"
    return [Setting(partial(getattr, ImageFile, name), partial(setattr, ImageFile, name), False)]


def _changed(settings: list[Setting]) -> ExitStack:
    """Change settings; return what puts them back, in the same order.

    What cannot be read is left alone: this torch lacks it, or it was told two things, by the older word and by the newer one,
    which then counts.
    """
    found: list[tuple[Setting, Any]] = []
    for setting in settings:
        with suppress(AttributeError, RuntimeError):
            found.append((setting, setting.read()))
    changed = [(setting, before) for setting, before in found if before != setting.wanted]
    back = ExitStack()
    for setting, before in reversed(changed):
        back.callback(setting.write, before)
    try:
        for setting, _ in changed:
            setting.write(setting.wanted)
    except BaseException:
        back.close()
        raise
    return back
