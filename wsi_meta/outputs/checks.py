"""Where results may be written: checked before the work begins, so that it is not done in vain."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from wsi_meta.errors import OutputExistsError, OutputPathError, truth
from wsi_meta.outputs.kept_files import refuse_inside_store, refuse_kept
from wsi_meta.outputs.paths import as_path, cannot_be_written, real_path, unique_name

__all__ = ["check_folder", "check_name", "check_output", "refuse_input", "refuse_one_name"]


def check_output(path: str | Path, *, overwrite: bool, replaces: str = "") -> Path:
    """Make sure that a file can be written; `replaces` is as for :func:`wsi_meta.outputs.kept_files.refuse_kept`.

    Raises
    ------
    OutputExistsError
        when it exists and not `overwrite`.
    OutputPathError
        when its folder is missing, cannot be written to, or lies in a heatmap store; when it is no file, a link to what is not
        there, or a file that is never replaced.
    """
    path, overwrite = as_path("file to write", path), truth("overwrite", overwrite)
    check_name(path)
    if path.is_symlink() and not path.exists():
        raise OutputPathError(f"{path}: a link to {path.readlink()}, which is not there; remove it, or choose another name")
    check_folder(path)
    if path.is_dir():
        raise OutputPathError(f"{path}: a directory; expected the name of a file to write")
    if path.exists() and not path.is_file():
        raise OutputPathError(f"{path}: a device or a pipe, never replaced; expected the name of a file to write")
    refuse_kept(path, replaces=replaces)
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path}: exists; choose another --out, or pass --overwrite to replace it")
    return path


def check_folder(path: Path, *, temporary: bool = True) -> None:
    """Make sure that `path`'s folder takes files, and its `temporary` names, outside of stores; OutputPathError if not.

    The folder of a link is that of what the link leads to.
    """
    check_name(path)
    place = real_path(path) if path.is_symlink() else path
    if place.is_symlink():  # to itself
        raise OutputPathError(f"{path}: a link to {path.readlink()}, which leads nowhere; remove it, or choose another place")
    folder = place.absolute().parent
    if not folder.is_dir():
        raise OutputPathError(f"{path}: there is no folder {folder}; make it first, or choose another place")
    refuse_inside_store(path)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputPathError(
            f"{path}: the folder {folder} cannot be written to ({error.strerror}); choose another place"
        ) from error
    if temporary:
        check_name(place, temporary=True)


def check_name(path: Path, *, temporary: bool = False) -> None:
    """Make sure that the disk takes a name so long, and its `temporary` ones; OutputPathError if not. No folder is needed."""
    folder = next((place for place in path.absolute().parents if os.path.lexists(place)), path)
    name, what = (f".{path.name}.{unique_name()}.partial", ": a temporary file beside it") if temporary else (path.name, ":")
    try:
        (folder / name).lstat()  # no temporary name is longer
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise OutputPathError(cannot_be_written(f"{path}{what}", error)) from error


def refuse_input(path: Path, what: str, *inputs: str | Path | None) -> None:
    """Refuse to write over what is read, also under another name or through a link; OutputPathError if it is.

    Parameters
    ----------
    path : file to write
    what : what the inputs are, in words
    inputs : files or folders that are read; None is passed over
    """
    for given in (as_path(what, given) for given in inputs if given is not None):
        if path.exists() and given.exists() and path.samefile(given):
            raise OutputPathError(f"{path}: {what}, never replaced; choose another --out")


def refuse_one_name(first: str | Path | None, second: str | Path | None, told: str) -> None:
    """Refuse two files to write that are one, which the second would replace; OutputPathError if they are.

    Parameters
    ----------
    first, second : None is passed over
    told : the two options, in words
    """
    if first is not None and second is not None and real_path(Path(first)) == real_path(Path(second)):
        raise OutputPathError(f"{second}: is to be written twice, as {told}; choose another name for one of them")
