"""Which pages of a TIFF are OpenSlide's levels, and that pages beside them do not keep damage in these from being seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from openslide import OpenSlide
from slide_files import overwrite, set_tag, set_tile_tag, stored_tiles, texture

from wsi_meta.errors import SlideReadError
from wsi_meta.readers.reader import UnreadableRegionError
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiffs.level_pages import level_pages
from wsi_meta.tiffs.tags import RGB

OPTIONS: dict[str, Any] = {"resolution": (1e4 / 0.972, 1e4 / 0.972), "resolutionunit": "CENTIMETER", "metadata": None}
APERIO = "Aperio 1\r\n512x512|MPP = 0.972"
RESOLUTION, HURON = "Resolution = 0.972 um", [(271, "s", 0, "Huron Digital Pathology", True)]
ARGOS, ARGOS_PLANES = (
    [(65000, "s", 0, f"<Argos.Scan.Metadata><MinZ>{first}</MinZ><MaxZ>1</MaxZ></Argos.Scan.Metadata>", True)]
    for first in (1, -1)
)
PLAIN_PAGES = [(512, 0, True), (256, 1, True), (256, 1, True), (256, 0, True), (256, 1, False), (512, 1, True), (128, 3, True)]
"""Side of each page, what it says of its kind (1: a coarser level, 2: one of several), whether it is in tiles."""
TILED_PAGES = [(512, 0, True), (256, 1, False), (256, 0, True), (256, 0, True), (128, 1, True)]


def write_pages(
    path: Path, pages: list[tuple[int, int, bool]], description: str = "", compression: str = "zlib", tags: Any = None
) -> Path:
    with tifffile.TiffWriter(path) as file:
        for number, (side, kind, tiled) in enumerate(pages):
            image = np.ascontiguousarray(texture(512, 512)[:: 512 // side, :: 512 // side])
            image[:2, :2] = number
            tile = (128, 128) if tiled else None
            form: dict[str, Any] = {"photometric": "rgb", "compression": compression, "tile": tile, "subfiletype": kind}
            file.write(image, description=description, extratags=tags, **form, **OPTIONS)
    return path


@pytest.mark.parametrize(
    ("pages", "description", "tags", "levels"),
    [
        (PLAIN_PAGES, "", None, [0, 5, 1, 2, 6]),
        ([(256, 0, True), (512, 1, True), (256, 1, True)], "", None, [1, 0, 2]),
        (TILED_PAGES, APERIO, None, [0, 2, 3, 4]),
        (TILED_PAGES, RESOLUTION, HURON, [0, 2, 3, 4]),
        ([(512, 0, True), (256, 0, True), (128, 0, True), (64, 0, False)], "", ARGOS, [0, 1, 2]),
    ],
    ids=["plain", "coarse first", "aperio", "huron", "argos"],
)
def test_the_pages_are_those_that_openslide_reads(
    pages: list[tuple[int, int, bool]], description: str, tags: Any, levels: list[int], tmp_path: Path
) -> None:
    path = write_pages(tmp_path / "s.tif", pages, description, tags=tags)
    with OpenSlide(path) as slide:
        sizes, vendor = slide.level_dimensions, slide.properties["openslide.vendor"]
        shown = [np.asarray(slide.read_region((0, 0), level, (1, 1)))[0, 0, 0] for level in range(len(sizes))]
    assert level_pages(path, vendor, sizes) == levels
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


@pytest.mark.parametrize("compression", ["zlib", "jpeg"])
@pytest.mark.parametrize("tags", [HURON, ARGOS], ids=["huron", "argos"])
def test_damage_of_further_formats_is_seen(tmp_path: Path, compression: str, tags: Any) -> None:
    path = write_pages(tmp_path / "s.tif", [(512, 0, True), (256, 0, True)], RESOLUTION, compression, tags)
    offset, length = stored_tiles(path, 1)[0]
    overwrite(path, offset + length // 2, bytes(32))
    with open_slide(path, reader="openslide", mpp=0.972) as slide:
        assert slide.read_region(0, 0, 512, 512).std() > 1
        with pytest.raises(UnreadableRegionError):
            slide.read_region(0, 0, 20, 20, level=1)


def test_of_several_focal_planes_the_damage_of_none_is_looked_for_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_pages(tmp_path / "s.tif", [(512, 0, True), (256, 0, True)] * 3, tags=ARGOS_PLANES)
    with open_slide(path, mpp=0.972) as slide:
        assert slide.read_region(0, 0, 1, 1)[0, 0, 0] == 2, "the middle one is read"
    assert "levels 0, 1 may show as tissue: its page is not known; convert the slide" in caplog.text


def test_a_level_of_huron_in_other_colours_is_refused(tmp_path: Path) -> None:
    """It need not say that it is coarser."""
    path = write_pages(tmp_path / "s.tif", [(512, 0, True), (256, 0, True)], RESOLUTION, "jpeg", HURON)
    set_tag(path, "PhotometricInterpretation", RGB, page=1)
    with pytest.raises(SlideReadError, match="says that its colours are RGB, but its JPEG tiles say YCbCr"):
        open_slide(path)


def test_a_tile_that_huron_lost_is_unreadable(tmp_path: Path) -> None:
    """OpenSlide draws coarser ones anew from level 0, so none seems to show what it shows."""
    path = write_pages(tmp_path / "s.tif", [(512, 0, True), (256, 0, True)], RESOLUTION, "jpeg", HURON)
    for tag in ("TileOffsets", "TileByteCounts"):
        set_tile_tag(path, tag, 5, 0)
    with open_slide(path) as slide:
        assert slide.read_region(300, 300, 20, 20).std() > 1
        with pytest.raises(UnreadableRegionError, match="row 1, column 1 was lost"):
            slide.read_region(150, 150, 20, 20)


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


def test_damage_is_seen_where_pixels_have_transparency(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    pixels = np.dstack([texture(512, 512), np.full((512, 512), 255, np.uint8)])
    form: dict[str, Any] = {"photometric": "rgb", "extrasamples": ["unassalpha"], "compression": "zlib", "tile": (128, 128)}
    tifffile.imwrite(path, pixels, **form, **OPTIONS)
    offset, length = stored_tiles(path)[0]
    overwrite(path, offset + length - 4, bytes(4))
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(200, 200, 20, 20), pixels[200:220, 200:220, :3])
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
