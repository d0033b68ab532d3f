"""A model as ONNX: pixels in, calibrated logits and probability out; what it is in its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.files.process_settings import Silence, no_warnings

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from wsi_meta.models.model import Model

__all__ = ["run_onnx", "write_onnx"]

OPSET = 18
_silence = Silence("torch.onnx._internal.exporter._registration")
"""For a logger that tells of a missing torchvision, which nothing here needs."""
INPUT, OUTPUTS = "pixels", ["logits", "probability"]


def write_onnx(path: Path, network: nn.Module, model: Model) -> None:
    """Write a network of two logits as ONNX, for any number of patches.

    Parameters
    ----------
    path : file to write
    network : takes model input, gives two logits, as :func:`wsi_meta.exchange.exporting.calibrated_network` returns it
    model : whose card its metadata hold
    """
    import onnx
    import torch

    side = model.card.preprocessing.patch_px
    pixels = torch.zeros((2, side, side, 3), dtype=torch.uint8)
    with torch.no_grad(), no_warnings(), _silence.held():  # of what the exporter itself will change one day
        program: Any = torch.onnx.export(
            pixels_network(network, model),
            (pixels,),
            input_names=[INPUT],
            output_names=OUTPUTS,
            opset_version=OPSET,
            dynamic_shapes={"pixels": {0: torch.export.Dim("n", min=1)}},
            dynamo=True,
            verbose=False,
        )
    made = program.model_proto
    onnx.helper.set_model_props(made, _metadata(model))
    onnx.checker.check_model(made)
    onnx.save(made, str(path))


def run_onnx(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the logits (n, 2) that onnxruntime computes from a file for patches (n, patch_px, patch_px, 3), on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(OUTPUTS[:1], {INPUT: pixels})[0], np.float32)


def pixels_network(network: nn.Module, model: Model) -> nn.Module:
    """Return a network that takes pixels, uint8 (n, patch_px, patch_px, 3), and gives logits (n, 2) and probability (n,)."""
    import torch
    from torch import nn

    shown = model.card.preprocessing

    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.network(shown.to_input(pixels))
            return logits, logits.softmax(1)[:, 1]

    return Pixels().eval()


def _metadata(model: Model) -> dict[str, str]:
    """Return what another program must know, as texts; the whole card as JSON under ``wsi_meta``."""
    shown, calibration = model.card.preprocessing, model.card.calibration
    return {
        "mpp": repr(shown.mpp),
        "patch_px": str(shown.patch_px),
        "label_px": str(shown.label_px),
        "preprocessing": json.dumps(shown.to_dict()),
        "calibration": json.dumps({"temperature": calibration.temperature, "bias": calibration.bias}),
        "sha256": model.hash,
        "wsi_meta": json.dumps(model.card.to_dict()),
    }
