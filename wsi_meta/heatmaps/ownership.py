"""Who owns what stands at a store's path: one scan at a time, and only what is ours is ever removed.

Beside a store ``heat.zarr`` stand, for an instant or after a kill, ``.heat.zarr.lock`` and folders
``.heat.zarr.<12 letters>.new`` (a store that is being made), ``.old`` (one that waits until its successor says something of the
slide) and ``.gone`` (one that is being removed).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import HeatmapError, OutputExistsError, OutputPathError, WsiMetaError, truth
from wsi_meta.files.locks import locked
from wsi_meta.heatmaps.layout import foreign_part, is_our_folder, is_ours
from wsi_meta.heatmaps.record import FORMAT_VERSION, UNKNOWN, Status
from wsi_meta.outputs.checks import check_folder
from wsi_meta.outputs.kept_files import is_heatmap, is_store, mark_of
from wsi_meta.outputs.paths import UNIQUE, cannot_be_written, real_path, unique_name
from wsi_meta.outputs.writing import flush
from wsi_meta.outputs.zarr_folder import is_zarr_image
from wsi_meta.words import first_line, from_json, some_of

if TYPE_CHECKING:
    import zarr

__all__ = [
    "NO_HEATMAP",
    "claimed",
    "is_heatmap_path",
    "is_newer",
    "is_store",
    "is_torn_store",
    "open_group",
    "put_in_place",
    "refuse_to_replace",
    "remove_part",
    "remove_partials",
    "remove_store",
    "stores_in",
    "temporary_store",
    "written_into",
]

logger = logging.getLogger("wsi_meta")

NO_HEATMAP = "no heatmap in this folder; expected stores that end in .zarr"
NOTHING_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""What the disk says where there is no such file."""
TEMPORARY = re.compile(rf"\..+\.{UNIQUE}\.(?:new|old|gone)")


@contextmanager
def claimed(path: Path, *, overwrite: bool) -> Iterator[None]:
    """Hold a store's path for one scan. What a killed scan left there is put in order first, what this one leaves in the end.

    An older store that was replaced goes in the end, or stands again where nothing of the slide was scanned.

    Parameters
    ----------
    path : the store, which need not exist
    overwrite : whether the scan will replace the store

    Raises
    ------
    OutputExistsError
        when another scan holds it, or what would be replaced holds something that is not ours.
    OutputPathError
        when its folder is missing, cannot be written to, or lies in another store.
    """
    check_folder(path)
    with locked(path):
        place = real_path(path)
        _tidy(place)
        if is_store(place):
            remove_partials(place)
        if overwrite:
            refuse_to_replace(path, overwrite=True)
        try:
            yield
        finally:
            with suppress(OSError):  # what it ended with is told instead; the next scan puts it in order
                _tidy(place)


def is_torn_store(path: Path) -> bool:
    """Tell whether a folder is a store but for its record, which is missing, empty or cut: all in it is what a scan writes."""
    try:
        whole = isinstance(from_json((path / "zarr.json").read_bytes()), dict)
    except (ValueError, FileNotFoundError):
        whole = False
    except OSError:
        return False
    return not whole and is_heatmap(path) and foreign_part(path) is None


def stores_in(folder: Path, *, warn: bool = False) -> list[Path]:
    """Return the heatmaps in a folder, by name, also damaged ones; slides may lie beside them, `warn` names what is neither."""
    found = sorted(path for path in folder.glob("*.zarr") if path.is_dir() and not path.name.startswith("."))
    ours = [path for path in found if is_heatmap(path)]
    others = [path.name for path in sorted({*found} - {*ours}) if not is_zarr_image(path)]
    if warn and others:
        logger.warning("%s: passed over, since no heatmap from 'wsi-meta scan': %s", folder, some_of(others))
    # of links to a store the last one counts, and the store itself comes after them
    return sorted({real_path(path): path for path in sorted(ours, key=Path.is_symlink, reverse=True)}.values())


def is_heatmap_path(path: Path) -> bool:
    """Tell whether a path means one heatmap, be it damaged or not there; not a slide, a folder of heatmaps or another file."""
    if (ours := is_heatmap(path)) or is_zarr_image(path):
        return ours
    return (path / "zarr.json").exists() or (path.suffix == ".zarr" and not stores_in(path))


def temporary_store(path: Path, state: str = "new") -> Path:
    """Return a name beside a store's path that nothing has; `state` is ``new``, ``old`` or ``gone``."""
    return path.with_name(f".{path.name}.{unique_name()}.{state}")


def put_in_place(new: Path, path: Path) -> None:
    """Let a store that was made under a temporary name stand at `path`; an older one waits aside, see :func:`claimed`.

    What it says of itself reaches the disk before that. Its chunks need not: they only say which cells hold tissue, and a scan
    that finds one torn after a loss of power makes it again. A large slide has a thousand of them, at milliseconds each.

    Raises
    ------
    OutputExistsError
        when something else appeared there; it is never replaced.
    """
    for entry in (new, *new.rglob("zarr.json")):
        flush(entry)
    old = temporary_store(path, "old")
    if is_store(path) or is_torn_store(path):
        path.rename(old)
    try:
        if path.exists() or path.is_symlink():
            raise FileExistsError(path)
        new.rename(path)  # fails on a file, and on a folder that holds something
    except OSError as error:
        if old.exists() and not path.exists():
            old.rename(path)
        raise OutputExistsError(f"{path}: something else was written there meanwhile; choose another --out") from error
    flush(path.parent)


def remove_store(path: Path) -> None:
    """Remove a store's own files, and its folders as far as they are empty then; nothing where there is no store.

    It goes under another name first: killed in between, no half of it stands at `path`.
    """
    if not path.is_dir() or path.is_symlink():
        return
    if path.suffix != ".gone" and foreign_part(path) is None:
        path = path.rename(path.with_suffix(".gone") if TEMPORARY.fullmatch(path.name) else temporary_store(path, "gone"))
    _remove_ours(path, path)
    (path / "zarr.json").unlink(missing_ok=True)
    with suppress(OSError):
        path.rmdir()


def remove_part(store: Path, part: str) -> None:
    """Remove the files that a scan wrote into a folder of its store, by its path in it, and folders that are empty then."""
    _remove_ours(store, store / part)


def _remove_ours(store: Path, folder: Path) -> None:
    """Remove our files below a folder of a store, all but the store's record."""
    for entry in sorted(folder.rglob("*"), reverse=True):  # what lies in a folder, then the folder
        inside = entry.relative_to(store)
        if entry.is_dir() and not entry.is_symlink():
            with suppress(OSError):
                if is_our_folder(inside):
                    entry.rmdir()
        elif entry != store / "zarr.json" and is_ours(inside):
            entry.unlink()


def remove_partials(store: Path) -> None:
    """Remove what a scan that was killed while it wrote a block or the record left in its store."""
    for leftover in store.rglob("*.partial"):
        if is_ours(leftover.relative_to(store)):
            leftover.unlink()


def _tidy(path: Path) -> None:
    """Put back an older store that was moved aside, if what stands in its place says nothing; remove what else a scan left."""
    name = re.compile(rf"\.{re.escape(path.name)}\.{UNIQUE}\.(new|old|gone)")
    for entry in [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]:
        if entry.suffix == ".old" and (is_store(entry) or is_torn_store(entry)):
            _settle(entry, path)
        elif entry.is_dir() and foreign_part(entry) is None and (entry.suffix != ".old" or path.exists()):
            remove_store(entry)


def _settle(old: Path, path: Path) -> None:
    """Put back an older store where its successor is missing or says nothing, else remove it; in doubt it waits on."""
    if path.exists():
        try:
            status: Any = open_group(path)["status"]
            found = np.unique(status[...])
        except Exception:  # damaged, or the disk's; each codec has its own
            return
        is_told = Status.SCANNED in found or not np.isin(found, UNKNOWN).any()
        if foreign_part(leaving := old if is_told else path) is None:
            remove_store(leaving)
    if not path.exists():
        old.rename(path)


def open_group(path: Path) -> zarr.Group:
    """Open a group that holds the record of a scan, damaged or not.

    HeatmapError where there is none; OSError where the disk or the network does not give it.
    """
    import zarr
    from zarr.errors import BaseZarrError

    if not path.is_dir():
        found = "not a folder" if path.exists() else "no such store"
        raise HeatmapError(f"{path}: {found}; expected a heatmap from 'wsi-meta scan'")
    try:
        group = zarr.open_group(path.absolute(), mode="r+", zarr_format=3)
    except Exception as error:  # zarr raises whatever odd metadata lead to
        if isinstance(error, OSError | MemoryError) and not isinstance(error, (BaseZarrError, *NOTHING_THERE)):
            raise  # the disk's, the network's or the machine's error: it may be a store
        if inside := stores_in(path):
            raise HeatmapError(f"{path}: a folder of heatmaps; name them, such as {inside[0]}") from error
        if is_store(path):
            told = f"zarr does not read its record, zarr.json ({first_line(error)}); update zarr, or copy the store again"
            raise HeatmapError(f"{path}: damaged: {told}") from error
        if is_heatmap(path):
            told = "its record, zarr.json, is missing, empty or cut; copy it again, or scan it again with --overwrite"
            raise HeatmapError(f"{path}: damaged: {told}") from error
        if not (path / "zarr.json").exists():
            raise HeatmapError(f"{path}: a folder without heatmaps; expected a heatmap from 'wsi-meta scan'") from error
        raise HeatmapError(
            f"{path}: not a heatmap store ({type(error).__name__}); expected one from 'wsi-meta scan'"
        ) from error
    parts: Any = group.attrs.get("wsi_meta")
    if not isinstance(parts, dict) or "identity" not in parts:
        raise HeatmapError(f"{path}: a zarr group, but not from wsi-meta; expected a heatmap from 'wsi-meta scan'")
    if _is_newer(parts):
        raise HeatmapError(f"{path}: heatmap format {parts['format_version']} is newer than {FORMAT_VERSION}; update wsi-meta")
    return group


def is_newer(path: Path) -> bool:
    """Tell whether a store says that it is of a newer format than this version knows."""
    return _is_newer(mark_of(path) or {})


def _is_newer(parts: dict[str, Any]) -> bool:
    return isinstance(version := parts.get("format_version"), int) and version > FORMAT_VERSION


@contextmanager
def written_into(store: Path) -> Iterator[None]:
    """Say of a store that it cannot be written, why, and what to do about it, where the disk does not take something of it.

    Raises
    ------
    OutputPathError
    """
    try:
        yield
    except WsiMetaError:
        raise
    except OSError as error:
        raise OutputPathError(cannot_be_written(f"{store}:", error)) from error


def refuse_to_replace(path: Path, *, overwrite: bool) -> None:
    """Make sure that a new store may stand at `path`; OutputExistsError if not."""
    overwrite = truth("overwrite", overwrite)
    if not path.exists():
        return
    torn = is_torn_store(path)
    try:
        if not torn:
            open_group(path)
    except HeatmapError as error:
        raise OutputExistsError(
            f"{path}: exists and is not a heatmap store; it is never replaced; choose another --out"
        ) from error
    if not overwrite:
        found = "a heatmap store whose record, zarr.json, is missing, empty or cut" if torn else "exists"
        raise OutputExistsError(f"{path}: {found}; choose another --out, or pass --overwrite to replace it")
    if (part := foreign_part(path)) is not None:
        raise OutputExistsError(
            f"{path}: holds '{part}', which wsi-meta did not write, so it is not replaced; "
            "move that elsewhere, or choose another --out"
        )
