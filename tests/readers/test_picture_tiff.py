"""TIFFs without tiles: read whole, as pictures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from range_server import served
from slide_files import rename_tag, set_tag, texture, write_slide

from wsi_meta import open_slide
from wsi_meta.errors import SlideReadError
from wsi_meta.files.image_series import pictures_of_tiff

MPP = 0.972


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return texture(203, 300, seed=5)


def read(path: Path, **options: Any) -> NDArray[np.uint8]:
    with open_slide(path, mpp=MPP, **options) as slide:
        assert (slide.reader, slide.reader_reason) == ("picture", "a picture without levels")
        return slide.read_region(0, 0, slide.width, slide.height)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "packbits"])
@pytest.mark.parametrize("rows", [16, 203])
def test_strips_of_any_kind(tmp_path: Path, image: NDArray[np.uint8], planar: str, compression: str | None, rows: int) -> None:
    stored = image if planar == "contig" else image.transpose(2, 0, 1)
    options: dict[str, Any] = {"photometric": "rgb", "planarconfig": planar, "rowsperstrip": rows, "compression": compression}
    for order in "<>":
        options |= {"byteorder": order, "metadata": None}
        tifffile.imwrite(tmp_path / "s.tif", stored, **options)
        np.testing.assert_array_equal(read(tmp_path / "s.tif"), image)
    if compression == "lzw" and planar == "contig":
        tifffile.imwrite(tmp_path / "s.tiff", stored, predictor=True, bigtiff=True, **options)
        np.testing.assert_array_equal(read(tmp_path / "s.tiff"), image)


def test_jpeg_strips(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    tifffile.imwrite(tmp_path / "s.tif", image, photometric="ycbcr", compression="jpeg", rowsperstrip=64, metadata=None)
    wanted = tifffile.imread(tmp_path / "s.tif").astype(int)
    assert np.abs(read(tmp_path / "s.tif").astype(int) - wanted).mean() < 0.5


def test_jpeg_strips_have_the_colours_that_they_say(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    """4:2:0 is YCbCr whatever the tag says, and what calls itself RGB is RGB."""
    path, cuts = tmp_path / "s.tif", [image[top : top + 64] for top in (0, 64, 128, 192)]
    options: dict[str, Any] = {"shape": image.shape, "dtype": np.uint8, "rowsperstrip": 64, "compression": "jpeg"}
    strips = [bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(cut), 90, subsampling="420")) for cut in cuts]
    silent = iter([strip.replace(b"JFIF", b"none") for strip in strips])
    tifffile.imwrite(path, silent, photometric="rgb", compressionargs={"outcolorspace": "rgb"}, metadata=None, **options)
    assert np.abs(read(path).astype(int) - image).mean() < 12
    strips = [bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(cut), 90, outcolorspace="rgb")) for cut in cuts]
    tifffile.imwrite(path, iter(strips), photometric="ycbcr", subsampling=(1, 1), metadata=None, **options)
    assert np.abs(read(path).astype(int) - image).mean() < 12


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "white is zero", "premultiplied"])
def test_what_values_mean(tmp_path: Path, image: NDArray[np.uint8], mode: str) -> None:
    path, picture = tmp_path / "s.tif", Image.fromarray(image)
    grey = np.asarray(picture.convert("L"))
    alpha = np.full((*grey.shape, 1), 128, np.uint8)
    faded = (image / 2 + 127).round()
    if mode == "white is zero":
        tifffile.imwrite(path, 255 - grey, photometric="miniswhite", metadata=None)
        wanted = np.stack([grey] * 3, -1)
    elif mode == "premultiplied":
        stored = np.concatenate([(image / 2).astype(np.uint8), alpha], axis=2)
        tifffile.imwrite(path, stored, photometric="rgb", extrasamples=["assocalpha"], metadata=None)
        wanted = faded
    elif mode == "RGBA":
        tifffile.imwrite(path, np.concatenate([image, alpha], axis=2), photometric="rgb", extrasamples=["unassalpha"])
        wanted = faded
    elif mode == "LA":
        stored = np.concatenate([grey[..., None], alpha], axis=2)
        tifffile.imwrite(path, stored, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
        wanted = np.stack([(grey / 2 + 127).round()] * 3, -1)
    else:
        picture.convert(mode).save(path)
        wanted = np.asarray(picture.convert(mode).convert("RGB"))
    assert np.abs(read(path).astype(int) - wanted).max() <= 1


def test_a_palette_of_8_bits(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    numbers = image[..., 0]
    for bits in (8, 16):
        palette = np.tile(np.arange(256, dtype=np.uint16) * (257 if bits == 16 else 1), (3, 1))
        tifffile.imwrite(tmp_path / "p.tif", numbers, photometric="palette", colormap=palette, metadata=None)
        with open_slide(tmp_path / "p.tif", mpp=1) as slide:
            np.testing.assert_array_equal(slide.read_region(0, 0, slide.width, slide.height)[..., 0], numbers)


@pytest.mark.parametrize("ending", ["tif", "ome.tif", "png", "jpg"])
def test_what_is_to_be_turned_is_refused(tmp_path: Path, image: NDArray[np.uint8], ending: str) -> None:
    for turned in (1, 6):
        path, extra = tmp_path / f"{turned}.{ending}", [(274, "H", 1, turned, True)]
        exif = Image.Exif()
        exif[274] = turned
        if ending == "ome.tif":
            with tifffile.TiffWriter(path) as file:
                file.write(image, tile=(64, 64), photometric="rgb", subifds=1, metadata=None, extratags=extra)
                file.write(image[::2, ::2], tile=(64, 64), photometric="rgb", subfiletype=1, metadata=None)
        elif ending == "tif":
            tifffile.imwrite(path, image, photometric="rgb", metadata=None, extratags=extra)
        else:
            Image.fromarray(image).save(path, exif=exif)
    open_slide(tmp_path / f"1.{ending}", mpp=1).close()
    with pytest.raises(SlideReadError, match=r"is to be turned \(Orientation 6\).*expected Orientation 1"):
        open_slide(tmp_path / f"6.{ending}", mpp=1)


def test_its_pixels_size_is_what_its_tags_say_or_what_is_given(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    tifffile.imwrite(tmp_path / "s.tif", image, resolution=(1e4 / MPP, 1e4 / MPP), resolutionunit="CENTIMETER", **options)
    with open_slide(tmp_path / "s.tif") as slide:
        assert slide.mpp == pytest.approx(MPP)
    for dots, unit in [(72, "INCH"), (1, "NONE"), (300, "INCH")]:
        tifffile.imwrite(tmp_path / "s.tif", image, resolution=(dots, dots), resolutionunit=unit, **options)
        with open_slide(tmp_path / "s.tif") as slide:
            assert slide.known_mpp is None
            assert "pass --mpp" in str(slide.mpp_problem)


def test_what_is_cut_or_damaged_is_one_line(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    path = tmp_path / "s.tif"
    for compression in (None, "zlib", "jpeg"):
        options: dict[str, Any] = {"photometric": "rgb" if compression != "jpeg" else "ycbcr", "metadata": None}
        tifffile.imwrite(path, image, compression=compression, rowsperstrip=32, **options)
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) * 3 // 4], whole[:-1000] + b"\xff" * (990 if compression else 0)):
            path.write_bytes(damaged)
            with pytest.raises(
                SlideReadError, match=r"s\.tif: not a whole TIFF \(.*copy it again, or save it as PNG"
            ) as caught:
                open_slide(path, mpp=MPP)
            assert "\n" not in str(caught.value)


def test_what_is_no_picture_of_8_bits_is_one_line(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    path = tmp_path / "s.tif"
    stored: list[tuple[Any, dict[str, Any], str]] = [
        (image.astype(np.uint16), {"photometric": "rgb"}, "16 bits a colour; expected 8"),
        (image.astype(np.float32), {"photometric": "rgb"}, "32 bits a colour"),
        (np.dstack([image, image[..., :1]]), {"photometric": "separated"}, "colours stored as SEPARATED; expected RGB or grey"),
        (image, {"photometric": "rgb", "compression": "webp"}, "compressed with WEBP"),
        (image, {"photometric": "minisblack", "planarconfig": "contig"}, "grey of 3 values a pixel; expected one"),
        (
            image,
            {"photometric": "rgb", "compression": "packbits", "predictor": True},
            "Predictor 2 with the compression PackBits",
        ),
    ]
    for values, options, told in stored:
        tifffile.imwrite(path, values, metadata=None, **options)
        with pytest.raises(SlideReadError, match=rf"s\.tif: {told}.*; save it as PNG"):
            open_slide(path, mpp=MPP)
    for silent in (image, image[..., 0]):
        tifffile.imwrite(path, silent, metadata=None)
        rename_tag(path, "PhotometricInterpretation", 261)
        with pytest.raises(SlideReadError, match=r"s\.tif: does not say whether 0 is black or white .*; save it as PNG"):
            open_slide(path, mpp=MPP)
    with tifffile.TiffWriter(path) as file:
        file.write(image[:50, :50], photometric="rgb")
        file.write(image, photometric="rgb")
    with pytest.raises(SlideReadError, match=r"2 pictures \(50 x 50 px, 300 x 203 px\); expected one"):
        open_slide(path, mpp=MPP)
    tifffile.imwrite(path, image, photometric="rgb", metadata=None)
    set_tag(path, "ImageWidth", 200_000)
    set_tag(path, "ImageLength", 100_000)
    with pytest.raises(SlideReadError, match="200000 x 100000 px; expected at most 268,435,456 pixels; convert it"):
        open_slide(path, mpp=MPP)


@pytest.mark.parametrize(
    ("tile", "imagej"), [(None, False), ((64, 64), False), (None, True)], ids=["strips", "tiles", "ImageJ"]
)
def test_several_pictures_in_one_file_are_refused(
    tmp_path: Path, image: NDArray[np.uint8], tile: tuple[int, int] | None, imagej: bool
) -> None:
    """Tissue on the second would be missing from a map that is called complete."""
    path, stack = tmp_path / "s.tif", np.stack([image, 255 - image, image])
    options: dict[str, Any] = {"imagej": True} if imagej else {"tile": tile}
    tifffile.imwrite(path, stack, photometric="rgb", **options)
    told = r"s\.tif: 3 pictures \(300 x 203 px, 300 x 203 px, 300 x 203 px\); expected one, .*; export each picture or scene"
    with pytest.raises(SlideReadError, match=told):
        open_slide(path, mpp=MPP)
    with served(tmp_path) as far, pytest.raises(SlideReadError, match=rf"{far.url}/{told}"):
        open_slide(f"{far.url}/s.tif", mpp=MPP)


def test_a_stack_of_imagej_may_have_one_page_only(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    stack = np.stack([image[..., 0]] * 3)
    tifffile.imwrite(tmp_path / "s.tif", stack, imagej=True, truncate=True, photometric="minisblack")
    with pytest.raises(SlideReadError, match=r"s\.tif: 3 pictures \(300 x 203 px, "):
        open_slide(tmp_path / "s.tif", mpp=MPP)


@pytest.mark.parametrize("tile", [None, (64, 64)], ids=["strips", "tiles"])
def test_smaller_pictures_are_told_of_and_levels_labels_and_masks_never(
    tmp_path: Path, image: NDArray[np.uint8], tile: tuple[int, int] | None, caplog: pytest.LogCaptureFixture
) -> None:
    def write(name: str, *further: tuple[NDArray[Any], dict[str, Any]]) -> Path:
        with tifffile.TiffWriter(tmp_path / name) as file:
            file.write(image, photometric="rgb", tile=tile, compression="jpeg" if tile else None, metadata=None)
            for picture, own in further:
                file.write(picture, photometric="rgb" if picture.ndim == 3 else "minisblack", metadata=None, **own)
        return tmp_path / name

    quiet = write(
        "quiet.tif",
        (image[::2, ::2], {}),
        (image[::4, ::4], {"subfiletype": 1}),
        (image, {"subfiletype": 1}),
        (image[..., 0] > 128, {"subfiletype": 4}),
        (image[:90, :90], {"description": "Label image"}),
        (image[:200, :90], {"description": "macro 90x200"}),
    )
    other = write("other.tif", (image[:80, :200], {"description": "my slide"}), (image[:70, :90], {}))
    with served(tmp_path) as far:
        for path in (quiet, other, f"{far.url}/other.tif"):
            with open_slide(path, mpp=MPP) as slide:
                assert slide.level_dimensions[0] == (300, 203)
    told = "only its first picture is read (300 x 203 px), not 200 x 80 px, 90 x 70 px; if there is tissue on another"
    lines = [line for line in caplog.messages if "picture" in line]
    assert [line.partition("; export")[0].partition(", export")[0] for line in lines] == [
        f"{name}: {told}" for name in (other, f"{far.url}/other.tif")
    ]


def test_tiles_stay_with_the_other_readers(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    tifffile.imwrite(tmp_path / "p.tif", image.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", tile=(64, 64))
    write_slide(tmp_path / "t.tif", image)
    for name in ("p.tif", "t.tif"):
        with open_slide(tmp_path / name, mpp=MPP) as slide:
            assert slide.reader == "openslide"
            np.testing.assert_array_equal(slide.read_region(0, 0, 300, 203), image)


def test_pictures_at_an_address_are_fetched_whole(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    tifffile.imwrite(tmp_path / "s.tif", image, photometric="rgb", metadata=None)
    Image.fromarray(image).save(tmp_path / "s.png")
    with served(tmp_path) as far:
        for name in ("s.tif", "s.png"):
            with open_slide(f"{far.url}/{name}", mpp=MPP) as there, open_slide(tmp_path / name, mpp=MPP) as here:
                assert there.fingerprint() == here.fingerprint()
                np.testing.assert_array_equal(there.read_region(0, 0, 300, 203), image)


@pytest.mark.shared_data
def test_a_real_plain_tiff(shared_data: Path) -> None:
    path = shared_data / "slides" / "plain_not_pyramidal.tif"
    np.testing.assert_array_equal(read(path), tifffile.imread(path))


@pytest.mark.parametrize(
    "sizes",
    [
        [(97792, 221184), (48896, 110592), (24576, 55296), (12288, 27648), (6144, 13824), (3072, 7168), (1536, 3584)],
        [(97280, 220700), (49152, 110592), (24576, 55296), (12288, 27648), (6144, 14336)],
        [(97792, 221184), (48896, 110592), (24448, 54784), (23936, 55296)],
    ],
    ids=["Camelyon16", "padded twice", "cut by a tile"],
)
def test_levels_padded_to_whole_tiles_are_no_other_pictures(sizes: list[tuple[int, int]]) -> None:
    page = {"description": "", "subifds": None, "subfiletype": 0, "tilewidth": 512, "tilelength": 512}

    def found(*there: tuple[int, int]) -> list[tuple[int, int]]:
        pages = [SimpleNamespace(**page, imagewidth=width, imagelength=height) for width, height in there]
        return [picture.size for picture in pictures_of_tiff(SimpleNamespace(pages=pages, is_ome=False))]

    assert found(*sizes) == sizes[:1]
    assert found(*sizes, (40000, 60000)) == [sizes[0], (40000, 60000)]
