"""``--tta`` with and without a number, in scan and evaluate."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from wsi_meta.cli.models import evaluate
from wsi_meta.cli.scan import scan


@pytest.mark.parametrize(
    ("words", "tta", "arguments"),
    [
        ("a b", False, ["a", "b"]),
        ("a b --tta", True, ["a", "b"]),
        ("--tta a b", True, ["a", "b"]),
        ("a --tta b", True, ["a", "b"]),
        ("a b --tta --batch-size 8", True, ["a", "b"]),
        ("a b --tta 2", 2, ["a", "b"]),
        ("--tta 4 a b", 4, ["a", "b"]),
        ("--tta=4 a b", 4, ["a", "b"]),
        ("a --tta 8 b", 8, ["a", "b"]),
        ("a --tta -- b", True, ["a", "b"]),
        ("a -- b --tta", False, ["a", "b", "--tta"]),
        ("--tta ./4 b", True, ["./4", "b"]),
    ],
)
@pytest.mark.parametrize("command", [scan, evaluate])
def test_with_and_without_a_number(command: click.Command, words: str, tta: bool | int, arguments: list[str]) -> None:
    found = command.make_context(command.name, words.split()).params
    assert (type(found["tta"]), found["tta"]) == (type(tta), tta)
    given = found["slides"] if command is scan else (found["model"], *found["data"])
    assert [Path(str(word)) for word in given] == [Path(word) for word in arguments]


@pytest.mark.parametrize("words", ["a b --tta 3", "--tta=16 a b", "--tta 1 a b", "--tta 0 a b", "a b --tta=all"])
@pytest.mark.parametrize("command", [scan, evaluate])
def test_another_number_is_wrong_usage(command: click.Command, words: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is not 2, 4 or 8\."):
        command.make_context(command.name, words.split())
