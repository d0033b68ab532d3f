from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from slide_files import texture

from wsi_meta.demo.pyramid_writer import write_pyramid
from wsi_meta.slides.slide import open_slide


def test_jpeg_keeps_the_colours(tmp_path: Path) -> None:
    """A wrong guess of YCbCr against RGB would give green tissue."""
    image = np.zeros((1200, 1500, 3), np.uint8)
    image[:600, :750], image[:600, 750:], image[600:, :750], image[600:, 750:] = (
        (200, 60, 140),
        (90, 60, 150),
        (240, 20, 20),
        (30, 200, 60),
    )
    slide = open_slide(write_pyramid(tmp_path / "j.tif", image, mpp=0.243))
    for level in range(len(slide.level_dimensions)):
        width, height = slide.level_dimensions[level]
        read = slide.read_region(0, 0, width, height, level=level).astype(int)
        for row, col in [(0.2, 0.2), (0.2, 0.8), (0.8, 0.2), (0.8, 0.8)]:
            expected = image[int(row * 1200), int(col * 1500)].astype(int)
            assert np.abs(read[int(row * height), int(col * width)] - expected).max() <= 3


def test_lossless_is_bit_equal(tmp_path: Path) -> None:
    image = texture(700, 900)
    slide = open_slide(write_pyramid(tmp_path / "l.tif", image, mpp=0.5, lossless=True))
    np.testing.assert_array_equal(slide.read_region(0, 0, 900, 700), image)


@pytest.mark.parametrize("mpp", [0.243, 0.25, 0.972])
def test_mpp_comes_back(tmp_path: Path, mpp: float) -> None:
    assert open_slide(write_pyramid(tmp_path / "m.tif", texture(64, 64), mpp=mpp)).mpp == pytest.approx(mpp, rel=1e-6)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    good = texture(64, 64)
    for image, settings in [
        (good[..., 0], {"mpp": 0.5}),
        (good.astype(np.float32), {"mpp": 0.5}),
        (good, {"mpp": 0.0}),
        (good, {"mpp": 0.5, "tile_px": 100}),
        (good, {"mpp": 0.5, "levels": 9}),
    ]:
        with pytest.raises(ValueError, match=r"expected|cannot"):
            write_pyramid(tmp_path / "x.tif", image, **settings)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
