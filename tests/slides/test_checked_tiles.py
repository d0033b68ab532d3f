"""Damage in tiles that OpenSlide decodes to something without a word: it is looked for before OpenSlide is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from slide_files import overwrite, set_tile_tag, stored_tiles, texture, write_jpeg_slide, write_scn

from wsi_meta.readers.openslide_reader import OpenSlideReader
from wsi_meta.readers.reader import UnreadableRegionError
from wsi_meta.slides.slide import open_slide
from wsi_meta.stored_tiles.tile_check import TileCheck
from wsi_meta.stored_tiles.tile_form import TileForm

CORNER = (70, 40)
"""Where an SCN's scanned area lies on its glass."""


def scn(path: Path) -> Path:
    return write_scn(path.with_suffix(".scn"), texture(512, 512), CORNER, (700, 600), compression="jpeg")


def grey(path: Path) -> Path:
    options: dict[str, Any] = {"resolution": (1e4 / 0.972, 1e4 / 0.972), "resolutionunit": "CENTIMETER", "metadata": None}
    image = np.ascontiguousarray(texture(512, 512)[..., 0])
    tifffile.imwrite(path, image, photometric="minisblack", tile=(256, 256), compression="jpeg", **options)
    return path


def jpeg2000(path: Path, colours: str = "rgb", levels: int = 1) -> Path:
    image = texture(512, 512)
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            file.write(
                np.ascontiguousarray(image[:: 2**level, :: 2**level]),
                photometric="rgb",
                tile=(128, 128) if levels > 1 else (256, 256),
                compression=f"aperio_jp2000_{colours}",
                subfiletype=int(level > 0),
                description=f"Aperio 1\r\n{512 >> level}x{512 >> level}|MPP = 0.972",
                metadata=None,
            )
    return path


def deflate(path: Path, planes: str = "contig", compression: str = "zlib") -> Path:
    image = texture(512, 512)
    stored: Any = image if planes == "contig" else image.transpose(2, 0, 1)
    options: dict[str, Any] = {"resolution": (1e4 / 0.972, 1e4 / 0.972), "resolutionunit": "CENTIMETER", "metadata": None}
    tifffile.imwrite(path, stored, photometric="rgb", planarconfig=planes, tile=(256, 256), compression=compression, **options)
    return path


def planar(path: Path) -> Path:
    return deflate(path, "separate")


def lzw(path: Path) -> Path:
    return deflate(path, compression="lzw")


def packbits(path: Path) -> Path:
    return deflate(path, "separate", "packbits")


def nested_planar(path: Path) -> Path:
    """With a coarser level in its first page, as Bio-Formats writes."""
    stored = texture(512, 512).transpose(2, 0, 1)
    options: dict[str, Any] = {"photometric": "rgb", "planarconfig": "separate", "tile": (256, 256), "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(stored, subifds=1, resolution=(1e4 / 0.972, 1e4 / 0.972), resolutionunit="CENTIMETER", **options)
        file.write(stored[:, ::2, ::2], subfiletype=1, **options)
    return path


def lengthen(path: Path, number: int, compression: str) -> None:
    """Give a tile other bytes, and one more, as damage does that libtiff passes over: only checksum or length tells."""
    offset, length = stored_tiles(path)[number]
    stored = path.read_bytes()[offset : offset + length]
    content = bytearray(getattr(imagecodecs, f"{compression}_decode")(stored))
    content[1000:1300] = bytes(300)
    longer = bytes(getattr(imagecodecs, f"{compression}_encode")(bytes(content + b"\1")))
    longer = longer[:-4] + bytes(4) if compression == "zlib" else longer
    set_tile_tag(path, "TileOffsets", number, path.stat().st_size)
    set_tile_tag(path, "TileByteCounts", number, len(longer))
    overwrite(path, path.stat().st_size, longer)


def plain(path: Path) -> Path:
    return write_jpeg_slide(path, [texture(512, 512)])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (scn, "Corrupt"),
        (grey, "Corrupt"),
        (plain, "Corrupt"),
        (jpeg2000, "a JPEG 2000 that breaks off"),
        (deflate, "a deflate stream that is damaged"),
        (planar, "a deflate stream that is damaged"),
        (lzw, "a tile of 196,609 values of type uint8; expected 196,608"),
        (packbits, "a tile of 65,537 values of type uint8; expected 65,536"),
    ],
)
def test_damage_that_openslide_passes_over(make: Callable[[Path], Path], told: str, tmp_path: Path) -> None:
    path = make(tmp_path / "s.tif")
    x0, y0 = CORNER if make is scn else (0, 0)
    with open_slide(path, reader="openslide") as slide:
        sound = slide.read_region(x0, y0, 256, 256)
    offset, length = stored_tiles(path)[3]
    if make in (deflate, planar, lzw, packbits):
        lengthen(path, 3, "zlib" if make in (deflate, planar) else make.__name__)
    else:
        overwrite(path, offset + length // 2, bytes(length - length // 2) if make is jpeg2000 else b"\n" * 300)
    lenient = np.empty((100, 100, 3), np.uint8)
    OpenSlideReader(path).read_into(lenient, 0, x0 + 300, y0 + 300)
    assert lenient.std() > 0, "it is read, to something else"
    with open_slide(path, reader="openslide") as slide:
        for x, y, side in ((300, 300, 20), (200, 200, 57), (511, 511, 1)):
            with pytest.raises(UnreadableRegionError, match=rf"level 0 \(tile at row 1, column 1: {told}"):
                slide.read_region(x0 + x, y0 + y, side, side)
        assert np.array_equal(slide.read_region(x0, y0, 256, 256), sound)
        slide.read_region(x0 + 512, y0 + 512, 50, 50)


@pytest.mark.parametrize("nested", [False, True])
def test_no_tile_lies_in_the_header_of_a_file(tmp_path: Path, nested: bool) -> None:
    """Of uncompressed tiles any bytes are pixels. A tile of no bytes was left out, wherever it lies."""
    path = tmp_path / "s.tif"
    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(texture(512, 512), subifds=1 if nested else None, **options)
        file.write(np.full((256, 256, 3), 255, np.uint8), subfiletype=1, **options)
    set_tile_tag(path, "TileOffsets", 3, 0)
    with open_slide(path, mpp=0.972) as slide:
        assert slide.reader == ("direct" if nested else "openslide")
        with pytest.raises(UnreadableRegionError, match="196,608 bytes at 0 in a file"):
            slide.read_region(300, 300, 20, 20)
        slide.read_region(0, 0, 256, 256)
    set_tile_tag(path, "TileByteCounts", 3, 0)
    with open_slide(path, mpp=0.972) as slide:
        slide.read_region(300, 300, 20, 20)


def test_bytes_that_the_disk_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scn(tmp_path / "s.scn")

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(TileCheck, "samples", lambda *_: ())
    slide = open_slide(path)
    with monkeypatch.context() as patch:
        patch.setattr("wsi_meta.stored_tiles.tile_check.read_part", broken)
        with pytest.raises(UnreadableRegionError, match=r"s\.scn: cannot be decoded at x=100 y=100 level 0 \(.*output error\)"):
            slide.read_region(100, 100, 20, 20)
    slide.read_region(100, 100, 20, 20)


def test_a_sound_tile_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(TileForm, "check", lambda _, stored: looks.append(len(stored)))
    with open_slide(scn(tmp_path / "s.scn")) as slide:
        for _ in range(2):
            slide.read_region(0, 0, 700, 600)
    assert len(looks) == 4


def test_a_writer_with_its_own_way_is_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes after the last block of every tile: libjpeg warns of them, and the pixels are right."""
    path = grey(tmp_path / "s.tif")
    sound = open_slide(path).read_region(0, 0, 512, 512)
    for number, (offset, length) in enumerate(stored_tiles(path)):
        with path.open("r+b") as file:
            file.seek(offset)
            stored = file.read(length)
            at = file.seek(0, 2)
            file.write(stored[:-2] + b"\1" * 20 + b"\xff\xd9")
        set_tile_tag(path, "TileOffsets", number, at)
        set_tile_tag(path, "TileByteCounts", number, length + 20)
    with open_slide(path) as slide:
        assert np.array_equal(slide.read_region(0, 0, 512, 512), sound)
    assert "may show damage as tissue (tile at row" in caplog.text
    offset, length = stored_tiles(path)[3]
    overwrite(path, offset + length // 2, bytes(60))
    with open_slide(path) as slide:
        with pytest.raises(UnreadableRegionError, match=r"row 1, column 1: a JPEG with a run of zeros"):
            slide.read_region(300, 300, 20, 20)
        assert np.array_equal(slide.read_region(0, 0, 256, 512), sound[:, :256][:512])


@pytest.mark.parametrize(("colours", "told"), [("rgb", "row 1, column 1 was lost"), ("ycbc", "they cannot be looked at")])
def test_a_lost_tile_of_jpeg2000_is_no_glass(colours: str, told: str, tmp_path: Path) -> None:
    path = jpeg2000(tmp_path / "s.svs", colours, levels=2)
    for tag in ("TileOffsets", "TileByteCounts"):
        set_tile_tag(path, tag, 5, 0)
    with open_slide(path) as slide:
        assert slide.vendor == "aperio"
        with pytest.raises(UnreadableRegionError, match=told):
            slide.read_region(150, 150, 20, 20)
        slide.read_region(0, 0, 128, 128)


@pytest.mark.parametrize("make", [planar, nested_planar])
@pytest.mark.parametrize("colours", [[0], [1], [0, 2]])
def test_a_tile_of_which_single_colours_are_stored_is_no_glass(
    make: Callable[[Path], Path], colours: list[int], tmp_path: Path
) -> None:
    path = make(tmp_path / "s.tif")
    for tag in ("TileOffsets", "TileByteCounts"):
        for colour in colours:
            set_tile_tag(path, tag, 4 * colour + 3, 0)
    with open_slide(path) as slide:
        assert slide.reader == ("openslide" if make is planar else "direct")
        with pytest.raises(UnreadableRegionError, match="row 1, column 1 lacks some of its colours"):
            slide.read_region(300, 300, 20, 20)
        assert np.array_equal(slide.read_region(0, 0, 256, 256), texture(512, 512)[:256, :256])
