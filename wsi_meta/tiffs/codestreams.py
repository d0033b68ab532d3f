"""JPEG, JPEG 2000, deflate and LZW as bytes: what they say of themselves, and what shows that they are not whole.

Libraries decode a damaged one to pixels that look like tissue, with a warning at most. Here it is a ValueError.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.tiffs.tags import (
    BITS,
    BLACK_IS_ZERO,
    COMPRESSION,
    HEIGHT,
    LZW,
    PHOTOMETRIC,
    RGB,
    ROWS_PER_STRIP,
    SAMPLES,
    STRIP_LENGTHS,
    STRIP_OFFSETS,
    WIDTH,
    YCBCR,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "check_deflate",
    "check_jpeg",
    "check_jpeg2000",
    "check_lzw",
    "declared_size",
    "decode_jpeg",
    "decode_jpeg2000",
    "decode_lzw",
    "stated_colours",
    "stored_colours",
    "tables_of",
]

FRAMES, SEQUENTIAL = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}, (0xC0, 0xC1)
"""Markers of a JPEG that are followed by its size; those of them whose blocks are coded one after the other, by Huffman."""
TABLES, SCAN, END, CODED = 0xC4, 0xDA, 0xD9, -1
"""Further markers: Huffman tables, the head of a scan, the end; and the number given here to what is coded after that head."""
START, JFIF, ADOBE = b"\xff\xd8", 0xE0, 0xEE
"""Its first bytes, and the markers that may say which colours it has."""
REMARKS = (*range(0xE0, 0xF0), 0xFE)
"""Markers of what a JPEG says of itself, its colours included: none is needed to decode it."""
AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What ends the coded part of a scan: a marker that is no restart, nor the FF 00 that stands for FF."""
ZEROS = bytes(16)
"""A run that is not found in what an encoder made, but for blocks without any change."""
SMALLEST = 8
"""The most by which libjpeg makes a picture smaller while it decodes. All of it is decoded nevertheless."""
STREAM, PART, STREAM_END = b"\xff\x4f\xff\x51", b"\xff\x90", b"\xff\xd9"
"""Of JPEG 2000: its start and the marker of its size, a tile-part, the end."""
PART_HEAD = 14
"""Bytes of the shortest tile-part."""


def decode_jpeg(jpeg: bytes) -> NDArray[np.uint8]:
    """Return the pixels (height, width, 3) of a JPEG, RGB; ValueError where it is damaged."""
    return _decode(jpeg, "RGB")


def check_jpeg(jpeg: bytes) -> None:
    """Find damage as :func:`decode_jpeg` does, without its pixels, in half the time; ValueError.

    A JPEG whose colours are stored in a way that only other libraries know is passed as it is.
    """
    try:
        _decode(jpeg, "GRAY", min_height=1, min_width=1, min_factor=SMALLEST)
    except ValueError as error:
        if "subsampling" not in str(error):
            raise


def declared_size(jpeg: bytes) -> tuple[int, int] | None:
    """Return the (width, height) that a JPEG states, without decoding it; None where it states none before its pixels."""
    for marker, start, end in _segments(jpeg):
        if marker in FRAMES and start + 5 <= len(jpeg):
            height, width = (int.from_bytes(jpeg[place : place + 2], "big") for place in (start + 1, start + 3))
            return width, height
        if marker == SCAN or end > len(jpeg):
            return None
    return None


def stored_colours(jpeg: bytes) -> int | None:
    """Return which colours a JPEG of three components says that it has, by TIFF's numbers; None where it says none, or both.

    It says so by its JFIF or Adobe marker, and by components that are stored coarser, as only those of YCbCr are.
    """
    said = set[int]()
    for marker, start, end in _segments(jpeg) if jpeg.startswith(START) else ():
        content = jpeg[start:end]
        if marker == JFIF and content.startswith(b"JFIF"):
            said.add(YCBCR)
        elif marker == ADOBE and content.startswith(b"Adobe") and len(content) >= 12:
            said.add(YCBCR if content[11] == 1 else RGB)
        elif marker in FRAMES:
            if content[5:6] != b"\3":
                return None
            if len(set(content[7::3])) > 1:
                said.add(YCBCR)
            break
    return said.pop() if len(said) == 1 else None


def stated_colours(jpegs: Iterable[bytes]) -> set[int]:
    """Return which colours the JPEGs of one writer say that they have: those that two of them say.

    One that is damaged says nothing, and does not count. Where no two are alike, the only word that is said counts.
    """
    sound = (jpeg for jpeg in jpegs if jpeg.startswith(START) and all(declared_size(jpeg) or (0,)))
    said = Counter(stored_colours(jpeg) for jpeg in sound)
    alike = {colours for colours, count in said.items() if count > 1}
    words = (alike or set(said)) - {None}
    return {colours for colours in words if colours is not None} if alike or len(words) == 1 else set()


def tables_of(jpeg: bytes) -> bytes:
    """Return the tables of a JPEG that holds no picture, without what else it says; ValueError where it is damaged."""
    tables, at = b"", len(START)
    for marker, start, end in _segments(jpeg):
        tables, at = tables if marker in REMARKS else tables + jpeg[start - 4 : end], end
    if not jpeg.startswith(START) or jpeg[at:] != b"\xff\xd9":
        raise ValueError("shared JPEG tables that are damaged")
    return tables


def decode_jpeg2000(stored: bytes, values: int) -> Any:
    """Decode JPEG 2000 whose header says that it has so many values: before memory is taken for them; ValueError."""
    import imagecodecs

    at = check_jpeg2000(stored) + 8
    right, bottom, left, top = (int.from_bytes(stored[place : place + 4], "big") for place in range(at, at + 16, 4))
    planes = int.from_bytes(stored[at + 32 : at + 34], "big")
    if (right - left) * (bottom - top) * planes != values:
        raise ValueError(f"{right - left} x {bottom - top} px of {planes} colours")
    return imagecodecs.jpeg2k_decode(stored)


def decode_lzw(stored: bytes, most: int) -> Any:
    """Return what a LZW stream holds, at most so many bytes, or one less; an error of imagecodecs' where it is damaged.

    By libtiff: imagecodecs' own decoder believes codes that stand for nothing yet, and reads whatever memory there is.
    """
    import imagecodecs

    try:
        return imagecodecs.tiff_decode(_as_tiff(stored, most)).reshape(-1)
    except imagecodecs.TiffError:
        return imagecodecs.tiff_decode(_as_tiff(stored, most - 1)).reshape(-1)


def check_lzw(stored: bytes, values: int, *, reversed_bits: bool = False) -> None:
    """Find damage in the LZW stream of so many bytes; RuntimeError. It may hold more: the rest is not looked at."""
    import imagecodecs

    imagecodecs.tiff_decode(_as_tiff(bytes(imagecodecs.bitorder_decode(stored)) if reversed_bits else stored, values))


def _as_tiff(stored: bytes, values: int) -> bytes:
    """Return a TIFF of one row of grey values, in one strip of LZW."""
    ends = 8 + 2 + 9 * 12 + 4
    tags = {WIDTH: values, HEIGHT: 1, BITS: 8, COMPRESSION: LZW, PHOTOMETRIC: BLACK_IS_ZERO, STRIP_OFFSETS: ends, SAMPLES: 1}
    tags |= {ROWS_PER_STRIP: 1, STRIP_LENGTHS: len(stored)}
    listed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"".join((b"II*\0", struct.pack("<IH", 8, len(tags)), listed, bytes(4), stored))


def check_deflate(stored: bytes, most: int) -> None:
    """Find damage in a deflate stream of no more than so many bytes by its checksum; ValueError.

    libtiff stops once it has all pixels, before the checksum.
    """
    import imagecodecs

    try:
        imagecodecs.deflate_decode(stored, out=most)  # by libdeflate, faster than zlib
    except imagecodecs.DeflateError as error:
        raise ValueError(f"a deflate stream that is damaged, or too long ({error})") from error


def check_jpeg2000(stored: bytes) -> int:
    """Return where the stream starts; ValueError where its parts are not as long as they say, or its end is missing.

    A decoder takes a stream that breaks off for one of less detail.
    """
    start = stored.find(STREAM)
    if start < 0:
        raise ValueError("no JPEG 2000")
    at = start + 2
    while stored[at : at + 2] != PART:
        length = int.from_bytes(stored[at + 2 : at + 4], "big")
        if stored[at : at + 1] != b"\xff" or length < 2:
            raise ValueError("a JPEG 2000 whose header is damaged")
        at += 2 + length
    while stored[at : at + 2] == PART:
        length = int.from_bytes(stored[at + 6 : at + 10], "big")
        if not length:  # up to the end, after which bytes may fill
            at = max(at, len(stored.rstrip(b"\0\xff")) - len(STREAM_END))
            break
        at += max(length, PART_HEAD)
    if stored[at : at + 2] != STREAM_END:
        raise ValueError("a JPEG 2000 that breaks off, or whose parts are not as long as they say")
    return start


def _decode(jpeg: bytes, colours: str, **smaller: int) -> NDArray[np.uint8]:
    import simplejpeg

    if ZEROS in jpeg:
        _refuse_zeros(jpeg)
    # strict: libjpeg only warns of too many or too few bytes, but the pixels that it then returns are not the slide's
    return np.asarray(simplejpeg.decode_jpeg(jpeg, colours, strict=True, **smaller))


def _refuse_zeros(jpeg: bytes) -> None:
    """Refuse a run of zeros in what is coded, where zeros do not spell blocks without any change; ValueError.

    A hole in a file, a copy that was broken off and a lost sector leave zeros. libjpeg decodes them to pixels, without a
    warning. Progressive JPEGs are not judged: there, zeros may spell a lack of detail.
    """
    firsts, head = dict[int, int](), b""
    for marker, start, end in _segments(jpeg):
        if marker in FRAMES and marker not in SEQUENTIAL:
            return
        if marker == TABLES:
            firsts |= _first_symbols(jpeg[start:end])
        elif marker == SCAN:
            head = jpeg[start:end]
        elif marker == CODED and jpeg.find(ZEROS, start, end) >= 0 and not _is_unchanged(head, firsts):
            raise ValueError("a JPEG with a run of zeros amid its coded pixels")


def _is_unchanged(head: bytes, firsts: Mapping[int, int]) -> bool:
    """Tell whether zeros spell blocks of one colour in a scan, that before them or one a step darker, as in a smooth ramp."""
    tables = [head[at] for at in range(2, 1 + 2 * head[0], 2)] if head else []
    return all(firsts.get(both >> 4) in (0, 1) and firsts.get(0x10 | both & 0x0F) == 0 for both in tables)


def _first_symbols(tables: bytes) -> dict[int, int]:
    """Return what the code of zeros alone stands for in each Huffman table of a segment, by the number of the table."""
    found, at = dict[int, int](), 0
    while at + 17 < len(tables):
        found[tables[at]] = tables[at + 17]
        at += 17 + sum(tables[at + 1 : at + 17])
    return found


def _segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment, and start and end of its content; after the head of a scan what is coded."""
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != END:
        marker = jpeg[at + 1]
        if marker == 0xFF:  # any number of them may fill
            at += 1
            continue
        start, at = at + 4, at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        yield marker, start, at
        if marker == SCAN:
            following = AFTER_SCAN.search(jpeg, at)
            start, at = at, following.start() if following else len(jpeg)
            yield CODED, start, at
