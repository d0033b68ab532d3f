"""Paths of outputs: without links, of names that nobody else has, and why one cannot be written."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from wsi_meta.errors import OptionsError, shown
from wsi_meta.words import first_line, one_line, printable

__all__ = [
    "MENDS",
    "NO_ROOM",
    "UNIQUE",
    "as_path",
    "cannot_be_written",
    "from_the_system",
    "real_path",
    "told_by_the_system",
    "unique_name",
    "without_secrets",
]

UNIQUE = "[0-9a-f]{12}"
"""Pattern of the part that makes the name of a temporary file or folder unique; see :func:`unique_name`."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the disk says where it is full, or this user has had a share of it."""
ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]*://")
"""How an address begins, which is no path."""
MENDS = {
    **dict.fromkeys(NO_ROOM, "make room and run it again"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "its folder is not there (any more); make it and run it again"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTEMPTY), "something else was written there meanwhile; choose another place"),
    errno.ENAMETOOLONG: "choose a shorter name and run it again",
}
"""What to do when something cannot be written, by the number of the error."""
MOST_NAME_BYTES, MOST_PATH_BYTES = 255, 4095
"""The longest name that a file can have on the disks of Linux and macOS, and the longest path that Linux takes."""
NO_TEMPORARY = "No usable temporary directory"
"""How Python's error begins where no folder for temporary files can be written to."""


def as_path(name: str, given: object, *, expected: str = "a path, text or Path") -> Path:
    """Return what was given as a path; OptionsError, with the argument's name and kind, where it is something else.

    An address is refused, without the secrets that it may hold: a path would lose one of its slashes, and be called missing.
    An empty text, as a variable that is not set leaves it, is refused: as a path it would be the current folder. So is a text
    that no system takes for a path.
    """
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if isinstance(text, str) and ADDRESS.match(text):
        raise OptionsError(f"{name}: is an address, {without_secrets(text)}; expected a path on a disk")
    if not isinstance(text, str):
        found = "None" if given is None else f"of type {type(given).__name__}"
    elif not text:
        found = "an empty text"
    elif "\0" in text:
        found = "a text with a character of number 0"
    elif (told := _too_long(os.fsencode(text))) is not None:
        found, expected = told
    else:
        return Path(text)
    raise OptionsError(f"{name}: is {found}; expected {expected}")


def without_secrets(address: str) -> str:
    """Return an address without what may be a secret in it: user, password, query and fragment."""
    scheme, slashes, rest = re.split("[?#]", address, maxsplit=1)[0].partition("://")
    host, slash, path = rest.partition("/")
    return scheme + slashes + host.rpartition("@")[2] + slash + path


def _too_long(path: bytes) -> tuple[str, str] | None:
    """Return what about a path is longer than any file's can be, and what is expected; None where nothing is."""
    if len(path) > MOST_PATH_BYTES:
        return f"a path of {len(path):,} bytes", f"{MOST_PATH_BYTES:,} at most; choose a place with a shorter one"
    longest = max(path.split(b"/"), key=len)
    if len(longest) > MOST_NAME_BYTES:
        name = shown(os.fsdecode(longest))
        return f"a path with a name of {len(longest):,} bytes, {name}", f"{MOST_NAME_BYTES} at most; choose a shorter name"
    return None


def real_path(path: Path) -> Path:
    """Return a path without links. A link that leads to itself stays, where ``Path.resolve`` raises a RuntimeError."""
    return Path(os.path.realpath(path))


def unique_name() -> str:
    """Return a part of a name that no other process comes upon."""
    return os.urandom(6).hex()


def cannot_be_written(what: str, error: OSError) -> str:
    """Return in words that something cannot be written, why, and what to do about it."""
    error = from_the_system(error)
    told = error.strerror or first_line(error)
    mend = MENDS.get(error.errno or 0, "make room, or choose another place, and run it again")
    if told.startswith(NO_TEMPORARY):  # Python's own, under the number of a missing folder
        mend = "set TMPDIR to a folder that can be written to"
    return f"{what} cannot be written ({told}); {mend}"


def told_by_the_system(error: OSError) -> str:
    """Return in words what the system says of a file and, where that has one cause, what to do; what has no file as it is."""
    if not isinstance(error.filename, str | os.PathLike) or not error.strerror:
        return one_line(error)
    mend = f"; {MENDS[error.errno]}" if error.errno in (*NO_ROOM, errno.ENAMETOOLONG) else ""
    return printable(f"{error.filename}: {error.strerror}{mend}")


def from_the_system(error: OSError) -> OSError:
    """Return the error of the operating system, with its number, that a library's own may hide; else the error itself."""
    found = error
    while found.errno is None and isinstance(cause := found.__cause__ or found.__context__, OSError):
        found = cause
    return error if found.errno is None else found
