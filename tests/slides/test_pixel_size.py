"""The size of a slide's pixels, as the file states it and as the user does: bounds, and what is said when they differ."""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import scan_darkness
from slide_files import texture, write_jpeg_slide, write_slide

from wsi_meta.errors import MissingMppError, OptionsError
from wsi_meta.metadata import info
from wsi_meta.slides.resampling import exact_ratio
from wsi_meta.slides.slide import Slide, open_slide

BOUNDS = r"which cannot be; expected 0\.05 to 50; pass --mpp"


@pytest.mark.parametrize("mpp", [0.005, 0.049, 60.0, 2430.0])
def test_a_file_that_states_an_impossible_size(tmp_path: Path, mpp: float) -> None:
    path = write_slide(tmp_path / "s.tif", texture(300, 300), mpp)
    slide = open_slide(path)
    assert slide.known_mpp is None
    with pytest.raises(MissingMppError, match=rf"s\.tif: the file says {mpp:g}.* um per pixel, {BOUNDS}") as caught:
        slide.read_overview(7.776)
    assert "\n" not in str(caught.value)
    assert open_slide(path, mpp=0.972).mpp == 0.972


def test_a_size_is_what_its_decimals_say_and_no_text_or_truth(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tif", texture(300, 300))
    single: Any = np.float32(0.243)
    assert repr(open_slide(path, mpp=single).mpp) == "0.243"
    assert exact_ratio(0.972, single) == 4
    for mpp in ("0.243", True):
        with pytest.raises(MissingMppError, match=f"--mpp is {mpp!r}, which is no number; pass a number of micrometres"):
            open_slide(path, mpp=mpp)  # type: ignore[arg-type]


def test_an_aperio_slide_in_millimetres(tmp_path: Path) -> None:
    told = "Aperio Image Library v12.0.15\r\n300x300 (256x256) JPEG/RGB Q=70|AppMag = 40|MPP = 0.000252"
    path = write_jpeg_slide(tmp_path / "mm.svs", [texture(300, 300)], descriptions=[told])
    with pytest.raises(MissingMppError, match=f"says 0.000252 um per pixel, {BOUNDS}"):
        scan_darkness(path, tmp_path / "h.zarr")
    assert not (tmp_path / "h.zarr").exists()


def test_a_property_whose_name_is_no_utf8_is_passed_over(tmp_path: Path) -> None:
    told = "Aperio Image Library v12.0.15\r\n300x300 (256x256) JPEG/RGB Q=70|Groesse = 3|AppMag = 20|MPP = 0.5"
    path = write_jpeg_slide(tmp_path / "s.svs", [texture(300, 300)], descriptions=[told])
    path.write_bytes(path.read_bytes().replace(b"Groesse", b"Gr\xf6sse."))
    with open_slide(path) as slide:
        assert (slide.vendor, slide.mpp) == ("aperio", 0.5)


APERIO = "Aperio Image Library v12.0.15\r\n{0} [0,0{1}{0}] (256x256) JPEG/RGB Q=70|AppMag = 40|MPP = 0.243"


@pytest.mark.parametrize(
    ("described", "between", "tags", "told", "warned"),
    [
        ("300x280", " ", 0.243, None, None),
        ("301x280", " ", 0.0, None, None),
        ("300x1120", " ", 72, None, None),
        (
            "1200x1120",
            " ",
            0.243,
            "of 1200 x 1120 px of 0.243 um, the picture has 300 x 280; pass --mpp (0.243 if a part .*, 0.972 if a level .*)",
            None,
        ),
        ("75x70", ",", 0.243, "of 75 x 70 px of 0.243 um, .* pass --mpp (0.243 if .*, 0.06075 if", None),
        (
            "300x280",
            " ",
            0.972,
            None,
            "but 0.972 in its resolution tags; if these are right, give --mpp, or the manifest's mpp",
        ),
    ],
)
def test_an_aperio_slide_whose_description_is_of_another_picture(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    described: str,
    between: str,
    tags: float,
    told: str | None,
    warned: str | None,
) -> None:
    """An export of a coarser level keeps the description of the slide, and its pixel size. 72 um are nobody's tags."""
    text = APERIO.format(described, between)
    path = write_jpeg_slide(tmp_path / "s.svs", [texture(280, 300)], descriptions=[text], mpp=tags or 1e9)
    slide = open_slide(path)
    assert re.search((told or "None").replace("(", r"\(").replace(")", r"\)"), str(slide.mpp_problem))
    assert slide.known_mpp == (None if told else 0.243)
    assert (warned in caplog.text) if warned else not caplog.text
    caplog.clear()
    assert open_slide(path, mpp=0.243).known_mpp == 0.243
    assert not caplog.text


@pytest.mark.parametrize("mpp", [1e-9, 0.0, -1.0, 0.0499, 50.1, 1e300])
def test_an_option_that_cannot_be(tmp_path: Path, mpp: float) -> None:
    path = write_slide(tmp_path / "s.tif", texture(64, 64))
    with pytest.raises(MissingMppError, match=rf"s\.tif: --mpp says {re.escape(str(mpp))} um per pixel, {BOUNDS}"):
        open_slide(path, mpp=mpp)


@pytest.mark.parametrize("mpp", [float("inf"), float("nan")])
def test_an_option_that_is_no_number(tmp_path: Path, mpp: float) -> None:
    path = write_slide(tmp_path / "s.tif", texture(64, 64))
    with pytest.raises(MissingMppError, match=rf"s\.tif: --mpp is {mpp}, which is no number; pass a number of micrometres"):
        open_slide(path, mpp=mpp)


def test_a_size_is_the_same_in_every_kind_of_number() -> None:
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    kinds: tuple[Any, ...] = (Fraction(1, 4), np.float32(0.25), np.array(0.25), torch.tensor(0.25))
    for quarter in kinds:
        slide = Slide.from_array(pixels, mpp=quarter)
        assert (slide.mpp, type(slide.mpp)) == (0.25, float)
        assert np.array_equal(slide.read_at(2 * quarter, 0, 0, 4, 4), slide.read_at(0.5, 0, 0, 4, 4))
        assert slide.read_overview(2 * quarter)[0].shape == (4, 4, 3)
    with pytest.raises(OptionsError, match=r"mpp np\.float32\(0\.0\); expected micrometres per pixel, over 0"):
        slide.read_at(np.float32(0), 0, 0, 4, 4)  # type: ignore[arg-type]
    assert slide.read_region(0, 0, np.uint8(250), np.uint8(9)).shape == (9, 250, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("mpp", [0.05, 50.0])
def test_the_bounds_themselves_can_be(tmp_path: Path, mpp: float) -> None:
    assert open_slide(write_slide(tmp_path / "s.tif", texture(64, 64)), mpp=mpp).mpp == mpp


def test_info_tells_why_the_size_is_not_known(tmp_path: Path) -> None:
    facts = info(write_slide(tmp_path / "s.tif", texture(64, 64), 0.005))
    assert facts["mpp"] is None
    assert "0.05 to 50" in facts["mpp_problem"]
    assert info(write_slide(tmp_path / "good.tif", texture(64, 64)))["mpp_problem"] is None


@pytest.mark.parametrize(("mpp", "lines"), [(0.95, 1), (1.0, 1), (0.972, 0), (0.96, 0), (0.98, 0)])
def test_an_option_that_differs_from_the_file_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mpp: float, lines: int
) -> None:
    options: dict[str, Any] = {"tissue_mask": "none", "mpp": mpp}
    with caplog.at_level(logging.WARNING, "wsi_meta"):
        scan_darkness(write_slide(tmp_path / "s.tif", texture(64, 64)), tmp_path / "h.zarr", **options)
    told = [record.getMessage() for record in caplog.records if "um per pixel" in record.getMessage()]
    assert len(told) == lines
    kept = info(tmp_path / "h.zarr")["slide"]
    assert (kept["mpp"], kept["stated_mpp"]) == (mpp, pytest.approx(0.972) if lines else None)
    assert "not JPEG" in kept["reader_reason"]
    assert all("s.tif: says 0.972 um per pixel" in line and f"{mpp:g} is used" in line for line in told)
