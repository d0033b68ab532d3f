"""What other tools are given and what is read back from them; the tools themselves are not here."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import peer_files
import pytest
import torch
import zarr
from peer_files import PatchRun
from PIL import Image
from stopwatch import Timing

from wsi_meta.models.model import Model
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.tiling.tissue import TissueMask

GRID = PatchGrid(8000, 6000, 0.25, 0.972, 96, 32)
CELLS = {(0, 0): 0.25, (1, 2): 0.5, (10, 7): 0.75}


def _run(cells: int, seconds: float) -> PatchRun:
    return PatchRun(cells, Timing(0, seconds, 0, ""))


def test_first_part_is_the_upper_one() -> None:
    mask = np.zeros((100, 10), bool)
    mask[20:80] = True
    tissue = TissueMask(mask, (4.0, 4.0), "found")
    part = peer_files.first_part(tissue, 0.1)
    assert part.mask[20:26].all()
    assert part.mask.sum() == 60
    assert mask.sum() == 600  # the argument is left as it is


def test_start_up_is_not_multiplied() -> None:
    assert peer_files.whole_slide_seconds(_run(1010, 20), _run(10, 10), 10_010) == pytest.approx(10 + 100)


def test_comparison_counts_what_only_one_has() -> None:
    found = peer_files.compare(CELLS, {(0, 0): 0.35, (1, 2): 0.5, (9, 9): 1.0})
    assert (found["both"], found["only ours"], found["only theirs"]) == (2, 1, 1)
    assert found["mean difference"] == pytest.approx(0.05)
    assert found["largest difference"] == pytest.approx(0.1)
    assert np.isnan(peer_files.compare(CELLS, {})["mean difference"])


def test_mask_is_a_picture(tmp_path: Path) -> None:
    mask = np.zeros((5, 7), bool)
    mask[2, 3] = True
    peer_files.write_mask(tmp_path / "m.png", TissueMask(mask, (1.0, 1.0), "found"))
    pixels = np.asarray(Image.open(tmp_path / "m.png"))
    np.testing.assert_array_equal(pixels, np.repeat(mask[..., None] * 255, 3, -1))


def test_tiatoolbox_patches_are_their_centre_cells(tmp_path: Path) -> None:
    corners = [(32 * col - 32, 32 * row - 32) for row, col in CELLS]
    group = zarr.open_group(tmp_path / "out.zarr", mode="w")
    group["coordinates"] = np.array([(x, y, x + 96, y + 96) for x, y in corners])
    group["probabilities"] = np.array([(1 - p, p) for p in CELLS.values()], np.float32)
    assert peer_files.read_tiatoolbox(tmp_path / "out.zarr", GRID) == CELLS


def test_wsinfer_gets_and_gives_the_same_cells(tmp_path: Path, thin_model: Model) -> None:
    """Through level-0 pixels of 0.25 um, in which a cell's corner is no whole number."""
    slide = tmp_path / "node.tif"
    slide.touch()
    cells = np.zeros(GRID.shape, bool)
    cells[tuple(np.array(list(CELLS)).T)] = True
    peer_files.write_wsinfer_inputs(tmp_path, thin_model, GRID, cells, slide)
    with h5py.File(tmp_path / "results/patches/node.h5") as file:
        corners, attributes = file["coords"][:], dict(file["coords"].attrs)
    assert (attributes["patch_level"], attributes["patch_size"]) == (0, round(96 * 0.972 / 0.25))
    assert corners.dtype.kind == "i"
    folder = tmp_path / "results/model-outputs-csv"
    folder.mkdir()
    with (folder / "node.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("minx", "miny", "prob_tumor"))
        writer.writerows((*corner, p) for corner, p in zip(corners, CELLS.values(), strict=True))
    assert peer_files.read_wsinfer(tmp_path, slide, GRID) == CELLS
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["patch_size_pixels"], config["spacing_um_px"]) == (96, 0.972)
    assert (tmp_path / "slides" / "node.tif").resolve() == slide


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_wsinfer_gets_the_same_network(tmp_path: Path, thin_model: Model) -> None:
    (tmp_path / "node.tif").touch()
    peer_files.write_wsinfer_inputs(tmp_path, thin_model, GRID, np.zeros(GRID.shape, bool), tmp_path / "node.tif")
    images = torch.rand(3, 3, 96, 96)
    with torch.inference_mode():
        softmax = torch.jit.load(tmp_path / "model.pt")(images).softmax(1)[:, 1]
        torch.testing.assert_close(softmax, torch.sigmoid(thin_model.network.eval()(images)[:, 0]))
