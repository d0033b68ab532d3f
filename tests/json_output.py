"""What commands with ``--json`` print, held against the page that documents it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsi_meta import __version__
from wsi_meta.cli import main

__all__ = ["PAGE", "documented", "failure_of", "result_of", "results_of"]

PAGE = Path(__file__).parents[1] / "docs" / "json.md"
AS_OTHERS = {"summary": ("scan",)}
"""Commands whose section refers to another's table."""


def results_of(stdout: str) -> list[Any]:
    """The results of a command; every field of them is on the page."""
    command, results = _content(stdout, "results")
    known = documented(command)
    for result in results:
        printed = set(_fields(result, known))
        assert printed <= known, f"docs/json.md does not tell of {command}: {sorted(printed - known)}"
    return list(results)


def result_of(stdout: str) -> Any:
    """The one result of a command."""
    (result,) = results_of(stdout)
    return result


def failure_of(stdout: str) -> dict[str, Any]:
    """Why there is no result."""
    _, error = _content(stdout, "error")
    assert list(error) == ["kind", "message", "exit_code"]
    return dict(error)


def documented(command: str) -> set[str]:
    """The fields of a command's results that the page names, those of objects in them as ``a.b`` or ``a[].b``."""
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    rows = [
        row for name in AS_OTHERS.get(command, (command,)) for row in re.findall(r"^\| (`.*?) \|", sections[name], re.MULTILINE)
    ]
    return {name for row in rows for name in re.findall("`([^`]+)`", row)}


def _fields(result: dict[str, Any], known: set[str]) -> Iterator[str]:
    """The fields of a result, those of an object where the page tells some of them; an interval counts as its figure."""
    for name, value in result.items():
        listed = isinstance(value, list)
        within = f"{name}[]." if listed else f"{name}."
        if any(field.startswith(within) for field in known):
            yield from (within + field for part in (value if listed else [value or {}]) for field in part)
        else:
            yield name.removesuffix("_ci")


def _content(stdout: str, name: str) -> tuple[str, Any]:
    (line,) = stdout.splitlines()
    document = json.loads(line, parse_constant=_refuse)
    assert list(document) == ["wsi_meta", "command", name]
    assert document["wsi_meta"] == __version__
    assert document["command"] in main.commands
    return document["command"], document[name]


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
