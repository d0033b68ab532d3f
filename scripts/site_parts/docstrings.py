"""Turns this package's docstrings into Markdown, for the page of public names.

The docstrings are NumPy style, and say after a parameter's name what it means, because its type stands in the signature.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

import wsi_meta

SECTIONS = ("Parameters", "Returns", "Raises", "Attributes", "Yields")
PUBLIC = frozenset(wsi_meta.__all__)


class Markdown(griffe.Extension):
    """Rewrites each docstring when its object has been read."""

    def on_instance(self, *, obj: griffe.Object, **_others: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Return a docstring as Markdown: sections as bold words with a list, references as links to public names."""
    parts = re.split(rf"^({'|'.join(SECTIONS)})\n-+\n", text, flags=re.M)
    pages = [parts[0].rstrip()]
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        items, _, beyond = _items(body.rstrip())
        pages.append(f"**{name}**\n\n{items}" + (f"\n\n{beyond}" if beyond else ""))
    return _linked("\n\n".join(pages))


def _items(body: str) -> tuple[str, str, str]:
    """Return a section's entries as a list, and what follows them after an empty line."""
    entries, gap, beyond = body.partition("\n\n")
    found: list[str] = []
    for line in entries.splitlines():
        if not line.startswith(" "):
            names, colon, meaning = line.partition(" : ")
            named = colon or re.fullmatch(r"\w+(, \w+)*", line)
            found.append(f"- {_code(names)}: {meaning}".removesuffix(": ") if named else line)
        else:
            found[-1] += (" " if found[-1].startswith("- ") and ": " in found[-1] else ": ") + line.strip()
    prose = [line for line in found if not line.startswith("- ")]
    return (" ".join(prose) if prose else "\n".join(found)), gap, beyond


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _linked(text: str) -> str:
    """Return a text whose references are links where they name what is public, and code elsewhere."""

    def link(match: re.Match[str]) -> str:
        path = match[1].lstrip(".~")
        name = path.removeprefix("wsi_meta.")
        return f"[`{name}`][wsi_meta.{name}]" if name in PUBLIC else f"`{path}`"

    return re.sub(r":\w+:`([^`]+)`", link, text)
