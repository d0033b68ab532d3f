"""Levels whose pixels lie elsewhere than their sizes say are not read."""

from __future__ import annotations

import logging
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from slide_files import MODEL_MPP, texture, write_jpeg_slide, write_slide

from wsi_meta.demo.pyramid_writer import halved
from wsi_meta.errors import SlideReadError
from wsi_meta.metadata import info
from wsi_meta.readers.levels import find_scales, find_window, is_same_scale
from wsi_meta.slides.resampling import average_area, exact_ratio
from wsi_meta.slides.slide import Slide, open_slide

TILE = (256, 256)


def _factors(*sizes: tuple[int, int], tile: tuple[int, int] = TILE) -> list[float | None]:
    """The factor of each level; None for those that are left out. The stated ones are OpenSlide's."""
    stated = [(sizes[0][0] / width + sizes[0][1] / height) / 2 for width, height in sizes]
    scales = find_scales(sizes, stated, [tile] * len(sizes))
    return [scales.usable.get(level) for level in range(len(sizes))]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(900, 700), (450, 350), (225, 175)], [1, 2, 4]),
        ([(46000, 32914), (11500, 8228), (2875, 2057)], [1, 4, 16]),
        ([(109240, 220696), (54620, 110348), (427, 862), (213, 431)], [1, 2, 256, 512]),
        ([(105813, 93951), (52907, 46976), (26454, 23488), (414, 367), (207, 184)], [1, 2, 4, 256, 512]),
        ([(803, 601), (200, 150), (3, 2), (1, 1)], [1, 4, 256, (803 + 601) / 2]),
        ([(1000, 800), (400, 320)], [1, 2.5]),
        ([(900, 600), (300, 200)], [1, 3]),
    ],
    ids=["halved", "aperio", "mirax", "ventana", "tiny", "two and a half", "a third"],
)
def test_sizes_rounded_up_or_down_are_halved_ones(sizes: list[tuple[int, int]], expected: list[float]) -> None:
    """Rounded sizes alone would put the far end of a slide of 200,000 px off by more than a pixel."""
    assert _factors(*sizes) == expected


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(3000, 2300), (1280, 1024), (512, 512)], [1.0, None, None]),
        ([(2300, 2300), (1024, 1024)], [1.0, None]),
        ([(2048, 2048), (1150, 1150)], [1.0, None]),
        ([(2816, 2048), (1500, 1150)], [1.0, None]),
        ([(3000, 2300), (1500, 1150), (640, 480)], [1.0, 2.0, None]),
        ([(3000, 2300), (1500, 1150), (256, 256)], [1.0, 2.0, None]),
        ([(3000, 2300), (1495, 1150)], [1.0, None]),
    ],
    ids=["cropped", "cropped square", "narrower square level 0", "narrower level 0", "macro", "macro of one tile", "5 px"],
)
def test_sizes_that_disagree(sizes: list[tuple[int, int]], expected: list[float | None]) -> None:
    assert _factors(*sizes) == expected


def test_padding_to_whole_tiles_is_seen_through() -> None:
    """A slide of Camelyon16, as ASAP wrote it: OpenSlide's factor of level 2 is 3.99."""
    sizes = [(97792, 221184), (48896, 110592), (24576, 55296), (12288, 27648), (6144, 13824), (3072, 7168), (512, 512)]
    assert _factors(*sizes, tile=(512, 512)) == [1, 2, 4, 8, 16, 32, None]


def _levels(height: int, width: int, count: int) -> list[NDArray[np.uint8]]:
    levels = [texture(height, width, seed=4)]
    while len(levels) < count:
        levels.append(halved(levels[-1]))
    return levels


def _assert_read_as(slide: Slide, whole: Slide) -> None:
    """Both give the same picture at the level that one lacks, but for the JPEG's own errors."""
    for x, y in [(0, 0), (150, 200), (430, 300)]:
        ours, theirs = (each.read_at(2 * MODEL_MPP, x, y, 120, 90).astype(int) for each in (slide, whole))
        assert np.abs(ours - theirs).mean() < 6
        assert np.abs(ours - np.roll(theirs, 8, 1)).mean() > 12, "eight pixels beside it the picture is another one"


@pytest.mark.parametrize("reader", ["direct", "openslide"])
def test_a_cropped_level_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture, reader: str) -> None:
    levels = _levels(900, 1200, 2)
    whole = open_slide(write_jpeg_slide(tmp_path / "whole.tif", levels), reader=reader)
    path = write_jpeg_slide(tmp_path / "cropped.tif", [levels[0], levels[1][:256, :512]])
    assert not caplog.records
    slide = open_slide(path, reader=reader)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert "cropped.tif: level 1 is left out, finer ones are read instead: padded or cut to whole tiles" in told[0]
    _assert_read_as(slide, whole)
    with pytest.raises(SlideReadError, match=r"cropped\.tif: level 1 is not read"):
        slide.read_region(0, 0, 10, 10, level=1)
    shown = info(path, reader=reader)["levels"]
    assert shown[0]["left_out"] is None
    assert "whole tiles" in shown[1]["left_out"]


def test_a_macro_among_the_levels_is_not_read(tmp_path: Path) -> None:
    levels = _levels(900, 1200, 2)
    macro = np.full((300, 300, 3), 90, np.uint8)
    slide = open_slide(write_jpeg_slide(tmp_path / "macro.tif", [*levels, macro]))
    assert slide.reader == "direct"
    assert list(slide.levels_left_out) == [2]
    image, readable = slide.read_overview(4 * MODEL_MPP)
    assert readable.all()
    assert np.abs(image.astype(int) - halved(levels[1])).mean() < 6


@pytest.mark.parametrize("reader", ["direct", "openslide"])
def test_a_padded_level_is_read_at_its_true_place(tmp_path: Path, reader: str) -> None:
    """And its padding, which some writers leave black, lies outside the slide."""
    levels = _levels(900, 1200, 2)
    padded = np.zeros((512, 640, 3), np.uint8)
    padded[:450, :600] = levels[1]
    whole = open_slide(write_jpeg_slide(tmp_path / "whole.tif", levels, tile_px=128), reader=reader)
    slide = open_slide(write_jpeg_slide(tmp_path / "padded.tif", [levels[0], padded], tile_px=128), reader=reader)
    assert slide.level_downsamples == (1.0, 2.0)
    _assert_read_as(slide, whole)
    beyond = slide.read_region(1200, 0, 40, 512, level=1)
    assert (beyond == 255).all()


# pages that are not sorted by their size

REDUCED = 1


def _write_pages(path: Path, *pages: tuple[int, int], stated: int = 3) -> Path:
    """Write pages, of each how many times it is halved, and its kind; the first ones state the size of their own pixels."""
    levels = _levels(700, 900, 3)
    with tifffile.TiffWriter(path) as file:
        for place, (number, kind) in enumerate(pages):
            dots = 1e4 / (MODEL_MPP / 2 * 2**number)
            size: dict[str, Any] = {"resolution": (dots, dots), "resolutionunit": "CENTIMETER"} if place < stated else {}
            options: dict[str, Any] = {"tile": (256, 256), "compression": "zlib", "photometric": "rgb", "metadata": None}
            file.write(levels[number], subfiletype=kind, **options, **size)
    return path


@pytest.mark.parametrize("pages", [[(2, 0), (0, REDUCED), (1, REDUCED)], [(1, 0), (0, REDUCED)], [(0, 0), (1, REDUCED)]])
def test_the_pixel_size_is_that_of_the_largest_page_wherever_it_lies(tmp_path: Path, pages: list[tuple[int, int]]) -> None:
    """OpenSlide sorts pages by their size, and takes that of the first."""
    slide = open_slide(_write_pages(tmp_path / "s.tif", *pages))
    assert slide.level_dimensions[0] == (900, 700)
    assert slide.mpp == pytest.approx(MODEL_MPP / 2)


@pytest.mark.parametrize("pages", [[(2, REDUCED), (1, REDUCED), (0, 0)], [(2, 0), (0, 0), (1, REDUCED)]])
def test_a_largest_page_that_openslide_passes_over_is_told(tmp_path: Path, pages: list[tuple[int, int]]) -> None:
    with pytest.raises(SlideReadError, match=r"s\.tif: 2 pictures \(450 x 350 px, 900 x 700 px\); expected one"):
        open_slide(_write_pages(tmp_path / "s.tif", *pages))


def test_a_pixel_size_that_is_not_the_largest_pages_is_not_taken(tmp_path: Path) -> None:
    slide = open_slide(_write_pages(tmp_path / "s.tif", (1, 0), (0, REDUCED), stated=1))
    assert slide.known_mpp is None
    assert "pass --mpp" in str(slide.mpp_problem)


# real slides, by the sizes of their levels

CAMELYON = {
    "Camelyon16": [(97792, 221184), (48896, 110592), (24576, 55296), (12288, 27648), (6144, 13824), (3072, 7168)],
    "padded by a part of a tile": [(97280, 220700), (49152, 110592), (24576, 55296), (12288, 27648), (6144, 14336)],
    "halved, rounded down": [(97793 >> n, 221187 >> n) for n in range(9)],
    "halved, rounded up": [(-(-97793 // 2**n), -(-221187 // 2**n)) for n in range(9)],
}


@pytest.mark.parametrize("name", CAMELYON)
def test_a_cell_lies_at_the_same_place_at_every_level(name: str) -> None:
    """A level that is used has a power of two as its factor, and a cell is read within a quarter pixel of the model."""
    sizes = CAMELYON[name]
    stated = [(sizes[0][0] / width + sizes[0][1] / height) / 2 for width, height in sizes]
    scales = find_scales(sizes, stated, [(512, 512)] * len(sizes))
    assert 2 in scales.usable, "the level that is read is among them"
    for level, factor in scales.usable.items():
        width, height = (factor * side for side in sizes[level])
        assert width == pytest.approx(sizes[0][0], abs=2 * 512 * factor)
        assert height == pytest.approx(sizes[0][1], abs=2 * 512 * factor)
        # at the far end of the slide, in pixels of the model, which are four of level 0
        true = 2**level
        assert abs(factor / true - 1) * max(sizes[0]) / 4 < 0.25, (level, factor)


def test_levels_of_even_numbers_of_tiles_are_padded() -> None:
    """As Philips' scanners write DICOM. They were all left out, and tissue was found in level 0."""
    sizes = [(104448, 55296), (53248, 28672), (26624, 14336), (14336, 8192), (8192, 4096), (4096, 2048), (2048, 2048)]
    assert _factors(*sizes, tile=(1024, 1024)) == [1, 2, 4, 8, 16, 32, None]


@pytest.mark.parametrize(
    "sizes",
    [
        [(97792, 221184), (48896, 110592), (24448, 54784)],
        [(97792, 221184), (48896, 110592), (24576, 56320)],
        [(97792, 221184), (48896, 110592), (23936, 55296)],
        [(97792, 221184), (48896, 110592), (24448, 27648)],
    ],
    ids=["cut by a tile", "padded by two tiles", "narrower by a tile", "another factor"],
)
def test_a_level_whose_ratios_disagree_by_more_than_padding_is_left_out(sizes: list[tuple[int, int]]) -> None:
    assert _factors(*sizes, tile=(512, 512)) == [1, 2, None]


RUMC, HAMAMATSU, MIRAX, PHILIPS = 0.243094, 0.22632, 0.242535, 0.25


@settings(max_examples=40, deadline=None)
@given(
    mpp=st.sampled_from([RUMC, HAMAMATSU, MIRAX, PHILIPS, 0.2435, 0.486, 0.499, 0.98]),
    x=st.integers(-20, 240),
    y=st.integers(-20, 240),
    size=st.tuples(st.integers(1, 96), st.integers(1, 96)),
)
def test_windows_that_overlap_agree_in_every_bit(mpp: float, x: int, y: int, size: tuple[int, int]) -> None:
    width, height = size
    with Slide.from_array(texture(1024, 1024), mpp=mpp) as slide:
        whole = slide.read_at(MODEL_MPP, -30, -30, 370, 370)
        part = slide.read_at(MODEL_MPP, x, y, width, height)
    np.testing.assert_array_equal(part, whole[y + 30 : y + 30 + height, x + 30 : x + 30 + width])


@pytest.mark.parametrize("mpp", [RUMC, MIRAX, 0.2435, 0.2425])
def test_a_level_of_nearly_the_models_pixel_size_is_read_as_it_is(tmp_path: Path, mpp: float) -> None:
    """The finer one would be four times as much to decode, and its averages are not what models were trained on."""
    with open_slide(write_slide(tmp_path / "s.tif", texture(4096, 512), mpp, levels=4)) as slide:
        level = slide.read_region(0, 0, 128, 1024, level=2)
        rows, cols = round(4096 * mpp / MODEL_MPP), round(512 * mpp / MODEL_MPP)
        plane = slide.read_at(MODEL_MPP, 0, 0, cols, rows)
    for shown, stored in ((plane[:, 50], level[:, 50]), (plane[50], level[50])):
        places = (np.arange(len(shown)) + 0.5) * MODEL_MPP / mpp / 4
        np.testing.assert_array_equal(shown, stored[places.astype(int)])


def test_a_level_further_off_is_averaged(tmp_path: Path) -> None:
    with open_slide(write_slide(tmp_path / "s.tif", texture(1024, 1024), HAMAMATSU, levels=4)) as slide:
        finer = slide.read_region(0, 0, 256, 256, level=2)
        scale = MODEL_MPP / HAMAMATSU / 4
        np.testing.assert_array_equal(slide.read_at(MODEL_MPP, 0, 0, 200, 200), average_area(finer, scale, (200, 200)))


@given(
    mpp=st.floats(0.2, 1.0).map(lambda mpp: round(mpp, 6)),
    place=st.integers(0, 60_000),
)
def test_what_is_read_lies_within_a_pixel_of_its_place_anywhere(mpp: float, place: int) -> None:
    """On a slide of any size: nothing adds up."""
    l0_per_px = exact_ratio(MODEL_MPP, mpp)
    window = find_window({0: 1.0, 1: 2.0, 2: 4.0, 3: 8.0}, l0_per_px, place, place, 1, 1)
    exact = [float((place + half) * l0_per_px) / 2**window.level for half in (0, 0.5, 1)]
    if is_same_scale(window.scale):
        assert (window.width, window.height) == (1, 1)
        assert window.left <= exact[1] <= window.left + 1
    else:
        assert (window.left, window.left + window.width) == (floor(exact[0]), ceil(exact[2]))
