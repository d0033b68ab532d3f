"""wsi-meta beside TIAToolbox and WSInfer: same slide, network, tissue and stride, in turns, from a process's start to its end.

Makes an environment for each tool in --envs (5 GB each, kept), writes a slide of Camelyon's size and what each tool needs,
runs the tools one after the other --turns times and prints medians and ratios. The others run at batches of 64 with one
worker unless told otherwise; --tune tries their settings, and docs/benchmarks.md says which a figure is of.

    .venv/bin/python scripts/benchmarks/peers.py --turns 3                    stride 96: half an hour on two cores
    .venv/bin/python scripts/benchmarks/peers.py --case dense:32 --part 0.1   TIAToolbox on a tenth of the slide
    .venv/bin/python scripts/benchmarks/peers.py --size 1/16 --turns 1        to see that everything works
    .venv/bin/python scripts/benchmarks/peers.py --size 1/16 --tune
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peer_files
from large_slide import FULL_SIZE, SIZES, assemble_tissue, draw_tissue, write_large_slide
from peer_files import PatchRun
from scipy.special import expit, logit
from stopwatch import time_command

from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.models.model import load_model, model_path, save_model
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.tiling.tissue import TissueMask, find_tissue

PACKAGES = {
    "tiatoolbox": ["tiatoolbox>=2.1"],
    "wsinfer": ["wsinfer==0.6.1", "zarr<3", "openslide-python", "openslide-bin"],
}
TISSUE_PX = 185_000_000
"""At 0.972 um: a little more than a mean slide's, for 20,000 patches at stride 96."""
LEAST_SHARE = 0.002
"""Of the tissue, for the run that tells a tool's start-up."""
Cells = dict[tuple[int, int], float]
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
        self.slide = _write_slide(arguments, folder)
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
        """Scan by the command line; tissue is found by itself. Keeps probabilities as they were before calibration."""
        store, chosen = self.folder / "ours.zarr", self.arguments
        command = [sys.executable, "-m", "wsi_meta", "scan", self.slide, "--out", store, "--overwrite", "--mode", self.mode]
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
        command = [_python(self.arguments, "tiatoolbox"), Path(__file__).with_name("peer_tiatoolbox.py"), self.slide]
        command += ["--mask", folder / "mask.png", "--weights", folder / "weights.pt", "--out", folder / "out"]
        command += ["--preprocessing", self.preprocessing, "--stride", str(self.stride_px), "--device", self._device()]
        command += ["--batch-size", str(settings.batch_size), "--workers", str(settings.workers)]
        timing = time_command([*command, "--precision", settings.precision])
        found = peer_files.read_tiatoolbox(folder / "out" / f"{self.slide.stem}.zarr", self.grid)
        self.results["TIAToolbox"] = found
        return PatchRun(len(found), timing)

    def run_wsinfer(self, settings: Settings) -> PatchRun:
        """Run its command on our patches; it need not find them."""
        folder = self._emptied("wsinfer")
        peer_files.write_wsinfer_inputs(folder, self.model, self.grid, self.tissue.cells(self.grid), self.slide)
        command = [_python(self.arguments, "wsinfer").with_name("wsinfer"), "--backend", "openslide", "run"]
        command += ["--wsi-dir", folder / "slides", "--results-dir", folder / "results", "--config", folder / "config.json"]
        command += ["--model-path", folder / "model.pt", "--batch-size", str(settings.batch_size)]
        command += ["--num-workers", str(settings.workers), "--speedup" if settings.speedup else "--no-speedup"]
        env = os.environ | {"HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
        timing = time_command(command, env=env | {"WSINFER_FORCE_CPU": "1" if self._device() == "cpu" else "0"})
        found = peer_files.read_wsinfer(folder, self.slide, self.grid)
        self.results["WSInfer"] = found
        return PatchRun(len(found), timing)

    def _emptied(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def _device(self) -> str:
        from wsi_meta.inference.device import resolve_device

        return resolve_device(self.arguments.device)


def _write_slide(arguments: argparse.Namespace, folder: Path) -> Path:
    divisor, kind = SIZES[arguments.size], "patches" if arguments.patches else "drawn"
    path = folder / f"peers-{kind}-{arguments.size.replace('/', '_')}.tif"
    if not path.exists():
        picture = assemble_tissue(arguments.patches) if arguments.patches else draw_tissue()
        width, height = (side // divisor for side in FULL_SIZE)
        write_large_slide(path, picture, width=width, height=height, tissue_px=TISSUE_PX // divisor**2)
    return path


def _python(arguments: argparse.Namespace, tool: str) -> Path:
    """Return the Python of a tool's environment, made when it is not there."""
    place: Path = arguments.envs / tool
    done = place / "installed"
    if not done.exists():
        _say(f"making the environment of {tool} in {place}: several GB, some minutes")
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        subprocess.run([place / "bin" / "pip", "install", *PACKAGES[tool]], check=True, stdout=subprocess.DEVNULL)
        done.touch()
    return place / "bin" / "python"


def _in_turns(comparison: Comparison, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all tools one after the other, several times, on the whole slide."""
    tools: dict[str, Callable[[], PatchRun]] = {
        "TIAToolbox": lambda: comparison.run_tiatoolbox(
            Settings(arguments.tia_batch, arguments.tia_workers, arguments.tia_precision)
        ),
        "WSInfer": lambda: comparison.run_wsinfer(
            Settings(arguments.wsinfer_batch, arguments.wsinfer_workers, speedup=arguments.wsinfer_speedup)
        ),
    }
    ours = {OURS[precision]: functools.partial(comparison.run_ours, precision) for precision in arguments.precisions}
    chosen = ours | {name: tools[name] for name in arguments.tools}
    runs: dict[str, list[PatchRun]] = {name: [] for name in chosen}
    for turn, (name, run) in itertools.product(range(arguments.turns), chosen.items()):
        runs[name].append(run())
        _say(f"turn {turn + 1}: {name} {runs[name][-1].timing.seconds:.1f} s, {runs[name][-1].cells:,} patches")
    seconds = {name: statistics.median(run.timing.seconds for run in those) for name, those in runs.items()}
    print(
        "| tool | patches | seconds, median (all) | patches/s | peak GB | "
        + " | ".join(f"{name} is faster by" for name in ours)
        + " |"
    )
    print("|---" * (5 + len(ours)) + "|")
    for name, those in runs.items():
        took, cells = seconds[name], those[0].cells
        alls = ", ".join(f"{run.timing.seconds:.1f}" for run in those)
        peak = max(run.timing.peak_bytes for run in those) / 1e9
        ratios = " | ".join(f"{took / seconds[mine]:.2f}" for mine in ours)
        print(f"| {name} | {cells:,} | {took:.1f} ({alls}) | {cells / took:.0f} | {peak:.2f} | {ratios} |")
    return {"seconds": {name: [run.timing.seconds for run in those] for name, those in runs.items()}}


def _dense(comparison: Comparison, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run ours on the whole slide, TIAToolbox on a part of it and on almost nothing of it, in turns."""
    settings = Settings(arguments.tia_batch, arguments.tia_workers, arguments.tia_precision)
    part, least = (peer_files.first_part(comparison.tissue, share) for share in (arguments.part, LEAST_SHARE))
    ours: dict[str, list[PatchRun]] = {precision: [] for precision in arguments.precisions}
    theirs = []
    for turn in range(arguments.turns):
        for precision, runs in ours.items():
            runs.append(comparison.run_ours(precision))
            _say(f"turn {turn + 1}: {OURS[precision]} {runs[-1].timing.seconds:.1f} s for {runs[-1].cells:,} cells")
        cells = next(iter(ours.values()))[-1].cells
        small, large = comparison.run_tiatoolbox(settings, least), comparison.run_tiatoolbox(settings, part)
        theirs.append(peer_files.whole_slide_seconds(large, small, cells))
        _say(
            f"turn {turn + 1}: TIAToolbox {small.timing.seconds:.1f} s for {small.cells:,} cells, "
            f"{large.timing.seconds:.1f} s for {large.cells:,}"
        )
    would = statistics.median(theirs)
    for precision, runs in ours.items():
        took = statistics.median(run.timing.seconds for run in runs)
        print(
            f"{OURS[precision]}: {took:.1f} s for {cells:,} cells at stride {comparison.stride_px}: {cells / took:.0f} cells/s "
            f"end to end; TIAToolbox would take {would:.0f} s ({cells / would:.0f} cells/s): faster by {would / took:.1f}; "
            f"peak {max(run.timing.peak_bytes for run in runs) / 1e9:.2f} GB"
        )
    return {"seconds": {name: [run.timing.seconds for run in runs] for name, runs in ours.items()}, "would": theirs}


def _tune(comparison: Comparison) -> None:
    """Try the peers' settings once each, one thing changed at a time; the first again at the end, for what chance does."""
    tools, usual = comparison.arguments.tools, Settings(64, 1)
    changes: list[dict[str, Any]] = [{}, {"batch_size": 32}, {"batch_size": 128}, {"workers": 0}, {"workers": 2}]
    for change in [*changes, {"precision": "bf16", "speedup": True}, {}]:
        settings = replace(usual, **change)
        if "TIAToolbox" in tools:
            told = f"batch {settings.batch_size}, workers {settings.workers}, {settings.precision}"
            print(f"TIAToolbox, {told}: {comparison.run_tiatoolbox(settings).timing.seconds:.1f} s", flush=True)
        if "WSInfer" in tools and settings.workers:  # it fails with none
            told = f"batch {settings.batch_size}, workers {settings.workers}{', speedup' * settings.speedup}"
            print(f"WSInfer, {told}: {comparison.run_wsinfer(settings).timing.seconds:.1f} s", flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, default=Path(tempfile.gettempdir(), "wsi-meta-peers"))
    parser.add_argument("--case", choices=("patch:96", "patch:32", "dense:32"), default="patch:96")
    parser.add_argument("--part", type=float, default=0.1, help="of the tissue that TIAToolbox scans at stride 32")
    parser.add_argument("--precisions", nargs="+", choices=OURS, default=list(OURS), help="of ours, a run each")
    parser.add_argument("--tools", nargs="*", choices=("TIAToolbox", "WSInfer"), default=["TIAToolbox", "WSInfer"])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--patches", type=Path, help="folder of real patches to make tissue of; else tissue is drawn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tune", action="store_true", help="try the other tools' settings instead")
    parser.add_argument("--folder", type=Path, help="keep slide and results there; by default they are deleted")
    parser.add_argument("--json", type=Path, help="write all times")
    parser.add_argument("--model", default="default")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tia-batch", type=int, default=64)
    parser.add_argument("--tia-workers", type=int, default=1)
    parser.add_argument("--tia-precision", choices=("fp32", "bf16"), default="fp32", help="it offers fp32; bf16 is ours to add")
    parser.add_argument("--wsinfer-batch", type=int, default=64)
    parser.add_argument("--wsinfer-workers", type=int, default=1)
    parser.add_argument("--wsinfer-speedup", action="store_true")
    return parser.parse_args()


def _main() -> None:
    arguments = _parse()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        comparison = Comparison(arguments, folder)
        if arguments.tune:
            _tune(comparison)
            return
        found = (_dense if comparison.mode == "dense" else _in_turns)(comparison, arguments)
        ours = comparison.results.pop(OURS[arguments.precisions[0]])
        for name, cells in comparison.results.items():
            found[name] = peer_files.compare(ours, cells)
            print(
                f"{name}, probabilities beside ours: " + ", ".join(f"{key} {value:.4g}" for key, value in found[name].items())
            )
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    _main()
