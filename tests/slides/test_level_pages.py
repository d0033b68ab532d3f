"""Which pages of a TIFF are OpenSlide's levels, and that pages beside them do not keep damage in these from being seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from openslide import OpenSlide
from slide_files import overwrite, set_tag, set_tile_tag, stored_tiles, texture

from wsi_meta.readers.reader import UnreadableRegionError
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiffs.level_pages import level_pages

OPTIONS: dict[str, Any] = {"resolution": (1e4 / 0.972, 1e4 / 0.972), "resolutionunit": "CENTIMETER", "metadata": None}
APERIO = "Aperio 1\r\n512x512|MPP = 0.972"
PLAIN_PAGES = [(512, 0, True), (256, 1, True), (256, 1, True), (256, 0, True), (256, 1, False), (512, 1, True), (128, 3, True)]
"""Side of each page, what it says of its kind (1: a coarser level, 2: one of several), whether it is in tiles."""


def write_pages(path: Path, pages: list[tuple[int, int, bool]], description: str = "", compression: str = "zlib") -> Path:
    with tifffile.TiffWriter(path) as file:
        for number, (side, kind, tiled) in enumerate(pages):
            image = np.ascontiguousarray(texture(512, 512)[:: 512 // side, :: 512 // side])
            image[:2, :2] = number
            tile = (128, 128) if tiled else None
            form: dict[str, Any] = {"photometric": "rgb", "compression": compression, "tile": tile, "subfiletype": kind}
            file.write(image, description=description, **form, **OPTIONS)
    return path


@pytest.mark.parametrize(
    ("pages", "description", "levels"),
    [
        (PLAIN_PAGES, "", [0, 5, 1, 2, 6]),
        ([(256, 0, True), (512, 1, True), (256, 1, True)], "", [1, 0, 2]),
        ([(512, 0, True), (256, 1, False), (256, 0, True), (256, 0, True), (128, 1, True)], APERIO, [0, 2, 3, 4]),
    ],
    ids=["plain", "coarse first", "aperio"],
)
def test_the_pages_are_those_that_openslide_reads(
    pages: list[tuple[int, int, bool]], description: str, levels: list[int], tmp_path: Path
) -> None:
    path = write_pages(tmp_path / "s.tif", pages, description, "jpeg" if description else "zlib")
    with OpenSlide(path) as slide:
        sizes, vendor = slide.level_dimensions, slide.properties["openslide.vendor"]
        shown = [np.asarray(slide.read_region((0, 0), level, (1, 1)))[0, 0, 0] for level in range(len(sizes))]
    assert level_pages(path, vendor, sizes) == levels
    if not description:
        assert shown == levels, "each page holds its number"
    assert level_pages(path, vendor, [(500, 512), *sizes[1:]]) == [None, *levels[1:]]
    assert level_pages(path, vendor, sizes[1:]) == [None] * (len(levels) - 1)
    assert level_pages(path, "hamamatsu", sizes) == [None] * len(levels)


@pytest.mark.parametrize("page", [0, 1, 2, 5, 6])
def test_damage_is_seen_beside_pages_of_the_same_size(page: int, tmp_path: Path) -> None:
    """A twin of a level, a label of its size, and a mask: none of them keeps any level from being looked at."""
    path = write_pages(tmp_path / "s.tif", PLAIN_PAGES)
    level, number = [0, 5, 1, 2, 6].index(page), len(stored_tiles(path, page)) - 1
    offset, length = stored_tiles(path, page)[number]
    overwrite(path, offset + length - 4, bytes(4))  # the checksum
    with open_slide(path) as slide:
        assert slide.reader == "openslide"
        for other, (width, height) in enumerate(slide.level_dimensions):
            if level == other:
                with pytest.raises(UnreadableRegionError, match="a deflate stream that is damaged"):
                    slide.read_region(0, 0, width, height, level=other)
            else:
                assert slide.read_region(0, 0, width, height, level=other).std() > 1


def test_a_label_of_a_levels_size_does_not_make_lost_tiles_glass(tmp_path: Path) -> None:
    path = write_pages(tmp_path / "s.tif", [(512, 0, True), (256, 1, True), (256, 0, True)])
    for tag in ("TileOffsets", "TileByteCounts"):
        set_tile_tag(path, tag, 3, 0, page=1)
    with open_slide(path) as slide, pytest.raises(UnreadableRegionError, match="row 1, column 1 was lost"):
        slide.read_region(300, 300, 20, 20, level=1)


def test_a_level_that_cannot_be_looked_at_is_told_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_pages(tmp_path / "s.tif", [(512, 0, True), (256, 1, True)])
    for side in ("ImageWidth", "ImageLength"):
        set_tag(path, side, 128, page=1)
    for page in (0, 1):
        offset, length = stored_tiles(path, page)[0]
        overwrite(path, offset + length - 4, bytes(4))
    with open_slide(path) as slide:
        assert "level 1 may show as tissue: 4 tiles; expected 1; convert the slide" in caplog.text
        assert caplog.text.count("may show as tissue") == 1
        with pytest.raises(UnreadableRegionError, match="a deflate stream that is damaged"):
            slide.read_region(0, 0, 20, 20)


def test_zstandard_that_gives_more_than_a_tile_is_damaged(tmp_path: Path) -> None:
    import imagecodecs

    path = write_pages(tmp_path / "s.tif", [(512, 0, True)], compression="zstd")
    stored, at = imagecodecs.zstd_encode(bytes(128 * 128 * 3 + 1)), path.stat().st_size
    assert isinstance(stored, bytes)
    overwrite(path, at, stored)
    set_tile_tag(path, "TileOffsets", 0, at)
    set_tile_tag(path, "TileByteCounts", 0, len(stored))
    with open_slide(path) as slide:
        assert slide.read_region(200, 200, 20, 20).std() > 1
        with pytest.raises(UnreadableRegionError, match="49,153 values of type uint8; expected 49,152"):
            slide.read_region(0, 0, 20, 20)


def test_twins_are_read_directly_each_by_its_own_page(tmp_path: Path) -> None:
    path = write_pages(tmp_path / "s.tif", [(512, 0, True), (256, 1, True), (256, 1, True)], compression="jpeg")
    with open_slide(path) as slide, open_slide(path, reader="openslide") as judge:
        assert slide.reader == "direct"
        for level in range(3):
            ours, theirs = (reader.read_region(0, 0, 256, 256, level=level).astype(int) for reader in (slide, judge))
            assert np.abs(ours - theirs).max() <= 2
