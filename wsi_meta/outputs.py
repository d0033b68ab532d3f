"""Where results may be written: checked before the work begins, so that it is not done in vain."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsi_meta.errors import OutputExistsError, OutputPathError, first_line

__all__ = ["check_folder", "check_output", "refuse_input", "written_whole"]


def check_output(path: str | Path, *, overwrite: bool) -> Path:
    """Make sure that a file can be written.

    Raises
    ------
    OutputExistsError
        when it exists and not `overwrite`.
    OutputPathError
        when its folder is missing or cannot be written to.
    """
    path = Path(path)
    check_folder(path)
    if path.is_dir():
        raise OutputPathError(f"{path}: a directory; expected the name of a file to write")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path}: exists; choose another --out, or pass --overwrite to replace it")
    return path


def check_folder(path: Path) -> None:
    """Make sure that `path`'s folder exists and can be written to; OutputPathError if not."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputPathError(f"{path}: there is no folder {folder}; make it first, or choose another --out")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputPathError(
            f"{path}: the folder {folder} cannot be written to ({error.strerror}); choose another --out"
        ) from error


def refuse_input(path: Path, what: str, *inputs: str | Path | None) -> None:
    """Refuse to write over what is read, also under another name or through a link; OutputPathError if it is.

    Parameters
    ----------
    path : file to write
    what : what the inputs are, in words
    inputs : files or folders that are read; None is passed over
    """
    for given in inputs:
        if given is not None and path.exists() and Path(given).exists() and path.samefile(given):
            raise OutputPathError(f"{path}: {what}, never replaced; choose another --out")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to, then rename it into place: `path` is the whole new file or the old one.

    Raises
    ------
    OutputPathError
        when it cannot be written, for example to a full disk; an older file stays.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        kept = "; the one before is kept" if path.exists() else ""
        raise OutputPathError(
            f"{path}: cannot be written ({error.strerror or first_line(error)}); make room and run it again{kept}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
