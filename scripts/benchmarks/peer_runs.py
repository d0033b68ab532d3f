"""One slide, its tissue and the network as each tool takes them, and a run of each tool on them."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import peer_files
from large_slide import make_slide
from peer_files import PatchRun
from scipy.special import expit, logit
from stopwatch import Timing, time_command

from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.inference.device import resolve_device
from wsi_meta.models.model import load_model, model_path, save_model
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.tiling.tissue import TissueMask, find_tissue

__all__ = ["OURS", "Comparison", "Settings", "peer_python", "time_wsinfer"]

PACKAGES = {
    "tiatoolbox": ["tiatoolbox>=2.1"],
    "wsinfer": ["wsinfer==0.6.1", "zarr<3", "openslide-python", "openslide-bin"],
}
TISSUE_PX = 185_000_000
"""Of the full slide, at 0.972 um: a little more than a mean slide has, for 20,000 patches at stride 96."""
Cells = dict[tuple[int, int], float]
Command = list[str | Path]
OURS = {"auto": "wsi-meta", "int8": "wsi-meta --precision int8"}


@dataclass(frozen=True)
class Settings:
    """How a peer is run."""

    batch_size: int
    workers: int
    precision: str = "fp32"
    speedup: bool = False


class Comparison:
    """Slide, tissue and files that all tools are given, and a way to run each."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        mode, _, stride = arguments.case.partition(":")
        self.mode, self.stride_px = mode, int(stride)
        self.slide = make_slide(folder, arguments.size, patches=arguments.patches, tissue_px=TISSUE_PX, plain=True)
        self.model_file = model_path(arguments.model)
        self.model = load_model(self.model_file)
        if mode == "dense" and not self.model.card.dense:
            self.model_file = folder / "dense.safetensors"
            save_model(self.model_file, self.model.network.state_dict(), replace(self.model.card, dense=True))
        with open_slide(self.slide) as slide:
            self.tissue, preprocessing = find_tissue(slide), self.model.card.preprocessing
            self.grid = PatchGrid(
                slide.width, slide.height, slide.mpp, preprocessing.mpp, preprocessing.patch_px, self.stride_px
            )
        self.preprocessing = json.dumps(preprocessing.to_dict())
        self.results: dict[str, Cells] = {}

    def run_ours(self, precision: str) -> PatchRun:
        """Scan by the command line, which finds tissue itself. Keeps the probabilities from before calibration."""
        store, chosen = self.folder / "ours.zarr", self.arguments
        command: Command = [
            sys.executable,
            "-m",
            "wsi_meta",
            "scan",
            self.slide,
            "--out",
            store,
            "--overwrite",
            "--mode",
            self.mode,
        ]
        command += ["--stride", str(self.stride_px), "--model", self.model_file, "--device", chosen.device]
        command += ["--workers", str(chosen.workers), "--precision", precision]
        timing = time_command(command, env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(self.folder / "compiled")})
        heatmap = Heatmap.open(store)
        calibration, probability = self.model.card.calibration, heatmap.probability
        raw = expit((logit(probability.astype(float)) - calibration.bias) * calibration.temperature)
        rows, cols = np.nonzero(np.isfinite(probability))
        self.results[OURS[precision]] = {(int(i), int(j)): float(raw[i, j]) for i, j in zip(rows, cols, strict=True)}
        return PatchRun(len(rows), timing)

    def run_tiatoolbox(self, settings: Settings, tissue: TissueMask | None = None) -> PatchRun:
        """Run its PatchPredictor on the cells of our tissue, or of a part of it."""
        folder = self._emptied("tiatoolbox")
        peer_files.write_mask(folder / "mask.png", tissue or self.tissue)
        peer_files.write_tiatoolbox_inputs(folder, self.model)
        command: Command = [
            peer_python(self.arguments.envs, "tiatoolbox"),
            Path(__file__).with_name("peer_tiatoolbox.py"),
            self.slide,
        ]
        command += ["--mask", folder / "mask.png", "--weights", folder / "weights.pt", "--out", folder / "out"]
        command += ["--preprocessing", self.preprocessing, "--stride", str(self.stride_px), "--device", self._device()]
        command += ["--batch-size", str(settings.batch_size), "--workers", str(settings.workers)]
        timing = time_command([*command, "--precision", settings.precision])
        found = peer_files.read_tiatoolbox(folder / "out" / f"{self.slide.stem}.zarr", self.grid)
        self.results["TIAToolbox"] = found
        return PatchRun(len(found), timing)

    def run_wsinfer(self, settings: Settings) -> PatchRun:
        """Run its command on our patches; it does not search for them."""
        folder = self._emptied("wsinfer")
        peer_files.write_wsinfer_inputs(folder, self.model, self.grid, self.tissue.cells(self.grid), self.slide)
        program = peer_python(self.arguments.envs, "wsinfer").with_name("wsinfer")
        timing = time_wsinfer(program, folder, folder / "model.pt", folder / "config.json", settings, self._device())
        found = peer_files.read_wsinfer(folder, self.slide, self.grid)
        self.results["WSInfer"] = found
        return PatchRun(len(found), timing)

    def _emptied(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def _device(self) -> str:
        return resolve_device(self.arguments.device)


def time_wsinfer(program: Path, folder: Path, script: Path, config: Path, settings: Settings, device: str) -> Timing:
    """Run WSInfer's command with a model on the patches that :func:`peer_files.write_wsinfer_patches` wrote into a folder."""
    command: Command = [program, "--backend", "openslide", "run", "--config", config, "--model-path", script]
    command += ["--wsi-dir", folder / "slides", "--results-dir", folder / "results", "--batch-size", str(settings.batch_size)]
    command += ["--num-workers", str(settings.workers), "--speedup" if settings.speedup else "--no-speedup"]
    env = os.environ | {"HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    return time_command(command, env=env | {"WSINFER_FORCE_CPU": "1" if device == "cpu" else "0"})


def peer_python(envs: Path, tool: str) -> Path:
    """Return the Python of a tool's environment, made when it is not there."""
    place = envs / tool
    done = place / "installed"
    if not done.exists():
        print(f"making the environment of {tool} in {place}: several GB, some minutes", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        subprocess.run([place / "bin" / "pip", "install", *PACKAGES[tool]], check=True, stdout=subprocess.DEVNULL)
        done.touch()
    return place / "bin" / "python"
