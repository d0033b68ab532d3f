"""Where results may be written: checked before the work begins, so that it is not done in vain."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from wsi_meta.errors import OutputExistsError, OutputPathError, WsiMetaError, first_line
from wsi_meta.kept_files import refuse_inside_store, refuse_kept

__all__ = [
    "UNIQUE",
    "cannot_be_written",
    "check_folder",
    "check_output",
    "filled_folder",
    "finish_replacing",
    "flush",
    "real_path",
    "refuse_input",
    "refuse_one_name",
    "remove_leftovers",
    "replace_files",
    "unique_name",
    "written_folder",
    "written_whole",
]

UNIQUE = "[0-9a-f]{12}"
"""Pattern of the part that makes the name of a temporary file or folder unique; see :func:`unique_name`."""
ABANDONED_S = 3600
"""A temporary file of ours that nobody wrote to for so long was left by a process that was killed."""
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


def cannot_be_written(what: str, error: OSError) -> str:
    """Return in words that something cannot be written, why, and what to do about it."""
    while error.errno is None and isinstance(cause := error.__cause__ or error.__context__, OSError):
        error = cause  # a library's own error may hide the disk's
    mend = MENDS.get(error.errno or 0, "make room, or choose another place, and run it again")
    return f"{what} cannot be written ({error.strerror or first_line(error)}); {mend}"


def check_output(path: str | Path, *, overwrite: bool, replaces: str = "") -> Path:
    """Make sure that a file can be written; `replaces` is as for :func:`wsi_meta.kept_files.refuse_kept`.

    Raises
    ------
    OutputExistsError
        when it exists and not `overwrite`.
    OutputPathError
        when its folder is missing, cannot be written to, or lies in a heatmap store; when it is no file, a link to what is not
        there, or a file that is never replaced.
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise OutputPathError(f"{path}: a link to {path.readlink()}, which is not there; remove it, or choose another name")
    check_folder(real_path(path) if path.is_symlink() else path)
    if path.is_dir():
        raise OutputPathError(f"{path}: a directory; expected the name of a file to write")
    if path.exists() and not path.is_file():
        raise OutputPathError(f"{path}: a device or a pipe, never replaced; expected the name of a file to write")
    if path.exists():
        refuse_kept(path, replaces=replaces)
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path}: exists; choose another --out, or pass --overwrite to replace it")
    return path


def check_folder(path: Path, *, temporary: bool = True) -> None:
    """Make sure that `path`'s folder takes files, and its `temporary` names, outside of stores; OutputPathError if not."""
    folder = path.absolute().parent
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
    if not temporary:
        return
    try:
        (folder / f".{path.name}.{unique_name()}.partial").lstat()  # no temporary name is longer
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise OutputPathError(cannot_be_written(f"{path}: a temporary file beside it", error)) from error


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


def refuse_one_name(first: str | Path | None, second: str | Path | None, told: str) -> None:
    """Refuse two files to write that are one, which the second would replace; OutputPathError if they are.

    Parameters
    ----------
    first, second : None is passed over
    told : the two options, in words
    """
    if first is not None and second is not None and real_path(Path(first)) == real_path(Path(second)):
        raise OutputPathError(f"{second}: is to be written twice, as {told}; choose another name for one of them")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to, then rename it into place: `path` is the whole new file or the old one.

    A link stays one: what it leads to is replaced.

    Raises
    ------
    OutputPathError
        when it cannot be written, for example to a full disk; an older file stays.
    """
    place = real_path(path) if path.is_symlink() else path
    partial = place.with_name(f"{place.name}.{unique_name()}.partial")
    try:
        remove_leftovers(place, older_s=ABANDONED_S)
        yield partial
        flush(partial)
        partial.replace(place)
        flush(place.parent)
    except WsiMetaError:
        raise
    except OSError as error:
        kept = "; the one before is kept" if path.exists() else ""
        raise OutputPathError(f"{cannot_be_written(f'{path}:', error)}{kept}") from error
    finally:
        with suppress(OSError):  # what it ended with is told instead
            partial.unlink()


@contextmanager
def filled_folder(out: Path) -> Iterator[Path]:
    """Yield a new, hidden folder beside `out` to fill, whose files are then moved; it goes in the end.

    Those that killed processes left beside `out` go first.

    Raises
    ------
    OutputPathError
        when something in it cannot be written.
    """
    made = out.absolute().with_name(f".{out.name}.{unique_name()}.partial")
    try:
        remove_leftovers(out, older_s=ABANDONED_S)
        made.mkdir()
        yield made
    except WsiMetaError:
        raise
    except OSError as error:
        raise OutputPathError(cannot_be_written(f"{out}:", error)) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def written_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside one to fill, then let it take that one's place: whole or not at all.

    Parameters
    ----------
    folder : new, or empty by the end; nothing else is replaced

    Raises
    ------
    OutputPathError
        when it cannot be written.
    """
    with filled_folder(folder) as made:
        yield made
        made.rename(folder)
        flush(folder.parent)


def replace_files(made: Path, folder: Path, names: Sequence[str]) -> None:
    """Move files into a folder as one output. Older ones wait aside, beside the folder, until all new ones stand.

    Call :func:`finish_replacing` first, in case this was killed before. Whatever else the folder holds stays.

    Parameters
    ----------
    made : folder of the new files, on the same file system
    folder : made if it does not exist
    names : of all files that belong to such an output; the last one is its mark: it goes first and comes last

    Raises
    ------
    OutputPathError
        when a file cannot be moved; the older ones stand again.
    """
    folder.mkdir(exist_ok=True)
    leaving = folder.with_name(f".{folder.name}.{unique_name()}.leaving")
    for name in names:
        flush(made / name)
    try:
        leaving.mkdir()
        _move_all(folder, leaving, [*reversed(names)])
        leaving = leaving.rename(leaving.with_suffix(".old"))
        _move_all(made, folder, names)
    except OSError as error:
        finish_replacing(folder, names)
        raise OutputPathError(cannot_be_written(f"{folder}:", error)) from error
    flush(folder)
    finish_replacing(folder, names)


def finish_replacing(folder: Path, names: Sequence[str]) -> None:
    """Put in order what a killed :func:`replace_files` left of `names`: older files stand again unless all new ones do."""
    ours = re.compile(re.escape(f".{folder.name}.") + UNIQUE + r"\.(leaving|old)")
    for aside in [entry for entry in folder.absolute().parent.iterdir() if ours.fullmatch(entry.name) and entry.is_dir()]:
        if aside.suffix == ".old" and (folder / names[-1]).exists():
            _remove_all(aside, names)
        else:
            if aside.suffix == ".old":
                _remove_all(folder, names)  # new ones without their mark
            _move_all(aside, folder, names)
        with suppress(OSError):
            aside.rmdir()


def _move_all(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        with suppress(FileNotFoundError):
            (source / name).replace(target / name)
    flush(source)
    flush(target)


def _remove_all(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def unique_name() -> str:
    """Return a part of a name that no other process comes upon."""
    return os.urandom(6).hex()


def flush(path: Path) -> None:
    """Make sure that a file's content, or a folder's list of names, is on the disk and would survive a loss of power."""
    with suppress(FileNotFoundError):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        except OSError:
            if not path.is_dir():  # some file systems know no such thing for folders
                raise
        finally:
            os.close(number)


def remove_leftovers(path: Path, *, older_s: float = 0.0) -> None:
    """Remove temporary files and folders for `path` that killed processes left: nobody wrote to them for `older_s` seconds."""
    ours = re.compile(r"(\.?)" + re.escape(path.name) + r"\." + UNIQUE + r"\.partial")
    with os.scandir(path.absolute().parent) as entries:
        found = [(Path(entry.path), bool(named[1])) for entry in entries if (named := ours.fullmatch(entry.name))]
    for left, hidden in found:
        if not (left.is_dir() if hidden else left.is_file()):  # of filled_folder, of written_whole
            continue
        with suppress(FileNotFoundError):  # another process removes it, too
            changed = max(part.stat().st_mtime for part in (left, *left.rglob("*")))
            if time.time() - changed >= older_s:
                shutil.rmtree(left) if hidden else left.unlink()
