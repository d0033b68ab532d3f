"""Small slides in Hamamatsu's NDPI, written byte by byte."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

__all__ = ["PART_PX", "write_ndpi"]

PART_PX = 8
"""Rows of a part."""
RESTART = rb"\xff[\xd0-\xd7]"
"""What ends a part of a JPEG."""
KINDS = {"s": 2, "H": 3, "I": 4, "2I": 5, "i": 9, "f": 11}
"""TIFF's numbers of types, by how struct names them; two numbers are a fraction."""

Tags = list[tuple[int, str, list[Any]]]


def write_ndpi(path: Path, levels: Sequence[NDArray[Any]], *, mpp: float, listed: bool = True) -> Path:
    """Write levels, each one JPEG whose parts are eight rows; OpenSlide makes coarser ones. It may list where parts lie."""
    content, link = bytearray(b"II*\0" + bytes(8)), 4
    for level, image in enumerate(levels):
        height, width = image.shape[:2]
        (jpeg, places), strip = _jpeg(image), len(content)
        content += jpeg
        per_cm = [round(1e9 / mpp / 2**level), 100_000]
        tags: Tags = [
            *((256, "I", [width]), (257, "I", [height]), (258, "H", [8, 8, 8]), (259, "H", [7]), (262, "H", [6])),
            *((271, "s", [b"Hamamatsu\0"]), (273, "I", [strip]), (277, "H", [3]), (278, "I", [height])),
            *((279, "I", [len(jpeg)]), (282, "2I", per_cm), (283, "2I", per_cm), (296, "H", [3])),
            *((65420, "I", [1]), (65421, "f", [20 / 2**level]), (65424, "i", [0])),
        ]
        start, following = _add_page(content, tags + ([(65426, "I", places)] if listed else []))
        content[link : link + 8], link = struct.pack("<Q", start), following
    path.write_bytes(content)
    return path


def _add_page(content: bytearray, tags: Tags) -> tuple[int, int]:
    """Add a page as NDPI has it: places of pages take eight bytes. Return its own, and where the next one's stands."""
    entries = b""
    for tag, form, values in tags:
        stored = values[0] if form == "s" else struct.pack(f"<{len(values)}{form[-1]}", *values)
        count = len(stored) if form == "s" else 1 if form == "2I" else len(values)
        entries += struct.pack("<HHI", tag, KINDS[form], count)
        entries += stored.ljust(4, b"\0") if len(stored) <= 4 else struct.pack("<I", len(content))
        content += stored if len(stored) > 4 else b""
    start = len(content)
    content += struct.pack("<H", len(tags)) + entries + bytes(8 + 4 * len(tags))
    return start, start + 2 + len(entries)


def _jpeg(image: NDArray[Any]) -> tuple[bytes, list[int]]:
    """Return a JPEG and where in it each part begins."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=90, restart_marker_rows=1, subsampling=0)
    jpeg = content.getvalue()
    scan = jpeg.index(b"\xff\xda")
    first = scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")
    return jpeg, [first, *(first + mark.end() for mark in re.finditer(RESTART, jpeg[first:]))]
