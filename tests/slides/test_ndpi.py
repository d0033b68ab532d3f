"""Damage in NDPI, of which OpenSlide decodes what it can: each part of its JPEGs is looked at first."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from slide_files import overwrite, texture

from wsi_meta.readers.openslide_reader import OpenSlideReader
from wsi_meta.readers.reader import UnreadableRegionError
from wsi_meta.slides.slide import open_slide

SIDE, PART_PX = 512, 8
RESTART = rb"\xff[\xd0-\xd7]"


def write_ndpi(path: Path, *, listed: bool = True) -> Path:
    """Write two levels, each one JPEG whose parts are eight rows; OpenSlide makes three more. It may list where parts lie."""
    content = bytearray(b"II*\0" + bytes(8))
    link = 4
    for level in range(2):
        side = SIDE >> level
        jpeg, places = _jpeg(np.ascontiguousarray(texture(SIDE, SIDE)[:: 2**level, :: 2**level]))
        strip = len(content)
        content += jpeg
        tags: list[tuple[int, str, list[Any]]] = [
            *((256, "I", [side]), (257, "I", [side]), (258, "H", [8, 8, 8]), (259, "H", [7]), (262, "H", [6])),
            *((271, "s", [b"Hamamatsu\0"]), (273, "I", [strip]), (277, "H", [3]), (278, "I", [side]), (279, "I", [len(jpeg)])),
            *((282, "2I", [1_000_000, 48 * 2**level]), (283, "2I", [1_000_000, 48 * 2**level]), (296, "H", [3])),
            *((65420, "I", [1]), (65421, "f", [20 / 2**level]), (65424, "i", [0])),
        ]
        content[link : link + 8], link = _add_page(content, tags + ([(65426, "I", places)] if listed else []))
    path.write_bytes(content)
    return path


def _add_page(content: bytearray, tags: list[tuple[int, str, list[Any]]]) -> tuple[bytes, int]:
    """Add a page as NDPI has it: places of pages take eight bytes. Return its own, and where the next one's stands."""
    kinds = {"s": 2, "H": 3, "I": 4, "2I": 5, "i": 9, "f": 11}
    entries = b""
    for tag, form, values in tags:
        stored = values[0] if form == "s" else struct.pack(f"<{len(values)}{form[-1]}", *values)
        count = len(stored) if form == "s" else 1 if form == "2I" else len(values)
        entries += struct.pack("<HHI", tag, kinds[form], count)
        entries += stored.ljust(4, b"\0") if len(stored) <= 4 else struct.pack("<I", len(content))
        content += stored if len(stored) > 4 else b""
    start = len(content)
    content += struct.pack("<H", len(tags)) + entries + bytes(8 + 4 * len(tags))
    return struct.pack("<Q", start), start + 2 + len(entries)


def _jpeg(image: NDArray[np.uint8]) -> tuple[bytes, list[int]]:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=90, restart_marker_rows=1, subsampling=0)
    jpeg = content.getvalue()
    scan = jpeg.index(b"\xff\xda")
    first = scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")
    return jpeg, [first, *(first + mark.end() for mark in re.finditer(RESTART, jpeg[first:]))]


def parts_of(path: Path, page: int = 0) -> list[tuple[int, int]]:
    """Return offset and length of the parts of a level."""
    with tifffile.TiffFile(path) as file:
        shown = file.pages[page]
        return list(zip(shown.dataoffsets, shown.databytecounts, strict=True))


def test_damage_that_openslide_passes_over(tmp_path: Path) -> None:
    path = write_ndpi(tmp_path / "s.ndpi")
    offset, length = parts_of(path)[20]
    overwrite(path, offset + length // 2, b"\n" * 60)
    lenient = np.empty((PART_PX, SIDE, 3), np.uint8)
    OpenSlideReader(path).read_into(lenient, 0, 0, 20 * PART_PX)
    assert lenient.std() > 0, "it is read, to something else"
    with open_slide(path) as slide:
        assert (slide.vendor, len(slide.level_dimensions)) == ("hamamatsu", 5)
        for top, height in ((20 * PART_PX, 1), (0, SIDE), (21 * PART_PX - 1, 5)):
            with pytest.raises(UnreadableRegionError, match=r"level 0 \(tile at row 20, column 0: Corrupt"):
                slide.read_region(30, top, 10, height)
        slide.read_region(0, 0, SIDE, 20 * PART_PX)
        slide.read_region(0, 21 * PART_PX, SIDE, SIDE - 21 * PART_PX)
        slide.read_region(0, 0, SIDE // 2, SIDE // 2, level=1)


@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_level_that_openslide_makes_of_another_one(tmp_path: Path, level: int) -> None:
    path = write_ndpi(tmp_path / "s.ndpi")
    offset, length = parts_of(path, page=1)[20]
    overwrite(path, offset + length // 2, b"\n" * 60)
    side, shrunk = SIDE >> level, 2 ** (level - 1)
    with open_slide(path) as slide:
        slide.read_region(0, 0, SIDE, SIDE)
        with pytest.raises(UnreadableRegionError, match="row 20, column 0: Corrupt"):
            slide.read_region(0, 20 * PART_PX // shrunk * 2**level, side, 1, level=level)
        for top, bottom in ((0, 20 * PART_PX // shrunk), (21 * PART_PX // shrunk, side)):
            slide.read_region(0, top * 2**level, side, bottom - top, level=level)


@pytest.mark.parametrize("last", [False, True])
def test_a_part_without_its_end(tmp_path: Path, last: bool) -> None:
    path = write_ndpi(tmp_path / "s.ndpi")
    offset, length = parts_of(path)[-1 if last else 5]
    overwrite(path, offset + length - 2, b"\n\n")
    row = SIDE // PART_PX - 1 if last else 5
    with open_slide(path) as slide:
        with pytest.raises(UnreadableRegionError, match=f"row {row}, column 0: a part of a JPEG without its end"):
            slide.read_region(0, row * PART_PX, 10, 3)
        slide.read_region(0, (row - 1) * PART_PX, SIDE, PART_PX)


def test_parts_whose_places_the_file_does_not_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_slide(write_ndpi(tmp_path / "s.ndpi", listed=False)) as slide:
        assert slide.read_region(0, 0, SIDE, SIDE).std() > 0
    assert (
        "damaged tiles of levels 0, 1, 2, 3, 4 may show as tissue: it does not say where the parts of its JPEG lie"
        in caplog.text
    )
