"""Whether scans can trust the folder that they write to: locks, renames, whole files, room. It is left as it was."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_meta.checkup.findings import Part
from wsi_meta.checkup.machine import GB
from wsi_meta.errors import OutputExistsError
from wsi_meta.files.locks import locked
from wsi_meta.heatmaps.ownership import put_in_place
from wsi_meta.outputs.checks import check_folder
from wsi_meta.outputs.paths import real_path
from wsi_meta.outputs.writing import written_whole

__all__ = ["FILE_SYSTEM", "FileSystem", "output_folder"]

LITTLE_GB = 1.0
"""A store has some megabytes, a cohort's stores some gigabytes."""
ELSEWHERE = "write to a local disk, or another file system (--out)"
MOUNTS = Path("/proc/self/mounts")


@dataclass(frozen=True)
class FileSystem:
    """What scans rely on: the package's own functions, and the rename under them."""

    locked: Callable[[Path], AbstractContextManager[None]] = locked
    put_in_place: Callable[[Path, Path], None] = put_in_place
    rename: Callable[[Path, Path], object] = Path.rename


FILE_SYSTEM = FileSystem()


def output_folder(folder: Path, scratch: Path, system: FileSystem = FILE_SYSTEM) -> Part:
    """Try in a scratch folder what a scan does with its output.

    Parameters
    ----------
    folder : where heatmaps are to go
    scratch : empty, in it
    system : what is tried
    """
    check_folder(scratch / "heat.zarr")
    free = shutil.disk_usage(scratch).free / GB
    problems = [problem for problem in (_second_lock(scratch, system), *_clobbering(scratch, system)) if problem]
    flush_ms = _whole_file(scratch)
    kind, others = _file_system(folder), _locks_between_processes(scratch)
    facts = {"file_system": kind, "free_gb": free, "flush_ms": flush_ms, "flock": others, "sound": not problems}
    told = f"{kind}, {free:.1f} GB free, {flush_ms:.0f} ms to have 1 MB on the disk"
    trust = "; ".join(problems) or f"locks and renames hold{'' if others else ' (no flock: the lock file alone must do)'}"
    if free < LITTLE_GB:
        problems.append(f"{free:.1f} GB free; make room, or choose another --out")
    return Part("output", facts, (f"{told}; {trust}",), tuple(f"output folder: {problem}" for problem in problems))


def _second_lock(scratch: Path, system: FileSystem) -> str | None:
    """Tell what is wrong with locks: a second holder must be refused, and nothing be left."""
    path = scratch / "locked.zarr"
    with system.locked(path):
        try:
            with system.locked(path):
                return f"two scans can hold the same output, and would mix their results; {ELSEWHERE}"
        except OutputExistsError:
            pass
    left = [entry.name for entry in scratch.iterdir() if "locked" in entry.name]
    return f"a lock cannot be removed ({left[0]}); {ELSEWHERE}" if left else None


def _clobbering(scratch: Path, system: FileSystem) -> list[str | None]:
    """Tell what is wrong with renames: what stands somewhere must stay, whatever is renamed there."""
    ways: dict[str, Callable[[Path, Path], object]] = {"store": system.put_in_place, "folder": system.rename}
    return [_clobbered(scratch, name, rename) for name, rename in ways.items()]


def _clobbered(scratch: Path, name: str, rename: Callable[[Path, Path], object]) -> str | None:
    new, there = scratch / f"new {name}", scratch / f"there {name}"
    for path in (new, there):
        path.mkdir()
        (path / "content").write_text(path.name)
    with suppress(OSError):  # raised, as it must be
        rename(new, there)
    if (there / "content").read_text() != there.name or not new.exists():
        return f"a {name} that is renamed replaces another one, so a scan can lose what stands there; {ELSEWHERE}"
    free = scratch / f"free {name}"
    rename(new, free)
    return None if (free / "content").read_text() == new.name else f"a renamed {name} is not the same; {ELSEWHERE}"


def _whole_file(scratch: Path) -> float:
    """Replace a file by a whole one of 1 MB, as reports and records are; return the milliseconds until the disk has it."""
    path, content = scratch / "whole.bin", os.urandom(1 << 20)
    path.write_bytes(b"older")
    began = time.perf_counter()
    with written_whole(path) as partial:
        partial.write_bytes(content)
    took = time.perf_counter() - began
    if path.read_bytes() != content:
        raise OSError(f"a file is not what was written to it; {ELSEWHERE}")
    return took * 1000


def _locks_between_processes(scratch: Path) -> bool:
    """Tell whether the file system knows flock, which makes taking over the lock of a dead process safe."""
    try:
        import fcntl
    except ImportError:
        return False
    numbers = [os.open(scratch, os.O_RDONLY) for _ in range(2)]
    try:
        fcntl.flock(numbers[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(numbers[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
    except OSError:
        return False
    finally:
        for number in numbers:
            os.close(number)


def _file_system(folder: Path) -> str:
    """Return the kind of file system that a folder lies on, such as ``ext4`` or ``nfs4``."""
    try:
        rows: list[Any] = [line.split()[1:3] for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return "unknown file system"
    here = real_path(folder)
    fitting = [(len(point), kind) for point, kind in rows if here.is_relative_to(point.replace("\\040", " "))]
    return str(max(fitting)[1]) if fitting else "unknown file system"
