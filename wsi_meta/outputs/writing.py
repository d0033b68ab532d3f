"""Files and folders that are written whole or not at all, whatever ends the process."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from wsi_meta.errors import OutputExistsError, OutputPathError, WsiMetaError
from wsi_meta.outputs.paths import UNIQUE, cannot_be_written, real_path, unique_name

__all__ = [
    "ABANDONED_S",
    "filled_folder",
    "finish_replacing",
    "flush",
    "remove_empty",
    "remove_leftovers",
    "replace_files",
    "write_together",
    "written_folder",
    "written_whole",
]

ABANDONED_S = 3600
"""A temporary file of ours that nobody wrote to for so long was left by a process that was killed."""


@contextmanager
def written_whole(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to, then rename it into place: `path` is the whole new file or the old one.

    A link stays one: what it leads to is replaced.

    Parameters
    ----------
    overwrite : False if nothing stood there when the work began: what another command put there since then stays

    Raises
    ------
    OutputExistsError
        when something stands there in the end, and not `overwrite`.
    OutputPathError
        when it cannot be written, for example to a full disk; an older file stays.
    """
    place = real_path(path) if path.is_symlink() else path
    partial = place.with_name(f"{place.name}.{unique_name()}.partial")
    try:
        remove_leftovers(place, older_s=ABANDONED_S)
        yield partial
        flush(partial)
        if overwrite:
            partial.replace(place)
        else:
            _take_name(partial, place, path)
        flush(place.parent)
    except WsiMetaError:
        raise
    except OSError as error:
        kept = "; the one before is kept" if path.exists() else ""
        raise OutputPathError(f"{cannot_be_written(f'{path}:', error)}{kept}") from error
    finally:
        with suppress(OSError):  # what it ended with is told instead
            partial.unlink()


def _take_name(partial: Path, place: Path, path: Path) -> None:
    """Give a file its name, unless another one has it; OutputExistsError then."""
    try:
        os.link(partial, place)  # looks and takes in one step; the temporary name goes in the end
    except OSError as error:
        if os.path.lexists(place):
            told = "another command wrote it meanwhile, and that is kept; choose another --out, or pass --overwrite"
            raise OutputExistsError(f"{path}: {told}") from error
        partial.replace(place)  # some file systems know no links


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of one output into a folder, which is made if it does not exist: all of them, or none where the disk is full.

    Each gets its name when all are on the disk; a command that is killed between two names leaves older files beside new ones.

    Parameters
    ----------
    contents : by name; older files of these names are replaced, whatever else the folder holds stays

    Raises
    ------
    OutputPathError
        when one cannot be written; older files stay.
    """
    with ExitStack() as stack:
        if not folder.exists():
            _make(made := real_path(folder))
            stack.callback(remove_empty, made)
        for name, content in contents.items():
            partial = stack.enter_context(written_whole(folder / name))
            partial.write_bytes(content)
            flush(partial)


def _make(folder: Path) -> None:
    try:
        folder.mkdir()
    except OSError as error:
        raise OutputPathError(cannot_be_written(f"{folder}:", error)) from error


def remove_empty(folder: Path) -> None:
    """Remove a folder if it holds nothing."""
    with suppress(OSError):  # it holds something
        folder.rmdir()


@contextmanager
def filled_folder(out: Path, *, alone: bool = False) -> Iterator[Path]:
    """Yield a new, hidden folder to fill, beside `out` or what that links to; its files are then moved, and it goes in the end.

    Those that killed processes left there go first.

    Parameters
    ----------
    alone : whether the lock on `out` is held: then even the newest of them is nobody's

    Raises
    ------
    OutputPathError
        when something in it cannot be written.
    """
    place = real_path(out)  # . has no name
    made = place.with_name(f".{place.name}.{unique_name()}.partial")
    try:
        remove_leftovers(place, older_s=0.0 if alone else ABANDONED_S)
        made.mkdir()
        yield made
    except OutputPathError as error:  # names what the caller knows, and not the hidden folder
        raise OutputPathError(str(error).replace(str(made), str(out))) from error
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
        made.rename(real_path(folder))
        flush(made.parent)


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
    folder = real_path(folder)
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
    folder = real_path(folder)
    ours = re.compile(re.escape(f".{folder.name}.") + UNIQUE + r"\.(leaving|old)")
    for aside in [entry for entry in folder.parent.iterdir() if ours.fullmatch(entry.name) and entry.is_dir()]:
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
