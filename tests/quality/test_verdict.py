from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from slide_files import texture, write_slide

from wsi_meta.datasets.stains import to_density, to_pixels
from wsi_meta.quality.cell_measures import measure_cells
from wsi_meta.quality.judging import judge_slide
from wsi_meta.quality.nuclei import guess_pixel_size
from wsi_meta.quality.sample import read_sample
from wsi_meta.quality.verdict import LIMITS, blurred_share, folded_share, pronounce
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.tiling.tissue import inked_share


def test_nothing_measured_is_told_as_such() -> None:
    verdict = pronounce({})
    assert verdict.words == ("ok",)
    assert verdict.figures == dict.fromkeys(LIMITS)
    assert verdict.ok
    assert verdict.summary_with_figures == "ok"


@pytest.mark.parametrize(
    ("figure", "usual", "odd"),
    [
        ("unread", 0.0, 0.001),
        ("blurred", 0.25, 0.26),
        ("inked", 0.02, 0.03),
        ("folded", 0.05, 0.06),
        ("pixel_size", 0.6, 0.59),
        ("pixel_size", 1.5, 2.0),
        ("unlikeness", 0.9, 0.91),
    ],
)
def test_each_figure_has_its_word(figure: str, usual: float, odd: float) -> None:
    assert pronounce({figure: usual}).words == ("ok",)
    verdict = pronounce({figure: odd})
    assert verdict.words == (LIMITS[figure].word,)
    assert verdict.summary_with_figures.startswith(f"{LIMITS[figure].word} (")


def test_several_words_come_in_order() -> None:
    verdict = pronounce({"unlikeness": 2, "unread": 0.5})
    assert verdict.summary == "incomplete, unlike training"
    assert verdict.explained.startswith(f"{verdict.summary_with_figures}. The score is of what was read")
    assert verdict.explained.endswith("score and lesions mean little.")
    assert pronounce({}).explained == "ok"


def test_the_pixel_size_of_a_blurred_picture_is_not_told() -> None:
    verdict = pronounce({"blurred": 0.5, "pixel_size": 0.4})
    assert verdict.words == ("blurred",)
    assert verdict.figures["pixel_size"] is None


def test_blurred_and_folded_are_shares_of_the_cells_that_tell() -> None:
    focus = np.array([0.2] * 10 + [0.7] * 30 + [np.nan] * 60, np.float32)
    assert blurred_share(focus) == 0.25
    darkness = np.array([100] * 95 + [200] * 5, np.float32)
    assert folded_share(darkness) == 0.05
    assert blurred_share(focus[:15]) is None
    assert folded_share(darkness[:15]) is None


def test_a_second_layer_is_a_fold() -> None:
    flat = np.random.default_rng(0).integers((160, 90, 140), (220, 150, 200), (320, 320, 3)).astype(np.uint8)
    image = flat.copy()
    image[:64] = to_pixels(to_density(flat[:64]) + to_density(flat[64:128]))
    assert folded_share(measure_cells(flat, 32)["darkness"]) == 0
    assert folded_share(measure_cells(image, 32)["darkness"]) == 0.2


def test_ink_counts_where_tissue_is_near() -> None:
    mask, ink = np.zeros((200, 300), bool), np.zeros((200, 300), bool)
    mask[:100, :100] = True
    ink[:100, 100:110], ink[:100, 290:] = True, True
    assert inked_share(mask, ink, 8.0) == 1000 / 11000
    assert inked_share(mask, np.zeros_like(ink), 8.0) == 0
    assert inked_share(np.zeros_like(mask), ink, 8.0) == 0


def _nuclei(diameter_px: float) -> NDArray[np.uint8]:
    """Dense round nuclei: noise of about this wavelength."""
    noise = np.random.default_rng(0).normal(size=(12, 96, 96))
    smooth = np.stack([gaussian_filter(patch, diameter_px / 4) for patch in noise])
    dark = smooth > np.quantile(smooth, 0.4)
    shown = np.where(dark, 90, 190) + np.random.default_rng(1).normal(0, 4, dark.shape)
    return np.repeat(shown[..., None], 3, -1).astype(np.uint8)


def test_large_nuclei_mean_small_pixels() -> None:
    fine, usual, coarse = (guess_pixel_size(_nuclei(diameter)) for diameter in (14, 7, 3.5))
    assert fine is not None
    assert usual is not None
    assert coarse is not None
    assert fine < usual < coarse


def test_the_pixel_size_of_what_has_no_nuclei_is_not_guessed() -> None:
    assert guess_pixel_size(np.full((20, 96, 96, 3), 230, np.uint8)) is None
    assert guess_pixel_size(_nuclei(7)[:7]) is None
    assert guess_pixel_size(_nuclei(7), mpp=0.5) is None


def test_a_sample_is_the_same_each_time(tmp_path: Path) -> None:
    image = texture(640, 640)
    grid = PatchGrid(640, 640, 0.972, 0.972, 96, 32)
    with open_slide(write_slide(tmp_path / "s.tif", image)) as slide:
        first, again = (read_sample(slide, grid, np.ones(grid.shape, bool), patches=30) for _ in range(2))
        one = np.zeros(grid.shape, bool)
        one[5, 7] = True
        (patch,) = read_sample(slide, grid, one)
        assert read_sample(slide, grid, ~np.ones(grid.shape, bool)).shape == (0, 96, 96, 3)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (30, 96, 96, 3)
    np.testing.assert_array_equal(patch, image[128:224, 192:288])


def test_few_cells_say_nothing_of_a_slide(tmp_path: Path) -> None:
    grid = PatchGrid(96, 96, 0.972, 0.972, 96, 32)
    with open_slide(write_slide(tmp_path / "s.tif", texture(96, 96))) as slide:
        verdict = judge_slide(slide, grid, np.ones(grid.shape, bool), {"unread": 0.25}, lambda _patches: 1 / 0)  # type: ignore[arg-type,return-value]
        blank = judge_slide(slide, grid, np.zeros(grid.shape, bool), {"unread": None}, lambda _patches: None)
    assert verdict.words == ("incomplete",)
    assert verdict.figures["unlikeness"] is None
    assert blank.words == ("no tissue",)
    assert not blank.ok


@pytest.mark.parametrize(("unlike", "words"), [(None, ("ok",)), (0.5, ("ok",)), (1.5, ("unlike training",))])
def test_unlikeness_is_the_median_over_patches(tmp_path: Path, unlike: float | None, words: tuple[str, ...]) -> None:
    grid = PatchGrid(640, 640, 0.972, 0.972, 96, 32)

    def tell(patches: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        assert patches.shape == (32, 96, 96, 3)
        return None if unlike is None else np.array([0] * 10 + [unlike] * 22, np.float32)

    with open_slide(write_slide(tmp_path / "s.tif", texture(640, 640))) as slide:
        verdict = judge_slide(slide, grid, np.ones(grid.shape, bool), {}, tell)
    assert verdict.words == words
    assert verdict.figures["unlikeness"] == unlike
