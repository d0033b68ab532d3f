from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_meta.training.augment import augment, jitter_brightness, jitter_stain
from wsi_meta.views import dihedral

# the module, even where its package gives the function the same name
module = importlib.import_module("wsi_meta.training.augment")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(n: int, side: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (n, side, side, 3), dtype=torch.uint8, generator=seeded(seed))


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


@given(n=st.integers(1, 5), side=st.integers(2, 20), seed=st.integers(0, 2**31))
def test_augment_gives_uint8_of_the_same_shape_and_leaves_its_input(n: int, side: int, seed: int) -> None:
    images = draw(n, side, seed)
    before = images.clone()

    seen = augment(images, seeded(seed))

    assert seen.dtype == torch.uint8
    assert seen.shape == images.shape
    assert torch.equal(images, before)


def test_the_same_seed_gives_the_same_images() -> None:
    assert torch.equal(augment(draw(8), seeded(1)), augment(draw(8), seeded(1)))


def test_another_seed_gives_other_images() -> None:
    assert not torch.equal(augment(draw(8), seeded(1)), augment(draw(8), seeded(2)))


def test_the_generator_is_the_only_source_of_randomness() -> None:
    torch.manual_seed(1)
    first = augment(draw(8), seeded(1))
    state = torch.random.get_rng_state()
    augment(draw(8), seeded(5))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)

    assert torch.equal(augment(draw(8), seeded(1)), first)


def test_a_generator_goes_on_from_batch_to_batch() -> None:
    generator = seeded(1)

    assert not torch.equal(augment(draw(8), generator), augment(draw(8), generator))


def test_equal_images_of_a_batch_are_drawn_independently() -> None:
    seen = augment(draw(1).expand(16, -1, -1, -1), seeded())

    assert len({tuple(image.flatten().tolist()) for image in seen}) == 16


def test_all_eight_views_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    switch_off(monkeypatch)
    image = draw(1, side=8)
    views = [tuple(view.flatten().tolist()) for view in all_views(image[0])]

    seen = augment(image.expand(400, -1, -1, -1), seeded())
    counts = [sum(tuple(one.flatten().tolist()) == view for one in seen) for view in views]

    assert sum(counts) == 400
    assert min(counts) > 20


# --- colour


def switch_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STAIN_SCALE", "STAIN_SHIFT", "BRIGHTNESS", "CONTRAST"):
        monkeypatch.setattr(module, name, 0.0)


def test_jitter_of_nothing_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    switch_off(monkeypatch)
    images = draw(4).float()

    assert torch.allclose(jitter_stain(images, seeded()), images, atol=0.05)
    assert torch.allclose(jitter_brightness(images, seeded()), images, atol=1e-3)


def test_colour_jitter_changes_colours_within_0_and_255() -> None:
    images = draw(64).float()
    for jitter in (jitter_stain, jitter_brightness):
        seen = jitter(images, seeded())
        assert seen.shape == images.shape
        assert float(seen.min()) >= 0
        assert float(seen.max()) <= 255
        assert float((seen - images).abs().mean()) > 1


def test_colour_jitter_leaves_its_input_as_it_was() -> None:
    images = draw(4).float()
    before = images.clone()

    jitter_stain(images, seeded())
    jitter_brightness(images, seeded())

    assert torch.equal(images, before)


def test_stain_jitter_keeps_white_nearly_white() -> None:
    seen = jitter_stain(torch.full((200, 2, 2, 3), 255.0), seeded())

    assert float(seen.min()) > 240


def test_stain_jitter_leaves_the_place_of_things_alone() -> None:
    image = torch.full((1, 9, 9, 3), 220.0)
    image[0, 2, 7] = 60.0

    seen = jitter_stain(image.expand(20, -1, -1, -1), seeded())

    assert seen.mean(-1).flatten(1).argmin(1).tolist() == [2 * 9 + 7] * 20
    background = seen[:, 0, 0, :]
    assert torch.equal(seen[:, 5, 5, :], background)


def test_stain_jitter_scales_one_stains_density(monkeypatch: pytest.MonkeyPatch) -> None:
    switch_off(monkeypatch)
    monkeypatch.setattr(module, "STAIN_SCALE", 0.2)
    hematoxylin = torch.nn.functional.normalize(torch.tensor([0.65, 0.70, 0.29]), dim=0)
    image = (256 * torch.exp(-0.8 * hematoxylin) - 1).expand(50, 2, 2, 3)

    density = -torch.log((jitter_stain(image, seeded()) + 1) / 256)[:, 0, 0]
    amount = density @ hematoxylin

    assert torch.allclose(density, amount[:, None] * hematoxylin, atol=1e-4)
    assert 0.8 * 0.8 - 1e-4 <= float(amount.min()) < 0.7
    assert 0.9 < float(amount.max()) <= 0.8 * 1.2 + 1e-4


def test_brightness_and_contrast_stay_within_their_limits() -> None:
    images = torch.full((200, 4, 4, 3), 100.0)
    images[:, :2] += 20

    seen = jitter_brightness(images, seeded())
    brightness = seen.mean((1, 2, 3)) / 110
    contrast = (seen[:, 0, 0, 0] - seen[:, 3, 3, 0]) / 20 / brightness

    assert 0.9 <= float(brightness.min()) < 0.92
    assert 1.08 < float(brightness.max()) <= 1.1 + 1e-4
    assert 0.85 - 1e-4 <= float(contrast.min()) < 0.88
    assert 1.12 < float(contrast.max()) <= 1.15 + 1e-4
