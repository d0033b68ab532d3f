"""What can only be seen on a GPU. The same behaviours are tested on the CPU elsewhere."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from slide_files import texture, write_slide

from wsi_meta.inference.predictor import DENSE_HALO_PX, Predictor
from wsi_meta.models.model import load_model
from wsi_meta.scanning.scan import scan
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
