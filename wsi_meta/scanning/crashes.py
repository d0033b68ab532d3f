"""Which slide was open when a process died of a native crash: noted while slides are open, read at the next start.

No ``except`` sees a library end the whole process. So a command, which has its process to itself, keeps a journal while it
scans, ``.wsi-meta.<12 letters>.running`` in the folder of the stores: who runs, which slides are opened and closed, and for
which slide each thread works. A fatal signal makes ``faulthandler`` write the threads' stacks there. After SIGKILL, as from the
kernel where memory is short, there are none: such a scan goes on when it is run again. A process in which ``faulthandler`` is
in use already keeps no journal.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wsi_meta.errors import OutputExistsError, SlideReadError
from wsi_meta.files.address import SlidePath, slide_path
from wsi_meta.files.locks import Holder, own_file
from wsi_meta.outputs.paths import UNIQUE
from wsi_meta.words import from_json

__all__ = ["Journal", "noted_crashes"]

logger = logging.getLogger("wsi_meta")

MARK = "wsi-meta is scanning here: "
"""What a journal begins with; its holder follows."""
NAME = re.compile(rf"\.wsi-meta\.{UNIQUE}\.running")
FATAL = re.compile(r"Fatal Python error: (.+)")
CRASHED = re.compile(r"Current thread 0x([0-9a-f]+)")
"""The first lines of what ``faulthandler`` writes; the first one is missing for signals that it does not know by itself."""
TRAP = "Trace/breakpoint trap"
"""Such a signal: GLib, which OpenSlide is built on, ends the process with it where it gets no memory."""


@dataclass(frozen=True)
class Suspect:
    """A slide that was open when a process died."""

    died: str
    """Of what, as ``faulthandler`` calls it, such as ``Aborted``."""
    certain: bool
    """Whether it is this slide that the crashed thread worked for, and the file is still the same."""
    journals: tuple[Path, ...]
    """Those that name it."""


@dataclass
class Record:
    """What a journal says."""

    holder: Holder | None = None
    """None where its name was lost with the power."""
    died: str | None = None
    """None where no crash is told."""
    thread: int | None = None
    """The thread that crashed, where that was one of Python's."""
    open: dict[str, str] = field(default_factory=dict)
    """The stamp of each slide that is open, or still under suspicion."""
    at_crash: tuple[str, ...] = ()
    """The slides that were open when the process died."""
    works_for: dict[int, str] = field(default_factory=dict)
    """The slide that each thread works for."""

    @property
    def to_blame(self) -> tuple[str, ...]:
        """The slide that the crashed thread worked for; where that is not known, all that were open."""
        slide = self.works_for.get(self.thread or 0)
        return (slide,) if slide in self.at_crash else self.at_crash

    @property
    def suspects(self) -> tuple[str, ...]:
        """Those of the slides to blame that were not scanned since."""
        return tuple(slide for slide in self.to_blame if slide in self.open)

    @property
    def is_running(self) -> bool:
        """Whether the process may still run."""
        return self.died is None and self.holder is not None and not self.holder.is_dead

    def take(self, line: str) -> None:
        """Take in one line of the journal; one that is cut or foreign says nothing."""
        if found := FATAL.match(line) or CRASHED.match(line):
            self.at_crash = self.at_crash or tuple(self.open)
            self.died = found[1] if found.re is FATAL else self.died or TRAP
            self.thread = int(found[1], 16) if found.re is CRASHED else self.thread
        with suppress(ArithmeticError, LookupError, TypeError, ValueError):
            parts: dict[str, Any] = from_json(line)
            if "closed" in parts:
                del self.open[parts["closed"]]
            else:
                self.works_for[int(parts["thread"])] = str(parts["slide"])
                self.open |= {str(parts["slide"]): str(parts["stamp"])} if "stamp" in parts else {}


class Journal:
    """Notes which slides are open, and lets those that a process died of be passed over or scanned alone.

    Parameters
    ----------
    folder : where the stores are; None notes nothing
    suspects : slides, by their path, that were open when a process died
    retry : scan also those that are certain to have ended a process
    """

    def __init__(
        self, folder: Path | None = None, suspects: Mapping[str, Suspect] = MappingProxyType({}), *, retry: bool = False
    ) -> None:
        self._folder, self._suspects, self._retry = folder, dict(suspects), retry
        self._path: Path | None = None
        self._file = -1
        self._works_for: dict[int, str] = {}
        self._changed, self._open, self._alone = threading.Condition(), 0, False

    @contextmanager
    def opened(self, slide: str | SlidePath) -> Iterator[None]:
        """Note that a slide is open, or refuse it; one that may have ended a process is alone, so that it is named then."""
        name, suspect, cleared = _name_of(slide), self.refuse(slide), False
        with self._room(alone=suspect is not None):
            self._begin()
            self._write(slide=name, stamp=_stamp(name), thread=self._here(name))
            try:
                yield
                cleared = True
            except Exception as error:
                cleared = not isinstance(error, InterruptedError | OutputExistsError)
                raise
            finally:
                self._write(closed=name)
                if suspect is not None and cleared:
                    self._suspects.pop(name, None)
                    for journal in suspect.journals:
                        _clear(journal, name)

    def refuse(self, slide: str | SlidePath) -> Suspect | None:
        """Return what is suspected of a slide; None where nothing is.

        Raises
        ------
        SlideReadError
            when it is certain that a process died of it, and it is not to be tried again.
        """
        suspect = self._suspects.get(_name_of(slide))
        if suspect is not None and suspect.certain and not self._retry:
            raise SlideReadError(
                f"{slide}: an earlier scan died ({suspect.died}) while it worked on this slide, so it is passed over; convert "
                "or copy the slide again, or pass --retry-crashed to try it once more"
            )
        return suspect

    def most_ahead(self, slides: int) -> int:
        """Return how many slides may be prepared ahead: one as long as some must be alone; they may not wait for later ones."""
        return 1 if any(self._retry or not suspect.certain for suspect in self._suspects.values()) else slides

    def working(self, slide: str | SlidePath) -> None:
        """Note that this thread works for a slide from now on."""
        name = _name_of(slide)
        if self._file >= 0 and self._works_for.get(threading.get_ident()) != name:
            self._write(slide=name, thread=self._here(name))

    def tell(self, slides: Sequence[str | SlidePath]) -> None:
        """Say which of some slides, if they are several, were open when a process died."""
        for slide in slides if len(slides) > 1 else ():
            if (suspect := self._suspects.get(_name_of(slide))) is not None:
                passed_over = suspect.certain and not self._retry
                what = "it is passed over" if passed_over else "it is scanned while no other slide is open"
                logger.warning("%s: was open when an earlier scan died (%s); %s", slide, suspect.died, what)

    def close(self) -> None:
        """Remove the journal: the process did not die."""
        if self._path is not None:
            faulthandler.disable()
            faulthandler.unregister(signal.SIGTRAP)
            os.close(self._file)
            self._file = -1
            with suppress(OSError):
                self._path.unlink()

    def _begin(self) -> None:
        """Make the journal at the first slide; where that cannot be, the scan will say why it cannot write."""
        with self._changed:
            if self._folder is None or self._path is not None or faulthandler.is_enabled():
                return
            try:
                self._path, self._file = own_file(self._folder, "running", MARK)
            except OSError:
                return
            faulthandler.enable(self._file)
            faulthandler.register(signal.SIGTRAP, self._file, chain=True)

    def _here(self, name: str) -> int:
        self._works_for[threading.get_ident()] = name
        return threading.get_ident()

    def _write(self, **parts: object) -> None:
        if self._file >= 0:
            with suppress(OSError):  # a full disk: the scan itself will say so
                os.write(self._file, f"{json.dumps(parts)}\n".encode())

    @contextmanager
    def _room(self, *, alone: bool) -> Iterator[None]:
        """Wait until the slides that are open allow for one more, or for one alone. See :meth:`most_ahead`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not (alone and self._open))
            self._open, self._alone = self._open + 1, alone
        try:
            yield
        finally:
            with self._changed:
                self._open, self._alone = self._open - 1, False
                self._changed.notify_all()


@contextmanager
def noted_crashes(folder: Path, slides: Sequence[str | SlidePath], *, retry: bool) -> Iterator[Journal]:
    """Yield a journal for a process's scans, which knows of the crashes of earlier ones; say which slides those concern.

    Parameters
    ----------
    folder : where the stores are, or will be
    slides : those that will be scanned
    retry : scan also those that a process died of
    """
    journal = Journal(folder, _suspects_in(folder), retry=retry)
    journal.tell(slides)
    try:
        yield journal
    finally:
        journal.close()


def _suspects_in(folder: Path) -> dict[str, Suspect]:
    """Return the slides that are under suspicion in a folder; remove the journals of dead processes that tell of no crash."""
    suspects: dict[str, Suspect] = {}
    with suppress(OSError):
        for path in sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name)):
            record = _read(path)
            if record is None or record.is_running:
                continue
            for name in record.suspects:
                known = suspects.get(name, Suspect("", certain=False, journals=()))
                certain = len(record.to_blame) == 1 and record.open[name] == _stamp(name)
                suspects[name] = Suspect(str(record.died), certain or known.certain, (*known.journals, path))
            if not record.suspects:
                path.unlink(missing_ok=True)
    return suspects


def _read(path: Path) -> Record | None:
    """Return what a journal says; None where it is not one of ours, or cannot be read."""
    try:
        first, *lines = path.read_bytes().strip(b"\0").decode(errors="replace").splitlines() or [MARK]
    except OSError:
        return None
    if not first.startswith(MARK):
        return None
    record = Record()
    with suppress(TypeError, ValueError):
        record.holder = Holder(**from_json(first.removeprefix(MARK)))
    for line in lines:
        record.take(line)
    return record


def _clear(journal: Path, name: str) -> None:
    """Note in an earlier process's journal that a slide did not end this one; remove the journal after its last slide."""
    with suppress(OSError):
        number = os.open(journal, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(number, f"\n{json.dumps({'closed': name})}\n".encode())
        finally:
            os.close(number)
        if (record := _read(journal)) is not None and not record.suspects:
            journal.unlink()


def _name_of(slide: str | SlidePath) -> str:
    return str(slide_path(slide).absolute())


def _stamp(name: str) -> str:
    """Return what tells a file from another one under its name."""
    with suppress(OSError, ValueError):
        state = Path(name).stat()
        return f"{state.st_size} bytes, {state.st_mtime_ns}"
    return ""
