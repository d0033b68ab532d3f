from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import center_of_mass

from wsi_meta.datasets.shifts import SHIFTS, Shift
from wsi_meta.datasets.stains import (
    FAMILIES,
    Family,
    Stains,
    cluster_by_hue,
    describe_hue,
    nearest_family,
    nearest_to_mean,
    restain,
    stain_hue,
    to_density,
    to_pixels,
)

BY_NAME = {shift.name: shift for shift in SHIFTS}
EVERY = pytest.mark.parametrize("shift", SHIFTS, ids=lambda shift: shift.name)


def stained(family: Family, seed: int = 0) -> NDArray[np.uint8]:
    """A patch of random amounts of a family's stains, with nothing that is neither: uint8 (96, 96, 3)."""
    rng = np.random.default_rng(seed)
    most = (0.7, 0.9) if family is FAMILIES["russet"] else (1.2, 0.6)  # the russet patches have more eosin
    amounts = np.kron(rng.uniform((0.2, 0.2), most, (24, 24, 2)), np.ones((4, 4, 1)))
    return to_pixels(amounts @ family.stains.to_density()[:2])


def amounts_of(patch: NDArray[np.uint8], stains: Stains) -> NDArray[np.float64]:
    """Of haematoxylin, of eosin and of what is neither; (96, 96, 3)."""
    return np.asarray(to_density(patch) @ np.linalg.inv(stains.to_density()))


@pytest.fixture(scope="module")
def batch() -> NDArray[np.uint8]:
    """A patch of each family; never change it."""
    found = np.stack([stained(family, seed) for seed, family in enumerate(FAMILIES.values())])
    found.setflags(write=False)
    return found


# --- every shift


def test_there_are_some_twenty_shifts_of_every_kind_by_their_own_names() -> None:
    assert 20 <= len(SHIFTS) == len(BY_NAME) == len({shift.words for shift in SHIFTS})
    assert {shift.kind for shift in SHIFTS} == {"stain", "colour", "sharpness", "scale"}


@EVERY
def test_a_shift_changes_a_patch_the_same_way_alone_and_in_any_batch(shift: Shift, batch: NDArray[np.uint8]) -> None:
    shown = shift.show(batch)

    assert shown.shape == batch.shape
    assert shown.dtype == np.uint8
    assert np.abs(shown.astype(int) - batch).mean() > 0.5
    assert np.array_equal(shift.show(batch[::-1]), shown[::-1])
    for patch, alone in zip(batch, shown, strict=True):
        assert np.array_equal(shift.show(patch[None])[0], alone)


@EVERY
def test_a_shift_of_nothing_is_nothing(shift: Shift) -> None:
    assert shift.show(np.empty((0, 96, 96, 3), np.uint8)).shape == (0, 96, 96, 3)


@EVERY
def test_only_the_lamp_and_the_white_change_what_is_white(shift: Shift) -> None:
    white = {"brightness_0.85": (217, 217, 217), "white_warm": (255, 255, 230), "white_cool": (230, 255, 255)}

    shown = shift.show(np.full((1, 96, 96, 3), 255, np.uint8))[0]

    assert np.array_equal(np.unique(shown.reshape(-1, 3), axis=0), [white.get(shift.name, (255, 255, 255))])


# --- stains


def test_pixels_and_densities_are_each_others_inverse() -> None:
    values = np.arange(256, dtype=np.uint8)

    assert np.array_equal(to_pixels(to_density(values)), values)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_stains_in_the_same_amounts_are_the_same_patch(family: str) -> None:
    noise = np.random.default_rng(0).integers(256, size=(96, 96, 3), dtype=np.uint8)
    stains = FAMILIES[family].stains

    assert np.array_equal(restain(noise, stains, stains, (1, 1)), noise)
    own = stained(FAMILIES[family])
    assert nearest_family(own) is FAMILIES[family]
    assert np.array_equal(BY_NAME[f"stains_{family}"].change(own), own)


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("haematoxylin_0.7", (0.7, 1)),
        ("haematoxylin_1.3", (1.3, 1)),
        ("eosin_0.6", (1, 0.6)),
        ("stains_1.3", (1.3, 1.3)),
    ],
)
def test_an_amount_changes_by_its_factor_and_the_other_stays(name: str, factors: tuple[float, float]) -> None:
    for family in FAMILIES.values():
        patch = stained(family)

        before, after = (amounts_of(pixels, family.stains) for pixels in (patch, BY_NAME[name].change(patch)))

        assert np.abs(after - before * (*factors, 1)).max() < 0.06  # a pixel's rounding, where it is dark
        assert np.median(after[..., :2] / before[..., :2], axis=(0, 1)) == pytest.approx(factors, rel=0.01)


def test_other_stains_come_in_the_amounts_that_were_there() -> None:
    russet, violet = FAMILIES["russet"].stains, FAMILIES["violet"].stains
    patch = stained(FAMILIES["russet"])

    shown = BY_NAME["stains_violet"].change(patch)

    assert np.abs(amounts_of(shown, violet) - amounts_of(patch, russet)).max() < 0.06
    assert np.abs(amounts_of(shown, russet) - amounts_of(patch, russet)).max() > 0.2


def test_the_hue_tells_families_apart_and_does_not_see_amounts() -> None:
    hues = {}
    for name, family in FAMILIES.items():
        patches = [restain(stained(family), family.stains, family.stains, (much, much)) for much in (0.8, 1.0, 1.3)]
        found = np.array([stain_hue(patch) for patch in patches])
        assert np.ptp(found, axis=0).max() < 0.01
        assert all(nearest_family(patch) is family for patch in patches)
        hues[name] = found[1]
    assert np.abs(hues["violet"] - hues["grey"]).max() > 0.05
    assert np.abs(hues["russet"] - hues["grey"]).max() > 0.02
    assert stain_hue(np.full((96, 96, 3), 255, np.uint8)) == pytest.approx([1 / 3] * 4)


def test_clusters_are_of_patches_that_were_stained_alike() -> None:
    families = [*["violet"] * 4, *["russet"] * 6, *["grey"] * 5]
    hues = np.array([stain_hue(stained(FAMILIES[name], seed)) for seed, name in enumerate(families)])

    found = cluster_by_hue(hues, 3)

    assert found.tolist() == [2] * 4 + [0] * 6 + [1] * 5  # the largest first
    assert np.array_equal(cluster_by_hue(hues, 3), found)
    assert "more violet" in describe_hue(hues, np.arange(4))
    assert describe_hue(hues, np.arange(15)) == "as most"
    nearest = nearest_to_mean(hues, np.arange(4, 10), 3)
    assert len(set(nearest)) == 3
    assert set(nearest) <= set(range(4, 10))


def test_patches_of_one_colour_are_one_cluster() -> None:
    assert cluster_by_hue(np.full((5, 4), 0.3)).tolist() == [0] * 5


# --- colour


def test_lamp_white_and_gamma_go_by_value() -> None:
    ramp = np.repeat(np.arange(0, 192, 2, dtype=np.uint8)[None, :, None], 96, axis=0).repeat(3, axis=2)
    grey = ramp[0, :, 0].astype(float)

    for name, factors in (("brightness_1.15", (1.15,) * 3), ("white_warm", (1.08, 1, 0.9)), ("white_cool", (0.9, 1, 1.08))):
        assert np.abs(BY_NAME[name].change(ramp)[0] - grey[:, None] * factors).max() <= 0.5001
    assert np.abs(BY_NAME["gamma_0.7"].change(ramp)[0, :, 0] - 255 * (grey / 255) ** 0.7).max() <= 0.5001


def test_weak_colour_keeps_the_brightness(batch: NDArray[np.uint8]) -> None:
    luma = np.array([0.299, 0.587, 0.114])

    shown = BY_NAME["saturation_0.6"].show(batch)

    assert np.abs(shown @ luma - batch @ luma).max() < 1
    chroma = [pixels.astype(float) - (pixels @ luma)[..., None] for pixels in (batch, shown)]
    assert np.abs(chroma[1] - 0.6 * chroma[0]).max() < 1


# --- sharpness and scale


def test_blur_smooths_and_sharpening_roughens_about_the_same_mean(batch: NDArray[np.uint8]) -> None:
    def roughness(patches: NDArray[np.uint8]) -> float:
        return float(np.abs(np.diff(patches.astype(float), axis=1)).mean())

    blurred, sharpened = BY_NAME["blur"].show(batch), BY_NAME["sharpening"].show(batch)

    assert roughness(blurred) < roughness(batch) < roughness(sharpened)
    for shown in (blurred, sharpened):
        assert shown.mean((1, 2)) == pytest.approx(batch.mean((1, 2)), abs=1.5)


def test_jpeg_damages_more_the_lower_its_quality(batch: NDArray[np.uint8]) -> None:
    lost = [np.abs(BY_NAME[f"jpeg_{quality}"].show(batch).astype(int) - batch).mean() for quality in (40, 65, 90)]

    assert lost[0] > lost[1] > lost[2] > 0


def dot(row: float, col: float) -> NDArray[np.uint8]:
    """A dark spot on white, 4 px wide."""
    rows, cols = np.mgrid[:96, :96]
    spot = 200 * np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / (2 * 4**2))
    return np.asarray(np.rint(255 - spot), np.uint8)[..., None].repeat(3, axis=2)


@pytest.mark.parametrize("factor", [0.88, 1.12])
def test_another_pixel_size_scales_about_the_centre(factor: float) -> None:
    change = BY_NAME[f"pixel_{factor}"].change
    middle = 47.5  # of 96 pixels

    shown = 255 - change(dot(middle, middle)).astype(float)[..., 0]
    aside = 255 - change(dot(middle - 20, middle + 10)).astype(float)[..., 0]

    assert center_of_mass(shown) == pytest.approx((middle, middle), abs=0.02)
    assert center_of_mass(aside) == pytest.approx((middle - 20 / factor, middle + 10 / factor), abs=0.1)
    area = shown.sum() / (255 - dot(middle, middle).astype(float)[..., 0]).sum()
    assert area == pytest.approx(1 / factor**2, rel=0.02)


def test_coarser_pixels_mirror_what_is_beyond_the_edge() -> None:
    near_edge = BY_NAME["pixel_1.12"].change(dot(47.5, 5))

    dark = 255 - near_edge.astype(float)[48, :, 0]  # the spot lies at 9.6, the edge at 5.1
    assert dark[1] == pytest.approx(dark[9], abs=10)
    assert dark[5] < 0.7 * dark[9]
