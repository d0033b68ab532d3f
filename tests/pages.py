"""The pages of the documentation, and the examples in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?[^\n]*\n(.*?)^```$", re.M | re.S)
NOT_RUN = "Not run by "
PUBLIC = re.findall(r" as (\w+)$", (ROOT / "wsi_meta" / "__init__.pyi").read_text(), re.M)
"""Every public name of the package."""


@dataclass(frozen=True)
class Example:
    """A block of code in a page."""

    page: Path
    language: str
    title: str
    code: str

    @property
    def left_out(self) -> bool:
        """Whether its title says why it is not run."""
        return self.title.startswith(NOT_RUN)

    @property
    def lines(self) -> list[str]:
        """Its lines of shell: comments left out, continued lines joined."""
        joined = self.code.replace("\\\n", " ")
        return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]

    @property
    def commands(self) -> Iterator[list[str]]:
        """Arguments of each ``wsi-meta`` command in it."""
        for line in self.lines:
            words = shlex.split(line, comments=True)
            if words and words[0] == "wsi-meta":
                yield words[1 : words.index("|") if "|" in words else None]


def examples_of(page: Path) -> list[Example]:
    """Return the blocks of code in a page, in their order."""
    return [Example(page, language, title, code) for language, title, code in FENCE.findall(page.read_text())]


def name_of(page: Path) -> str:
    """Return a page's path in the repository."""
    return page.relative_to(ROOT).as_posix()
