"""The heatmap does not depend on how it was computed. With a real network (random weights), so arithmetic counts."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import start_child
from numpy.typing import NDArray
from slide_files import texture, write_slide

from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.models.model import Model
from wsi_meta.scanning.scan import scan


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "node.tif", texture(140, 200))


@pytest.fixture(scope="module")
def reference(slide_file: Path, thin_model: Model, tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float32]:
    """One block, batches of 8, one thread of dask."""
    out = tmp_path_factory.mktemp("reference") / "h.zarr"
    return _scan(slide_file, out, thin_model, scheduler="synchronous").probability


def _scan(slide: Path, out: Path, model: Model, **settings: Any) -> Heatmap:
    common: dict[str, Any] = {"precision": "fp32", "batch_size": 8, "tissue_mask": "none"}
    return scan(slide, out, model=model, **(common | settings))


def test_the_map_is_not_flat(reference: NDArray[np.float32]) -> None:
    assert reference.shape == (5, 7)
    assert np.unique(reference).size == reference.size


@pytest.mark.parametrize("block_px", [64, 96, 160])
def test_block_size(block_px: int, slide_file: Path, thin_model: Model, reference: NDArray[np.float32], tmp_path: Path) -> None:
    heatmap = _scan(slide_file, tmp_path / "h.zarr", thin_model, block_px=block_px)
    np.testing.assert_array_equal(heatmap.probability, reference)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers(workers: int, slide_file: Path, thin_model: Model, reference: NDArray[np.float32], tmp_path: Path) -> None:
    heatmap = _scan(slide_file, tmp_path / "h.zarr", thin_model, block_px=128, workers=workers)
    np.testing.assert_array_equal(heatmap.probability, reference)


def test_threads_of_torch(slide_file: Path, thin_model: Model, tmp_path: Path) -> None:
    """A command has as many as cores; a worker of dask is given one. Twelve cells, in batches small enough to tell."""
    maps, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            maps.append(_scan(slide_file, tmp_path / f"{threads}.zarr", thin_model, stride_px=64, batch_size=4).probability)
    finally:
        torch.set_num_threads(before)
    assert np.unique(maps[0]).size == maps[0].size
    np.testing.assert_array_equal(maps[1], maps[0])


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_batch_size(
    batch_size: int, slide_file: Path, thin_model: Model, reference: NDArray[np.float32], tmp_path: Path
) -> None:
    """A matrix library picks its kernel, and so its order of summation, by the number of rows: not bit-equal, but close."""
    heatmap = _scan(slide_file, tmp_path / "h.zarr", thin_model, batch_size=batch_size)
    np.testing.assert_allclose(heatmap.probability, reference, rtol=0, atol=1e-5)


def test_kill_and_resume(slide_file: Path, thin_model: Model, reference: NDArray[np.float32], tmp_path: Path) -> None:
    """kill -9 in the middle, then the same scan again."""
    out = tmp_path / "h.zarr"

    def killed() -> None:
        def kill(_slide: Path, done: int, _total: int) -> None:
            if done >= 16:
                os.kill(os.getpid(), signal.SIGKILL)

        _scan(slide_file, out, thin_model, block_px=64, workers=1, progress=kill)

    assert start_child(killed, tmp_path / "log").wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    half = Heatmap.open(out)
    done = half.status == Status.SCANNED
    assert not half.finished
    assert 0 < done.sum() < done.size
    np.testing.assert_array_equal(half.probability[done], reference[done])
    heatmap = _scan(slide_file, out, thin_model, block_px=64)
    assert heatmap.finished
    np.testing.assert_array_equal(heatmap.probability, reference)
