"""What belongs to one running process: a lock on an output, and a folder or a file that it needs only while it runs.

One process, or thread, at a time writes an output, and the others are told which one that is. What a dead process left is
taken over, or removed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from wsi_meta.errors import OutputExistsError, OutputPathError
from wsi_meta.outputs.paths import NO_ROOM, UNIQUE, cannot_be_written, real_path, unique_name
from wsi_meta.outputs.writing import ABANDONED_S, remove_leftovers
from wsi_meta.words import from_json

__all__ = ["SIGNED", "Holder", "lock_path", "locked", "own_file", "own_folder"]

SIGNED = b"wsi-meta is writing here: "
"""What a lock file begins with."""
UNSIGNED_S = 10
"""A lock file that is still without its holder's name after so long was left by a process that was killed."""
AT = " on machine "
"""What stands between a namespace and its machine."""
MACHINE = Path("/etc/machine-id")
"""File that tells machines of one name apart; copies of a container's image may share it, whose namespaces differ then."""
MARK = "of-process.json"
"""File in a process's own folder that names the process; a folder without it is removed only where it is empty and old."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock."""

    host: str
    pid: int
    start: str
    """When it started, so that a later process of the same number is not taken for it; empty where that is unknown."""
    space: str
    """What its number is counted in: containers of one host have the same numbers for different processes, and the first
    namespace has the same number on every machine, of which several may have one name. An older lock names no machine."""

    def __post_init__(self) -> None:
        texts = all(isinstance(value, str) for value in (self.host, self.start, self.space))
        if not (texts and type(self.pid) is int and 0 < self.pid < 1 << 31):
            raise ValueError(f"{self}: no process")

    @classmethod
    def here(cls) -> Holder:
        """Return this process."""
        return cls(socket.gethostname(), os.getpid(), _start_of(os.getpid()), _space())

    @property
    def is_near(self) -> bool:
        """Whether this process can see if that one runs."""
        here = Holder.here()
        space = here.space if AT in self.space else here.space.partition(AT)[0]
        return (self.host, self.space) == (here.host, space)

    @property
    def is_dead(self) -> bool:
        """Whether it is known to run no more."""
        if not self.is_near:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # another user's, and it runs
        now = _start_of(self.pid)
        return bool(self.start and now) and now != self.start  # another user's may be hidden (hidepid)


@contextmanager
def locked(path: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock on an output, a file ``.NAME.lock`` beside it that names this process.

    A lock that a process of this machine left when it was killed is taken over.

    Parameters
    ----------
    path : the output; it need not exist
    wait_s : for how long to wait for another holder, where nobody holds it longer: a lock of another machine that stands
        unchanged for all that time was left there, and is taken over

    Raises
    ------
    OutputExistsError
        when another process, or thread, holds it; the message names it.
    OutputPathError
        when no lock can be made there.
    """
    lock, mine, end = lock_path(path), Holder.here(), time.monotonic() + wait_s
    try:
        before = _stamp(lock)
        while (other := _take(lock, mine)) is not None:
            if time.monotonic() >= end and not (wait_s and _remove_left(lock, other, before)):
                raise OutputExistsError(_told(path, lock, other))
            time.sleep(0.02)
    except OutputExistsError:
        raise
    except OSError as error:
        remedy = "make room and run it again" if error.errno in NO_ROOM else "let its folder be written to, or choose another"
        raise OutputPathError(f"{path}: no lock {lock.name} can be made beside it ({error.strerror}); {remedy}") from error
    try:
        yield
    finally:
        with suppress(OSError), _alone_in(lock.parent):
            if _read(lock) == mine:
                lock.unlink()


@contextmanager
def own_folder(parent: Path, kind: str) -> Iterator[Path]:
    """Make a folder ``.wsi-meta.<12 letters>.KIND`` for this process in `parent`, and remove it in the end.

    Those of the same kind that dead processes left are removed first, also empty ones that have no mark and are old. One of a
    process of another machine stays.

    Raises
    ------
    OutputPathError
        when it cannot be made, for example on a full disk.
    """
    folder = parent / f".wsi-meta.{unique_name()}.{kind}"
    try:
        try:
            _remove_abandoned(parent, kind)
            folder.mkdir()
            (folder / MARK).write_text(json.dumps(asdict(Holder.here())))
        except OSError as error:
            raise OutputPathError(cannot_be_written(f"{parent}: a folder in it", error)) from error
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def own_file(parent: Path, kind: str, mark: str) -> tuple[Path, int]:
    """Make a file ``.wsi-meta.<12 letters>.KIND`` for this process in `parent`; return it, and its number, to append to.

    It has its name only when its first line, `mark` and the process, is in it: nobody ever finds it without its holder.

    Raises
    ------
    OSError
        when it cannot be made; nothing of it is left.
    """
    path, unsigned = (parent / f".wsi-meta.{name}" for name in (f"{unique_name()}.{kind}", kind))
    partial = unsigned.with_name(f"{unsigned.name}.{unique_name()}.partial")
    with _alone_in(parent) as alone:
        with suppress(OSError):  # another user's
            remove_leftovers(unsigned, older_s=0 if alone else ABANDONED_S)  # alone, whoever made it was killed
        number = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o666)
        try:
            os.write(number, f"{mark}{json.dumps(asdict(Holder.here()))}\n".encode())
            partial.rename(path)
        except OSError:
            os.close(number)
            partial.unlink(missing_ok=True)
            raise
    return path, number


def _remove_abandoned(parent: Path, kind: str) -> None:
    name = re.compile(rf"\.wsi-meta\.{UNIQUE}\.{re.escape(kind)}")
    for folder in [entry for entry in parent.iterdir() if name.fullmatch(entry.name) and not entry.is_symlink()]:
        with suppress(OSError):  # it is not empty
            if time.time() - folder.stat().st_mtime >= ABANDONED_S:
                folder.rmdir()  # its process was killed before the mark was in it
        with suppress(OSError, ValueError, TypeError):
            if Holder(**from_json((folder / MARK).read_bytes())).is_dead:
                shutil.rmtree(folder, ignore_errors=True)


def lock_path(path: Path) -> Path:
    """Return the lock file of an output; it is the same by whatever links the output is reached."""
    real = real_path(path)
    return real.parent / f".{real.name}.lock"  # / has no name


def _take(lock: Path, mine: Holder) -> Holder | str | None:
    """Take a lock; else return who holds it, or why that is not known."""
    with _alone_in(lock.parent) as alone:
        other = _read(lock)
        if isinstance(other, Holder) and not other.is_dead:
            return other
        if other == "":  # between its making and its signing
            age = time.time() - lock.stat().st_mtime if lock.exists() else 0
            if not alone and age < UNSIGNED_S:
                return "it is just being made"
        elif isinstance(other, str):
            return other
        if other is not None:
            lock.unlink(missing_ok=True)
        try:
            number = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return "it was just made"
        try:
            os.write(number, SIGNED + json.dumps(asdict(mine)).encode())
        except OSError:
            lock.unlink(missing_ok=True)
            raise
        finally:
            os.close(number)
        return None


def _stamp(lock: Path) -> tuple[int, int] | None:
    """Return what tells a lock from a later one of the same holder; None where there is none."""
    with suppress(OSError):
        return (found := lock.stat()).st_ino, found.st_mtime_ns
    return None


def _remove_left(lock: Path, other: Holder | str, before: tuple[int, int] | None) -> bool:
    """Remove a lock of another machine if it is the one that was there `before`; tell whether it was."""
    if not isinstance(other, Holder) or other.is_near:
        return False
    with _alone_in(lock.parent):
        was_left = before is not None and _stamp(lock) == before
        if was_left:
            lock.unlink(missing_ok=True)
        return was_left


def _read(lock: Path) -> Holder | str | None:
    """Return a lock's holder; None where there is no lock, a word where it has no holder's name (empty) or is not ours."""
    try:
        text = lock.read_bytes()
    except FileNotFoundError:
        return None
    if not text.strip(b"\0"):
        return ""  # so it is after a loss of power, too
    try:
        if text.startswith(SIGNED):
            return Holder(**from_json(text.removeprefix(SIGNED)))
    except (ValueError, TypeError):
        pass  # cut
    return "" if text.startswith(SIGNED) else "it is not wsi-meta's"


def _told(path: Path, lock: Path, other: Holder | str) -> str:
    if isinstance(other, str):
        return f"{path}: there is a lock {lock} without a holder ({other}); remove it if no scan writes there"
    told = f"{path}: is being written by process {other.pid} on host {other.host}"
    if other == Holder.here():
        told = f"{path}: is being written by this process, in another thread"
    if other.is_near:
        return f"{told}; wait until that has ended, or choose another place"
    return f"{told}; whether that still runs cannot be seen from here: wait until it has ended, or remove {lock} if it has"


@contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """Keep other processes from taking locks in a folder for an instant; yield whether the file system can do that."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            alone = True
        except OSError:  # network file systems: the exclusive making of the lock file must do
            alone = False
        yield alone
    finally:
        os.close(number)


def _space() -> str:
    """Return the namespace of this process's number, and the machine where that is known."""
    namespace = machine = ""
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    with suppress(OSError, UnicodeError):
        machine = MACHINE.read_text().strip()
    return f"{namespace}{AT}{machine}" if machine else namespace


def _start_of(pid: int) -> str:
    """Return the boot and the tick at which a process started; empty where unknown, ``dead`` where it ended already."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, *numbers = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if state in "ZX" else f"{boot} {numbers[18]}"
