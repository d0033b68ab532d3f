"""What a dry run says is what a scan then does; and it leaves everything as it was."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fakes import DarknessPredictor, shifted
from json_output import result_of
from slide_files import texture, write_slide
from stores import write_store

from wsi_meta.cli import main
from wsi_meta.cohorts.batch import scan_slides
from wsi_meta.cohorts.preview import BatchPreview, preview_scans
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.models.model import Model
from wsi_meta.scanning.crashes import Journal, Suspect
from wsi_meta.scanning.scanner import Scanner

SMALL_BLOCKS: dict[str, Any] = {"block_px": 160}
CELLS_OF_ONE = 25


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """A folder of four slides, of 100 cells each, one with less tissue than glass."""
    (tmp_path / "slides").mkdir()
    for seed, name in enumerate("abc"):
        write_slide(tmp_path / "slides" / f"{name}.tif", texture(320, 320, seed))
    half = texture(320, 320, 7)
    half[:, 96:] = 245
    write_slide(tmp_path / "slides" / "half.tif", half)
    return tmp_path / "slides"


def states(told: BatchPreview) -> dict[str, tuple[str, int | None]]:
    return {slide.slide.stem: (slide.state, slide.cells) for slide in told.slides}


def everything(folder: Path) -> dict[Path, tuple[int, float]]:
    return {path: (path.stat().st_size, path.stat().st_mtime) for path in folder.rglob("*")}


def test_new_unfinished_finished_and_refused(tmp_path: Path, slides: Path, thin_model: Model) -> None:
    predictor, out = DarknessPredictor(thin_model), tmp_path / "out"
    scan_slides([slides / "a.tif", slides / "b.tif"], out, predictor=predictor, **SMALL_BLOCKS)
    begun = Heatmap.open(out / "b.zarr").reopen()
    block = begun.grid.blocks()[0]
    begun.clear_block(block, np.ones((block.rows, block.cols), bool))
    shutil.copytree(out / "a.zarr", out / "c.zarr")
    before = everything(tmp_path)
    asked: dict[str, Any] = {"predictor": predictor, **SMALL_BLOCKS}
    told = preview_scans([slides, tmp_path / "gone.tif"], out, **asked)
    assert everything(tmp_path) == before
    half = told.slides[3].cells
    assert half is not None
    assert 0 < half < 60
    assert states(told) == {
        "a": ("finished", 0),
        "b": ("unfinished", CELLS_OF_ONE),
        "c": ("refused", None),
        "half": ("new", half),
        "gone": ("refused", None),
    }
    assert "c.zarr: holds another scan: slide is" in told.slides[2].told
    assert told.slides[2].line.startswith(f"refused     {slides / 'c.tif'}: {out / 'c.zarr'}: holds another scan")
    assert told.slides[4].line.startswith(f"refused     {tmp_path / 'gone.tif'}: no such file")
    assert (told.cells, told.refused, told.seconds) == (CELLS_OF_ONE + half, 2, None)
    assert told.line == f"5 slides: 1 new, 1 unfinished, 1 finished, 2 refused; {told.cells} cells, time not known yet"
    rows = scan_slides([slides, tmp_path / "gone.tif"], out, **asked)
    done = preview_scans([slides / "a.tif", slides / "b.tif"], out, **asked)
    assert done.line == "2 slides: 0 new, 0 unfinished, 2 finished, 0 refused; nothing to scan"
    assert [row["complete"] for row in rows] == [True, True, False, True, False]
    assert rows[3]["scanned"] == half
    assert states(preview_scans([slides / "half.tif"], out, **asked, overwrite=True)) == {"half": ("new", half)}


def test_damage_that_the_scan_would_mend_or_refuse_is_told(tmp_path: Path, slides: Path, thin_model: Model) -> None:
    out, asked = tmp_path / "out", {"predictor": DarknessPredictor(thin_model), **SMALL_BLOCKS}
    scan_slides([slides / "a.tif", slides / "b.tif"], out, **asked)
    (out / "a.zarr" / "0" / "c" / "0" / "0").unlink()
    (out / "b.zarr" / "status" / "zarr.json").unlink()
    told = preview_scans([slides / "a.tif", slides / "b.tif"], out, **asked)
    assert states(told) == {"a": ("unfinished", CELLS_OF_ONE), "b": ("refused", None)}


def test_what_the_scan_would_refuse_is_refused(tmp_path: Path, slides: Path, thin_model: Model) -> None:
    scan_slides([slides / "a.tif"], tmp_path / "out", predictor=DarknessPredictor(thin_model))
    for asked, difference in (
        ({"predictor": DarknessPredictor(shifted(thin_model, 1))}, "model is"),
        ({"predictor": DarknessPredictor(thin_model, tta=True)}, "test_time_averaging is False, now True"),
        ({"predictor": DarknessPredictor(thin_model), "stride_px": 64}, "grid is"),
        ({"predictor": DarknessPredictor(thin_model), "tissue_mask": "none"}, None),
        ({"predictor": DarknessPredictor(thin_model)}, None),
    ):
        settings: dict[str, Any] = dict(asked)
        (told,) = preview_scans([slides / "a.tif"], tmp_path / "out", **settings).slides
        (row,) = scan_slides([slides / "a.tif"], tmp_path / "out", **settings)
        assert (told.state == "refused") == (not row["complete"]), asked
        assert difference is None or difference in told.told
        assert row["error"] is None or row["error"] == told.told


def test_options_are_compared_where_they_are_given(tmp_path: Path, slides: Path, model_file: Path) -> None:
    told = [preview_scans([slides / "a.tif"], tmp_path / "out", model=model_file, precision=name) for name in ("auto", "fp32")]
    assert [preview.slides[0].state for preview in told] == ["new", "new"]
    assert not (tmp_path / "out").exists()


def test_the_time_is_by_the_rate_of_earlier_scans_of_the_kind(tmp_path: Path, slides: Path, thin_model: Model) -> None:
    predictor, out = DarknessPredictor(thin_model, precision="fp32"), tmp_path / "out"
    asked: dict[str, Any] = {"predictor": predictor, **SMALL_BLOCKS}
    scan_slides([slides / "a.tif"], out, **asked)
    assert preview_scans([slides / "b.tif"], out, **asked).seconds is None, "a moment tells no rate"
    took(out / "a.zarr", 20.0)
    told = preview_scans([slides / "b.tif"], out, **asked)
    assert told.seconds == pytest.approx(20)
    assert told.line.endswith(f"about 20 s (5 cells/s as in 1 earlier scan into {out}: fp32 on cpu, patch mode)")
    scan_slides([slides / "c.tif"], out, **asked)
    took(out / "c.zarr", 5.0)
    assert preview_scans([slides / "b.tif"], out, **asked).seconds == pytest.approx(12.5), "all of the kind count by their time"
    in_fp32 = partial(DarknessPredictor, precision="fp32")
    for predictor in (in_fp32(thin_model, tta=True), in_fp32(shifted(thin_model, 1))):
        other = preview_scans([slides / "b.tif"], out, predictor=predictor, **SMALL_BLOCKS)
        assert other.seconds is None, "a scan of another kind tells nothing"


def took(store: Path, passed_s: float) -> None:
    """Let the record of a finished scan of 100 cells say that it took so long."""
    there = Heatmap.open(store)
    effort, result = there.record.effort, there.record.result
    assert effort is not None
    assert result is not None
    assert effort.cells == 100
    there = replace(there, record=replace(there.record, effort=replace(effort, passed_s=passed_s)))
    there.finalise(result, there.record.lesions)


def test_a_name_that_the_disk_does_not_take_is_refused(tmp_path: Path, thin_model: Model) -> None:
    """Its folder does not even have to be there."""
    slide = write_slide(tmp_path / "a.tif", texture(130, 130)).rename(tmp_path / f"{'x' * 235}.tif")
    told = preview_scans(slide, tmp_path / "out", predictor=DarknessPredictor(thin_model))
    assert told.slides[0].state == "refused"
    assert "cannot be written (File name too long); choose a shorter name" in told.slides[0].told


def test_a_slide_that_a_scan_died_of_is_told(tmp_path: Path, slides: Path, thin_model: Model) -> None:
    journal = Journal(None, {str(slides / "a.tif"): Suspect("Aborted", certain=True, journals=())})
    with Scanner(predictor=DarknessPredictor(thin_model), journal=journal) as scanner:
        told = preview_scans([slides / "a.tif", slides / "b.tif"], tmp_path / "out", scanner=scanner)
    assert [slide.state for slide in told.slides] == ["refused", "new"]
    assert "an earlier scan died (Aborted)" in told.slides[0].told


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["scan", "--dry-run", *map(str, arguments)])


def test_the_command_prints_a_line_each_and_the_sums(tmp_path: Path, slides: Path, model_file: Path) -> None:
    out = tmp_path / "out"
    result = _run(slides, "--model", model_file, "--out", out)
    assert result.exit_code == 0, result.output
    *lines, sums = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["new"] * 4
    assert lines[0] == f"new         {slides / 'a.tif'}: 100 cells, {out / 'a.zarr'}"
    assert sums.startswith("4 slides: 4 new, 0 unfinished, 0 finished, 0 refused; ")
    assert sums.endswith(" cells, time not known yet")
    assert not out.exists()
    write_slide(tmp_path / "glass.tif", np.full((320, 320, 3), 245, np.uint8))
    assert (
        _run(tmp_path / "glass.tif", "--model", model_file, "--out", out)
        .stdout.splitlines()[0]
        .endswith(f"glass.tif: no tissue to scan, {out}")
    )
    (tmp_path / "m.csv").write_text("slide,patient,label\nslides/a.tif,p,1\n")
    result = _run("gone.tif", "--manifest", tmp_path / "m.csv", "--model", model_file, "--out", out, "--json")
    assert result.exit_code == 1
    assert "1 of 2 slides would be refused" in result.stderr
    facts = result_of(result.stdout)
    assert [slide["state"] for slide in facts["slides"]] == ["refused", "new"]
    assert (facts["slides"][1]["patient"], facts["slides"][1]["label"], facts["seconds"]) == ("p", "1", None)


def test_one_slide_has_a_store_and_a_folder_of_one_has_a_folder(tmp_path: Path, slides: Path, model_file: Path) -> None:
    for name in ("b", "c", "half"):
        (slides / f"{name}.tif").unlink()
    slide = slides / "a.tif"
    shard = [slide, "--shard", "0/1"]
    for given, store in (([slide], "out"), ([slides], "out/a.zarr"), ([slides / "*.tif"], "out/a.zarr"), (shard, "out/a.zarr")):
        result = _run(*given, "--model", model_file, "--out", tmp_path / "out", "--json")
        assert result_of(result.stdout)["slides"][0]["store"] == str(tmp_path / store), given
    result = _run(slide, "--model", model_file, "--out", tmp_path / "out", "--stage", tmp_path / "none")
    assert (result.exit_code, "none: no such folder; expected one on a fast disk for --stage" in result.stderr) == (1, True)
    result = _run(slide, "--model", model_file, "--out", tmp_path / "none" / "a.zarr")
    assert (result.exit_code, "none; make it first" in result.stdout) == (1, True), "as the scan says"
    heatmap = write_store(tmp_path / "torn.zarr", np.full((3, 4), 0.5, np.float32)).path
    (heatmap / "zarr.json").write_text("")
    result = _run(slides, "--model", model_file, "--out", heatmap)
    assert (result.exit_code, "a heatmap store, not a folder" in result.stderr) == (1, True)
