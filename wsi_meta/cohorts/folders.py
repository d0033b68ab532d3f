"""The folders under a folder, each real one once: links to a folder that it lies in would lead round and round."""

from __future__ import annotations

import os
from collections.abc import Iterator
from glob import escape, glob
from pathlib import Path

from wsi_meta.files.slide_file import is_mrxs_folder
from wsi_meta.outputs.paths import real_path

__all__ = ["first_seen", "matches", "may_hold_slides"]

ANY_DEPTH = "**"
"""The part of a pattern that stands for a folder and all in it."""


def may_hold_slides(folder: Path) -> bool:
    """Tell whether to look into a folder: not a hidden one, a store, or pixels alone."""
    return not (folder.name.startswith(".") or folder.suffix == ".zarr" or is_mrxs_folder(folder))


def first_seen(folder: Path, seen: set[Path]) -> bool:
    """Tell whether a folder is none of those seen, by whatever name, and count it among them."""
    real = real_path(folder)
    new = real not in seen
    seen.add(real)
    return new


def matches(pattern: str) -> list[str]:
    """Return what a pattern matches, by name, as ``glob`` does; ``**`` goes into each real folder once, and into no store."""
    before, deep, after = _at_any_depth(pattern)
    if not deep:
        return sorted(glob(pattern))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    found = set[str]()
    for top in glob(before) if before else [""]:  # noqa: PTH207
        for folder in _folders(top, set()):
            if after:
                found.update(matches(os.path.join(escape(folder), after)))  # noqa: PTH118 (Path drops a slash at the end)
            else:
                found.update(filter(None, [folder, *(path for path in _entries(folder) if not Path(path).is_dir())]))
    return sorted(found)


def _at_any_depth(pattern: str) -> tuple[str, bool, str]:
    """Return what stands before the first ``**`` of a pattern, whether there is one, and what stands behind it."""
    parts = pattern.split("/")
    if ANY_DEPTH not in parts:
        return pattern, False, ""
    at = parts.index(ANY_DEPTH)
    return "/".join([*parts[:at], ""]), True, "/".join(parts[at + 1 :])


def _folders(top: str, seen: set[Path]) -> Iterator[str]:
    """Yield a folder and those under it that may hold slides; nothing where it is no folder."""
    if Path(top).is_dir() and first_seen(Path(top), seen):
        yield top
        for path in _entries(top):
            if may_hold_slides(Path(path)):
                yield from _folders(path, seen)


def _entries(folder: str) -> list[str]:
    """Return what lies in a folder and is not hidden, by name."""
    return sorted(glob(os.path.join(escape(folder), "*")))  # noqa: PTH118, PTH207
