"""Test-time averaging: the mean over a patch's eight views, and their spread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

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

from wsi_meta.errors import OutputExistsError
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.card import Calibration, ModelCard
from wsi_meta.models.dihedral import VIEWS, mean_over_views, spread_over_views
from wsi_meta.models.model import Model
from wsi_meta.scanning.batch import scan_slides
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
    image = np.full((640, 768, 3), 244, np.uint8)
    image[:, :512] = texture(640, 512)
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
