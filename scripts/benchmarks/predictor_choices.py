"""How the predictor's choices change speed and result, on a canvas of real patches: bf16, int8, dense mode, halo.

    speed    cells/s of dense mode and patches/s of patch mode: float32, bf16, folded, compiled, int8; medians of turns
    compile  seconds to compile and run once, with a cold and a warm cache
    quality  dense against patch mode in float32, bf16 and int8 against float32: AUC and probability
    halo     how far a cell at a block's edge differs from the same cell inside a larger picture, for halos of 0 to 4 cells

    .venv/bin/python scripts/benchmarks/predictor_choices.py PATCHES [--model M] [--parts speed,halo] [--canvases 2]

PATCHES is a folder with the folders 0 and 1 of 96 px patches. The model need not allow dense mode.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from wsi_meta.inference.allocator import tuned_memory
from wsi_meta.inference.options import runs_in_bands
from wsi_meta.inference.predictor import DENSE_HALO_PX, Predictor
from wsi_meta.models.model import Model, load_model
from wsi_meta.models.resnet import cell_logits

PATCH_PX, CELL_PX = 96, 32
SIDE = 60
"""Cells along the side of a block."""
CANVAS = 20
"""Patches along the side of a canvas."""
BLOCK = 12
"""Cells along the side of a block whose edge is judged."""
Turn = tuple[Callable[[], None], int]
"""What is timed, and how many cells or patches it predicts."""
SPEED: dict[str, dict[str, Any]] = {
    "as loaded, fp32": {"loaded": True, "precision": "fp32"},
    "as loaded, bf16 autocast": {"loaded": True, "precision": "bf16"},
    "folded, fp32": {"precision": "fp32"},
    "folded, bf16": {"precision": "bf16"},
    "folded, bf16, compiled": {"precision": "bf16", "compiled": True},
    "int8": {"precision": "int8"},
}


def _canvases(folder: Path, count: int) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    """Lay patches of both classes side by side in random order: pictures of them, and all labels, row by row."""
    files = [path for label in "01" for path in (folder / label).iterdir()]
    chosen = np.random.default_rng(0).permutation(sorted(files))[: count * CANVAS**2].reshape(count, CANVAS, CANVAS)
    pictures = [np.vstack([np.hstack([_read(path) for path in row]) for row in part]) for part in chosen]
    return pictures, np.array([int(path.parent.name) for path in chosen.ravel()])


def _read(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def _measure_speed(model: Model, variant: str, seconds: float, *, dense: bool) -> float:
    """Return cells per second in dense mode, patches per second in patch mode."""
    settings = dict(SPEED[variant])
    if settings.pop("loaded", False):
        turn, count = _loaded_turn(model, settings["precision"], dense=dense)
    else:
        turn, count = _predictor_turn(Predictor(model, device="cpu", dense=dense, **settings), dense=dense)
    turn()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        turn()
        done += count
    return done / (time.perf_counter() - start)


def _loaded_turn(model: Model, precision: str, *, dense: bool) -> Turn:
    """Make a pass of the network as it was before it was made fast: channels-last, under autocast."""
    network = model.network.to(memory_format=torch.channels_last)
    side = (SIDE + 2 * (1 + DENSE_HALO_PX // CELL_PX)) * CELL_PX
    shape = (1, side, side, 3) if dense else (64, PATCH_PX, PATCH_PX, 3)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    def turn() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            inputs = model.card.preprocessing.to_input(images)
            cell_logits(network, inputs) if dense else network(inputs)

    return turn, SIDE**2 if dense else len(images)


def _predictor_turn(predictor: Predictor, *, dense: bool) -> Turn:
    """Make a pass of the predictor over a block."""
    stride, rows = (CELL_PX, SIDE) if dense else (PATCH_PX, 16)
    side = rows * stride + 2 * predictor.halo_px + PATCH_PX - stride
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    wanted = np.ones((rows, rows), bool)

    def turn() -> None:
        predictor.predict_image(image, wanted, stride)

    return turn, wanted.size


def _child(arguments: argparse.Namespace, variant: str, **environment: str) -> float:
    command = [sys.executable, __file__, str(arguments.patches_folder), "--model", arguments.model, "--variant", variant]
    command += ["--seconds", str(arguments.seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment)
    return float(done.stdout)


def _show_speed(arguments: argparse.Namespace) -> None:
    for kind, unit in (("dense", "cells/s"), ("patch", "patches/s")):
        rates: dict[str, list[float]] = {variant: [] for variant in SPEED}
        for _ in range(arguments.turns):
            for variant in SPEED:
                rates[variant].append(_child(arguments, f"{kind}: {variant}"))
        print(f"{kind:<28} {unit:>9}   ratio")
        first = statistics.median(next(iter(rates.values())))
        for variant, values in rates.items():
            print(f"  {variant:<26} {statistics.median(values):9.1f} {statistics.median(values) / first:7.2f}", flush=True)


def _show_compile(arguments: argparse.Namespace) -> None:
    for kind in ("dense", "patch"):
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (_child(arguments, f"{kind}: compile", TORCHINDUCTOR_CACHE_DIR=cache) for _ in range(2))
        print(f"compile {kind}: cold {cold:.1f} s, warm {warm:.1f} s", flush=True)


def _measure_variant(model: Model, name: str, seconds: float) -> float:
    kind, variant = name.split(": ")
    dense, settings = kind == "dense", SPEED.get(variant, {"compiled": True})
    in_bands = runs_in_bands("cpu", dense=dense, compiled=settings.get("compiled", False)) and "loaded" not in settings
    with tuned_memory(in_bands=in_bands):  # as the command line does for a scan
        if variant == "compile":
            return _compile_seconds(model, dense=dense)
        return _measure_speed(model, variant, seconds, dense=dense)


def _compile_seconds(model: Model, *, dense: bool) -> float:
    start = time.perf_counter()
    Predictor(model, device="cpu", precision="bf16", dense=dense, compiled=True)
    return time.perf_counter() - start


def _predict(model: Model, pictures: list[NDArray[np.uint8]], **settings: Any) -> NDArray[np.float32]:
    """Return the probability of the middle cell of each patch of the canvases."""
    predictor = Predictor(model, device="cpu", **settings)
    return np.concatenate([_of_canvas(predictor, picture) for picture in pictures])


def _of_canvas(predictor: Predictor, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    rows, cols = picture.shape[0] // PATCH_PX, picture.shape[1] // PATCH_PX
    if predictor.halo_px:
        halo = predictor.halo_px + CELL_PX
        padded = np.pad(picture, ((halo, halo), (halo, halo), (0, 0)), constant_values=255)
        logits = predictor.predict_image(padded, np.ones((rows * 3, cols * 3), bool), CELL_PX)[1::3, 1::3]
    else:
        logits = predictor.predict_image(picture, np.ones((rows, cols), bool), PATCH_PX)
    return predictor.model.card.calibration.to_probability(logits[..., 0]).ravel()


def _show_quality(model: Model, pictures: list[NDArray[np.uint8]], labels: NDArray[np.int64]) -> None:
    patch = _predict(model, pictures, precision="fp32")
    dense = _predict(model, pictures, precision="fp32", dense=True)
    _print_quality("dense against patch, fp32", dense, patch, labels)
    for mode, reference in (("patch", patch), ("dense", dense)):
        for precision, compiled in (("bf16", False), ("bf16", True), ("int8", False)):
            low = _predict(model, pictures, precision=precision, dense=mode == "dense", compiled=compiled)
            _print_quality(f"{mode}, {precision}{', compiled' * compiled} against fp32", low, reference, labels)


def _print_quality(name: str, one: NDArray[np.float32], reference: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    aucs = [roc_auc_score(labels, values) for values in (one, reference)]
    difference = np.abs(one - reference)
    print(
        f"{name:<36} AUC {aucs[0]:.4f} against {aucs[1]:.4f} ({aucs[0] - aucs[1]:+.5f}); probability differs by "
        f"{difference.max():.4f} at most, {difference.mean():.5f} on average; same decision "
        f"{((one >= 0.5) == (reference >= 0.5)).mean():.2%}",
        flush=True,
    )


def _show_halo(model: Model, picture: NDArray[np.uint8]) -> None:
    """Compare blocks from the middle of the canvas with the same cells predicted inside the whole canvas."""
    whole = np.pad(_inner_cells(_predictor_of_halo(model, 4), picture), 5, constant_values=np.nan)
    rim = np.ones((BLOCK, BLOCK), bool)
    rim[1:-1, 1:-1] = False
    starts = range(8, min(picture.shape[:2]) // CELL_PX - BLOCK - 8, BLOCK)
    for halo in range(5):
        predictor, edge, differences = _predictor_of_halo(model, halo), halo + 1, []
        for row, col in itertools.product(starts, repeat=2):
            y, x, length = (value * CELL_PX for value in (row - edge, col - edge, BLOCK + 2 * edge))
            apart = _inner_cells(predictor, picture[y : y + length, x : x + length])
            differences.append(np.abs(apart - whole[row : row + BLOCK, col : col + BLOCK]))
        stack = np.stack(differences)
        print(
            f"halo {halo}: {stack.max():.5f} at most, {stack.mean():.6f} on average; at the edge itself "
            f"{stack[:, rim].mean():.6f} on average ({stack.size} cells)",
            flush=True,
        )


def _predictor_of_halo(model: Model, halo: int) -> Predictor:
    """Make a dense predictor that sees `halo` cells beyond a block's patches."""
    with mock.patch("wsi_meta.inference.predictor.DENSE_HALO_PX", halo * CELL_PX):
        return Predictor(model, device="cpu", precision="fp32", dense=True)


def _inner_cells(predictor: Predictor, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the probability of all cells whose patch and halo lie in a picture."""
    rows, cols = ((side - 2 * predictor.halo_px) // CELL_PX - 2 for side in image.shape[:2])
    logits = predictor.predict_image(image, np.ones((rows, cols), bool), CELL_PX)
    return predictor.model.card.calibration.to_probability(logits[..., 0])


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patches_folder", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--parts", default="speed,compile,quality,halo")
    parser.add_argument("--canvases", type=int, default=2, help=f"of {CANVAS}x{CANVAS} patches each")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    if arguments.variant:
        print(_measure_variant(model, arguments.variant, arguments.seconds))
        return
    parts = arguments.parts.split(",")
    if "speed" in parts:
        _show_speed(arguments)
    if "compile" in parts:
        _show_compile(arguments)
    if {"quality", "halo"} & set(parts):
        pictures, labels = _canvases(arguments.patches_folder, arguments.canvases)
    if "quality" in parts:
        _show_quality(model, pictures, labels)
    if "halo" in parts:
        _show_halo(model, pictures[0])


if __name__ == "__main__":
    _main()
