"""Test-time averaging: the mean over a patch's eight views, and their spread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import zarr
from fakes import scan_darkness
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from slide_files import texture, write_slide

from wsi_meta.cohorts.batch import scan_slides
from wsi_meta.errors import OptionsError, OutputExistsError
from wsi_meta.heatmaps.record import ScanRecord
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.inference.predictor import DENSE_HALO_PX, Predictor
from wsi_meta.metadata import info
from wsi_meta.models.card import Calibration, ModelCard
from wsi_meta.models.dihedral import AVERAGED, VIEWS, count_views, mean_over_views, spread_over_views, turn
from wsi_meta.models.model import Model
from wsi_meta.pictures.overlay import draw_overlay
from wsi_meta.scanning.scan import scan

COMMON: dict[str, Any] = {"precision": "fp32", "batch_size": 8, "tissue_mask": "none", "tta": True, "uncertainty": True}


@pytest.fixture(scope="module")
def averaging(thin_model: Model) -> Predictor:
    return Predictor(thin_model, device="cpu", precision="fp32", batch_size=8, tta=True)


@pytest.fixture(scope="module")
def patches() -> NDArray[np.uint8]:
    return np.stack([texture(96, 96, seed) for seed in range(3)])


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 x 4 cells."""
    return write_slide(tmp_path_factory.mktemp("slides") / "node.tif", texture(96, 128))


@pytest.fixture(scope="module")
def reference(slide_file: Path, thin_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Heatmap:
    """All in one block."""
    return scan(slide_file, tmp_path_factory.mktemp("reference") / "h.zarr", model=thin_model, **COMMON)


def _all_views(patch: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [np.rot90(mirrored, turns) for mirrored in (patch, patch[:, ::-1]) for turns in range(4)]


def _assert_same(heatmap: Heatmap, reference: Heatmap) -> None:
    assert heatmap.finished
    assert heatmap.uncertainty is not None
    assert reference.uncertainty is not None
    np.testing.assert_array_equal(heatmap.probability, reference.probability)
    np.testing.assert_array_equal(heatmap.uncertainty, reference.uncertainty)


def test_it_is_the_mean_of_eight_views(averaging: Predictor, patches: NDArray[np.uint8]) -> None:
    plain = Predictor(averaging.model, device="cpu", precision="fp32", batch_size=8)
    by_hand = np.array([plain.predict_patches(torch.from_numpy(np.stack(_all_views(patch)))) for patch in patches])
    assert by_hand.shape == (3, VIEWS)
    assert by_hand.std(1).min() > 1e-4, "or the views would say nothing"
    logits = averaging.predict_patches(torch.from_numpy(patches))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, by_hand.mean(1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.sort(averaging.predict_views(torch.from_numpy(patches))), np.sort(by_hand), rtol=0, atol=1e-6)


def test_a_turned_or_mirrored_patch_gets_the_same(averaging: Predictor, patches: NDArray[np.uint8]) -> None:
    views = torch.from_numpy(np.stack(_all_views(patches[0])))
    np.testing.assert_allclose(np.ptp(averaging.predict_patches(views)), 0, atol=1e-4)


def test_only_what_looks_alike_from_all_sides_is_certain(averaging: Predictor, patches: NDArray[np.uint8]) -> None:
    even = np.full((1, 96, 96, 3), (190, 120, 170), np.uint8)
    logits = averaging.predict_views(torch.from_numpy(np.concatenate([even, patches])))
    spread = spread_over_views(averaging.model.card.calibration.to_probability(logits))
    assert spread[0] == 0
    assert (spread[1:] > 1e-5).all()


@pytest.mark.parametrize("batch_size", [8, 20])
def test_neighbours_do_not_matter(batch_size: int, thin_model: Model, patches: NDArray[np.uint8]) -> None:
    """Multiples of four: a matrix library rounds the left-over rows of other batches in another way."""
    predictor = Predictor(thin_model, device="cpu", precision="fp32", batch_size=batch_size, tta=True)
    together = predictor.predict_views(torch.from_numpy(patches))
    alone = [predictor.predict_views(torch.from_numpy(patches[number : number + 1])) for number in range(len(patches))]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    assert predictor.predict_patches(torch.from_numpy(patches[:0])).shape == (0,)


@given(arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(8)), elements=st.floats(-8, 8, width=32)))
def test_mean_and_spread(values: NDArray[np.float32]) -> None:
    mean, spread = mean_over_views(values), spread_over_views(values)
    assert mean.dtype == spread.dtype == np.float32
    np.testing.assert_allclose(mean, values.astype(np.float64).mean(-1), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(spread, values.astype(np.float64).std(-1), rtol=1e-6, atol=1e-7)
    for place in np.ndindex(mean.shape):
        assert mean[place] == mean_over_views(values[place])
        assert spread[place] == spread_over_views(values[place])


def test_one_view_is_left_as_it_is() -> None:
    values = np.array([[0.1], [np.nan], [-7.3]], np.float32)
    np.testing.assert_array_equal(mean_over_views(values), values[:, 0])


def test_what_the_store_keeps(tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    """The probability of the mean logit, which the calibration leads back to, and the deviation of the probabilities."""
    calibration = Calibration(temperature=2.0, bias=-1.5)
    model = replace(thin_model, card=ModelCard(calibration=calibration))
    plain = scan_darkness(slide_file, tmp_path / "plain.zarr", model=model, tissue_mask="none")
    heatmap = scan_darkness(slide_file, tmp_path / "h.zarr", model=model, **COMMON)

    def logit_of(probability: NDArray[np.float32]) -> NDArray[np.float64]:
        p = probability.astype(np.float64)
        return np.asarray((np.log(p / (1 - p)) - calibration.bias) * calibration.temperature)

    logits = logit_of(plain.probability)[..., None] + np.arange(8)  # what the fake gives
    np.testing.assert_allclose(logit_of(heatmap.probability), logits.mean(-1), rtol=0, atol=1e-5)
    probabilities = 1 / (1 + np.exp(-(logits / calibration.temperature + calibration.bias)))
    assert np.abs(probabilities.mean(-1) - heatmap.probability).min() > 1e-3, "it is not the mean of probabilities"
    assert heatmap.uncertainty is not None
    np.testing.assert_allclose(heatmap.uncertainty, probabilities.std(-1), rtol=0, atol=1e-6)


def test_unknown_stays_unknown(tmp_path: Path, thin_model: Model) -> None:
    image = np.full((320, 384, 3), 244, np.uint8)
    image[:, :256] = texture(320, 256)
    slide = write_slide(tmp_path / "s.tif", image)
    heatmap = scan_darkness(slide, tmp_path / "h.zarr", model=thin_model, **(COMMON | {"tissue_mask": None}))
    assert heatmap.uncertainty is not None
    assert set(np.unique(heatmap.status)) == {Status.BACKGROUND, Status.SCANNED}
    np.testing.assert_array_equal(np.isfinite(heatmap.uncertainty), heatmap.status == Status.SCANNED)


def test_scan_gives_what_the_predictor_gives(tmp_path: Path, thin_model: Model, averaging: Predictor) -> None:
    patches = [texture(96, 96, seed) for seed in range(6)]
    slide = write_slide(tmp_path / "s.tif", np.vstack([np.hstack(patches[:3]), np.hstack(patches[3:])]))
    heatmap = scan(slide, tmp_path / "h.zarr", model=thin_model, stride_px=96, **COMMON)
    expected = averaging.model.card.calibration.to_probability(averaging.predict_patches(torch.from_numpy(np.stack(patches))))
    np.testing.assert_allclose(heatmap.probability.ravel(), expected, rtol=0, atol=1e-6)
    assert np.ptp(expected) > 1e-3, "or the comparison would say nothing"


def test_the_reference_is_not_flat(reference: Heatmap) -> None:
    assert reference.probability.shape == (3, 4)
    assert reference.uncertainty is not None
    assert np.unique(reference.probability).size == np.unique(reference.uncertainty).size == 12
    assert reference.uncertainty.min() > 0


@pytest.mark.parametrize(("block_px", "workers"), [(32, 1), (96, 3)])
def test_blocks_and_workers(
    block_px: int, workers: int, slide_file: Path, thin_model: Model, reference: Heatmap, tmp_path: Path
) -> None:
    settings = COMMON | {"block_px": block_px, "workers": workers}
    _assert_same(scan(slide_file, tmp_path / "h.zarr", model=thin_model, **settings), reference)


def test_resumed(
    slide_file: Path, thin_model: Model, reference: Heatmap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off between the values and the status of a block, a scan does that block again."""
    blocks_done: list[int] = []

    class Interrupted(Predictor):
        def predict_block(self, pieces: Any, wanted: Any, stride_px: int, report: Any = None) -> Any:
            if len(blocks_done) == 2:
                raise KeyboardInterrupt
            blocks_done.append(1)
            return super().predict_block(pieces, wanted, stride_px, report)

    settings = COMMON | {"model": thin_model, "block_px": 64}
    with pytest.raises(KeyboardInterrupt):
        scan_darkness(slide_file, tmp_path / "h.zarr", kind=Interrupted, scheduler="synchronous", **settings)
    half = Heatmap.open(tmp_path / "h.zarr")
    todo = half.open_blocks(half.status)
    assert len(todo) == 2
    for name in ("0", "uncertainty"):
        zarr.open_group(tmp_path / "h.zarr", mode="r+")[name][todo[0].cells] = 0.125  # type: ignore[index]
    _assert_same(scan(slide_file, tmp_path / "h.zarr", **settings), reference)


def test_an_unfinished_store_without_it_cannot_go_on_with_it(tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    settings = COMMON | {"model": thin_model}
    scan_darkness(slide_file, tmp_path / "h.zarr", **(settings | {"uncertainty": False}))
    with pytest.raises(OutputExistsError, match="holds another scan: uncertainty is False, now True; choose"):
        scan_darkness(slide_file, tmp_path / "h.zarr", **settings)
    scan_darkness(slide_file, tmp_path / "h.zarr", overwrite=True, **settings)
    assert Heatmap.open(tmp_path / "h.zarr").has_uncertainty


def test_uncertainty_needs_views(tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    with pytest.raises(ValueError, match="expected tta with it"):
        scan(slide_file, tmp_path / "h.zarr", model=thin_model, uncertainty=True)
    assert not (tmp_path / "h.zarr").exists()


def test_several_slides(tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    rows = scan_slides([slide_file], tmp_path / "all", model=thin_model, **COMMON)
    assert Heatmap.open(rows[0]["heatmap"]).has_uncertainty


@pytest.mark.parametrize("batch_size", [5, 20])
def test_the_bar_counts_cells(batch_size: int, tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    told: list[int] = []
    settings = COMMON | {"batch_size": batch_size, "stride_px": 64, "progress": lambda _slide, done, _total: told.append(done)}
    scan(slide_file, tmp_path / "h.zarr", model=thin_model, **settings)
    assert told[-1] == 4
    assert len(told) == -(-4 * VIEWS // batch_size), "after every forward pass"


# --- fewer views

FEW = (2, 4)


def test_each_choice_of_views_is_a_group_in_the_order_of_views() -> None:
    places = torch.arange(9).view(1, 3, 3)
    for number, views in AVERAGED.items():
        assert len(set(views)) == number
        assert list(views) == sorted(views)
        pictures = [turn(places, view) for view in views]
        assert all(
            any(torch.equal(turn(picture, view), other) for other in pictures) for picture in pictures for view in views
        ), "a view of a view is one of them"


@pytest.mark.parametrize(
    ("tta", "views"), [(False, 1), (True, 8), (1, 1), (2, 2), (4, 4), (8, 8), (np.True_, 8), (np.int64(2), 2)]
)
def test_how_many_views_are_meant(tta: bool | int, views: int) -> None:
    assert count_views(tta) == views


@pytest.mark.parametrize("tta", [0, 3, -2, 16, "4", 4.0, None])
def test_other_numbers_of_views_are_refused_before_the_work(
    tta: Any, tmp_path: Path, slide_file: Path, thin_model: Model
) -> None:
    with pytest.raises(OptionsError, match=r"^tta .*; expected 2, 4 or 8"):
        scan(slide_file, tmp_path / "h.zarr", model=thin_model, tta=tta)
    assert not (tmp_path / "h.zarr").exists()


@pytest.mark.parametrize("views", FEW)
def test_fewer_views_are_some_of_the_eight(
    views: int, averaging: Predictor, thin_model: Model, patches: NDArray[np.uint8]
) -> None:
    few = Predictor(thin_model, device="cpu", precision="fp32", batch_size=8, tta=views)
    all_of_them = averaging.predict_views(torch.from_numpy(patches))
    seen = few.predict_views(torch.from_numpy(patches))
    np.testing.assert_array_equal(seen, all_of_them[:, AVERAGED[views]])
    np.testing.assert_array_equal(few.predict_patches(torch.from_numpy(patches)), mean_over_views(seen))
    assert few.views == views


def test_fewer_views_of_a_block_in_dense_mode(thin_model: Model) -> None:
    side = 64 + 2 * DENSE_HALO_PX
    image, wanted = texture(side + 64, side + 32), np.ones((2, 1), bool)
    seen = {
        views: Predictor(thin_model, device="cpu", precision="fp32", dense=True, tta=views).predict_image(image, wanted, 32)
        for views in (*FEW, VIEWS)
    }
    for views in FEW:
        np.testing.assert_array_equal(seen[views], seen[VIEWS][..., AVERAGED[views]])
        assert seen[views].std(-1).min() > 1e-4, "or the views would say nothing"


def test_turned_by_one_of_its_views_a_patch_gets_the_same(thin_model: Model, patches: NDArray[np.uint8]) -> None:
    two = Predictor(thin_model, device="cpu", precision="fp32", batch_size=8, tta=2)
    as_it_is, half, quarter = (two.predict_patches(turn(torch.from_numpy(patches), view)) for view in (0, 2, 1))
    np.testing.assert_allclose(half, as_it_is, rtol=0, atol=1e-5)
    assert np.abs(quarter - as_it_is).min() > 1e-4


def test_a_scan_with_another_number_of_views_is_another_scan(
    tmp_path: Path, slide_file: Path, thin_model: Model, averaging: Predictor
) -> None:
    settings = COMMON | {"model": thin_model, "tta": 4}
    four = scan(slide_file, tmp_path / "h.zarr", **settings)
    assert (four.record.identity.views, four.record.identity.test_time_averaging) == (4, 4)
    before = four.probability
    for tta, told in ((2, "is 4, now 2"), (True, "is 4, now True"), (8, "is 4, now True")):
        with pytest.raises(OutputExistsError, match=f"holds another scan: test_time_averaging {told}; choose"):
            scan(slide_file, tmp_path / "h.zarr", **(settings | {"tta": tta}))
    np.testing.assert_array_equal(scan(slide_file, tmp_path / "h.zarr", **settings).probability, before)
    facts = info(tmp_path / "h.zarr")
    assert (facts["tta"], facts["views"]) == (4, 4)


@pytest.mark.parametrize("views", FEW)
def test_what_a_store_of_fewer_views_keeps(views: int, tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    plain = scan_darkness(slide_file, tmp_path / "plain.zarr", model=thin_model, tissue_mask="none").probability
    heatmap = scan_darkness(slide_file, tmp_path / "h.zarr", model=thin_model, **(COMMON | {"tta": views}))
    calibration = thin_model.card.calibration
    logits = (np.log(plain / (1 - plain)) - calibration.bias) * calibration.temperature
    each = calibration.to_probability(logits[..., None] + np.arange(views, dtype=np.float32))  # what the fake gives
    assert heatmap.uncertainty is not None
    np.testing.assert_allclose(heatmap.uncertainty, each.std(-1), rtol=0, atol=1e-5)
    mean = calibration.to_probability(logits + np.float32(views - 1) / 2)
    np.testing.assert_allclose(heatmap.probability, mean, rtol=0, atol=1e-5)


def test_a_store_says_of_one_view_and_of_eight_what_stores_always_said(reference: Heatmap) -> None:
    parts = reference.record.to_dict()
    assert parts["identity"]["test_time_averaging"] is True
    assert reference.record.identity.views == VIEWS
    parts["identity"]["test_time_averaging"] = False
    assert ScanRecord.from_dict(parts).identity.views == 1
    parts["identity"]["test_time_averaging"] = 3
    with pytest.raises(ValueError, match="tta 3"):
        ScanRecord.from_dict(parts)
    parts["identity"]["test_time_averaging"] = "4"
    with pytest.raises(TypeError, match="test_time_averaging is '4'"):
        ScanRecord.from_dict(parts)


def test_the_picture_of_uncertainty_says_of_how_many_views(tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    for tta, words in ((True, "over eight views"), (2, "over 2 views")):
        heatmap = scan_darkness(slide_file, tmp_path / f"{tta}.zarr", model=thin_model, **(COMMON | {"tta": tta}))
        with plt.rc_context({"svg.fonttype": "none"}):
            picture = draw_overlay(heatmap, tmp_path / f"{tta}.svg", layer="uncertainty", max_side=300)
        assert words in picture.read_text()
