"""WSInfer's own package runs a model that we exported: its probabilities beside those of our patch mode, on the same patches.

Exports the model by the command line, writes one picture of tissue as three slides (with pixels a quarter as wide as the
model's, half as wide, and as wide), scans each by both, and prints how far the probabilities are apart. WSInfer reads level 0
and shrinks it by Pillow's bicubic filter; we average areas, or take a pyramid level that fits. So what differs on the last
slide is the network, on the others the filter.

    .venv/bin/python scripts/benchmarks/wsinfer_runs_our_model.py --patches pcam/patches/valid     two minutes on two cores
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import peer_files
from peer_runs import Settings, peer_python, time_wsinfer
from tissue_pictures import MODEL_DOWNSAMPLE, assemble_tissue, draw_tissue

from wsi_meta.demo.pyramid_writer import halved, write_pyramid
from wsi_meta.inference.device import resolve_device
from wsi_meta.models.card import read_card
from wsi_meta.models.model import model_path
from wsi_meta.scanning.scanner import Scanner
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.grid import PatchGrid

STRIDE_PX = 96


def _main() -> None:
    arguments = _parse()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        exported = folder / "exported"
        _export(arguments.model, exported)
        picture = assemble_tissue(arguments.patches) if arguments.patches else draw_tissue()
        downsample = MODEL_DOWNSAMPLE
        while downsample:
            _say(_compare(arguments, folder, exported, picture, downsample))
            picture, downsample = halved(picture), downsample // 2


def _export(model: str, out: Path) -> None:
    command = [sys.executable, "-m", "wsi_meta", "export-model", model, "--out", str(out), "--overwrite", "--json"]
    done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["results"][0]
    _say(f"exported: its logits differ by {done['largest_difference']:.1g} at most (tolerance {done['tolerance']:.1g})")


def _compare(arguments: argparse.Namespace, folder: Path, exported: Path, picture: np.ndarray, downsample: int) -> str:
    """Scan a picture, whose pixels are so many times narrower than the model's, by both; say how far they are apart."""
    shown = read_card(model_path(arguments.model)).preprocessing
    place = folder / f"downsample{downsample}"
    place.mkdir(exist_ok=True)
    slide = write_pyramid(place / "node.tif", picture, mpp=shown.mpp / downsample)
    settings = {"mode": "patch", "stride_px": STRIDE_PX, "precision": "fp32", "device": arguments.device}
    with Scanner(arguments.model, **settings) as scanner:
        heatmap = scanner.scan(slide, place / "ours.zarr", tissue_mask="none", overwrite=True)
    ours = {(int(row), int(col)): float(p) for (row, col), p in np.ndenumerate(heatmap.probability)}
    with open_slide(slide) as opened:
        grid = PatchGrid(opened.width, opened.height, opened.mpp, shown.mpp, shown.patch_px, STRIDE_PX)
    inside = np.zeros(grid.shape, bool)
    inside[: picture.shape[0] // downsample // STRIDE_PX, : picture.shape[1] // downsample // STRIDE_PX] = True
    peer_files.write_wsinfer_patches(place, grid, inside, slide)
    program = peer_python(arguments.envs, "wsinfer").with_name("wsinfer")
    script, config = exported / "torchscript_model.pt", exported / "config.json"
    time_wsinfer(program, place, script, config, Settings(64, 1), resolve_device(arguments.device))
    found = peer_files.compare(ours, peer_files.read_wsinfer(place, slide, grid))
    return (
        f"slide of {shown.mpp / downsample:.3f} um per pixel: {found['both']} patches, probabilities differ by "
        f"{found['mean difference']:.5f} on average, {found['largest difference']:.4f} at most"
    )


def _say(text: str) -> None:
    print(text, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, default=Path(tempfile.gettempdir(), "wsi-meta-peers"), help="as for peers.py")
    parser.add_argument("--patches", type=Path, help="folder of real patches to make tissue of; else tissue is drawn")
    parser.add_argument("--folder", type=Path, help="keep slides and results there; by default they are deleted")
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    _main()
