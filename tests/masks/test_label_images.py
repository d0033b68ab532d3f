from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageFile
from slide_files import rename_tag, with_undefined_code

from wsi_meta.errors import DataError
from wsi_meta.files.process_settings import Silence, no_warnings, whole_pictures
from wsi_meta.masks.label_images import read_one_label
from wsi_meta.masks.tumor_masks import read_mask, tumor_squares

WHERE = np.zeros((80, 100), bool)
WHERE[16:48, 32:64] = True
GREY = WHERE.astype(np.uint8) * 255
OPAQUE = np.full_like(GREY, 255)


def _read(path: Path) -> NDArray[np.bool_]:
    return read_one_label(path, "mask", "a mask")


def _palette(path: Path) -> None:
    """Looks as white on black; in the file white is 0 and black is 1."""
    image = Image.fromarray((~WHERE).astype(np.uint8)).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(path)


def _tiff(path: Path, values: NDArray[Any], **options: Any) -> None:
    tifffile.imwrite(path, values, metadata=None, **options)


def _two_kinds(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        file.write(np.zeros((80, 100), np.uint8), photometric="minisblack")
        file.write(np.zeros((80, 100), np.uint16), photometric="minisblack")


def _thumbnail_first(path: Path) -> None:
    _tiff(path, GREY[::4])
    _tiff(path, GREY, append=True)


def _colormap() -> NDArray[np.uint16]:
    table = np.zeros((3, 256), np.uint16)
    table[:, 0] = 65535
    return table


@pytest.mark.parametrize("value", [1, 255, 7])
@pytest.mark.parametrize("ending", ["png", "bmp", "gif", "tif", "npy"])
def test_masks_of_one_value(tmp_path: Path, ending: str, value: int) -> None:
    path, values = tmp_path / f"m.{ending}", WHERE.astype(np.uint8) * np.uint8(value)
    np.save(path, values) if ending == "npy" else Image.fromarray(values).save(path)
    np.testing.assert_array_equal(_read(path), WHERE)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: Image.fromarray(WHERE).save(path / "m.png"),
        lambda path: Image.fromarray(np.dstack([GREY, OPAQUE])).save(path / "m.png"),
        lambda path: Image.fromarray(np.dstack([GREY] * 3)).save(path / "m.png"),
        lambda path: Image.fromarray(np.dstack([GREY] * 3 + [OPAQUE])).save(path / "m.png"),
        lambda path: Image.fromarray(np.dstack([GREY, GREY * 0, GREY * 0])).save(path / "m.png"),
        lambda path: Image.fromarray(GREY.astype(np.uint16) * 257).save(path / "m.png"),
        lambda path: _palette(path / "m.png"),
        lambda path: _palette(path / "m.gif"),
        lambda path: _tiff(path / "m.tif", WHERE, photometric="minisblack"),
        lambda path: _tiff(path / "m.tif", ~WHERE, photometric="miniswhite"),
        lambda path: _tiff(path / "m.tif", 255 - GREY, photometric="miniswhite", tile=(16, 16)),
        lambda path: _tiff(path / "m.tif", 65535 - GREY.astype(np.uint16) * 257, photometric="miniswhite"),
        lambda path: _tiff(path / "m.tif", (~WHERE).astype(np.uint8), photometric="palette", colormap=_colormap()),
        lambda path: _tiff(path / "m.tif", np.stack([GREY] * 3), photometric="rgb", planarconfig="separate", tile=(16, 16)),
        lambda path: _tiff(path / "m.tif", np.stack([GREY] * 3), photometric="rgb", planarconfig="separate"),
        lambda path: _tiff(path / "m.tif", np.dstack([GREY] * 3 + [OPAQUE]), photometric="rgb", extrasamples=["unassalpha"]),
        lambda path: np.save(path / "m.npy", WHERE),
        lambda path: np.save(path / "m.npy", WHERE.astype(np.float32)),
        lambda path: np.save(path / "m.npy", GREY[..., None]),
    ],
)  # fmt: skip
def test_what_the_header_says_counts(tmp_path: Path, write: Any) -> None:
    write(tmp_path)
    (path,) = tmp_path.iterdir()
    np.testing.assert_array_equal(_read(path), WHERE)


GLASSY = np.dstack([OPAQUE] * 3 + [GREY])
SEVERAL = GREY // 2 + np.eye(80, 100, dtype=np.uint8)


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda path: Image.fromarray(GLASSY).save(path / "m.png"), "transparent pixels"),
        (lambda path: Image.fromarray(SEVERAL).save(path / "m.png"), "values 0, 1, 127"),
        (lambda path: Image.fromarray(np.dstack([OPAQUE, GREY, GREY])).save(path / "m.png"), r"255, \(255, 0, 0\)"),
        (lambda path: Image.fromarray(WHERE.astype(np.float32) * 0.9).save(path / "m.tif"), "float values such as 0.9"),
        (lambda path: np.save(path / "m.npy", WHERE * 0.93), "float values such as 0.93"),
        (lambda path: np.save(path / "m.npy", np.where(WHERE, np.inf, 0)), "float values"),
        (lambda path: np.save(path / "m.npy", -WHERE.astype(np.int8)), "values -1, 0"),
        (lambda path: np.save(path / "m.npy", np.where(WHERE, 1, np.nan)), "values NaN, 1"),
        (lambda path: np.save(path / "m.npy", WHERE * 1j), "complex"),
        (lambda path: np.save(path / "m.npy", np.zeros((3, 80, 100), bool)), "shape"),
        (lambda path: _tiff(path / "m.tif", np.stack([GREY] * 2), photometric="minisblack"), "several pictures"),
        (lambda path: _tiff(path / "m.tif", np.dstack([GREY] * 4), photometric="separated"), "SEPARATED"),
        (lambda path: _two_kinds(path / "m.tif"), "its first picture has 100 x 80 px, a later one 100 x 80 px"),
        (lambda path: _thumbnail_first(path / "m.tif"), "its first picture has 100 x 20 px, a later one 100 x 80 px"),
        (lambda path: (path / "m.npy").write_bytes(b"\x93NUMPY"), "not a mask"),
        (lambda path: (path / "m.tif").write_bytes(b"II*\0" + b"\xff" * 40), "not a mask"),
        (lambda path: (path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40), "not a mask"),
        (lambda path: (path / "m.png").write_bytes(b""), "not a mask"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_what_was_found(tmp_path: Path, write: Any, told: str) -> None:
    write(tmp_path)
    (path,) = tmp_path.iterdir()
    with pytest.raises(DataError, match=told) as caught:
        _read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_a_mask_that_a_viewer_would_turn_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"m.{ending}"
    for orientation in (1, 3):
        if ending == "tif":
            _tiff(path, GREY, extratags=[(274, 3, 1, orientation, True)])
        else:
            exif = Image.Exif()
            exif[274] = orientation
            Image.fromarray(np.full_like(GREY, 255)).save(path, exif=exif)
        if orientation == 1:
            assert _read(path).any()
    with pytest.raises(DataError, match=rf"^{path}: the picture is to be turned \(Orientation 3\), .*; convert it"):
        _read(path)


def test_a_mask_over_pillows_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses twice as many pixels as this, which are 89 million, and warns of more than half of them."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("1", (60, 50), 1).save(tmp_path / "m.png")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "m.png")
    assert _read(tmp_path / "m.png").all()


def test_a_picture_that_declares_more_than_its_file_can_hold_is_refused(tmp_path: Path) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "m.png")
    content = bytearray((tmp_path / "m.png").read_bytes())
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(DataError, match="100000 x 100000 px in"):
        _read(tmp_path / "m.png")


@pytest.mark.parametrize("tag", ["ImageLength", "ImageWidth"])
def test_a_tiff_that_declares_more_than_its_tiles_is_refused(tmp_path: Path, tag: str) -> None:
    _tiff(tmp_path / "m.tif", GREY, tile=(16, 16), compression="deflate")
    assert _read(tmp_path / "m.tif").sum() == WHERE.sum()
    with tifffile.TiffFile(tmp_path / "m.tif", mode="r+") as file:
        file.pages.first.tags[tag].overwrite(60_000)
    with pytest.raises(DataError, match=r"60000.* px in 35 tiles"):
        _read(tmp_path / "m.tif")


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (np.stack([GREY] * 3), {"photometric": "rgb", "planarconfig": "separate", "tile": (16, 16)}),
        (np.dstack([GREY] * 3), {"photometric": "rgb", "tile": (16, 16)}),
        (255 - GREY, {"photometric": "miniswhite"}),
        (~WHERE, {"photometric": "miniswhite"}),
        (WHERE, {"photometric": "minisblack"}),
        ((~WHERE).astype(np.uint8), {"photometric": "palette", "colormap": _colormap()}),
        (WHERE.astype(np.float32), {"photometric": "minisblack"}),
    ],
)
def test_truth_masks_are_read_by_the_same_rules(tmp_path: Path, values: Any, options: dict[str, Any]) -> None:
    _tiff(tmp_path / "m.tif", values, **options)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif", 1), WHERE)
    squares = tumor_squares(tmp_path / "m.tif", (100, 80), 1, 16)
    np.testing.assert_array_equal(np.argwhere(squares), [(row, col) for row in (1, 2) for col in (2, 3)])


@pytest.mark.parametrize(
    ("values", "options", "told"),
    [
        (WHERE.astype(np.float32) * 0.93, {}, "float values such as 0.93"),
        (-WHERE.astype(np.int8), {}, "values -1, 0"),
        (np.stack([GREY] * 2), {"photometric": "minisblack"}, "several pictures"),
        (np.dstack([GREY, GREY * 0, GREY * 0]), {"photometric": "rgb"}, r"\(255, 0, 0\)"),
        (np.dstack([OPAQUE] * 3 + [GREY]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, "transparent"),
        (GREY // 255 * 3 + np.eye(80, 100, dtype=np.uint8), {}, "values 0, 1, 3, 4"),
    ],
)
def test_other_truth_masks_are_refused(tmp_path: Path, values: Any, options: dict[str, Any], told: str) -> None:
    _tiff(tmp_path / "m.tif", values, **options)
    with pytest.raises(DataError, match=told):
        read_mask(tmp_path / "m.tif", 1)
    with pytest.raises(DataError, match=told):
        tumor_squares(tmp_path / "m.tif", (100, 80), 1, 16)


def _damaged(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize("told", [False, True])
def test_a_mask_that_ends_early_is_refused_whatever_pillow_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """Of a truncated picture, Pillow can make one whose rest is black: background."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", told)
    path = tmp_path / "m.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (80, 100), np.uint8) * 255).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(DataError, match="truncated"):
        _read(path)

    assert ImageFile.LOAD_TRUNCATED_IMAGES is told


def test_pillow_has_its_setting_back_after_the_last_of_several_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    seen = []
    with ExitStack() as first:
        first.enter_context(whole_pictures())
        with whole_pictures():
            first.close()
            seen.append(ImageFile.LOAD_TRUNCATED_IMAGES)

    assert [*seen, ImageFile.LOAD_TRUNCATED_IMAGES] == [False, True]


def test_a_program_has_its_warnings_and_logs_back_after_several_threads() -> None:
    """Each put back what it had found: the last one, what the first had changed. All warnings were ignored from then on."""
    silence, filters, seen = Silence("wsi_meta.tests"), list(warnings.filters), []
    for held in (no_warnings, silence.held):
        with ExitStack() as first, ExitStack() as second:
            first.enter_context(held())
            second.enter_context(held())
            first.close()
            seen.append((warnings.filters[0][0], logging.getLogger("wsi_meta.tests").level > logging.CRITICAL))
    assert seen == [("ignore", False), (filters[0][0], True)]
    assert warnings.filters == filters
    assert logging.getLogger("wsi_meta.tests").level == logging.NOTSET


def test_damaged_headers_are_refused(tmp_path: Path) -> None:
    """An array's header is Python's syntax; a width of 0 divides by zero within tifffile."""
    np.save(tmp_path / "m.npy", GREY)
    _damaged(tmp_path / "m.npy", b"}", b"(")
    _tiff(tmp_path / "m.tif", GREY, tile=(16, 16), compression="deflate")
    with tifffile.TiffFile(tmp_path / "m.tif", mode="r+") as file:
        file.pages.first.tags["TileWidth"].overwrite(0)
    for name in ("m.npy", "m.tif"):
        with pytest.raises(DataError, match=f"{name}: not a mask"):
            _read(tmp_path / name)


@pytest.mark.parametrize("lost", ["TileOffsets", "TileByteCounts"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_tile_of_which_place_or_length_was_lost_is_not_taken_for_one_left_out(
    tmp_path: Path, lost: str, compression: str | None
) -> None:
    _tiff(path := tmp_path / "m.tif", GREY, tile=(16, 16), compression=compression)
    assert np.array_equal(_read(path), WHERE)
    with tifffile.TiffFile(path, mode="r+") as file:
        tag: Any = file.pages.first.tags[lost]
        tag.overwrite((0, *tag.value[1:]))
    with pytest.raises(DataError, match=r"m\.tif: not a mask \(a tile or strip with a length but no place"):
        _read(path)


def test_a_bool_array_that_tifffile_wrote_as_white_is_zero_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its picture is the inverse of the array."""
    tifffile.imwrite(tmp_path / "m.tif", WHERE)
    np.testing.assert_array_equal(_read(tmp_path / "m.tif"), ~WHERE)
    assert "m.tif: says that 0 is white" in caplog.text
    caplog.clear()
    tifffile.imwrite(tmp_path / "m.tif", WHERE, photometric="minisblack")
    np.testing.assert_array_equal(_read(tmp_path / "m.tif"), WHERE)
    assert not caplog.records


@pytest.mark.parametrize(
    ("make", "told"), [(os.mkfifo, "a pipe, socket or device"), (os.mkdir, "a directory")], ids=["pipe", "folder"]
)
def test_only_a_file_is_opened(tmp_path: Path, make: Callable[[Path], None], told: str) -> None:
    make(path := tmp_path / "mask.png")
    with pytest.raises(DataError, match=rf"mask\.png: {told}; expected a mask$"):
        _read(path)


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"rowsperstrip": 24}, {"rowsperstrip": 24, "planar": True}])
def test_lzw_is_looked_at_before_it_is_decoded(tmp_path: Path, options: dict[str, Any]) -> None:
    """The decoder that tifffile uses reads whatever memory there is, or ends the process, for a code that is not defined."""
    planar = options.pop("planar", False)
    values = np.stack([GREY] * 3) if planar else GREY
    colours = {"photometric": "rgb", "planarconfig": "separate"} if planar else {"photometric": "minisblack"}
    _tiff(path := tmp_path / "m.tif", values, compression="lzw", **colours, **options)
    assert np.array_equal(_read(path), WHERE)
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        offset, length = page.dataoffsets[-1], page.databytecounts[-1]
    stored = path.read_bytes()
    damaged = with_undefined_code(stored[offset : offset + length])
    path.write_bytes(stored[:offset] + damaged + stored[offset + length :])
    with pytest.raises(DataError, match="not yet in table"):
        _read(path)


def test_reversed_lzw_is_read(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(path := tmp_path / "m.tif", compression="tiff_lzw", tiffinfo={266: 2})
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        assert (int(page.compression), page.fillorder) == (5, 2)
    assert np.array_equal(_read(path), WHERE)


def test_a_tiff_that_does_not_say_what_0_is(tmp_path: Path) -> None:
    """Which tifffile takes for white."""
    _tiff(path := tmp_path / "m.tif", GREY, photometric="minisblack")
    rename_tag(path, "PhotometricInterpretation", 261)
    with pytest.raises(DataError, match="does not say whether 0 is black or white"):
        _read(path)
