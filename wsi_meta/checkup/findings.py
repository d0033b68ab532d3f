"""What a look at one part of the machine has shown, and all of them together."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_meta.errors import OutputPathError
from wsi_meta.outputs.paths import MENDS, NO_ROOM, real_path
from wsi_meta.words import first_line, printable

__all__ = ["Checkup", "Part", "looked_at", "without_names"]

NAME_WIDTH = 11
"""Letters of the longest name of a part, and a space."""
WIDTH = 128
"""Letters of a line."""


@dataclass(frozen=True)
class Part:
    """One part of the machine, or of what runs on it."""

    name: str
    facts: dict[str, Any]
    """Plain JSON values."""
    lines: tuple[str, ...]
    """The same in words."""
    problems: tuple[str, ...] = ()
    """What scans need and lack here, with what to do about it; a line each."""


@dataclass(frozen=True)
class Checkup:
    """What :func:`wsi_meta.doctor` found. It holds no names of users, hosts or folders."""

    parts: tuple[Part, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """What scans need and lack here, a line each, with what to do about it; empty where all is well."""
        return tuple(problem for part in self.parts for problem in part.problems)

    @property
    def text(self) -> str:
        """Everything on one screen, problems left out."""
        return "\n".join(line for part in self.parts for line in _titled(part))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {part.name: part.facts for part in self.parts} | {"problems": list(self.problems)}


def looked_at(name: str, look: Callable[[], Part], remedy: str, *, hidden: Sequence[Path] = ()) -> Part:
    """Look at one part; whatever that raises is a problem of this part, and the others are looked at all the same.

    Parameters
    ----------
    name : of the part
    look : returns it
    remedy : what to do where `look` raises; an output that cannot be written says itself what to do
    hidden : folders whose paths are nobody's business
    """
    try:
        return look()
    except Exception as error:  # told, never passed over: a part is broken by whatever its libraries raise
        told = without_names(f"{type(error).__name__}: {first_line(error)}", *hidden)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            remedy = MENDS[error.errno]
        problem = f"{name}: {told}" if isinstance(error, OutputPathError) else f"{name}: {told}; {remedy}"
        return Part(name, {"error": told}, (f"cannot be told: {told}",), (problem,))


def without_names(text: str, *folders: Path) -> str:
    """Return a text in which folders, the user's home and this machine's name are words instead."""
    names = {str(folder.absolute()): "FOLDER" for folder in folders} | {str(real_path(folder)): "FOLDER" for folder in folders}
    with suppress(RuntimeError):  # no home
        names[str(Path.home())] = "~"
    if len(platform.node()) > 3:
        names[platform.node()] = "HOST"
    for name in sorted(names, key=len, reverse=True):
        if len(name) > 1:
            text = text.replace(name, names[name])
    return printable(text)


def _wrap(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH - NAME_WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _titled(part: Part) -> list[str]:
    """Return a part's lines, its name before the first one, long ones wrapped."""
    wrapped = [row for line in part.lines for row in _wrap(printable(line))]
    titles = [part.name.replace("_", " "), *[""] * (len(wrapped) - 1)]
    return [f"{title:<{NAME_WIDTH}}{row}" for title, row in zip(titles, wrapped, strict=True)]
