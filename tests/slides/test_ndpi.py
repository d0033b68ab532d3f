"""Damage in NDPI, of which OpenSlide decodes what it can: each part of its JPEGs is looked at first."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import tifffile
from fuzzing.ndpi import PART_PX, write_ndpi
from numpy.typing import NDArray
from slide_files import overwrite, texture

from wsi_meta.readers.openslide_reader import OpenSlideReader
from wsi_meta.readers.reader import UnreadableRegionError
from wsi_meta.slides.slide import open_slide
from wsi_meta.stored_tiles.ndpi_tiles import ndpi_tiles

SIDE = 512


@pytest.fixture
def slide_file(tmp_path: Path) -> Path:
    """A slide of two levels; OpenSlide makes three more."""
    return write_ndpi(tmp_path / "s.ndpi", levels(), mpp=0.486)


def levels() -> list[NDArray[np.uint8]]:
    return [np.ascontiguousarray(texture(SIDE, SIDE)[::step, ::step]) for step in (1, 2)]


def parts_of(path: Path, page: int = 0) -> list[tuple[int, int]]:
    """Return offset and length of the parts of a level."""
    with tifffile.TiffFile(path) as file:
        shown = file.pages[page]
        return list(zip(shown.dataoffsets, shown.databytecounts, strict=True))


def test_damage_that_openslide_passes_over(slide_file: Path) -> None:
    path = slide_file
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
def test_a_level_that_openslide_makes_of_another_one(slide_file: Path, level: int) -> None:
    path = slide_file
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
def test_a_part_without_its_end(slide_file: Path, last: bool) -> None:
    path = slide_file
    offset, length = parts_of(path)[-1 if last else 5]
    overwrite(path, offset + length - 2, b"\n\n")
    row = SIDE // PART_PX - 1 if last else 5
    with open_slide(path) as slide:
        with pytest.raises(UnreadableRegionError, match=f"row {row}, column 0: a part of a JPEG without its end"):
            slide.read_region(0, row * PART_PX, 10, 3)
        slide.read_region(0, (row - 1) * PART_PX, SIDE, PART_PX)


def test_parts_whose_places_the_file_does_not_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_slide(write_ndpi(tmp_path / "s.ndpi", levels(), mpp=0.486, listed=False)) as slide:
        assert slide.read_region(0, 0, SIDE, SIDE).std() > 0
    assert (
        "damaged tiles of levels 0, 1, 2, 3, 4 may show as tissue: it does not say where the parts of its JPEG lie"
        in caplog.text
    )


def test_places_of_parts_beyond_4_gib() -> None:
    """Older files list 32 bits of each; the last part ends where the strip does."""
    base, starts, end = 1000, np.array([700, 2**32 - 100, 2**32 + 90, 2**33 - 50, 2**33 + 10]), 2**33 + 30
    listed = starts % 2**32
    page = SimpleNamespace(
        imagewidth=64,
        imagelength=40,
        tilewidth=64,
        tilelength=8,
        samplesperpixel=3,
        planarconfig=1,
        compression=7,
        photometric=6,
        predictor=1,
        fillorder=1,
        extrasamples=(),
        jpegtables=None,
        jpegheader=b"\xff\xd8",
        dataoffsets=base + listed,
        databytecounts=np.diff(listed, append=end),
    )
    found = ndpi_tiles(SimpleNamespace(pages=[page]), 0, Mock(size=2**34), 1).tiles
    assert np.array_equal(found.offsets[0] - base, starts)
    assert np.array_equal(found.lengths, np.diff(starts, append=end))
