"""How errors, names, times and probabilities are shown."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_meta.errors import DataError
from wsi_meta.words import (
    duration,
    first_line,
    format_probability,
    format_threshold,
    from_json,
    one_line,
    printable,
    some_of,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("slide 1.tif", "slide 1.tif"),
        ("Präparat 切片 \N{NO-BREAK SPACE}1.tif", "Präparat 切片 \N{NO-BREAK SPACE}1.tif"),
        ("a\nb\tc\r.tif", r"a\nb\tc\r.tif"),
        ("\x1b[2J\x1b]0;title\x07.tif", r"\x1b[2J\x1b]0;title\x07.tif"),
        ("\x9b31mred", r"\x9b31mred"),
        (os.fsdecode(b"caf\xe9.tif"), r"caf\xe9.tif"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}fit.exe", r"\u202efit.exe"),
        ("a\N{LINE SEPARATOR}b", r"a\u2028b"),
        (r"already \x1b escaped", r"already \x1b escaped"),
    ],
    ids=ascii,
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


@given(st.binary(max_size=40))
def test_any_name_can_be_printed_in_one_line(name: bytes) -> None:
    shown = printable(os.fsdecode(name))

    assert shown.encode("utf-8").decode("utf-8") == shown
    assert len(shown.splitlines()) <= 1
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in shown)


def test_an_error_of_this_package_keeps_the_lines_of_a_name_apart() -> None:
    assert one_line(DataError("a  \nb.tif: no such file")) == r"a  \nb.tif: no such file"


def test_the_lines_of_another_error_are_joined() -> None:
    assert one_line(RuntimeError("one\n  two \x1b[1m")) == r"one two \x1b[1m"
    assert first_line(RuntimeError("one\ntwo")) == "one two"
    assert first_line(MemoryError()) == "MemoryError"


def test_json_that_cannot_be_read_is_one_kind_of_error_and_all_is_read_so() -> None:
    for text in ("{", b"\xff", "[" * 100_000):
        with pytest.raises(ValueError):  # noqa: PT011  (whatever json says of it)
            from_json(text)
    sources = {path.name: path.read_text() for path in (Path(__file__).parents[1] / "wsi_meta").rglob("*.py")}
    assert [name for name, text in sources.items() if re.search(r"\bjson\.loads?\(", text)] == ["words.py"]


@pytest.mark.parametrize(("names", "told"), [("", ""), ("abcde", "a, b, c, d, e"), ("abcdefg", "a, b, c, d, e and 2 more")])
def test_of_many_names_some_are_told_and_how_many_more_there_are(names: str, told: str) -> None:
    assert some_of(list(names)) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (90, "1 min 30 s"),
        (7262, "2 h 1 min"),
    ],
)
def test_times_in_words(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_no_probability_is_told_as_certain() -> None:
    told = [format_probability(value) for value in (0, 0.0004, 0.0006, 0.5, 0.9994, 0.9996, 1)]
    assert told == ["under 0.001", "under 0.001", "0.001", "0.500", "0.999", "over 0.999", "over 0.999"]
    assert [format_probability(value, 4) for value in (0.00004, 0.9996, 0.99996)] == ["under 0.0001", "0.9996", "over 0.9999"]


def test_no_threshold_is_told_as_0_or_1_that_is_not() -> None:
    told = [format_threshold(value) for value in (2.0**-149, 0.00512, 0.5, 0.946, 0.9966, 0.99999, 1)]
    assert told == ["1.4e-45", "0.0051", "0.50", "0.95", "0.997", "0.99999", "1.00"]
    assert [format_threshold(value, 3) for value in (0.0054, 0.0541, 0.9996, 1)] == ["0.0054", "0.054", "0.9996", "1.000"]
