"""Which device computes, and how threads share it.

A GPU's streams are played by the CPU: who gets which, what surrounds a pass, and that pixels take the whole way.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial, reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import start_child
from numpy.typing import NDArray
from slide_files import texture
from torch.nn.modules.module import register_module_forward_pre_hook

from wsi_meta.errors import DeviceError
from wsi_meta.files.process_settings import Setting, SharedSettings
from wsi_meta.inference.agreement import NetworkFactory, emulated_networks, fast_networks
from wsi_meta.inference.device import (
    SharedDevice,
    SharedGpu,
    announce_torch,
    cpu_supports,
    resolve_device,
    resolve_precision,
    share_device,
)
from wsi_meta.inference.fast_network import FastNetwork
from wsi_meta.inference.options import InferenceOptions, InferencePlan, resolve_inference
from wsi_meta.inference.predictor import Predictor, PredictorParts
from wsi_meta.inference.torch_settings import cpu_settings
from wsi_meta.models.model import Model, describe_patches


class FakeStream:
    """Counts what is made of it and waits for it."""

    made: list[FakeStream]

    def __init__(self, _device: torch.device) -> None:
        self.waited_for: list[object] = []
        self.made.append(self)

    def wait_stream(self, other: object) -> None:
        self.waited_for.append(other)

    def synchronize(self) -> None:
        """All is there."""


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[FakeStream]:
    """Return the streams that are made; none of them is a GPU's, and no memory is pinned."""
    FakeStream.made = []
    entered = threading.local()

    def enter(stream: FakeStream) -> nullcontext[None]:
        entered.stream = stream
        return nullcontext()

    empty = torch.empty

    def unpinned(*sizes: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return empty(*sizes, **options)

    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", enter)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: entered.stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _device: "default")
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    monkeypatch.setattr(torch, "empty", unpinned)
    return FakeStream.made


def in_threads(count: int, shared: SharedDevice) -> None:
    """Let so many threads compute, all at the same time."""
    together = threading.Barrier(count, timeout=30)

    def compute() -> None:
        with shared.turn():
            together.wait()

    threads = [threading.Thread(target=compute) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_streams_are_handed_on_to_the_next_threads(streams: list[FakeStream]) -> None:
    shared = share_device("cuda", exact=False, compiled=False)
    for count, made in ((1, 1), (1, 1), (3, 3), (2, 3), (3, 3)):
        in_threads(count, shared)
        assert len(streams) == made
    with pytest.raises(ZeroDivisionError), shared.turn():
        raise ZeroDivisionError
    in_threads(3, shared)

    assert len(streams) == 3, "work that failed gives its stream back"
    assert all(stream.waited_for == ["default"] for stream in streams), "once, for the weights"


def test_float32_is_not_rounded_to_tf32_and_others_keep_what_they_set() -> None:
    before = torch.backends.cudnn.allow_tf32
    for exact in (True, False):
        with share_device("cuda", exact=exact, compiled=False).passing():
            assert torch.backends.cudnn.allow_tf32 is (before and not exact)
            assert torch.backends.cudnn.enabled
        assert torch.backends.cudnn.allow_tf32 is before
    assert before


def meet(devices: list[SharedDevice], wait: float) -> list[tuple[int, bool]]:
    """Let threads pass at the same time, if they can; return how many were in a pass, and whether TF32 was allowed in it."""
    inside, seen = [0], []
    together = threading.Barrier(len(devices))

    def run(shared: SharedDevice) -> None:
        with shared.passing():
            inside[0] += 1
            allowed = torch.backends.cudnn.allow_tf32
            with suppress(threading.BrokenBarrierError):
                together.wait(wait)  # the other one comes in too, or never does
            seen.append((inside[0], allowed))
            assert torch.backends.cudnn.allow_tf32 is allowed, "no other thread changes it during a pass"
            inside[0] -= 1

    with ThreadPoolExecutor(len(devices)) as pool:
        for done in [pool.submit(run, shared) for shared in devices]:
            done.result()
    return seen


@pytest.mark.parametrize(("options", "most"), [({"exact": True}, 2), ({"compiled": True}, 1), ({}, 2)])
def test_passes_that_may_not_overlap_do_not(options: dict[str, bool], most: int) -> None:
    shared = share_device("cuda", **({"exact": False, "compiled": False} | options))

    seen = meet([shared, shared], 30 if most > 1 else 0.3)

    assert max(count for count, _ in seen) == most


@pytest.mark.parametrize(("exact", "most"), [((True, False), 1), ((False, True), 1), ((True, True), 2), ((False, False), 2)])
def test_two_predictors_do_not_change_cudnn_under_each_other(exact: tuple[bool, bool], most: int) -> None:
    """Each has a device of its own, but the setting is one of the whole process."""
    before = torch.backends.cudnn.allow_tf32
    devices = [share_device("cuda", exact=value, compiled=False) for value in exact]

    seen = meet(devices, 30 if most > 1 else 0.3)

    assert max(count for count, _ in seen) == most
    assert sorted(allowed for _, allowed in seen) == sorted(before and not value for value in exact)
    assert torch.backends.cudnn.allow_tf32 is before


@contextmanager
def told(setter: Callable[[Any], None], value: object, before: object) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(before)


def test_settings_are_put_back_whatever_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C as a thread comes in, and a setting that is refused after another one was made."""
    values = {"a": 1, "b": 1}

    def write(name: str, value: int) -> None:
        if value == 3:
            raise KeyboardInterrupt
        values[name] = value

    shared = SharedSettings()
    for wanted in ((2, 2), (2, 3)):
        settings = [
            Setting(partial(values.get, name), partial(write, name), value) for name, value in zip("ab", wanted, strict=True)
        ]
        with pytest.raises(KeyboardInterrupt), shared.holding(wanted, partial(list, settings)):
            raise KeyboardInterrupt
        assert values == {"a": 1, "b": 1}
    with shared.holding("others", list):
        assert not shared.awaited


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_amid_a_pass_leaves_the_settings_as_they_were() -> None:
    with told(partial(setattr, torch.backends.mkldnn, "enabled"), False, True), cpu_settings():
        pid = os.fork()
        if not pid:
            with cpu_settings():
                inside = bool(torch.backends.mkldnn.enabled)
            os._exit(0 if inside and not torch.backends.mkldnn.enabled else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


HOSTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "onednn off": lambda: told(partial(setattr, torch.backends.mkldnn, "enabled"), False, True),
    "rounded products": lambda: told(torch.set_float32_matmul_precision, "medium", "highest"),
    "numbers of 64 bits": lambda: told(torch.set_default_dtype, torch.float64, torch.float32),
    "another device": lambda: torch.device("meta"),
    "one thread": lambda: told(torch.set_num_threads, 1, torch.get_num_threads()),
}


@pytest.mark.parametrize("networks", [fast_networks, emulated_networks("cpu")])
def test_networks_that_are_compared_compute_by_the_settings_of_passes(thin_model: Model, networks: NetworkFactory) -> None:
    seen: list[tuple[bool, bool]] = []
    compute = networks(thin_model, "fp32", False)

    def look(*_values: object) -> None:
        seen.append((bool(torch.backends.mkldnn.enabled), torch.is_autocast_enabled("cpu")))

    with (
        HOSTS["onednn off"](),
        torch.autocast("cpu", torch.bfloat16),
        register_module_forward_pre_hook(look),
        torch.inference_mode(),
    ):
        compute(torch.zeros((1, 96, 96, 3), dtype=torch.uint8))
        assert not torch.backends.mkldnn.enabled

    assert set(seen) == {(True, False)}


def test_a_thread_that_waits_to_change_settings_is_not_overtaken() -> None:
    settings, order = SharedSettings(), []

    def hold(wanted: str) -> None:
        with settings.holding(wanted, list):
            order.append(wanted)

    with ThreadPoolExecutor(2) as pool:
        with settings.holding("these", list):
            first = pool.submit(hold, "those")
            while not settings.awaited:
                time.sleep(0.001)
            second = pool.submit(hold, "these")
            time.sleep(0.1)
            assert order == []
        first.result()
        second.result()

    assert order == ["those", "these"]


def all_logits(model: Model) -> list[NDArray[np.float32]]:
    """Return what a model makes of some pixels, in both modes and two precisions, and how they look to it."""
    image, patches = texture(384, 384), torch.from_numpy(np.stack([texture(96, 96, seed) for seed in range(5)]))
    found = []
    for precision in ("fp32", "bf16"):
        found.append(Predictor(model, device="cpu", precision=precision).predict_patches(patches))
        dense = Predictor(model, device="cpu", precision=precision, dense=True)
        found.append(dense.predict_image(image, np.ones((2, 2), bool), 32))
    with cpu_settings():
        return [*found, describe_patches(model, patches.numpy())]


@pytest.fixture(scope="module")
def logits_by_themselves(thin_model: Model) -> list[NDArray[np.float32]]:
    return all_logits(thin_model)


@pytest.mark.parametrize("host", HOSTS)
def test_logits_do_not_depend_on_what_the_program_around_set(
    thin_model: Model, logits_by_themselves: list[NDArray[np.float32]], host: str
) -> None:
    """And what it set is as before."""

    def state() -> list[object]:
        return [torch.get_float32_matmul_precision(), bool(torch.backends.mkldnn.enabled), torch.is_autocast_enabled("cpu")]

    with HOSTS[host]():
        before = state()
        found = all_logits(thin_model)
        assert state() == before
    for one, other in zip(found, logits_by_themselves, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has one word for each setting")
@pytest.mark.parametrize(("path", "word"), [((), "tf32"), (("cudnn",), "ieee"), (("cudnn", "conv"), "ieee")])
def test_the_newer_words_of_torch_are_understood_too(path: tuple[str, ...], word: str, tmp_path: Path) -> None:
    """They are said in processes of their own: some cannot be taken back."""

    def check() -> None:
        backends: Any = import_module("torch").backends  # a module that is named travels to the process: this one cannot
        reduce(getattr, path, backends).fp32_precision = word
        backends.cudnn.benchmark = True
        parts = backends, backends.cudnn, backends.cudnn.conv, backends.cuda.matmul
        before = [part.fp32_precision for part in parts]
        for exact in (True, False):
            with share_device("cuda", exact=exact, compiled=False).passing():
                assert parts[2].fp32_precision == ("ieee" if exact else "tf32")
                assert parts[3].fp32_precision == "ieee"
                assert not backends.cudnn.benchmark
            assert before == [part.fp32_precision for part in parts]
            assert backends.cudnn.benchmark
        if not path:
            backends.fp32_precision = "ieee"
            assert parts[3].fp32_precision == "ieee", "it follows the wider one, as before"

    assert start_child(check, tmp_path / "log").wait() == 0, (tmp_path / "log").read_text()


@pytest.mark.parametrize("dense", [False, True])
def test_what_is_sent_computed_and_fetched_by_streams_is_what_the_cpu_gives(
    thin_model: Model, streams: list[FakeStream], dense: bool
) -> None:
    def compiler(network: FastNetwork, device: str, **_: int) -> FastNetwork:
        return network  # what is compiled does not run in bands: no more does what is on a GPU

    def share(device: str, *, exact: bool, compiled: bool) -> SharedGpu:
        return SharedGpu(device, exact=exact, compiled=False)

    plan = InferencePlan("cpu", "fp32", 8, views=1)
    predictor, streaming = (
        Predictor.from_plan(thin_model, plan, dense=dense, compiled=True, parts=parts)
        for parts in (PredictorParts(compiler=compiler), PredictorParts(compiler=compiler, share=share))
    )
    side = 3 * 32 + 2 * (32 + predictor.halo_px)
    images, wanted = [texture(side, side, seed) for seed in range(4)], np.ones((3, 3), bool)
    expected = [predictor.predict_image(image, wanted, 32) for image in images]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda image: streaming.predict_image(image, wanted, 32), images))

    np.testing.assert_array_equal(found, expected)
    assert 1 <= len(streams) <= 2


def test_a_gpu_is_named_by_its_number_for_threads_that_have_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)

    assert {resolve_inference(InferenceOptions(name, "fp32")).device for name in ("auto", "cuda")} == {"cuda:1"}
    assert resolve_inference(InferenceOptions("cuda:0", "fp32")).device == "cuda:0"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu() -> None:
    assert resolve_device() == resolve_device("cpu:0") == "cpu"
    with pytest.raises(DeviceError, match="--device cuda: no CUDA GPU is available on this machine; use --device cpu"):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("instructions", "precision"),
    [(set(), "fp32"), ({"vnni"}, "fp32"), ({"avx512_bf16"}, "bf16"), ({"amx_tile", "vnni"}, "bf16")],
)
def test_auto_is_bf16_where_the_cpu_multiplies_it(instructions: set[str], precision: str) -> None:
    assert resolve_precision("auto", "cpu", supports=instructions.__contains__) == precision
    assert resolve_precision("fp32", "cpu", supports=instructions.__contains__) == "fp32"


@pytest.mark.parametrize(
    ("instructions", "precision"),
    [(set(), "fp32"), ({"vnni"}, "int8"), ({"avx512_bf16"}, "bf16"), ({"amx_tile", "vnni"}, "int8")],
)
def test_auto_is_int8_where_it_agrees_and_the_cpu_multiplies_it(instructions: set[str], precision: str) -> None:
    supports = instructions.__contains__

    assert resolve_precision("auto", "cpu", int8_agrees=True, supports=supports) == precision
    assert resolve_precision("fp32", "cpu", int8_agrees=True, supports=supports) == "fp32"
    assert resolve_precision("bf16", "cpu", int8_agrees=True, supports=supports) == "bf16"


def test_a_cpu_lacks_what_torch_cannot_tell() -> None:
    assert cpu_supports("vnni") is torch.cpu._is_vnni_supported()
    assert cpu_supports("nothing_of_this_name") is False


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, wsi_meta.inference.device, wsi_meta.inference.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_loading_torch_is_announced_where_it_is_not_there_yet(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "wsi_meta")
    announce_torch()
    assert caplog.messages == []
    monkeypatch.delitem(sys.modules, "torch")
    announce_torch()
    assert caplog.messages == ["loading torch, which takes some seconds"]
