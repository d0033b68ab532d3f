"""On a dask cluster that lives on: what workers keep goes by content, and they compute where and what they are asked to."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import start_child
from distributed import Client, LocalCluster, Worker
from fakes import scan_darkness, write_shifted
from slide_files import texture, write_slide
from stores import write_block

from wsi_meta.errors import DeviceError, ModelFileError, OptionsError, SlideReadError
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.inference.options import InferenceOptions
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.model import Model, load_model
from wsi_meta.scanning.cluster import ClusterJob, KeptOnWorker, scan_block
from wsi_meta.scanning.cluster_client import reached
from wsi_meta.scanning.scan import scan
from wsi_meta.scanning.scanner import Scanner

PREDICTING: dict[str, Any] = {"precision": "fp32", "batch_size": 4, "device": "cpu"}
COMMON: dict[str, Any] = PREDICTING | {"block_px": 64}
"""Blocks of 2 x 2 cells, a batch each."""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def alone(model_file: Path) -> Predictor:
    """The model, in this process."""
    return Predictor(load_model(model_file), **PREDICTING)


def test_two_workers_give_the_map_of_one_process(client: Client, model_file: Path, alone: Predictor, tmp_path: Path) -> None:
    """Workers load the model for themselves, so here it is a file."""
    slide = write_slide(tmp_path / "node.tif", texture(64, 192))
    expected = scan(slide, tmp_path / "alone.zarr", predictor=alone, scheduler="synchronous", tissue_mask="none").probability
    heatmap = scan(slide, tmp_path / "h.zarr", model=model_file, scheduler=client, tissue_mask="none", **COMMON)
    np.testing.assert_array_equal(heatmap.probability, expected)
    assert np.unique(expected).size == expected.size == 12
    effort = heatmap.record.effort
    assert effort is not None
    assert (effort.cells, effort.hosts, effort.runs) == (12, (socket.gethostname(),), 1), "as the workers say"
    assert min(effort.reading_s, effort.computing_s, effort.writing_s, effort.passed_s) > 0


def kept(client: Client) -> int:
    """How many of our plugins the workers hold."""

    def count(dask_worker: Any) -> int:
        return sum(name.startswith("wsi-meta-") for name in dask_worker.plugins)

    return int(max(client.run(count).values()))


def test_a_replaced_model_and_a_replaced_slide_give_the_new_map(client: Client, model_file: Path, tmp_path: Path) -> None:
    slide, model = write_slide(tmp_path / "s.tif", texture(64, 128, 1)), tmp_path / "m.safetensors"
    shutil.copyfile(model_file, model)
    old = scan(slide, tmp_path / "old.zarr", model=model, scheduler=client, **COMMON).probability
    write_shifted(model, model_file, 2.0)
    alone = Predictor(load_model(model), **PREDICTING)

    with Scanner(model, scheduler=client, **COMMON) as scanner:
        new = scanner.scan(slide, tmp_path / "new.zarr").probability
        expected = scan(slide, tmp_path / "alone.zarr", predictor=alone, block_px=64).probability
        write_slide(slide, texture(64, 128, 2))
        replaced = scanner.scan(slide, tmp_path / "replaced.zarr").probability
        assert kept(client) == 1
    assert kept(client) == 0, "gone with the scanner"
    np.testing.assert_array_equal(new, expected)
    assert not np.array_equal(old, new, equal_nan=True)
    np.testing.assert_array_equal(replaced, scan(slide, tmp_path / "again.zarr", predictor=alone, block_px=64).probability)
    assert not np.array_equal(replaced, new, equal_nan=True)


def work_elsewhere(folder: Path, scheduler: str) -> None:
    """Be a worker that was started in another folder."""

    async def work() -> None:
        async with Worker(scheduler, nthreads=2) as worker:
            await worker.finished()

    os.chdir(folder)
    asyncio.run(work())


def test_a_relative_out_is_written_where_the_caller_is(
    model_file: Path, alone: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = write_slide(tmp_path / "s.tif", texture(64, 128))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with LocalCluster(n_workers=0, processes=True, dashboard_address=":0") as cluster, Client(cluster) as client:
        worker = start_child(partial(work_elsewhere, tmp_path / "elsewhere", cluster.scheduler_address), tmp_path / "log")
        try:
            client.wait_for_workers(1, timeout=60)
            heatmap = scan(slide.name, "heat.zarr", model=os.path.relpath(model_file), scheduler=client, **COMMON)
        finally:
            worker.kill()
    assert heatmap.finished
    expected = scan(slide, "alone.zarr", predictor=alone, block_px=64).probability
    np.testing.assert_array_equal(Heatmap.open(tmp_path / "heat.zarr").probability, expected)


@pytest.fixture(scope="module")
def posing(model_file: Path, thin_model: Model) -> Model:
    """Has the name and hash of the model file, not its network."""
    return replace(thin_model, path=model_file, hash=hashlib.sha256(model_file.read_bytes()).hexdigest())


@pytest.fixture
def job(model_file: Path, posing: Model, tmp_path: Path) -> ClusterJob:
    slide = write_slide(tmp_path / "s.tif", texture(64, 128))
    heatmap = scan_darkness(slide, tmp_path / "h.zarr", model=posing, **COMMON)
    asked = InferenceOptions("cpu", "fp32", 8)
    return ClusterJob("scanner", heatmap.path, slide, 0.972, model_file, asked, heatmap.record.identity)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"device": "cuda"}, DeviceError, r"computes on cpu in fp32; the store was begun on cuda in fp32"),
        ({"precision": "int8"}, DeviceError, r"computes on cpu in fp32; the store was begun on cpu in int8"),
        ({"model": "0" * 64}, ModelFileError, "is another model than"),
        ({"slide": "0" * 64}, SlideReadError, "is another slide than"),
    ],
)
def test_a_worker_refuses_by_name_what_is_not_as_the_store_says(
    job: ClusterJob, change: dict[str, str], kind: type[Exception], told: str
) -> None:
    worker = KeptOnWorker()
    worker.setup()
    try:
        with pytest.raises(kind, match=told):
            worker.open(replace(job, identity=replace(job.identity, **change)))  # type: ignore[arg-type]
    finally:
        worker.teardown()


def test_a_worker_of_another_version_is_refused(job: ClusterJob) -> None:
    worker = KeptOnWorker()
    worker.setup()
    try:
        with pytest.raises(DeviceError, match=r"has wsi-meta .*, the scan is of 0\.0\.1; install the same on all machines"):
            worker.open(replace(job, version="0.0.1"))
    finally:
        worker.teardown()


def test_a_worker_is_named_that_does_not_see_a_file(client: Client, job: ClusterJob, tmp_path: Path) -> None:
    client.register_plugin(KeptOnWorker(), name=job.scanner)
    try:
        job, block = replace(job, slide=tmp_path / "elsewhere.tif"), Heatmap.open(job.store).grid.blocks()[0]
        with pytest.raises(SlideReadError, match=rf"worker {socket.gethostname()}: .*elsewhere\.tif: no such file"):
            client.submit(scan_block, job, block, pure=False).result(60)
    finally:
        client.unregister_worker_plugin(job.scanner)


def test_a_client_that_is_closed_is_refused(client: Client, model_file: Path, tmp_path: Path) -> None:
    with Client(str(client.scheduler_info()["address"]), set_as_default=False) as other:
        pass
    with pytest.raises(DeviceError, match="a client that is closed, or asynchronous"):
        scan(tmp_path / "s.tif", tmp_path / "h.zarr", model=model_file, scheduler=other, **COMMON)


def test_a_worker_keeps_two_slides_and_opens_each_once(job: ClusterJob, tmp_path: Path, posing: Model) -> None:
    jobs = [job]
    for number in range(2):
        slide = write_slide(tmp_path / f"{number}.tif", texture(64, 128, number + 5))
        heatmap = scan_darkness(slide, tmp_path / f"{number}.zarr", model=posing, **COMMON)
        jobs.append(replace(job, slide=slide, store=heatmap.path, identity=heatmap.record.identity))
    worker = KeptOnWorker()
    worker.setup()
    try:
        first, second = (worker.open(one)[0] for one in jobs[:2])
        assert first.predictor is second.predictor
        assert worker.open(jobs[0])[0].slide is first.slide
        worker.open(jobs[2])
        assert worker.open(jobs[1])[0].slide is second.slide
        assert worker.open(jobs[0])[0].slide is not first.slide, "the oldest one is gone"
    finally:
        worker.teardown()


def test_a_worker_that_comes_back_late_writes_only_what_is_still_open(job: ClusterJob) -> None:
    heatmap = Heatmap.open(job.store)
    block = heatmap.grid.blocks()[0]
    values = np.full(heatmap.status[block.cells].shape, 0.25, np.float32)
    status = np.full(values.shape, Status.SCANNED, np.uint8)
    worker = KeptOnWorker()
    worker.setup()

    def is_written(begun: ClusterJob) -> bool:
        before = Heatmap.open(job.store).probability
        late, there = worker.open(begun)
        if late.is_wanted(block):
            write_block(there, block, values, status, **dict.fromkeys(there.record.measures, values))
        return not np.array_equal(Heatmap.open(job.store).probability, before, equal_nan=True)

    try:
        assert not is_written(job), "the scan has ended"
        heatmap = heatmap.reopen()
        assert not is_written(job), "another worker did it"
        heatmap.clear_block(block, np.ones(values.shape, bool))
        assert is_written(job), "it is open"
        other = replace(heatmap.record, identity=replace(job.identity, slide="0" * 64))
        Heatmap.create(job.store, other, np.ones(heatmap.grid.shape, bool), overwrite=True)
        assert not is_written(job), "another slide's scan began there"
    finally:
        worker.teardown()


def test_a_cluster_is_reached_by_address_or_file_and_stays(client: Client, model_file: Path, tmp_path: Path) -> None:
    slide, address = write_slide(tmp_path / "s.tif", texture(64, 128)), str(client.scheduler_info()["address"])
    (tmp_path / "scheduler.json").write_text(json.dumps({"address": address}))
    maps = [
        scan(slide, tmp_path / f"{number}.zarr", model=model_file, scheduler=where, **COMMON).probability
        for number, where in enumerate((address, tmp_path / "scheduler.json"))
    ]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert client.status == "running"
    assert kept(client) == 0


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for name, content in (("cut", '{"addr'), ("number", "3"), ("without", "{}")):
        (tmp_path / name).write_text(content)
    for where, told in (
        ("tcp://127.0.0.1:9", "no answer from a dask scheduler within 0.2 s"),
        (tmp_path / "f", "no such file"),
        (tmp_path / "cut", "no file of a dask scheduler"),
        (tmp_path, "no file of a dask scheduler"),
        (tmp_path / "number", "says no address of a dask scheduler; expected what 'dask scheduler"),
        (tmp_path / "without", "says no address of a dask scheduler"),
    ):
        with pytest.raises(DeviceError, match=told), reached(where, answer_s=0.2):
            pass
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty,
        pytest.raises(DeviceError, match=r"no worker has joined in 0\.1 s; start some"),
        reached(empty.scheduler_address, join_s=0.1),
    ):
        pass


def test_a_predictor_does_not_travel(client: Client, alone: Predictor) -> None:
    with pytest.raises(OptionsError, match="in this process"):
        Scanner(predictor=alone, scheduler=client)
