"""DICOM slides: tiles that a file left out or that are damaged, and files of a series whatever their names."""

from __future__ import annotations

import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from fuzzing.dicom import Writer, write_dicom
from slide_files import overwrite, texture

from wsi_meta.cohorts.inputs import find_slides
from wsi_meta.dicom.frames import dicom_grids
from wsi_meta.errors import SlideReadError
from wsi_meta.files.fingerprints import fingerprint_of
from wsi_meta.files.same_file import SameFile
from wsi_meta.files.slide_file import files_of_slide
from wsi_meta.readers.openslide_reader import OpenSlideReader
from wsi_meta.readers.reader import UnreadableRegionError
from wsi_meta.slides.slide import open_slide

SIDE, TILE_PX = 256, 64
LOST, GLASS = (1, 2), (3, 3)
"""Row and column of tiles of level 0 that are left out."""


def write_two_levels(folder: Path, *, names: tuple[str, str] = ("a.dcm", "b.dcm"), coarse_too: bool = False) -> Path:
    """Write a sparse slide: level 1 shows white where the glass lies, or left it out as well."""
    image = texture(SIDE, SIDE)
    image[GLASS[0] * TILE_PX :, GLASS[1] * TILE_PX :] = 250
    coarse = np.ascontiguousarray(image[::2, ::2])
    folder.mkdir()
    write_dicom(folder / names[0], image, mpp=0.486, tile_px=TILE_PX, left_out=[LOST, GLASS])
    write_dicom(folder / names[1], coarse, mpp=0.972, tile_px=TILE_PX // 2, left_out=[LOST, GLASS] if coarse_too else ())
    return folder / names[0]


def test_a_tile_that_another_level_shows_was_lost(tmp_path: Path) -> None:
    with open_slide(write_two_levels(tmp_path / "s")) as slide:
        assert slide.vendor == "dicom"
        with pytest.raises(UnreadableRegionError, match="the tile at row 1, column 2 was lost: other levels hold"):
            slide.read_region(190, 120, 20, 20)
        assert (slide.read_region(200, 200, 56, 56) == 255).all(), "glass, as the other level shows"
        assert slide.read_region(0, 0, 128, 128).std() > 1
        assert slide.read_region(0, 0, SIDE, SIDE, level=1).std() > 1, "level 1 has all of its tiles"


def test_a_slide_is_the_same_whichever_of_its_files_is_named(tmp_path: Path) -> None:
    path = write_two_levels(tmp_path / "s")
    with open_slide(path) as slide, open_slide(path.with_name("b.dcm")) as other:
        assert slide.fingerprint() == other.fingerprint()
        quickhash = slide.properties["openslide.quickhash-1"]
        for file in (path, path.with_name("b.dcm")):
            before = fingerprint_of(SameFile.at(file), slide.level_dimensions, quickhash)
            assert slide.has_fingerprint(before), "as it was when this file was named"
            assert other.has_fingerprint(before)
        assert slide.fingerprint() == fingerprint_of(SameFile.at(path), slide.level_dimensions, quickhash)
        assert not slide.has_fingerprint(fingerprint_of(SameFile.at(path), slide.level_dimensions, quickhash[1:]))


def test_a_tile_that_every_level_left_out_is_glass(tmp_path: Path) -> None:
    with open_slide(write_two_levels(tmp_path / "s", coarse_too=True)) as slide:
        assert (slide.read_region(128, 64, TILE_PX, TILE_PX) == 255).all()


def test_which_tiles_a_file_holds(tmp_path: Path) -> None:
    path = write_two_levels(tmp_path / "s")
    other = path.with_name("b.dcm")
    found = dicom_grids([path, other])
    missing = [tuple(place) for place in np.argwhere(~found[SIDE, SIDE].stored).tolist()]
    assert missing == [LOST, GLASS]
    assert found[SIDE // 2, SIDE // 2].stored.all()
    moved = path.read_bytes().replace(b"\x48\0\x1e\x02SL\4\0\1", b"\x48\0\x1e\x02SL\4\0\2")
    other.write_bytes(moved)
    assert (SIDE, SIDE) not in dicom_grids([other]), "not side by side from the corner"
    assert dicom_grids([path, other]).keys() == {(SIDE, SIDE)}


def test_a_side_that_no_file_of_its_size_holds_takes_no_memory(tmp_path: Path) -> None:
    write_dicom(path := tmp_path / "s.dcm", texture(SIDE, SIDE), mpp=0.486, tile_px=TILE_PX)
    width = b"\x48\0\x06\0UL\4\0"
    stored = path.read_bytes()
    assert stored.count(width + SIDE.to_bytes(4, "little")) == 1
    path.write_bytes(stored.replace(width + SIDE.to_bytes(4, "little"), width + b"\xff" * 4))
    tracemalloc.start()
    assert dicom_grids([path]) == {}
    with open_slide(path) as slide, pytest.raises(SlideReadError, match="4294967295 x 256 px of"):
        slide.check_resolution(0.972)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize("names", [("a.dcm", "b.dcm"), ("a.dcm", "b"), ("a", "b")])
def test_files_of_a_series_are_checked_whatever_their_names(tmp_path: Path, names: tuple[str, str]) -> None:
    path = write_two_levels(tmp_path / "s", names=names)
    other = path.with_name(names[1])
    (tmp_path / "s" / "notes.txt").write_text("no slide")
    assert files_of_slide(path) == [path, other]
    other.write_bytes(other.read_bytes().replace(b"CS\x0c\0YBR_FULL_422", b"CS\4\0RGB "))
    with pytest.raises(SlideReadError, match=rf"s/{re.escape(names[1])}: says that its colours are RGB, but"):
        open_slide(path)


def test_a_list_of_places_that_is_off_by_a_tile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.dcm"
    parts = write_dicom(path, texture(128, 128), mpp=0.972, listed=True)[-5:]
    stored, places = path.read_bytes(), np.array([part.start - parts[1].start for part in parts[1:]], "<u4")
    open_slide(path)
    end = parts[-1].value + parts[-1].length - parts[1].start
    for wrong in ([*places[1:], end], [0, *(places[1:] + 2)]):
        path.write_bytes(stored.replace(places.tobytes(), np.array(wrong, "<u4").tobytes()))
        with pytest.raises(SlideReadError, match=r"s\.dcm: its list of where each of its 4 tiles lies is damaged"):
            open_slide(path)


def add_icon(writer: Writer) -> None:
    """Write a small picture of the slide, which has pixels of its own: a JPEG in RGB."""
    writer.begin((0x88, 0x200))
    writer.add((0x28, 4), "CS", "RGB")
    jpeg = imagecodecs.jpeg8_encode(texture(16, 16), colorspace="RGB", outcolorspace="RGB")
    writer.frames([bytes(jpeg)], listed=True)
    writer.end()


def add_raw_icon(writer: Writer) -> None:
    writer.begin((0x88, 0x200))
    writer.add((0x7FE0, 0x10), "OB", bytes(300))
    writer.end()


def add_notes(writer: Writer) -> None:
    """Write what a scanner's maker keeps for itself: longer than all that is read of a file at once."""
    writer.add((0x49, 0x1001), "OB", bytes(300_000))


@pytest.mark.parametrize("before", [None, add_icon, add_raw_icon, add_notes])
@pytest.mark.parametrize("organization", ["TILED_SPARSE", ""])
def test_a_lost_tile_is_told_whatever_stands_before_the_pixels(
    tmp_path: Path, before: Callable[[Writer], None] | None, organization: str
) -> None:
    image = texture(SIDE, SIDE)
    more: dict[str, Any] = {"before": before}
    write_dicom(tmp_path / "a.dcm", image, mpp=0.486, left_out=[LOST], organization=organization, **more)
    write_dicom(tmp_path / "b.dcm", np.ascontiguousarray(image[::2, ::2]), mpp=0.972, tile_px=32, **more)
    with open_slide(tmp_path / "a.dcm") as slide:
        assert slide.read_region(0, 0, 64, 64).std() > 1
        with pytest.raises(UnreadableRegionError, match="the tile at row 1, column 2 was lost"):
            slide.read_region(190, 120, 20, 20)


def test_a_thumbnail_of_a_levels_size_is_no_level(tmp_path: Path) -> None:
    """Nothing reads it: neither its tiles nor its colours count."""
    image = texture(SIDE, SIDE)
    coarse = np.ascontiguousarray(image[::2, ::2])
    write_dicom(tmp_path / "a.dcm", image, mpp=0.486)
    write_dicom(tmp_path / "b.dcm", coarse, mpp=0.972, tile_px=32, left_out=[LOST])
    write_dicom(tmp_path / "c.dcm", coarse, mpp=0.972, tile_px=128, kind="THUMBNAIL")
    thumbnail = tmp_path / "c.dcm"
    thumbnail.write_bytes(thumbnail.read_bytes().replace(b"CS\x0c\0YBR_FULL_422", b"CS\4\0RGB "))
    with open_slide(tmp_path / "a.dcm") as slide:
        assert slide.level_dimensions == ((SIDE, SIDE), (SIDE // 2, SIDE // 2))
        with pytest.raises(UnreadableRegionError, match="the tile at row 1, column 2 was lost"):
            slide.read_region(140, 70, 20, 20, level=1)


def test_what_lies_beside_a_series_is_none_of_it(tmp_path: Path) -> None:
    """Folders, pipes, links to nothing, and a TIFF that is a DICOM file as well, which OpenSlide reads as a TIFF."""
    path = write_two_levels(tmp_path / "s")
    os.mkfifo(path.with_name("pipe"))
    path.with_name("link").symlink_to("nothing")
    path.with_name("folder").mkdir()
    both = path.with_name("c.tif")
    both.write_bytes(b"II*\0" + path.read_bytes()[4:])
    assert files_of_slide(path) == [path, path.with_name("b.dcm")]
    assert files_of_slide(both) == [both]
    with pytest.raises(SlideReadError, match=r"a\.dcm: beside it lies pipe, a pipe or device, from which OpenSlide would"):
        open_slide(path)
    path.with_name("pipe").unlink()
    open_slide(path).close()


def test_files_of_a_series_without_an_ending_are_one_slide(tmp_path: Path) -> None:
    path = write_two_levels(tmp_path / "s", names=("a", "b"))
    (found,) = find_slides([path, path.with_name("b")])
    assert (found.path, found.told) == (path, "2 DICOM files of one series are one slide")


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("left_out", [(), [(0, 0)]])
def test_damage_in_a_tile_that_openslide_passes_over(tmp_path: Path, listed: bool, left_out: list[tuple[int, int]]) -> None:
    """Bytes that are others amid a tile: libjpeg only warns. The finer level lies in the second file."""
    image = texture(SIDE, SIDE)
    write_dicom(tmp_path / "a.dcm", np.ascontiguousarray(image[::2, ::2]), mpp=0.972, tile_px=32, listed=listed)
    path = tmp_path / "b.dcm"
    tile = write_dicom(path, image, mpp=0.486, listed=listed, left_out=left_out)[-11]
    overwrite(path, tile.value + tile.length // 2, b"\n" * 60)
    lenient = np.empty((TILE_PX, TILE_PX, 3), np.uint8)
    OpenSlideReader(path).read_into(lenient, 0, TILE_PX, TILE_PX)
    assert lenient.std() > 0, "it is read, to something else"
    with open_slide(tmp_path / "a.dcm") as slide:
        with pytest.raises(UnreadableRegionError, match=r"level 0 \(tile at row 1, column 1: Corrupt"):
            slide.read_region(TILE_PX, TILE_PX, 10, 10)
        slide.read_region(2 * TILE_PX, 0, 2 * TILE_PX, SIDE)
        slide.read_region(0, 0, SIDE // 2, SIDE // 2, level=1)


def test_a_tile_whose_head_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "s.dcm"
    tile = write_dicom(path, texture(SIDE, SIDE), mpp=0.972, listed=True)[-2]
    overwrite(path, tile.value - 4, (tile.length // 4 * 2).to_bytes(4, "little"))
    with open_slide(path) as slide, pytest.raises(UnreadableRegionError, match="row 3, column 2: a tile whose own head"):
        slide.read_region(SIDE - TILE_PX - 1, SIDE - 1, 1, 1)


def test_tiles_that_cannot_be_looked_at_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """More frames than tiles, as a file of two focal planes has."""
    path = tmp_path / "s.dcm"
    write_dicom(path, texture(SIDE, SIDE), mpp=0.972, listed=True)
    height = b"\x48\0\7\0UL\4\0"
    stored = path.read_bytes().replace(height + SIDE.to_bytes(4, "little"), height + (SIDE // 2).to_bytes(4, "little"))
    path.write_bytes(stored)
    with open_slide(path) as slide:
        assert slide.read_region(0, 0, SIDE, SIDE // 2).std() > 0
    assert "damaged tiles of level 0 may show as tissue: it holds 16 frames; expected 8, one for each tile" in caplog.text
