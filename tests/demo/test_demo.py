"""The drawing of the demonstration and its figure; the demonstration itself is run by the first notebook, in tests/examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi_meta.demo.demo import DRAWN, refuse_others, run_demo, separation
from wsi_meta.demo.pyramid_writer import write_pyramid
from wsi_meta.demo.synthetic import draw_lymph_node
from wsi_meta.errors import DeviceError, OutputExistsError
from wsi_meta.tiling.grid import PatchGrid


def test_separation_is_an_auc_over_whole_cells() -> None:
    grid = PatchGrid(256, 256, 0.243, 0.972, 96, 32)
    tumor = np.zeros((64, 64), bool)
    tumor[:32, :32] = True
    assert separation(np.array([[0.9, 0.1], [np.nan, 0.2]], np.float32), grid, tumor) == 1.0
    assert separation(np.array([[0.15, 0.1], [np.nan, 0.2]], np.float32), grid, tumor) == 0.5


@pytest.mark.parametrize("name", ["synthetic-node.tif", "synthetic-node.zarr", "synthetic-node.png"])
def test_what_no_demo_made_is_never_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputExistsError, match=f"{name}: exists and is not of a demo"):
        run_demo(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_nothing_is_drawn_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cuda:99"):
        run_demo(tmp_path, device="cuda:99")
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_a_demo_are_replaced(tmp_path: Path) -> None:
    slide = write_pyramid(tmp_path / "synthetic-node.tif", np.full((64, 64, 3), 200, np.uint8), mpp=0.5, description=DRAWN)
    refuse_others(slide, slide)


def test_drawing() -> None:
    image, tumor = draw_lymph_node(1024, 1026, seed=3)
    assert image.shape == (1026, 1024, 3)
    assert image.dtype == np.uint8
    assert tumor.shape == (257, 256)
    assert tumor.dtype == np.bool_
    assert 0.01 < tumor.mean() < 0.5
    again, _ = draw_lymph_node(1024, 1026, seed=3)
    np.testing.assert_array_equal(image, again)
    assert image[:40, :40].min() > 225, "the corner is glass"
    inside = image[:1024].reshape(256, 4, 256, 4, 3).mean((1, 3))
    assert inside[tumor[:256]].mean() < 200, "tumor is stained"
