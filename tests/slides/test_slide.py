from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from slide_files import damage_tile, texture, write_scn, write_slide, write_sparse_slide

from wsi_meta.demo.pyramid_writer import write_pyramid
from wsi_meta.errors import MissingMppError, OptionsError, SlideReadError
from wsi_meta.readers.openslide_reader import _find_bounds
from wsi_meta.readers.reader import Bounds, UnreadableRegionError
from wsi_meta.slides.overview import read_in_parts
from wsi_meta.slides.resampling import average_area, exact_ratio
from wsi_meta.slides.slide import open_slide


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return texture(700, 900)


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory, image: NDArray[np.uint8]) -> Path:
    return write_slide(tmp_path_factory.mktemp("slide") / "a.tif", image, levels=2)


def test_facts(slide_file: Path) -> None:
    with open_slide(slide_file) as slide:
        assert (slide.width, slide.height) == (900, 700)
        assert slide.mpp == pytest.approx(0.972, rel=1e-6)
        assert slide.level_dimensions == ((900, 700), (450, 350))
        assert slide.name == "a"


def test_what_is_no_region_is_refused(slide_file: Path) -> None:
    with open_slide(slide_file) as slide:
        for told in ("level -1; expected 0 to 1", "level 9"):
            with pytest.raises(OptionsError, match=told):
                slide.read_region(0, 0, 10, 10, level=int(told.split()[1].strip(";")))
        with pytest.raises(OptionsError, match="side -1; expected whole pixels, 0 to "):
            slide.read_region(0, 0, 10, -1)
        with pytest.raises(OptionsError, match="mpp nan; expected micrometres per pixel, over 0"):
            slide.read_at(float("nan"), 0, 0, 10, 10)
        for place in (float("nan"), 1e308, -(2**63)):
            with pytest.raises(OptionsError, match=r"corner .*; expected pixels, at most 1,000,000,000 either way"):
                slide.read_at(0.972, place, 0, 10, 10)  # type: ignore[arg-type]
        with pytest.raises(OptionsError, match="side 9223372036854775808; expected whole pixels, 0 to 1,000,000,000"):
            slide.read_region(0, 0, 2**63, 10)
        assert slide.read_at(0.972, 0, 0, 0, 0).shape == (0, 0, 3)


def test_a_slide_stays_readable_from_another_folder(slide_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(slide_file.parent)
    with pytest.raises(SlideReadError, match=r"^gone\.tif: "):
        open_slide("gone.tif")
    with open_slide(slide_file.name) as slide:
        assert slide.path == Path(slide_file.name)
        before = slide.read_region(0, 0, 50, 50)
        slide.close()
        monkeypatch.chdir(tmp_path)
        np.testing.assert_array_equal(slide.read_region(0, 0, 50, 50), before)


def test_pixels_are_the_stored_ones(slide_file: Path, image: NDArray[np.uint8]) -> None:
    region = open_slide(slide_file).read_region(100, 50, 300, 200)
    assert region.dtype == np.uint8
    np.testing.assert_array_equal(region, image[50:250, 100:400])


def test_level_pixels_are_averages(slide_file: Path, image: NDArray[np.uint8]) -> None:
    region = open_slide(slide_file).read_region(100, 60, 100, 80, level=1)
    expected = image[60:220, 100:300].reshape(80, 2, 100, 2, 3).mean((1, 3))
    np.testing.assert_allclose(region, expected, atol=0.51)


@pytest.mark.parametrize(("x", "y"), [(-40, -30), (850, 650), (-1000, 0), (900, 700)])
def test_outside_is_white(slide_file: Path, image: NDArray[np.uint8], x: int, y: int) -> None:
    region = open_slide(slide_file).read_region(x, y, 120, 110)
    whole = np.full((700 + 3000, 900 + 3000, 3), 255, np.uint8)
    whole[1500:2200, 1500:2400] = image
    np.testing.assert_array_equal(region, whole[1500 + y : 1610 + y, 1500 + x : 1620 + x])


def test_transparent_is_background(tmp_path: Path) -> None:
    slide = open_slide(write_sparse_slide(tmp_path / "sparse.tif", (2000, 2000), 0.5, [(600, 600, 50)], tile_px=512))
    region = slide.read_region(0, 0, 2000, 2000)
    assert (region[600:650, 600:650] == 0).all()
    assert int((region == 0).sum()) == 50 * 50 * 3
    assert (region[0, 0] == 255).all()


def test_own_background_colour(slide_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = open_slide(slide_file)
    slide.background = (10, 20, 30)
    assert slide.read_region(-5, -5, 2, 2).tolist() == [[[10, 20, 30]] * 2] * 2


def test_reads_larger_than_openslide_may(tmp_path: Path) -> None:
    image = np.tile(texture(256, 256, seed=3), (2, 34, 1))  # level 1 is 4352 wide, over the 4,096 of openslide issue 612
    slide = open_slide(write_pyramid(tmp_path / "wide.tif", image, mpp=0.5, lossless=True, levels=2))
    level = image.reshape(256, 2, 4352, 2, 3).mean((1, 3))
    np.testing.assert_allclose(slide.read_region(0, 0, 4352, 256, level=1), level, atol=0.51)


def test_read_at_the_slides_own_resolution(slide_file: Path, image: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(open_slide(slide_file).read_at(0.972, -10, 20, 200, 100)[:, 10:], image[20:120, :190])


def test_read_at_takes_the_level_that_fits(slide_file: Path) -> None:
    slide = open_slide(slide_file)
    np.testing.assert_array_equal(slide.read_at(1.944, 30, 40, 100, 90), slide.read_region(60, 80, 100, 90, level=1))


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(1.0, 8.0),
    start=st.tuples(st.floats(0, 3), st.floats(0, 3)),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
def test_area_average_is_the_integral(scale: float, start: tuple[float, float], shape: tuple[int, int], seed: int) -> None:
    height, width = (int(np.ceil(begin + scale * count)) for begin, count in zip(start, shape, strict=True))
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    averaged = average_area(pixels, scale, shape, corner=(-start[0], -start[1]))
    integral = np.pad(pixels.astype(float), ((1, 0), (1, 0), (0, 0))).cumsum(0).cumsum(1)
    rows = start[0] + scale * np.arange(shape[0] + 1)
    cols = start[1] + scale * np.arange(shape[1] + 1)
    down = np.array(
        [[np.interp(rows, np.arange(height + 1), integral[:, col, c]) for c in range(3)] for col in range(width + 1)]
    )
    both = np.array([[np.interp(cols, np.arange(width + 1), down[:, c, row]) for c in range(3)] for row in range(shape[0] + 1)])
    expected = np.diff(np.diff(both, axis=0), axis=2).transpose(0, 2, 1) / scale**2
    np.testing.assert_allclose(averaged, expected, atol=0.502)


def test_0499_works_as_well_as_0243(tmp_path: Path) -> None:
    """A smooth picture, stored at both resolutions, reads alike at the model's."""

    def picture(mpp: float) -> NDArray[np.uint8]:
        side = round(200 / mpp)
        y, x = (np.mgrid[0:side, 0:side] + 0.5) * mpp
        return np.stack([127 + 100 * np.sin(x / 9), 127 + 100 * np.cos(y / 7), 127 + 90 * np.sin((x + y) / 15)], -1).astype(
            np.uint8
        )

    reads = [
        open_slide(write_slide(tmp_path / f"{mpp}.tif", picture(mpp), mpp)).read_at(0.972, 0, 0, 200, 200).astype(int)
        for mpp in (0.243, 0.499)
    ]
    assert np.abs(reads[0] - reads[1]).max() <= 3


def test_too_coarse(tmp_path: Path) -> None:
    slide = open_slide(write_slide(tmp_path / "coarse.tif", texture(64, 64), 28.0))
    with pytest.raises(SlideReadError, match=r"coarse\.tif: 28 um per pixel is too coarse; expected 0\.972 or finer"):
        slide.read_at(0.972, 0, 0, 10, 10)


def test_larger_than_any_slide(tmp_path: Path) -> None:
    """Else its overview takes all memory."""
    path = write_sparse_slide(tmp_path / "vast.tif", (8192, 8192), 50.0, [(0, 0, 64)])
    with pytest.raises(
        SlideReadError, match=r"vast\.tif: 8192 x 8192 px of 50 um are 410 x 410 mm; expected at most 40,000 mm2"
    ):
        open_slide(path).read_overview(50.0)
    assert open_slide(path, mpp=20.0).check_resolution(20.0) == 1
    long = write_slide(tmp_path / "long.tif", texture(16, 11_000), 50.0)
    with pytest.raises(SlideReadError, match=r"are 550 x 1 mm; expected at most 40,000 mm2, 500 mm long"):
        open_slide(long).read_overview(50.0)


def test_a_picture_of_which_nothing_is_read_is_given_up() -> None:
    """However large it is said to be: each read that fails opens the file again."""
    tried: list[tuple[int, ...]] = []

    def fail(*part: int) -> NDArray[np.uint8]:
        tried.append(part)
        raise UnreadableRegionError("damaged")

    image, readable, failure = read_in_parts(fail, (4, 256 * 1100), 16.0, (255, 255, 255))
    assert len(tried) == 1000
    assert not readable.any()
    assert (image == 255).all()
    assert failure is not None


def test_a_little_coarser_is_read(tmp_path: Path) -> None:
    slide = open_slide(write_slide(tmp_path / "bit.tif", texture(200, 200), 1.0))
    assert slide.read_at(0.972, 0, 0, 96, 96).shape == (96, 96, 3)


def test_missing_mpp(tmp_path: Path) -> None:
    import tifffile

    path = tmp_path / "no-mpp.tif"
    tifffile.imwrite(path, texture(300, 300), tile=(256, 256), photometric="rgb", metadata=None)
    slide = open_slide(path)
    assert slide.known_mpp is None
    with pytest.raises(MissingMppError, match=r"no-mpp\.tif: .* pass --mpp"):
        _ = slide.mpp
    assert open_slide(path, mpp=0.5).mpp == 0.5
    with pytest.raises(MissingMppError, match="-1 um per pixel"):
        open_slide(path, mpp=-1)


def test_bad_files(tmp_path: Path, slide_file: Path) -> None:
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.svs").write_text("no slide")
    (tmp_path / "cut.tif").write_bytes(slide_file.read_bytes()[:2000])
    os.mkfifo(tmp_path / "pipe.tif")
    for name, head in [
        ("a.bmp", b"BM"),
        ("png.tif", b"\x89PNG\r\n\x1a\n"),
        ("webp.png", b"RIFF\0\0\0\0WEBP"),
        ("tif.jpg", slide_file.read_bytes()[:200]),
        ("jpeg.mrxs", b"\xff\xd8\xff"),
        ("patient_000.zip", b"PK\3\4"),
        ("slide.tif.gz", b"\x1f\x8b\x08"),
        ("slide.isyntax", b'<DataObject ObjectType="DPUfsImport">'),
        ("page.svs", b"<!DOCTYPE html>\n<html>"),
    ]:
        (tmp_path / name).write_bytes(head + bytes(100))
    (tmp_path / "jpeg").mkdir()
    (tmp_path / "jpeg" / "Slidat.ini").touch()
    for name, found in [
        ("none.tif", "no such file"),
        ("", "a directory"),
        ("empty.tif", "an empty file"),
        ("text.svs", "not a slide"),
        ("cut.tif", "not a slide"),
        ("pipe.tif", "not a regular file but a pipe"),
        ("a.bmp", "a BMP file; expected a slide, .*; convert it to PNG"),
        ("png.tif", "a PNG file; .*; name it .png"),
        ("webp.png", "a WebP file; .*; convert it to PNG"),
        ("tif.jpg", "a TIFF file; .*; name it .tif"),
        ("jpeg.mrxs", "OpenSlide|not a slide"),
        ("patient_000.zip", "a zip archive; expected a slide; unpack it"),
        ("slide.tif.gz", "a gzip archive; expected a slide; unpack it"),
        ("slide.isyntax", "Philips' iSyntax; expected a slide; export it as TIFF"),
        ("page.svs", "a web page; expected a slide; download the slide again"),
    ]:
        with pytest.raises(SlideReadError, match=found) as caught:
            open_slide(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)


def test_one_bad_tile_does_not_spoil_the_rest(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    path = write_slide(tmp_path / "bad.tif", image)
    damage_tile(path, 0)
    slide = open_slide(path)
    with pytest.raises(SlideReadError, match="cannot be decoded at x=10 y=10"):
        slide.read_region(10, 10, 20, 20)
    np.testing.assert_array_equal(slide.read_region(300, 300, 50, 50), image[300:350, 300:350])
    overview, readable = slide.read_overview(0.972)
    assert not readable[0, 0]
    assert readable[300:, 300:].all()
    np.testing.assert_array_equal(overview[512:, 512:], image[512:, 512:])


def test_nothing_readable(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "bad.tif", texture(256, 256))
    damage_tile(path, 0)
    with pytest.raises(SlideReadError, match="nothing of it can be read"):
        open_slide(path).read_overview(0.972)


def test_threads_share_a_slide(slide_file: Path, image: NDArray[np.uint8]) -> None:
    slide = open_slide(slide_file)
    right: list[bool] = []

    def read(offset: int) -> None:
        for x in range(0, 400, 40):
            region = slide.read_region(x, offset, 64, 64)
            right.append(np.array_equal(region, image[offset : offset + 64, x : x + 64]))

    threads = [threading.Thread(target=read, args=(offset,)) for offset in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 40


def test_a_bad_tile_costs_other_threads_nothing(tmp_path: Path) -> None:
    """OpenSlide's handle, once it has met a bad tile, fails everywhere."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, texture(512, 768), photometric="rgb", tile=(256, 256), compression="lzw", metadata=None)
    with open_slide(path, reader="openslide") as before:
        expected = before.read_region(300, 0, 200, 250)
    damage_tile(path, 0)
    slide, stop = open_slide(path, reader="openslide"), threading.Event()
    read: list[bool] = []

    def read_good() -> None:
        while not stop.is_set() or not read:
            read.append(np.array_equal(slide.read_region(300, 0, 200, 250), expected))

    threads = [threading.Thread(target=read_good) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(read) < 30:
        with pytest.raises(SlideReadError, match="x=0 y=0 level 0"):
            slide.read_region(0, 0, 100, 100)
    stop.set()
    for thread in threads:
        thread.join()
    assert all(read)


def test_fingerprint_follows_content_not_name(tmp_path: Path, slide_file: Path) -> None:
    copy = tmp_path / "copy.tif"
    copy.write_bytes(slide_file.read_bytes())
    other = write_slide(tmp_path / "other.tif", texture(700, 900, seed=1), levels=2)
    assert open_slide(copy).fingerprint() == open_slide(slide_file).fingerprint()
    assert open_slide(other).fingerprint() != open_slide(slide_file).fingerprint()


def test_exact_ratio() -> None:
    assert exact_ratio(0.972, 0.243) == 4
    assert float(exact_ratio(0.972, 0.25)) == 3.888


def test_bounds_are_what_the_file_says(tmp_path: Path) -> None:
    image = texture(256, 300)
    with open_slide(write_scn(tmp_path / "s.scn", image, (100, 80), (600, 500))) as slide:
        assert (slide.width, slide.height) == (600, 500)
        assert slide.bounds == Bounds(100, 80, 300, 256)
        np.testing.assert_array_equal(slide.read_region(100, 80, 300, 256), image)
    with open_slide(write_slide(tmp_path / "s.tif", image)) as slide:
        assert slide.bounds == Bounds(0, 0, 300, 256)


@pytest.mark.parametrize("change", [{"x": "600"}, {"y": "-1"}, {"width": "0"}, {"height": ""}, {"x": "1.5"}, {"y": None}])
def test_bounds_that_cannot_be_are_not_believed(change: dict[str, str | None]) -> None:
    stated = {"x": "100", "y": "80", "width": "300", "height": "256"}
    for parts, expected in ((stated, Bounds(100, 80, 300, 256)), (stated | change, Bounds(0, 0, 600, 500))):
        properties = {f"openslide.bounds-{name}": value for name, value in parts.items() if value is not None}
        assert _find_bounds(properties, (600, 500)) == expected
