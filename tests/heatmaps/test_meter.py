"""What a scan takes adds up, over threads, machines and runs."""

from __future__ import annotations

import time
import weakref

import numpy as np
import pytest

from wsi_meta.heatmaps.effort import Meter, ScanEffort

FIRST = ScanEffort(10, 1, 4, 5, 0.5, 100, 30, 2_000, ("b",), waiting_s=2)
SECOND = ScanEffort(6, 2, 3, 2, 0.25, 50, None, 5_000, ("a", "b"), waiting_s=1)


def test_all_of_one_run() -> None:
    assert FIRST.with_others(SECOND) == ScanEffort(16, 3, 7, 7, 0.75, 150, 30, 5_000, ("a", "b"), 1, 3)
    assert SECOND.with_others().tiles_decoded is None
    assert ScanEffort().with_others(FIRST) == FIRST


def test_a_continued_scan_counts_its_runs() -> None:
    together = SECOND.after(FIRST)
    assert (together.passed_s, together.cells, together.runs) == (16, 150, 2)
    assert FIRST.after(together).runs == 3
    assert SECOND.after(None) is SECOND


def test_the_rate() -> None:
    assert FIRST.cells_per_s == 10
    assert ScanEffort().cells_per_s is None
    assert FIRST.summary == "100 cells in 10 s (10 cells/s)"


def test_computing_is_without_the_wait_for_pieces_and_keeps_none() -> None:
    meter = Meter()

    def slow() -> object:
        time.sleep(0.05)
        return np.zeros(1)

    begun = time.perf_counter()
    with meter.timed("computing_s"):
        pieces = meter.awaited(slow() for _ in range(2))
        seen = weakref.ref(next(pieces))
        assert seen() is None
        time.sleep(0.02)
        assert len(list(pieces)) == 1
    passed = time.perf_counter() - begun
    effort = meter.stop()
    assert effort.waiting_s >= 0.1
    assert 0.02 <= effort.computing_s <= passed - effort.waiting_s, "however busy the machine is"


def test_the_wait_for_the_scan_before_is_no_time_of_ones_own() -> None:
    first, second = Meter(), Meter()
    first.start()
    second.start()
    with second.timed("-passed_s"):
        time.sleep(0.05)
    second.begin_work()
    time.sleep(0.05)  # the last blocks of the first
    first.stop()
    time.sleep(0.01)
    assert 0.01 <= second.stop(first).passed_s < 0.05
    assert second.stop(first).passed_s < 0.05, "once stopped, no more time passes"


def test_tiles_are_counted_once() -> None:
    meter = Meter()
    meter.count_tiles(None)
    assert meter.stop().tiles_decoded is None
    meter.count_tiles(7, before=True)
    meter.count_tiles(9)
    meter.count_tiles(12)
    assert meter.stop().tiles_decoded == 5


def test_what_a_worker_returns_is_taken_once() -> None:
    meter, here = Meter(), Meter()
    meter.add(cells=3, reading_s=0.5)
    meter.count_here()
    here.include(meter.take())
    here.include(meter.take())
    effort = here.stop()
    assert (effort.cells, effort.reading_s, len(effort.hosts)) == (3, 0.5, 1)
    assert effort.peak_memory_bytes > 10 << 20


def test_facts_are_plain_values() -> None:
    assert FIRST.to_facts()["hosts"] == ["b"]
    assert Meter().stop().to_facts()["peak_memory_bytes"] is None, "a scan that had finished before measures none"
    with pytest.raises(TypeError):
        Meter().add(nonsense=1.0)
