from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
from slide_files import damage_tile, texture, write_slide
from stores import make_record

from wsi_meta.heatmaps.record import ScannedTissue
from wsi_meta.heatmaps.store import Status
from wsi_meta.pictures.colours import VEIL, shown_colours
from wsi_meta.pictures.legend import unknown_entries, unseen_entries
from wsi_meta.pictures.window import UNSEEN, Map, Window, read_window
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.viewer.colours import veil_colours

GRID = PatchGrid(5000, 3100, 0.25, 0.972, 96, 32)
"""A cell is 124.416 level-0 pixels; 25 x 41 cells."""


def map_of(values: float | np.ndarray, status: Status = Status.SCANNED, alpha: float | None = 0.7) -> Map:
    filled = np.broadcast_to(np.float32(values), GRID.shape).astype(np.float32)
    return Map(make_record(GRID), filled, np.full(GRID.shape, status, np.uint8), "probability", alpha, 0.0)


class TestMap:
    @pytest.mark.parametrize(
        ("window", "shape"),
        [
            (Window(0, 0, 5000, 3100), (310, 500)),
            (Window(700, 333, 777, 555), (555, 777)),
            (Window(-400, 2900, 900, 900), (90, 90)),
        ],
    )
    def test_each_pixel_shows_the_cell_under_its_centre(self, window: Window, shape: tuple[int, int]) -> None:
        rows, cols = map_of(0).cells(window, shape)
        cell = Fraction(972, 250) * 32
        for found, start, length, pixels, end in (
            (rows, window.y, window.height, shape[0], 3100),
            (cols, window.x, window.width, shape[1], 5000),
        ):
            places = [Fraction(start) + (pixel + Fraction(1, 2)) * Fraction(length) / pixels for pixel in range(pixels)]
            assert found.tolist() == [floor(place / cell) if 0 <= place < end else -1 for place in places]

    @pytest.mark.parametrize("pixels", [(23, 38), (17, 29), (9, 5), (1, 1)])
    @pytest.mark.parametrize("state", [Status.UNREADABLE, Status.PENDING, Status.SCANNED])
    def test_of_many_cells_under_a_pixel_none_is_hidden_that_is_high_or_unknown(
        self, pixels: tuple[int, int], state: Status
    ) -> None:
        for window in (Window(0, 0, 5000, 3100), Window(-900, -700, 6500, 4500), Window(60, 60, 4930, 3000)):
            ground = np.full((*pixels, 3), 200, np.uint8)
            for axis in (0, 1):
                for line in range(GRID.shape[axis]):
                    values, status = np.zeros(GRID.shape, np.float32), np.full(GRID.shape, Status.SCANNED, np.uint8)
                    place = (line, slice(None)) if axis == 0 else (slice(None), line)
                    values[place], status[place] = (0.99 if state == Status.SCANNED else np.nan), state
                    drawn = Map(make_record(GRID), values, status, "probability", 0.7, 0.0)
                    assert (drawn.over(ground, window) != 200).any()
                    told = [entry.words for entry in unknown_entries(drawn, window, np.ones(pixels, bool))]
                    assert told == ([] if state == Status.SCANNED else [VEIL[state][1]])

    @pytest.mark.parametrize("alpha", [0.7, 1.0, 0.2, None])
    @pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
    def test_tissue_under_a_value_looks_as_on_the_colour_bar(self, value: float, alpha: float | None) -> None:
        tissue = np.array([200, 120, 170], np.uint8)
        drawn = map_of(value, alpha=alpha)
        picture = drawn.over(np.full((30, 50, 3), tissue), Window(0, 0, 5000, 3100))
        bar = shown_colours(tissue, "probability", alpha)
        np.testing.assert_array_equal(picture, np.broadcast_to(bar[round(value * 255)], picture.shape))
        assert (picture[0, 0] == tissue).all() == (value == 0 and alpha is not None)

    def test_a_value_below_the_threshold_leaves_the_bar_and_the_tissue_as_they_are(self) -> None:
        tissue = np.array([200, 120, 170], np.uint8)
        bar = shown_colours(tissue, "probability", 0.7, 0.5)
        assert (bar[:127] == tissue).all()
        assert (bar[129:] != tissue).any(-1).all()

    @pytest.mark.parametrize("status", [Status.PENDING, Status.UNREADABLE])
    def test_what_may_be_anything_is_striped(self, status: Status) -> None:
        picture = map_of(np.nan, status).over(np.full((310, 500, 3), 255, np.uint8), Window(0, 0, 5000, 3100))
        colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
        assert len(colours) == 2
        assert counts.min() > 0.45 * counts.sum()
        plain = np.array(VEIL[status][0][:3]) * 255 * VEIL[status][0][3] + 255 * (1 - VEIL[status][0][3])
        np.testing.assert_allclose(colours[colours.sum(1).argmax()], plain, atol=1)
        (entry,) = unknown_entries(map_of(np.nan, status), Window(0, 0, 5000, 3100), np.ones((310, 500), bool))
        np.testing.assert_allclose(np.array([entry.hatch, entry.colour]), colours[colours.sum(1).argsort()] / 255, atol=1 / 255)

    @pytest.mark.parametrize(
        ("status", "told", "bare"),
        [
            (Status.UNREADABLE, ["unreadable"], ["unreadable", "slide's pixels cannot be read"]),
            (Status.SCANNED, ["slide's pixels cannot be read"], ["slide's pixels cannot be read"]),
        ],
    )
    @pytest.mark.parametrize("shape", [(310, 500), (9, 15)])
    def test_what_lies_under_stripes_of_the_map_has_no_line_of_its_own(
        self, status: Status, told: list[str], bare: list[str], shape: tuple[int, int]
    ) -> None:
        window, seen = Window(-900, -700, 6500, 4500), np.ones(shape, bool)
        drawn = map_of(0.0)
        drawn.status[:16] = status
        seen[shape[0] // 4 : shape[0] // 2, shape[1] // 3 : shape[1] // 2] = False
        assert [entry.words for entry in unknown_entries(drawn, window, seen)] == told
        assert [entry.words for entry in unknown_entries(drawn, window, seen, bare=True)] == bare
        seen[-1] = False
        assert [entry.words for entry in unknown_entries(drawn, window, seen)] == bare, "also beyond those cells"

    def test_where_a_mask_says_what_is_tissue_none_was_looked_for(self) -> None:
        drawn = map_of(np.nan, Status.BACKGROUND)
        drawn = replace(drawn, record=replace(drawn.record, tissue=ScannedTissue("mask.png", 0.0)))
        window, seen = Window(0, 0, 5000, 3100), np.ones((31, 50), bool)
        told = [entry.words for entry in unknown_entries(drawn, window, seen)]
        assert told == ["not scanned: outside the tissue mask"]
        assert veil_colours(drawn.record)[str(int(Status.BACKGROUND))]["words"] == told[0]

    def test_beyond_the_slide_nothing_is_drawn(self) -> None:
        ground = np.full((90, 90, 3), 222, np.uint8)
        picture = map_of(1.0).over(ground, Window(4700, 2900, 900, 900))
        painted = (picture != 222).any(-1)
        assert painted[:20, :30].all()
        assert painted.sum() == 20 * 30
        assert (map_of(1.0).over(ground, Window(6000, 0, 900, 900)) == 222).all()


class TestReadWindow:
    @pytest.mark.parametrize("shape", [(60, 90), (200, 300), (400, 600), (331, 497)])
    def test_a_mark_lies_where_it_is(self, tmp_path: Path, shape: tuple[int, int]) -> None:
        image = np.full((900, 1200, 3), 240, np.uint8)
        image[413:453, 617:657] = 0
        window = Window(510.5, 330.25, 300, 200)
        with open_slide(write_slide(tmp_path / "s.tif", image, levels=3)) as slide:
            picture, seen = read_window(slide, window, shape)
        assert picture.shape == (*shape, 3)
        assert seen.all()
        dark = 240 - picture.mean(-1)
        rows, cols = np.indices(shape) + 0.5
        x = window.x + (dark * cols).sum() / dark.sum() * window.width / shape[1]
        y = window.y + (dark * rows).sum() / dark.sum() * window.height / shape[0]
        assert (x, y) == pytest.approx((637, 433), abs=0.3)
        assert dark.sum() / 240 * (window.width / shape[1]) ** 2 == pytest.approx(1600, rel=0.03)

    def test_damage_is_striped_and_the_rest_is_read(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tif", texture(512, 512))
        damage_tile(path, 3)
        with open_slide(path) as slide:
            picture, seen = read_window(slide, Window(0, 0, 512, 512), (256, 256))
        assert seen[:128].all()
        assert seen[:, :128].all()
        assert not seen[132:, 132:].any()
        assert {tuple(colour) for colour in picture[132:, 132:].reshape(-1, 3).tolist()} == set(UNSEEN)
        (entry,) = unseen_entries(seen)
        np.testing.assert_allclose(np.array([entry.colour, entry.hatch]), np.array(UNSEEN) / 255)

    def test_beyond_the_slide_is_its_background(self, tmp_path: Path) -> None:
        with open_slide(write_slide(tmp_path / "s.tif", np.zeros((100, 100, 3), np.uint8))) as slide:
            picture, seen = read_window(slide, Window(-50, 50, 100, 100), (50, 50))
            assert seen.all()
            assert (picture[:24, 26:] == 0).all()
            assert (picture[:, :24] == slide.background).all()
            assert (picture[26:] == slide.background).all()
