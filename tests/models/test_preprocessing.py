from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsi_meta.models.preprocessing import Preprocessing

CHANNELS = st.tuples(*[st.floats(0.01, 1.0)] * 3)
PREPROCESSINGS = st.builds(
    Preprocessing,
    patch_px=st.integers(1, 1024),
    label_px=st.integers(1, 1024),
    mpp=st.floats(0.05, 20.0),
    mean=CHANNELS,
    std=CHANNELS,
    resampling=st.just("area"),
)
IMAGES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.just(3)))


@given(preprocessing=PREPROCESSINGS, images=IMAGES)
def test_to_input_scales_and_normalises_every_channel(preprocessing: Preprocessing, images: Any) -> None:
    expected = (images.astype(np.float64) / 255 - preprocessing.mean) / preprocessing.std

    shown = preprocessing.to_input(torch.from_numpy(images))

    assert shown.dtype == torch.float32
    assert shown.shape == (images.shape[0], 3, *images.shape[1:3])
    np.testing.assert_allclose(shown.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=2e-5)


def test_to_input_of_the_defaults_is_imagenets_normalisation() -> None:
    white = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)

    shown = Preprocessing().to_input(white)[0, :, 0, 0]

    np.testing.assert_allclose(shown.numpy(), [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], rtol=1e-6)


def test_to_input_is_in_channels_last_memory_order() -> None:
    shown = Preprocessing().to_input(torch.zeros((2, 96, 96, 3), dtype=torch.uint8))

    assert shown.is_contiguous(memory_format=torch.channels_last)
    assert not shown.is_contiguous()


def test_to_input_leaves_its_argument_as_it_was() -> None:
    images = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 4, 3)
    before = images.clone()

    Preprocessing().to_input(images)

    assert torch.equal(images, before)


def test_an_image_gives_the_same_input_alone_and_in_a_batch() -> None:
    images = torch.randint(256, (5, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    together = Preprocessing().to_input(images)

    assert torch.equal(together[3:4], Preprocessing().to_input(images[3:4]))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros((1, 96, 96, 3), dtype=torch.float32),
        torch.zeros((1, 96, 96, 3), dtype=torch.int64),
        torch.zeros((96, 96, 3), dtype=torch.uint8),
        torch.zeros((1, 3, 96, 96), dtype=torch.uint8),
        torch.zeros((1, 96, 96, 4), dtype=torch.uint8),
    ],
    ids=["float", "int64", "no batch axis", "channels first", "RGBA"],
)
def test_to_input_refuses_other_types_and_shapes(images: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="expected uint8"):
        Preprocessing().to_input(images)


@given(PREPROCESSINGS)
def test_fields_survive_json(preprocessing: Preprocessing) -> None:
    stored = json.dumps(preprocessing.to_dict())

    assert Preprocessing.from_dict(json.loads(stored)) == preprocessing


def test_from_dict_leaves_its_argument_as_it_was() -> None:
    fields = Preprocessing().to_dict()

    Preprocessing.from_dict(fields)

    assert fields == Preprocessing().to_dict()


@pytest.mark.parametrize(
    "change",
    [{"resampling": "lanczos"}, {"mpp": 0.0}, {"mpp": -1.0}, {"mpp": float("nan")}, {"patch_px": 0}],
    ids=str,
)
def test_from_dict_refuses_what_is_not_supported(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not supported"):
        Preprocessing.from_dict(Preprocessing().to_dict() | change)


@pytest.mark.parametrize("change", [{"mean": ["a", 0, 0]}, {"mean": 3}, {"mpp": "0.972"}, {"stain": "H&E"}], ids=str)
def test_from_dict_refuses_what_is_no_number_or_not_known(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Preprocessing.from_dict(Preprocessing().to_dict() | change)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_from_dict_refuses_missing_normalisation(name: str) -> None:
    fields = Preprocessing().to_dict()
    del fields[name]

    with pytest.raises(KeyError, match=name):
        Preprocessing.from_dict(fields)


@pytest.mark.parametrize("name", ["patch_px", "label_px", "mpp", "resampling", "mean", "std"])
def test_from_dict_guesses_nothing(name: str) -> None:
    fields = Preprocessing().to_dict()
    del fields[name]
    with pytest.raises(KeyError, match=name):
        Preprocessing.from_dict(fields)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.1, 0.2]},
        {"std": [0, 0, 0]},
        {"std": [0.1]},
        {"patch_px": 96.5},
        {"mpp": float("inf")},
        {"label_px": 0},
        {"label_px": "a"},
        {"mpp": True},
    ],
    ids=str,
)
def test_from_dict_refuses_senseless_values(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Preprocessing.from_dict(Preprocessing().to_dict() | change)
