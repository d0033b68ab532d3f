"""What a whole picture says and shows: regions, sheets, text in PDF and SVG."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from slide_files import texture, write_slide
from stores import write_store

from wsi_meta.cli import main
from wsi_meta.errors import OptionsError
from wsi_meta.heatmaps.lesions import find_lesions
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.pictures.lesion_sheet import lay_out, window_round
from wsi_meta.pictures.lettering import text_width
from wsi_meta.pictures.overlay import draw_overlay
from wsi_meta.pictures.page import dpi_for
from wsi_meta.slides.slide import open_slide

MPP = 0.972


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "Узел-の.tif", texture(960, 1600), mpp=MPP)


@pytest.fixture(scope="module")
def store(slide_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Heatmap:
    """30 x 50 cells: a micrometastasis of 8 x 8 cells, a smaller one of 7 x 7, two single cells, one column not scanned."""
    probability = np.full((30, 50), 0.02, np.float32)
    probability[3:11, 5:13] = 0.9
    probability[18:25, 30:37] = 0.8
    probability[28, 2] = probability[0, 49] = 0.99
    probability[:, 40] = np.nan
    with open_slide(slide_file) as slide:
        fingerprint = slide.fingerprint()
    path = tmp_path_factory.mktemp("stores") / "Узел-の.zarr"
    return write_store(path, probability, mpp=MPP, slide=fingerprint, specificity_99=0.75)


@pytest.fixture(scope="module")
def empty(slide_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Heatmap:
    with open_slide(slide_file) as slide:
        fingerprint = slide.fingerprint()
    path = tmp_path_factory.mktemp("stores") / "none.zarr"
    return write_store(path, np.full((30, 50), 0.02, np.float32), mpp=MPP, slide=fingerprint)


def words(path: Path) -> list[str]:
    """The texts of an SVG."""
    root = ElementTree.fromstring(gzip.decompress(path.read_bytes()) if path.suffix == ".svgz" else path.read_bytes())
    return ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("ending", ["svg", "svgz"])
def test_in_svg_words_are_text(store: Heatmap, slide_file: Path, tmp_path: Path, ending: str) -> None:
    before = dict(mpl.rcParams)
    said = words(draw_overlay(store, tmp_path / f"o.{ending}", slide=slide_file, lesions=True, max_side=500))
    assert dict(mpl.rcParams) == before
    assert said.count("model's threshold 0.50") == 1
    assert said.count("a lesion's peak has at least 0.75") == 1
    assert {"1", "2", "3", "4", "micrometastasis: 2", "isolated tumor cells (ITC): 2", "not scanned: no tissue found"} <= set(
        said
    )
    assert any(line.startswith("Узел-の: score 0.") for line in said)
    assert "unreadable" not in said


def test_in_pdf_words_are_text_and_the_map_is_an_image(store: Heatmap, slide_file: Path, tmp_path: Path) -> None:
    pdf = draw_overlay(store, tmp_path / "o.pdf", slide=slide_file, lesions=True, max_side=700).read_bytes()
    assert pdf.count(b"/ToUnicode") >= 1
    assert b"/Width 700" in pdf
    assert b"/Height 420" in pdf


def test_the_picture_has_a_pixel_for_each_of_the_map(store: Heatmap, tmp_path: Path) -> None:
    """The frame lies on whole pixels: cells are as wide in the picture as they should be, and where they should be."""
    with Image.open(draw_overlay(store, tmp_path / "o.png", max_side=800)) as drawn:
        picture = np.asarray(drawn.convert("RGB"))
    grey = np.rint(np.array([0.62, 0.62, 0.66]) * 255 * 0.75 + 255 * 0.25)
    row = (np.abs(picture[200] - grey) <= 1).all(-1)
    margin = 24
    assert np.flatnonzero(row).tolist() == list(range(margin + 40 * 16, margin + 41 * 16))


class TestRegion:
    def test_a_close_up_says_where_it_is_and_shows_only_its_lesions(
        self, store: Heatmap, slide_file: Path, tmp_path: Path
    ) -> None:
        said = words(
            draw_overlay(store, tmp_path / "r.svg", slide=slide_file, lesions=True, max_side=400, region=(900, 500, 400, 300))
        )
        assert "part at x 900, y 500: 400 x 300 level-0 pixels; 0.972 µm per pixel of this picture" in " ".join(said)
        assert "micrometastasis: 1" in said
        assert "2" in said
        assert not {"1", "3", "4"} & set(said)

    def test_a_part_without_a_lesion_says_nothing_of_the_slide(
        self, store: Heatmap, empty: Heatmap, slide_file: Path, tmp_path: Path
    ) -> None:
        options: dict[str, Any] = {"slide": slide_file, "lesions": True, "max_side": 400, "region": (700, 200, 200, 200)}
        told = [words(draw_overlay(drawn, tmp_path / f"{drawn.path.stem}.svg", **options)) for drawn in (store, empty)]
        assert ["no lesion in this part" in said for said in told] == [True, False]
        assert ["no lesion found" in said for said in told] == [False, True]

    def test_pixels_are_enlarged_four_times_at_most(self, store: Heatmap, slide_file: Path, tmp_path: Path) -> None:
        widths = []
        for width in (160, 260):
            with Image.open(
                draw_overlay(store, tmp_path / f"{width}.png", slide=slide_file, region=(0, 0, width, 100))
            ) as drawn:
                widths.append(drawn.width)
        assert widths[1] - widths[0] == 400

    @pytest.mark.parametrize(
        "region", [(1500, 0, 101, 10), (0, 900, 10, 61), (-1, 0, 5, 5), (0, 0, 0, 5), (0, 0, 5, 0), (9999, 9999, 5, 5)]
    )
    def test_outside_the_slide_is_refused(
        self, store: Heatmap, slide_file: Path, tmp_path: Path, region: tuple[int, int, int, int]
    ) -> None:
        with pytest.raises(OptionsError, match=r"within the slide, 1600 x 960 level-0 pixels") as caught:
            draw_overlay(store, tmp_path / "r.png", slide=slide_file, region=region)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "1,2,3,-4", "1,2,3,4,5", "1.5,2,3,4", ""])
    def test_what_is_no_region_is_wrong_usage(self, store: Heatmap, tmp_path: Path, text: str) -> None:
        run = CliRunner().invoke(main, ["overlay", str(store.path), "--out", str(tmp_path / "r.png"), "--region", text])
        assert (run.exit_code, "expected X,Y,WIDTH,HEIGHT" in run.output) == (2, True)

    def test_on_the_command_line(self, store: Heatmap, tmp_path: Path) -> None:
        out = tmp_path / "r.svg"
        run = CliRunner().invoke(main, ["overlay", str(store.path), "--out", str(out), "--region", "100, 200,300,400"])
        assert run.exit_code == 0, run.output
        assert any(line.startswith("part at x 100, y 200: 300 x 400") for line in words(out))


class TestSheet:
    def test_each_lesion_with_number_class_diameter_and_probability(
        self, store: Heatmap, slide_file: Path, tmp_path: Path
    ) -> None:
        said = words(draw_overlay(store, tmp_path / "s.svg", slide=slide_file, largest=3, max_side=600))
        lesions = find_lesions(store)[:3]
        for lesion in lesions:
            length = f"{lesion.diameter_mm:.2f} mm" if lesion.diameter_mm >= 0.1 else f"{lesion.diameter_mm * 1000:.0f} µm"
            assert f"{lesion.size_class}, {length}" in said
            assert f"probability {lesion.max_probability:.3f}, mean {lesion.mean_probability:.3f}" in said
        assert {"1", "2", "3"} <= set(said)
        assert "4" not in said
        assert any(line.startswith("the 3 largest of 4 lesions") for line in said)

    @pytest.mark.parametrize("width_px", [100, 600, 1000, 2000, 8000])
    @pytest.mark.parametrize("lesions", [0, 1, 3, 12])
    def test_words_below_a_panel_fit_it(self, lesions: int, width_px: int) -> None:
        dpi = dpi_for(width_px)
        across, side_px = lay_out(lesions, width_px / dpi, dpi)
        assert 1 <= across <= max(1, lesions)
        assert side_px / dpi > 0.3 + text_width("isolated tumor cells, 0.20 mm", 8)
        assert 2 * side_px / dpi > 0.3 + text_width("probability over 0.999, mean over 0.999", 8)
        if width_px >= 630:
            assert across * (2 * side_px + 0.04 * dpi) + (across - 1) * 0.3 * dpi <= width_px

    def test_more_than_there_are(self, store: Heatmap, slide_file: Path, tmp_path: Path) -> None:
        said = words(draw_overlay(store, tmp_path / "s.svg", slide=slide_file, largest=60, max_side=400))
        assert any(line.startswith("all 4 lesions") for line in said)

    def test_none_is_the_whole_slide(self, empty: Heatmap, slide_file: Path, tmp_path: Path) -> None:
        sheet, outlined = tmp_path / "s.svg", tmp_path / "o.svg"
        draw_overlay(empty, sheet, slide=slide_file, largest=5, max_side=300)
        draw_overlay(empty, outlined, slide=slide_file, lesions=True, max_side=300)
        assert words(sheet) == words(outlined)
        assert "no lesion found" in words(sheet)

    def test_a_window_lies_on_the_slide_and_holds_its_lesion(self, store: Heatmap) -> None:
        grid = store.grid
        for number, lesion in enumerate(find_lesions(store)):
            window = window_round(lesion, grid)
            corners = np.vstack([outline.vertices for outline in lesion.outlines])
            low, high = corners.min(0), corners.max(0)
            start, end = np.array([window.x, window.y]), np.array([window.x + window.width, window.y + window.height])
            assert (start >= 0).all()
            assert (end <= [grid.width + 0.01, grid.height + 0.01]).all()
            assert (start <= low + 0.01).all()
            assert (end >= high - 0.01).all()
            if number == 1:  # with room on all sides
                assert (start + end) / 2 == pytest.approx((low + high) / 2)
            assert window.width * MPP >= 499.9
            assert window.width >= 1.29 * np.ptp(corners, axis=0).max()

    def test_a_slide_that_is_smaller_than_a_window_lies_in_its_middle(self, tmp_path: Path) -> None:
        small = write_store(tmp_path / "a.zarr", np.full((3, 9), 0.9, np.float32), mpp=MPP)
        window = window_round(find_lesions(small)[0], small.grid)
        assert (window.x + window.width / 2, window.y + window.height / 2) == (small.grid.width / 2, small.grid.height / 2)

    def test_tissue_lies_beside_the_map(self, store: Heatmap, slide_file: Path, tmp_path: Path) -> None:
        picture = Image.open(draw_overlay(store, tmp_path / "s.png", slide=slide_file, largest=1, alpha=1.0, max_side=900))
        pixels = np.asarray(picture.convert("RGB")).astype(int)
        row = pixels[pixels.shape[0] // 3]
        yellow = (row[:, 2] < 90) & (row[:, 1] > 180)  # viridis at 0.9
        assert not yellow[: len(row) // 2].any()
        assert yellow[len(row) // 2 :].mean() > 0.3

    def test_refusals(self, store: Heatmap, slide_file: Path, tmp_path: Path) -> None:
        for settings in ({"slide": None}, {"region": (0, 0, 10, 10)}, {"largest": 0}):
            with pytest.raises(OptionsError, match=r"expected (1 or more|the slide|one of them)"):
                draw_overlay(store, tmp_path / "s.png", **({"slide": slide_file, "largest": 2} | settings))  # type: ignore[arg-type]
        assert not list(tmp_path.iterdir())


def test_the_scale_bar_of_a_narrow_map_is_one_to_measure_with(tmp_path: Path) -> None:
    """It is as long as the page has room for, not a quarter of a map of 0.1 mm."""
    tall = write_store(tmp_path / "tall.zarr", np.full((300, 3), 0.02, np.float32), mpp=MPP)
    said = words(draw_overlay(tall, tmp_path / "tall.svg", max_side=500))
    assert "2 mm" in said
