"""The direct reader beside OpenSlide, which judges its pixels; the cache that both threads and blocks share."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from fakes import scan_darkness
from fuzzing.dicom import write_dicom
from numpy.typing import NDArray
from range_server import served
from slide_files import damage_tile, overwrite, set_tile_tag, stored_tiles, texture, write_jpeg_slide, write_slide

from wsi_meta.errors import OutputExistsError, SlideReadError
from wsi_meta.metadata import info
from wsi_meta.readers.tile_cache import TileCache
from wsi_meta.slides.slide import Slide, open_slide
from wsi_meta.tiffs.sparse_tiles import MIN_SATURATION
from wsi_meta.tiling import tissue_colours

REGIONS = [(0, 0, 300, 200), (-40, -30, 120, 110), (230, 190, 301, 333), (650, 500, 200, 200), (-20, -20, 740, 600)]
"""x, y, width, height at level 0: inside, over each edge, over all of them."""


@pytest.fixture(scope="module")
def levels() -> list[NDArray[np.uint8]]:
    image = texture(556, 696, seed=5)
    return [image, image[::4, ::4]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, levels: list[NDArray[np.uint8]]) -> Path:
    return write_jpeg_slide(tmp_path_factory.mktemp("plain") / "plain.tif", levels, tables="shared")


def assert_same_pixels(path: Path) -> Slide:
    """Read with both; they agree within 2 grey levels on 99.9 % of values."""
    ours, theirs = open_slide(path), open_slide(path, reader="openslide")
    assert (ours.reader, theirs.reader) == ("direct", "openslide")
    assert (ours.level_dimensions, ours.level_downsamples) == (theirs.level_dimensions, theirs.level_downsamples)
    assert (ours.fingerprint(), ours.known_mpp, ours.vendor) == (theirs.fingerprint(), theirs.known_mpp, theirs.vendor)
    for level, downsample in enumerate(ours.level_downsamples):
        for x, y, width, height in REGIONS:
            x, y = (round(round(at / downsample) * downsample) for at in (x, y))
            a, b = (slide.read_region(x, y, width, height, level=level) for slide in (ours, theirs))
            assert a.shape == b.shape == (height, width, 3)
            assert (np.abs(a.astype(int) - b) <= 2).mean() >= 0.999, (level, x, y)
    return ours


@pytest.mark.parametrize("tables", ["own", "shared"])
@pytest.mark.parametrize(
    ("photometric", "subsampling", "tile_px", "bigtiff"),
    [
        ("ycbcr", "420", 256, False),
        ("ycbcr", "422", 240, True),
        ("ycbcr", "444", 512, False),
        ("rgb", "444", 240, False),
        ("rgb", "444", 512, True),
    ],
)
def test_pixels_are_openslides(
    tmp_path: Path,
    levels: list[NDArray[np.uint8]],
    photometric: str,
    subsampling: str,
    tile_px: int,
    bigtiff: bool,
    tables: str,
) -> None:
    path = write_jpeg_slide(
        tmp_path / "s.tif",
        levels,
        tile_px=tile_px,
        photometric=photometric,
        subsampling=subsampling,
        tables=tables,
        bigtiff=bigtiff,
    )
    slide = assert_same_pixels(path)
    assert np.abs(slide.read_region(0, 0, 696, 556).astype(int) - levels[0]).mean() < 12, "and both are the picture"


def test_aperio(tmp_path: Path, levels: list[NDArray[np.uint8]]) -> None:
    told = "Aperio Image Library v11.2.1 \r\n696x556 (240x240) JPEG/RGB Q=90|AppMag = 20|MPP = 0.9720"
    path = write_jpeg_slide(
        tmp_path / "a.svs", levels, tile_px=240, photometric="rgb", tables="shared", descriptions=[told] * 2
    )
    assert assert_same_pixels(path).vendor == "aperio"


def test_stored_pixels_where_levels_do_not_divide(tmp_path: Path) -> None:
    """At downsample 4.003 OpenSlide blends neighbours; the direct reader gives what is stored, at the nearest whole pixel."""
    image = texture(601, 803, seed=7)
    path = write_jpeg_slide(tmp_path / "odd.tif", [image, image[::4, ::4][:150, :200]], tables="shared", tile_px=128)
    slide = open_slide(path, reader="direct")
    stored = tifffile.imread(path, level=None, key=1)
    x = round(120 * slide.level_downsamples[1])
    np.testing.assert_array_equal(slide.read_region(x, x, 60, 20, level=1), stored[120:140, 120:180])


def _philips(downsamples: list[int]) -> str:
    spacing = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" '
        f'Element="0x0030" PMSVR="IDoubleArray">"{0.000972 * k}" "{0.000972 * k}"</Attribute></DataObject>'
        for k in downsamples
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport"><Attribute Name="PIM_DP_SCANNED_IMAGES">'
        '<Array><DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>'
        '<Attribute Name="DICOM_PIXEL_SPACING">"0.000972" "0.000972"</Attribute>'
        f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{spacing}</Array></Attribute>'
        "</DataObject></Array></Attribute></DataObject>"
    )


def test_philips_levels_are_padded_to_whole_tiles(tmp_path: Path) -> None:
    image = texture(768, 1280, seed=6)
    padded = np.full((512, 768, 3), 255, np.uint8)
    padded[:384, :640] = image[::2, ::2]
    path = write_jpeg_slide(
        tmp_path / "p.tiff",
        [image, padded],
        tile_px=256,
        descriptions=[_philips([1, 2]), "level=1"],
        software="Philips DP v1.0",
    )
    slide = assert_same_pixels(path)
    assert slide.vendor == "philips"
    assert slide.level_dimensions == ((1280, 768), (640, 384))


def test_philips_tiles_outside_the_regions_of_interest_are_read_directly(tmp_path: Path) -> None:
    """Scanners of Philips leave them out, and draw them white in coarser levels: so are Camelyon's slides."""
    image = texture(768, 1280, seed=6)
    image[256:512, 512:] = 255
    path = write_jpeg_slide(
        tmp_path / "p.tiff",
        [image, image[::2, ::2].copy()],
        tile_px=256,
        tables="shared",
        descriptions=[_philips([1, 2]), "level=1"],
        software="Philips DP v1.0",
        left_out_by_level=[{7, 8, 9}, set()],
    )
    slide = assert_same_pixels(path)
    assert slide.vendor == "philips"
    assert (slide.read_region(512, 256, 768, 256) == 255).all()
    assert slide.read_region(600, 100, 60, 60).mean() < 200


def test_left_out_tiles_are_background(tmp_path: Path, levels: list[NDArray[np.uint8]]) -> None:
    path = write_jpeg_slide(tmp_path / "sparse.tif", levels[:1], left_out=[0, 4])
    ours = assert_same_pixels(path)
    assert (ours.read_region(0, 0, 256, 256) == 255).all()
    assert (ours.read_region(256, 0, 256, 256) == 255).mean() < 0.01


def sparse_levels() -> tuple[list[NDArray[np.uint8]], list[set[int]]]:
    """Three levels of tiles of 64 px with tissue in the upper left quarter, and the tiles of each that show glass alone."""
    image = np.full((512, 512, 3), 245, np.uint8)
    image[:256, :256] = texture(256, 256)
    found = [image, image[::2, ::2].copy(), image[::4, ::4].copy()]
    sides = [len(level) // 64 for level in found]
    glass = [{row * side + col for row in range(side) for col in range(side) if max(row, col) >= side // 2} for side in sides]
    return found, glass


APERIO = ["Aperio 1\r\n512x512|MPP = 0.972", "Aperio 1\r\n256x256", "Aperio 1\r\n128x128"]


@pytest.mark.parametrize("kind", ["direct", "openslide", "aperio", "nested"])
class TestLeftOut:
    """Tiles that a file left out are glass where all levels say so, else they were lost, and unreadable."""

    def opened(self, path: Path, kind: str, left_out: list[set[int]], levels: list[NDArray[np.uint8]] | None = None) -> Slide:
        options: dict[str, Any] = {"descriptions": APERIO} if kind == "aperio" else {"nested": kind == "nested"}
        write_jpeg_slide(path, levels or sparse_levels()[0], tile_px=64, left_out_by_level=left_out, **options)
        slide = open_slide(path, mpp=0.972, reader="openslide" if kind == "openslide" else "auto")
        assert slide.reader == ("direct" if kind in ("direct", "nested") else "openslide")
        assert slide.level_dimensions == ((512, 512), (256, 256), (128, 128))
        return slide

    @pytest.mark.parametrize("shown", [0, 1, 2])
    def test_glass_is_glass_also_where_coarser_levels_store_it(self, tmp_path: Path, kind: str, shown: int) -> None:
        _, glass = sparse_levels()
        left_out = [tiles if level < 3 - shown else set() for level, tiles in enumerate(glass)]
        slide = self.opened(tmp_path / "s.tif", kind, left_out)
        for level in range(3):
            side = 512 >> level
            pixels = slide.read_region(0, 0, side, side, level=level)
            assert pixels[side // 2 + 16 :].min() > 235, f"level {level}"
        assert slide.read_overview(0.972 * 4)[1].all()
        assert (slide.read_at(0.972, 300, 300, 200, 200) == 255).all()

    def test_dust_in_one_level_and_tinted_glass_are_no_tissue(self, tmp_path: Path, kind: str) -> None:
        """A speck keeps a tile of level 0 alone; and coarser levels store all of a glass that is not quite white."""
        levels, glass = sparse_levels()
        for level in levels:
            level[(level == 245).all(2)] = (240, 222, 232)
        levels[0][400:403, 400:403] = 90
        for left_out in ([glass[0] - {6 * 8 + 6}, *glass[1:]], [glass[0], set(), set()]):
            slide = self.opened(tmp_path / f"{len(left_out[1])}.tif", kind, left_out, levels)
            assert slide.read_overview(0.972 * 4)[1].all()
            slide.read_at(0.972, 300, 300, 200, 200)

    def test_tissue_at_the_edge_of_a_tile_was_lost_with_it(self, tmp_path: Path, kind: str) -> None:
        levels, glass = sparse_levels()
        for factor, level in zip((1, 2, 4), levels, strict=True):
            level[: 256 // factor, 256 // factor : 272 // factor] = (200, 110, 170)
        slide = self.opened(tmp_path / "s.tif", kind, [glass[0], set(), set()], levels)
        with pytest.raises(SlideReadError, match=r"level 0 \(the tile at row 0, column 4 was lost"):
            slide.read_region(260, 10, 10, 10)
        assert (slide.read_region(330, 10, 50, 50) == 255).all()

    def test_what_is_tissue_to_the_mask_was_lost_however_pale(self, tmp_path: Path, kind: str) -> None:
        levels, glass = sparse_levels()
        for level in levels:
            tissue = level[: len(level) // 2, : len(level) // 2]
            tissue[:] = np.array((228, 207, 220)) + (tissue - tissue.mean((0, 1))) / 8
            assert 0.07 < np.ptp(tissue.mean((0, 1))) / tissue.mean((0, 1)).max() < 0.1
        slide = self.opened(tmp_path / "s.tif", kind, [glass[0] | {1}, *glass[1:]], levels)
        with pytest.raises(SlideReadError, match=r"level 0 \(the tile at row 0, column 1 was lost"):
            slide.read_region(70, 10, 20, 20)
        assert (slide.read_region(300, 300, 100, 100) == 255).all()
        assert MIN_SATURATION == tissue_colours.MIN_SATURATION

    @pytest.mark.parametrize("level", [0, 1])
    def test_what_a_coarser_level_shows_was_lost(self, tmp_path: Path, kind: str, level: int) -> None:
        _, glass = sparse_levels()
        glass[level] = glass[level] | {1}
        slide = self.opened(tmp_path / "s.tif", kind, glass)
        scale = 2**level
        readable = slide.read_overview(0.972 * 4)[1]
        if (kind, level) == ("aperio", 1):  # OpenSlide draws it from level 0
            assert np.ptp(slide.read_region(140, 20, 20, 20, level=level)) > 20
            return
        assert readable.all() == (kind != "aperio"), "there, OpenSlide draws coarser levels anew from level 0"
        assert readable[64:].all()
        with pytest.raises(SlideReadError, match=rf"level {level} \(the tile at row 0, column 1 was lost"):
            slide.read_region(70 * scale, 10, 20, 20, level=level)
        slide.read_region(0, 0, 64, 64, level=level)
        assert (slide.read_at(0.972 * scale, 300 // scale, 300 // scale, 90, 90) == 255).all()

    def test_what_a_finer_level_has_stored_was_lost(self, tmp_path: Path, kind: str) -> None:
        _, glass = sparse_levels()
        glass[2] = glass[2] | {0}
        slide = self.opened(tmp_path / "s.tif", kind, glass)
        readable = slide.read_overview(0.972 * 4)[1] if kind == "aperio" else None
        if readable is None:
            with pytest.raises(SlideReadError, match=r"level 2 \(the tile at row 0, column 0 was lost"):
                slide.read_region(0, 0, 20, 20, level=2)
            readable = slide.read_overview(0.972 * 4)[1]
            assert not readable[:64, :64].any()
        assert readable[64:].all()


@pytest.mark.parametrize("kind", ["overwritten", "flipped", "cut"])
def test_damage_is_told_as_by_openslide(plain: Path, tmp_path: Path, levels: list[NDArray[np.uint8]], kind: str) -> None:
    path = tmp_path / "bad.tif"
    path.write_bytes(plain.read_bytes())
    start, length = stored_tiles(path)[4]
    if kind == "overwritten":
        damage_tile(path, 4)
    elif kind == "flipped":  # still a JPEG, of other pixels: libjpeg goes on after no more than a warning
        overwrite(path, start + length // 2, np.random.default_rng(0).integers(0, 255, 60).astype(np.uint8).tobytes())
    else:  # as in a file that was cut amid the tile
        set_tile_tag(path, "TileOffsets", 4, path.stat().st_size - length // 2)
    slide = open_slide(path)
    with pytest.raises(SlideReadError, match=r"bad\.tif: cannot be decoded at x=300 y=300 level 0 \(.+\)$") as caught:
        slide.read_region(300, 300, 20, 20)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(slide.read_region(0, 0, 200, 200), open_slide(plain).read_region(0, 0, 200, 200))
    with pytest.raises(SlideReadError, match="x=300 y=300"):
        slide.read_region(300, 300, 20, 20)


def test_damaged_before_opening(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.tif"
    path.write_bytes(plain.read_bytes())
    for index in range(9):
        damage_tile(path, index)
    slide = open_slide(path)
    assert slide.reader == "direct", "neither reads its busiest tile"
    with pytest.raises(SlideReadError, match="nothing of it can be read"):
        slide.read_overview(0.972)


def test_a_file_that_went_away(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "gone.tif"
    path.write_bytes(plain.read_bytes())
    with open_slide(path) as slide:
        slide.read_region(0, 0, 10, 10)
    slide.read_region(0, 0, 10, 10)
    slide.close()
    path.unlink()
    with pytest.raises(SlideReadError, match=r"gone\.tif: cannot be decoded at x=0 y=0 level 0 \(.*No such file"):
        slide.read_region(0, 0, 10, 10)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path, levels: write_slide(path, levels[0]), "ADOBE_DEFLATE"),
        (
            lambda path, levels: write_jpeg_slide(path, levels, descriptions=["Aperio 1|MPP = 0.5"] * 2, left_out=[1]),
            "tiles left out",
        ),
    ],
    ids=["codec", "aperio"],
)
def test_the_rest_is_openslides(tmp_path: Path, levels: list[NDArray[np.uint8]], make: object, reason: str) -> None:
    assert callable(make)
    path = make(tmp_path / "odd.tif", levels)
    slide = open_slide(path)
    assert slide.reader == "openslide"
    assert reason in slide.reader_reason
    assert slide.tiles_decoded is None
    assert slide.expect(slide.mpp, [(0, 0, 9, 9)]) is None
    with pytest.raises(SlideReadError, match=r"odd\.tif: .*; the direct reader expects .*leave --reader out$"):
        open_slide(path, reader="direct")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("description", [None, "Aperio Image Library v12\r\n700x600 [0,0 700x600]|MPP = 0.972"])
def test_tiles_of_other_colours_than_the_file_says_are_refused_or_read_as_they_say(
    tmp_path: Path, levels: list[NDArray[np.uint8]], nested: bool, description: str | None
) -> None:
    """Bio-Formats and QuPath say RGB of YCbCr tiles, in the files that OpenSlide does not read here."""
    descriptions = [] if description is None else [description] * 3
    read = nested and description is None
    for stated, stored, tables, said in (
        (2, "ycbcr", "own", "RGB, but its JPEG tiles say YCbCr"),
        (2, "ycbcr", "shared", "RGB, but its JPEG tiles say YCbCr"),
        (6, "rgb", "own", "YCbCr, but its JPEG tiles say RGB"),
    ):
        path = tmp_path / f"{stored}.tif"
        write_jpeg_slide(path, levels, photometric=stored, tables=tables, nested=nested, descriptions=descriptions)
        right = [
            open_slide(path).read_region(0, 0, 99, 99, level=level) for level in range(len(open_slide(path).level_dimensions))
        ]
        say_colours(path, stated)
        for level, pixels in enumerate(right if read else ()):
            np.testing.assert_array_equal(open_slide(path).read_region(0, 0, 99, 99, level=level), pixels)
        for reader in ("openslide",) if read else ("auto", "openslide"):
            with pytest.raises(
                SlideReadError, match=rf"{stored}\.tif: says that its colours are {said};.*; convert the slide again"
            ):
                open_slide(path, reader=reader)


def test_a_dicom_slide_of_other_colours_than_it_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.dcm"
    write_dicom(path, texture(128, 128), mpp=0.972)
    open_slide(path)
    path.write_bytes(path.read_bytes().replace(b"CS\x0c\0YBR_FULL_422", b"CS\4\0RGB "))
    with pytest.raises(SlideReadError, match=r"s\.dcm: says that its colours are RGB, but its JPEG tiles say YCbCr; .* again$"):
        open_slide(path)


@pytest.mark.parametrize("nested", [False, True])
def test_a_damaged_tile_does_not_decide_the_colours_of_the_others(
    tmp_path: Path, levels: list[NDArray[np.uint8]], nested: bool
) -> None:
    path = write_jpeg_slide(tmp_path / "s.tif", levels[: 1 + nested], tables="shared", nested=nested)
    with open_slide(path) as slide:
        right = slide.read_region(256, 256, 256, 256)
    say_colours(path, 2)
    overwrite(path, stored_tiles(path)[0][0], bytes(64))
    if not nested:
        with pytest.raises(SlideReadError, match="its JPEG tiles say YCbCr"):
            open_slide(path)
        return
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(256, 256, 256, 256), right)
        with pytest.raises(SlideReadError, match="cannot be decoded at x=0 y=0 level 0"):
            slide.read_region(0, 0, 99, 99)


@pytest.mark.parametrize("made_anew", [(0, 1), range(9)])
def test_each_tile_has_the_colours_that_it_says_else_those_of_the_tag(
    tmp_path: Path, levels: list[NDArray[np.uint8]], made_anew: Sequence[int]
) -> None:
    """A converter keeps tiles of RGB as they are, without a word on colours, and makes those at borders anew, in YCbCr."""
    path = write_jpeg_slide(tmp_path / "s.tif", levels, photometric="rgb", tables="shared", nested=True)
    right = [image.astype(int) for image in levels]
    for place in made_anew:
        put_tile(path, place, bytes(imagecodecs.jpeg8_encode(whole_tile(levels[0], *divmod(place, 3)), 90)))
    with open_slide(path) as slide:
        assert slide.reader == "direct"
        for level, image in enumerate(right):
            height, width = image.shape[:2]
            off = np.abs(slide.read_region(0, 0, width, height, level=level) - image)
            corners = product(range(0, height, 256), range(0, width, 256))
            assert all(off[top : top + 256, left : left + 256].mean() < 12 for top, left in corners)


def say_colours(path: Path, photometric: int) -> None:
    """Let every page say that it has these colours."""
    with tifffile.TiffFile(path) as file:
        first: Any = file.pages[0]
        places = [page.tags["PhotometricInterpretation"].valueoffset for page in [*file.pages, *(first.pages or ())]]
    for place in places:
        overwrite(path, place, bytes([photometric, 0]))


JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"


def rewrite_tiles(path: Path, marker: bytes) -> None:
    """Put a marker into every tile of level 0."""
    for number, (offset, length) in enumerate(stored_tiles(path)):
        stored = path.read_bytes()[offset : offset + length]
        put_tile(path, number, stored[:2] + marker + stored[2:])


def put_tile(path: Path, number: int, stored: bytes) -> None:
    """Store other bytes for a tile of level 0."""
    at = path.stat().st_size
    overwrite(path, at, stored)
    set_tile_tag(path, "TileOffsets", number, at)
    set_tile_tag(path, "TileByteCounts", number, len(stored))


def whole_tile(image: NDArray[np.uint8], row: int, col: int) -> NDArray[np.uint8]:
    """Cut out a tile, filled up to its size."""
    part = image[256 * row : 256 * row + 256, 256 * col : 256 * col + 256]
    return np.pad(part, ((0, 256 - part.shape[0]), (0, 256 - part.shape[1]), (0, 0)), mode="edge")


@pytest.mark.parametrize("extended", [False, True])
def test_places_of_dicom_tiles_that_would_end_the_process_are_refused(tmp_path: Path, extended: bool) -> None:
    path = tmp_path / "s.dcm"
    parts = write_dicom(path, texture(128, 128), mpp=0.972, listed=not extended)[-5:]
    first, stored = parts[1].start, path.read_bytes()
    places = np.array([part.start - first for part in parts[1:]], "<u8" if extended else "<u4")
    at, old = parts[0].start - 12, places.tobytes()  # before the pixels
    if extended:
        stored = stored[:at] + b"\xe0\x7f\1\0OV\0\0" + len(old).to_bytes(4, "little") + old + stored[at:]
    path.write_bytes(stored)
    pixels = open_slide(path).read_region(0, 0, 128, 128)
    np.testing.assert_allclose(pixels, texture(128, 128), atol=60)
    for wrong in (0, places[1], len(stored), 2 ** (8 * places.itemsize) - 1):
        other = places.copy()
        other[2] = wrong
        path.write_bytes(stored.replace(old, other.tobytes()))
        with pytest.raises(
            SlideReadError, match=r"s\.dcm: its list of where each of its 4 tiles lies is damaged,.*it$"
        ) as caught:
            open_slide(path)
        assert "\n" not in str(caught.value)


def test_other_pixels_for_another_reason_are_told(
    tmp_path: Path, levels: list[NDArray[np.uint8]], caplog: pytest.LogCaptureFixture
) -> None:
    """A JPEG that says both: libjpeg believes its JFIF marker, OpenSlide the TIFF."""
    path = write_jpeg_slide(tmp_path / "s.tif", [levels[0]], photometric="rgb")
    rewrite_tiles(path, JFIF)
    with open_slide(path) as slide:
        assert slide.reader == "openslide"
        np.testing.assert_allclose(slide.read_region(0, 0, 600, 500), levels[0][:500, :600], atol=40)
    assert "s.tif: tiles of level 0 decode to other pixels than OpenSlide's, which are used" in caplog.text


def test_no_such_reader(plain: Path) -> None:
    with pytest.raises(ValueError, match="reader 'fast'; expected one of"):
        open_slide(plain, reader="fast")


def test_info_tells_the_reader(plain: Path) -> None:
    assert (info(plain)["reader"], info(plain)["reader_reason"]) == ("direct", "a plain TIFF of JPEG tiles")
    assert info(plain, reader="openslide")["reader"] == "openslide"


def _blocks(side: int = 150, halo: int = 40) -> list[tuple[int, int, int, int]]:
    return [(x - halo, y - halo, side + 2 * halo, side + 2 * halo) for y in range(0, 556, side) for x in range(0, 696, side)]


@pytest.mark.parametrize("threads", [1, 4])
def test_overlapping_blocks_decode_each_tile_once(plain: Path, threads: int) -> None:
    slide, blocks = open_slide(plain), _blocks()
    needed, before = slide.expect(slide.mpp, blocks), slide.tiles_decoded
    assert needed == 9
    assert before is not None
    waiting, pixels = iter(enumerate(blocks)), {}
    lock, together = threading.Lock(), threading.Barrier(threads)

    def work() -> None:
        together.wait()
        while True:
            with lock:
                number, window = next(waiting, (None, None))
            if number is None or window is None:
                return
            pixels[number] = slide.read_at(slide.mpp, *window)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert slide.tiles_decoded == before + needed
    whole = open_slide(plain, reader="openslide")
    for number, window in enumerate(blocks):
        np.testing.assert_array_equal(pixels[number], whole.read_at(slide.mpp, *window))


def test_expected_tiles_are_let_go_after_their_last_use() -> None:
    cache, tile = TileCache(), np.zeros((8, 8, 3), np.uint8)
    cache.expect({"twice": 2})
    for key, held in [("once", 0), ("twice", tile.nbytes), ("once", tile.nbytes), ("twice", 0)]:
        cache.get(key, lambda: tile)
        assert cache.held_bytes == held
    assert cache.decoded == 3


def test_the_cache_stays_within_its_bounds() -> None:
    tile = np.zeros((8, 8, 3), np.uint8)
    cache = TileCache(casual_bytes=3 * tile.nbytes, expected_bytes=5 * tile.nbytes)
    for number in range(10):
        cache.get(number, lambda: tile)
        assert cache.held_bytes == min(number + 1, 3) * tile.nbytes
    for number in (9, 8, 7):
        cache.get(number, lambda: tile)
    assert cache.decoded == 10, "the latest are the ones that stayed"
    cache.expect(dict.fromkeys(range(20), 2))
    for number in range(20):
        cache.get(number, lambda: tile)
        assert cache.held_bytes <= 5 * tile.nbytes
    cache.clear()
    assert cache.held_bytes == 0


def test_who_asks_second_waits_for_the_first() -> None:
    cache, started, answers = TileCache(), threading.Event(), []

    def slow() -> NDArray[np.uint8]:
        started.set()
        time.sleep(0.05)
        return np.ones((2, 2, 3), np.uint8)

    first = threading.Thread(target=lambda: answers.append(cache.get("a", slow)))
    first.start()
    started.wait()
    answers.append(cache.get("a", lambda: pytest.fail("decoded twice")))
    first.join()
    assert answers[0] is answers[1]


def test_a_tile_that_failed_is_tried_again() -> None:
    cache = TileCache()

    def broken() -> NDArray[np.uint8]:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        cache.get("a", broken)
    assert cache.get("a", lambda: np.ones((1, 1, 3), np.uint8)).all()
    assert (cache.decoded, cache.held_bytes) == (1, 3)


@pytest.mark.shared_data
def test_a_real_aperio_slide(shared_data: Path) -> None:
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    slide = assert_same_pixels(path)
    expected = open_slide(path, reader="openslide").read_at(0.972, -50, -50, 300, 700)
    np.testing.assert_array_equal(slide.read_at(0.972, -50, -50, 300, 700), expected)


def test_the_reader_is_part_of_a_scans_identity(plain: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tissue_mask": "none", "block_px": 192}
    made = scan_darkness(plain, tmp_path / "heat.zarr", **options)
    assert made.record.identity.reader == "direct"
    with pytest.raises(OutputExistsError, match="reader is direct, now openslide"):
        scan_darkness(plain, tmp_path / "heat.zarr", reader="openslide", **options)


@pytest.mark.parametrize("turned", [2, 6])
def test_a_slide_that_is_to_be_turned_is_refused(tmp_path: Path, turned: int) -> None:
    """OpenSlide's library would turn each tile where it lies."""
    for value in (1, turned):
        extra = [(274, "H", 1, value, True)]
        size: dict[str, Any] = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(tmp_path / f"{value}.tif", texture(300, 400), tile=(256, 256), extratags=extra, metadata=None, **size)
    with open_slide(tmp_path / "1.tif") as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 400, 300), texture(300, 400))
    with pytest.raises(SlideReadError, match=rf"page 0 is to be turned \(Orientation {turned}\)"):
        open_slide(tmp_path / f"{turned}.tif")


GREY = {"photometric": "minisblack", "planarconfig": "contig"}


@pytest.mark.parametrize(
    ("pixels", "stored", "told"),
    [
        (texture(300, 400).astype(np.uint16) * 16, {"photometric": "rgb"}, "16 bits a colour; expected 8"),
        (texture(300, 400), {"photometric": "cielab"}, "colours stored as CIELAB; expected RGB"),
        (np.dstack([texture(300, 400), np.zeros((300, 400), np.uint8)]), {"photometric": "rgb"}, "a fourth value"),
        (texture(300, 400).astype(np.int8), {"photometric": "rgb"}, "values that are no whole numbers from 0 on"),
        (texture(300, 400), {**GREY, "extrasamples": ["unspecified"] * 2}, "grey of 3 values a pixel"),
        (texture(300, 400)[..., :2], {**GREY, "extrasamples": ["unassalpha"]}, "grey of 2 values a pixel"),
        (
            texture(300, 400),
            {"photometric": "rgb", "compression": "packbits", "predictor": True},
            "Predictor 2 with the compression PackBits, of which libraries make different pixels; expected 1",
        ),
    ],
)
@pytest.mark.parametrize("nested", [0, 1])
def test_what_openslide_would_decode_to_something_else_is_refused(
    tmp_path: Path, pixels: NDArray[Any], stored: dict[str, Any], told: str, nested: int
) -> None:
    """It takes the top byte of 16 bits, a fourth value for transparency, and of grey with more values the first."""
    size: dict[str, Any] = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER", "metadata": None}
    extra: dict[str, Any] = {"extrasamples": ["unspecified"]} if pixels.shape[2] == 4 else {}
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        for level in range(nested + 1):
            coarser = np.ascontiguousarray(pixels[:: level + 1, :: level + 1])
            nesting: dict[str, Any] = {"subifds": nested} if nested and not level else {}
            file.write(coarser, tile=(256, 256), subfiletype=level, **nesting, **stored, **extra, **size)
    with served(tmp_path) as far:
        for path in (tmp_path / "slide.tif", f"{far.url}/slide.tif"):
            with pytest.raises(SlideReadError, match=rf"{path}: {told}.*; convert the slide"):
                open_slide(path)


def test_values_of_an_undefined_format_are_read_as_if_nothing_were_said(tmp_path: Path) -> None:
    undefined: dict[str, Any] = {"photometric": "rgb", "extratags": [(339, "H", 3, (4, 4, 4), True)], "metadata": None}
    tifffile.imwrite(tmp_path / "s.tif", texture(300, 400), tile=(256, 256), **undefined)
    with open_slide(tmp_path / "s.tif", mpp=0.5) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 400, 300), texture(300, 400))


@pytest.mark.parametrize(
    ("kind", "said", "refused"), [(1, None, True), (0, None, False), (0, "Aperio 1\r\n800x600|MPP = 0.5", True)]
)
def test_a_coarser_level_of_another_form_is_refused_too(tmp_path: Path, kind: int, said: str | None, refused: bool) -> None:
    """It would be white. A page that does not say that it is one is none, but for Aperio's, which never say it."""
    pixels = texture(600, 800)
    coarser = np.dstack([pixels[::2, ::2], np.zeros((300, 400), np.uint8)])
    size: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "metadata": None, "description": said}
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        file.write(pixels, **size)
        file.write(coarser, subfiletype=kind, extrasamples=["unspecified"], **size)
    if refused:
        with pytest.raises(SlideReadError, match="a fourth value a pixel without a meaning"):
            open_slide(tmp_path / "slide.tif", mpp=0.5)
    else:
        assert open_slide(tmp_path / "slide.tif", mpp=0.5).width == 800


@pytest.mark.parametrize("form", [{"photometric": "separated"}, {"photometric": "rgb", "extratags": [(274, "H", 1, 6, True)]}])
def test_a_label_may_be_of_any_form(tmp_path: Path, form: dict[str, Any]) -> None:
    options: dict[str, Any] = {"tile": (256, 256), "metadata": None}
    label = texture(300, 100)
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        file.write(texture(600, 800), photometric="rgb", **options)
        stored = np.dstack([label, label[..., :1]]) if form["photometric"] == "separated" else label
        file.write(stored, subfiletype=1, description="label", **form, **options)
    with open_slide(tmp_path / "slide.tif", mpp=0.5) as slide:
        assert list(slide.levels_left_out) == [1]
        np.testing.assert_array_equal(slide.read_region(0, 0, 800, 600), texture(600, 800))
