"""The network made fast: the same answers, and compiling by rule."""

from __future__ import annotations

import copy
import os
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from slide_files import texture
from tiny import Tiny

from wsi_meta.errors import DataError, DeviceError, OptionsError
from wsi_meta.inference.fast_network import FastNetwork, fold_batchnorm
from wsi_meta.inference.options import PATCHES_REPAY, InferencePlan, compiler_found, rows_of_pass, worth_compiling
from wsi_meta.inference.passes import FewShapes
from wsi_meta.inference.predictor import DENSE_HALO_PX, Predictor, PredictorParts
from wsi_meta.models.card import ModelCard
from wsi_meta.models.dihedral import VIEWS
from wsi_meta.models.model import Model, load_model
from wsi_meta.tiling.block_plan import PieceSizes


def tiny_model() -> Model:
    """A tiny dense network whose BatchNorm does something."""
    torch.manual_seed(0)
    network = Tiny().eval()
    network.bn1.get_buffer("running_mean").add_(0.3)
    network.bn1.get_buffer("running_var").mul_(2.5)
    network.bn1.weight.data *= 1.7
    network.fc.weight.data *= 8
    return Model(network, ModelCard(dense=True), "", Path())


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
def test_in_how_many_pieces_a_block_comes_does_not_matter(precision: str, settings: dict[str, bool]) -> None:
    dense, tta = settings.get("dense", False), settings.get("tta", False)
    wanted = np.random.default_rng(0).random((9, 7)) < 0.7
    wanted[4] = False

    def predict(piece_px: int) -> tuple[int, NDArray[np.float32]]:
        parts = PredictorParts(sizes=PieceSizes(piece_px, band_px=0))
        predictor = Predictor.from_plan(
            tiny_model(), InferencePlan("cpu", precision, 8, VIEWS if tta else 1), dense=dense, parts=parts
        )
        halo = 2 * (32 + predictor.halo_px)
        image = texture(9 * 32 + halo, 7 * 32 + halo)
        return len(predictor.pieces(wanted, 32)), predictor.predict_image(image, wanted, 32)

    (few, whole), (many, parts) = predict(10**9), predict(1)
    assert many > few or (dense and tta), "turned, an image is not seen from top to bottom"
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


@pytest.mark.parametrize(("cells", "worth"), [(99, False), (100, True)])
def test_the_rule_for_compiling_takes_another_number(cells: int, worth: bool) -> None:
    assert worth_compiling("cpu", "bf16", cells=cells, views=1, dense=False, patches_repay=100) is worth


@pytest.mark.parametrize(("dense", "batch_size", "rows"), [(False, 5, 8), (True, 8, 8)])
def test_a_compiled_predictor_runs_what_the_compiler_made(dense: bool, batch_size: int, rows: int) -> None:
    asked: list[dict[str, object]] = []

    def compiler(network: FastNetwork, device: str, **shape: int) -> Callable[[torch.Tensor], torch.Tensor]:
        asked.append({"device": device, **shape})
        return lambda images: network(images) + 7

    parts, plan = PredictorParts(compiler=compiler), InferencePlan("cpu", "fp32", batch_size, views=1)
    plain, compiled = (
        Predictor.from_plan(tiny_model(), plan, dense=dense, compiled=value, parts=parts) for value in (False, True)
    )
    side = 2 * 32 + 2 * (32 + plain.halo_px)
    image, wanted = texture(side, side), np.ones((2, 2), bool)

    assert asked == [{"device": "cpu", "patch_px": 96, "rows": rows}], "once, for the one that is compiled"
    assert (plain.compiled, compiled.compiled) == (False, True)
    np.testing.assert_allclose(
        compiled.predict_image(image, wanted, 32), plain.predict_image(image, wanted, 32) + 7, rtol=0, atol=1e-5
    )


def test_where_no_compiler_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, sys.executable)
    assert compiler_found("cpu")
    assert compiler_found("cuda")
    monkeypatch.delenv("CC")
    assert not compiler_found("cuda")
    assert compiler_found("cpu")
    monkeypatch.delenv("CXX")
    with pytest.raises(DeviceError, match="compiled: found no compiler; expected c\\+\\+, g\\+\\+ or clang\\+\\+"):
        Predictor(tiny_model(), device="cpu", precision="bf16", compiled=True)


def test_the_plan_is_what_the_options_became() -> None:
    predictor = Predictor(tiny_model(), device="cpu:0", precision="fp32", batch_size=6, tta=True, dense=True)

    assert predictor.plan == InferencePlan("cpu", "fp32", 6, VIEWS)
    assert (predictor.device, predictor.precision, predictor.batch_size, predictor.views) == ("cpu", "fp32", 6, VIEWS)
    assert (predictor.halo_px, predictor.compiled) == (DENSE_HALO_PX, False)
    with pytest.raises(OptionsError, match="batch size 0"):
        Predictor(tiny_model(), device="cpu", batch_size=0)


@pytest.mark.parametrize("settings", [{"dense": True}, {"batch_size": 4}, {"tta": True, "batch_size": 16}])
def test_a_predictor_leaves_its_process_alone(settings: dict[str, Any]) -> None:
    environment, state = dict(os.environ), torch.get_rng_state()
    Predictor(tiny_model(), device="cpu", precision="fp32", **settings)

    assert dict(os.environ) == environment
    assert torch.equal(torch.get_rng_state(), state)


def _small_gpu(rows: int, batch_size: int, *, dense: bool = False) -> tuple[Predictor, list[int]]:
    """A predictor whose device has memory for so many rows, and the rows of its passes."""
    seen: list[int] = []

    def compiler(network: FastNetwork, *_: object, **__: object) -> Callable[[torch.Tensor], torch.Tensor]:
        def passing(images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images))
            if len(images) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")
            result: torch.Tensor = network(images)
            return result

        return passing

    plan = InferencePlan("cpu", "fp32", batch_size, views=1)
    return Predictor.from_plan(tiny_model(), plan, dense=dense, compiled=True, parts=PredictorParts(compiler=compiler)), seen


@pytest.mark.parametrize(
    ("rows", "batch_size", "passes"), [(8, 16, [16, 8, 8, 8, 8]), (8, 12, [12, 8, 8, 8, 8]), (16, 16, [16, 16])]
)
def test_where_memory_does_not_suffice_batches_are_halved(
    rows: int, batch_size: int, passes: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    patches = texture(96 * 20, 96).reshape(20, 96, 96, 3)  # an array, as a slide's reader gives
    whole = Predictor.from_plan(tiny_model(), InferencePlan("cpu", "fp32", batch_size, views=1)).predict_patches(patches)
    predictor, seen = _small_gpu(rows, batch_size)
    for _ in range(2):
        np.testing.assert_allclose(predictor.predict_patches(torch.from_numpy(patches)), whole, rtol=0, atol=1e-5)
    assert seen[: len(passes)] == passes
    assert seen.count(batch_size) == (1 if rows < batch_size else 4), "it is not tried again"
    assert len(caplog.messages) == (rows < batch_size)
    assert all("computed as two of 8" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("batch_size", "dense", "told"),
    [
        (16, False, "for batches of 8 .*or lower --workers"),
        (4, False, "for batches of 4 "),
        (16, True, "for a picture of .*--mode patch"),
    ],
)
def test_where_memory_does_not_suffice_for_half_a_batch(batch_size: int, dense: bool, told: str) -> None:
    predictor, _ = _small_gpu(0, batch_size, dense=dense)
    side = 2 * 32 + 2 * (32 + predictor.halo_px)
    with pytest.raises(DeviceError, match=told) as failure:
        predictor.predict_image(texture(side, side), np.ones((2, 2), bool), 32)
    assert "\n" not in str(failure.value)


PIXELS = texture(96 * 3, 96).reshape(3, 96, 96, 3)


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (PIXELS[:, :64, :64], r"uint8 of shape \(3, 64, 64, 3\)"),
        (PIXELS.repeat(2, 1).repeat(2, 2), r"uint8 of shape \(3, 192, 192, 3\)"),
        (PIXELS[0], r"uint8 of shape \(96, 96, 3\)"),
        (PIXELS.transpose(0, 3, 1, 2), r"uint8 of shape \(3, 3, 96, 96\)"),
        (PIXELS / np.float32(255), r"float32 of shape \(3, 96, 96, 3\)"),
        (torch.from_numpy(PIXELS).long(), r"int64 of shape \(3, 96, 96, 3\)"),
    ],
)
def test_patches_that_the_network_was_not_trained_with_are_refused(pixels: Any, found: str) -> None:
    predictor = Predictor(tiny_model(), device="cpu", precision="fp32")
    with pytest.raises(DataError, match=rf"patches: {found}; expected uint8 of shape \(n, 96, 96, 3\), RGB"):
        predictor.predict_patches(pixels)


def test_pixels_count_however_an_array_holds_them() -> None:
    predictor = Predictor(tiny_model(), device="cpu", precision="fp32")
    expected = predictor.predict_patches(PIXELS)
    fixed = PIXELS.copy()
    fixed.flags.writeable = False
    with warnings.catch_warnings(action="error"):
        held: Any
        for held in (PIXELS[..., ::-1].copy()[..., ::-1], np.asfortranarray(PIXELS), fixed, list(PIXELS)):
            np.testing.assert_array_equal(predictor.predict_patches(held), expected)


def test_what_is_read_only_is_never_copied_whole() -> None:
    """It may be mapped from a file that memory does not hold."""
    predictor = Predictor(tiny_model(), device="cpu", precision="fp32", batch_size=8)
    many = np.broadcast_to(PIXELS[0], (80, *PIXELS.shape[1:]))
    tracemalloc.start()
    try:
        assert np.ptp(predictor.predict_patches(many)) == 0
        assert tracemalloc.get_traced_memory()[1] < many.nbytes / 2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dense", [False, True])
def test_images_and_cells_that_do_not_fit_are_refused(dense: bool) -> None:
    predictor = Predictor(tiny_model(), device="cpu", precision="fp32", dense=dense)
    side, wanted = 2 * 32 + 64 + 2 * predictor.halo_px, np.ones((2, 2), bool)
    image = texture(side + 32, side + 32)
    with pytest.raises(DataError, match=rf"image: uint8 of shape .*expected uint8 of shape \({side}, {side}, 3\)"):
        predictor.predict_image(image, wanted, 32)
    with pytest.raises(DataError, match="piece: uint8 of shape"):
        predictor.predict_block([image], wanted, 32)
    corners = np.zeros((1, 40) if dense else (100, 100), bool)
    corners[0, 0] = corners[-1, -1] = True
    (rows, cols), *_ = predictor.pieces(corners, 32)
    first = np.zeros((rows.stop - rows.start, cols.stop - cols.start, 3), np.uint8)
    with pytest.raises(DataError, match=r"pieces: 1; expected 2, as .* lists them"):  # its logit was every cell's
        predictor.predict_block([first], corners, 32)
    with pytest.raises(OptionsError, match=r"wanted: int64 of shape .*expected bool"):
        predictor.predict_image(image[:side, :side], wanted.astype(int), 32)
    if dense:
        with pytest.raises(OptionsError, match="stride_px 64; expected 32"):
            predictor.predict_image(image, wanted, 64)


def test_images_that_are_filled_up_have_few_shapes_and_keep_their_cells() -> None:
    seen: list[tuple[int, ...]] = []

    def passing(images: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(images.shape))
        return torch.nn.functional.avg_pool2d(images.float().mean(3)[:, None], 96, stride=32)[:, 0]

    shapes = [(96, 128), (1088, 96), (1120, 1088), (2112, 1152)]
    for number, (height, width) in enumerate(shapes):
        image = torch.randint(256, (1, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        torch.testing.assert_close(FewShapes(passing)(image), passing(image), rtol=0, atol=1e-3)
    assert seen[::2] == [(1, 1088, 1088, 3), (1, 1088, 1088, 3), (1, 2112, 1088, 3), (1, 2112, 2112, 3)]


def test_cells_of_a_filled_image_are_those_of_the_image() -> None:
    model = load_model("default")
    network = FastNetwork(model, precision="fp32", dense=True)
    image = torch.from_numpy(texture(2 * DENSE_HALO_PX + 160, 2 * DENSE_HALO_PX + 96))[None]
    halo = DENSE_HALO_PX // 32
    with torch.inference_mode():
        filled, whole = (seen(image)[:, halo:-halo, halo:-halo] for seen in (FewShapes(network), network))
    assert whole.shape == (1, 3, 1)
    torch.testing.assert_close(filled, whole, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("device", "rows"), [("cpu", 17), ("cuda", 256), ("cuda:1", 256)])
def test_only_on_a_cpu_passes_are_as_large_as_was_asked(device: str, rows: int) -> None:
    assert rows_of_pass(device, 17) == rows


@pytest.mark.skipif(not compiler_found(), reason="no C++ compiler")
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
