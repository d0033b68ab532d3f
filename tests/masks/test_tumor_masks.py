from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from wsi_meta.annotations.outlines import Annotations, Outline
from wsi_meta.errors import DataError
from wsi_meta.masks.tumor_masks import read_mask, tumor_squares


def _square(left: float, top: float, side: float) -> NDArray[np.float64]:
    return np.array([(left, top), (left + side, top), (left + side, top + side), (left, top + side)])


def _write_mask(path: Path, mask: NDArray[np.uint8], *, levels: int = 1) -> Path:
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            settings: Any = {"subfiletype": 1} if level else {"subifds": levels - 1}
            step = 2**level  # the value under the centre, as everywhere here
            file.write(
                mask[step // 2 :: step, step // 2 :: step],
                tile=(64, 64),
                compression="lzw",
                photometric="minisblack",
                **settings,
            )
    return path


@pytest.mark.parametrize("value", [1, 255])
def test_mask_tiff(tmp_path: Path, caplog: pytest.LogCaptureFixture, value: int) -> None:
    drawn = Annotations((Outline(_square(100, 200, 300)), Outline(_square(600, 40, 100))))
    mask = drawn.mask((700, 900), 1).astype(np.uint8) * value
    for levels in (1, 4):
        path = _write_mask(tmp_path / f"{levels}.tif", mask, levels=levels)
        for downsample in (1, 8, 32):
            found = read_mask(path, downsample)
            assert found.shape == tuple(math.ceil(length / downsample - 0.5) for length in (700, 900))
            # the eighth, the coarsest level stored, has every fourth pixel's value from half of its own pixel further on
            exact = downsample < 32 or levels == 1
            assert (found != drawn.mask(found.shape, downsample)).sum() <= (0 if exact else 20)
    assert not caplog.messages
    small = _write_mask(tmp_path / "small.tif", mask[16::32, 16::32])
    cases: list[dict[str, Any]] = [{"first_downsample": 32}, {"first_downsample": None, "extent": (900, 700)}]
    for told in cases:
        np.testing.assert_array_equal(read_mask(small, 32, **told), read_mask(tmp_path / "1.tif", 32))


@pytest.mark.parametrize("compression", ["lzw", None])
@pytest.mark.parametrize("kept", [0, 0.5])
def test_levels_that_a_converter_left_empty_are_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, compression: str | None, kept: float
) -> None:
    mask = Annotations((Outline(_square(50, 250, 450)), Outline(_square(650, 20, 50)))).mask((750, 850), 1)
    alone = _write_mask(tmp_path / "alone.tif", mask.view(np.uint8) * 255)
    with tifffile.TiffWriter(tmp_path / "died.tif") as file:
        for step in (1, 2, 4, 8):
            level = mask.view(np.uint8)[step // 2 :: step, step // 2 :: step] * 255
            level[round(kept * len(level)) if step > 2 else len(level) :] = 0
            settings: Any = {"subfiletype": 1} if step > 1 else {"subifds": 3}
            file.write(level, tile=(64, 64), compression=compression, photometric="minisblack", **settings)
    np.testing.assert_array_equal(read_mask(tmp_path / "died.tif", 32), read_mask(alone, 32))
    assert [message.partition(",")[0] for message in caplog.messages] == [
        f"{tmp_path}/died.tif: levels 2 to 3 say something else than level 0"
    ]
    squares = tumor_squares(tmp_path / "died.tif", (850, 750), 8, 4)
    np.testing.assert_array_equal(squares, tumor_squares(alone, (850, 750), 8, 4))


@pytest.mark.parametrize(("width", "strip", "least", "most"), [(5440, 3200, 0, 0), (640, 1, 0.2, 0.7)])
def test_a_mask_in_strips_is_compared_with_its_levels_in_some_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, strip: int, least: float, most: float
) -> None:
    mask = np.zeros((3200, width), np.uint8)
    mask[:, 300:500] = mask[::7, 100:200] = 255
    with tifffile.TiffWriter(tmp_path / "strips.tif") as file:
        for step in (1, 2, 4, 8, 16, 32):
            kept: Any = {"rowsperstrip": strip, "compression": "zlib", "photometric": "minisblack", "metadata": None}
            file.write(mask[::step, ::step], subfiletype=int(step > 1), **kept)
    read, taken = [], zarr.Array.__getitem__

    def take(array: Any, part: Any) -> Any:
        values = taken(array, part)
        read.append(np.size(values) if array.shape == mask.shape else 0)
        return values

    monkeypatch.setattr(zarr.Array, "__getitem__", take)
    assert read_mask(tmp_path / "strips.tif", 32).shape == (100, width // 32)
    assert least <= sum(read) / mask.size <= most


AVERAGED: dict[str, Callable[[NDArray[np.uint8]], NDArray[Any]]] = {
    "mean": lambda block: block.mean((1, 3)),
    "rounded mean": lambda block: np.floor(block.mean((1, 3)) + 0.5),
    "maximum": lambda block: block.max((1, 3)),
    "minimum": lambda block: block.min((1, 3)),
}


@pytest.mark.parametrize(
    ("how", "value"), [("mean", 1), ("mean", 255), ("rounded mean", 1), ("rounded mean", 255), ("maximum", 1), ("minimum", 255)]
)
def test_averaged_levels_are_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str, value: int) -> None:
    y, x = np.mgrid[:1024, :1024]
    level = np.zeros((1024, 1024), np.uint8)
    for top, left, radius in np.random.default_rng(0).integers((100, 100, 20), (900, 900, 60), (6, 3)):
        level[(y - top) ** 2 + (x - left) ** 2 < radius**2] = value
    alone = _write_mask(tmp_path / "alone.tif", level)
    with tifffile.TiffWriter(tmp_path / "averaged.tif") as file:
        for number in range(6):
            settings: Any = {"subfiletype": 1} if number else {"subifds": 5}
            file.write(level, tile=(64, 64), compression="lzw", photometric="minisblack", **settings)
            side = len(level) // 2
            level = AVERAGED[how](level.reshape(side, 2, side, 2)).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(tmp_path / "averaged.tif", 32), read_mask(alone, 32))
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "levels 1 to 5 say something else than level 0, as after averaging; level 0 is read instead"
    ]


@pytest.mark.parametrize("sides", [(2048, 2048), (2000, 1900)])
@pytest.mark.parametrize("picked", [0, 1])
def test_picked_levels_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture, sides: tuple[int, int], picked: int) -> None:
    shapes = [Outline(_square(100 + 90 * n, 200 + 70 * n, 20 + 5 * n) @ np.array([[1, 0.2], [-0.1, 1]])) for n in range(15)]
    level = Annotations(tuple(shapes)).mask(sides, 1).view(np.uint8)
    with tifffile.TiffWriter(tmp_path / "picked.tif") as file:
        for number in range(6):
            settings: Any = {"subfiletype": 1} if number else {"subifds": 5}
            file.write(level, tile=(64, 64), compression="lzw", photometric="minisblack", **settings)
            level = level[picked::2, picked::2]
    coarsest = tifffile.imread(tmp_path / "picked.tif", level=5)
    found = read_mask(tmp_path / "picked.tif", 32)
    np.testing.assert_array_equal(found, coarsest[: len(found), : found.shape[1]] == 1)
    assert found.any()
    assert not caplog.messages


@pytest.mark.parametrize("levels", [1, 3])
def test_what_a_value_means_does_not_depend_on_the_pixels_that_are_picked(tmp_path: Path, levels: int) -> None:
    mask = np.zeros((512, 512), np.uint8)
    mask[50:450, 50:450] = 1
    mask[241:270, 241:270] = 255  # between the centres of the pixels of level 5
    path = _write_mask(tmp_path / "tissue.tif", mask, levels=levels)
    with pytest.raises(DataError, match="255 and 1, each of which may mean tumor"):
        read_mask(path, 32)
    with pytest.raises(DataError, match="255 and 1, each of which may mean tumor"):
        tumor_squares(path, (512, 512), 4, 32)


def test_values_of_masks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = np.zeros((64, 64), np.uint8)
    assert not read_mask(_write_mask(tmp_path / "empty.tif", mask), 1).any()
    mask[:8] = 2
    with pytest.raises(DataError, match=r"two\.tif: values up to 2"):
        read_mask(_write_mask(tmp_path / "two.tif", mask), 1)
    mask[8:16] = 1
    assert not caplog.messages
    assert read_mask(_write_mask(tmp_path / "both.tif", mask), 1).sum() == 8 * 64, "1 is tumor, 2 normal"
    assert "both.tif: holds 1 and 2: 1 counts as tumor, 2 as normal tissue" in caplog.text
    caplog.clear()
    mask[16:24] = 255
    with pytest.raises(DataError, match=r"all\.tif: holds 255 and 1, each of which may mean tumor"):
        read_mask(_write_mask(tmp_path / "all.tif", mask), 1)
    with pytest.raises(DataError, match=r"nan\.tif: values NaN, 0, 1; expected a mask that is 255"):
        read_mask(_write_mask(tmp_path / "nan.tif", np.where(mask == 2, np.nan, mask == 1).astype(np.float32)), 1)
    mask[8:16] = 0
    assert read_mask(_write_mask(tmp_path / "rest.tif", mask), 1).sum() == 8 * 64, "255 is tumor, 2 normal"
    assert not caplog.messages
    with pytest.raises(DataError, match=r"two\.tif: pixels 32 times as large as asked"):
        read_mask(tmp_path / "two.tif", 1, first_downsample=32)
    (tmp_path / "text.tif").write_text("no TIFF")
    for name, told in (("text.tif", "not a mask"), ("gone.tif", "no such file; expected a TIFF")):
        with pytest.raises(DataError, match=f"{name}: {told}"):
            read_mask(tmp_path / name, 1)


@pytest.mark.parametrize("coarser", [1.005, 1.02881, 1.05])
def test_a_mask_may_be_as_coarse_as_a_slide_may_be(tmp_path: Path, coarser: float) -> None:
    """It is as large as its slide, so there is no finer one."""
    drawn = Annotations((Outline(_square(40, 60, 150)),))
    path = _write_mask(tmp_path / "m.tif", drawn.mask((300, 400), 1).astype(np.uint8), levels=3)
    found = read_mask(path, 1 / coarser)
    assert found.shape == tuple(math.ceil(length * coarser - 0.5) for length in (300, 400))
    assert (found != drawn.mask(found.shape, 1 / coarser)).sum() == 0
    squares = tumor_squares(path, (400, 300), 1 / coarser, 32)
    expected = np.logical_or.reduceat(
        np.logical_or.reduceat(found, range(0, found.shape[0], 32), 0), range(0, found.shape[1], 32), 1
    )
    np.testing.assert_array_equal(squares, expected)
    with pytest.raises(DataError, match=r"pixels 1\.06 times as large as asked"):
        read_mask(path, 1 / 1.06)


def test_tiles_that_a_mask_leaves_out_are_no_tumor(tmp_path: Path) -> None:
    tile = np.full((64, 64), 255, np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", iter([tile, None, None, None]), shape=(128, 128), dtype=np.uint8, tile=(64, 64))
    found = read_mask(tmp_path / "s.tif", 32)
    np.testing.assert_array_equal(found, np.kron([[1, 0], [0, 0]], np.ones((2, 2))))
