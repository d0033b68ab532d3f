"""Scans from end to end: what is written, resumed, refused and kept."""

from __future__ import annotations

import copy
import json
import math
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from fakes import DarknessPredictor, scan_darkness, shifted
from numpy.typing import NDArray
from PIL import Image
from slide_files import MODEL_MPP, damage_tile, texture, write_scn, write_slide

import wsi_meta.scanning.networks
from wsi_meta.datasets.layouts import open_patches
from wsi_meta.errors import (
    DataError,
    DeviceError,
    MissingMppError,
    ModelFileError,
    OptionsError,
    OutputExistsError,
    OutputPathError,
    SlideReadError,
)
from wsi_meta.evaluation.evaluate import evaluate_patches
from wsi_meta.heatmaps.inspection import check_heatmaps
from wsi_meta.heatmaps.lesions import find_lesions
from wsi_meta.heatmaps.score_model import FEATURES
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.inference.options import InferenceOptions
from wsi_meta.inference.predictor import Predictor
from wsi_meta.metadata import info
from wsi_meta.models.card import Calibration, ModelCard
from wsi_meta.models.model import Model, describe_patches, load_model, write_model
from wsi_meta.readers.reader import Bounds
from wsi_meta.scanning.options import ScanOptions
from wsi_meta.scanning.scan import scan
from wsi_meta.scanning.scanner import Scanner
from wsi_meta.slides.slide import Slide
from wsi_meta.worklist.summary import summarise


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tissue of 7 x 5 cells beside glass, 7 x 9 cells in all."""
    image = np.full((224, 288, 3), 244, np.uint8)
    image[:, :160] = texture(224, 160)
    return write_slide(tmp_path_factory.mktemp("slides") / "node.tif", image)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory, slide_file: Path, thin_model: Model) -> Heatmap:
    """A finished scan of that slide in float32; never change it."""
    return scan_darkness(slide_file, tmp_path_factory.mktemp("scanned") / "h.zarr", model=thin_model, precision="fp32")


class Counting(DarknessPredictor):
    """Counts the cells wanted in each block that is predicted."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.seen: list[int] = []

    def predict_block(self, pieces: Any, wanted: Any, stride_px: int, report: Any = None) -> Any:
        self.seen.append(int(wanted.sum()))
        return super().predict_block(pieces, wanted, stride_px, report)


def _assert_parity(folder: Path, model: Model, tmp_path: Path) -> None:
    """A slide put together from a folder's patches gives, at stride 96, each of them what evaluate gives it."""
    data = open_patches(folder)["train"]
    cols = 8
    blank = np.full((96, 96, 3), 255, np.uint8)
    patches = [data.read(index) for index in range(len(data))] + [blank] * (-len(data) % cols)
    canvas = np.vstack([np.hstack(patches[start : start + cols]) for start in range(0, len(patches), cols)])
    slide = write_slide(tmp_path / "assembled.tif", canvas)
    settings: dict[str, Any] = {"precision": "fp32", "batch_size": 4}
    heatmap = scan(slide, tmp_path / "h.zarr", model=model, stride_px=96, tissue_mask="none", **settings)
    evaluation = evaluate_patches(Predictor(model, **settings), data, workers=0)
    assert heatmap.probability.shape == (len(patches) // cols, cols)
    scanned = heatmap.probability.ravel()[: len(data)]
    np.testing.assert_allclose(scanned, evaluation.probabilities, rtol=0, atol=1e-5)
    assert np.ptp(scanned) > 1e-3, "or the comparison would say nothing"


def test_parity_with_evaluate(tmp_path: Path, thin_model: Model) -> None:
    for number in range(12):
        folder = tmp_path / "patches" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(texture(96, 96, number)).save(folder / f"{number:02}.png")
    _assert_parity(tmp_path / "patches", thin_model, tmp_path)


@pytest.mark.shared_data
def test_parity_on_real_patches(tmp_path: Path, shared_data: Path) -> None:
    for label in "01":
        folder = tmp_path / "patches" / label
        folder.mkdir(parents=True)
        for path in sorted((shared_data / "pcam" / "patches" / "valid" / label).glob("*.jpg"))[:8]:
            (folder / path.name).symlink_to(path)
    _assert_parity(tmp_path / "patches", load_model(), tmp_path)


def test_every_cell_has_a_status_and_only_scanned_ones_a_value(scanned: Heatmap, thin_model: Model) -> None:
    heatmap = scanned
    status, probability = heatmap.status, heatmap.probability
    assert probability.shape == (7, 9)
    assert set(np.unique(status)) == {Status.BACKGROUND, Status.SCANNED}
    np.testing.assert_array_equal(np.isfinite(probability), status == Status.SCANNED)
    assert (status[:, :5] == Status.SCANNED).all()
    assert (status[:, 7:] == Status.BACKGROUND).all()
    assert heatmap.finished
    assert heatmap.result is not None
    assert heatmap.result.cells["scanned"] == int((status == Status.SCANNED).sum())
    assert heatmap.result.score is not None
    assert 0 < heatmap.result.score < 1
    record = heatmap.record
    assert record.slide.width == 288
    assert record.identity.model == thin_model.hash
    assert record.model.preprocessing.mpp == MODEL_MPP
    assert record.versions["torch"]


@pytest.mark.parametrize("stride_px", [8, 24, 32, 96])
def test_a_cell_shows_what_lies_in_the_middle_of_its_patch(stride_px: int, tmp_path: Path, thin_model: Model) -> None:
    image = np.full((300, 400, 3), 255, np.uint8)
    image[160:200, 250:300] = 0
    slide = write_slide(tmp_path / "s.tif", image)
    heatmap = scan_darkness(slide, tmp_path / "h.zarr", model=thin_model, stride_px=stride_px, tissue_mask="none")
    assert heatmap.probability.shape == (-(-300 // stride_px), -(-400 // stride_px))
    padded = np.full((600, 700), 0.0)
    padded[100:400, 100:500] = 1 - image[..., 0] / 255
    for (row, col), value in np.ndenumerate(heatmap.probability):
        y, x = 100 + round((row + 0.5) * stride_px), 100 + round((col + 0.5) * stride_px)
        share = padded[y - 16 : y + 16, x - 16 : x + 16].mean()
        assert value == pytest.approx(1 / (1 + np.exp(-share)), abs=1e-5)


def test_calibration_is_applied(tmp_path: Path, slide_file: Path, thin_model: Model, scanned: Heatmap) -> None:
    model = replace(thin_model, card=ModelCard(calibration=Calibration(temperature=2.0, bias=-0.5)))
    calibrated = scan_darkness(slide_file, tmp_path / "c.zarr", model=model).probability
    plain = scanned.probability
    logit = np.log(plain / (1 - plain))
    np.testing.assert_allclose(calibrated, 1 / (1 + np.exp(-(logit / 2 - 0.5))), atol=1e-5)


@pytest.mark.parametrize(("temperature", "warned"), [(1.0, False), (1e5, True)])
def test_a_model_that_tells_nothing_apart_is_warned_of(
    tmp_path: Path, slide_file: Path, thin_model: Model, caplog: pytest.LogCaptureFixture, *, temperature: float, warned: bool
) -> None:
    model = replace(thin_model, card=ModelCard(calibration=Calibration(temperature=temperature)))

    heatmap = scan_darkness(slide_file, tmp_path / "h.zarr", model=model)

    cells = heatmap.record.result.cells["scanned"] if heatmap.record.result else 0
    told = f"all {cells} scanned cells have the probability 0.5000: the model tells nothing apart"
    assert (told in caplog.text) is warned


def test_a_finished_scan_is_not_done_again(tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    counting = Counting(thin_model)
    first = scan(slide_file, tmp_path / "h.zarr", predictor=counting).result
    counting.seen.clear()
    assert scan(slide_file, tmp_path / "h.zarr", predictor=counting).result == first
    assert counting.seen == []
    scan(slide_file, tmp_path / "h.zarr", predictor=counting, overwrite=True)
    assert counting.seen


def test_an_interrupted_scan_goes_on(tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    settings: dict[str, Any] = {"model": thin_model, "block_px": 96}
    whole = scan_darkness(slide_file, tmp_path / "whole.zarr", scheduler="synchronous", **settings).probability
    seen: list[int] = []

    class Interrupted(DarknessPredictor):
        def predict_block(self, pieces: Any, wanted: Any, stride_px: int, report: Any = None) -> Any:
            if len(seen) == 5:
                raise KeyboardInterrupt
            seen.append(1)
            return super().predict_block(pieces, wanted, stride_px, report)

    with pytest.raises(KeyboardInterrupt):
        scan_darkness(slide_file, tmp_path / "h.zarr", kind=Interrupted, scheduler="synchronous", **settings)
    half = Heatmap.open(tmp_path / "h.zarr")
    assert not half.finished
    assert 0 < int((half.status == Status.SCANNED).sum()) < int((half.status != Status.BACKGROUND).sum())
    resumed = scan_darkness(slide_file, tmp_path / "h.zarr", **settings)
    np.testing.assert_array_equal(resumed.probability, whole)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stride_px": 64}, "grid is stride 32"),
        ({"tissue_mask": "none"}, "tissue is"),
        ({"precision": "bf16"}, "precision is fp32, now bf16"),
        ({"mpp": 0.9}, "0.9 um per pixel"),
        ({"block_px": 96}, "blocks of 96 px"),
        ({"tta": True}, "test_time_averaging is False, now True"),
        ({"tta": True, "uncertainty": True}, "uncertainty is False, now True"),
    ],
)
def test_another_scan_is_refused(
    change: dict[str, Any], named: str, slide_file: Path, thin_model: Model, scanned: Heatmap
) -> None:
    before = scanned.probability
    settings: dict[str, Any] = {"model": thin_model, "precision": "fp32"} | change
    with pytest.raises(OutputExistsError, match="holds another scan") as caught:
        scan_darkness(slide_file, scanned.path, **settings)
    assert named in str(caught.value)
    np.testing.assert_array_equal(Heatmap.open(scanned.path).probability, before)


def test_another_slide_or_model_is_refused(tmp_path: Path, slide_file: Path, thin_model: Model, scanned: Heatmap) -> None:
    other = write_slide(tmp_path / "other.tif", texture(224, 288, seed=5))
    with pytest.raises(OutputExistsError, match=r"slide is \w+, now \w+"):
        scan_darkness(other, scanned.path, model=thin_model)
    with pytest.raises(OutputExistsError, match=r"model is \w+, now \w+"):
        scan_darkness(slide_file, scanned.path, model=shifted(thin_model, 1.0))


def test_a_model_that_was_changed_since_it_was_loaded_is_another(tmp_path: Path, slide_file: Path, model_file: Path) -> None:
    model = load_model(model_file)
    other = replace(model, network=copy.deepcopy(model.network))
    recalibrated = replace(model, card=replace(model.card, calibration=Calibration(bias=-3.0)))
    other.network.get_parameter("fc.bias").data += 3
    hashes = []
    for one in (model, recalibrated, other):
        with Scanner(one) as scanner:
            hashes.append(scanner.networks.hash())
    assert hashes[0] == model.hash
    assert len(set(hashes)) == 3
    assert Predictor(recalibrated, device="cpu", precision="fp32").model.hash == hashes[1]
    scan_darkness(slide_file, tmp_path / "h.zarr", model=model)
    with pytest.raises(OutputExistsError, match="holds another scan: model is"):
        scan_darkness(slide_file, tmp_path / "h.zarr", model=recalibrated)
    with pytest.raises(OptionsError, match="the model was changed since it was loaded"):
        Scanner(recalibrated, scheduler="tcp://127.0.0.1:1")


def test_a_model_that_is_trained_on_is_scanned_with_at_rest(model_file: Path) -> None:
    """BatchNorm took each scan's patches for its statistics: the verdict was wrong, and the program's model another one."""
    model, patches = load_model(model_file), np.stack([texture(96, 96, seed) for seed in range(16)])
    expected = describe_patches(model, patches)
    before = copy.deepcopy(model.network.state_dict())
    for in_float64 in (False, True):
        if in_float64:
            model.network.double()
        with Scanner(model) as scanner:
            model.network.train()  # before the first scan, and before the second scanner
            used = scanner.networks.model()
            np.testing.assert_array_equal(describe_patches(used, patches), expected)
            assert used.hash == scanner.networks.hash() == model.hash
            assert scanner.networks.file == model_file, "which others may load"
    assert all(torch.equal(value.float(), before[name].float()) for name, value in model.network.state_dict().items())


def test_foreign_output_is_never_touched(tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="not a heatmap store"):
            scan(slide_file, tmp_path / "notes", model=thin_model, overwrite=overwrite)
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def test_unreadable_region(tmp_path: Path, thin_model: Model) -> None:
    """Only the block over the bad tile is lost; the rest is scanned, and a later scan tries again."""
    image = texture(768, 768)
    path = write_slide(tmp_path / "s.tif", image, levels=4)
    good = path.read_bytes()
    damage_tile(path, 4)  # the middle one of 3 x 3 tiles of 256 px
    settings: dict[str, Any] = {"model": thin_model, "block_px": 320, "stride_px": 64}
    heatmap = scan_darkness(path, tmp_path / "h.zarr", **settings)
    status, probability = heatmap.status, heatmap.probability
    unreadable = status == Status.UNREADABLE
    assert heatmap.result is not None
    assert heatmap.result.complete is False
    assert heatmap.result.cells["unreadable"] == unreadable.sum() > 0
    assert np.isnan(probability[unreadable]).all()
    assert (status[~unreadable] == Status.SCANNED).all()
    assert np.isfinite(probability[~unreadable]).all()
    assert not heatmap.finished
    still = scan_darkness(path, tmp_path / "h.zarr", **settings)
    np.testing.assert_array_equal(still.status, status)
    path.write_bytes(good)
    again = scan_darkness(path, tmp_path / "h.zarr", **settings)
    assert again.finished
    assert (again.status == Status.SCANNED).all()
    np.testing.assert_array_equal(again.probability[~unreadable], probability[~unreadable])


def test_what_was_once_read_is_kept_where_a_later_try_reads_less(tmp_path: Path, thin_model: Model) -> None:
    """A disk or server that goes away during the second try costs nothing."""
    path = write_slide(tmp_path / "s.tif", texture(768, 768), levels=4)
    damage_tile(path, 4)
    settings: dict[str, Any] = {"model": thin_model, "tta": 2, "uncertainty": True}
    first = scan_darkness(path, tmp_path / "h.zarr", **settings)
    group: Any = first.group
    before = {name: group[name][...] for name in first.record.arrays}
    for tile in range(9):
        damage_tile(path, tile)

    again = scan_darkness(path, tmp_path / "h.zarr", **settings)

    assert again.result == first.result
    assert (before["status"] == Status.SCANNED).any()
    for name, values in before.items():
        np.testing.assert_array_equal(group[name][...], values)
    assert check_heatmaps(tmp_path / "h.zarr")[0].state != "damaged"


def test_an_interrupted_second_try_is_unfinished_and_keeps_its_blocks(tmp_path: Path, thin_model: Model) -> None:
    path, out = write_slide(tmp_path / "s.tif", texture(768, 768), levels=4), tmp_path / "h.zarr"
    good = path.read_bytes()
    damage_tile(path, 4)
    settings: dict[str, Any] = {"model": thin_model, "block_px": 256, "stride_px": 64, "scheduler": "synchronous"}
    first = scan_darkness(path, out, **settings)
    left = len(first.open_blocks(first.status))
    path.write_bytes(good)

    class Interrupted(Counting):
        def predict_block(self, *arguments: Any, **named: Any) -> Any:
            if len(self.seen) == 1:
                raise KeyboardInterrupt
            return super().predict_block(*arguments, **named)

    with pytest.raises(KeyboardInterrupt):
        scan_darkness(path, out, kind=Interrupted, **settings)

    assert check_heatmaps(out)[0].state == "unfinished"
    there = Heatmap.open(out)
    assert there.result is None
    assert len(there.open_blocks(there.status)) == left - 1
    assert scan_darkness(path, out, **settings).finished


def test_damage_costs_little_round_it(tmp_path: Path, thin_model: Model) -> None:
    """One block holds the slide: what of it lies far from the bad tile is scanned all the same."""
    path = write_slide(tmp_path / "s.tif", texture(768, 768), levels=4)
    whole = scan_darkness(path, tmp_path / "whole.zarr", model=thin_model, tissue_mask="none", stride_px=64).probability
    damage_tile(path, 0)
    heatmap = scan_darkness(path, tmp_path / "h.zarr", model=thin_model, tissue_mask="none", stride_px=64)
    unreadable = heatmap.status == Status.UNREADABLE

    assert len(heatmap.grid.blocks()) == 1
    assert unreadable[:4, :4].all()
    assert not unreadable[:, 5:].any(), "no patch from 304 px on sees the first 256"
    assert not unreadable[5:].any()
    np.testing.assert_array_equal(heatmap.probability[~unreadable], whole[~unreadable])


def test_nothing_readable_leaves_no_store(tmp_path: Path, thin_model: Model) -> None:
    path = write_slide(tmp_path / "s.tif", texture(256, 256))
    damage_tile(path, 0)
    for mask in (None, "none"):
        with pytest.raises(SlideReadError, match=r"s\.tif: (none of its tissue|nothing of it) can be read"):
            scan_darkness(path, tmp_path / "h.zarr", model=thin_model, tissue_mask=mask)
        assert not (tmp_path / "h.zarr").exists()


class Holed(Slide):
    """A disk that did not give a part of the overview, of glass."""

    def read_overview(self, mpp: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        image, readable = super().read_overview(mpp)
        readable[:, -20:] = False
        return image, readable


@pytest.mark.parametrize("kinds", [(Holed, Slide), (Slide, Holed), (Holed, Holed)])
def test_a_scan_goes_on_where_the_overview_could_not_be_read(
    tmp_path: Path, thin_model: Model, kinds: tuple[type[Slide], type[Slide]]
) -> None:
    image = np.full((640, 768, 3), 244, np.uint8)
    image[:, :384] = texture(640, 384)
    first, second = (kind.from_array(image, mpp=MODEL_MPP) for kind in kinds)

    class Interrupted(DarknessPredictor):
        def predict_block(self, *_arguments: Any, **_named: Any) -> Any:
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"model": thin_model, "block_px": 384, "scheduler": "synchronous"}
    with pytest.raises(KeyboardInterrupt):
        scan_darkness(first, tmp_path / "h.zarr", kind=Interrupted, **settings)
    began = Heatmap.open(tmp_path / "h.zarr")
    tissue = began.status == Status.PENDING
    ended = scan_darkness(second, tmp_path / "h.zarr", **settings)
    assert ended.finished
    assert ended.record.identity == began.record.identity
    assert ended.record.tissue.unread is (kinds[0] is Holed)
    np.testing.assert_array_equal(ended.status == Status.SCANNED, tissue)
    assert tissue[:, 0].all()
    assert (tissue[:, -1] == (kinds[0] is Holed)).all()


def test_tissue_that_is_found_only_when_all_is_read_is_scanned(tmp_path: Path, thin_model: Model) -> None:
    image = np.full((640, 768, 3), 244, np.uint8)
    image[:, :384] = texture(640, 384)
    first = Holed.from_array(image.copy(), mpp=MODEL_MPP)
    image[:320, 448:512] = texture(320, 64)  # as what is blurred into the part that cannot be read
    settings: dict[str, Any] = {"model": thin_model, "block_px": 384}
    before = scan_darkness(first, tmp_path / "h.zarr", **settings)
    scanned = before.status == Status.SCANNED
    before.write_record(
        replace(
            before.record, identity=replace(before.record.identity, slide=Slide.from_array(image, mpp=MODEL_MPP).fingerprint())
        )
    )
    ended = scan_darkness(Slide.from_array(image, mpp=MODEL_MPP), tmp_path / "h.zarr", **settings)
    assert ended.finished
    assert (ended.status[scanned] == Status.SCANNED).all()
    assert (ended.status[:10, 14:16] == Status.SCANNED).all()
    assert not scanned[:10, 14:16].any()


def test_another_mask_is_no_hole_in_the_overview(tmp_path: Path, thin_model: Model) -> None:
    slide = Holed.from_array(texture(256, 256), mpp=MODEL_MPP)
    scan_darkness(slide, tmp_path / "h.zarr", model=thin_model)
    with pytest.raises(OutputExistsError, match="holds another scan: tissue is"):
        scan_darkness(slide, tmp_path / "h.zarr", model=thin_model, tissue_mask=np.eye(8, dtype=bool))


@pytest.mark.parametrize("linked", [False, True])
def test_an_older_heatmap_stays_where_nothing_can_be_read(tmp_path: Path, thin_model: Model, linked: bool) -> None:
    path, out = write_slide(tmp_path / "s.tif", texture(256, 256)), tmp_path / "h.zarr"
    if linked:
        (tmp_path / "disk").mkdir()
        out.symlink_to(tmp_path / "disk" / "far.zarr")
    good = path.read_bytes()
    settings: dict[str, Any] = {"model": thin_model, "tissue_mask": "none"}
    damage_tile(path, 0)
    with pytest.raises(SlideReadError, match="this scan leaves no heatmap"):
        scan_darkness(path, out, **settings)
    assert not out.exists()
    path.write_bytes(good)
    first = scan_darkness(path, out, **settings)
    damage_tile(path, 0)
    with pytest.raises(SlideReadError, match="this scan leaves no heatmap"):
        scan_darkness(path, out, stride_px=64, overwrite=True, **settings)
    there = Heatmap.open(out)
    assert there.finished
    assert there.record == first.record
    np.testing.assert_array_equal(there.probability, first.probability)
    assert not [*tmp_path.rglob(".*")], "nothing is left beside it"
    path.write_bytes(good)
    assert scan_darkness(path, out, stride_px=64, overwrite=True, **settings).record.grid.stride_px == 64
    assert not [*tmp_path.rglob(".*")]


@pytest.mark.parametrize("blocks", [0, 1])
def test_an_interrupted_scan_replaces_a_heatmap_once_it_has_a_block(tmp_path: Path, thin_model: Model, blocks: int) -> None:
    path, out = write_slide(tmp_path / "s.tif", texture(384, 384)), tmp_path / "h.zarr"
    settings: dict[str, Any] = {"model": thin_model, "block_px": 192, "scheduler": "synchronous", "tissue_mask": "none"}
    first = scan_darkness(path, out, **settings)

    class Interrupted(Counting):
        def predict_block(self, *arguments: Any, **named: Any) -> Any:
            if len(self.seen) == blocks:
                raise KeyboardInterrupt
            return super().predict_block(*arguments, **named)

    with pytest.raises(KeyboardInterrupt):
        scan_darkness(path, out, kind=Interrupted, overwrite=True, **settings)
    there = Heatmap.open(out)
    assert there.finished == (blocks == 0)
    assert int((there.status == Status.SCANNED).sum()) == (36 if blocks else first.status.size)
    assert not [*tmp_path.glob(".*")]


def test_progress_is_told_with_every_batch(tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    told: list[tuple[Path, int, int]] = []
    settings: dict[str, Any] = {"model": thin_model, "block_px": 160, "batch_size": 8}
    heatmap = scan(slide_file, tmp_path / "h.zarr", progress=lambda *now: told.append(now), **settings)
    assert heatmap.result is not None
    cells = heatmap.result.cells["scanned"]
    assert {(slide, total) for slide, _, total in told} == {(slide_file, cells)}
    done = [number for _, number, _ in told]
    assert done[-1] == cells
    assert 0 < min(np.diff([0, *done])) <= max(np.diff([0, *done])) <= 8


def test_no_tissue_is_said_loudly(tmp_path: Path, thin_model: Model, caplog: pytest.LogCaptureFixture) -> None:
    path = write_slide(tmp_path / "glass.tif", np.full((300, 300, 3), 244, np.uint8))
    heatmap = scan(path, tmp_path / "h.zarr", model=thin_model)
    assert "NO TISSUE FOUND" in caplog.text
    assert heatmap.result is not None
    assert heatmap.result.score is None, "unknown, not 0"
    assert np.isnan(heatmap.probability).all()
    caplog.clear()
    scan(path, tmp_path / "m.zarr", model=thin_model, tissue_mask=np.zeros((30, 30), bool))
    assert "glass.tif: THE TISSUE MASK IS EMPTY (array), nothing will be scanned" in caplog.text


def test_mpp_is_never_guessed(tmp_path: Path, thin_model: Model) -> None:
    import tifffile

    path = tmp_path / "no-mpp.tif"
    tifffile.imwrite(path, texture(300, 300), tile=(256, 256), photometric="rgb", metadata=None)
    with pytest.raises(MissingMppError, match="pass --mpp"):
        scan_darkness(path, tmp_path / "h.zarr", model=thin_model)
    assert not (tmp_path / "h.zarr").exists()
    assert scan_darkness(path, tmp_path / "h.zarr", model=thin_model, mpp=0.486, tissue_mask="none").probability.shape == (5, 5)


def test_refusals_leave_nothing(tmp_path: Path, slide_file: Path, model_file: Path, thin_model: Model) -> None:
    coarse = write_slide(tmp_path / "coarse.tif", texture(300, 300), 28.0)
    cases: list[tuple[type[Exception], str, Path, Path, Path]] = [
        (SlideReadError, "too coarse", coarse, model_file, tmp_path / "h.zarr"),
        (SlideReadError, "no such file", tmp_path / "none.tif", model_file, tmp_path / "h.zarr"),
        (ModelFileError, "no such model", slide_file, tmp_path / "none.safetensors", tmp_path / "h.zarr"),
        (OutputPathError, "there is no folder", slide_file, model_file, tmp_path / "nowhere" / "h.zarr"),
        (OutputPathError, "cannot be written", slide_file, model_file, Path("/proc/h.zarr")),
    ]
    for kind, found, slide, model, out in cases:
        with pytest.raises(kind, match=found):
            scan(slide, out, model=model)
        assert not out.exists()
    with pytest.raises(ModelFileError, match="no numbers"):
        scan(slide_file, tmp_path / "nan.zarr", model=shifted(thin_model, math.nan), stride_px=96)
    assert not (Heatmap.open(tmp_path / "nan.zarr").status == Status.SCANNED).any()


def test_the_model_is_loaded_while_tissue_is_found(
    tmp_path: Path, slide_file: Path, model_file: Path, thin_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=10)  # broken unless both are at it at the same time

    def load(_path: Any) -> Any:
        both.wait()
        return thin_model  # it has the card of the file, and computes in no time

    class Waiting(Slide):
        def read_overview(self, mpp: float) -> Any:
            both.wait()
            return super().read_overview(mpp)

    monkeypatch.setattr(wsi_meta.scanning.networks, "load_model", load)
    assert scan(Waiting(slide_file), tmp_path / "h.zarr", model=model_file, stride_px=96, batch_size=8).finished


def test_one_thread_of_a_cpu_computes_and_it_ends_with_the_scan(tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    seen: list[str] = []

    class Telling(DarknessPredictor):
        def predict_block(self, pieces: Any, wanted: Any, stride_px: int, report: Any = None) -> Any:
            seen.append(threading.current_thread().name)
            return super().predict_block(pieces, wanted, stride_px, report)

    scan_darkness(slide_file, tmp_path / "h.zarr", model=thin_model, kind=Telling, block_px=96, workers=3)
    assert len(seen) > 5
    assert set(seen) == {"computing_0"}
    assert "computing_0" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("failure", [SlideReadError("nothing of it can be read"), KeyboardInterrupt()])
def test_no_loading_is_left_behind_when_tissue_cannot_be_found(
    tmp_path: Path, slide_file: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    finding = threading.Event()
    before = set(threading.enumerate())

    def load(path: Any) -> Any:
        finding.wait(10)
        time.sleep(0.1)
        return load_model(path)

    class Failing(Slide):
        def read_overview(self, mpp: float) -> Any:  # noqa: ARG002
            finding.set()
            raise failure

    monkeypatch.setattr(wsi_meta.scanning.networks, "load_model", load)
    with pytest.raises(type(failure)):
        scan(Failing(slide_file), tmp_path / "h.zarr", model=model_file)
    assert not set(threading.enumerate()) - before  # of those that earlier tests left, some may have ended
    assert not (tmp_path / "h.zarr").exists()


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, slide_file: Path) -> None:
    write_model(tmp_path / "part.safetensors", {"fc.weight": torch.zeros(1, 2048)}, ModelCard())
    with pytest.raises(ModelFileError, match="the weights do not fit"):
        scan(slide_file, tmp_path / "h.zarr", model=tmp_path / "part.safetensors")
    assert not (tmp_path / "h.zarr").exists()


def test_modes_and_strides_that_do_not_exist(tmp_path: Path, slide_file: Path) -> None:
    wrong: list[dict[str, Any]] = [{"mode": "psychic"}, {"stride_px": 20}, {"stride_px": 104}, {"stride_px": 0}]
    for settings in wrong:
        with pytest.raises(ValueError, match="expected one of"):
            scan(slide_file, tmp_path / "h.zarr", **settings)


def test_numbers_and_truths_are_taken_from_numpy_and_from_nothing_else() -> None:
    options = ScanOptions(stride_px=np.int64(32), block_px=np.uint16(64), workers=np.int8(1), uncertainty=np.True_)  # type: ignore[arg-type]
    assert repr(options) == repr(ScanOptions(stride_px=32, block_px=64, workers=1, uncertainty=True))
    assert InferenceOptions(batch_size=np.int32(8), tta=np.int64(2)).views == 2  # type: ignore[arg-type]
    wrong: list[dict[str, Any]] = [
        {"stride_px": 32.0},
        {"workers": 1.5},
        {"workers": True},
        {"uncertainty": "no"},
        {"tta": 2.0},
    ]
    for settings in (*wrong, {"batch_size": "8"}):
        with pytest.raises(OptionsError, match=f"{next(iter(settings)).replace('h_s', 'h s')} .*; expected"):
            Scanner(**settings)
    with pytest.raises(DeviceError, match="--device None: not supported"):
        Scanner(device=None)  # type: ignore[arg-type]
    with Scanner() as scanner, pytest.raises(OptionsError, match="overwrite 'no'; expected True or False"):
        scanner.scan("s.tif", "h.zarr", overwrite="no")  # type: ignore[arg-type]


def test_a_scan_begun_on_a_gpu_does_not_go_on_with_a_cpu(tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    """Sums are rounded differently there: the map would depend on where it was interrupted."""
    made = scan_darkness(slide_file, tmp_path / "h.zarr", model=thin_model, device="cpu")
    group = zarr.open_group(tmp_path / "h.zarr", mode="r+")
    facts = made.record.to_dict()
    assert facts["identity"]["device"] == facts["device"] == "cpu"
    group.attrs["wsi_meta"] = facts | {"identity": facts["identity"] | {"device": "cuda"}}
    with pytest.raises(OutputExistsError, match="device is cuda, now cpu"):
        scan_darkness(slide_file, tmp_path / "h.zarr", model=thin_model, device="cpu")


def test_a_record_that_was_changed_is_made_anew(
    tmp_path: Path, slide_file: Path, thin_model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    made = scan_darkness(slide_file, tmp_path / "h.zarr", model=thin_model, tissue_mask="none")
    content = json.loads((tmp_path / "h.zarr" / "zarr.json").read_text())
    record = content["attributes"]["wsi_meta"]
    record["result"]["score"], record["model"]["thresholds"]["default"], record["lesions"] = 0.123, 0.01, None
    (tmp_path / "h.zarr" / "zarr.json").write_text(json.dumps(content))
    again = scan_darkness(slide_file, tmp_path / "h.zarr", model=thin_model, tissue_mask="none")
    assert "the record of its scan is not as it was written; that is made anew" in caplog.text
    assert replace(again.record, effort=None) == replace(made.record, effort=None), "what a scan takes is its own"
    assert Heatmap.open(tmp_path / "h.zarr").intact


def test_identity_stands_before_the_first_block(tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    found: list[dict[str, Any]] = []

    class Looking(DarknessPredictor):
        def predict_block(self, pieces: Any, wanted: Any, stride_px: int, report: Any = None) -> Any:
            found.append(json.loads((tmp_path / "h.zarr" / "zarr.json").read_text())["attributes"])
            return super().predict_block(pieces, wanted, stride_px, report)

    scan_darkness(slide_file, tmp_path / "h.zarr", model=thin_model, kind=Looking)
    assert {"slide", "model", "grid", "mode", "tissue", "precision", "compiled"} <= set(found[0]["wsi_meta"]["identity"])
    assert {"test_time_averaging", "uncertainty"} <= set(found[0]["wsi_meta"]["identity"])
    assert found[0]["ome"]["version"] == "0.5"


@pytest.mark.shared_data
def test_real_slide(tmp_path: Path, thin_model: Model, shared_data: Path) -> None:
    heatmap = scan(shared_data / "slides" / "CMU-1-Small-Region.svs", tmp_path / "h.zarr", model=thin_model)
    assert heatmap.probability.shape == (48, 36)
    assert heatmap.finished
    assert 0.3 < heatmap.record.tissue.fraction < 0.5
    assert isinstance(zarr.open_group(tmp_path / "h.zarr", mode="r")["status"], zarr.Array)


# lesions and fitted scores in the store


def _score_model(path: Path) -> Path:
    """A score model that looks at the default score alone: probability = sigmoid((score - 0.5) / 0.1)."""
    ones = dict.fromkeys(FEATURES, 1.0)
    weights = dict.fromkeys(FEATURES, 0.0) | {"score": 1.0}
    fields = {"mean": ones | {"score": 0.5}, "scale": ones | {"score": 0.1}, "coefficients": weights, "intercept": 0.0}
    path.write_text(json.dumps({"format": "wsi-meta slide score 1", **fields, "validation": {}}))
    return path


def test_lesions_are_kept_in_the_store(scanned: Heatmap) -> None:
    heatmap = scanned
    attributes: Any = zarr.open_group(heatmap.path, mode="r").attrs["wsi_meta"]
    kept = attributes["lesions"]
    assert kept["threshold"] == heatmap.record.model.thresholds["default"]
    assert [lesion["area_mm2"] for lesion in kept["found"]] == [lesion.area_mm2 for lesion in find_lesions(heatmap)]
    assert kept["found"], "this slide has some"
    facts = info(heatmap.path)["lesions"]
    assert sum(facts["found"].values()) == len(kept["found"])


def test_a_fitted_score_stands_beside_the_default_one(slide_file: Path, thin_model: Model, tmp_path: Path) -> None:
    counting = Counting(thin_model)
    plain = scan(slide_file, tmp_path / "h.zarr", predictor=counting).result
    blocks = len(counting.seen)
    score_model = _score_model(tmp_path / "s.json")
    fitted = scan(slide_file, tmp_path / "h.zarr", predictor=counting, score_model=score_model).result
    assert plain is not None
    assert fitted is not None
    assert fitted.fitted_score is not None
    assert len(counting.seen) == blocks, "a finished scan is not scanned again for it"
    assert fitted.score == plain.score is not None
    assert fitted.fitted_score["score"] == pytest.approx(1 / (1 + np.exp(-(plain.score - 0.5) / 0.1)))
    assert fitted.fitted_score["file"] == "s.json"
    assert scan(slide_file, tmp_path / "h.zarr", predictor=counting).result == fitted, "and stays"
    row = summarise(slide_file, Heatmap.open(tmp_path / "h.zarr"))
    assert (row["score"], row["fitted_score"]) == (plain.score, fitted.fitted_score["score"])
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"bad\.json: not a score model"):
        scan(slide_file, tmp_path / "new.zarr", model=thin_model, score_model=tmp_path / "bad.json")
    score_model.write_text(json.dumps(json.loads(score_model.read_text()) | {"maps": {"model": "0" * 64, "mode": "patch"}}))
    with pytest.raises(DataError, match=r"s\.json: fitted to other maps than this scan's: model 0{12} and \w{12}"):
        scan(slide_file, tmp_path / "new.zarr", model=thin_model, score_model=score_model)
    assert not (tmp_path / "new.zarr").exists(), "refused before the work"


def test_a_scanner_reads_its_score_model_once(
    slide_file: Path, thin_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read again after each slide: as another one by then, or not found from another folder, after all the work."""
    monkeypatch.chdir(tmp_path)
    found = []
    with Scanner(predictor=DarknessPredictor(thin_model), score_model=_score_model(Path("s.json"))) as scanner:
        for number in range(2):
            found.append(scanner.scan(slide_file, tmp_path / f"{number}.zarr").result)
            Path("s.json").unlink(missing_ok=True)
            (tmp_path / "elsewhere").mkdir(exist_ok=True)
            monkeypatch.chdir(tmp_path / "elsewhere")
    assert found[0] is not None
    assert found[0].fitted_score is not None
    assert found[1] == found[0]


def test_no_tissue_has_no_fitted_score(thin_model: Model, tmp_path: Path) -> None:
    glass = write_slide(tmp_path / "glass.tif", np.full((400, 400, 3), 244, np.uint8))
    result = scan_darkness(glass, tmp_path / "h.zarr", model=thin_model, score_model=_score_model(tmp_path / "s.json")).result
    assert result is not None
    assert result.fitted_score is not None
    assert (result.score, result.fitted_score["score"]) == (None, None)


def test_a_store_keeps_the_bounds_of_its_slide(tmp_path: Path, thin_model: Model) -> None:
    """QuPath shows 256 px of the glass, from x 320, y 160, that is from cell 10, 5 on."""
    slide = write_scn(tmp_path / "s.scn", np.zeros((256, 256, 3), np.uint8), (320, 160), (800, 600))
    heatmap = scan_darkness(slide, tmp_path / "h.zarr", model=thin_model, device="cpu", tissue_mask="none")
    assert heatmap.record.slide.bounds == Bounds(320, 160, 256, 256)
    find_lesions(heatmap, threshold=0.7, peak=0.7, out=tmp_path / "l.geojson")
    (feature,) = json.loads((tmp_path / "l.geojson").read_text())["features"]
    corners = np.array(feature["geometry"]["coordinates"][0][0])
    assert (corners.min(0).tolist(), corners.max(0).tolist()) == ([0, 0], [256, 256])
