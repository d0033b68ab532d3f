from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from large_slide import tissue_shape, write_large_slide
from numpy.typing import NDArray
from PIL import Image
from slide_files import texture
from tissue_pictures import assemble_tissue, draw_tissue

from wsi_meta.demo.pyramid_writer import halved
from wsi_meta.errors import DataError
from wsi_meta.slides.slide import Slide, open_slide

WIDTH, HEIGHT = 2500, 4100  # neither a whole number of tiles
TISSUE_PX = 10 * 128**2


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    path = tmp_path_factory.mktemp("large") / "large.tif"
    write_large_slide(path, texture(1024, 1024), width=WIDTH, height=HEIGHT, tissue_px=TISSUE_PX, seed=3)
    return open_slide(path)


def _level(slide: Slide, level: int) -> NDArray[np.uint8]:
    return slide.read_region(0, 0, *slide.level_dimensions[level], level=level)


def test_openslide_opens_it(slide: Slide) -> None:
    """As a slide of Camelyon16: its level 0 is not seen at full size, since it is padded, too."""
    assert (slide.vendor, slide.reader) == ("philips", "direct")
    assert slide.mpp == 0.24309399999999998  # so it is printed of the challenge's own
    assert slide.level_dimensions == ((2560, 4608), (1280, 2304), (640, 1152), (320, 576))
    assert slide.level_downsamples == (1, 2, 4, 8)


def test_a_plain_one_fits_the_model_exactly(tmp_path: Path) -> None:
    path = tmp_path / "plain.tif"
    slide = open_slide(write_large_slide(path, texture(512, 512), width=WIDTH, height=HEIGHT, tissue_px=TISSUE_PX, plain=True))
    assert (slide.vendor, slide.reader) == ("generic-tiff", "direct")
    assert slide.mpp == pytest.approx(0.243, rel=1e-6)
    assert slide.level_dimensions == ((2500, 4100), (1250, 2050), (625, 1025), (312, 512))


def test_every_level_is_the_halved_finer_one(slide: Slide) -> None:
    finer = _level(slide, 0)
    for level in range(1, len(slide.level_dimensions)):
        read, expected = _level(slide, level), halved(finer)
        difference = np.abs(read.astype(np.int16) - expected[: read.shape[0], : read.shape[1]])
        assert difference.mean() < 3  # both went through JPEG
        assert (difference > 40).mean() < 0.001
        finer = read


def test_tissue_is_as_large_as_promised(slide: Slide) -> None:
    image = _level(slide, 2)
    stained = image.max(-1).astype(int) - image.min(-1) > 20
    assert stained.sum() == pytest.approx(TISSUE_PX, rel=0.02)


def test_every_tile_has_bytes_of_its_own(slide: Slide) -> None:
    with tifffile.TiffFile(str(slide.path)) as file:
        places = [place for page in file.pages for place in page.dataoffsets]
    assert len(set(places)) == len(places) == 45 + 15 + 6 + 2


def test_memory_does_not_hold_the_slide(tmp_path: Path) -> None:
    picture = texture(512, 512)
    tracemalloc.start()
    write_large_slide(tmp_path / "m.tif", picture, width=8192, height=8192, tissue_px=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6  # its level 0 alone would be 201 MB


def test_shape_has_exactly_that_many() -> None:
    shape = tissue_shape(60, 30, 250, seed=1)
    assert shape.sum() == 250
    np.testing.assert_array_equal(shape, tissue_shape(60, 30, 250, seed=1))
    assert not np.array_equal(shape, tissue_shape(60, 30, 250, seed=2))
    for count in (0, 1801):
        with pytest.raises(ValueError, match="expected 1 to 1800"):
            tissue_shape(60, 30, count)


def test_assembled_picture_averages_back_to_its_patches(tmp_path: Path) -> None:
    patch = texture(96, 96, seed=5)
    Image.fromarray(patch).save(tmp_path / "a.png")
    picture = assemble_tissue(tmp_path, side_px=128)
    assert picture.shape == (512, 512, 3)
    means = picture.reshape(128, 4, 128, 4, 3).mean((1, 3))
    assert np.abs(means[:96, :96] - patch).mean() < 0.5
    assert np.abs(means[96:, :96] - patch[:32]).mean() < 0.5


def test_folders_that_hold_no_patches(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        assemble_tissue(tmp_path)
    Image.fromarray(texture(50, 96)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="96 x 50 px; expected a patch of 96 x 96"):
        assemble_tissue(tmp_path)


def test_pictures_that_cannot_be_repeated(tmp_path: Path) -> None:
    for shape in ((512, 1024, 3), (1536, 1536, 3), (100, 100, 3), (512, 512, 2)):
        with pytest.raises(ValueError, match="expected uint8, a square"):
            write_large_slide(tmp_path / "x.tif", np.zeros(shape, np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_drawn_tissue_is_all_tissue() -> None:
    picture = draw_tissue(seed=1, side_px=1024)
    assert picture.shape == (1024, 1024, 3)
    spread = picture[::16, ::16].max(-1).astype(int) - picture[::16, ::16].min(-1)
    assert (spread > 20).mean() > 0.9
    np.testing.assert_array_equal(picture[:, :10], picture[:, :-11:-1])
