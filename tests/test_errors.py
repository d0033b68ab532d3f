"""How errors and names are shown."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_meta.errors import DataError, first_line, one_line, printable, some_of


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


@pytest.mark.parametrize(("names", "told"), [("", ""), ("abcde", "a, b, c, d, e"), ("abcdefg", "a, b, c, d, e and 2 more")])
def test_of_many_names_some_are_told_and_how_many_more_there_are(names: str, told: str) -> None:
    assert some_of(list(names)) == told
