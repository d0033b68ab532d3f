"""What can only be seen on a GPU. The same behaviours are tested on the CPU elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from slides import texture, write_slide

from wsi_meta.model import load_model
from wsi_meta.predictor import Predictor
from wsi_meta.scanning import scan
from wsi_meta.training.train import Recipe, train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.02), ("bf16", 0.1)])
def test_logits_agree_with_the_cpu(precision: str, tolerance: float, model_file: Path) -> None:
    """fp32 on CUDA multiplies in TF32 by torch's default."""
    patches = torch.stack([torch.from_numpy(texture(96, 96, seed)) for seed in range(20)])
    on_cpu = Predictor(load_model(model_file), device="cpu", precision="fp32", batch_size=8).predict_patches(patches)
    on_gpu = Predictor(load_model(model_file), device="cuda", precision=precision, batch_size=8).predict_patches(patches)
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0, atol=tolerance)


def test_scan_and_train_run(tmp_path: Path, model_file: Path, patch_folder: Path) -> None:
    slide = write_slide(tmp_path / "s.tif", texture(300, 300))
    heatmap = scan(slide, tmp_path / "h.zarr", model=model_file, device="cuda", tissue_mask="none")
    assert heatmap.finished
    assert np.isfinite(heatmap.probability).all()
    result = train(
        patch_folder, tmp_path / "m.safetensors", init="none", recipe=Recipe(epochs=1, batch_size=8), device="cuda", workers=0
    )
    assert 0 <= result.validation.auc <= 1
