from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from imagecodecs import jpeg8_encode
from PIL import Image
from slide_files import texture, write_slide

from wsi_meta import open_slide, scan
from wsi_meta.cli import main
from wsi_meta.errors import MissingMppError, SlideReadError
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.model import Model
from wsi_meta.readers import picture_reader
from wsi_meta.slides.slide import Slide

MPP = 0.972


def test_a_png_is_read_as_it_is(tmp_path: Path) -> None:
    pixels = texture(200, 300)
    Image.fromarray(pixels).save(tmp_path / "s.png")
    with open_slide(tmp_path / "s.png", mpp=0.5) as slide:
        assert (slide.width, slide.height, slide.mpp, slide.reader) == (300, 200, 0.5, "picture")
        assert np.array_equal(slide.read_region(0, 0, 300, 200), pixels)
        beyond = slide.read_region(290, 190, 20, 20)
        assert np.array_equal(beyond[:10, :10], pixels[190:, 290:])
        assert (beyond[10:] == 255).all()
        assert slide.read_at(1.0, 0, 0, 150, 100).shape == (100, 150, 3)


@pytest.mark.parametrize("ending", [".jpg", ".JPEG"])
def test_a_jpeg_is_read_as_pillow_reads_it(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"s{ending}"
    Image.fromarray(texture(64, 96)).save(path, format="jpeg", quality=90)
    with open_slide(path, mpp=MPP) as slide, Image.open(path) as expected:
        got, wanted = slide.read_region(0, 0, 96, 64).astype(int), np.asarray(expected.convert("RGB")).astype(int)
    assert np.abs(got - wanted).mean() < 1.5, "another decoder rounds otherwise"


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_every_kind_of_png_becomes_rgb_on_white(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(texture(40, 50)).convert("RGBA")
    picture.putpixel((3, 2), (10, 20, 30, 0))
    path = tmp_path / "s.png"
    (picture.convert("RGB") if mode in ("P", "1", "L") else picture).convert(mode).save(path)
    with open_slide(path, mpp=MPP) as slide, Image.open(path) as saved:
        rgba = np.asarray(saved.convert("RGBA")).astype(float)
        wanted = (rgba[..., :3] * rgba[..., 3:] / 255 + 255 * (1 - rgba[..., 3:] / 255)).round()
        assert np.abs(slide.read_region(0, 0, 50, 40) - wanted).max() <= 1


def test_a_map_is_the_same_from_slide_picture_and_array(tmp_path: Path, thin_model: Model) -> None:
    pixels = texture(100, 130)
    Image.fromarray(pixels).save(tmp_path / "s.png")
    with open_slide(write_slide(tmp_path / "s.tif", pixels, mpp=MPP)) as slide:
        assert np.array_equal(slide.read_region(0, 0, 130, 100), pixels), "nothing lost on the way"
    array = Slide.from_array(pixels, mpp=MPP)
    slides: list[Path | Slide] = [tmp_path / "s.tif", Slide(tmp_path / "s.png", MPP), array]
    predictor = Predictor(thin_model, device="cpu", precision="fp32", batch_size=8)
    maps = [
        scan(slide, tmp_path / f"{number}.zarr", predictor=predictor, tissue_mask="none") for number, slide in enumerate(slides)
    ]
    assert all(np.array_equal(maps[0].probability, other.probability) for other in maps[1:])
    assert maps[2].record.slide.name == "array"
    assert array.fingerprint() != Slide.from_array(255 - pixels, mpp=MPP).fingerprint()


def test_two_pictures_that_differ_within_are_two(tmp_path: Path) -> None:
    """Stored without compression both have as many bytes, and the same ends."""
    pixels = np.full((600, 600, 3), 244, np.uint8)
    for name, grey in (("a", 100), ("b", 90)):
        pixels[300, 300] = grey
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", tile=None)
    with open_slide(tmp_path / "a.tif", mpp=MPP) as one, open_slide(tmp_path / "b.tif", mpp=MPP) as two:
        assert one.fingerprint() != two.fingerprint()


@pytest.mark.parametrize("name", ["s.png", "s.tif"])
def test_the_command_scans_a_picture(tmp_path: Path, model_file: Path, name: str) -> None:
    path, image = tmp_path / name, texture(64, 90)
    if name == "s.png":
        Image.fromarray(image).save(path)
    else:
        tifffile.imwrite(path, image.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    words = ["scan", str(path), "--out", str(tmp_path / "h.zarr"), "--model", str(model_file), "--stride", "96"]
    options = ["--tissue-mask", "none", "--device", "cpu", "--precision", "fp32", "--batch-size", "4"]
    refused = CliRunner().invoke(main, [*words, *options])
    assert refused.exit_code == 1
    assert "pass --mpp" in refused.output
    done = CliRunner().invoke(main, [*words, *options, "--mpp", str(MPP)])
    assert done.exit_code == 0, done.output
    assert Heatmap.open(tmp_path / "h.zarr").finished


def test_what_is_no_whole_picture_is_one_line(tmp_path: Path) -> None:
    Image.fromarray(texture(100, 100)).save(tmp_path / "s.png")
    Image.fromarray(texture(100, 100)).save(tmp_path / "s.jpg")
    for name in ("s.png", "s.jpg"):
        whole = (tmp_path / name).read_bytes()
        for length in (len(whole) // 2, 30, 3):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(SlideReadError, match=rf"{name}: .*copy it again"):
                open_slide(tmp_path / name, mpp=MPP)
    deep = Image.fromarray(np.zeros((10, 10), np.uint16))
    deep.save(tmp_path / "deep.png")
    with pytest.raises(SlideReadError, match="values of type uint16; expected uint8"):
        open_slide(tmp_path / "deep.png", mpp=MPP)
    Image.new("CMYK", (20, 20)).save(tmp_path / "print.jpg")
    with pytest.raises(SlideReadError, match="colours for printing"):
        open_slide(tmp_path / "print.jpg", mpp=MPP)
    jpeg = bytearray(jpeg8_encode(texture(64, 64), level=90, subsampling="444"))
    jpeg[jpeg.index(b"\xff\xc0") + 11] = 0x14
    (tmp_path / "rare.jpg").write_bytes(jpeg)
    with pytest.raises(SlideReadError, match=r"rare\.jpg: a JPEG of a rare sampling of colours; expected 4:2:0"):
        open_slide(tmp_path / "rare.jpg", mpp=MPP)
    holed = jpeg8_encode(texture(256, 256), level=85, subsampling="420")
    (tmp_path / "hole.jpg").write_bytes(holed[:9000] + bytes(64) + holed[9064:])
    with pytest.raises(SlideReadError, match=r"hole\.jpg: not a whole PNG or JPEG \(.*\); copy it again"):
        open_slide(tmp_path / "hole.jpg", mpp=MPP)
    with pytest.raises(SlideReadError, match=r"shape \(3, 4, 5\)"):
        Slide.from_array(np.zeros((3, 4, 5), np.uint8), mpp=MPP)
    with pytest.raises(SlideReadError, match="values of type float64"):
        Slide.from_array(np.zeros((3, 4, 3)), mpp=MPP)  # type: ignore[arg-type]
    with pytest.raises(MissingMppError, match="which cannot be"):
        Slide.from_array(np.zeros((3, 4, 3), np.uint8), mpp=0)
    with pytest.raises(SlideReadError, match=r"ending '.tif'; expected .png, .jpg"):
        open_slide(write_slide(tmp_path / "s.tif", texture(50, 50)), reader="picture")


def test_a_picture_larger_than_memory_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (10, 10)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = picture_reader.HEADER.pack(200_000, 100_000)
    path.write_bytes(data)
    with pytest.raises(SlideReadError, match=r"200000 x 100000 px; expected at most 268,435,456 pixels; convert it"):
        open_slide(path, mpp=MPP)
