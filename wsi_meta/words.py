"""Errors, names, counts, times and probabilities in words, that a terminal can show and that promise no more than is known."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from wsi_meta.errors import WsiMetaError

__all__ = [
    "counted",
    "duration",
    "first_line",
    "format_probability",
    "format_score",
    "format_threshold",
    "from_json",
    "is_text",
    "one_line",
    "out_of_memory",
    "printable",
    "some_of",
]

_ESCAPED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Unicode categories of what a terminal may obey or cannot show: controls, direction marks, undecoded bytes, line ends."""


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number and what it is of: ``1 lesion``, ``1,200 lesions``; `plural` where that does not end in s alone."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def printable(text: str) -> str:
    r"""Return a text as one line that any terminal, table or picture can show.

    A file's name may hold line ends, terminal escapes and bytes that are no text: each becomes what Python writes for it, such
    as ``\n``, ``\x1b`` or, for the byte E9, ``\xe9``.
    """
    if text.isprintable():
        return text
    return "".join(_escape(char) if unicodedata.category(char) in _ESCAPED else char for char in text)


def is_text(text: str) -> bool:
    """Tell whether a text is one: a file's name with bytes that are none is not, as Python keeps it."""
    return not any(0xD800 <= ord(char) <= 0xDFFF for char in text)


def one_line(error: BaseException) -> str:
    """Return an error's message as one printable line.

    The errors of this package are one line already: a line end in one belongs to a name, and is escaped. The lines of other
    errors are joined.
    """
    return printable(str(error) if isinstance(error, WsiMetaError) else " ".join(str(error).split()))


def from_json(text: str | bytes) -> Any:
    """Return what a text in JSON says; ValueError where it says nothing, also because it is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def out_of_memory(error: BaseException) -> str | None:
    """Return in words that memory, or a GPU's, did not suffice, and what to do; None for another error."""
    if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":  # the second is torch's, on a GPU
        return None
    found = one_line(error)
    return f"out of memory{f' ({found[:400]})' if found else ''}; close other programs, or lower --workers or --batch-size"


def first_line(error: BaseException) -> str:
    """Return what another library's error says, as far as it fits into one line."""
    return printable(" ".join(str(error).split()[:40])) or type(error).__name__


def some_of(names: Sequence[str]) -> str:
    """Return the first five of some names in words, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def duration(seconds: float) -> str:
    """Return a time in words: to the minute from an hour on, to a tenth of a second below ten."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    counts = [(hours, "h"), (minutes, "min")] if hours else [(minutes, "min"), (rest, "s")]
    return " ".join(f"{count} {unit}" for count, unit in counts if count or (unit == "min" and hours))


def format_probability(value: float, digits: int = 3) -> str:
    """Return a probability, or a slide's score, with so many decimals; none is rounded to 0 or 1."""
    least = 10.0**-digits
    told, none, certain = (f"{number:.{digits}f}" for number in (value, 0, 1))
    return {none: f"under {least:.{digits}f}", certain: f"over {1 - least:.{digits}f}"}.get(told, told)


def format_score(score: float, digits: int = 3, *, complete: bool) -> str:
    """Return a slide's score in words. One of what was read of it bounds nothing: missing cells may raise or lower it."""
    return format_probability(score, digits) + ("" if complete else ", incomplete")


def format_threshold(value: float, digits: int = 2) -> str:
    """Return a threshold, or a bound, with so many decimals: more where they would make it 1, two figures of a small one."""
    if value < 10.0 ** (1 - digits):
        return f"{value:.2g}"
    while value < 1 and float(f"{value:.{digits}f}") == 1:
        digits += 1
    return f"{value:.{digits}f}"


def _escape(char: str) -> str:
    undecoded = 0xDC80 <= ord(char) <= 0xDCFF  # a byte that is no text, as Python keeps it in a name
    return f"\\x{ord(char) - 0xDC00:02x}" if undecoded else char.encode("unicode_escape").decode()
