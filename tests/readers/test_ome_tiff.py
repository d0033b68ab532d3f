"""Pyramids within the first page of a TIFF, as OME-TIFF keeps them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from fakes import scan_darkness
from numpy.typing import NDArray
from range_server import served
from slide_files import overwrite, rename_tag, set_tile_tag, stored_tiles, texture, with_undefined_code, write_jpeg_slide

from wsi_meta import open_slide
from wsi_meta.errors import SlideReadError
from wsi_meta.heatmaps.store import Status
from wsi_meta.readers.ome_tiff import ome_mpp
from wsi_meta.slides.slide import Slide
from wsi_meta.tiffs.tags import PREDICTOR

MPP = 0.486
LOSSLESS, PLANAR = ["none", "zlib", "lzw", "zstd", "jpeg2000"], ["none", "zlib", "lzw", "zstd"]


def write_ome(
    path: Path,
    image: NDArray[np.uint8],
    compression: str | None = None,
    *,
    factors: tuple[int, ...] = (1, 2, 4),
    planar: bool = False,
    unit: str = "µm",
    size: float | None = MPP,
    **options: Any,
) -> Path:
    """Write a pyramid with its coarser levels in SubIFDs, as tifffile does."""
    options |= {"photometric": "rgb", "tile": (64, 96), "compression": None if compression == "none" else compression}
    if compression == "jpeg":
        options |= {"compressionargs": {"level": 90}}
    told = {} if size is None else {"PhysicalSizeX": size, "PhysicalSizeXUnit": unit, "PhysicalSizeY": size}
    metadata = {"axes": "CYX" if planar else "YXS", **told, **({"PhysicalSizeYUnit": unit} if told else {})}
    with tifffile.TiffWriter(path, ome=True) as file:
        for number, factor in enumerate(factors):
            level = image[::factor, ::factor]
            stored = level.transpose(2, 0, 1) if planar else level
            own = {"subifds": len(factors) - 1, "metadata": metadata} if number == 0 else {"subfiletype": 1, "metadata": None}
            file.write(stored, planarconfig="separate" if planar else "contig", **own, **options)
    return path


def levels_of(slide: Slide) -> list[NDArray[np.uint8]]:
    sizes = enumerate(slide.level_dimensions)
    return [slide.read_region(0, 0, width, height, level=level) for level, (width, height) in sizes]


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return texture(500, 700, seed=11)


@pytest.mark.parametrize(("compression", "planar"), [*((name, False) for name in LOSSLESS), *((name, True) for name in PLANAR)])
def test_every_level_is_read_as_it_was_written(
    tmp_path: Path, image: NDArray[np.uint8], compression: str, planar: bool
) -> None:
    options: dict[str, Any] = {"predictor": True} if compression in ("zlib", "lzw") and not planar else {}
    with open_slide(write_ome(tmp_path / "s.ome.tif", image, compression, planar=planar, **options)) as slide:
        assert (slide.reader, slide.vendor, slide.mpp) == ("direct", "ome-tiff", MPP)
        assert slide.reader_reason == "a TIFF with a pyramid of 3 levels in its first page"
        assert list(slide.level_downsamples) == [1, 2, 4]
        for factor, level in zip((1, 2, 4), levels_of(slide), strict=True):
            np.testing.assert_array_equal(level, image[::factor, ::factor])


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_transparent_pixels_lie_before_white_on_every_level(
    tmp_path: Path, image: NDArray[np.uint8], kind: str, planar: bool
) -> None:
    opaque = np.full((*image.shape[:2], 1), 255, np.uint8)
    opaque[:200, :300], opaque[200:400, :300] = 0, 100
    colours = image * (opaque / 255) if kind == "assocalpha" else image
    whole = np.concatenate([colours.round().astype(np.uint8), opaque], axis=2)
    path = write_ome(tmp_path / "s.ome.tif", whole, "zlib", planar=planar, extrasamples=[kind])
    seen = image * (opaque / 255) + 255 * (1 - opaque / 255)
    with open_slide(path) as slide, open_slide(path, reader="openslide") as openslide:
        assert slide.reader == "direct"
        for factor, level in zip((1, 2, 4), levels_of(slide), strict=True):
            np.testing.assert_allclose(level, seen[::factor, ::factor], atol=1)
        np.testing.assert_allclose(levels_of(openslide)[0], seen, atol=2)


def test_a_lost_tile_of_a_transparent_picture_is_told_by_its_coarser_levels(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    whole = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    path = write_ome(tmp_path / "s.ome.tif", whole, "zlib", extrasamples=["unassalpha"])
    for tag in ("TileOffsets", "TileByteCounts"):
        set_tile_tag(path, tag, 9, 0)
    with open_slide(path) as slide:
        with pytest.raises(SlideReadError, match="the tile at row 1, column 1 was lost: other levels hold what lies there"):
            slide.read_region(100, 70, 20, 20)
        np.testing.assert_array_equal(slide.read_region(0, 0, 90, 60), image[:60, :90])


def test_jpeg_is_read_as_tifffile_and_openslide_read_it(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    path = write_ome(tmp_path / "s.ome.tif", image, "jpeg")
    with open_slide(path) as slide, open_slide(path, reader="openslide") as openslide, tifffile.TiffFile(path) as file:
        assert (slide.reader, len(openslide.level_dimensions)) == ("direct", 1)
        whole = slide.read_region(0, 0, 700, 500).astype(int)
        assert np.abs(whole - openslide.read_region(0, 0, 700, 500)).max() <= 2
        for level, page in zip(levels_of(slide), file.series[0].levels, strict=True):
            assert np.abs(level.astype(int) - page.asarray()).mean() < 1


def test_what_a_tag_says_of_values_counts_where_the_compression_knows_it(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    """JPEG 2000 knows no differences."""
    path = write_ome(tmp_path / "s.ome.tif", image, "jpeg2000", extratags=[(318, "H", 1, 2, True)])
    rename_tag(path, "WhitePoint", PREDICTOR)
    with open_slide(path) as slide:
        assert slide.reader == "direct"
        np.testing.assert_array_equal(slide.read_region(0, 0, 700, 500), image)


@pytest.mark.parametrize("nested", [True, False])
def test_bits_in_another_order_are_left_to_openslide_and_that_is_told(
    tmp_path: Path, image: NDArray[np.uint8], caplog: pytest.LogCaptureFixture, nested: bool
) -> None:
    """Its library turns them; the bytes as they lie seem to be damaged."""
    path = tmp_path / "s.tif"
    write_ome(path, image, "zlib", factors=(1, 2)[: 1 + nested], extratags=[(263, "H", 1, 2, True)])
    turned = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    for offset, length in stored_tiles(path):
        overwrite(path, offset, path.read_bytes()[offset : offset + length].translate(turned))
    rename_tag(path, "Thresholding", 266)
    with open_slide(path) as slide:
        assert slide.reader == "openslide"
        np.testing.assert_array_equal(slide.read_region(0, 0, 700, 500), image)
    told = (
        "damaged tiles of level 0 may show as tissue: bytes whose first bit is their lowest (FillOrder 2); expected FillOrder 1"
    )
    assert told in caplog.text


@pytest.mark.parametrize(
    ("photometric", "remark"),
    [
        ("rgb", b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"),
        ("rgb", b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1"),
        ("ycbcr", b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"),
        ("rgb", b"\xff\xfe\0\x06text"),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_a_remark_beside_shared_jpeg_tables_changes_no_colours(
    tmp_path: Path, image: NDArray[np.uint8], photometric: str, remark: bytes, nested: bool
) -> None:
    path = write_jpeg_slide(
        tmp_path / "s.tif", [image, image[::2, ::2]], photometric=photometric, tables="shared", remark=remark, nested=nested
    )
    with open_slide(path) as slide:
        assert slide.reader == "direct"
        assert np.abs(slide.read_region(0, 0, 700, 500).astype(int) - image).mean() < 12


@pytest.mark.parametrize(
    ("unit", "size", "expected"),
    [("nm", 486.0, MPP), ("mm", 0.000486, MPP), ("um", MPP, MPP), ("pixel", 1.0, None), ("µm", None, None)],
)
def test_the_unit_of_a_physical_size_counts(
    tmp_path: Path, image: NDArray[np.uint8], unit: str, size: float | None, expected: float | None
) -> None:
    with open_slide(write_ome(tmp_path / "s.ome.tif", image, unit=unit, size=size)) as slide:
        assert slide.known_mpp == pytest.approx(expected)
        assert expected is not None or "pass --mpp" in str(slide.mpp_problem)


X, Y, PIXELS = 'PhysicalSizeX="0.486"', 'PhysicalSizeY="0.486"', '<Image><Pixels SizeX="700" SizeY="500" {}/></Image>'

NONE = [
    (unit, f"its OME-XML states the size of a pixel in '{unit}', which is not understood")
    for unit in ("pixel", "reference frame", "", "ms")
]
NONE.append(("?mm", "its OME-XML states the size of a pixel in '.*', which is not understood"))
UNITS = {
    "pm": 1e-6,
    "\u00c5": 1e-4,
    "nm": 1e-3,
    "thou": 25.4,
    "pt": 25400 / 72,
    "li": 25400 / 12,
    "mm": 1e3,
    "dm": 1e5,
    "m": 1e6,
}
UNITS |= {"in": 25400, "ft": 304800, "km": 1e9, "Mm": 1e12}
UNITS |= dict.fromkeys(("micrometers", "Micrometre", "microns", "Micron", "UM"), 1) | {"Nanometers": 1e-3}
BROKEN_UNITS = (" µm ", "μm", "Âµm", "Î¼m", "?m", "??m", "\ufffdm", "\ufffd\ufffdm")


@pytest.mark.parametrize(
    ("inner", "head", "tail", "expected"),
    [
        (PIXELS.format(f"{X} {Y}"), '\n<?xml version="1.0"?>', "", (MPP, MPP)),
        (PIXELS.format(f"{X} {Y}"), "", "\n\t \0", (MPP, MPP)),
        (PIXELS.format(f"{X} {Y}"), "", "<!-- written by -->", (MPP, MPP)),
        (PIXELS.format(X), "", "", (MPP, MPP)),
        (PIXELS.format(Y), "", "", (MPP, MPP)),
        *(
            (PIXELS.format(f'{X} {Y} PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"'), "", "", told)
            for unit, told in NONE
        ),
        *((PIXELS.format(f'{X} {Y} PhysicalSizeXUnit="{unit}"'), "", "", (MPP, MPP)) for unit in BROKEN_UNITS),
        *(
            (PIXELS.format(f'PhysicalSizeX="{MPP / um!r}" PhysicalSizeXUnit="{unit}"'), "", "", (MPP, MPP))
            for unit, um in UNITS.items()
        ),
        (PIXELS.format('PhysicalSizeX="0,486"'), "", "", "its OME-XML states PhysicalSizeX '0,486', which is no number .*"),
        (PIXELS.format('PhysicalSizeX="0_486"'), "", "", "its OME-XML states PhysicalSizeX '0_486', which is no number .*"),
        (
            PIXELS.format(f"{X} {Y}").replace("700", "1400"),
            "",
            "",
            "its OME-XML describes 1400 x 500 px, not its picture of 700 x 500 px",
        ),
        (PIXELS.format(f"{X} {Y}"), "", "</broken>", "its OME-XML is damaged"),
        (PIXELS.format(""), "", "", None),
        ('<BinaryOnly MetadataFile="a.companion.ome"/>', "", "", None),
    ],
)
def test_what_ome_xml_states_and_what_is_not_understood(
    tmp_path: Path, inner: str, head: str, tail: str, expected: tuple[float, ...] | str | None
) -> None:
    """The tags, which may be those of another picture, count only where OME-XML states nothing."""
    text = f'{head}<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{inner}</OME>{tail}'
    found = ome_mpp(text, (700, 500))
    if isinstance(expected, str):
        assert re.fullmatch(expected, str(found))
    else:
        assert found == (None if expected is None else pytest.approx(expected))
    tags: dict[str, Any] = {"resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER", "photometric": "rgb", "metadata": None}
    tifffile.imwrite(tmp_path / "s.tif", texture(500, 700), tile=(256, 256), description=text.encode(), **tags)
    with open_slide(tmp_path / "s.tif") as slide:
        if isinstance(expected, str):
            assert slide.known_mpp is None
            assert re.fullmatch(rf".*s\.tif: {expected}; pass --mpp \(um per level-0 pixel\)", str(slide.mpp_problem))
        else:
            assert slide.known_mpp == pytest.approx(1.0 if expected is None else expected[0])


def test_resolution_tags_count_where_there_is_no_physical_size(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    tags: dict[str, Any] = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
    with open_slide(write_ome(tmp_path / "s.ome.tif", image, size=None, **tags)) as slide:
        assert slide.mpp == pytest.approx(MPP)
    dots: dict[str, Any] = {"resolution": (96, 96), "resolutionunit": "INCH"}
    with open_slide(write_ome(tmp_path / "dots.ome.tif", image, size=None, **dots)) as slide:
        assert "the file says 264.58" in str(slide.mpp_problem)


def test_it_is_scanned_at_its_level_and_at_an_address(tmp_path: Path) -> None:
    image = texture(600, 800, seed=2)
    path = write_ome(tmp_path / "s.ome.tif", image, "zlib")
    plain = Slide.from_array(image[::2, ::2], mpp=2 * MPP)
    settings: dict[str, Any] = {"tissue_mask": "none", "stride_px": 96}
    heatmap = scan_darkness(path, tmp_path / "h.zarr", **settings)
    np.testing.assert_array_equal(heatmap.probability, scan_darkness(plain, tmp_path / "p.zarr", **settings).probability)
    with served(tmp_path) as far:
        address = f"{far.url}/s.ome.tif"
        np.testing.assert_array_equal(scan_darkness(address, tmp_path / "a.zarr", **settings).probability, heatmap.probability)
        assert far.sent < 0.75 * path.stat().st_size, "level 0 is not read; level 1 is, and again for the verdict"
        with open_slide(address) as there, open_slide(path) as here:
            assert there.has_fingerprint(here.fingerprint())
            assert here.has_fingerprint(there.fingerprint())


@pytest.mark.parametrize("compression", ["none", "zlib", "jpeg"])
def test_damage_costs_its_tile_only(tmp_path: Path, image: NDArray[np.uint8], compression: str) -> None:
    path = write_ome(tmp_path / "s.ome.tif", image, compression)
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        offset, length = page.dataoffsets[9], page.databytecounts[9]
        offsets = page.tags["TileOffsets"]
        place = offsets.valueoffset + 9 * (offsets.valuebytecount // len(page.dataoffsets))
    with path.open("r+b") as file:
        if compression == "none":  # any bytes are pixels; what points behind the end is not
            file.seek(place)
            file.write((path.stat().st_size - 10).to_bytes(4, "little"))
        else:
            file.seek(offset + length // 4)
            file.write(b"\x55" * (length // 2))
    with open_slide(path) as slide:
        row, col = divmod(9, -(-700 // 96))
        with pytest.raises(SlideReadError, match=rf"s\.ome\.tif: cannot be decoded at x={col * 96} y={row * 64} level 0"):
            slide.read_region(col * 96, row * 64, 10, 10)
        slide.read_region(0, 0, 600, 60)
        slide.read_region(0, 0, 300, 200, level=1)
    heatmap = scan_darkness(path, tmp_path / "h.zarr", mpp=0.972, tissue_mask="none")
    assert 0 < (heatmap.status == Status.UNREADABLE).sum() < heatmap.status.size / 2


def test_a_tile_that_decodes_to_another_size_is_damaged(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    for compression, encoded, told in [
        ("zlib", imagecodecs.zlib_encode(bytes(64 * 96 * 3 + 1)), ""),
        ("zlib", imagecodecs.zlib_encode(bytes(64 * 96 * 3 - 1)), ""),
        ("lzw", imagecodecs.lzw_encode(bytes(100)), ""),
        ("lzw", with_undefined_code(imagecodecs.lzw_encode(bytes(64 * 96 * 3))), "not yet in table"),
        ("jpeg2000", imagecodecs.jpeg2k_encode(np.zeros((64, 95, 3), np.uint8)), "95 x 64 px of 3 colours"),
        ("jpeg2000", imagecodecs.jpeg2k_encode(texture(64, 96))[:2000], "that breaks off"),
        ("jpeg", imagecodecs.jpeg8_encode(np.zeros((32, 96, 3), np.uint8)), ""),
    ]:
        path = write_ome(tmp_path / f"{compression}.ome.tif", image, compression)
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            offset, counts = page.dataoffsets[0], page.tags["TileByteCounts"]
        with path.open("r+b") as raw:
            raw.seek(offset)
            raw.write(encoded)
            raw.seek(counts.valueoffset)
            raw.write(len(encoded).to_bytes(counts.valuebytecount // len(page.databytecounts), "little"))
        expected = rf"cannot be decoded at x=0 y=0 level 0 \(.*{told}"
        with open_slide(path) as slide, pytest.raises(SlideReadError, match=expected):
            slide.read_region(0, 0, 10, 10)


def test_what_is_stored_otherwise_is_left_to_openslide(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    lying = write_ome(tmp_path / "lying.ome.tif", image, "jpeg", compressionargs={"outcolorspace": "rgb"})
    grey = tmp_path / "grey.ome.tif"
    with tifffile.TiffWriter(grey, ome=True) as file:
        file.write(image[..., 0], subifds=1, tile=(64, 64), compression="zlib", photometric="minisblack")
        file.write(image[::2, ::2, 0], subfiletype=1, tile=(64, 64), compression="zlib", photometric="minisblack")
    with open_slide(grey, mpp=MPP) as slide:
        assert slide.reader == "openslide"
        assert "colours stored as MINISBLACK; expected RGB" in slide.reader_reason
    with pytest.raises(SlideReadError, match=r"grey\.ome\.tif: .*MINISBLACK.*leave --reader out"):
        open_slide(grey, reader="direct")
    assert open_slide(lying).reader == "direct"
    aperio = tmp_path / "a.svs"
    with tifffile.TiffWriter(aperio) as file:
        told = "Aperio Image Library v11\r\n700x500 (64x64) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5"
        options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
        file.write(image, subifds=1, description=told, **options)
        file.write(image[::2, ::2], subfiletype=1, **options)
    with open_slide(aperio) as slide:
        assert (slide.reader, slide.vendor) == ("openslide", "aperio")


def test_levels_that_do_not_fit_are_left_out(
    tmp_path: Path, image: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        options: dict[str, Any] = {"photometric": "rgb", "compression": "zlib"}
        size = {"PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
        file.write(image, subifds=3, tile=(64, 64), metadata={"axes": "YXS", **size}, **options)
        file.write(image[::2, ::2], subfiletype=1, tile=(64, 64), metadata=None, **options)
        file.write(image[:90, :400], subfiletype=1, tile=(64, 64), metadata=None, **options)
        file.write(image[::4, ::4], subfiletype=1, metadata=None, **options)
    with open_slide(path) as slide:
        assert [*slide.levels_left_out] == [2, 3]
        assert slide.levels_left_out[3] == "pixels that are not stored in tiles"
        np.testing.assert_array_equal(slide.read_at(0.972, 0, 0, 350, 250), image[::2, ::2])
    assert "level 2 is left out" in caplog.text


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("code", [256, 257])
def test_a_level_without_pixels_is_none(tmp_path: Path, image: NDArray[np.uint8], level: int, code: int) -> None:
    path = write_ome(tmp_path / "s.ome.tif", image)
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        place = (page.pages[0] if level else page).tags[code].valueoffset
    overwrite(path, place, bytes(2))
    if level:
        with open_slide(path) as slide:
            assert slide.level_dimensions == ((700, 500), (175, 125))
    else:
        with pytest.raises(SlideReadError, match=r"s\.ome\.tif: ") as caught:
            open_slide(path)
        assert "\n" not in str(caught.value)


def test_an_xml_that_grows_is_not_read(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    told = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bb">]>'
    told += '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">&b;</OME>'
    path = tmp_path / "s.ome.tif"
    with tifffile.TiffWriter(path) as file:
        options: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64), "metadata": None}
        file.write(image, subifds=1, description=told, **options)
        file.write(image[::2, ::2], subfiletype=1, **options)
    with open_slide(path) as slide:
        assert slide.known_mpp is None
        assert slide.level_downsamples == (1, 2)


@pytest.mark.parametrize("tile", [(64, 96), None])
@pytest.mark.parametrize(("unit", "factor"), [("µm", 1), ("nm", 1000)])
def test_the_pixel_size_of_one_level_is_read_as_well(
    tmp_path: Path, image: NDArray[np.uint8], unit: str, factor: float, tile: tuple[int, int] | None
) -> None:
    """A crop has no pyramid, and is read as any TIFF."""
    size = {f"PhysicalSize{axis}": MPP * factor for axis in "XY"} | {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    path = tmp_path / "s.ome.tif"
    tifffile.imwrite(path, image, ome=True, photometric="rgb", tile=tile, metadata={"axes": "YXS", **size})
    with open_slide(path) as slide:
        assert slide.reader == ("openslide" if tile else "picture")
        assert slide.mpp == pytest.approx(MPP)
    size |= {"PhysicalSizeX": 2 * MPP * factor}
    tifffile.imwrite(path, image, ome=True, photometric="rgb", tile=tile, metadata={"axes": "YXS", **size})
    with open_slide(path) as slide:
        assert "expected square ones" in str(slide.mpp_problem)


def write_series(path: Path, *pictures: tuple[str, NDArray[np.uint8]], photometric: str = "rgb") -> Path:
    """Write pictures into one file, each with a coarser level within its page, as Bio-Formats exports scenes."""
    with tifffile.TiffWriter(path, ome=True) as file:
        options: dict[str, Any] = {"photometric": photometric, "tile": (64, 64), "compression": "zlib"}
        for name, picture in pictures:
            axes = "YXS" if picture.ndim == 3 else "YX"
            told = {"axes": axes, "Name": name, "PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
            file.write(picture, subifds=1, metadata=told, **options)
            file.write(picture[::2, ::2], subfiletype=1, metadata=None, **options)
    return path


@pytest.mark.parametrize("rows", [500, 250])
@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
def test_another_scene_that_is_as_large_is_refused(tmp_path: Path, image: NDArray[np.uint8], rows: int, grey: bool) -> None:
    """Tissue on it would be missing from a map that is called complete."""
    image = image[..., 0] if grey else image
    kind = "minisblack" if grey else "rgb"
    path = write_series(tmp_path / "s.ome.tif", ("one", image[:rows]), ("scene 2", image), photometric=kind)
    told = (
        rf"s\.ome\.tif: 2 pictures \(700 x {rows} px, ('scene 2' )?700 x 500 px\); expected one, .*; "
        "export each picture or scene to a file of its own$"
    )
    with pytest.raises(SlideReadError, match=told) as caught:
        open_slide(path)
    assert "\n" not in str(caught.value)
    with served(tmp_path) as far, pytest.raises(SlideReadError, match=rf"{far.url}/{told}"):
        open_slide(f"{far.url}/s.ome.tif")


def test_a_smaller_scene_is_told_of_and_label_and_macro_are_not(
    tmp_path: Path, image: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    label, macro = ("label image", image[:90, :90]), ("Macro", np.tile(image, (2, 1, 1)))  # larger than a small slide
    with open_slide(write_series(tmp_path / "quiet.ome.tif", ("one", image), label, macro)) as slide:
        assert list(slide.level_downsamples) == [1, 2]
    assert "picture" not in caplog.text
    path = write_series(tmp_path / "s.ome.tif", ("one", image), label, ("scene 2", image[::2, ::2]))
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 700, 500), image)
    told = f"{path}: only its first picture is read (700 x 500 px), not 'scene 2' 350 x 250 px; if there is tissue on another"
    assert [line.partition(", export")[0] for line in caplog.messages] == [told]
