from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from slide_files import damage_tile, write_slide

from wsi_meta.errors import DataError
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiffs import sparse_tiles
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.tiling.tissue import TissueMask, find_tissue, read_tissue_mask
from wsi_meta.tiling.tissue_colours import (
    BAND_ROWS,
    MASK_MPP,
    MAX_DARKNESS,
    MIN_SATURATION,
    bridge_gaps,
    join_tissue,
    segment_by_colour,
)

GLASS, TISSUE, PALE, FAT = (243, 242, 244), (150, 90, 160), (236, 222, 232), (240, 236, 240)
GREEN_INK, BLUE_INK, BLACK = (40, 140, 60), (30, 90, 190), (4, 4, 6)


def _slide_of(tmp_path: Path, image: NDArray[np.uint8]) -> Path:
    """Store an overview at the mask's own resolution."""
    return write_slide(tmp_path / "slide.tif", image, MASK_MPP)


def _glass(side: int = 400) -> NDArray[np.uint8]:
    return np.tile(np.array(GLASS, np.uint8), (side, side, 1))


def test_finds_tissue_and_leaves_glass(tmp_path: Path) -> None:
    image = _glass()
    image[100:200, 100:300] = TISSUE
    mask = find_tissue(_slide_of(tmp_path, image))
    assert mask.mask.shape == (400, 400)
    assert mask.mask[102:198, 102:298].all()
    assert not mask.mask[:80].any()
    assert not mask.mask[220:].any()
    assert mask.source == "found"
    assert mask.fraction == pytest.approx(0.125, rel=0.1)


def test_pale_tissue_over_pcams_floor_is_kept_and_paler_is_not(tmp_path: Path) -> None:
    image = _glass()
    image[50:100, 50:350] = (240, 221, 230)  # saturation 0.079
    image[250:300, 50:350] = (240, 226, 232)  # saturation 0.058
    mask = find_tissue(open_slide(_slide_of(tmp_path, image))).mask
    assert mask[60:90, 60:340].all()
    assert not mask[250:300].any()


def test_fat_inside_a_node_is_kept_and_a_lumen_of_glass_is_not(tmp_path: Path) -> None:
    image = _glass()
    image[20:380, 20:380] = TISSUE
    image[40:80, 40:80] = FAT  # 0.1 mm2
    image[120:340, 120:340] = GLASS  # 2.9 mm2
    mask = find_tissue(open_slide(_slide_of(tmp_path, image))).mask
    assert mask[20:100, 20:100].all()
    assert not mask[150:310, 150:310].any()


def test_ink_and_black_borders_are_no_tissue(tmp_path: Path) -> None:
    image = _glass()
    image[:, :30] = BLACK
    image[50:90, 100:300] = GREEN_INK
    image[150:190, 100:300] = BLUE_INK
    image[250:350, 100:300] = TISSUE
    mask = find_tissue(open_slide(_slide_of(tmp_path, image))).mask
    assert not mask[:, :28].any()
    assert not mask[55:85, 105:295].any()
    assert not mask[155:185, 105:295].any()
    assert mask[252:348, 102:298].all()


def test_haematoxylin_is_not_ink(tmp_path: Path) -> None:
    image = _glass()
    image[100:200, 100:300] = (95, 70, 150)
    assert find_tissue(open_slide(_slide_of(tmp_path, image))).mask[102:198, 102:298].all()


@pytest.mark.parametrize("mpp", [MASK_MPP, 28.9685, 100.0])
def test_colours_are_those_of_the_rule_applied_to_the_whole_picture(mpp: float) -> None:
    from scipy.ndimage import gaussian_filter
    from skimage.color import rgb2hsv
    from skimage.morphology import dilation, disk

    rng = np.random.default_rng(0)
    # patches of every colour, the greys and the pale ones among them, under noise
    coarse = rng.integers(0, 256, (BAND_ROWS // 4 + 3, 30, 3)) * rng.choice([0.0, 0.1, 0.4, 1.0], (1, 30, 1)) + 20
    image = (np.kron(coarse, np.ones((8, 8, 1))) + rng.normal(0, 4, (2 * BAND_ROWS + 24, 240, 3))).clip(0, 255).astype(np.uint8)
    blurred = gaussian_filter(image.astype(np.float32) / 255, (8.0 / mpp,) * 2 + (0,), mode="nearest", truncate=4.0)
    hue, saturation, value = np.moveaxis(rgb2hsv(blurred), -1, 0)
    of_ink = (hue > 0.22) & (hue < 0.62)
    ink = of_ink & dilation(of_ink & (saturation >= 0.25), disk(round(40 / mpp)))
    assert 0.05 < ink.mean() < 0.5
    for part, expected in zip(segment_by_colour(image, mpp), ((saturation >= 0.07) & (value > 0.2) & ~ink, ink), strict=True):
        np.testing.assert_array_equal(part, expected)


@settings(max_examples=60)
@given(
    shape=st.tuples(st.sampled_from([1, 3, 40, BAND_ROWS + 5]), st.integers(1, 60)),
    share=st.sampled_from([0.002, 0.01, 0.05, 0.5]),
    mpp=st.sampled_from([MASK_MPP, 13.0, 28.9685, 100.0, 1000.0]),
    seed=st.integers(0, 1000),
)
def test_gaps_and_holes_are_filled_as_scikit_image_does(shape: tuple[int, int], share: float, mpp: float, seed: int) -> None:
    from scipy.ndimage import binary_fill_holes
    from skimage.morphology import closing, disk, remove_small_objects

    mask, radius = np.random.default_rng(seed).random(shape) < share, round(40 / mpp)
    padded = np.pad(mask, radius, mode="edge")
    closed = closing(padded, disk(radius))[radius : radius + shape[0], radius : radius + shape[1]]
    holes = binary_fill_holes(closed) & ~closed
    expected = closed | holes & ~remove_small_objects(holes, max_size=round(0.5e6 / mpp**2))
    np.testing.assert_array_equal(bridge_gaps(mask, mpp), expected)


def test_holes_are_filled_up_to_half_a_square_millimetre() -> None:
    ring = np.zeros((4 * BAND_ROWS, 300), bool)
    ring[10:150, 10:150] = ring[200:400, 20:220] = True
    ring[30:130, 30:121] = False  # 9,100 px are 0.55 mm2
    ring[230:320, 100:191] = False  # 8,190 px are 0.495 mm2, on both sides of a band's end
    filled = bridge_gaps(ring, MASK_MPP)
    assert not filled[40:120, 40:110].any()
    assert filled[200:400, 20:220].all()


def test_white_slide_has_none(tmp_path: Path) -> None:
    mask = find_tissue(open_slide(_slide_of(tmp_path, _glass())))
    assert mask.fraction == 0


def test_fat_that_tissue_encloses_is_kept_where_some_of_that_cannot_be_read() -> None:
    image = _glass()
    image[40:160, 40:160] = TISSUE
    image[60:130, 60:130] = FAT  # 0.3 mm2
    readable = np.ones(image.shape[:2], bool)
    readable[90:110, 130:160] = False
    seen = image.copy()
    seen[~readable] = 255
    whole = join_tissue(*segment_by_colour(image, MASK_MPP), np.ones_like(readable), MASK_MPP)
    found = join_tissue(*segment_by_colour(seen, MASK_MPP), readable, MASK_MPP)
    assert whole[40:160, 40:160].all()
    assert found[~readable].all()
    assert found[40:160, 40:160].all()


def test_unreadable_overview_counts_as_tissue(tmp_path: Path) -> None:
    path = _slide_of(tmp_path, _glass(600))
    damage_tile(path, 0)
    mask = find_tissue(open_slide(path)).mask
    assert mask[:256, :256].all()
    assert not mask[300:, 300:].any()


@settings(max_examples=50)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    mask_mpp=st.sampled_from([7.776, 28.9685, 3.1, 100.0]),
    seed=st.integers(0, 1000),
)
def test_cells_are_those_that_touch_the_mask(shape: tuple[int, int], mask_mpp: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random(shape) < 0.1
    step = mask_mpp / 0.243
    grid = PatchGrid(max(1, int(shape[1] * step) - 3), max(1, int(shape[0] * step) - 3), 0.243, 0.972, 96, 32)
    cells = TissueMask(mask, (step, step), "found").cells(grid)
    assert cells.shape == grid.shape
    touched = np.zeros(grid.shape, bool)
    for row, col in np.argwhere(mask):
        top, left = int(row * step / 128), int(col * step / 128)
        bottom, right = -int(-((row + 1) * step) // 128), -int(-((col + 1) * step) // 128)
        touched[top:bottom, left:right] = True
    np.testing.assert_array_equal(cells, touched)


def test_mask_from_a_file(tmp_path: Path) -> None:
    slide = open_slide(write_slide(tmp_path / "s.tif", np.full((640, 960, 3), 200, np.uint8)))
    half = np.zeros((64, 96), np.uint8)
    half[:, :48] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    np.save(tmp_path / "mask.npy", half)
    grid = PatchGrid(960, 640, 0.972, 0.972, 96, 32)
    for name in ("mask.png", "mask.npy"):
        mask = read_tissue_mask(tmp_path / name, slide)
        assert mask.source == name
        cells = mask.cells(grid)
        assert cells[:, :15].all()
        assert not cells[:, 15:].any()


def test_mask_none_takes_everything(tmp_path: Path) -> None:
    slide = open_slide(write_slide(tmp_path / "s.tif", np.full((300, 500, 3), 255, np.uint8)))
    mask = read_tissue_mask("none", slide)
    assert mask.fraction == 1
    assert mask.cells(PatchGrid(500, 300, 0.972, 0.972, 96, 32)).all()


def test_bad_masks(tmp_path: Path) -> None:
    slide = open_slide(write_slide(tmp_path / "s.tif", np.full((300, 500, 3), 255, np.uint8)))
    (tmp_path / "text.png").write_text("no image")
    np.save(tmp_path / "turned.npy", np.ones((50, 30)))
    np.save(tmp_path / "flat.npy", np.ones(50))
    for name, found in [
        ("gone.png", "no such file; expected an image"),
        ("gone.npy", "no such file; expected an image"),
        ("gone.geojson", "no such file; expected outlines"),
        ("text.png", "not a tissue mask"),
        ("turned.npy", "do not fit the slide's 500x300"),
        ("flat.npy", "expected an image"),
    ]:
        with pytest.raises(DataError, match=found) as caught:
            read_tissue_mask(tmp_path / name, slide)
        assert name in str(caught.value)


def test_fingerprint_follows_the_mask() -> None:
    one, other = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    other[3, 3] = True
    assert TissueMask(one, (1, 1), "found").fingerprint() == TissueMask(one.copy(), (1, 1), "file").fingerprint()
    assert TissueMask(one, (1, 1), "found").fingerprint() != TissueMask(other, (1, 1), "found").fingerprint()
    assert TissueMask(one, (1, 1), "found").fingerprint() != TissueMask(one, (2, 2), "found").fingerprint()


@pytest.mark.shared_data
def test_real_lymph_node(shared_data: Path) -> None:
    mask = find_tissue(open_slide(shared_data / "slides" / "camelyon16_overview_28um.dcm"))
    assert 0.25 < mask.fraction < 0.35
    assert mask.mask[300, 200], "inside the left node"
    assert mask.mask[230, 450], "inside the thin node"
    assert mask.mask[:40].mean() < 0.01, "glass above, with dust"


def test_masks_can_be_compared_and_kept_in_sets() -> None:
    one, other = (TissueMask(np.ones((2, 2), bool), (1.0, 1.0), "array") for _ in range(2))
    assert one != other
    assert one.fingerprint() == other.fingerprint()
    assert len({one, one, other}) == 2


def test_what_a_tile_that_is_looked_for_shows_is_tissue_by_the_same_measures() -> None:
    """Tiles are judged in a lower layer, in whole grey levels: it has these limits once more."""
    assert (sparse_tiles.MIN_SATURATION, sparse_tiles.MIN_VALUE / 255) == (MIN_SATURATION, MAX_DARKNESS)
