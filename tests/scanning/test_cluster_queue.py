"""Blocks on their way through a cluster: in order, as there is room, and again where workers died."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from distributed import KilledWorker
from stores import write_store

from wsi_meta.errors import DeviceError, SlideReadError
from wsi_meta.scanning.cluster_queue import MOST_DEATHS, MOST_LOSSES, TASKS_PER_THREAD, BlockFlow, Room, refuse_lost
from wsi_meta.scanning.threads import Turn
from wsi_meta.tiling.grid import Block

WAIT_S = 20.0
SLIDE = Path("s.tif")


class Task:
    """A future that ends when it is told to, with a result or an error."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self._done: Callable[[Task], None] = lambda _task: None
        self._outcome: Any = None

    def add_done_callback(self, done: Callable[[Task], None]) -> None:
        self._done = done

    def end(self, outcome: Any) -> None:
        self._outcome = outcome
        self._done(self)

    def result(self) -> Any:
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome


class Cluster:
    """Keeps the tasks that were sent; it does nothing with them by itself."""

    status = "running"

    def __init__(self) -> None:
        self.sent: list[Task] = []
        self.cancelled: list[Task] = []
        self._changed = threading.Condition()

    def submit(self, block: Block) -> Any:
        with self._changed:
            self.sent.append(Task(block))
            self._changed.notify_all()
            return self.sent[-1]

    def cancel(self, tasks: list[Task]) -> None:
        self.cancelled += tasks

    def wait_for(self, count: int) -> Task:
        """Wait until so many tasks were sent; give the last one."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.sent) >= count, WAIT_S), f"{len(self.sent)} sent, not {count}"
            return self.sent[count - 1]


def row_of_blocks(count: int) -> list[Block]:
    return [Block(0, col, 1, 1) for col in range(count)]


def killed(cluster: int = 3) -> KilledWorker:
    return KilledWorker("task", SimpleNamespace(address="tcp://10.0.0.1:1"), cluster)  # type: ignore[arg-type]


def flow(cluster: Cluster, room: Room) -> BlockFlow:
    return BlockFlow(cluster, room, cluster.submit)  # type: ignore[arg-type]


def test_the_next_slide_begins_while_the_last_blocks_of_the_one_before_are_in_work() -> None:
    cluster, room, taken = Cluster(), Room(lambda: 2), list[Any]()
    assert TASKS_PER_THREAD == 2
    first = Turn()
    second = Turn(first)

    def scan(turn: Turn, blocks: list[Block]) -> None:
        turn.prepare()
        turn.begin(len(blocks))
        flow(cluster, room).run(SLIDE, blocks, turn, taken.append)
        turn.end()

    with ThreadPoolExecutor(2) as pool:
        scans = [pool.submit(scan, turn, row_of_blocks(3)) for turn in (first, second)]
        cluster.wait_for(4)  # three of the first slide, one of the second
        assert not any(scan.done() for scan in scans)
        assert len(cluster.sent) == 4, "no more than there is room for"
        for number in range(6):
            cluster.wait_for(number + 1).end(number)
        for each in scans:
            each.result(WAIT_S)
    assert sorted(taken) == list(range(6))
    assert [task.block.col for task in cluster.sent] == [0, 1, 2] * 2, "in order"


def test_workers_that_join_are_given_work() -> None:
    cluster, threads = Cluster(), 0
    room = Room(lambda: threads)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(flow(cluster, room).run, SLIDE, row_of_blocks(8), Turn(), lambda _result: None)
        cluster.wait_for(TASKS_PER_THREAD)
        threads = 4
        for number in range(8):
            cluster.wait_for(8)
            cluster.sent[number].end(1)
        running.result(WAIT_S)


def test_a_block_whose_workers_died_is_sent_again_but_not_for_ever() -> None:
    cluster, taken = Cluster(), list[Any]()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(flow(cluster, Room(lambda: 1)).run, SLIDE, row_of_blocks(2), Turn(), taken.append)
        cluster.wait_for(2)
        cluster.sent[0].end(killed())
        cluster.wait_for(3).end(7)
        cluster.sent[1].end(killed())
        cluster.wait_for(4).end(killed())
        told = (
            rf"s\.tif: {MOST_DEATHS} workers died that had the block of cells from row 0, column 1 on, the last at tcp://10\.0"
        )
        with pytest.raises(SlideReadError, match=told):
            running.result(WAIT_S)
    assert taken == [7]


def test_a_task_that_is_lost_is_sent_again_and_a_scheduler_that_is_gone_is_told() -> None:
    cluster = Cluster()
    room = Room(lambda: 1)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(flow(cluster, room).run, SLIDE, row_of_blocks(1), Turn(), lambda _result: None)
        for number in range(MOST_LOSSES + 1):
            cluster.wait_for(number + 1).end(CancelledError())
        with pytest.raises(DeviceError, match=r"scheduler is gone or was started anew, .*; what is finished is kept"):
            running.result(WAIT_S)
        assert all(room.take() for _ in range(TASKS_PER_THREAD)), "its places are free again"
        room.give(TASKS_PER_THREAD)
        running = pool.submit(flow(cluster, room).run, SLIDE, row_of_blocks(1), Turn(), lambda _result: None)
        cluster.wait_for(MOST_LOSSES + 2)
        cluster.status = "closed"
        with pytest.raises(DeviceError, match="scheduler is gone"):
            running.result(WAIT_S)


def test_a_client_that_was_closed_is_told_whatever_it_raises() -> None:
    cluster = Cluster()
    cluster.status = "closed"

    def count_threads() -> int:
        raise AttributeError("'NoneType' object has no attribute 'ncores'")

    with pytest.raises(DeviceError, match=r"s\.tif: the dask scheduler is gone or was started anew, or its client was closed"):
        flow(cluster, Room(count_threads)).run(SLIDE, row_of_blocks(1), Turn(), lambda _result: None)


def test_blocks_that_workers_wrote_elsewhere_are_told(tmp_path: Path) -> None:
    heatmap = write_store(tmp_path / "h.zarr", np.full((2, 2), 0.5, np.float32)).reopen()  # while it is scanned
    block = heatmap.grid.blocks()[0]
    refuse_lost(heatmap, {block: "node1"})
    heatmap.clear_block(block, np.ones((2, 2), bool))
    with pytest.raises(
        DeviceError, match=r"h\.zarr: lacks 1 of 1 blocks that were scanned on node1: there another folder lies"
    ):
        refuse_lost(heatmap, {block: "node1"})


def test_a_scan_that_is_stopped_takes_back_what_it_sent() -> None:
    cluster, turn = Cluster(), Turn()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(flow(cluster, Room(lambda: 2)).run, SLIDE, row_of_blocks(9), turn, lambda _result: None)
        cluster.wait_for(4)
        turn.interrupt()
        with pytest.raises(InterruptedError):
            running.result(WAIT_S)
    assert cluster.cancelled == cluster.sent


def test_several_slides_are_prepared_where_that_is_asked_for() -> None:
    first = Turn(ahead=2)
    second = Turn(first, ahead=2)
    third = Turn(second, ahead=2)
    fourth = Turn(third, ahead=2)
    for turn in (first, second):
        turn.prepare()
    fourth.interrupt()
    waiting = threading.Thread(target=third.prepare)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive(), "the first one's blocks have not begun"
    first.begin(1)
    waiting.join(WAIT_S)
    assert not waiting.is_alive()
