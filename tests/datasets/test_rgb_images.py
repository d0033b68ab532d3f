"""What patches show, and what lies beside them."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile
from slide_files import rename_tag

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.errors import DataError

RAMP = (np.arange(96 * 96).reshape(96, 96) // 37).astype(np.uint8)
DEEP = RAMP.astype(np.uint16) * 256 + 77


def _classes(folder: Path, count: int = 1) -> None:
    for number in range(2 * count):
        place = folder / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((96, 96, 3), number, np.uint8)).save(place / f"{number}.png")


def _tiff(path: Path, values: Any, **options: Any) -> None:
    tifffile.imwrite(path, values, metadata=None, **options)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: Image.fromarray(DEEP).save(path / "a.png"),
        lambda path: _tiff(path / "a.tif", DEEP, photometric="minisblack"),
        lambda path: _tiff(path / "a.tif", DEEP, photometric="minisblack", byteorder=">"),
        lambda path: _tiff(path / "a.tif", 65535 - DEEP, photometric="miniswhite"),
        lambda path: _tiff(path / "a.tif", 255 - RAMP, photometric="miniswhite"),
        lambda path: _tiff(path / "a.tif", np.dstack([DEEP] * 3), photometric="rgb"),
        lambda path: _tiff(path / "a.tif", np.stack([RAMP] * 3), photometric="rgb", planarconfig="separate"),
        lambda path: _tiff(path / "a.tif", np.stack([DEEP] * 3), photometric="rgb", planarconfig="separate", compression="lzw"),
        lambda path: Image.fromarray(np.dstack([RAMP] * 3 + [np.full_like(RAMP, 255)])).save(path / "a.png"),
    ],
)  # fmt: skip
def test_greys_of_16_bits_are_scaled_and_the_header_counts(tmp_path: Path, write: Any) -> None:
    _classes(tmp_path)
    (tmp_path / "0" / "0.png").unlink()
    write(tmp_path / "0")
    patches = open_patches(tmp_path)["train"]
    patches.check()
    np.testing.assert_array_equal(patches.read(0), np.dstack([RAMP] * 3))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_transparent_pixels_are_laid_on_white(tmp_path: Path, mode: str) -> None:
    _classes(tmp_path)
    alpha = np.full((96, 96), 255, np.uint8)
    alpha[:48] = 0
    path = tmp_path / "0" / "0.png"
    if mode in ("RGBA", "LA"):
        black = np.zeros((96, 96, 1 if mode == "LA" else 3), np.uint8)
        Image.fromarray(np.dstack([black, alpha])).save(path)
    else:
        image = Image.fromarray((alpha == 255).astype(np.uint8))
        if mode == "P":
            image = image.convert("P")
            image.putpalette([9, 9, 9, 0, 0, 0])
        image.point(lambda value: value).save(path, transparency=0)
    found = open_patches(tmp_path)["train"].read(0)
    assert (found[:48] == 255).all()
    assert (found[48:] <= 1).all()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (RAMP.astype(np.float32) / 255, "values are floats"),
        (RAMP.astype(np.uint32), "whole numbers of up to 32 bits"),
        (RAMP.astype(np.int16), "expected 8"),
        (np.stack([DEEP] * 3), "a plane of 16 bits for each colour, uncompressed; expected 8 bits, or colours pixel by pixel"),
    ],
)
def test_values_without_an_agreed_colour_are_refused(tmp_path: Path, values: Any, told: str) -> None:
    """Nor are planes read that Pillow mistakes for those of 8 bits."""
    _classes(tmp_path)
    planes = {"photometric": "rgb", "planarconfig": "separate"} if values.ndim == 3 else {"photometric": "minisblack"}
    _tiff(tmp_path / "0" / "a.tif", values, **planes)
    patches = open_patches(tmp_path)["train"]
    index = next(number for number in range(3) if patches.name(number) == "a.tif")
    for read in (patches.check, lambda: patches.read(index)):
        with pytest.raises(DataError, match=re.escape(str(tmp_path / "0" / "a.tif"))) as caught:
            read()
        assert told in str(caught.value)


@pytest.mark.parametrize("values", [RAMP, DEEP], ids=["8 bits", "16 bits"])
def test_a_tiff_that_does_not_say_what_0_is(tmp_path: Path, values: Any) -> None:
    """Which Pillow takes for white in 8 bits."""
    _classes(tmp_path)
    _tiff(path := tmp_path / "0" / "a.tif", values, photometric="minisblack")
    rename_tag(path, "PhotometricInterpretation", 261)
    with pytest.raises(DataError, match=r"a\.tif: does not decode as an image \(does not say whether 0 is black or white"):
        open_patches(tmp_path)["train"].check()


SHALLOW = RAMP.astype(np.uint16) * 16


def _deep_png(path: Path, values: Any) -> None:
    path.write_bytes(imagecodecs.png_encode(values))


@pytest.mark.parametrize(
    ("grey", "write"),
    [
        (True, lambda path, values: _tiff(path.with_suffix(".tif"), values, photometric="minisblack")),
        (True, lambda path, values: _tiff(path.with_suffix(".tif"), values, photometric="miniswhite")),
        (False, lambda path, values: _tiff(path.with_suffix(".tif"), np.dstack([values] * 3), photometric="rgb")),
        (True, _deep_png),
        (False, lambda path, values: _deep_png(path, np.dstack([values] * 3))),
        (False, lambda path, values: _deep_png(path, np.dstack([values] * 3 + [np.full_like(values, 65535)]))),
        (False, lambda path, values: _deep_png(path, np.dstack([values, np.full_like(values, 65535)]))),
    ],
)  # fmt: skip
def test_values_of_12_or_8_bits_in_16_are_refused(tmp_path: Path, write: Any, *, grey: bool) -> None:
    """They were black, or nearly. Greys of 16 bits may be black; of colours only the upper bytes are known."""
    _classes(tmp_path)
    (tmp_path / "0" / "0.png").unlink()
    told = r"a\.(png|tif): .*values of 16 bits that are all under 4096, as of 12 or 8 bits"
    for shallow in (SHALLOW, SHALLOW // 16):
        write(tmp_path / "0" / "a.png", shallow)
        with pytest.raises(DataError, match=told):
            open_patches(tmp_path)["train"].read(0)
    for sound in (SHALLOW * 16, SHALLOW * 0) if grey else (SHALLOW * 16,):
        write(tmp_path / "0" / "a.png", sound)
        assert len(np.unique(open_patches(tmp_path)["train"].read(0))) == len(np.unique(sound >> 8))


@pytest.mark.parametrize("name", ["val", "validation", "Val", "valid"])
def test_val_is_a_name_of_the_validation_split(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    _classes(tmp_path / "train", 3)
    _classes(tmp_path / name, 2)
    with caplog.at_level(logging.WARNING):
        data = open_patches(tmp_path)
    assert {split: len(patches) for split, patches in data.items()} == {"train": 6, "valid": 4}
    assert caplog.text == ""


def test_a_patch_that_ends_early_is_refused_whatever_pillow_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    _classes(tmp_path)
    path = tmp_path / "0" / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(DataError, match=r"0\.png: does not decode as an image \(.*truncated"):
        open_patches(tmp_path)["train"].read(0)


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "valid"):
        _classes(tmp_path / name)
    with pytest.raises(DataError, match="valid: is the same split as val/"):
        open_patches(tmp_path)


@pytest.mark.parametrize("here", [False, True])
def test_what_is_not_read_is_named(
    tmp_path: Path, here: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _classes(tmp_path / "train")
    (tmp_path / "train" / "0" / "more").mkdir()
    (tmp_path / "train" / "0" / "b.BMP").write_bytes(b"")
    (tmp_path / "train" / "2").mkdir()
    (tmp_path / "holdout").mkdir()
    Image.new("RGB", (96, 96)).save(tmp_path / "train" / "a.png")
    (tmp_path / "train" / ".hidden.png").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("")
    if here:
        monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert len(open_patches("." if here else tmp_path)["train"]) == 2
    assert len(caplog.messages) == 1
    named = caplog.messages[0].split("not read: ")[1].split(";")[0].split(", ")
    expected = ["holdout/", "train/0/b.BMP", "train/0/more/", "train/2/", "train/a.png"]
    assert (
        named == expected
        if here
        else [str(Path(name).relative_to(tmp_path)) for name in named] == [name.rstrip("/") for name in expected]
    )


def test_whatever_lies_beside_images_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _classes(tmp_path)
    for name in ("0/a.jfif", "0/b", "1/Thumbs.db", "LICENSE", "c.hdf5"):
        (tmp_path / name).write_text("")
    open_patches(tmp_path)
    told = ", ".join(str(tmp_path / name) for name in ("0/a.jfif", "0/b", "c.hdf5"))
    assert [message.split("not read: ")[1].split(";")[0] for message in caplog.messages] == [told]


def test_nothing_is_said_where_everything_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _classes(tmp_path, 2)
    with caplog.at_level(logging.WARNING):
        open_patches(tmp_path)
    assert caplog.text == ""


def test_a_label_that_is_missing_is_named_by_line_and_id(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    rows = []
    for number in range(6):
        pixels = np.full((96, 96, 3), number, np.uint8)
        name = hashlib.sha1(pixels.tobytes(), usedforsecurity=False).hexdigest()
        Image.fromarray(pixels).save(tmp_path / "train" / f"{name}.tif")
        rows.append(f"{name},{'' if number == 2 else number % 2}")
    table = tmp_path / "train_labels.csv"
    table.write_text("id,label\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match=rf"label '' in line 4 \(id '{rows[2][:40]}'\)"):
        open_patches(tmp_path)
    rows[2] += "0"
    table.write_text("label;id\n" + "\n".join(";".join(row.split(",")[::-1]) for row in rows))
    assert open_patches(tmp_path)["train"].labels.sum() == 3
    table.write_text("id,label\n" + "\n".join([*rows, rows[1]]) + "\n")
    with pytest.raises(DataError, match=rf"'{rows[1][:40]}' in line 3 and again in line 8"):
        open_patches(tmp_path)


def test_several_pictures_in_one_file_are_refused(tmp_path: Path) -> None:
    _classes(tmp_path)
    tifffile.imwrite(tmp_path / "0" / "a.tif", np.zeros((3, 96, 96, 3), np.uint8), photometric="rgb")
    with pytest.raises(DataError, match="several pictures in one file"):
        open_patches(tmp_path)["train"].check()
