"""TIAToolbox's part of peers.py, which starts this in an environment with TIAToolbox and without wsi-meta.

PatchPredictor over one slide, with the given mask and preprocessing; writes a zarr store of probabilities.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig
from tiatoolbox.models.engine.patch_predictor import PatchPredictor
from tiatoolbox.models.models_abc import ModelABC
from torchvision.models import resnet50


class Classifier(ModelABC):  # type: ignore[misc]  # not installed where types are checked
    """ResNet50 with one logit, as TIAToolbox wants it: probabilities of both classes."""

    def __init__(self, weights: str, mean: list[float], std: list[float], precision: str) -> None:
        super().__init__()
        network = resnet50(weights=None, num_classes=1)
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.network = network.to(memory_format=torch.channels_last)
        self.precision = precision
        self.register_buffer("mean", torch.tensor(mean)[:, None, None] * 255)
        self.register_buffer("scale", 1 / (torch.tensor(std)[:, None, None] * 255))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inputs = (images.permute(0, 3, 1, 2).float() - self.mean) * self.scale
        probability = torch.sigmoid(self.network(inputs.contiguous(memory_format=torch.channels_last)).float())
        return torch.cat([1 - probability, probability], 1)

    @staticmethod
    def infer_batch(model: torch.nn.Module, batch_data: torch.Tensor, *, device: str) -> NDArray[np.float32]:
        bf16 = model.precision == "bf16"
        with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            probabilities: NDArray[np.float32] = model.eval()(batch_data.to(device)).cpu().numpy()
        return probabilities

    @staticmethod
    def postproc(probabilities: NDArray[np.float32]) -> NDArray[np.intp]:
        classes: NDArray[np.intp] = probabilities.argmax(-1)
        return classes


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--mask", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--preprocessing", type=json.loads, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stride", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    return parser.parse_args()


def _main() -> None:
    arguments = _parse()
    chosen, side = arguments.preprocessing, arguments.preprocessing["patch_px"]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = Classifier(arguments.weights, chosen["mean"], chosen["std"], arguments.precision)
    predictor = PatchPredictor(
        model, batch_size=arguments.batch_size, num_workers=arguments.workers, device=arguments.device, verbose=False
    )
    resolution = [{"units": "mpp", "resolution": chosen["mpp"]}]
    predictor.run(
        [arguments.slide],
        masks=[arguments.mask],
        ioconfig=IOPatchPredictorConfig(
            input_resolutions=resolution,
            output_resolutions=resolution,
            patch_input_shape=(side, side),
            stride_shape=(arguments.stride, arguments.stride),
        ),
        patch_mode=False,
        save_dir=arguments.out,
        output_type="zarr",
        return_probabilities=True,
        device=arguments.device,
        batch_size=arguments.batch_size,
        num_workers=arguments.workers,
    )


if __name__ == "__main__":
    _main()
