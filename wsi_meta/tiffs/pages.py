"""The pages of a TIFF and their tags, as they are stored. What does not make sense ends the list of pages.

What cannot be read does not: it is an OSError. A list without the pages behind it would be that of another slide.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_PAGES", "Page", "Tag", "few_of", "number_of", "pages_at", "pages_in"]

MAX_PAGES = 1000
"""Pages that are looked at."""
MAX_TAGS = 4096
"""A page with more tags is no page, to libtiff neither."""
BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 11: 4, 13: 4, 16: 8, 17: 8, 18: 8, 5: 8, 10: 8, 12: 8}
"""Size of one value of each type."""
MAX_FEW = 64
"""Values that are read of a tag that has one for each sample of a pixel."""
NUMBERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8", 6: "i1", 8: "i2", 9: "i4", 17: "i8"}
"""Types of whole numbers, in numpy's notation. libtiff takes those with a sign wherever it takes the others."""


@dataclass(frozen=True)
class Tag:
    """What a page says under one number."""

    count: int
    form: str
    """Type of its values in numpy's notation; empty where they are no whole numbers."""
    inline: bytes
    """The values, where they stand in the page itself."""
    start: int
    end: int
    """Where in the file the values stand; 0 where they stand in the page itself."""

    def values(self, file: BinaryIO) -> NDArray[np.uint64]:
        """Return the values, one below 0 as 2^64 less; fewer than `count` where the file ends before."""
        if not self.form:
            return np.zeros(0, np.uint64)
        length, stored = self.count * np.dtype(self.form).itemsize, self.inline
        if self.end:
            file.seek(self.start)
            stored = file.read(length)
        whole = len(stored[:length]) // np.dtype(self.form).itemsize
        return np.frombuffer(stored, self.form, whole).astype(np.uint64)


Page = dict[int, Tag]


def pages_at(file: BinaryIO, places: list[int]) -> Iterator[Page]:
    """Yield the pages at some places of a TIFF, with those that follow each."""
    file.seek(0)
    order, big = _kind(file.read(16)) or ("<", False)
    for place in places[:MAX_PAGES]:
        yield from _chain(file, place, order, big=big)


def number_of(page: Page, code: int) -> int | None:
    """Return a tag's value, where it is one whole number of 0 or more that stands in the page itself."""
    tag = page.get(code)
    if tag is None or tag.count != 1 or not tag.form or tag.end:
        return None
    value = int(np.frombuffer(tag.inline, tag.form, 1)[0])
    return value if value >= 0 else None


def few_of(page: Page, code: int, file: BinaryIO) -> list[int]:
    """Return the first values of a tag, a few; empty where they are no whole numbers."""
    tag = page.get(code)
    return [] if tag is None else replace(tag, count=min(tag.count, MAX_FEW)).values(file).tolist()


def pages_in(file: BinaryIO) -> Iterator[Page]:
    """Yield the tags of each page; end early where the file is no TIFF, or stops making sense."""
    head = file.read(16)
    if (kind := _kind(head)) is None:
        return
    order, big = kind
    at = struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0]
    yield from _chain(file, at, order, big=big)


def _kind(head: bytes) -> tuple[str, bool] | None:
    """Return the byte order of a TIFF, and whether it is a BigTIFF; None where it is none."""
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return None
    version = struct.unpack(order + "H", head[2:4])[0]
    return (order, version == 43) if version in (42, 43) else None


def _chain(file: BinaryIO, at: int, order: str, *, big: bool) -> Iterator[Page]:
    """Yield the page at a place and those that follow it."""
    seen: set[int] = set()
    while at and at not in seen and len(seen) < MAX_PAGES:
        seen.add(at)
        try:
            page, at = _read_page(file, at, order, big=big)
        except (struct.error, OverflowError, ValueError):
            return
        except OSError as error:
            if error.errno == errno.EINVAL:  # no file is that long
                return
            raise  # the disk, or the network, does not give it: what follows is not known
        yield page


def _read_page(file: BinaryIO, at: int, order: str, *, big: bool) -> tuple[Page, int]:
    """Return a page's tags and the place of the next page; struct.error or ValueError when there is none."""
    counted, entry, wide = ("Q", 20, "Q") if big else ("H", 12, "I")
    file.seek(at)
    count = struct.unpack(order + counted, file.read(struct.calcsize(counted)))[0]
    if not 0 < count <= MAX_TAGS:
        raise ValueError("no page")
    stored = file.read(count * entry)
    following = struct.unpack(order + wide, file.read(struct.calcsize(wide)))[0]
    page: Page = {}
    for place in range(0, count * entry, entry):
        page.setdefault(*_read_tag(stored[place : place + entry], order, wide))  # of two the first counts, as for libtiff
    return page, following


def _read_tag(entry: bytes, order: str, wide: str) -> tuple[int, Tag]:
    code, kind = struct.unpack(order + "HH", entry[:4])
    inline = struct.calcsize(wide)
    count, start = (struct.unpack(order + wide, entry[at : at + inline])[0] for at in (4, 4 + inline))
    form = order + NUMBERS[kind] if kind in NUMBERS else ""
    length = count * BYTES.get(kind, 1)
    if length > inline:
        return code, Tag(count, form, b"", start, start + length)
    return code, Tag(count, form, entry[4 + inline :], 0, 0)
