"""The network made fast: the same answers, and compiling by rule."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from slide_files import texture, write_slide
from tiny import Tiny

import wsi_meta.inference.fast_network
import wsi_meta.scanning.options
import wsi_meta.tiling.block_plan
from wsi_meta.errors import DeviceError, OptionsError, OutputExistsError
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.inference.fast_network import PATCHES_REPAY, FastNetwork, fold_batchnorm, worth_compiling
from wsi_meta.inference.predictor import DENSE_HALO_PX, Predictor
from wsi_meta.models.model import Model, ModelCard, load_model, save_model
from wsi_meta.scanning.scan import scan

IN_BF16: dict[str, Any] = {"device": "cpu", "precision": "bf16", "tissue_mask": "none", "mode": "patch"}


def tiny_model() -> Model:
    """A tiny dense network whose BatchNorm does something."""
    torch.manual_seed(0)
    network = Tiny().eval()
    network.bn1.get_buffer("running_mean").add_(0.3)
    network.bn1.get_buffer("running_var").mul_(2.5)
    network.bn1.weight.data *= 1.7
    network.fc.weight.data *= 8
    return Model(network, ModelCard(dense=True), "", Path())


@pytest.fixture
def tiny_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("wsi_meta.models.model.build_network", Tiny)
    save_model(tmp_path / "tiny.safetensors", tiny_model().network.state_dict(), ModelCard(dense=True))
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for the compiler: what would have been compiled runs as it is, and is counted."""
    made: list[str] = []

    def compile_network(network: FastNetwork, device: str, **_: int) -> FastNetwork:
        made.append(device)
        return network

    monkeypatch.setattr(wsi_meta.inference.fast_network, "compile_network", compile_network)
    return made


def test_folding_changes_nothing_but_rounding(model_file: Path) -> None:
    model = load_model(model_file)
    patches = torch.from_numpy(np.stack([texture(96, 96, seed) for seed in range(3)]))
    before = copy.deepcopy(model.network.state_dict())
    fast = FastNetwork(model, precision="fp32", dense=False)

    with torch.inference_mode():
        expected = model.network(model.card.preprocessing.to_input(patches))[:, 0]
        np.testing.assert_allclose(fast(patches), expected, rtol=0, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    after = model.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the model is left as it was"


def test_folding_is_seen_where_batchnorm_does_something() -> None:
    model = tiny_model()
    images = torch.rand(2, 3, 96, 96)
    folded = fold_batchnorm(copy.deepcopy(model.network))

    with torch.inference_mode():
        np.testing.assert_allclose(folded(images), model.network(images), rtol=0, atol=1e-5)
        assert not torch.allclose(folded.get_submodule("conv1")(images), model.network.get_submodule("conv1")(images), atol=0.1)


def test_bf16_keeps_both_ends_in_float32(model_file: Path) -> None:
    fast = FastNetwork(load_model(model_file), precision="bf16", dense=False)
    kinds = {name: parameter.dtype for name, parameter in fast.named_parameters()}
    ends = {name for name in kinds if name.startswith(("trunk.0.", "head."))}

    assert len(ends) == 4
    assert {kinds[name] for name in ends} == {torch.float32}
    assert {kinds[name] for name in set(kinds) - ends} == {torch.bfloat16}


def test_bf16_stays_near_float32() -> None:
    model, image = tiny_model(), texture(5 * 32 + 2 * (32 + DENSE_HALO_PX), 6 * 32 + 2 * (32 + DENSE_HALO_PX))
    wanted = np.ones((5, 6), bool)
    exact, rounded = (
        Predictor(model, device="cpu", precision=precision, dense=True).predict_image(image, wanted, 32)
        for precision in ("fp32", "bf16")
    )

    assert 0 < np.abs(exact - rounded).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("settings", [{}, {"dense": True}, {"tta": True}, {"dense": True, "tta": True}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_how_many_pieces_a_block_comes_does_not_matter(
    precision: str, settings: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsi_meta.tiling.block_plan, "BAND_PX", 0)
    predictor = Predictor(tiny_model(), device="cpu", precision=precision, batch_size=8, **settings)
    halo = 2 * (32 + predictor.halo_px)
    image, wanted = texture(9 * 32 + halo, 7 * 32 + halo), np.random.default_rng(0).random((9, 7)) < 0.7
    wanted[4] = False

    def predict(piece_px: int) -> tuple[int, NDArray[np.float32]]:
        monkeypatch.setattr(wsi_meta.tiling.block_plan, "PIECE_PX", piece_px)
        return len(predictor.pieces(wanted, 32)), predictor.predict_image(image, wanted, 32)

    (few, whole), (many, parts) = predict(10**9), predict(1)
    assert many > few or (predictor.halo_px and predictor.views > 1), "turned, an image is not seen from top to bottom"
    np.testing.assert_array_equal(parts, whole)
    assert np.array_equal(np.isnan(whole[..., 0]), ~wanted)


@pytest.mark.parametrize(
    ("device", "precision", "cells", "views", "dense", "worth"),
    [
        ("cpu", "bf16", 1000 * PATCHES_REPAY, 8, True, False),
        ("cpu", "bf16", PATCHES_REPAY // 8, 8, False, True),
        ("cpu", "bf16", PATCHES_REPAY, 1, False, True),
        ("cpu", "bf16", PATCHES_REPAY - 1, 1, False, False),
        ("cpu", "fp32", 10**7, 1, True, False),
        ("cuda", "bf16", 10**7, 1, True, False),
    ],
)
def test_the_rule_for_compiling(device: str, precision: str, cells: int, views: int, dense: bool, worth: bool) -> None:
    assert worth_compiling(device, precision, cells=cells, views=views, dense=dense) is worth


def test_a_scan_goes_on_as_it_was_begun(
    tiny_file: Path, tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, out = write_slide(tmp_path / "s.tif", texture(300, 300)), tmp_path / "h.zarr"
    settings: dict[str, Any] = {"model": tiny_file, **IN_BF16}
    monkeypatch.setattr(wsi_meta.inference.fast_network, "compiler_found", lambda _device="cpu": True)

    assert scan(slide, out, **settings).facts["identity"]["compiled"] is False
    assert compiled == []
    monkeypatch.setattr(wsi_meta.inference.fast_network, "PATCHES_REPAY", 100)
    assert scan(slide, out, **settings).facts["identity"]["compiled"] is False, "the rule does not overrule the store"
    with pytest.raises(OutputExistsError, match="compiled is False, now True"):
        scan(slide, out, compiled="yes", **settings)
    assert scan(slide, out, overwrite=True, **settings).facts["identity"]["compiled"] is True
    assert compiled == ["cpu"]
    assert scan(slide, out, **settings).finished
    assert compiled == ["cpu"], "a finished scan needs no network"
    with pytest.raises(OutputExistsError, match="compiled is True, now False"):
        scan(slide, out, compiled="no", **settings)


def test_without_a_compiler(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = write_slide(tmp_path / "s.tif", texture(300, 300))
    settings: dict[str, Any] = {"model": tiny_file, **IN_BF16}
    monkeypatch.setattr(wsi_meta.inference.fast_network, "PATCHES_REPAY", 100)
    monkeypatch.setattr(wsi_meta.inference.fast_network, "compiler_found", lambda _device="cpu": False)

    heatmap = scan(slide, tmp_path / "h.zarr", progress=True, **settings)

    assert heatmap.facts["identity"]["compiled"] is False
    assert capsys.readouterr().err.count("no C++ compiler") == 1
    with pytest.raises(DeviceError, match="found no compiler"):
        scan(slide, tmp_path / "other.zarr", compiled="yes", **settings)
    assert not Heatmap.open(tmp_path / "other.zarr").finished
    with pytest.raises(OptionsError, match="expected one of"):
        scan(slide, tmp_path / "h.zarr", compiled="perhaps", **settings)


@pytest.mark.skipif(not wsi_meta.inference.fast_network.compiler_found(), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_blocks_do_not_depend_on_order_or_threads() -> None:
    """The real compiler on a tiny network: blocks of several shapes, one after the other and by three threads at once."""
    model, margin = tiny_model(), 2 * (32 + DENSE_HALO_PX)
    shapes = [(4, 4), (3, 5), (5, 2), (1, 1), (4, 4)]
    images = [texture(32 * rows + margin, 32 * cols + margin, seed) for seed, (rows, cols) in enumerate(shapes)]
    settings: dict[str, Any] = {"device": "cpu", "precision": "bf16", "dense": True}
    compiled, eager = Predictor(model, compiled=True, **settings), Predictor(model, **settings)

    def predict(number: int, predictor: Predictor = compiled) -> NDArray[np.float32]:
        return predictor.predict_image(images[number], np.ones(shapes[number], bool), 32)

    one = [predict(number) for number in range(len(shapes))]
    with ThreadPoolExecutor(3) as pool:
        many = list(pool.map(predict, reversed(range(len(shapes)))))[::-1]
    for number, logits in enumerate(one):
        np.testing.assert_array_equal(many[number], logits)
        np.testing.assert_allclose(logits, predict(number, eager), rtol=0.02, atol=0.02)
    assert np.ptp(one[0]) > 0.05
