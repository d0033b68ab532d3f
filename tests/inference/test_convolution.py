"""A map does not depend on how many threads compute it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from slide_files import texture
from torch import nn

from wsi_meta.inference.convolution import SteadyConvolution
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.model import Model


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Put the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _shown(channels: int, side: int, images: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand((images, channels, side, side), generator=generator).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("settings", [{"batch_size": 4}, {"dense": True}])
def test_threads_do_not_change_a_bit(settings: dict[str, Any], thin_model: Model) -> None:
    """torch by itself convolves a few images in another way where there is one thread."""
    predictor = Predictor(thin_model, device="cpu", precision="fp32", **settings)
    side = 3 * 32 + 2 * (32 + predictor.halo_px)

    def predict(threads: int) -> NDArray[np.float32]:
        torch.set_num_threads(threads)
        return predictor.predict_image(texture(side, side), np.ones((3, 3), bool), 32)

    alone = predict(1)
    assert np.ptp(alone) > 0.01
    for threads in (2, 3):
        np.testing.assert_array_equal(predict(threads), alone)


@pytest.mark.parametrize(("kernel", "side", "images"), [(1, 24, 2), (1, 3, 1), (3, 6, 1)])
def test_small_work_has_the_same_bits_as_large(kernel: int, side: int, images: int) -> None:
    """Few images, and one of few features, each for one thread or two."""
    torch.manual_seed(0)
    layer = SteadyConvolution(nn.Conv2d(512, 64, kernel, padding=kernel // 2).to(memory_format=torch.channels_last))
    many = _shown(512, side, 16)
    with torch.inference_mode():
        torch.set_num_threads(2)
        large = layer(many)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(layer(many[:images]), large[:images])


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "groups": 2, "bias": False}])
def test_it_is_the_same_function(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, **settings)
    steady = SteadyConvolution(plain)
    with torch.inference_mode():
        for dtype, within in ((torch.float32, 1e-6), (torch.float64, 0.0)):
            plain.to(dtype)
            inputs = _shown(4, 9, 2).to(dtype)
            np.testing.assert_allclose(steady(inputs), plain(inputs), rtol=0, atol=within)
    assert steady.weight is plain.weight
