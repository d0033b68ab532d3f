"""Blocks on a dask cluster: what travels to its workers, and what they keep for a scanner. Tasks carry coordinates only.

Also a look at a cluster, for ``wsi-meta doctor``: whether it answers, and what its workers run.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from distributed import Client, WorkerPlugin, as_completed, get_worker

from wsi_meta.errors import DeviceError, ModelFileError, SlideReadError, first_line
from wsi_meta.heatmaps.effort import Meter, ScanEffort
from wsi_meta.heatmaps.record import ScanIdentity
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.inference.options import InferenceOptions, InferencePlan, compiler_found, resolve_inference
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.model import load_model
from wsi_meta.models.versions import library_versions
from wsi_meta.scanning.engine import SlideScan, Todo
from wsi_meta.scanning.threads import Threads
from wsi_meta.scanning.worker import BlockWorker
from wsi_meta.slides.slide import Slide, open_slide
from wsi_meta.tiling.grid import Block

if TYPE_CHECKING:
    from distributed import Worker

__all__ = ["ClusterEngine", "ClusterJob", "KeptOnWorker", "look_at_cluster"]

KEPT = 2
"""Slides, and predictors, that a worker keeps open for one scanner: in a stream, the next one as well."""
COMPARED = ("torch", "numpy", "zarr", "dask", "distributed", "openslide-python")
"""Libraries of which workers must have the versions of this machine, besides Python and wsi-meta."""


@dataclass(frozen=True)
class ClusterJob:
    """What a worker needs to open slide, model and store by itself."""

    scanner: str
    """Name of the scanner's plugin on the workers."""
    store: Path
    slide: Path
    mpp: float
    model: Path
    asked: InferenceOptions
    """As asked: each worker resolves what its own machine can do."""
    identity: ScanIdentity
    """What slide, model and machine must be, or the block is refused."""


class ClusterEngine:
    """Runs a scanner's blocks on a dask cluster; see :class:`wsi_meta.scanning.engine.Engine`."""

    def __init__(self, client: Client, asked: InferenceOptions, model: Path) -> None:
        self._client, self._asked, self._model = client, asked, model
        self._name = f"wsi-meta-{uuid4()}"
        client.register_plugin(KeptOnWorker(), name=self._name)

    def resolve(self, options: InferenceOptions) -> InferencePlan:
        """Return what the options come to on one of the workers."""
        plan: InferencePlan = self._client.submit(resolve_inference, options, pure=False).result()
        return plan

    def compiler_found(self, device: str) -> bool:
        """Tell whether one of the workers has the compiler that ``torch.compile`` needs."""
        return bool(self._client.submit(compiler_found, device, pure=False).result())

    def run(self, scan: SlideScan, todo: Todo, report: Callable[[int], None]) -> None:
        """Scan blocks on the workers, a task each."""
        slide, heatmap = scan.slide, scan.heatmap
        job = ClusterJob(
            scanner=self._name,
            store=heatmap.path.absolute(),
            slide=slide.path.absolute(),
            mpp=slide.mpp,
            model=self._model,
            asked=self._asked,
            identity=heatmap.record.identity,
        )
        futures = [self._client.submit(_scan_block, job, block, pure=False) for block in todo]
        try:
            for future in as_completed(futures):
                scan.turn.stop.check()
                scan.turn.take_block()
                cells, effort = future.result()
                scan.turn.meter.include(effort)
                report(cells)
        except BaseException:
            self._client.cancel(futures)
            raise

    def close(self) -> None:
        """Let the workers close and forget what they keep; a cluster that is gone has forgotten it already."""
        if self._client.status == "running":
            self._client.unregister_worker_plugin(self._name)


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
        return BlockWorker(slide, predictor, self._threads, identity.grid, meter=meter), heatmap

    def _make_predictor(self, job: ClusterJob, plan: InferencePlan) -> Predictor:
        def make() -> Predictor:
            model = load_model(job.model)
            if model.hash != job.identity.model:
                raise ModelFileError(
                    f"{job.model}: is another model on {socket.gethostname()} than the scan began with "
                    f"({model.hash[:12]}, expected {job.identity.model[:12]}); scan again"
                )
            return Predictor.from_plan(model, plan, dense=job.identity.mode == "dense", compiled=job.identity.compiled)

        return self._threads.compute(plan.device, make)


def _scan_block(job: ClusterJob, block: Block) -> tuple[int, ScanEffort]:
    """Scan one block on the worker that this runs on.

    Returns
    -------
    Number of its cells that were dealt with, and what the worker did for the slide since it returned this last.
    """
    kept = get_worker().plugins[job.scanner]
    assert isinstance(kept, KeptOnWorker)
    worker, heatmap = kept.open(job)
    cells = worker.scan(heatmap, block)
    worker.meter.count_tiles(worker.slide.tiles_decoded)
    return cells, worker.meter.take()


def _own_plan(job: ClusterJob) -> InferencePlan:
    """Return what the options come to on this worker; DeviceError when the store's identity says otherwise."""
    plan, identity = resolve_inference(job.asked), job.identity
    if (plan.device_kind, plan.precision) != (identity.device, identity.precision):
        raise DeviceError(
            f"worker {socket.gethostname()}: computes on {plan.device_kind} in {plan.precision}; the store was begun on "
            f"{identity.device} in {identity.precision}; name --device and --precision, or use workers of one kind"
        )
    return plan


def _open_slide(job: ClusterJob) -> Slide:
    slide = open_slide(job.slide, mpp=job.mpp, reader=job.identity.reader)
    if slide.fingerprint() != job.identity.slide:
        slide.close()
        raise SlideReadError(
            f"{job.slide}: is another slide on {socket.gethostname()} than the scan began with; scan again, with --overwrite"
        )
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


def look_at_cluster(
    address: str, *, limit_s: float = 10.0, here: dict[str, str] | None = None
) -> tuple[dict[str, Any], str, list[str]]:
    """Ask a cluster's workers for their versions, and compare them with those here.

    Parameters
    ----------
    address : of the scheduler, ``tcp://HOST:PORT``
    limit_s : for how long to wait for all answers
    here : versions to compare with; None are those of this machine

    Returns
    -------
    Facts as plain JSON values; the same in one line; problems, a line each. None of them names a host.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dask warns of other versions, which are compared here
            answers, threads = asyncio.run(asyncio.wait_for(_ask_workers(address, limit_s), limit_s))
    except (TimeoutError, OSError, ValueError) as error:
        told = "no answer" if isinstance(error, TimeoutError | OSError) else first_line(error)
        told = f"{told} from the scheduler within {limit_s:g} s"
        return {"reachable": False}, told, [f"{told}; see that it runs, and that its port is open to this machine"]
    here = here or library_versions(COMPARED)
    others = Counter(line for answer in answers for line in _differences(answer, here))
    facts = {"reachable": True, "workers": len(answers), "threads": threads, "differences": dict(others)}
    problems = [f"{count} of {len(answers)} workers: {told}; install the same everywhere" for told, count in others.items()]
    if not answers:
        problems = ["no worker has joined; start some: dask worker ADDRESS"]
    versions = "versions differ" if others else "versions as here"
    return facts, f"{len(answers)} workers, {threads} threads; {versions if answers else 'nothing to compare'}", problems


async def _ask_workers(address: str, limit_s: float) -> tuple[list[Any], int]:
    """Return each worker's versions, or the error that it raised, and the threads of all."""
    client = Client(address, asynchronous=True, timeout=limit_s, set_as_default=False)
    try:
        await client
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        answers = await client.run(library_versions, COMPARED, on_error="return")
        return list(answers.values()), sum(worker["nthreads"] for worker in workers)
    finally:
        await client.close()  # also one that never reached its scheduler, or it would try again when it is collected


def _differences(answer: Any, here: dict[str, str]) -> list[str]:
    """Return what a worker has in another version than this machine has, or why it cannot be asked."""
    if isinstance(answer, BaseException):
        return [f"wsi-meta cannot be used there ({type(answer).__name__}: {first_line(answer)})"]
    others = [(name, version, answer.get(name, "missing")) for name, version in here.items()]
    return [f"{name} is {there}, here {version}" for name, version, there in others if there != version]
