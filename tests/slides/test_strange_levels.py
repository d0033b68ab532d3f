"""A coarser level is believed only where it shows what finer ones show."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from slide_files import texture, write_jpeg_slide

from wsi_meta.demo.pyramid_writer import halved
from wsi_meta.errors import SlideReadError
from wsi_meta.files.address import Address
from wsi_meta.slides.slide import open_slide
from wsi_meta.slides.strange_levels import BelievedLevels
from wsi_meta.tiling.tissue import find_tissue

Levels = list[NDArray[np.uint8]]


@cache
def _image() -> NDArray[np.uint8]:
    image = np.full((768, 1024, 3), 243, np.uint8)
    image[50:718, 75:950] = texture(668, 875)
    return image


def _levels() -> Levels:
    """Tissue on glass, three times halved."""
    levels = [_image().copy()]
    while len(levels) < 4:
        levels.append(halved(levels[-1]))
    return levels


def _half_white(levels: Levels) -> None:
    levels[3][levels[3].shape[0] // 2 :] = 243


def _black(levels: Levels) -> None:
    levels[3][:] = 0


def _both(levels: Levels) -> None:
    levels[2][:, 100:] = 243
    levels[3][:, 50:] = 243


@pytest.mark.parametrize(("make", "strange"), [(_half_white, [3]), (_black, [3]), (_both, [2, 3])])
def test_tissue_that_a_coarser_level_lacks_is_found(
    make: Callable[[Levels], None], strange: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    levels = _levels()
    expected = find_tissue(open_slide(write_jpeg_slide(tmp_path / "s.tif", levels, tile_px=128)))
    make(levels)
    slide = open_slide(write_jpeg_slide(tmp_path / "broken.tif", levels, tile_px=128))
    assert not caplog.records
    assert abs(find_tissue(slide).fraction - expected.fraction) < 0.02
    slide.read_overview(12 * slide.mpp)
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"{slide.path}: level {level} shows something else than finer ones, which are read instead to find tissue; "
        "convert the slide again"
        for level in strange
    ]


def _nearest(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image[::2, ::2]


def _shifted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return halved(np.roll(image, 1, (0, 1)))


def _coarse_colours(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return halved(image) // 24 * 24 + 12


def _believed(levels: Levels, path: Path | Address = Path("s.tif")) -> list[int]:
    def read(level: int, left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
        return levels[level][top : top + height, left : left + width]

    sizes = [(image.shape[1], image.shape[0]) for image in levels]
    factors = {level: float(2**level) for level in range(len(levels))}
    return list(BelievedLevels(path, factors, sizes, [(128, 128)] * len(levels)).up_to(len(levels) - 1, read))


@pytest.mark.parametrize("reduced", [halved, _nearest, _shifted, _coarse_colours])
def test_sound_levels_are_believed_whatever_made_them(
    reduced: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], caplog: pytest.LogCaptureFixture
) -> None:
    levels = _levels()[:1]
    while min(levels[-1].shape[:2]) > 3:
        levels.append(reduced(levels[-1]))
    assert _believed(levels) == list(range(len(levels)))
    assert not caplog.records


def test_one_wrong_tile_of_a_finer_level_makes_no_coarser_one_strange() -> None:
    levels = _levels()
    levels[2][128:, 128:] = 0
    assert _believed(levels) == [0, 1, 3], "level 1 shows what level 2 lacks, in two places"
    levels = _levels()
    levels[0][128:256, 128:256] = 0
    assert _believed(levels) == [0, 1, 2, 3]


def test_an_address_is_believed(caplog: pytest.LogCaptureFixture) -> None:
    levels = _levels()
    _black(levels)
    assert _believed(levels) == [0, 1, 2]
    caplog.clear()
    assert _believed(levels, Address("http://host/s.tif")) == [0, 1, 2, 3]
    assert not caplog.records


def test_what_cannot_be_read_is_believed() -> None:
    def read(*_place: int) -> NDArray[np.uint8]:
        raise SlideReadError("s.tif: cannot be decoded")

    levels = BelievedLevels(Path("s.tif"), {0: 1.0, 1: 2.0}, [(600, 600), (300, 300)], [None, None])
    assert levels.up_to(1, read) == {0: 1.0, 1: 2.0}


def test_what_the_finer_level_alone_left_out_makes_no_coarser_one_strange() -> None:
    levels = [np.full((512 >> level, 512 >> level, 3), 20, np.uint8) for level in range(3)]
    levels[0][:, 256:] = 255  # as readers show tiles that are not stored
    assert _believed(levels) == [0, 1, 2]


def test_a_slide_that_is_dropped_is_freed(tmp_path: Path) -> None:
    slide = open_slide(write_jpeg_slide(tmp_path / "s.tif", _levels(), tile_px=128))
    slide.read_overview(8 * slide.mpp)
    kept = weakref.ref(slide)
    gc.disable()
    try:
        del slide
        assert kept() is None
    finally:
        gc.enable()
