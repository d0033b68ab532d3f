from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.models.dihedral import dihedral
from wsi_meta.training.augment import (
    augment,
    blur,
    damage_as_jpeg,
    jitter_brightness,
    jitter_colour,
    jitter_stain,
    shift,
    zoom,
)
from wsi_meta.training.contact_sheet import contact_sheet_path, draw_contact_sheet
from wsi_meta.training.recipe import RECIPES, Augmentation, Recipe

STRONG = RECIPES["strong"].augmentation
ALL = replace(STRONG, brightness=0.1, blur=0.5, jpeg=0.5, zoom=0.12)
CHANGES = tuple(name.removesuffix("_px") for name in vars(ALL))


def only(name: str) -> Augmentation:
    """One change alone, for every patch that it can be for."""
    return replace(ALL, blur=1, jpeg=1).without(*(other for other in CHANGES if other != name))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(n: int, side: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (n, side, side, 3), dtype=torch.uint8, generator=seeded(seed))


def tissue(n: int = 1, side: int = 96) -> torch.Tensor:
    """Smooth purple blobs on pink, with grain: pixels as JPEG is made for."""
    rng = np.random.default_rng(5)
    rows, cols = np.mgrid[:side, :side]
    images = np.empty((n, side, side, 3))
    for image in images:
        amount = np.zeros((side, side))
        for _ in range(25):
            row, col, radius = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(3, 8)
            amount = np.maximum(amount, 1 / (1 + np.exp(np.hypot(rows - row, cols - col) - radius)))
        image[:] = np.array([235, 190, 215]) * (1 - amount[..., None]) + np.array([110, 60, 150]) * amount[..., None]
        image += rng.normal(0, 6, image.shape)
    return torch.from_numpy(images.clip(0, 255).round().astype(np.uint8))


def all_views(image: torch.Tensor) -> torch.Tensor:
    return dihedral(image.expand(8, *image.shape), torch.arange(8))


# --- dihedral


def test_the_eight_views_are_the_eight_symmetries_of_the_square() -> None:
    image = torch.arange(4 * 4 * 3, dtype=torch.uint8).reshape(4, 4, 3)
    turns = [torch.rot90(image, quarter, (0, 1)) for quarter in range(4)]
    expected = {tuple(view.flatten().tolist()) for turned in turns for view in (turned, turned.transpose(0, 1))}
    assert len(expected) == 8

    views = all_views(image)

    assert {tuple(view.flatten().tolist()) for view in views} == expected
    assert torch.equal(views[0], image)


def test_every_view_keeps_the_labelled_centre_in_the_centre() -> None:
    image = torch.zeros((96, 96, 3), dtype=torch.uint8)
    image[32:64, 32:64] = 1

    assert torch.equal(all_views(image), image.expand(8, -1, -1, -1))


def test_each_image_of_a_batch_gets_its_own_view() -> None:
    images, view = draw(16, side=5), torch.arange(16).remainder(8).flip(0)

    seen = dihedral(images, view)

    assert seen.dtype == images.dtype
    for number in range(16):
        assert torch.equal(seen[number], all_views(images[number])[view[number]])


@given(side=st.integers(1, 6), seed=st.integers(0, 1000), value=st.integers(0, 7))
def test_a_view_only_moves_pixels(side: int, seed: int, value: int) -> None:
    image = draw(1, side, seed)

    seen = dihedral(image, torch.tensor([value]))

    assert sorted(seen.reshape(-1, 3).tolist()) == sorted(image.reshape(-1, 3).tolist())


def test_a_batch_without_images_stays_empty() -> None:
    assert dihedral(draw(0), torch.zeros(0, dtype=torch.int64)).shape == (0, 96, 96, 3)


# --- the whole


@given(n=st.integers(0, 5), side=st.sampled_from([8, 24, 40]), seed=st.integers(0, 2**31))
def test_augment_gives_uint8_of_the_same_shape_and_leaves_its_input(n: int, side: int, seed: int) -> None:
    images = draw(n, side, seed)
    before = images.clone()

    seen = augment(images, ALL, seeded(seed))

    assert seen.dtype == torch.uint8
    assert seen.shape == images.shape
    assert torch.equal(images, before)


def test_with_everything_off_images_stay_as_they_are_and_nothing_is_drawn() -> None:
    images, generator = draw(4), seeded(1)

    seen = augment(images, Augmentation().without(*CHANGES), generator)

    assert torch.equal(seen, images)
    assert torch.equal(generator.get_state(), seeded(1).get_state())


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_alone_changes_images(name: str) -> None:
    images = tissue(8)

    assert not torch.equal(augment(images, only(name), seeded()), images)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("turn", lambda image: image[16:32, 8:24]),
        ("shift", lambda image: image.flatten().sort().values),
        ("stain", lambda image: image.float().mean((0, 1))),
        ("brightness", lambda image: image.float().mean((0, 1))),
    ],
)
def test_a_change_that_is_off_does_not_happen(name: str, kept: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """What only this change touches stays as it was where it is off, and does not where it is on."""
    colours = ("stain", "stain-offset", "brightness", "contrast")
    off = {"turn": CHANGES, "shift": CHANGES, "stain": colours, "brightness": colours}[name]
    image = tissue()[0]
    with_it = Augmentation().without("blur", "jpeg", *(other for other in off if other != name))
    without_it = Augmentation().without("blur", "jpeg", *off, name)

    def changed(how: Augmentation) -> bool:
        seen = augment(image.expand(16, -1, -1, -1), how, seeded())
        return any(not torch.allclose(kept(one), kept(image), atol=2) for one in seen)

    assert changed(with_it)
    assert not changed(without_it)


def test_the_same_seed_gives_the_same_images() -> None:
    assert torch.equal(augment(draw(8), ALL, seeded(1)), augment(draw(8), ALL, seeded(1)))


def test_another_seed_gives_other_images() -> None:
    assert not torch.equal(augment(draw(8), ALL, seeded(1)), augment(draw(8), ALL, seeded(2)))


def test_the_generator_is_the_only_source_of_randomness() -> None:
    torch.manual_seed(1)
    first = augment(draw(8), ALL, seeded(1))
    state = torch.random.get_rng_state()
    augment(draw(8), ALL, seeded(5))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)

    assert torch.equal(augment(draw(8), ALL, seeded(1)), first)


def test_a_generator_goes_on_from_batch_to_batch() -> None:
    generator = seeded(1)

    assert not torch.equal(augment(draw(8), ALL, generator), augment(draw(8), ALL, generator))


def test_equal_images_of_a_batch_are_drawn_independently() -> None:
    seen = augment(draw(1).expand(16, -1, -1, -1), ALL, seeded())

    assert len({tuple(image.flatten().tolist()) for image in seen}) == 16


def test_all_eight_views_are_drawn() -> None:
    image = draw(1, side=8)
    views = [tuple(view.flatten().tolist()) for view in all_views(image[0])]

    seen = augment(image.expand(400, -1, -1, -1), only("turn"), seeded())
    counts = [sum(tuple(one.flatten().tolist()) == view for one in seen) for view in views]

    assert sum(counts) == 400
    assert min(counts) > 20


@pytest.mark.parametrize("name", ["blur", "jpeg"])
def test_a_share_of_the_patches_is_damaged(name: str) -> None:
    images = tissue(1).expand(400, -1, -1, -1)[:, :16, :16]

    def damaged(share: float) -> int:
        how = Augmentation(blur=share, jpeg=share).without(*(other for other in CHANGES if other != name))
        return int((augment(images, how, seeded()) != images).flatten(1).any(1).sum())

    assert 60 < damaged(0.2) < 100
    assert damaged(1.0) > 390
    assert damaged(1e-9) == 0, "no image chosen"


# --- place


@given(most=st.integers(1, 6), seed=st.integers(0, 1000))
def test_a_shift_moves_each_image_whole_and_no_further_than_asked(most: int, seed: int) -> None:
    images = draw(6, side=24, seed=seed)

    seen = shift(images, most, seeded(seed))

    for image, moved in zip(images, seen, strict=True):
        inner = moved[most : 24 - most, most : 24 - most]
        side = 24 - 2 * most
        places = [
            (row, col)
            for row in range(2 * most + 1)
            for col in range(2 * most + 1)
            if torch.equal(inner, image[row : row + side, col : col + side])
        ]
        assert len(places) == 1
        mirrored = np.pad(image.numpy(), ((most, most), (most, most), (0, 0)), mode="reflect")
        row, col = places[0]
        assert np.array_equal(moved.numpy(), mirrored[row : row + 24, col : col + 24])


def test_every_shift_up_to_the_largest_is_drawn() -> None:
    image = torch.zeros((1, 96, 96, 3), dtype=torch.uint8)
    image[0, 32:64, 32:64] = 1
    images = image.expand(600, -1, -1, -1)

    seen = augment(images, only("shift"), seeded())

    rows = seen.any(3).any(2).to(torch.uint8).argmax(1) - 32
    cols = seen.any(3).any(1).to(torch.uint8).argmax(1) - 32
    assert len(set(zip(rows.tolist(), cols.tolist(), strict=True))) == 81
    assert int(rows.abs().max()) == int(cols.abs().max()) == Augmentation().shift_px == 4
    assert torch.equal(seen.flatten(1).sum(1), images.flatten(1).sum(1)), "the labelled centre stays in the picture"


def disc(radius: float) -> torch.Tensor:
    """A smooth dark disc about the centre, (96, 96, 3)."""
    place = torch.arange(96) - 47.5
    away = torch.hypot(place[:, None], place[None])
    return (255 * torch.sigmoid(away - radius))[..., None].expand(-1, -1, 3)


def area(images: torch.Tensor) -> torch.Tensor:
    return (1 - images[..., 0] / 255).sum((1, 2))


def test_zoom_magnifies_half_of_the_images_about_their_centre() -> None:
    image = disc(20)

    seen = zoom(image.expand(400, -1, -1, -1), 0.12, seeded())

    factor = (area(seen) / area(image[None])).sqrt()
    kept = (seen - image).abs().flatten(1).amax(1) < 0.05
    assert 160 < int(kept.sum()) < 240
    assert 0.88 - 0.002 <= float(factor.min()) < 0.89
    assert 1.11 < float(factor.max()) <= 1.12 + 0.002
    assert torch.allclose(seen, seen.flip(1), atol=0.01), "nothing moves up, down or to a side"
    assert torch.allclose(seen, seen.transpose(1, 2), atol=0.01)


def test_a_zoomed_picture_is_the_magnified_one() -> None:
    """What is 20 px away from the centre is magnified to where the factor says, in both directions."""
    seen = zoom(disc(20).expand(50, -1, -1, -1), 0.12, seeded())

    for image, factor in zip(seen, (area(seen) / area(disc(20)[None])).sqrt(), strict=True):
        assert torch.allclose(image, disc(20 * float(factor)), atol=12), "its edge is a little sharper or softer"


def test_what_zoom_brings_into_view_is_mirrored() -> None:
    images = torch.full((50, 96, 96, 3), 200.0)
    images[:, :12], images[:, -12:], images[:, :, :12], images[:, :, -12:] = 90.0, 90.0, 90.0, 90.0

    seen = zoom(images, 0.12, seeded())

    assert float(seen[:, 0].max()) == pytest.approx(90, abs=0.01), "no other colour at the edge"
    assert float(seen.min()) == pytest.approx(90, abs=0.01)


# --- colour


def test_jitter_of_nothing_is_the_identity() -> None:
    images = draw(4).float()

    assert torch.allclose(jitter_stain(images, 0, seeded()), images, atol=0.05)
    assert torch.allclose(jitter_brightness(images, 0, seeded()), images, atol=1e-3)
    assert torch.allclose(jitter_colour(images, seeded(), gain=0, saturation=0), images, atol=1e-3)
    assert torch.allclose(zoom(images, 0, seeded()), images, atol=0.05)


def test_colour_jitter_changes_colours_within_0_and_255() -> None:
    images = draw(64).float()
    for seen in (
        jitter_stain(images, 0.2, seeded(), offset=0.02),
        jitter_brightness(images, 0.2, seeded(), contrast=0.3),
        jitter_brightness(images, 0, seeded(), levels=25),
        jitter_colour(images, seeded(), gain=0.15, saturation=0.4),
    ):
        assert seen.shape == images.shape
        assert float(seen.min()) >= 0
        assert float(seen.max()) <= 255
        assert float((seen - images).abs().mean()) > 1


def test_colour_jitter_leaves_its_input_as_it_was() -> None:
    images = draw(4).float()
    before = images.clone()

    jitter_stain(images, 0.2, seeded(), offset=0.02)
    jitter_brightness(images, 0.1, seeded(), contrast=0.15, levels=25)
    jitter_colour(images, seeded(), gain=0.15, saturation=0.4)
    zoom(images, 0.12, seeded())

    assert torch.equal(images, before)


def test_stain_jitter_keeps_white_nearly_white() -> None:
    seen = jitter_stain(torch.full((200, 2, 2, 3), 255.0), 0.2, seeded(), offset=0.02)

    assert float(seen.min()) > 240


def test_stain_jitter_leaves_the_place_of_things_alone() -> None:
    image = torch.full((1, 9, 9, 3), 220.0)
    image[0, 2, 7] = 60.0

    seen = jitter_stain(image.expand(20, -1, -1, -1), 0.2, seeded(), offset=0.02)

    assert seen.mean(-1).flatten(1).argmin(1).tolist() == [2 * 9 + 7] * 20
    background = seen[:, 0, 0, :]
    assert torch.equal(seen[:, 5, 5, :], background)


def test_stain_jitter_scales_one_stains_density() -> None:
    hematoxylin = torch.nn.functional.normalize(torch.tensor([0.65, 0.70, 0.29]), dim=0)
    image = (256 * torch.exp(-0.8 * hematoxylin) - 1).expand(50, 2, 2, 3)

    density = -torch.log((jitter_stain(image, 0.2, seeded()) + 1) / 256)[:, 0, 0]
    amount = density @ hematoxylin

    assert torch.allclose(density, amount[:, None] * hematoxylin, atol=1e-4)
    assert 0.8 * 0.8 - 1e-4 <= float(amount.min()) < 0.7
    assert 0.9 < float(amount.max()) <= 0.8 * 1.2 + 1e-4


def test_brightness_and_contrast_stay_within_their_limits() -> None:
    images = torch.full((200, 4, 4, 3), 100.0)
    images[:, :2] += 20

    seen = jitter_brightness(images, 0.1, seeded(), contrast=0.15)
    brightness = seen.mean((1, 2, 3)) / 110
    contrast = (seen[:, 0, 0, 0] - seen[:, 3, 3, 0]) / 20 / brightness

    assert 0.9 <= float(brightness.min()) < 0.92
    assert 1.08 < float(brightness.max()) <= 1.1 + 1e-4
    assert 0.85 - 1e-4 <= float(contrast.min()) < 0.88
    assert 1.12 < float(contrast.max()) <= 1.15 + 1e-4


def test_every_stain_is_added_or_taken_up_to_the_offset() -> None:
    stains = torch.nn.functional.normalize(torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]), dim=1)
    image = torch.full((500, 2, 2, 3), 100.0)

    seen = jitter_stain(image, 0, seeded(), offset=0.06)

    more = -torch.log((seen + 1) / 101)[:, 0, 0] @ torch.linalg.inv(stains)
    assert bool((more.abs() <= 0.06 + 1e-4).all())
    assert bool((more.amax(0) > 0.055).all())
    assert bool((more.amin(0) < -0.055).all())


def test_the_recipes_keep_the_offset_and_the_contrast_that_they_were_measured_with() -> None:
    """Once these came from stain and brightness: a tenth and half as much again, at least."""
    images, light = tissue(8).float(), RECIPES["light"].augmentation

    def seen(how: Augmentation, name: str, more: str) -> torch.Tensor:
        off = {other.removesuffix("_px") for other in vars(how)} - {name, more}
        return augment(tissue(8), how.without(*off), seeded()).float()

    stained = jitter_stain(images, 0.2, seeded(), offset=0.1 * 0.2)
    lit = jitter_brightness(images, 0.1, seeded(), contrast=1.5 * 0.1)
    assert torch.equal(seen(light, "stain", "stain_offset"), stained.round().clamp(0, 255))
    assert torch.equal(seen(light, "brightness", "contrast"), lit.round().clamp(0, 255))
    assert (STRONG.stain, STRONG.stain_offset, STRONG.brightness, STRONG.contrast) == (0.4, 0.06, 0, 0.25)


@pytest.mark.parametrize(("name", "used"), [("contrast", jitter_brightness), ("stain-offset", jitter_stain)])
def test_what_is_turned_off_by_itself_is_off(name: str, used: Callable[..., torch.Tensor]) -> None:
    others = {"contrast": ("brightness", 0.1), "stain-offset": ("stain", 0.2)}
    kept, most = others[name]
    how = RECIPES["light"].augmentation.without(name, *(other for other in CHANGES if other != kept))
    assert torch.equal(augment(tissue(8), how, seeded()).float(), used(tissue(8).float(), most, seeded()).round())


def test_levels_are_added_to_all_channels_alike() -> None:
    images = torch.full((200, 4, 4, 3), 100.0)
    images[..., 1] = 130

    more = jitter_brightness(images, 0, seeded(), levels=25) - images

    assert torch.allclose(more, more[:, :1, :1, :1].expand_as(more), atol=1e-4)
    assert -25 <= float(more.min()) < -23
    assert 23 < float(more.max()) <= 25


def test_each_channel_has_a_gain_of_its_own() -> None:
    images = torch.full((300, 2, 2, 3), 100.0)

    gains = jitter_colour(images, seeded(), gain=0.15, saturation=0)[:, 0, 0] / 100

    assert bool((gains.amin(0) < 0.87).all())
    assert bool((gains.amax(0) > 1.13).all())
    assert float(gains.min()) >= 0.85 - 1e-4
    assert float(gains.max()) <= 1.15 + 1e-4
    assert float(torch.corrcoef(gains.T).fill_diagonal_(0).abs().max()) < 0.2


def test_saturation_moves_colours_from_and_towards_their_grey() -> None:
    colour = torch.tensor([150.0, 100.0, 140.0])
    images = colour.expand(200, 4, 4, 3)

    seen = jitter_colour(images, seeded(), gain=0, saturation=0.4)[:, 0, 0]

    grey = float(colour @ torch.tensor([0.299, 0.587, 0.114]))
    amounts = (seen - grey) / (colour - grey)
    assert torch.allclose(amounts, amounts[:, :1].expand_as(amounts), atol=1e-3)
    assert 0.6 - 1e-3 <= float(amounts.min()) < 0.63
    assert 1.37 < float(amounts.max()) <= 1.4 + 1e-3


# --- focus


def test_blur_keeps_a_constant_image_and_the_mean() -> None:
    constant = torch.full((5, 32, 40, 3), 137.0)
    assert torch.allclose(blur(constant, seeded()), constant, atol=1e-3)

    image = tissue(4).float()
    seen = blur(image, seeded())

    assert torch.allclose(seen.mean((1, 2)), image.mean((1, 2)), atol=0.5)
    assert bool((seen.var((1, 2)) < image.var((1, 2))).all())
    assert not torch.equal(seen[0], blur(image[:1], seeded(1))[0])


@pytest.mark.parametrize("sigma", [0.5, 1.2])
def test_blur_is_a_gaussian_of_its_width(sigma: float) -> None:
    from scipy.ndimage import gaussian_filter

    image = tissue()[0].numpy().astype(np.float64)

    seen = blur(torch.from_numpy(image).float()[None], seeded(), sigma_px=(sigma, sigma))[0].numpy()

    expected = gaussian_filter(image, (sigma, sigma, 0), mode="mirror", truncate=6)
    assert np.abs(seen - expected).max() < 0.6, "the kernel ends at three of its largest widths"


def test_each_image_is_blurred_by_itself() -> None:
    images = torch.zeros((3, 32, 32, 3))
    images[1, 16, 16, 2] = 255

    seen = blur(images, seeded())

    assert not seen[0].any()
    assert not seen[2].any()
    assert not seen[1, :, :, :2].any()
    assert float(seen[1].sum()) == pytest.approx(255, rel=1e-4)


# --- compression


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (230, 200, 215), (110, 60, 140), (200, 30, 90)])
def test_a_constant_image_survives_compression_within_a_grey_level_or_so(colour: tuple[int, int, int]) -> None:
    """Only the mean of each block is coded then, in steps of the table's first entry: an eighth of it, half up or down."""
    image = torch.tensor(colour).float().expand(4, 16, 16, 3)

    seen = damage_as_jpeg(image, seeded())

    assert float((seen - image).abs().max()) < 4
    assert float((seen - seen[:, :1, :1]).abs().max()) < 1e-3, "and stays constant"


def test_the_best_quality_is_exact_within_a_grey_level() -> None:
    for images in (tissue(3).float(), torch.full((1, 16, 16, 3), 137.0), draw(2).float()):
        seen = damage_as_jpeg(images, seeded(), quality=(100, 100))
        assert float((seen - images).abs().mean()) < 1
        assert seen.shape == images.shape


def error_of_ours(images: torch.Tensor, quality: int) -> float:
    return float((damage_as_jpeg(images.float(), seeded(), quality=(quality, quality)) - images).square().mean().sqrt())


def error_of_pils(images: torch.Tensor, quality: int, planes: str) -> float:
    total = 0.0
    for image in images.numpy():
        file = io.BytesIO()
        Image.fromarray(image).convert(planes).save(file, "JPEG", quality=quality, subsampling=0)
        seen = np.asarray(Image.open(file).convert(planes), np.float64)
        total += ((seen - np.asarray(Image.fromarray(image).convert(planes), np.float64)) ** 2).mean()
    return float(np.sqrt(total / len(images)))


def test_damage_is_that_of_real_jpeg() -> None:
    """In grey the tables are the same, so the error is; in colour ours has no coarser table for colour."""
    images = tissue(3)
    grey = images.float().mean(3, keepdim=True).round().expand(-1, -1, -1, 3).to(torch.uint8).contiguous()
    ours, coloured = [], []
    for quality in (30, 50, 70, 90):
        ours.append(error_of_ours(grey, quality))
        coloured.append(error_of_ours(images, quality))
        assert ours[-1] == pytest.approx(error_of_pils(grey, quality, "L"), rel=0.05)
        assert 0.6 < coloured[-1] / error_of_pils(images, quality, "RGB") < 1.1
    assert ours == sorted(ours, reverse=True)
    assert coloured == sorted(coloured, reverse=True)
    assert coloured[0] > 1.4 * coloured[-1]


def test_blocks_do_not_touch_each_other() -> None:
    images = tissue(1).float()
    other = images.clone()
    other[0, 8:16, 24:32] = 0

    one, two = damage_as_jpeg(images, seeded()), damage_as_jpeg(other, seeded())

    changed = (one != two).any(3)[0]
    assert changed[8:16, 24:32].any()
    changed[8:16, 24:32] = False
    assert not changed.any()


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_augmenting_never_waits_for_the_gpu() -> None:
    images, generator = tissue(64).cuda(), torch.Generator("cuda").manual_seed(0)
    augment(images, ALL, generator)  # what is made once is made
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        seen = augment(images, ALL, generator)
    finally:
        torch.cuda.set_sync_debug_mode(mode)

    damaged = augment(images, only("jpeg"), generator) != images
    assert seen.shape == images.shape
    assert float(damaged.flatten(1).any(1).float().mean()) > 0.9


# --- a look at it


def test_the_contact_sheet_shows_patches_as_they_are_and_augmented(patch_folder: Path, tmp_path: Path) -> None:
    patches = open_patches(patch_folder)["train"]

    path = draw_contact_sheet(tmp_path / "m.safetensors", patches, Recipe())

    assert path == contact_sheet_path(tmp_path / "m.safetensors") == tmp_path / "m.augmented.png"
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 800
    framed = [(pixels == colour).all(2).sum() for colour in ((220, 20, 60), (0, 191, 255))]
    assert min(framed) > 2000, "each class is framed in its colour"
    again = draw_contact_sheet(tmp_path / "n.safetensors", patches, Recipe())
    other = draw_contact_sheet(tmp_path / "o.safetensors", patches, Recipe(augmentation=Augmentation().without("stain")))
    assert again.read_bytes() == path.read_bytes() != other.read_bytes()
