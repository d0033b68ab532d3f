"""Many slides as one stream: the same maps, one model, the next slide prepared while one is computed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DarknessPredictor
from slide_files import texture, write_slide
from tiny import Tiny

import wsi_meta.scanning.scan
import wsi_meta.scanning.worker
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.models.model import ModelCard, save_model
from wsi_meta.scanning.batch import scan_slides
from wsi_meta.scanning.relay import Turn
from wsi_meta.scanning.scan import scan
from wsi_meta.tiling.tissue import find_tissue

WAIT_S = 60


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny network's: these tests look at the order of things only."""
    monkeypatch.setattr("wsi_meta.models.model.build_network", Tiny)
    save_model(tmp_path / "tiny.safetensors", Tiny().state_dict(), ModelCard())
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def slides(tmp_path: Path) -> list[Path]:
    return [write_slide(tmp_path / f"{name}.tif", texture(300, 300, seed)) for seed, name in enumerate("abc")]


def test_the_same_maps_as_singly_from_one_predictor(
    slides: list[Path], tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Counted(DarknessPredictor):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            made.append(1)
            super().__init__(*arguments, **settings)

    monkeypatch.setattr(wsi_meta.scanning.worker, "Predictor", Counted)
    settings: dict[str, Any] = {"model": model_file, "block_px": 160}
    scan_slides([slides[0], tmp_path / "gone.tif", *slides[1:]], tmp_path / "all", **settings)
    assert made == [1]
    for slide in slides:
        alone = scan(slide, tmp_path / f"{slide.stem}.zarr", **settings)
        np.testing.assert_array_equal(Heatmap.open(tmp_path / "all" / f"{slide.stem}.zarr").probability, alone.probability)


def test_the_next_slide_is_prepared_while_one_is_computed(
    slides: list[Path], tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block of slide a is not let go before slide b's tissue was sought; it would wait forever in a queue."""
    sought = {slide.stem: threading.Event() for slide in slides}
    order: list[str] = []

    def seek(slide: Any) -> Any:
        found = find_tissue(slide)
        order.append(f"tissue {slide.name}")
        sought[slide.name].set()
        return found

    class Waiting(DarknessPredictor):
        def predict_block(self, *arguments: Any) -> Any:
            if not sought["c"].is_set():
                assert sought["b"].wait(WAIT_S)
            order.append("block")
            return super().predict_block(*arguments)

    monkeypatch.setattr(wsi_meta.scanning.scan, "find_tissue", seek)
    monkeypatch.setattr(wsi_meta.scanning.worker, "Predictor", Waiting)
    rows = scan_slides(slides[:2], tmp_path / "out", model=model_file, workers=1)
    assert [row["complete"] for row in rows] == [True, True]
    assert order == ["tissue a", "tissue b", "block", "block"]


def test_an_interrupt_ends_all_of_it(
    slides: list[Path], tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(DarknessPredictor):
        def predict_block(self, *_: Any) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            deadline = time.monotonic() + WAIT_S
            while not self._stopped and time.monotonic() < deadline:
                time.sleep(0.01)
            raise InterruptedError

    monkeypatch.setattr(wsi_meta.scanning.worker, "Predictor", Interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are deaf to it
    try:
        with pytest.raises(KeyboardInterrupt):
            scan_slides(slides, tmp_path / "out", model=model_file)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "out" / "c.zarr").exists()
    assert not Heatmap.open(tmp_path / "out" / "a.zarr").finished


def test_a_turn_ends_only_after_the_one_before_it() -> None:
    first = Turn()
    second = Turn(first)
    third = Turn(second)
    first.prepare()
    first.begin(2)
    second.prepare()
    failing = threading.Thread(target=second.end)  # the second slide cannot be opened
    failing.start()
    begun = threading.Event()

    def go_on() -> None:
        third.prepare()
        third.begin(1)
        begun.set()

    waiting = threading.Thread(target=go_on)
    waiting.start()
    first.take_block()
    assert not begun.wait(0.1), "the first slide's last block is not in work yet"
    first.take_block()
    assert begun.wait(WAIT_S)
    failing.join()
    waiting.join()


def test_an_interrupted_turn_fails_instead_of_waiting() -> None:
    first = Turn()
    second = Turn(first)
    stopped: list[int] = []
    second.stop = lambda: stopped.append(1)
    second.interrupt()
    first.interrupt()
    with pytest.raises(InterruptedError):
        second.prepare()
    assert stopped == [1]
