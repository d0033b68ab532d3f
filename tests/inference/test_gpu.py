"""What can only be seen on a GPU. The same behaviours are tested on the CPU elsewhere."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from slide_files import texture, write_slide

from wsi_meta.inference.predictor import DENSE_HALO_PX, Predictor
from wsi_meta.models.model import build_network, load_model
from wsi_meta.scanning.scan import scan
from wsi_meta.training.distributed import joined_processes
from wsi_meta.training.initial_weights import build_seeded, initialise
from wsi_meta.training.learner import PatchLogits, make_learner
from wsi_meta.training.train import Recipe, train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.002), ("bf16", 0.1)])
def test_logits_agree_with_the_cpu(precision: str, tolerance: float, model_file: Path) -> None:
    patches = torch.stack([torch.from_numpy(texture(96, 96, seed)) for seed in range(20)])
    on_cpu = Predictor(load_model(model_file), device="cpu", precision="fp32", batch_size=8).predict_patches(patches)
    on_gpu = Predictor(load_model(model_file), device="cuda", precision=precision, batch_size=8).predict_patches(patches)
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_that_share_a_gpu_get_what_one_alone_gets(precision: str, model_file: Path) -> None:
    predictor = Predictor(load_model(model_file), device="cuda", precision=precision, batch_size=8)
    blocks = [torch.stack([torch.from_numpy(texture(96, 96, 100 * block + seed)) for seed in range(12)]) for block in range(8)]
    alone = [predictor.predict_patches(patches) for patches in blocks]

    with ThreadPoolExecutor(3) as pool:
        np.testing.assert_array_equal(list(pool.map(predictor.predict_patches, blocks)), alone)


def test_scan_and_train_run(tmp_path: Path, model_file: Path, patch_folder: Path) -> None:
    slide = write_slide(tmp_path / "s.tif", texture(300, 300))
    heatmap = scan(slide, tmp_path / "h.zarr", model=model_file, device="cuda", tissue_mask="none")
    assert heatmap.finished
    assert np.isfinite(heatmap.probability).all()
    result = train(
        patch_folder, tmp_path / "m.safetensors", init="none", recipe=Recipe(epochs=1, batch_size=8), device="cuda", workers=0
    )
    assert 0 <= result.validation.auc <= 1


def test_training_steps_in_bf16_follow_those_in_fp32(tmp_path: Path, patch_folder: Path) -> None:
    """The same order, augmentation and mosaics on the GPU: the loss of an epoch differs by rounding only."""
    losses = []
    for precision in ("fp32", "bf16"):
        recipe = Recipe(epochs=1, batch_size=16)
        result = train(
            patch_folder, tmp_path / f"{precision}.safetensors", init="none", recipe=recipe, device="cuda", precision=precision
        )
        losses.append(float(result.history.read_text().splitlines()[1].split(",")[3]))
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_dense_mode_agrees_with_the_cpu(model_file: Path) -> None:
    model = load_model(model_file)
    side = 5 * 32 + 2 * (32 + DENSE_HALO_PX)
    image, wanted = texture(side, side), np.ones((5, 5), bool)
    on_cpu = Predictor(model, device="cpu", precision="fp32", dense=True).predict_image(image, wanted, 32)
    on_gpu = Predictor(load_model(model_file), device="cuda", precision="fp32", dense=True).predict_image(image, wanted, 32)
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0, atol=0.002)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_steps_are_those_that_are_made_one_kernel_at_a_time(precision: str) -> None:
    """Losses and BatchNorm's statistics, on single patches and on mosaics in turn."""
    patches = torch.stack([torch.from_numpy(texture(96, 96, seed)) for seed in range(32)])
    labels, recipe = torch.arange(32) % 2, Recipe(epochs=1, batch_size=32, consistency=0.5)
    told = []
    for recorded in (True, False):
        with joined_processes("cuda") as processes:
            start = initialise(build_seeded(build_network, 0), "none")
            learner = make_learner(start, recipe, 8, processes, precision)
            learner.enter(1)
            if not recorded:
                learner.forward = PatchLogits(learner.network)
            generator = torch.Generator("cuda").manual_seed(0)
            losses = [float(learner.step(patches, labels, generator, 4 if step % 2 else 1)) for step in range(6)]
            told.append([*losses, float(learner.network.get_buffer("bn1.running_mean").norm())])
            assert int(learner.network.get_buffer("bn1.num_batches_tracked")) == 3 + 3 * 2
    assert told[0] == pytest.approx(told[1], rel=0.01)


def test_maps_on_a_gpu_do_not_depend_on_the_batch_size(tmp_path: Path, model_file: Path) -> None:
    slide = write_slide(tmp_path / "s.tif", texture(700, 700))
    maps = [
        scan(
            slide, tmp_path / f"{size}.zarr", model=model_file, mode="patch", device="cuda", batch_size=size, tissue_mask="none"
        )
        for size in (17, 64, 200)
    ]
    for other in maps[1:]:
        np.testing.assert_array_equal(other.probability, maps[0].probability)
