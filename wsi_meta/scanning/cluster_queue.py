"""The blocks of slides on their way through a dask cluster: as many as it has room for, and again where workers died."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from distributed import Client, Future, KilledWorker

from wsi_meta.errors import DeviceError, SlideReadError, WsiMetaError
from wsi_meta.files.address import SlidePath
from wsi_meta.heatmaps.effort import ScanEffort
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.scanning.threads import Turn
from wsi_meta.tiling.grid import Block
from wsi_meta.words import some_of

__all__ = ["CLOSED", "MOST_DEATHS", "BlockDone", "BlockFlow", "Room", "refuse_lost"]

TASKS_PER_THREAD = 2
"""Tasks on the cluster for each of its threads: one that runs and one that waits beside it, so that no thread is idle."""
LOOK_S = 2.0
"""After so long the cluster's threads are counted again: workers come and go."""
PAUSE_S = 0.05
"""For how long to wait before looking again whether there is room, or the scan is to end."""
CLOSED = ("closing", "closed")
"""What a client says of itself that reaches no scheduler any more."""
MOST_DEATHS = 8
"""A block counts as what workers died of after so many died that had it. dask gives up after 4; then it is sent once more."""
MOST_LOSSES = 4
"""So often a block is sent again of which the scheduler knows nothing any more."""
RECONNECT_S = 60.0
"""For how long to wait for a scheduler whose connection broke."""


class Room:
    """How many tasks may be on a cluster at the same time: so few that the next slide's blocks go there early, and in order.

    Parameters
    ----------
    count_threads : returns the threads of all workers
    """

    def __init__(self, count_threads: Callable[[], int]) -> None:
        self._count_threads, self._lock = count_threads, threading.Lock()
        self._most, self._taken, self._counted = 0, 0, -LOOK_S

    def take(self) -> bool:
        """Take a place for one task, if there is one."""
        self._count()
        with self._lock:
            free = self._taken < self._most
            self._taken += free
            return free

    def give(self, places: int = 1) -> None:
        """Give places back."""
        with self._lock:
            self._taken -= places

    def _count(self) -> None:
        """Count the threads from time to time; while the scheduler does not answer the number stays."""
        with self._lock:
            if time.monotonic() - self._counted < LOOK_S:
                return
            self._counted = time.monotonic()
        with suppress(OSError):
            self._most = TASKS_PER_THREAD * max(1, self._count_threads())


@dataclass(frozen=True)
class BlockDone:
    """What a worker says of a block that stands in the store."""

    block: Block
    host: str
    cells: int
    """So many of them were dealt with."""
    effort: ScanEffort
    """What the worker did for the slide since it said this last."""


class BlockFlow:
    """Sends the blocks of one slide to a cluster and takes in what comes of them.

    Parameters
    ----------
    client : of the cluster
    room : shared with the other slides of a scanner
    submit : sends one block's task
    """

    def __init__(self, client: Client, room: Room, submit: Callable[[Block], Future[Any]]) -> None:
        self._client, self._room, self._submit = client, room, submit
        self._done: SimpleQueue[Future[Any]] = SimpleQueue()
        self._pending: dict[Future[Any], Block] = {}
        self._deaths: Counter[Block] = Counter()
        self._losses: Counter[Block] = Counter()

    def run(self, slide: SlidePath, blocks: Sequence[Block], turn: Turn, take: Callable[[Any], None]) -> None:
        """Compute all blocks. The turn passes on when the last one has been sent.

        Parameters
        ----------
        slide : for messages
        take : given what each task returns

        Raises
        ------
        SlideReadError
            when workers die of a block.
        DeviceError
            when the scheduler is gone.
        InterruptedError
            when the turn is to end.
        """
        try:
            for block in blocks:
                while not self._room.take():
                    self._take_in(slide, turn, take)
                try:
                    self._send(block)
                except BaseException:
                    self._room.give()
                    raise
                turn.take_block()
            while self._pending:
                self._take_in(slide, turn, take)
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, WsiMetaError | InterruptedError) and self._is_closed:
                raise DeviceError(_gone(slide)) from error  # each of its methods fails in a way of its own
            with suppress(Exception):
                self._client.cancel(list(self._pending))
            raise
        finally:
            self._room.give(len(self._pending))

    def _send(self, block: Block) -> None:
        future = self._submit(block)
        self._pending[future] = block
        future.add_done_callback(self._done.put)

    def _take_in(self, slide: SlidePath, turn: Turn, take: Callable[[Any], None]) -> None:
        """Wait an instant for a task that is done."""
        turn.stop.check()
        try:
            future = self._done.get(timeout=PAUSE_S)
        except Empty:
            if self._is_closed:
                raise DeviceError(_gone(slide)) from None
            return
        block = self._pending[future]
        try:
            result = future.result()
        except KilledWorker as error:
            self._deaths[block] += error.allowed_failures + 1
            if self._deaths[block] >= MOST_DEATHS:
                raise SlideReadError(_deadly(slide, block, self._deaths[block], error)) from None
        except CancelledError:
            self._losses[block] += 1
            if self._losses[block] > MOST_LOSSES or not self._is_connected(turn):
                raise DeviceError(_gone(slide)) from None
        else:
            del self._pending[future]
            self._room.give()
            take(result)
            return
        del self._pending[future]
        try:
            self._send(block)
        except BaseException:
            self._room.give()
            raise

    @property
    def _is_closed(self) -> bool:
        return self._client.status in CLOSED

    def _is_connected(self, turn: Turn) -> bool:
        """Tell whether the scheduler answers, if need be after a while."""
        ends = time.monotonic() + RECONNECT_S
        while self._client.status == "connecting" and time.monotonic() < ends:
            turn.stop.check()
            time.sleep(PAUSE_S)
        return bool(self._client.status == "running")


def refuse_lost(heatmap: Heatmap, hosts: Mapping[Block, str]) -> None:
    """Make sure that what workers say to have written is in the store; DeviceError if not.

    A path such as ``/tmp/heat.zarr`` may mean a disk of its own on each machine, with an older scan's store of this slide.

    Parameters
    ----------
    hosts : by block, on which machine it was done
    """
    status = heatmap.status
    lost = {block: host for block, host in hosts.items() if np.any(status[block.cells] == Status.PENDING)}
    if lost:
        where = some_of(sorted({*lost.values()}))
        raise DeviceError(
            f"{heatmap.path}: lacks {len(lost):,} of {len(hosts):,} blocks that were scanned on {where}: "
            "there another folder lies under this path; choose one that all machines share"
        )


def _deadly(slide: SlidePath, block: Block, deaths: int, error: KilledWorker) -> str:
    return (
        f"{slide}: {deaths} workers died that had the block of cells from row {block.row}, column {block.col} on, the last at "
        f"{error.last_worker.address}; see their logs; give workers more memory if they lacked it, else convert the slide"
    )


def _gone(slide: SlidePath) -> str:
    told = "the dask scheduler is gone or was started anew, or its client was closed"
    return f"{slide}: {told}; what is finished is kept; run the same command again"
