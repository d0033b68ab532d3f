"""A GPU's streams, played by the CPU: who gets which, what surrounds a pass, and that pixels take the whole way."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slide_files import texture

from wsi_meta.inference.predictor import Predictor
from wsi_meta.inference.sharing import SharedDevice, share_device
from wsi_meta.models.model import load_model


class FakeStream:
    """Counts what is made of it and waits for it."""

    made: list[FakeStream]

    def __init__(self, _device: torch.device) -> None:
        self.waited_for: list[object] = []
        self.made.append(self)

    def wait_stream(self, other: object) -> None:
        self.waited_for.append(other)

    def synchronize(self) -> None:
        """All is there."""


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[FakeStream]:
    """Return the streams that are made; none of them is a GPU's, and no memory is pinned."""
    FakeStream.made = []
    entered = threading.local()

    def enter(stream: FakeStream) -> nullcontext[None]:
        entered.stream = stream
        return nullcontext()

    empty = torch.empty

    def unpinned(*sizes: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return empty(*sizes, **options)

    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", enter)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: entered.stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _device: "default")
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    monkeypatch.setattr(torch, "empty", unpinned)
    return FakeStream.made


def in_threads(count: int, shared: SharedDevice) -> None:
    """Let so many threads compute, all at the same time."""
    together = threading.Barrier(count, timeout=30)

    def compute() -> None:
        with shared.turn():
            together.wait()

    threads = [threading.Thread(target=compute) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_streams_are_handed_on_to_the_next_threads(streams: list[FakeStream]) -> None:
    shared = share_device("cuda", exact=False, compiled=False)
    for count, made in ((1, 1), (1, 1), (3, 3), (2, 3), (3, 3)):
        in_threads(count, shared)
        assert len(streams) == made
    with pytest.raises(ZeroDivisionError), shared.turn():
        raise ZeroDivisionError
    in_threads(3, shared)

    assert len(streams) == 3, "work that failed gives its stream back"
    assert all(stream.waited_for == ["default"] for stream in streams), "once, for the weights"


def test_float32_is_not_rounded_to_tf32_and_others_keep_what_they_set() -> None:
    before = torch.backends.cudnn.allow_tf32
    for exact in (True, False):
        with share_device("cuda", exact=exact, compiled=False).passing():
            assert torch.backends.cudnn.allow_tf32 is (before and not exact)
            assert torch.backends.cudnn.enabled
        assert torch.backends.cudnn.allow_tf32 is before
    assert before


@pytest.mark.parametrize(("options", "most"), [({"exact": True}, 1), ({"compiled": True}, 1), ({}, 2)])
def test_passes_that_may_not_overlap_do_not(options: dict[str, bool], most: int) -> None:
    shared = share_device("cuda", **({"exact": False, "compiled": False} | options))
    inside, met = [0], []
    together = threading.Barrier(2)

    def run() -> None:
        with shared.passing():
            inside[0] += 1
            with suppress(threading.BrokenBarrierError):
                together.wait(30 if most > 1 else 0.3)  # the other one comes in too, or never does
            met.append(inside[0])
            inside[0] -= 1

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(run) for _ in range(2)]:
            done.result()

    assert max(met) == most


@pytest.mark.parametrize("dense", [False, True])
def test_what_is_sent_computed_and_fetched_by_streams_is_what_the_cpu_gives(
    model_file: Path, streams: list[FakeStream], monkeypatch: pytest.MonkeyPatch, dense: bool
) -> None:
    monkeypatch.setattr("wsi_meta.inference.predictor.runs_in_bands", lambda *_device, **_choices: False)
    predictor = Predictor(load_model(model_file), device="cpu", precision="fp32", batch_size=8, dense=dense)
    side = 3 * 32 + 2 * (32 + predictor.halo_px)
    images, wanted = [texture(side, side, seed) for seed in range(4)], np.ones((3, 3), bool)
    expected = [predictor.predict_image(image, wanted, 32) for image in images]
    shared = share_device("cuda", exact=True, compiled=False)
    monkeypatch.setattr(shared, "_device", torch.device("cpu"))
    monkeypatch.setattr(predictor, "_shared", shared)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda image: predictor.predict_image(image, wanted, 32), images))

    np.testing.assert_array_equal(found, expected)
    assert 1 <= len(streams) <= 2
