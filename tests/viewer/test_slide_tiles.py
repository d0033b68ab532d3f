"""Tiles of a slide: those of the file as they are, the others as averages; what is damaged costs its own tile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from slide_files import damage_tile, texture, write_jpeg_slide, write_slide

from wsi_meta.readers.reader import UnreadableRegionError
from wsi_meta.slides.slide import open_slide
from wsi_meta.viewer.slide_tiles import KeptTiles, SlideTiles


def tiles_of(path: Path) -> SlideTiles:
    return SlideTiles(open_slide(path), KeptTiles())


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> SlideTiles:
    """1,500 x 1,100 px in tiles of 256 px, levels 1 and 4 stored."""
    full = texture(1100, 1500)
    quarter = full[:1100:4, :1500:4].copy()
    return tiles_of(write_jpeg_slide(tmp_path_factory.mktemp("slide") / "slide.tif", [full, quarter]))


def test_levels_are_halves_and_stored_ones_are_shown_as_they_are(pyramid: SlideTiles) -> None:
    shown = [(level.downsample, level.stored, level.columns, level.rows) for level in pyramid.levels]
    assert shown[-3:] == [(4, 1, 2, 2), (2, None, 2, 2), (1, 0, 6, 5)]
    assert max(pyramid.levels[0].columns, pyramid.levels[0].rows) == 1


def test_tiles_of_stored_levels_are_the_slides_pixels(pyramid: SlideTiles) -> None:
    for number, level in enumerate(pyramid.levels):
        if level.stored is None:
            continue
        whole = pyramid.slide.read_region(0, 0, level.width, level.height, level=level.stored)
        for row in range(level.rows):
            for col in range(level.columns):
                x, y, width, height = level.window(col, row)
                assert np.array_equal(pyramid.pixels(number, col, row)[0], whole[y : y + height, x : x + width])


def test_other_tiles_are_averages_of_the_next_finer_level(pyramid: SlideTiles) -> None:
    number = next(number for number, level in enumerate(pyramid.levels) if level.downsample == 2)
    level, full = pyramid.levels[number], pyramid.slide.read_region(0, 0, 1500, 1100)
    expected = full.reshape(550, 2, 750, 2, 3).mean((1, 3))
    found = np.zeros((level.height, level.width, 3))
    for row in range(level.rows):
        for col in range(level.columns):
            x, y, width, height = level.window(col, row)
            found[y : y + height, x : x + width] = pyramid.pixels(number, col, row)[0]
    assert np.abs(found - expected).max() <= 0.51


def test_each_stored_tile_is_decoded_once_whoever_asks(tmp_path: Path) -> None:
    tiles = tiles_of(write_jpeg_slide(tmp_path / "slide.tif", [texture(1024, 1024)]))
    places = [
        (number, col, row)
        for number, level in enumerate(tiles.levels)
        for row in range(level.rows)
        for col in range(level.columns)
    ]
    before = tiles.slide.tiles_decoded or 0
    with ThreadPoolExecutor(8) as threads:
        sent = list(threads.map(lambda place: tiles.jpeg(*place), places * 3))
    assert len(places) == 17
    assert (tiles.slide.tiles_decoded or 0) - before == 16
    assert sent[: len(places)] == sent[len(places) : 2 * len(places)]


def test_a_tile_is_a_jpeg_that_looks_like_its_pixels(pyramid: SlideTiles) -> None:
    last = len(pyramid.levels) - 1
    shown = np.asarray(Image.open(BytesIO(pyramid.jpeg(last, 5, 4)[0])))
    assert shown.shape == (1100 - 4 * 256, 1500 - 5 * 256, 3)
    assert np.abs(shown.astype(int) - pyramid.pixels(last, 5, 4)[0]).mean() < 6


def test_odd_sizes_reach_the_last_pixel(tmp_path: Path) -> None:
    tiles = tiles_of(write_slide(tmp_path / "slide.tif", np.full((777, 1301, 3), 200, np.uint8)))
    for number, level in enumerate(tiles.levels):
        assert (level.width, level.height) == (-(-1301 // level.downsample), -(-777 // level.downsample))
        corner = tiles.pixels(number, level.columns - 1, level.rows - 1)[0]
        assert (corner == 200).all()  # no white from outside the slide


def test_damage_costs_its_own_tile(tmp_path: Path) -> None:
    path = write_jpeg_slide(tmp_path / "slide.tif", [np.full((512, 512, 3), 180, np.uint8)])
    damage_tile(path, 3)
    tiles = tiles_of(path)
    last = len(tiles.levels) - 1
    assert np.abs(tiles.pixels(last, 0, 0)[0].astype(int) - 180).max() < 5
    striped, damaged = tiles.pixels(last, 1, 1)
    assert damaged
    assert len(np.unique(striped)) == 2
    assert np.array_equal(striped[..., 0], striped[..., 2])
    assert np.array_equal(striped[:-1, :-1], striped[1:, 1:]), "they fall to the right, as no hatching of cells does"


def test_what_fails_once_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost answer of a server: neither the tile nor the averages made of it outlive it."""
    tiles = tiles_of(write_jpeg_slide(tmp_path / "slide.tif", [texture(512, 512)]))
    whole = tiles_of(tmp_path / "slide.tif")
    first, last = (0, 0, 0), (len(tiles.levels) - 1, 1, 1)

    def lost(*_: object, **__: object) -> None:
        raise UnreadableRegionError("slide.tif: no answer")

    with monkeypatch.context() as patch:
        patch.setattr(tiles.slide, "read_region", lost)
        for place in (last, first):
            assert tiles.jpeg(*place)[1]
            assert tiles.pixels(*place)[1]
        assert tiles.unread
    for place in (first, last):
        assert tiles.jpeg(*place) == (whole.jpeg(*place)[0], False)
        assert np.array_equal(tiles.pixels(*place)[0], whole.pixels(*place)[0])
    assert not tiles.unread


@pytest.mark.parametrize("place", [(-1, 0, 0), (99, 0, 0), (0, 1, 0), (0, 0, 1), (0, -1, 0), (0, 10**9, 10**9)])
def test_there_is_no_tile_beyond_the_slide(pyramid: SlideTiles, place: tuple[int, int, int]) -> None:
    with pytest.raises(IndexError):
        pyramid.jpeg(*place)


def test_what_is_kept_stays_within_its_bytes(tmp_path: Path) -> None:
    kept = KeptTiles(pixel_bytes=400_000, jpeg_bytes=60_000)
    tiles = SlideTiles(open_slide(write_jpeg_slide(tmp_path / "slide.tif", [texture(1024, 1024)])), kept)
    for row in range(4):
        for col in range(4):
            tiles.jpeg(len(tiles.levels) - 1, col, row)
    assert 0 < kept.pixels.held_bytes <= 400_000
    assert 0 < kept.jpegs.held_bytes <= 60_000
