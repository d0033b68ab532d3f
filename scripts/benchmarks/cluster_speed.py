"""What a cluster costs and gains: two local processes beside one on the same cohort, and the scheduler's cost of a block.

    OMP_NUM_THREADS=1 PYTHONPATH=tests .venv/bin/python scripts/benchmarks/cluster_speed.py processes tasks

`tasks` sends tasks that do nothing but carry the real coordinates of blocks: as a scan sends them to 32 processes of two
threads, no more than there is room for, and all at the same time. What counts is the scheduler's own time: here it shares two
cores with the command and the workers.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from cluster_cohort import SETTINGS, Cohort, running
from distributed import Client, as_completed
from stores import make_record

from wsi_meta.cohorts.batch import scan_slides
from wsi_meta.inference.options import InferenceOptions
from wsi_meta.scanning.cluster import ClusterJob
from wsi_meta.scanning.cluster_queue import BlockFlow, Room
from wsi_meta.scanning.gpus import GpuProcesses
from wsi_meta.scanning.threads import Turn
from wsi_meta.tiling.grid import Block, PatchGrid

CAMELYON = (97_792, 221_184, 0.243)
"""Level-0 pixels, width and height, and um per pixel of a Camelyon16 slide."""
SIDES_PX = (1152, 1344)
"""Height and width of the slides for `processes`: 168 cells each, beside which the command's own work counts little."""
WORKERS, THREADS = 2, 32
"""Of the cluster for `tasks`: as many threads as 32 GPUs with two blocks each."""


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measures: dict[str, Callable[[argparse.Namespace, Path], None]] = {"processes": _processes, "tasks": _tasks}
    parser.add_argument("measures", nargs="+", choices=measures)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--slides", type=int, default=4)
    asked = parser.parse_args()
    for measure in asked.measures:
        with tempfile.TemporaryDirectory(prefix="wsi-meta-cluster-") as folder:
            measures[measure](asked, Path(folder))


def _processes(asked: argparse.Namespace, folder: Path) -> None:
    """Time the same cohort with one process and with two, of as many threads; the first slide only warms them up.

    A process that has two blocks in work uses two cores as well, so that is timed, too.
    """
    cohort = Cohort.drawn(folder, 1 + asked.slides, SIDES_PX)
    print("| processes | blocks in each | seconds | cells/s | |\n|---|---|---|---|---|")
    for gpus, blocks in (("0", 1), ("0,1", 1), ("0", 2)):
        out = folder / f"out-{gpus}-{blocks}"
        with GpuProcesses(gpus).started("cpu", blocks) as client:
            scan_slides(cohort.slides[:1], out, scheduler=client, **SETTINGS)
            began = time.perf_counter()
            rows = scan_slides(cohort.slides[1:], out, scheduler=client, **SETTINGS)
            seconds = time.perf_counter() - began
        cells, processes = sum(row["scanned"] for row in rows), len(gpus.split(","))
        print(f"| {processes} | {blocks} | {seconds:.1f} | {cells / seconds:,.1f} | {cohort.told(out)} |", flush=True)


def _nothing(_job: ClusterJob, _block: Block) -> int:
    return 0


def _tasks(asked: argparse.Namespace, folder: Path) -> None:
    """Time tasks that do nothing, and look at the scheduler's memory."""
    grid = PatchGrid(*CAMELYON, 0.972, 96, 32, block_px=3840)
    identity = make_record(grid).identity
    path, asks = Path("/data/camelyon16/slides/tumor_001.tif"), InferenceOptions("cuda", "bf16")
    job = ClusterJob("wsi-meta-0", path.with_suffix(".zarr"), path, 0.243, path.with_suffix(".safetensors"), asks, identity)
    blocks = list(islice(cycle(grid.blocks()), asked.tasks))
    print(
        f"{asked.tasks:,} tasks, {len(pickle.dumps((job, blocks[0])))} bytes of coordinates each, {WORKERS * THREADS} threads"
    )
    print(
        "| sent | seconds | ms a task | of them the scheduler | its memory before, at most, after (MB) |\n|---|---|---|---|---|"
    )
    ways: dict[str, Callable[[Client, ClusterJob, list[Block]], None]] = {"as there is room": _flow, "all at once": _at_once}
    for told, send in ways.items():
        file = folder / f"{told.replace(' ', '-')}.json"
        with ExitStack() as stack:
            start = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
            options = ["--no-dashboard", "--scheduler-file", file]
            scheduler = stack.enter_context(running([*start, *options], folder / "log"))
            work = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", file, "--no-dashboard"]
            sizes = ["--nworkers", WORKERS, "--nthreads", THREADS, "--local-directory", folder]
            stack.enter_context(running([*work, *sizes], folder / "log"))
            client = stack.enter_context(Client(scheduler_file=str(file), set_as_default=False, timeout=60))
            client.wait_for_workers(WORKERS, timeout=120)
            send(client, job, blocks[:100])
            before, spent, began = _memory_mb(scheduler.pid, "VmRSS"), _cpu_s(scheduler.pid), time.perf_counter()
            send(client, job, blocks)
            seconds, spent = time.perf_counter() - began, _cpu_s(scheduler.pid) - spent
            memory = [before, _memory_mb(scheduler.pid, "VmHWM"), _memory_mb(scheduler.pid, "VmRSS")]
            each = " | ".join(f"{1000 * part / len(blocks):.2f}" for part in (seconds, spent))
            print(f"| {told} | {seconds:.1f} | {each} | {', '.join(f'{part:.0f}' for part in memory)} |", flush=True)


def _flow(client: Client, job: ClusterJob, blocks: list[Block]) -> None:
    turn = Turn()
    turn.begin(len(blocks))
    room = Room(lambda: sum(client.nthreads().values()))
    BlockFlow(client, room, lambda block: client.submit(_nothing, job, block, pure=False)).run(job.slide, blocks, turn, _drop)


def _at_once(client: Client, job: ClusterJob, blocks: list[Block]) -> None:
    futures = [client.submit(_nothing, job, block, pure=False) for block in blocks]
    for future in as_completed(futures, loop=client.loop):
        future.result()


def _drop(_result: Any) -> None:
    """Take what a task returns, and do nothing with it."""


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return float(np.array([int(line.split()[1]) for line in lines if line.startswith(f"{name}:")]).item() / 1024)


if __name__ == "__main__":
    _main()
