from __future__ import annotations

import csv
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from fakes import DarknessPredictor
from numpy.typing import NDArray
from PIL import Image
from slide_files import damage_tile, overwrite, set_tag, texture, write_ome_zarr, write_slide

from wsi_meta.cohorts.batch import scan_slides
from wsi_meta.errors import DataError, OutputExistsError, OutputPathError
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.models.model import Model
from wsi_meta.outputs.checks import check_output
from wsi_meta.scanning.scan import scan
from wsi_meta.worklist.renewal import summarise_folder
from wsi_meta.worklist.slide_places import find_slide
from wsi_meta.worklist.table import COLUMNS


@pytest.fixture
def darkness(thin_model: Model) -> DarknessPredictor:
    return DarknessPredictor(thin_model)


def test_a_store_each_and_one_table(tmp_path: Path, darkness: DarknessPredictor) -> None:
    slides = [write_slide(tmp_path / f"{name}.tif", texture(130, 130, seed)) for seed, name in enumerate("ab")]
    torn = write_slide(tmp_path / "torn.tif", texture(256, 1100))
    damage_tile(torn, 0)
    (tmp_path / "out").symlink_to("made")
    rows = scan_slides([slides[0], tmp_path / "gone.tif", torn, slides[1]], tmp_path / "out", predictor=darkness)
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [Path(row["slide"]).stem for row in table] == ["a", "gone", "torn", "b"]
    assert [row["complete"] for row in table] == ["True", "False", "False", "True"]
    assert tuple(table[0]) == COLUMNS
    assert table[1]["score"] == "", "unknown is empty, never 0"
    assert "no such file" in table[1]["error"]
    assert "could not be read" in table[2]["error"]
    assert [row["error_kind"] for row in table] == ["", "SlideReadError", "incomplete", ""]
    assert int(table[2]["unreadable"]) > 0
    assert float(table[3]["score"]) == rows[3]["score"]
    assert (tmp_path / "out" / "a.zarr").is_dir()
    assert not (tmp_path / "out" / "gone.zarr").exists()


def test_no_slide_ends_the_batch(tmp_path: Path, darkness: DarknessPredictor) -> None:
    """OpenSlide asks for terabytes for the second, and aborts; the third is a link to itself."""
    paths = [write_slide(tmp_path / f"{name}.tif", texture(130, 130)) for name in "abcd"]
    set_tag(paths[1], "TileLength", 2**31 - 16)
    with tifffile.TiffFile(paths[1]) as file:
        place = file.pages.first.tags["TileLength"].offset
    overwrite(paths[1], place + 2, b"\x09\0")  # the type of numbers with a sign
    paths[2].unlink()
    paths[2].symlink_to(paths[2].name)
    rows = scan_slides(tmp_path, tmp_path / "out", predictor=darkness)
    assert [(Path(row["slide"]).stem, row["complete"]) for row in rows] == [
        *zip("abcd", (True, False, False, True), strict=True)
    ]
    assert [row["error_kind"] for row in rows if row["error"]] == ["SlideReadError"] * 2


def test_the_kind_of_an_error_is_one_that_programs_can_name(tmp_path: Path, darkness: DarknessPredictor) -> None:
    """Some kinds of errors have kinds of their own within the package."""
    slide = write_slide(tmp_path / "a.tif", texture(130, 130))
    set_tag(slide, "PhotometricInterpretation", 99)
    (row,) = scan_slides([slide], tmp_path / "out", predictor=darkness)
    assert (row["error_kind"], "colours stored as number 99" in row["error"]) == ("SlideReadError", True)


def test_the_program_around_may_go_to_another_folder(
    tmp_path: Path, thin_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table lacked all rows, later maps went where the folder's name led by then, and other slides were taken."""

    class Leaving(DarknessPredictor):
        def look(self, patch: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
            os.chdir(tmp_path / "elsewhere")
            return super().look(patch)

    for seed, name in enumerate("abc"):
        write_slide(tmp_path / f"{name}.tif", texture(130, 130, seed))
    (tmp_path / "elsewhere" / "out").mkdir(parents=True)
    write_slide(tmp_path / "elsewhere" / "c.tif", texture(64, 64, 9))
    (tmp_path / "m.csv").write_text("slide,patient\nc.tif,7\n")
    monkeypatch.chdir(tmp_path)
    rows = scan_slides(["a.tif", "b.tif"], "out", manifest="m.csv", predictor=Leaving(thin_model))
    assert [row["slide"] for row in rows] == [str(tmp_path / f"{name}.tif") for name in "abc"]
    assert rows[2]["scanned"] > 4, "not the small one"
    assert [row["heatmap"] for row in rows] == [str(tmp_path / "out" / f"{name}.zarr") for name in "abc"]
    assert len((tmp_path / "out" / "summary.csv").read_text().splitlines()) == 4
    assert not list((tmp_path / "elsewhere" / "out").iterdir())


def test_a_pixel_size_for_many_is_for_those_that_state_none(
    tmp_path: Path, darkness: DarknessPredictor, caplog: pytest.LogCaptureFixture
) -> None:
    """One slide asked for --mpp, and the folder's command with it scanned all others at that size."""
    stated, mute = write_slide(tmp_path / "a.tif", texture(130, 130)), tmp_path / "b.png"
    Image.fromarray(texture(300, 300)).save(mute)

    def sizes(slides: Any, out: str, mpp: float) -> list[float]:
        rows = scan_slides(slides, tmp_path / out, mpp=mpp, predictor=darkness)
        return [Heatmap.open(row["heatmap"]).record.slide.mpp for row in rows]

    assert sizes([stated, mute], "several", 0.5) == [0.972, 0.5]
    assert sizes(tmp_path / "[a].tif", "pattern", 0.5) == [0.972]
    told = "a.tif: says 0.972 um per pixel, which is used; --mpp 0.5 is for those that say none"
    assert sum(told in text for text in caplog.messages) == 2, "once a scan"
    assert sizes(stated, "named", 0.7) == [0.7]
    assert sum("0.7 is used instead" in text for text in caplog.messages) == 1
    assert sizes(mute, "mute", 0.5) == [0.5]


def test_bad_calls(tmp_path: Path, darkness: DarknessPredictor) -> None:
    slide = write_slide(tmp_path / "a.tif", texture(130, 130))
    (tmp_path / "x").mkdir()
    twin = write_slide(tmp_path / "x" / "a.tif", texture(130, 130))
    with pytest.raises(DataError, match="the name of several slides"):
        scan_slides([slide, twin], tmp_path / "out", predictor=darkness)
    (tmp_path / "file").touch()
    with pytest.raises(OutputPathError, match="expected a folder"):
        scan_slides([slide, tmp_path / "b.tif"], tmp_path / "file", predictor=darkness)


def test_a_second_run_keeps_the_rows_of_the_first(tmp_path: Path, darkness: DarknessPredictor) -> None:
    slides = [write_slide(tmp_path / f"{name}.tif", texture(130, 130, seed)) for seed, name in enumerate("abc")]
    scan_slides(slides[:2], tmp_path / "out", predictor=darkness)
    scan_slides(slides[1:], tmp_path / "out", predictor=darkness)
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        assert [Path(row["slide"]).stem for row in csv.DictReader(file)] == ["a", "b", "c"]


def test_a_foreign_summary_is_never_replaced(tmp_path: Path, darkness: DarknessPredictor) -> None:
    slides = [write_slide(tmp_path / f"{name}.tif", texture(130, 130)) for name in "ab"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.csv").write_text("my,own,table\n1,2,3\n")
    with pytest.raises(OutputExistsError, match="not a summary of scans"):
        scan_slides(slides, tmp_path / "out", predictor=darkness)
    assert (tmp_path / "out" / "summary.csv").read_text() == "my,own,table\n1,2,3\n"


class _InTheWay(DarknessPredictor):
    """Puts a folder in the place of the table when the first block comes; takes it away at the third, if there is one."""

    place: Path
    calls = 0

    def predict_block(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            self.place.mkdir()
        elif self.calls == 3:
            self.place.rmdir()
        return super().predict_block(*arguments)


@pytest.mark.parametrize("mended", [False, True])
def test_a_table_that_cannot_be_written_ends_no_batch(
    tmp_path: Path, thin_model: Model, mended: bool, caplog: pytest.LogCaptureFixture
) -> None:
    names = "abc" if mended else "ab"
    slides = [write_slide(tmp_path / f"{name}.tif", texture(130, 130, seed)) for seed, name in enumerate(names)]
    predictor = _InTheWay(thin_model)
    predictor.place = tmp_path / "out" / "summary.json"
    if mended:
        scan_slides(slides, tmp_path / "out", predictor=predictor)
        assert [Path(row["slide"]).stem for row in _rows(tmp_path / "out")] == ["a", "b", "c"]
        return
    told = r"out: the table lacks 2 rows \(.*summary\.json: a folder .*\); when that is mended, run the same scan again: "
    with pytest.raises(OutputPathError, match=told) as raised:
        scan_slides(slides, tmp_path / "out", predictor=predictor)
    assert sum("the scans go on" in record.getMessage() for record in caplog.records) == 1
    assert [Heatmap.open(row["heatmap"]).finished for row in raised.value.rows] == [True, True]


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


ERRORS: list[tuple[Exception, str]] = [
    (MemoryError(), "b0.tif: out of memory; close other programs, or lower --workers"),
    (OverflowError("int too large\nto convert"), "b1.tif: cannot be scanned (OverflowError: int too large to convert)"),
    (UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"), "b2.tif: cannot be scanned (UnicodeEncodeE"),
    (OSError(5, "Input/output error"), "Input/output error"),
    (OSError(36, "File name too long", "b"), "b: File name too long; choose a shorter name and run it again"),
    (torch.OutOfMemoryError("CUDA out of memory"), "b5.tif: out of memory (CUDA out of memory); close other programs"),
]


class _Raising(DarknessPredictor):
    """Raises an error in place of the only block of a dark slide, whose red is 40 and the number of the error."""

    def predict_block(self, pieces: Any, *others: Any) -> Any:
        (image,) = pieces
        if (number := int(image[len(image) // 2, image.shape[1] // 2, 0]) - 40) < len(ERRORS):
            raise ERRORS[number][0]
        return super().predict_block([image], *others)


def test_whatever_one_slide_raises_the_others_go_on(tmp_path: Path, thin_model: Model) -> None:
    images = {f"b{number}": texture(130, 130, number) // 3 for number in range(len(ERRORS))}
    for number, image in enumerate(images.values()):
        image[..., 0] = 40 + number
    images = {"a": texture(130, 130), **images, "c": texture(130, 130, 1)}
    slides = [write_slide(tmp_path / f"{name}.tif", image) for name, image in images.items()]
    rows = scan_slides(slides, tmp_path / "out", predictor=_Raising(thin_model))
    assert [row["complete"] for row in rows] == [True, *[False] * len(ERRORS), True]
    table = _rows(tmp_path / "out")
    assert [Path(row["slide"]).stem for row in table] == list(images)
    for row, (_, told) in zip(table[1:-1], ERRORS, strict=True):
        assert told in row["error"]
    again = scan_slides(slides, tmp_path / "out", predictor=DarknessPredictor(thin_model))
    assert [row["complete"] for row in again] == [True] * len(slides)
    assert [row["error"] for row in _rows(tmp_path / "out")] == [""] * len(slides)


def test_two_batches_into_one_folder_keep_the_rows_of_both(tmp_path: Path, thin_model: Model) -> None:
    slides = [write_slide(tmp_path / f"{name}.tif", texture(130, 130, seed)) for seed, name in enumerate("abcd")]

    def run(part: list[Path]) -> list[dict[str, Any]]:
        return scan_slides(part, tmp_path / "out", predictor=DarknessPredictor(thin_model))

    with ThreadPoolExecutor(2) as pool:
        assert [len(rows) for rows in pool.map(run, (slides[:2], slides[2:]))] == [2, 2]
    assert {Path(row["slide"]).name for row in _rows(tmp_path / "out")} == {slide.name for slide in slides}


def test_a_run_with_another_option_keeps_what_is_known(tmp_path: Path, darkness: DarknessPredictor) -> None:
    slides = [write_slide(tmp_path / f"{name}.tif", texture(130, 130, seed)) for seed, name in enumerate("ab")]
    scan_slides(slides, tmp_path / "out", predictor=darkness)
    before = _rows(tmp_path / "out")
    rows = scan_slides(slides, tmp_path / "out", predictor=darkness, stride_px=64)
    assert all("holds another scan" in row["error"] for row in rows)
    assert _rows(tmp_path / "out") == before


def test_a_store_is_no_folder_for_several(tmp_path: Path, darkness: DarknessPredictor) -> None:
    slides = [write_slide(tmp_path / f"{name}.tif", texture(130, 130, seed)) for seed, name in enumerate("ab")]
    scan(slides[0], tmp_path / "results", predictor=darkness)
    before = sorted((tmp_path / "results").rglob("*"))
    for folder in (tmp_path / "results", tmp_path / "results" / "more"):
        with pytest.raises(OutputPathError, match="heatmap store"):
            scan_slides(slides, folder, predictor=darkness)
    with pytest.raises(OutputPathError, match="lies inside the heatmap store"):
        scan(slides[1], tmp_path / "results" / "b.zarr", predictor=darkness)
    assert sorted((tmp_path / "results").rglob("*")) == before


def test_an_image_is_no_folder_for_several(tmp_path: Path, darkness: DarknessPredictor) -> None:
    """A slide may be an OME-Zarr, and a folder of results may bear its name by mistake."""
    slides = [write_slide(tmp_path / f"{name}.tif", texture(130, 130, seed)) for seed, name in enumerate("ab")]
    image = write_ome_zarr(tmp_path / "c.zarr", texture(130, 130))
    before = sorted(image.rglob("*"))
    with pytest.raises(OutputPathError, match="lies inside the OME-Zarr image"):
        scan_slides(slides, image, predictor=darkness)
    with pytest.raises(OutputPathError, match="lies inside the OME-Zarr image"):
        check_output(image / "0" / "lesions.csv", overwrite=False)
    assert sorted(image.rglob("*")) == before


def test_a_name_that_is_no_text(tmp_path: Path, darkness: DarknessPredictor) -> None:
    (tmp_path / "slides").mkdir()
    plain = write_slide(tmp_path / "slides" / "plain.tif", texture(130, 130))
    latin = Path(shutil.copy(plain, os.fsdecode(os.fsencode(plain.parent) + b"/caf\xe9.tif")))
    rows = scan_slides([latin, plain], tmp_path / "out", predictor=darkness)
    assert [row["complete"] for row in rows] == [True, True]
    assert Heatmap.open(rows[0]["heatmap"]).record.slide.file == latin.name
    table = _rows(tmp_path / "out")
    assert [row["slide"] for row in table] == [latin.as_uri(), str(plain)]
    assert Path(table[0]["heatmap"]).name == "caf%E9.zarr"
    assert [find_slide(Heatmap.open(row["heatmap"])) for row in rows] == [latin, plain]
    assert [row["slide"] for row in summarise_folder(tmp_path / "out")] == [latin.as_uri(), str(plain)]
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert page.count("caf%E9.jpg") == page.count("plain.jpg") > 0
    assert scan_slides([latin.as_uri(), plain], tmp_path / "out", predictor=darkness) == rows
    assert _rows(tmp_path / "out") == table
