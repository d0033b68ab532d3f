"""A block is read in pieces ahead of the network; what cannot be read costs little, and is not counted as done."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from slide_files import damage_tile, texture, write_slide

from wsi_meta.errors import DeviceError, SlideReadError
from wsi_meta.inference.options import InferencePlan
from wsi_meta.inference.predictor import Predictor, PredictorParts
from wsi_meta.models.model import Model
from wsi_meta.scanning.threads import PIECES_AHEAD, Stop, Threads
from wsi_meta.scanning.worker import BlockWorker
from wsi_meta.slides.slide import open_slide
from wsi_meta.tiling.block_plan import PieceSizes
from wsi_meta.tiling.grid import Block, PatchGrid

WAIT_S = 20
PLAN = InferencePlan("cpu", "fp32", 8, views=1)
SMALL = PredictorParts(sizes=PieceSizes(piece_px=20_000))


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads()
    yield made
    made.close()


def test_pieces_come_in_order_and_are_read_ahead_but_not_too_far(threads: Threads) -> None:
    read: list[int] = []
    begun = [threading.Event() for _ in range(8)]

    def reading(number: int) -> Callable[[], int]:
        def read_it() -> int:
            read.append(number)
            begun[number].set()
            return number

        return read_it

    pieces = threads.read_ahead(map(reading, range(8)), Stop())
    assert begun[PIECES_AHEAD - 1].wait(WAIT_S), "before anyone asks"
    for number in range(8):
        assert next(pieces) == number
        assert max(read) <= number + PIECES_AHEAD
    assert next(pieces, None) is None
    assert sorted(read) == list(range(8))


def test_what_a_reader_raises_reaches_who_asked(threads: Threads) -> None:
    def fail() -> int:
        raise SlideReadError("damaged")

    pieces = threads.read_ahead([lambda: 1, fail, lambda: 3], Stop())
    assert next(pieces) == 1
    with pytest.raises(SlideReadError, match="damaged"):
        next(pieces)


@pytest.mark.parametrize("dense", [False, True])
def test_the_windows_are_the_pieces(tmp_path: Path, thin_model: Model, threads: Threads, dense: bool) -> None:
    """Read piece by piece, a block has the logits that it has in memory."""
    slide = open_slide(write_slide(tmp_path / "s.tif", texture(700, 900)))
    predictor = Predictor.from_plan(thin_model, PLAN, dense=dense, parts=SMALL)
    worker = BlockWorker(slide, predictor, threads, PatchGrid(900, 700, 0.972, 0.972, 96, 32))
    block, wanted = Block(3, 4, 9, 12), np.random.default_rng(1).random((9, 12)) < 0.6
    windows = worker.windows(block, wanted)

    assert len(windows) > 2
    whole = slide.read_at(0.972, *worker.grid.window(block, predictor.halo_px))
    np.testing.assert_array_equal(worker.predict(block, wanted), predictor.predict_image(whole, wanted, 32))


def test_cells_of_a_block_that_fails_late_are_not_counted_twice(tmp_path: Path, thin_model: Model, threads: Threads) -> None:
    path = write_slide(tmp_path / "s.tif", texture(768, 768))
    damage_tile(path, 8)  # the last of 3 x 3 tiles of 256 px
    predictor = Predictor.from_plan(thin_model, PLAN, parts=SMALL)
    grid = PatchGrid(768, 768, 0.972, 0.972, 96, 96)
    told: list[int] = []
    block, wanted = Block(0, 0, *grid.shape), np.ones(grid.shape, bool)
    logits = BlockWorker(open_slide(path), predictor, threads, grid).predict(block, wanted, told.append)

    readable = np.isfinite(logits[..., 0])
    assert readable[:5, :5].all()
    assert not readable[-2:, -2:].any()
    assert min(told) < 0, "some of it was done before the bad tile was met"
    assert sum(told) == readable.sum()
    assert np.ptp(logits[readable]) > 0


@pytest.mark.parametrize("dense", [False, True])
def test_just_the_cells_that_see_a_damaged_tile_are_lost(
    tmp_path: Path, thin_model: Model, threads: Threads, dense: bool
) -> None:
    """Half a cell is all that is lost beside it; every other cell is as if the tile were whole."""
    path, stride = write_slide(tmp_path / "s.tif", texture(560, 600)), 32 if dense else 64
    predictor = Predictor.from_plan(thin_model, PLAN, dense=dense, parts=SMALL)
    grid = PatchGrid(600, 560, 0.972, 0.972, 96, stride)
    block, wanted = Block(0, 0, *grid.shape), np.ones(grid.shape, bool)
    whole = BlockWorker(open_slide(path), predictor, threads, grid).predict(block, wanted)[..., 0]
    damage_tile(path, 0)  # x and y to 256
    lost = np.isnan(logits := BlockWorker(open_slide(path), predictor, threads, grid).predict(block, wanted)[..., 0])

    first_px = [stride * np.arange(cells) + stride // 2 - 48 - predictor.halo_px for cells in grid.shape]  # that a cell sees
    assert lost[np.logical_and.outer(*(first < 256 for first in first_px))].all()
    assert not lost[np.logical_or.outer(*(first >= 256 + stride // 2 for first in first_px))].any()
    assert not lost.all()
    np.testing.assert_allclose(logits[~lost], whole[~lost], atol=0.01 if dense else 1e-5)


def test_a_block_of_which_nothing_can_be_read_is_given_up_soon(tmp_path: Path, thin_model: Model, threads: Threads) -> None:
    path = write_slide(tmp_path / "s.tif", texture(1500, 1500))
    for tile in range(36):
        damage_tile(path, tile)
    grid = PatchGrid(1500, 1500, 0.972, 0.972, 96, 96)
    reads: list[None] = []
    worker = BlockWorker(
        open_slide(path), Predictor.from_plan(thin_model, PLAN, parts=SMALL), threads, grid, working=lambda: reads.append(None)
    )
    assert np.isnan(worker.predict(Block(0, 0, *grid.shape), np.ones(grid.shape, bool))).all()
    assert len(reads) < 60


def test_threads_go_on_in_a_forked_process_and_a_predictor_says_that_it_cannot(thin_model: Model) -> None:
    threads, predictor = Threads(), Predictor(thin_model, device="cpu", precision="fp32")
    assert threads.compute("cpu", lambda: 1) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads
        child = os.fork()
    if not child:
        signal.alarm(20)
        done = threads.compute("cpu", lambda: 1) + sum(threads.read_ahead([lambda: 2], Stop()))
        try:
            predictor.predict_patches(torch.zeros((1, 96, 96, 3), dtype=torch.uint8))
        except DeviceError as error:
            done += 4 * ("before this process was forked" in str(error))
        threads.close()
        os._exit(done)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    threads.close()
