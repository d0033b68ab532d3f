"""Blocks on a dask cluster: what travels to its workers, and what they keep for a scanner. Tasks carry coordinates only."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from distributed import Client, KilledWorker, WorkerPlugin, get_worker

from wsi_meta import __version__
from wsi_meta.errors import DeviceError, ModelFileError, SlideReadError, WsiMetaError
from wsi_meta.files.address import SlidePath
from wsi_meta.heatmaps.effort import Meter
from wsi_meta.heatmaps.record import UNKNOWN, ScanIdentity
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.inference.options import InferenceOptions, InferencePlan, compiler_found, resolve_inference
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.model import load_model
from wsi_meta.scanning.cluster_client import reached
from wsi_meta.scanning.cluster_queue import CLOSED, BlockDone, BlockFlow, Room, refuse_lost
from wsi_meta.scanning.engine import SlideScan, Todo
from wsi_meta.scanning.gpus import GpuProcesses
from wsi_meta.scanning.threads import Threads
from wsi_meta.scanning.worker import BlockWorker
from wsi_meta.slides.slide import Slide, open_slide
from wsi_meta.tiling.grid import Block
from wsi_meta.words import first_line

if TYPE_CHECKING:
    from distributed import Worker
    from numpy.typing import NDArray

__all__ = ["ClusterEngine", "ClusterJob", "KeptOnWorker", "scan_block"]

KEPT = 2
"""Slides, and predictors, that a worker keeps open for one scanner: in a stream, the next one as well."""
SLIDES_IN_WORK = 32
"""Slides of which blocks may be on a cluster at the same time: all workers have work also where slides have few blocks."""
MOST_PREPARED = 8
"""Slides that are opened, and their tissue found, at the same time, where this machine has the cores for it."""


@dataclass(frozen=True)
class ClusterJob:
    """What a worker needs to open slide, model and store by itself."""

    scanner: str
    """Name of the scanner's plugin on the workers."""
    store: Path
    slide: SlidePath
    mpp: float
    model: Path
    asked: InferenceOptions
    """As asked: each worker resolves what its own machine can do."""
    identity: ScanIdentity
    """What slide, model and machine must be, or the block is refused."""
    version: str = __version__
    """Of wsi-meta where the scan runs; another one may read other pixels."""


class ClusterEngine:
    """Runs a scanner's blocks on a dask cluster; see :class:`wsi_meta.scanning.engine.Engine`.

    Parameters
    ----------
    scheduler : a client; or an address, the path of a scheduler's file, or :class:`.GpuProcesses`, which are reached or started
        when they are first needed and left or ended in the end
    asked : of the network
    model : file that each worker loads
    threads : blocks that a process which is started here has in work
    """

    slides_in_work = SLIDES_IN_WORK

    def __init__(self, scheduler: Any, asked: InferenceOptions, model: Path, *, threads: int = 1) -> None:
        if isinstance(scheduler, GpuProcesses):
            scheduler.check(asked.device)
        self._scheduler, self._asked, self._model, self._threads = scheduler, asked, model, threads
        self._name = f"wsi-meta-{uuid4()}"
        self.prepared_ahead = min(MOST_PREPARED, os.cpu_count() or 1)
        self._reaching, self._opened = threading.Lock(), ExitStack()
        self._client: Client | None = None
        self._room = Room(lambda: sum(self.client.nthreads().values()))

    @property
    def client(self) -> Client:
        """The cluster's client; it is reached at its first use."""
        with self._reaching:
            if self._client is None:
                client = self._reach()
                try:
                    client.register_plugin(KeptOnWorker(), name=self._name)
                except Exception as error:  # whatever the workers raise that cannot import it
                    raise DeviceError(
                        f"the workers of the cluster cannot take up the work ({first_line(error)}); install the same wsi-meta "
                        "for all of them: 'wsi-meta doctor --scheduler' compares versions"
                    ) from error
                self._opened.callback(self._forget, client)
                self._client = client
            return self._client

    def resolve(self, options: InferenceOptions) -> InferencePlan:
        """Return what the options come to on one of the workers."""
        plan: InferencePlan = self._ask(resolve_inference, options)
        return plan

    def compiler_found(self, device: str) -> bool:
        """Tell whether one of the workers has the compiler that ``torch.compile`` needs."""
        return bool(self._ask(compiler_found, device))

    def run(self, scan: SlideScan, todo: Todo, report: Callable[[int], None]) -> None:
        """Scan blocks on the workers, a task each."""
        slide, heatmap = scan.slide, scan.heatmap
        pixels, identity = (slide.path.absolute(), slide.mpp), heatmap.record.identity
        job = ClusterJob(self._name, heatmap.root, *pixels, self._model, self._asked, identity)
        hosts: dict[Block, str] = {}

        def take(done: BlockDone) -> None:
            hosts[done.block] = done.host
            scan.turn.meter.include(done.effort)
            report(done.cells)

        try:
            submit = partial(self.client.submit, scan_block, job, pure=False)
            BlockFlow(self.client, self._room, submit).run(scan.source, list(todo), scan.turn, take)
        finally:
            if scan.source != slide.path:  # the copy is removed, and its room on the disk is needed
                self.client.run(_let_go, self._name, job, on_error="return")
        refuse_lost(heatmap, hosts)

    def close(self) -> None:
        """Let the workers close and forget what they keep; leave the cluster, or end the processes that were started."""
        self._opened.close()

    def _ask(self, function: Callable[..., Any], *given: Any) -> Any:
        """Return what a function says on one of the workers; DeviceError where none of them lives to say it."""
        try:
            return self.client.submit(function, *given, pure=False).result()
        except (CancelledError, KilledWorker) as error:
            told = f"its scheduler is gone, its client was closed, or its workers died ({first_line(error)})"
            raise DeviceError(f"the cluster: {told}; see their logs; run the same command again") from error

    def _reach(self) -> Client:
        if isinstance(self._scheduler, GpuProcesses):
            return self._opened.enter_context(self._scheduler.started(self._asked.device, self._threads))
        if isinstance(self._scheduler, str | Path):
            return self._opened.enter_context(reached(self._scheduler))
        if self._scheduler.status in CLOSED or self._scheduler.asynchronous:
            raise DeviceError("scheduler: a client that is closed, or asynchronous; expected one that is connected, and waits")
        return self._scheduler  # type: ignore[no-any-return]

    def _forget(self, client: Client) -> None:
        """Take what is ours from the workers; a cluster that is gone has forgotten it already."""
        if client.status == "running" and not isinstance(self._scheduler, GpuProcesses):
            client.unregister_worker_plugin(self._name)


class KeptOnWorker(WorkerPlugin):
    """What one worker keeps for one scanner: by content, never by name; at most :data:`KEPT` of each kind."""

    def setup(self, worker: Worker | None = None) -> None:  # noqa: ARG002
        """Begin with nothing kept: called when the plugin arrives on a worker."""
        self._opening = threading.Lock()
        self._threads = Threads()
        self._slides: dict[tuple[Any, ...], tuple[Slide, Meter]] = {}
        self._predictors: dict[tuple[Any, ...], Predictor] = {}
        self._stores: dict[tuple[Any, ...], Heatmap] = {}

    def teardown(self, worker: Worker | None = None) -> None:  # noqa: ARG002
        """Close what is kept: called when the scanner closes, or the worker."""
        self._threads.close()
        for slide, _ in self._slides.values():
            slide.close()

    def open(self, job: ClusterJob) -> tuple[BlockWorker, Heatmap]:
        """Open what the job needs, or take what is open; each is checked against the store's identity."""
        identity = job.identity
        with self._opening:
            plan = _own_plan(job)
            network = (identity.model, plan, identity.mode, identity.compiled)
            predictor = _kept(self._predictors, network, lambda: self._make_predictor(job, plan))
            pixels = (identity.slide, job.slide, job.mpp, identity.reader)
            opened = _kept(self._slides, pixels, lambda: (_open_slide(job), Meter()), let_go=lambda kept: kept[0].close())
            heatmap = _kept(self._stores, (job.store, identity), lambda: Heatmap.open(job.store))
        slide, meter = opened
        is_wanted = partial(_is_wanted, job)
        return BlockWorker(slide, predictor, self._threads, identity.grid, meter=meter, is_wanted=is_wanted), heatmap

    def let_go(self, job: ClusterJob) -> None:
        """Close a slide that will be removed."""
        with self._opening:
            for pixels in [pixels for pixels in self._slides if job.slide in pixels]:
                self._slides.pop(pixels)[0].close()

    def _make_predictor(self, job: ClusterJob, plan: InferencePlan) -> Predictor:
        def make() -> Predictor:
            model = load_model(job.model)
            if model.hash != job.identity.model:
                raise ModelFileError(
                    f"{job.model}: is another model than the scan began with ({model.hash[:12]}, expected "
                    f"{job.identity.model[:12]}); scan again"
                )
            return Predictor.from_plan(model, plan, dense=job.identity.mode == "dense", compiled=job.identity.compiled)

        return self._threads.compute(plan.device, make)


def scan_block(job: ClusterJob, block: Block) -> BlockDone:
    """Scan one block on the worker that this runs on, unless it is done: its worker was lost after it had written it."""
    host = socket.gethostname()
    try:
        worker, cells = _scan_here(job, block)
    except WsiMetaError as error:  # what is missing may be there where the command runs
        raise type(error)(f"worker {host}: {error}") from error
    return BlockDone(block, host, cells, worker.meter.take())


def _scan_here(job: ClusterJob, block: Block) -> tuple[BlockWorker, int]:
    """Return what scanned a block, and the number of its cells that were dealt with."""
    kept = get_worker().plugins.get(job.scanner)
    if not isinstance(kept, KeptOnWorker):
        raise DeviceError("knows nothing of this scan; was its cluster started anew? scan again")
    worker, heatmap = kept.open(job)
    if not _is_open(status := heatmap.read_block(block)):
        return worker, int((status != Status.BACKGROUND).sum())
    cells = worker.scan(heatmap, block)
    worker.meter.count_tiles(worker.slide.tiles_decoded)
    return worker, cells


def _is_open(status: NDArray[np.uint8]) -> bool:
    return bool(np.isin(status, UNKNOWN).any())


def _is_wanted(job: ClusterJob, block: Block) -> bool:
    """Tell whether a block may still be written, by what stands at the store's path now.

    A worker that was cut off for a while may be late: another one did the block, the scan has ended, or another one began.
    """
    there = Heatmap.open(job.store)
    return there.record.identity == job.identity and there.result is None and _is_open(there.read_block(block))


def _let_go(name: str, job: ClusterJob, dask_worker: Worker) -> None:
    """Close a slide on this worker, in a thread: where the scan was interrupted a block is still being read."""
    kept = dask_worker.plugins.get(name)
    if isinstance(kept, KeptOnWorker):
        threading.Thread(target=kept.let_go, args=(job,), daemon=True).start()


def _own_plan(job: ClusterJob) -> InferencePlan:
    """Return what the options come to on this worker; DeviceError when the store's identity or version says otherwise."""
    if job.version != __version__:
        raise DeviceError(f"has wsi-meta {__version__}, the scan is of {job.version}; install the same on all machines")
    plan, identity = resolve_inference(job.asked), job.identity
    if (plan.device_kind, plan.precision) != (identity.device, identity.precision):
        raise DeviceError(
            f"computes on {plan.device_kind} in {plan.precision}; the store was begun on {identity.device} in "
            f"{identity.precision}; name --device and --precision, or use workers of one kind"
        )
    return plan


def _open_slide(job: ClusterJob) -> Slide:
    slide = open_slide(job.slide, mpp=job.mpp, reader=job.identity.reader)
    if not slide.has_fingerprint(job.identity.slide):
        slide.close()
        raise SlideReadError(f"{job.slide}: is another slide than the scan began with; scan again, with --overwrite")
    return slide


def _kept(
    kept: dict[tuple[Any, ...], Any],
    key: tuple[Any, ...],
    make: Callable[[], Any],
    *,
    let_go: Callable[[Any], None] | None = None,
) -> Any:
    """Return what is kept under a key, else make it; the oldest one goes where there are more than :data:`KEPT`."""
    if key not in kept:
        kept[key] = make()
        if len(kept) > KEPT:
            oldest = kept.pop(next(iter(kept)))
            if let_go is not None:
                let_go(oldest)
    return kept[key]
