"""Paths of outputs: without links, of names that nobody else has, and why one cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from wsi_meta.words import first_line

__all__ = ["MENDS", "NO_ROOM", "UNIQUE", "cannot_be_written", "real_path", "unique_name"]

UNIQUE = "[0-9a-f]{12}"
"""Pattern of the part that makes the name of a temporary file or folder unique; see :func:`unique_name`."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the disk says where it is full, or this user has had a share of it."""
MENDS = {
    **dict.fromkeys(NO_ROOM, "make room and run it again"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "its folder is not there (any more); make it and run it again"),
    errno.ENAMETOOLONG: "choose a shorter name and run it again",
}
"""What to do when something cannot be written, by the number of the error."""


def real_path(path: Path) -> Path:
    """Return a path without links. A link that leads to itself stays, where ``Path.resolve`` raises a RuntimeError."""
    return Path(os.path.realpath(path))


def unique_name() -> str:
    """Return a part of a name that no other process comes upon."""
    return os.urandom(6).hex()


def cannot_be_written(what: str, error: OSError) -> str:
    """Return in words that something cannot be written, why, and what to do about it."""
    while error.errno is None and isinstance(cause := error.__cause__ or error.__context__, OSError):
        error = cause  # a library's own error may hide the disk's
    mend = MENDS.get(error.errno or 0, "make room, or choose another place, and run it again")
    return f"{what} cannot be written ({error.strerror or first_line(error)}); {mend}"
