"""Many slides as one stream: the same maps, one model, the next slide prepared while one is computed."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DarknessPredictor
from slide_files import texture, write_ome_zarr, write_slide

from wsi_meta.cohorts.batch import scan_slides
from wsi_meta.cohorts.retry import retry_command
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.inference.options import InferencePlan
from wsi_meta.models.model import Model
from wsi_meta.scanning.networks import Networks
from wsi_meta.scanning.options import ScanOptions, plan_of
from wsi_meta.scanning.scan import scan
from wsi_meta.scanning.scanner import Scanner
from wsi_meta.scanning.threads import Threads, Turn, interrupt_all
from wsi_meta.slides.slide import Slide
from wsi_meta.worklist.page import row_name

WAIT_S = 60
GLASS = np.full((300, 300, 3), 245, np.uint8)


@pytest.fixture
def slides(tmp_path: Path) -> list[Path]:
    return [write_slide(tmp_path / f"{name}.tif", texture(130, 200, seed)) for seed, name in enumerate("abc")]


def test_the_same_maps_as_singly(slides: list[Path], tmp_path: Path, thin_model: Model) -> None:
    settings: dict[str, Any] = {"predictor": DarknessPredictor(thin_model), "block_px": 160}
    scan_slides([slides[0], tmp_path / "gone.tif", *slides[1:]], tmp_path / "all", **settings)
    for slide in slides:
        alone = scan(slide, tmp_path / f"{slide.stem}.zarr", **settings)
        np.testing.assert_array_equal(Heatmap.open(tmp_path / "all" / f"{slide.stem}.zarr").probability, alone.probability)


def test_a_slide_has_one_name_wherever_it_is_told(
    tmp_path: Path, thin_model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    """``a.ome.zarr`` is slide a: in its store, on the bar, on the page, and to the command that scans it again."""
    slides = [write_ome_zarr(tmp_path / "a.ome.zarr", texture(130, 130)), write_ome_zarr(tmp_path / "b.ome.zarr", GLASS, 99)]
    with Scanner(predictor=DarknessPredictor(thin_model), progress=True) as scanner, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        rows = scan_slides(slides, tmp_path / "out", scanner=scanner)
    assert set(re.findall(r"\r\[1/2\] (\S+): +\d+%", capsys.readouterr().err)) == {"a"}
    assert Path(rows[0]["heatmap"]).name == "a.zarr"
    assert rows[1]["error_kind"] == "MissingMppError"
    assert [row_name(row) for row in rows] == ["a", "b"]
    again = retry_command(slides[1], tmp_path / "out" / "b.zarr", {})
    assert again == f"wsi-meta scan {slides[1]} --out-dir {tmp_path}/out"


def test_one_predictor_serves_all_slides(model_file: Path) -> None:
    threads = Threads()
    networks = Networks(model_file, None, threads)
    plan = plan_of(ScanOptions(), "patch", InferencePlan("cpu", "fp32", 64, views=1))
    try:
        assert networks.predictor(plan, compiled=False) is networks.predictor(plan, compiled=False)
        assert networks.model() is networks.model()
    finally:
        threads.close()


def test_the_next_slide_is_prepared_while_one_is_computed(slides: list[Path], tmp_path: Path, thin_model: Model) -> None:
    """The first block of slide a is not let go before slide b's tissue was sought; it would wait forever in a queue."""
    sought = {slide.stem: threading.Event() for slide in slides}
    order: list[str] = []

    class Noting(Slide):
        def read_overview(self, mpp: float) -> Any:
            found = super().read_overview(mpp)
            order.append(f"tissue {self.name}")
            sought[self.name].set()
            return found

    class Waiting(DarknessPredictor):
        def predict_block(self, *arguments: Any) -> Any:
            assert sought["b"].wait(WAIT_S)
            order.append("block")
            return super().predict_block(*arguments)

    with Scanner(predictor=Waiting(thin_model), workers=1) as scanner, ThreadPoolExecutor(2) as pool:
        turns = [scanner.line_up() for _ in range(2)]

        def go(number: int) -> bool:
            slide = Noting(slides[number])
            return scanner.scan(slide, tmp_path / f"{slide.name}.zarr", turn=turns[number]).finished

        assert list(pool.map(go, range(2))) == [True, True]
    assert order == ["tissue a", "tissue b", "block", "block"]


def test_what_fails_before_its_scan_holds_up_nobody(
    slides: list[Path], tmp_path: Path, thin_model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All slides after it waited for ever."""

    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().endswith("line 2 of m.csv"):
                raise RuntimeError("the program's own handler")

    (tmp_path / "m.csv").write_text("slide\n" + "".join(f"{slide}\n" for slide in slides[:3]))
    monkeypatch.setattr(logging.getLogger("wsi_meta"), "handlers", [Failing()])
    caplog.set_level(logging.INFO, "wsi_meta")
    rows = scan_slides([], tmp_path / "out", manifest=tmp_path / "m.csv", predictor=DarknessPredictor(thin_model))
    assert [row["error_kind"] for row in rows] == ["RuntimeError", None, None]


def test_an_interrupt_ends_all_of_it(slides: list[Path], tmp_path: Path, thin_model: Model) -> None:
    asked, heard = threading.Event(), threading.Event()

    class Interrupted(DarknessPredictor):
        def predict_block(self, *arguments: Any) -> Any:
            if not asked.is_set():
                asked.set()
                while not heard.wait(0.5):  # one that comes just as the main thread begins to wait is not heard
                    os.kill(os.getpid(), signal.SIGINT)
            heard.wait(60)
            time.sleep(0.5)  # the main thread ends it meanwhile
            return super().predict_block(*arguments)

    def interrupt(*_: Any) -> None:
        heard.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)  # a shell's background jobs are deaf to it
    try:
        with pytest.raises(KeyboardInterrupt):
            scan_slides(slides, tmp_path / "out", predictor=Interrupted(thin_model), block_px=96)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "out" / "c.zarr").exists()
    assert not Heatmap.open(tmp_path / "out" / "a.zarr").finished


def test_a_scan_that_another_lets_go_on_knows_that_all_are_to_end() -> None:
    class Slow(Turn):
        def interrupt(self) -> None:
            super().interrupt()
            time.sleep(0.1)  # the next one is awake meanwhile

    first = Slow()
    second = Slow(first)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(second.prepare)
        interrupt_all(turn for turn in (first, second))
        with pytest.raises(InterruptedError):
            waiting.result(20)


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
    second.interrupt()
    first.interrupt()
    with pytest.raises(InterruptedError):
        second.prepare()
    with pytest.raises(InterruptedError):
        second.stop.check()
