"""Cohorts on clusters that break: each trial says what happened, and whether the stores are bit-equal to a run in one process.

    hosts   a dask cluster on three hosts with addresses of their own (network namespaces of this machine, made and removed
            here; needs root): one is cut off in the middle, until the scheduler has dropped it, and comes back
    deaths  workers that are killed as a Poisson process
    shards  three commands with --shard 0/3, 1/3 and 2/3 at once into one folder; one is killed and started again

    PYTHONPATH=tests .venv/bin/python scripts/benchmarks/cluster_trials.py hosts deaths shards

What is started has one thread of torch each, the run in one process as many as there are cores: maps must not depend on that.
Exits with 1 where anything differs. A trial takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dask
from cluster_cohort import SETTINGS, Cohort, running
from distributed import Client, LocalCluster

from wsi_meta.cohorts.batch import scan_slides
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.scanning.cluster_client import reached

COUNT = 12
"""Slides of a cohort."""
SIDES_PX = (576, 672)
HOSTS = 3
NETWORK = "10.213.77"
QUICK = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "15s", "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "12s"}
"""So that a host that is cut off is dropped in seconds, not in minutes (dask refuses 10 s and less)."""
WAIT_S = 600.0
SEED = 0
BETWEEN_S = 6.0
"""Mean time from one death to the next."""
PRELOADED = ["torch", "zarr", "distributed.nanny", "wsi_meta.scanning.scan", "wsi_meta.scanning.cluster"]
"""What a worker that takes a dead one's place need not import again."""


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trials: dict[str, Callable[[Cohort, Path, int], list[str]]] = {"hosts": _hosts, "deaths": _deaths, "shards": _shards}
    parser.add_argument("trials", nargs="+", choices=trials)
    parser.add_argument("--deaths", type=int, default=30)
    asked = parser.parse_args()
    if "hosts" in asked.trials and (os.geteuid() or shutil.which("ip") is None):
        sys.exit("hosts: network namespaces need root and the command 'ip'; run it as root on Linux, or leave hosts out")
    with tempfile.TemporaryDirectory(prefix="wsi-meta-cluster-") as name:
        folder = Path(name)
        cohort = Cohort.drawn(folder, COUNT, SIDES_PX)
        wrong = []
        for trial in dict.fromkeys(asked.trials):
            began = time.monotonic()
            _say(f"{trial}: {COUNT} slides of {SIDES_PX[0]} x {SIDES_PX[1]} px")
            (own := folder / trial).mkdir()
            wrong += trials[trial](cohort, own, asked.deaths)
            _say(f"{trial}: {time.monotonic() - began:.0f} s")
    sys.exit(int(bool(wrong)))


def _say(text: str) -> None:
    print(text, flush=True)


def _hosts(cohort: Cohort, folder: Path, _deaths: int) -> list[str]:
    """Cut one of three hosts off while a cohort is scanned."""
    out, file, cells = folder / "out", folder / "scheduler.json", _Counter()
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", f"{NETWORK}.1", "--port", "0"]
    with _network() as enter, ExitStack() as stack:
        options = ["--no-dashboard", "--scheduler-file", file]
        stack.enter_context(running([*scheduler, *options], folder / "scheduler.log", **QUICK))
        _until(file.exists, "the scheduler writes its file")

        def start(host: int) -> None:
            worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", file, "--nthreads", "1"]
            place = ["--no-dashboard", "--local-directory", folder / f"host{host}"]
            stack.enter_context(running([*enter(host), *worker, *place], folder / f"host{host}.log", **QUICK))

        for host in range(HOSTS):
            start(host)
        client = stack.enter_context(reached(file))
        client.wait_for_workers(HOSTS, timeout=120)
        _say(f"workers at {', '.join(sorted(client.nthreads()))}")
        cutting = threading.Thread(target=_cut, args=(client, cells, start))
        cutting.start()
        rows = scan_slides(cohort.slides, out, scheduler=file, progress=cells, **SETTINGS)
        cells.ended.set()
        cutting.join()
    efforts = {path.stem: Heatmap.open(path).record.effort for path in sorted(out.glob("*.zarr"))}
    hosts = {slide: effort.hosts for slide, effort in efforts.items() if effort is not None}
    _say("slides by host: " + ", ".join(f"{slide}: {'+'.join(of_slide)}" for slide, of_slide in hosts.items()))
    _say(f"{sum(bool(row['complete']) for row in rows)} of {len(rows)} slides complete; {cohort.told(out)}")
    return cohort.differences(out) + ([] if cells.came_back else ["the host came back too late"])


class _Counter:
    """Counts the cells that are done."""

    def __init__(self) -> None:
        self.done: dict[Path, int] = {}
        self.ended = threading.Event()
        self.came_back = False

    def __call__(self, slide: Path, done: int, _of: int) -> None:
        self.done[slide] = done

    @property
    def cells(self) -> int:
        return sum(self.done.values())


def _cut(client: Client, cells: _Counter, start: Callable[[int], None]) -> None:
    """Take the link of the last host down when work is going on, until the scheduler drops it; then up again.

    A worker of dask ends itself when its scheduler is gone, so a new one is started, as a service manager would.
    """
    _until(lambda: cells.cells > 40 or cells.ended.is_set(), "work is going on")
    link = f"wsm{HOSTS - 1}"
    _ip("link", "set", link, "down")
    began = time.monotonic()
    _say(f"host {HOSTS - 1} is cut off after {cells.cells:,} cells")
    _until(lambda: len(client.nthreads()) < HOSTS, "the scheduler drops it")
    _say(f"the scheduler dropped it after {time.monotonic() - began:.1f} s, at {cells.cells:,} cells")
    _ip("link", "set", link, "up")
    began = time.monotonic()
    start(HOSTS - 1)
    _until(lambda: len(client.nthreads()) == HOSTS, "it comes back")
    cells.came_back = not cells.ended.is_set()
    _say(f"it is back {time.monotonic() - began:.1f} s after its link, at {cells.cells:,} cells")


@contextmanager
def _network() -> Iterator[Callable[[int], list[str]]]:
    """Make a bridge and three hosts on it; yield what returns the words that begin a command on one of them."""
    names = [f"wsm-host{host}" for host in range(HOSTS)]
    _remove_network(names)  # what a trial that was killed has left
    try:
        _ip("link", "add", "wsm-bridge", "type", "bridge")
        _ip("addr", "add", f"{NETWORK}.1/24", "dev", "wsm-bridge")
        _ip("link", "set", "wsm-bridge", "up")
        for host, name in enumerate(names):
            _ip("netns", "add", name)
            _ip("link", "add", f"wsm{host}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", f"wsm{host}", "master", "wsm-bridge", "up")
            _ip("-n", name, "addr", "add", f"{NETWORK}.{host + 2}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")

        def enter(host: int) -> list[str]:
            named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', f"host{host}"]
            return ["ip", "netns", "exec", names[host], *named]

        yield enter
    finally:
        _remove_network(names)


def _remove_network(names: list[str]) -> None:
    links = [f"wsm{host}" for host in range(HOSTS)]  # a namespace's links would go some time after it
    for words in (
        *(("link", "delete", link) for link in (*links, "wsm-bridge")),
        *(("netns", "delete", name) for name in names),
    ):
        subprocess.run(["ip", *words], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _until(condition: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"waited {WAIT_S:g} s until {what}")
        time.sleep(0.05)


def _deaths(cohort: Cohort, folder: Path, deaths: int) -> list[str]:
    """Kill workers while the cohort is scanned, again and again until enough have died."""
    wrong: list[str] = []
    rng, dead, rounds = random.Random(SEED), list[float](), 0
    import multiprocessing

    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    quiet = {"distributed.worker.multiprocessing-method": "forkserver"}
    with (
        dask.config.set(quiet),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=60) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        ended = threading.Event()
        killing = threading.Thread(target=_kill, args=(client, rng, deaths, dead, ended))
        killing.start()
        while killing.is_alive() or not rounds:
            out, rounds, before = folder / f"out{rounds}", rounds + 1, len(dead)
            rows = scan_slides(cohort.slides, out, scheduler=client, **SETTINGS)
            failed = [str(row["error"]) for row in rows if row["error"]]
            wrong += failed + cohort.differences(out)
            _say(f"round {rounds}: {len(dead) - before} deaths; {len(failed)} slides failed; {cohort.told(out)}")
        ended.set()
        killing.join()
    _say(f"{len(dead)} workers were killed in {rounds} rounds, {BETWEEN_S} s apart on average (exponential)")
    return wrong


def _kill(client: Client, rng: random.Random, deaths: int, dead: list[float], ended: threading.Event) -> None:
    while len(dead) < deaths and not ended.wait(rng.expovariate(1 / BETWEEN_S)):
        pids = [pid for pid in client.run(os.getpid, on_error="return").values() if isinstance(pid, int)]
        if pids:
            os.kill(rng.choice(pids), signal.SIGKILL)
            dead.append(time.monotonic())


def _shards(cohort: Cohort, folder: Path, _deaths: int) -> list[str]:
    """Run three shards at once; kill one after its first slide, and start it again."""
    out = folder / "out"
    sizes = ["--stride", SETTINGS["stride_px"], "--batch-size", SETTINGS["batch_size"]]
    options = [*sizes, "--precision", SETTINGS["precision"], "--device", SETTINGS["device"]]
    scan = [sys.executable, "-m", "wsi_meta", "scan", cohort.slides[0].parent, "--out", out, *options, "--shard"]

    def shard(number: int) -> ExitStack:
        stack = ExitStack()
        stack.process = stack.enter_context(running([*scan, f"{number}/3"], folder / f"{number}.log"))  # type: ignore[attr-defined]
        return stack

    shards = [shard(number) for number in range(3)]
    _until(lambda: (out / "summary.csv").exists() and len(list(out.glob("*.zarr"))) > 3, "a shard has finished a slide")
    shards[1].process.kill()  # type: ignore[attr-defined]
    shards[1].process.wait()  # type: ignore[attr-defined]
    _say(f"shard 1/3 is killed when {len(list(out.glob('*.zarr')))} stores stand, of which {_finished(out)} are finished")
    shards.append(shard(1))
    codes = [stack.process.wait() for stack in shards]  # type: ignore[attr-defined]
    with (out / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    slides = [Path(row["slide"]).name for row in rows]
    whole = sorted(slides) == [slide.name for slide in cohort.slides] and all(row["complete"] == "True" for row in rows)
    left = sorted(path.name for path in out.iterdir() if path.name.startswith("."))
    _say(f"exit codes {codes}; summary.csv: {len(rows)} rows, {'each slide once' if whole else 'NOT each slide once'}")
    _say(f"left over: {', '.join(left) or 'nothing'}; {cohort.told(out)}")
    return cohort.differences(out) + ([] if whole and not left else ["the summary is not whole, or something is left"])


def _finished(out: Path) -> int:
    return sum(Heatmap.open(path).finished for path in out.glob("*.zarr"))


if __name__ == "__main__":
    _main()
