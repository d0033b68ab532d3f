"""One process for each GPU; here they are processes on the CPU."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import start_child
from distributed import Client
from slide_files import texture, write_slide

from wsi_meta.errors import DeviceError, OptionsError
from wsi_meta.scanning.gpus import PINNED, GpuProcesses, dask_setup, visible_device
from wsi_meta.scanning.options import choose_scheduler
from wsi_meta.scanning.scan import scan
from wsi_meta.scanning.scanner import Scanner

DIE_S = 20.0
SEEN = (PINNED, "OMP_NUM_THREADS")


@pytest.mark.parametrize("gpus", ["", "a", "0,0", "1-2", "-1", "0,,1", "ALL"])
def test_no_gpus(gpus: str) -> None:
    with pytest.raises(OptionsError, match="expected all, or numbers such as 0,1, each once"):
        GpuProcesses(gpus)


def test_a_daemonic_process_says_that_it_may_start_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match="GPUs 0: this is a daemonic process"), GpuProcesses("0").started("cpu", 1):
        pass


def test_what_does_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="--scheduler and --gpus; expected one of them"):
        choose_scheduler("tcp://host:1", None, "0")
    assert choose_scheduler(None, None, None) == "threads"
    assert choose_scheduler(None, tmp_path, None) == tmp_path
    for gpus, device in (("0", "cuda:0"), ("all", "cpu")):
        with pytest.raises(OptionsError, match=rf"GPUs {gpus}, device {device}"):
            Scanner(scheduler=GpuProcesses(gpus), device=device)
    with pytest.raises(OptionsError, match=r"scheduler host:1; expected threads or synchronous"):
        Scanner(scheduler="host:1")


@pytest.mark.parametrize(
    ("number", "visible", "told"), [(1, None, "1"), (1, "", "1"), (0, "3,5", "3"), (1, "GPU-aa, GPU-bb", "GPU-bb")]
)
def test_a_gpu_is_counted_among_those_that_this_process_sees(number: int, visible: str | None, told: str) -> None:
    assert visible_device(number, visible) == told


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs")
def test_a_machine_without_gpus_says_so(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.tif", texture(64, 64))
    with (
        pytest.raises(DeviceError, match="--gpus all: torch sees no GPU on this machine; leave --gpus out"),
        Scanner(scheduler=GpuProcesses()) as scanner,
    ):
        scanner.scan(slide, tmp_path / "h.zarr")
    assert not (tmp_path / "h.zarr").exists()


def environment_here() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Two processes; nothing is left of them, or changed in this one."""
    temporary, before = tmp_path_factory.mktemp("temporary"), environment_here()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        with GpuProcesses("3,1").started("cpu", 2) as made:
            yield made
    left = {path.name.partition("-")[0] for path in temporary.iterdir()}
    assert left <= {"pymp"}, "multiprocessing removes its own folder when this process ends"
    assert environment_here() == before


def test_each_process_sees_its_own_gpu_and_its_share_of_the_cores(client: Client) -> None:
    def environment() -> list[str | None]:
        return [os.environ.get(name) for name in SEEN]

    share = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert sorted(client.run(environment).values()) == [["1", share], ["3", share]]
    assert set(client.nthreads().values()) == {2}


def test_a_process_that_has_torch_already_keeps_to_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the script that uses them imports torch at its top: each process imports the script first."""
    set_to: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(logging.getLogger("wsi_meta"), "setLevel", lambda _: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    dask_setup(None)
    assert set_to == [3]


def test_they_give_the_map_of_one_process(client: Client, model_file: Path, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "node.tif", texture(64, 130))
    settings: dict[str, Any] = {"model": model_file, "precision": "fp32", "device": "cpu", "block_px": 64, "batch_size": 4}
    spread = scan(slide, tmp_path / "spread.zarr", scheduler=client, **settings)
    np.testing.assert_array_equal(spread.probability, scan(slide, tmp_path / "alone.zarr", **settings).probability)


def start_and_stay(told: Path, temporary: Path) -> None:
    """Start processes, tell which they are, and wait to be killed."""
    tempfile.tempdir = str(temporary)
    with GpuProcesses("0,1").started("cpu", 1) as client:
        pids = list(client.run(os.getpid).values())
        told.with_suffix(".new").write_text(json.dumps(pids))
        told.with_suffix(".new").rename(told)
        time.sleep(10 * DIE_S)


def runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_they_die_with_the_command_that_is_killed_and_what_is_left_goes_at_the_next_start(tmp_path: Path) -> None:
    told, temporary = tmp_path / "pids.json", tmp_path / "temporary"
    temporary.mkdir()
    child = start_child(partial(start_and_stay, told, temporary), tmp_path / "log")
    while not told.exists():
        assert child.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.02)
    pids = json.loads(told.read_text())
    assert all(map(runs, pids))
    child.kill()
    ends = time.monotonic() + DIE_S
    while any(map(runs, pids)):
        assert time.monotonic() < ends, "they outlive it"
        time.sleep(0.02)
    (left,) = temporary.glob(".wsi-meta.*")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        with GpuProcesses("0").started("cpu", 1):
            assert not left.exists()
    assert list(temporary.glob(".wsi-meta.*")) == []
