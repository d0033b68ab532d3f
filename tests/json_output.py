"""What commands with ``--json`` print."""

from __future__ import annotations

import json
from typing import Any

from wsi_meta import __version__
from wsi_meta.cli import main

__all__ = ["failure_of", "result_of", "results_of"]


def results_of(stdout: str) -> list[Any]:
    """The results of a command."""
    results = _document(stdout, "results")
    assert isinstance(results, list)
    return results


def result_of(stdout: str) -> Any:
    """The one result of a command."""
    (result,) = results_of(stdout)
    return result


def failure_of(stdout: str) -> dict[str, Any]:
    """Why there is no result."""
    error = _document(stdout, "error")
    assert list(error) == ["kind", "message", "exit_code"]
    return dict(error)


def _document(stdout: str, content: str) -> Any:
    (line,) = stdout.splitlines()
    document = json.loads(line, parse_constant=_refuse)
    assert list(document) == ["wsi_meta", "command", content]
    assert document["wsi_meta"] == __version__
    assert document["command"] in main.commands
    return document[content]


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
