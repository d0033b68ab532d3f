"""What a slide's file says of its tiles, or a path of its file, is checked before it is believed."""

from __future__ import annotations

import logging
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from fakes import scan_darkness
from fuzzing.dicom import write_dicom
from numpy.typing import NDArray
from slide_files import (
    damage_tile,
    overwrite,
    rename_tag,
    set_tag,
    set_tile_tag,
    stored_tiles,
    texture,
    write_jpeg_slide,
    write_slide,
)

from wsi_meta.demo.pyramid_writer import halved
from wsi_meta.errors import SlideReadError
from wsi_meta.files.same_file import SameFile
from wsi_meta.files.slide_file import files_of_slide
from wsi_meta.heatmaps.store import Status
from wsi_meta.metadata import info
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiffs.structure import check_tiff
from wsi_meta.tiling.tissue import find_tissue


def _longest(path: Path, level: int = 0) -> int:
    tiles = stored_tiles(path, level)
    return max(range(len(tiles)), key=lambda index: tiles[index][1])


def _flip(path: Path, index: int, level: int = 0) -> None:
    """Damage a tile so that OpenSlide still shows it as tissue: its JPEG goes on after 512 bytes of nonsense."""
    offset, length = stored_tiles(path, level)[index]
    overwrite(path, offset + length // 3, b"\n" * 512)


# a tile's own header


def _declare(path: Path, index: int, side: int) -> None:
    offset, length = stored_tiles(path)[index]
    jpeg = path.read_bytes()[offset : offset + length]
    overwrite(path, offset + jpeg.index(b"\xff\xc0") + 5, struct.pack(">HH", side, side))


@pytest.mark.parametrize("busiest", [True, False])
def test_a_tile_that_declares_another_size_is_never_decoded(tmp_path: Path, busiest: bool) -> None:
    path = write_jpeg_slide(tmp_path / "s.tif", [texture(768, 768)])
    index = _longest(path)
    index = index if busiest else (index + 4) % 9
    _declare(path, index, 24000)
    left, top = index % 3 * 256, index // 3 * 256
    tracemalloc.start()
    slide = open_slide(path)
    with pytest.raises(SlideReadError, match=r"own header says 24000 x 24000 px; expected 256 x 256 px"):
        slide.read_region(left, top, 20, 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert slide.reader == "direct"
    assert peak < 100e6
    assert slide.read_region((left + 256) % 768, top, 200, 200).std() > 0


# offsets and lengths


@pytest.mark.parametrize("tag", ["TileOffsets", "TileByteCounts"])
@pytest.mark.parametrize("value", [2**31, 2**32 - 1, 10**7])
def test_a_tile_that_lies_behind_the_end_of_the_file(tmp_path: Path, tag: str, value: int) -> None:
    image = texture(768, 768)
    path = write_jpeg_slide(tmp_path / "s.tif", [image, halved(image)])
    set_tile_tag(path, tag, 4, value)
    slide = open_slide(path)
    with pytest.raises(SlideReadError, match=r"s\.tif: cannot be decoded at x=300 y=300 level 0 \(a tile of "):
        slide.read_region(300, 300, 20, 20)
    assert slide.read_region(0, 0, 200, 200).std() > 0


def test_tiles_of_2_to_the_40_bytes(tmp_path: Path) -> None:
    path = write_jpeg_slide(tmp_path / "s.tif", [texture(300, 300)], bigtiff=True)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        entry = page.tags["TileByteCounts"]
    end = path.stat().st_size + -path.stat().st_size % 8
    overwrite(path, end, struct.pack(f"<{entry.count}Q", *[2**40] * entry.count))
    overwrite(path, entry.offset + 2, struct.pack("<H", 16))
    overwrite(path, entry.offset + 12, struct.pack("<Q", end))
    for told in (2**40, 2**63 + 1):
        overwrite(path, end, struct.pack(f"<{entry.count}Q", *[told] * entry.count))
        with pytest.raises(SlideReadError, match=r"s\.tif: "):
            open_slide(path).read_overview(7.776)


# sizes that end the process, or never end


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("tag", ["TileLength", "TileWidth"])
def test_an_absurd_tile_is_seen_before_openslide_opens_the_file(tmp_path: Path, tag: str, level: int, bigtiff: bool) -> None:
    image = texture(600, 600)
    path = write_jpeg_slide(tmp_path / "s.tif", [image, halved(image)], bigtiff=bigtiff)
    if bigtiff:
        with tifffile.TiffFile(path) as file:
            page = file.pages[level]
            assert isinstance(page, tifffile.TiffPage)
            place = page.tags[tag].offset
        overwrite(path, place + 2, struct.pack("<H", 4))
        overwrite(path, place + 12, struct.pack("<I", 2**31 - 1))
    else:
        set_tag(path, tag, 2**31 - 1, page=level)
    with pytest.raises(
        SlideReadError, match=rf"s\.tif: page {level} says that its tiles are .*2147483647.* px; expected at most"
    ):
        open_slide(path)


def _retype(path: Path, tag: str, kind: int, stored: bytes, page: int = 0) -> None:
    """Give a tag that stands in the directory of a classic TIFF another type and value."""
    with tifffile.TiffFile(path) as file:
        found = file.pages[page]
        assert isinstance(found, tifffile.TiffPage)
        place = found.tags[tag].offset
    overwrite(path, place + 2, struct.pack("<H", kind))
    overwrite(path, place + 8, stored)


def _with_a_tag_of_ndpi(path: Path) -> None:
    set_tag(path, "TileLength", 2**31 - 1, page=1)
    rename_tag(path, "ResolutionUnit", 65420, page=1)


def _doubled(path: Path) -> None:
    """State the height of tiles twice, first an absurd one, which libtiff takes."""
    _retype(path, "TileWidth", 4, struct.pack("<I", 2**31 - 16), 1)
    rename_tag(path, "TileWidth", 323, page=1)
    rename_tag(path, "SamplesPerPixel", 322, page=1)
    set_tag(path, "TileWidth", 256, page=1)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda path: _retype(path, "TileLength", 9, struct.pack("<i", 2**31 - 16), 1),
            "page 1 says that its tiles are 256 x 21",
        ),
        (lambda path: _retype(path, "TileWidth", 9, struct.pack("<i", 2**31 - 16)), "page 0 says that its tiles are 21"),
        (lambda path: _retype(path, "TileWidth", 8, struct.pack("<hh", -16, 0)), "page 0 has tiles, but says in no way"),
        (lambda path: _retype(path, "TileWidth", 11, struct.pack("<f", 2.0**31)), "page 0 has tiles, but says in no way"),
        (_with_a_tag_of_ndpi, "page 1 says that its tiles are 256 x 21"),
        (_doubled, "page 1 says that its tiles are 256 x 21"),
    ],
    ids=["signed height", "signed width", "below zero", "float", "with a tag of NDPI", "twice"],
)
def test_an_absurd_tile_is_seen_however_it_is_stored(tmp_path: Path, make: Callable[[Path], None], told: str) -> None:
    image = texture(600, 600)
    path = write_jpeg_slide(tmp_path / "s.tif", [image, halved(image)])
    make(path)
    with pytest.raises(SlideReadError, match=rf"s\.tif: {told}"):
        open_slide(path)


@pytest.mark.parametrize("how", ["signed", "as those of strips"])
def test_tiles_longer_than_the_file_are_seen_however_their_lengths_are_stored(tmp_path: Path, how: str) -> None:
    path = write_slide(tmp_path / "s.tif", texture(600, 600))
    set_tile_tag(path, "TileByteCounts", 4, 2**31 - 1)
    if how == "signed":
        with tifffile.TiffFile(path) as file:
            place = file.pages.first.tags["TileByteCounts"].offset
        overwrite(path, place + 2, struct.pack("<H", 9))
    else:
        rename_tag(path, "TileByteCounts", 279)
        rename_tag(path, "TileOffsets", 273)
    assert [tiles.places.tolist() for tiles in check_tiff(path)] == [[[1, 1]]]


def test_a_file_of_very_many_pages_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(np.zeros((1000, 1, 1, 3), np.uint8), photometric="rgb", metadata=None)
    with pytest.raises(SlideReadError, match=r"s\.tif: has 1,000 pages or more; expected the few of a slide"):
        check_tiff(path)


@pytest.mark.parametrize("tag", ["ImageWidth", "ImageLength"])
def test_a_slide_of_fewer_tiles_than_its_size_needs(tmp_path: Path, tag: str) -> None:
    path = write_jpeg_slide(tmp_path / "s.tif", [texture(300, 300)])
    set_tag(path, tag, 100_000)
    with pytest.raises(
        SlideReadError, match=r"page 0 says that it is .*100000.* px, but has the places of 4 tiles; expected 782"
    ):
        open_slide(path)


# tags without a name


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: rename_tag(path, "Compression", 65000), "not JPEG"),
        (lambda path: set_tag(path, "Compression", 60000), None),
        (lambda path: set_tag(path, "PhotometricInterpretation", 99), None),
        (lambda path: set_tag(path, "PlanarConfiguration", 77), None),
        (lambda path: set_tag(path, "SamplesPerPixel", 2**31), None),
    ],
    ids=["no compression", "compression", "photometric", "planes", "samples"],
)
def test_odd_tags_are_left_to_openslide_or_told(tmp_path: Path, make: Callable[[Path], None], reason: str | None) -> None:
    path = tmp_path / "s.tif"
    image = texture(480, 480)
    if reason:  # without the tag nothing is compressed
        tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", compression=None, metadata=None)
    else:
        write_jpeg_slide(path, [image])
    make(path)
    told = ""
    try:
        shown = info(path)
    except SlideReadError as error:
        told = str(error)
    if reason or not told:
        assert shown["reader"] == "openslide"
        assert (reason or "") in shown["reader_reason"]
    else:
        assert told.startswith(f"{path}: ")


# which tile is compared with OpenSlide's


def _pyramid(folder: Path) -> Path:
    image = texture(1280, 1280, seed=8)
    return write_jpeg_slide(folder / "s.tif", [image, halved(image)])


def test_damage_in_the_busiest_tile_does_not_choose_the_reader(tmp_path: Path) -> None:
    path = _pyramid(tmp_path)
    options: dict[str, Any] = {"tissue_mask": "none", "mpp": 0.486}
    whole = scan_darkness(path, tmp_path / "whole.zarr", **options)
    assert (whole.status == Status.SCANNED).all()
    _flip(path, _longest(path, level=1), level=1)
    slide = open_slide(path)
    assert slide.reader == "direct"
    assert "1 of 4 tiles that were compared are damaged" in slide.reader_reason
    damaged = scan_darkness(path, tmp_path / "damaged.zarr", **options)
    unreadable = damaged.status == Status.UNREADABLE
    assert 64 <= unreadable.sum() <= 256, "the tile's 8 x 8 cells, and those of the parts of half a tile that touch it"
    np.testing.assert_array_equal(damaged.probability[~unreadable], whole.probability[~unreadable])


def test_damage_in_the_only_tile_of_a_level_does_not_choose_the_reader(tmp_path: Path) -> None:
    image = texture(512, 512, seed=8)
    path = write_jpeg_slide(tmp_path / "s.tif", [image, halved(image)])
    _flip(path, 0, level=1)
    slide = open_slide(path)
    assert slide.reader == "direct"
    with pytest.raises(SlideReadError, match="level 1"):
        slide.read_region(0, 0, 256, 256, level=1)


def test_a_slide_of_which_one_decoder_refuses_most_is_openslides_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_jpeg_slide(tmp_path / "s.tif", [texture(768, 768)])
    for index in range(9):
        _flip(path, index)
    slide = open_slide(path)
    assert slide.reader == "openslide"
    assert "one decoder reads and the other does not" in slide.reader_reason
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert "s.tif: is read by OpenSlide, which may show damage as tissue" in told[0]


# a damaged tile costs a tile


@pytest.mark.parametrize("lossless", [True, False])
def test_a_bad_tile_in_a_small_slide_costs_a_tile(tmp_path: Path, lossless: bool) -> None:
    image = texture(576, 576)
    path = write_slide(tmp_path / "s.tif", image) if lossless else write_jpeg_slide(tmp_path / "s.tif", [image])
    whole = scan_darkness(path, tmp_path / "whole.zarr")
    damage_tile(path, 4)  # of 3 x 3 tiles of 256 px
    tissue = find_tissue(open_slide(path))
    assert tissue.mask.all(), "texture is tissue, and what cannot be read counts as such"
    damaged = scan_darkness(path, tmp_path / "damaged.zarr")
    unreadable = damaged.status == Status.UNREADABLE
    assert unreadable[8:16, 8:16].all()
    assert unreadable.sum() <= 256
    np.testing.assert_array_equal(damaged.probability[~unreadable], whole.probability[~unreadable])


def test_the_overview_loses_little_round_a_bad_tile(tmp_path: Path) -> None:
    path = write_jpeg_slide(tmp_path / "s.tif", [texture(1024, 1024)])
    expected, _ = open_slide(path).read_overview(7.776)
    damage_tile(path, 5)
    image, readable = open_slide(path).read_overview(7.776)
    assert not readable[32:64, 32:64].any()
    assert readable.sum() >= 128**2 - 48**2
    assert (np.abs(image[readable].astype(int) - expected[readable]) <= 1).all()


def test_a_slide_that_mostly_cannot_be_read_is_given_up_soon(tmp_path: Path) -> None:
    path = write_jpeg_slide(tmp_path / "s.tif", [texture(2048, 2048)])
    for index in range(1, 64):
        damage_tile(path, index)
    heatmap = scan_darkness(path, tmp_path / "h.zarr", tissue_mask="none")
    assert 0 < (heatmap.status == Status.SCANNED).sum() < 64
    assert (heatmap.status != Status.PENDING).all()


# the same file to the end


@pytest.mark.parametrize("reader", ["direct", "openslide"])
@pytest.mark.parametrize("how", ["renamed", "written", "touched"])
def test_a_slide_that_is_replaced_is_not_read_on(tmp_path: Path, reader: str, how: str) -> None:
    path = write_jpeg_slide(tmp_path / "s.tif", [texture(700, 700, seed=1)])
    other = write_jpeg_slide(tmp_path / "other.tif", [texture(700, 700, seed=2)])
    slide = open_slide(path, reader=reader)
    before = slide.read_region(300, 300, 100, 100)
    slide.close()  # drops the tiles
    slide.read_region(0, 0, 10, 10)
    if how == "renamed":
        other.replace(path)
    elif how == "written":
        path.write_bytes(other.read_bytes())
    else:
        os.utime(path, ns=(0, 0))
    if (reader, how) == ("direct", "renamed"):  # it holds the old file
        np.testing.assert_array_equal(slide.read_region(300, 300, 100, 100), before)
    else:
        with pytest.raises(SlideReadError, match=r"s\.tif: the slide was replaced or changed while it was read"):
            slide.read_region(300, 300, 100, 100)
    slide.close()
    with pytest.raises(SlideReadError, match=r"s\.tif: the slide was replaced or changed"):
        slide.read_region(300, 300, 100, 100)
    with pytest.raises(SlideReadError, match="replaced"):
        slide.read_overview(7.776)


def _two_dicom_files(folder: Path, image: NDArray[np.uint8]) -> Path:
    """A DICOM slide of two levels, each a file of its own."""
    folder.mkdir()
    write_dicom(folder / "l0.dcm", image, mpp=0.486, tile_px=64)
    write_dicom(folder / "l1.dcm", halved(image), mpp=0.972, tile_px=64)
    level = (folder / "l1.dcm").read_bytes()
    (folder / "l1.dcm").write_bytes(level.replace(b"1.2.3.4\0", b"1.2.3.7\0"))  # an instance of its own
    return folder / "l0.dcm"


@pytest.mark.parametrize("how", ["renamed", "written", "gone"])
def test_each_file_of_a_slide_is_watched(tmp_path: Path, how: str) -> None:
    path = _two_dicom_files(tmp_path / "a", texture(256, 256, seed=1))
    other = _two_dicom_files(tmp_path / "b", texture(256, 256, seed=2)).with_name("l1.dcm")
    changed = path.with_name("l1.dcm")
    slide = open_slide(path)
    assert len(slide.level_dimensions) == 2
    slide.read_at(0.972, 0, 0, 64, 64)
    if how == "renamed":
        other.replace(changed)
    elif how == "written":
        changed.write_bytes(other.read_bytes())
    else:
        changed.unlink()
    with pytest.raises(
        SlideReadError, match=r"l1\.dcm: the slide was replaced or changed|l0\.dcm: went away while it was read"
    ):
        slide.read_at(0.972, 64, 0, 64, 64)


def test_a_level_that_comes_to_a_slide_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = _two_dicom_files(tmp_path / "a", texture(256, 256))
    level = path.with_name("l1.dcm").rename(tmp_path / "l1.dcm")
    slide = open_slide(path)
    slide.close()
    level.rename(path.with_name("l1.dcm"))
    with pytest.raises(SlideReadError, match=r"l0\.dcm: the slide was replaced or changed"):
        slide.read_region(0, 0, 64, 64)


def test_notes_beside_the_pixels_of_a_mirax_slide_may_change(tmp_path: Path) -> None:
    for name in ("s.mrxs", "s/Slidat.ini", "s/Index.dat", "s/Data0001.dat", "s/notes.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    file = SameFile.at(*files_of_slide(tmp_path / "s.mrxs", read=True))
    (tmp_path / "s" / "notes.xml").write_text("more")
    file.check()
    for name in ("Data0001.dat", "Slidat.ini"):
        file = SameFile.at(*files_of_slide(tmp_path / "s.mrxs", read=True))
        (tmp_path / "s" / name).write_text("other")
        with pytest.raises(SlideReadError, match=rf"{name}: the slide was replaced"):
            file.check()


def test_a_scan_ends_when_its_slide_is_replaced(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tif", texture(900, 900, seed=1))
    other = write_slide(tmp_path / "other.tif", texture(900, 900, seed=2))
    slide = open_slide(path)
    options: dict[str, Any] = {"tissue_mask": "none", "block_px": 192}

    def replace_it(_path: Path, done: int, _cells: int) -> None:
        if done and other.exists():
            other.replace(path)

    with pytest.raises(SlideReadError, match=r"s\.tif: the slide was replaced"):
        scan_darkness(slide, tmp_path / "h.zarr", progress=replace_it, **options)


# what is said of a file that is no slide


@pytest.mark.parametrize(("codec", "name"), [("jpeg2000", "JPEG 2000"), ("webp", "WebP")])
def test_a_compression_that_openslide_does_not_read_is_named(tmp_path: Path, codec: str, name: str) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, texture(480, 480), tile=(256, 256), photometric="rgb", compression=codec, metadata=None)
    with pytest.raises(SlideReadError, match=rf"s\.tif: .*{name}, which OpenSlide does not read .*; convert the slide"):
        open_slide(path).read_region(0, 0, 10, 10)


def test_big_endian_numbers_are_named(tmp_path: Path) -> None:
    """ImageJ and Bio-Formats write them unasked."""
    options: dict[str, Any] = {"byteorder": ">", "tile": (128, 128), "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "s.tif", texture(256, 256), **options)
    tifffile.imwrite(tmp_path / "big.tif", texture(256, 256), bigtiff=True, **options)
    open_slide(tmp_path / "big.tif", mpp=1)
    with pytest.raises(SlideReadError, match=r"s\.tif: a TIFF of big-endian numbers, which .*; convert the slide \(vips"):
        open_slide(tmp_path / "s.tif")


def test_a_mirax_slide_without_its_folder(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "s.mrxs"
    Image.fromarray(texture(200, 200)).save(path, "JPEG")
    with pytest.raises(
        SlideReadError, match=rf"s\.mrxs: its pixels lie in the folder {tmp_path}/s beside it, which is missing"
    ):
        open_slide(path)
    (tmp_path / "s").mkdir()
    with pytest.raises(SlideReadError, match=r"which lacks Slidat\.ini; copy"):
        open_slide(path)


@pytest.mark.parametrize("address", ["http://example.com/s.svs", "https://a.b/s.tif", "s3://bucket/slides/s.svs"])
def test_an_address_that_was_made_a_path_is_told(address: str) -> None:
    for path in (Path(address), Path.cwd() / Path(address)):
        with pytest.raises(SlideReadError, match=rf"^{address}: an address that was made a path; expected it as text$"):
            open_slide(path)


def test_openslides_own_words_are_kept(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tif", texture(600, 600), levels=2)
    stored = path.read_bytes()
    path.write_bytes(stored[: len(stored) // 2])
    with pytest.raises(SlideReadError, match=r"s\.tif: ") as caught:
        open_slide(path)
    assert "\n" not in str(caught.value)
