"""Patches cut from slides: the right pixels, the right labels, the right slides in the right splits."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from children import start_child
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from json_output import result_of
from numpy.typing import NDArray
from openslide import OpenSlide
from PIL import Image
from slide_files import damage_tile, texture, write_ome_zarr, write_scn, write_slide
from stores import write_store
from tiny import HERE, train_tiny

from wsi_meta.annotations.outlines import read_annotations
from wsi_meta.cli import main
from wsi_meta.datasets.candidates import Candidates, find_candidates, share_out, tumor_cells
from wsi_meta.datasets.cutting import PatchCutter, is_blank
from wsi_meta.datasets.layouts import open_patches
from wsi_meta.datasets.manifest import deal_splits, read_manifest
from wsi_meta.datasets.pcam import META_COLUMNS, new_hdf5, pcam_files
from wsi_meta.datasets.sampling import sample
from wsi_meta.errors import DataError, MissingMppError, OptionsError, OutputExistsError, OutputPathError, SlideReadError
from wsi_meta.files.same_file import SlideReplacedError
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.training.recipe import Recipe
from wsi_meta.viewer.corrections import Corrections, write_corrections

MPP = 0.486
"""Half the model's: a cell is 64 level-0 pixels, level 1 is the model's."""
SIDE = 960
OUTLINES = {
    "tumor_001": [[[130, 150], [520, 180], [480, 570], [180, 460]]],
    "tumor_002": [[[450, 400], [850, 420], [840, 700]], [[220, 100], [330, 110], [320, 230]]],
    "tumor_010": [[[300, 300], [700, 320], [660, 600]]],
}


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides with tumor, three without, of 15 x 15 cells with a strip of glass; manifest.csv names them."""
    folder = tmp_path_factory.mktemp("slides")
    rows = ["slide,annotations"]
    for seed, name in enumerate((*OUTLINES, "normal_001", "normal_002", "normal_003")):
        image = texture(SIDE, SIDE, seed)
        image[:, :160] = 244
        write_slide(folder / f"{name}.tif", image, MPP, levels=2)
        if name in OUTLINES:
            truth = {"positive": [{"name": "", "vertices": ring} for ring in OUTLINES[name]], "negative": []}
            (folder / f"{name}.json").write_text(json.dumps(truth))
        rows.append(f"{name}.tif,{name}.json" if name in OUTLINES else f"{name}.tif,")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


Split = tuple["NDArray[np.uint8]", "NDArray[np.uint8]", list[dict[str, str]]]


def _read(folder: Path, split: str) -> Split:
    """A split's patches, labels and rows of the meta table."""
    x_path, y_path, meta = pcam_files(folder, split)
    with h5py.File(x_path) as x, h5py.File(y_path) as y, meta.open(newline="") as table:
        return np.asarray(x["x"]), np.asarray(y["y"]), list(csv.DictReader(table))


def _manifest(slides: Path, *rows: str, name: str = "other.csv", columns: str = "slide,annotations,split,partly") -> Path:
    path = slides / name
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def _few(slides: Path, *names: str) -> Path:
    """A manifest of some of the slides, all for training: where the others would only be looked at."""
    return _manifest(
        slides, *(f"{name}.tif,{name}.json,train," if name in OUTLINES else f"{name}.tif,,train," for name in names)
    )


def _negatives(folder: Path, split: str = "train") -> list[tuple[str, int, int]]:
    """Slide and cell of each normal patch."""
    rows = _read(folder, split)[2]
    places = [(row["wsi"], int(row["coord_y"]) // 64 + 1, int(row["coord_x"]) // 64 + 1) for row in rows]
    return [place for place, row in zip(places, rows, strict=True) if row["center_tumor_patch"] == "False"]


def test_pixels_and_labels_are_the_slides_own(slides: Path, tmp_path: Path) -> None:
    done = sample(slides / "manifest.csv", tmp_path / "p", patches=48)
    assert set(done) == {"train", "valid"}
    with ExitStack() as stack:
        opened = {path.stem: stack.enter_context(OpenSlide(path)) for path in slides.glob("*.tif")}
        truths = {path.stem: read_annotations(path) for path in slides.glob("*.json")}
        for split, expected in (("train", 48), ("valid", 6)):
            pixels, labels, rows = _read(tmp_path / "p", split)
            assert pixels.shape == (expected, 96, 96, 3)
            assert labels.shape == (expected, 1, 1, 1), "as in the official files"
            assert labels.sum() == expected // 2 == done[split].patches // 2
            assert tuple(rows[0]) == META_COLUMNS == ("coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi")
            for patch, label, row in zip(pixels, labels.ravel(), rows, strict=True):
                name, x, y = row["wsi"], int(row["coord_x"]), int(row["coord_y"])
                shown = opened[name].read_region((x, y), 1, (96, 96))
                np.testing.assert_array_equal(patch, np.asarray(shown)[..., :3])
                mask = np.zeros((96, 96), bool)
                if name in truths:
                    mask = truths[name].mask((96, 96), 2, corner=(x // 2, y // 2))
                assert (row["tumor_patch"], row["center_tumor_patch"]) == (str(mask.any()), str(mask[32:64, 32:64].any()))
                assert label == mask[32:64, 32:64].any()
            assert len({(row["wsi"], row["coord_x"], row["coord_y"]) for row in rows}) == expected, "no patch twice"


def test_a_patch_is_where_read_at_finds_it_again_on_slides_of_another_resolution(tmp_path: Path) -> None:
    """At 0.3 um per pixel a cell is 103.68 level-0 pixels and every patch is averaged."""
    for name, seed in (("a", 1), ("b", 2)):
        write_slide(tmp_path / f"{name}.tif", texture(900, 1000, seed), 0.3)
    (tmp_path / "a.json").write_text(json.dumps({"positive": [{"vertices": [[200, 200], [700, 250], [500, 700]]}]}))
    manifest = _manifest(tmp_path, "a.tif,a.json", "b.tif,", columns="slide,annotations")
    sample(manifest, tmp_path / "p", patches=12, valid=0)
    pixels, labels, rows = _read(tmp_path / "p", "train")
    for patch, label, row in zip(pixels, labels.ravel(), rows, strict=True):
        x, y = (round(int(row[f"coord_{axis}"]) / 3.24) for axis in "xy")
        with open_slide(tmp_path / f"{row['wsi']}.tif") as slide:
            np.testing.assert_array_equal(patch, slide.read_at(0.972, x, y, 96, 96))
        if row["wsi"] == "a":
            assert label == read_annotations(tmp_path / "a.json").mask((32, 32), 3.24, corner=(x + 32, y + 32)).any()


def test_masks_give_the_labels_that_their_outlines_give(slides: Path, tmp_path: Path) -> None:
    grid = PatchGrid(SIDE, SIDE, MPP, 0.972, 96, 32)
    for name in OUTLINES:
        drawn = read_annotations(slides / f"{name}.json")
        expected = drawn.mask((480, 480), 2).reshape(15, 32, 15, 32).any((1, 3))
        np.testing.assert_array_equal(tumor_cells(slides / f"{name}.json", grid), expected)
        for step, value in ((1, 255), (2, 1)):
            path = tmp_path / f"{name}_{step}.tif"
            mask = drawn.mask((SIDE // step, SIDE // step), step).astype(np.uint8) * value
            tifffile.imwrite(path, mask, tile=(128, 128), compression="lzw")
            exact = expected if step == 2 else mask[1::2, 1::2].reshape(15, 32, 15, 32).any((1, 3))
            np.testing.assert_array_equal(tumor_cells(path, grid), exact)
    tifffile.imwrite(tmp_path / "foreign.tif", np.zeros((480, 400), np.uint8))
    with pytest.raises(DataError, match=r"foreign\.tif: 400 x 480 px do not fit the slide's 960 x 960"):
        tumor_cells(tmp_path / "foreign.tif", grid)


@pytest.mark.parametrize(
    ("ring", "told"),
    [
        ([[0, 0], [9000, 0], [0, 9000]], r"outlines reach from x 0, y 0 to 9000, 9000, the slide from 0, 0 to 960, 960"),
        ([[-900, 10], [-400, 10], [-400, 90]], r"outlines reach from x -900, y 10 to -400, 90, the slide from 0, 0"),
        ([[10, -900], [90, -900], [90, 200]], r"outlines reach from x 10, y -900 to 90, 200, the slide from 0, 0"),
        ([[-90, -90], [-10, -90], [-10, -10]], "no outline of tumor holds a pixel of the slide, 960 x 960 px; expected"),
        ([[970, 970], [1000, 970], [1000, 1000]], "no outline of tumor holds a pixel of the slide, 960 x 960 px; expected"),
    ],
)
def test_outlines_beside_the_slide_are_refused(tmp_path: Path, ring: list[list[int]], told: str) -> None:
    """On any side of it: its tumor would be labelled normal."""
    (tmp_path / "foreign.json").write_text(json.dumps({"positive": [{"vertices": ring}]}))
    with pytest.raises(DataError, match=rf"foreign\.json: {told}"):
        tumor_cells(tmp_path / "foreign.json", PatchGrid(SIDE, SIDE, MPP, 0.972, 96, 32))


def test_outlines_that_enclose_nothing_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Patches inside them would be normal."""
    grid, ring = PatchGrid(SIDE, SIDE, MPP, 0.972, 96, 32), [[100, 100], [500, 100], [500, 500], [100, 500]]
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"positive": [{"vertices": ring}, {"name": "n1", "vertices": ring * 2}]}))
    assert tumor_cells(path, grid).any()
    assert "t.json: counts nowhere, enclosing nothing on the slide: 1 outline of tumor, first 'n1' at x" in caplog.text
    path.write_text(json.dumps({"positive": [{"vertices": ring * 2}]}))
    with pytest.raises(DataError, match=r"t\.json: 1 outline of tumor, none of which encloses anything on the slide"):
        tumor_cells(path, grid)
    path.write_text(json.dumps({"positive": [{"vertices": ring[:2]}]}))
    with pytest.raises(DataError, match=r"t\.json: 1 annotation without an inside, and no outline of tumor"):
        tumor_cells(path, grid)


def test_the_same_files_whatever_the_workers(slides: Path, tmp_path: Path) -> None:
    manifest = _few(slides, "tumor_001", "tumor_002", "normal_001")
    settings: tuple[tuple[str, Any, Any], ...] = (("a", 1, np.int64(0)), ("b", 4, 0), ("c", 2, 1))
    for name, workers, seed in settings:
        sample(manifest, tmp_path / name, patches=32, workers=workers, seed=seed)
    first, second, other = (_read(tmp_path / name, "train") for name in "abc")
    np.testing.assert_array_equal(first[0], second[0])
    assert first[2] == second[2] != other[2]
    record = json.loads((tmp_path / "a" / "sampling.json").read_text())
    assert record["splits"]["train"]["patches"] == 32
    assert not list(tmp_path.rglob(".*")), "nothing temporary is left"


def test_splits(slides: Path) -> None:
    every = read_manifest(slides / "manifest.csv")
    dealt = deal_splits(every, valid=0.2, test=0.3, by="patient", seed=0)
    assert {split: len(part) for split, part in dealt.items()} == {"train": 2, "valid": 2, "test": 2}
    for part in dealt.values():
        assert sorted(slide.truth is None for slide in part) == [False, True], "each class in each split"
    assert deal_splits(every, valid=0.2, test=0, by="patient", seed=0) != deal_splits(
        every, valid=0.2, test=0, by="patient", seed=3
    )
    names = [f"{slide.name}.tif,{slide.name}.json" if slide.truth else f"{slide.name}.tif," for slide in every]
    columns = "slide,annotations,patient,split"
    rows = [f"{name},p{number % 3},{'test' if number % 3 == 0 else ''}" for number, name in enumerate(names)]
    several = read_manifest(_manifest(slides, *rows, columns=columns))
    for by, mixed in (("patient", False), ("slide", True)):
        found = [deal_splits(several, valid=0.34, test=0, by=by, seed=seed) for seed in range(6)]
        patients = [[{slide.patient for slide in part} for part in splits.values()] for splits in found]
        assert any(set.intersection(*parts[:2]) for parts in patients) == mixed
        assert all({slide.name for slide in splits["test"]} == {"tumor_001", "normal_001"} for splits in found), "as given"
    contrary = [f"{name},p,{split}" for name, split in zip(names[:2], ("train", "valid"), strict=True)]
    with pytest.raises(DataError, match="expected one split"):
        deal_splits(read_manifest(_manifest(slides, *contrary, columns=columns)), valid=0, test=0, by="patient", seed=0)


def test_partly_annotated_slides_give_no_negatives(slides: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Camelyon16's tumor_010 is known to be so; the column overrides that, and tells of others."""
    tumor = [f"{name}.tif,{name}.json,train," for name in OUTLINES]
    sample(_manifest(slides, *tumor), tmp_path / "known", patches=100)
    assert {slide for slide, _, _ in _negatives(tmp_path / "known")} == {"tumor_001", "tumor_002"}
    assert "no negatives from tumor_010: known to be partly annotated" in caplog.text
    assert any(row["wsi"] == "tumor_010" for row in _read(tmp_path / "known", "train")[2]), "tumor all the same"
    marked = [tumor[0] + "1", tumor[1], tumor[2] + "0"]
    sample(_manifest(slides, *marked), tmp_path / "marked", patches=100)
    assert {slide for slide, _, _ in _negatives(tmp_path / "marked")} == {"tumor_002", "tumor_010"}


@pytest.mark.parametrize(("saturation", "blank"), [(0.0, True), (0.06, True), (0.08, False), (0.5, False)])
def test_pcams_rule_for_background(saturation: float, blank: bool) -> None:
    patch = np.full((96, 96, 3), 230, np.uint8)
    patch[..., 1] = round(230 * (1 - saturation))
    assert is_blank(patch, 0.972) == blank
    patch[:] = 230
    patch[40:43, 40:43] = (230, 0, 0)
    assert is_blank(patch, 0.972), "a speck is blurred away"


def test_a_split_of_which_no_patch_of_a_class_is_left_is_refused(slides: Path, tmp_path: Path) -> None:
    """Tumor is outlined on a grey slide only, whose patches are all blank."""
    write_slide(tmp_path / "grey.tif", np.repeat(texture(SIDE, SIDE, 9)[..., :1], 3, axis=2), MPP, levels=2)
    (tmp_path / "grey.json").write_text((slides / "tumor_001.json").read_text())
    manifest = _manifest(tmp_path, "grey.tif,grey.json,train,yes", f"{slides}/normal_001.tif,,train,")
    told = r"train: no tumor patch is left; \d+ were left out as blank \(without colour\), 0 as unreadable: add slides"
    with pytest.raises(DataError, match=told):
        sample(manifest, tmp_path / "p", patches=20)
    assert not list((tmp_path / "p").glob("*"))


def test_a_split_without_a_class_is_told_before_patches_are_cut(
    slides: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = _manifest(slides, "tumor_001.tif,tumor_001.json,train,", "normal_001.tif,,test,")
    with pytest.raises(DataError, match=r"test: no tumor patches on its 1 slides \(normal_001\)"):
        sample(manifest, tmp_path / "p", patches=100_000)
    assert not caplog.messages, "those for training, of which there are fewer, would be told"


def test_background_and_damage_are_left_out_and_counted(slides: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = texture(SIDE, SIDE, 9)
    image[:, :480] = 244
    slide = write_slide(tmp_path / "half.tif", image, MPP, levels=4)
    damage_tile(slide, 1, level=1)  # of 2 x 2 tiles at level 1 the upper right one
    (tmp_path / "half.json").write_text(json.dumps({"positive": [{"vertices": [[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]]}]}))
    manifest = _manifest(tmp_path, "half.tif,half.json,train,", f"{slides}/normal_001.tif,,train,")
    done = sample(manifest, tmp_path / "p", patches=1000)["train"]
    _, _, rows = _read(tmp_path / "p", "train")
    assert done.blank > 10
    assert done.unreadable > 0
    assert "left out, since it could not be read: " in caplog.text
    places = [(int(row["coord_x"]), int(row["coord_y"])) for row in rows if row["wsi"] == "half"]
    assert places
    assert all(x + 192 > 440 for x, _ in places), "none on glass"
    assert not any(x + 192 > 512 and y < 512 for x, y in places), "none where nothing can be read"
    assert "fewer than the 1000 asked for" in caplog.text
    assert len(rows) == 2 * sum(row["center_tumor_patch"] == "True" for row in rows), "balanced all the same"


def test_all_patches_that_there_are_are_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Most of the outlines lies on glass: of 156 cells of tumor on each slide, 72 are no glass on one, and 18 on the last."""
    rows = []
    for seed, (name, tissue) in enumerate({"c": 960, "a": 400, "b": 128}.items()):
        image = texture(320, 960, seed)
        image[:, tissue:] = 244
        write_slide(tmp_path / f"{name}.tif", image)
        if tissue < 960:
            ring = [[64, 64], [896, 64], [896, 256], [64, 256]]
            (tmp_path / f"{name}.json").write_text(json.dumps({"positive": [{"vertices": ring}]}))
        rows.append(f"{name}.tif,{name}.json,train,1" if tissue < 960 else f"{name}.tif,,train,")
    manifest = _manifest(tmp_path, *rows)
    assert sample(manifest, tmp_path / "p", patches=100)["train"].patches == 100
    cut = [row["wsi"] for row in _read(tmp_path / "p", "train")[2] if row["center_tumor_patch"] == "True"]
    assert (cut.count("a"), cut.count("b")) == (32, 18), "what the last slide lacks comes from the one before"
    assert not caplog.messages
    assert sample(manifest, tmp_path / "all", patches=1000)["train"].patches == 2 * (72 + 18)
    assert "train: 180 patches, fewer than the 1000 asked for: there are no more" in caplog.text


def test_a_slide_that_is_replaced_is_no_damage(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tif", texture(300, 300))
    candidates = Candidates(np.array([[2, 2], [3, 3]], np.int32), np.ones(2, bool))
    with open_slide(path) as slide, ThreadPoolExecutor(1) as pool:
        cutter = PatchCutter(slide, Preprocessing(), pool)
        write_slide(path, texture(300, 300, seed=1))
        with pytest.raises(SlideReplacedError):
            list(cutter.cut(candidates, 2, tumor=True))
        assert cutter.unreadable == 0


# hard negatives


@pytest.fixture
def scans(slides: Path, tmp_path: Path) -> Path:
    """Heatmaps that are right but for a band of false alarms on normal tissue, 2 of 15 rows, on each of three slides."""
    for path in (slides / f"{name}.tif" for name in ("tumor_002", "normal_001", "normal_002")):
        probability = np.full((15, 15), 0.1, np.float32)
        probability[12:14, 4:] = 0.9
        if (truth := path.with_suffix(".json")).exists():
            probability[tumor_cells(truth, PatchGrid(SIDE, SIDE, MPP, 0.972, 96, 32))] = 0.95
        probability[:, :2] = np.nan
        with open_slide(path) as slide:
            write_store(tmp_path / "scans" / f"{path.stem}.zarr", probability, mpp=MPP, slide=slide.fingerprint())
    return tmp_path / "scans"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()


def test_mining_raises_the_share_of_earlier_false_positives(slides: Path, scans: Path, tmp_path: Path) -> None:
    shares, manifest = {}, _few(slides, "tumor_002", "normal_001")
    cases: dict[str, dict[str, Any]] = {"plain": {}, "mined": {"mine": scans}, "more": {"mine": scans, "mined": 0.8}}
    for name, settings in cases.items():
        done = sample(
            manifest,
            tmp_path / name,
            patches=60,
            mined=settings.get("mined", 0.5),
            mine=settings.get("mine"),
        )
        wrong = [row in (12, 13) for _, row, _ in _negatives(tmp_path / name)]
        shares[name] = sum(wrong) / len(wrong)
        assert done["train"].hard == (sum(wrong) if settings else 0)
    assert shares["plain"] < 0.25
    assert shares["mined"] == pytest.approx(0.5, abs=0.02)
    assert shares["more"] == pytest.approx(0.8, abs=0.02)
    near = [row for row in _read(tmp_path / "more", "train")[2] if int(row["coord_y"]) // 64 + 1 in (12, 13)]
    assert all(row["tumor_patch"] == "False" for row in near if row["center_tumor_patch"] == "False"), "far from outlines"


def test_scans_of_other_strides_and_of_other_slides(slides: Path, scans: Path, tmp_path: Path) -> None:
    manifest = _few(slides, "tumor_002", "normal_001")
    with pytest.raises(DataError, match=r"no heatmap of any slide; expected tumor_002\.zarr"):
        sample(manifest, tmp_path / "p", patches=20, mine=tmp_path)
    (scans / "normal_001.zarr").rename(scans / "aside")
    (scans / "normal_002.zarr").rename(scans / "normal_001.zarr")
    with pytest.raises(DataError, match=r"normal_001\.zarr: is not of"):
        sample(manifest, tmp_path / "p", patches=20, mine=scans)
    assert [path.name for path in tmp_path.iterdir()] == ["scans"], "nothing half-written"


@pytest.mark.parametrize("replaced", [False, True])
def test_corrections_of_a_slide_that_was_replaced_are_refused(tmp_path: Path, replaced: bool) -> None:
    """It was scanned again, but the outlines were drawn on the old one, and lie where the new one may have no tumor."""
    path, scans = write_slide(tmp_path / "s.tif", texture(320, 320)), tmp_path / "scans"
    values = np.zeros((10, 10), np.float32)
    (tmp_path / "m.csv").write_text("slide,annotations\ns.tif,\n")
    (source,) = read_manifest(tmp_path / "m.csv")
    missed = {"kind": "missed", "polygons": [[[96.0, 96.0, 200.0, 96.0, 200.0, 200.0, 96.0, 200.0]]]}
    with open_slide(path) as slide:
        now = slide.fingerprint()
        corrected = write_store(scans / "s.zarr", values, mpp=0.972, slide="the one before" if replaced else now)
        write_corrections(corrected, Corrections.from_dict({"corrections": [missed], "revision": ""}, corrected.grid))
        write_store(scans / "s.zarr", values, mpp=0.972, slide=now)
        if replaced:
            with pytest.raises(DataError, match=r"s\.corrections\.geojson: corrections of another slide"):
                find_candidates(source, slide, Preprocessing(), seed=[0], scans=scans)
        else:
            found = find_candidates(source, slide, Preprocessing(), seed=[0], scans=scans)
            assert len(found["tumor"].cells) == 16


def test_what_was_marked_as_false_is_no_tumor_whatever_the_annotations_say(tmp_path: Path) -> None:
    """Two lesions are annotated, of 4 x 4 cells each. One is false, and its edge runs through a third column of cells."""
    path = write_slide(tmp_path / "s.tif", texture(320, 640))
    squares = [[(x, 96), (x + 128, 96), (x + 128, 224), (x, 224)] for x in (96, 416)]
    (tmp_path / "s.json").write_text(
        json.dumps({"positive": [{"name": "", "vertices": ring} for ring in squares], "negative": []})
    )
    (tmp_path / "m.csv").write_text("slide,annotations\ns.tif,s.json\n")
    (source,) = read_manifest(tmp_path / "m.csv")
    scans = tmp_path / "scans"
    false = {"kind": "false", "polygons": [[[400.0, 80.0, 496.0, 80.0, 496.0, 240.0, 400.0, 240.0]]]}
    with open_slide(path) as slide:
        heatmap = write_store(scans / "s.zarr", np.zeros((10, 20), np.float32), mpp=0.972, slide=slide.fingerprint())
        before = find_candidates(source, slide, Preprocessing(), seed=[0], scans=scans)
        write_corrections(heatmap, Corrections.from_dict({"corrections": [false], "revision": ""}, heatmap.grid))
        after = find_candidates(source, slide, Preprocessing(), seed=[0], scans=scans)
    tumor, left = ({tuple(cell) for cell in found["tumor"].cells.tolist()} for found in (before, after))
    rows = range(3, 7)
    assert tumor - left == {(row, col) for row in rows for col in (13, 14, 15)}
    anywhere = {tuple(cell) for kind in ("hard", "normal") for cell in after[kind].cells.tolist()}
    assert anywhere & tumor == {(row, col) for row in rows for col in (13, 14)}, "the cells on the edge are left out"


# what it is for, and what it refuses


def test_what_a_killed_sampling_left_goes_at_once(tmp_path: Path) -> None:
    """It may be what fills the disk."""
    left, other = (tmp_path / f".{name}.0123456789ab.partial" for name in ("p", "q"))
    for folder in (left, other):
        folder.mkdir()
        (folder / "train.raw").write_bytes(b"x")
    with pytest.raises(DataError):
        sample(tmp_path / "none.csv", tmp_path / "p")
    assert not left.exists()
    assert other.exists()


def test_training_takes_the_files_as_they_are(slides: Path, tmp_path: Path) -> None:
    sample(slides / "manifest.csv", tmp_path / "p", patches=32)
    (tmp_path / "p" / "sampling.json").unlink()
    data = open_patches(tmp_path / "p")
    assert data["train"].mpp == 0.972, "also without the record"
    assert {split: len(part) for split, part in data.items()} == {"train": 32, "valid": 4}
    assert data["train"].slides is not None
    result = train_tiny(tmp_path / "p", tmp_path / "m.safetensors", recipe=Recipe(epochs=1, batch_size=16), **HERE)
    assert result.model.exists()


@given(st.integers(0, 500), st.lists(st.integers(0, 60), min_size=1, max_size=12))
def test_shares_are_as_even_as_there_is(wanted: int, available: list[int]) -> None:
    shares = share_out(wanted, available)
    assert sum(shares) == min(wanted, sum(available))
    assert all(0 <= share <= there for share, there in zip(shares, available, strict=True))
    fullest = max(shares)
    assert all(share >= fullest - 1 for share, there in zip(shares, available, strict=True) if share < there)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["gone.tif,,,"], "there is no file '.*gone.tif'"),
        ([",,train,"], "line 2: names no slide"),
        (["https://host/a.tif,,,"], "line 2: there is no file 'https://host/a.tif'"),
        (["file://server/a.tif,,,"], "line 2: file://server/a.tif: no file of this machine"),
        (["normal_001.tif,gone.xml,,"], "there is no file '.*gone.xml'"),
        (["normal_001.tif,,later,"], "split 'later'"),
        (["normal_001.tif,,,maybe"], "partly 'maybe'"),
        (["normal_001.tif,,,", "normal_001.tif,,,"], "several slides named 'normal_001'"),
        ([], "no slides in it"),
        (["normal_001.tif,,train,"], "train: no tumor patches on its 1 slides"),
        (["tumor_001.tif,tumor_001.json,train,1"], "train: no normal patches on its 1 slides"),
    ],
)
def test_bad_manifests(slides: Path, tmp_path: Path, rows: list[str], told: str) -> None:
    with pytest.raises(DataError, match=told):
        sample(_manifest(slides, *rows), tmp_path / "p", patches=10)


@pytest.mark.parametrize("column", ["spilt", "patients", "partialy", "annotation"])
def test_a_column_of_another_name_is_refused(slides: Path, column: str) -> None:
    """Its values would be ignored, such as which slides are for test."""
    path = _manifest(slides, "normal_001.tif,,test", columns=f"slide,annotations,{column}")
    with pytest.raises(DataError, match=rf"other\.csv: line 1: unknown column '{column}'; expected some of slide, annotat"):
        read_manifest(path)


@pytest.mark.parametrize("mpp", ["nan", "-1", "0", "inf", "1e400", "fine"])
def test_a_pixel_size_that_cannot_be_is_told_by_its_line(slides: Path, mpp: str) -> None:
    path = _manifest(slides, "normal_001.tif,,0.25", f"normal_002.tif,,{mpp}", columns="slide,annotations,mpp")
    with pytest.raises(DataError, match=rf"other\.csv: line 3: mpp '{mpp}'; expected micrometres per level-0 pixel, 0\.05 to"):
        read_manifest(path)


@pytest.mark.parametrize(("written", "partly"), [("1.0", True), ("0.0", False), ("TRUE", True), ("no", False)])
def test_words_of_other_programs_are_read(slides: Path, written: str, partly: bool) -> None:
    """Pandas writes 1.0 where a row has none, and splits have other names, too."""
    (slide,) = read_manifest(_manifest(slides, f"normal_001.tif,,Val,{written}"))
    assert (slide.split, slide.partly) == ("valid", partly)


def test_a_slide_without_a_pixel_size_is_told_where_to_say_it(slides: Path, tmp_path: Path) -> None:
    Image.new("RGB", (400, 400)).save(tmp_path / "plain.png")
    with pytest.raises(MissingMppError, match=r"pass --mpp .*: 'sample' takes it from the manifest's column mpp"):
        sample(_manifest(slides, f"{tmp_path / 'plain.png'},,train,"), tmp_path / "p", patches=10)


def test_a_slide_that_is_too_coarse_is_told_where_to_say_otherwise(slides: Path, tmp_path: Path) -> None:
    write_slide(tmp_path / "coarse.tif", texture(320, 320), 2.0)
    with pytest.raises(
        SlideReadError, match=r"too coarse; .* if the file is wrong\): 'sample' takes it from the manifest's col"
    ):
        sample(_manifest(slides, f"{tmp_path / 'coarse.tif'},,train,"), tmp_path / "p", patches=10)


def test_a_slide_under_two_names_is_refused(slides: Path, tmp_path: Path) -> None:
    """In two splits it would be trained on and judged on."""
    rows = ["tumor_001.tif,tumor_001.json,train,", "tumor_002.tif,tumor_002.json,valid,", "normal_001.tif,,train,"]
    try:
        shutil.copy(slides / "normal_001.tif", slides / "copied.tif")
        with pytest.raises(DataError, match=r"copied\.tif: the same slide as .*normal_001\.tif, under another name"):
            sample(_manifest(slides, *rows, "copied.tif,,valid,"), tmp_path / "p", patches=10)
    finally:
        (slides / "copied.tif").unlink()


def test_refusals(slides: Path, tmp_path: Path) -> None:
    manifest = slides / "manifest.csv"
    sample(manifest, tmp_path / "p", patches=16, test=0.2)
    assert pcam_files(tmp_path / "p", "test")[0].exists()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        sample(manifest, tmp_path / "p", patches=16)
    (tmp_path / "p" / "notes.txt").write_text("mine")
    sample(_few(slides, "tumor_001", "normal_001"), tmp_path / "p", patches=16, overwrite=True)
    assert (tmp_path / "p" / "notes.txt").read_text() == "mine"
    assert not pcam_files(tmp_path / "p", "test")[0].exists(), "an earlier sampling's files are not mixed in"
    with pytest.raises(OutputPathError, match="a file; expected a folder"):
        sample(manifest, manifest, patches=16)
    wrong: tuple[dict[str, Any], ...] = (
        {"patches": 1},
        {"valid": 0.7, "test": 0.3},
        {"mined": 0},
        {"mined": 0.9},
        {"by": "hospital"},
    )
    for settings in wrong:
        with pytest.raises(OptionsError, match=r"expected (2 or more|shares|a share|mine, too|one of)"):
            sample(manifest, tmp_path / "new", **settings)


def test_command(slides: Path, tmp_path: Path) -> None:
    arguments = ["sample", str(slides / "manifest.csv"), "--out", str(tmp_path / "p"), "--patches", "16", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    printed = result_of(result.stdout)
    assert printed["folder"] == str(tmp_path / "p")
    assert printed["train"] == {"patches": 16, "hard": 0, "slides": 4, "blank": printed["train"]["blank"], "unreadable": 0}
    assert CliRunner().invoke(main, [*arguments, "--overwrite", "--valid", "0.9", "--test", "0.5"]).exit_code == 2


# a full disk


@pytest.mark.parametrize("limit", [2_000, 60_000, 800_000])
def test_a_full_disk_is_one_line_and_no_crash(slides: Path, tmp_path: Path, limit: int) -> None:
    """The kernel refuses to write files over a limit: HDF5 would crash as the process ends."""
    log = tmp_path / "log"
    words = ["sample", str(slides / "manifest.csv"), "--out", str(tmp_path / "p"), "--patches", "60"]

    def filled() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        main(words)

    code = start_child(filled, log).wait()

    told = log.read_text().splitlines()
    assert code == 1, told
    assert told[-1].startswith("Error: ")
    assert "cannot be written (File too large); make room and run it again" in told[-1]
    assert "Traceback" not in log.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"scans", "log"}, "nothing half-written"


@pytest.mark.parametrize("limit", [0, 1, 800, 2_000, 10_000, 100_000, 1_000_000])
def test_hdf5_that_cannot_be_written_is_an_error_when_it_is_closed(tmp_path: Path, limit: int) -> None:
    """In this process: what HDF5 would crash on, in the end, would end the tests."""
    rng = np.random.default_rng(0)
    path = tmp_path / "x.h5"
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill() -> None:
        with new_hdf5(path) as (file, _disk):
            data = file.create_dataset("x", (200, 96, 96, 3), np.uint8, chunks=(1, 96, 96, 3), compression="gzip")
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            for row in range(200):
                data[row] = rng.integers(256, size=(96, 96, 3), dtype=np.uint8)

    try:
        with pytest.raises(OSError, match="File too large"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.stat().st_size <= max(limit, 10_000)


def _geojson(path: Path, name: str, left: float, top: float, side: float) -> None:
    ring = [[left, top], [left + side, top], [left + side, top + side], [left, top + side]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    path.write_text(json.dumps([{"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}]))


def test_a_slide_that_is_a_folder(tmp_path: Path) -> None:
    """It has the name that its heatmap has. A folder that is no slide is none in a manifest either."""
    write_ome_zarr(tmp_path / "p_node_1.ome.zarr", texture(320, 320))
    (tmp_path / "m.csv").write_text("slide,annotations\np_node_1.ome.zarr,\n")
    (source,) = read_manifest(tmp_path / "m.csv")
    assert (source.name, source.patient) == ("p_node_1", "p")
    with open_slide(source.path) as slide:
        assert len(find_candidates(source, slide, Preprocessing(), seed=[0])["normal"].cells)
    (tmp_path / "folder").mkdir()
    for row in ("folder,", "p_node_1.ome.zarr,p_node_1.ome.zarr"):
        (tmp_path / "m.csv").write_text(f"slide,annotations\n{row}\n")
        with pytest.raises(DataError, match="there is no file"):
            read_manifest(tmp_path / "m.csv")


def test_file_uris_in_a_manifest(tmp_path: Path) -> None:
    """As ``summary.csv`` keeps paths that are no text: a folder in Latin-1, here."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    write_slide(folder / "node 1.tif", texture(320, 320), MPP)
    (folder / "node 1.json").write_text('{"positive": [], "negative": []}')
    rows = ",".join((folder / name).as_uri() for name in ("node 1.tif", "node 1.json"))
    (tmp_path / "m.csv").write_text(f"slide,annotations\n{rows}\n")
    (source,) = read_manifest(tmp_path / "m.csv")
    assert (source.path, source.truth, source.name) == (folder / "node 1.tif", folder / "node 1.json", "node 1")


def test_a_slide_whose_name_is_no_text(tmp_path: Path) -> None:
    """A name in Latin-1: the table of PCam's files, which is in UTF-8, has it as it is shown."""
    for seed, name in enumerate((b"caf\xe9.tif", "caf\xe9.tif".encode())):
        write_slide(tmp_path / os.fsdecode(name), texture(320, 320, seed))
    ring = {"positive": [{"vertices": [[64, 64], [224, 64], [224, 224], [64, 224]]}]}
    (tmp_path / "a.json").write_text(json.dumps(ring))
    latin = (tmp_path / os.fsdecode(b"caf\xe9.tif")).as_uri()
    manifest = _manifest(tmp_path, f"{latin},a.json", "caf\xe9.tif,", columns="slide,annotations")
    sample(manifest, tmp_path / "p", patches=8, valid=0)
    slides = open_patches(tmp_path / "p")["train"].slides
    assert slides is not None
    assert set(slides.tolist()) == {r"caf\xe9", "caf\xe9"}


def test_qupaths_outlines_lie_within_the_bounds(tmp_path: Path) -> None:
    """QuPath's square at 64, 96 is at 164, 176 of the slide; the Camelyon JSON counts from the slide's own corner."""
    write_scn(tmp_path / "s.scn", texture(640, 640), (100, 80), (900, 800))
    _geojson(tmp_path / "s.geojson", "Tumor", 64, 96, 128)
    corners = [[164, 176], [292, 176], [292, 304], [164, 304]]
    (tmp_path / "s.json").write_text(json.dumps({"positive": [{"vertices": corners}]}))
    (tmp_path / "m.csv").write_text("slide,annotations\ns.scn,s.geojson\n")
    (tmp_path / "n.csv").write_text("slide,annotations\ns.scn,s.json\n")
    cells = []
    for name in ("m.csv", "n.csv"):
        (source,) = read_manifest(tmp_path / name)
        with open_slide(source.path) as slide:
            found = find_candidates(source, slide, Preprocessing(), seed=[0])
        cells.append({kind: {tuple(cell) for cell in part.cells.tolist()} for kind, part in found.items()})
    assert cells[0] == cells[1]
    assert cells[0]["tumor"] == {(row, col) for row in range(5, 10) for col in range(5, 10)}


def test_classes_that_are_told(tmp_path: Path) -> None:
    write_slide(tmp_path / "s.tif", texture(320, 320))
    _geojson(tmp_path / "s.geojson", "Krebs: G2", 64, 64, 128)
    (tmp_path / "m.csv").write_text("slide,annotations\ns.tif,s.geojson\n")
    (source,) = read_manifest(tmp_path / "m.csv", tumor=["krebs"])
    with open_slide(source.path) as slide:
        assert len(find_candidates(source, slide, Preprocessing(), seed=[0])["tumor"].cells) == 16
    result = CliRunner().invoke(main, ["sample", str(tmp_path / "m.csv"), "--out", str(tmp_path / "p"), "--tumor", "Krebbs"])
    assert result.exit_code == 1
    assert "m.csv: no outline has the class 'Krebbs'; found: 'Krebs: G2'" in result.stderr
    assert not (tmp_path / "p").exists()
