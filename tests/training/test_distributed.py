from __future__ import annotations

import csv
import json
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import start_child
from json_output import result_of
from tiny import ALONE, HERE, TINY, Tiny, learners, run_command, train_tiny

from wsi_meta.errors import DeviceError
from wsi_meta.models.card import read_card
from wsi_meta.training.checkpoint import checkpoint_path
from wsi_meta.training.distributed import Processes, find_processes, joined_processes
from wsi_meta.training.learner import Learner
from wsi_meta.training.loader import EpochBatches
from wsi_meta.training.recipe import Augmentation, Recipe

AS_IT_IS = Augmentation().without("turn", "shift", "stain", "stain-offset", "brightness", "contrast", "blur", "jpeg")
RECIPE = Recipe(
    epochs=3, lr=0.02, lr_loaded=0.02, batch_size=8, freeze="none", mosaics=0, batchnorm="frozen", augmentation=AS_IT_IS
)


# --- which patches for which process


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_out_the_batches_that_one_alone_would_have(count: int) -> None:
    recipe = Recipe(batch_size=8, seed=3)
    alone = list(EpochBatches(50, recipe, ALONE))
    shares = [list(EpochBatches(50, recipe, Processes(rank, count, "cpu"))) for rank in range(count)]

    assert len(alone) == len(EpochBatches(50, recipe, ALONE)) == 6
    assert len({patch for batch in alone for patch in batch}) == 48
    for number, batch in enumerate(alone):
        assert sorted(patch for share in shares for patch in share[number]) == sorted(batch)
        assert {len(share[number]) for share in shares} == {8 // count}


def test_every_epoch_has_an_order_of_its_own_by_the_seed() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = EpochBatches(40, Recipe(batch_size=8, seed=seed), ALONE)
        batches.epoch = epoch
        return list(batches)

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert {patch for epoch in range(1, 4) for batch in order(0, epoch) for patch in batch} == set(range(40))


# --- joining


def test_one_process_shares_with_itself() -> None:
    with joined_processes("cpu") as processes:
        assert processes == ALONE
        assert processes.first
        assert processes.share("value") == "value"
        assert processes.mean(torch.tensor(2.5)) == 2.5


def test_an_environment_without_a_rank_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(DeviceError, match=r"WORLD_SIZE is 2 without RANK.*torchrun"), joined_processes("cpu"):
        pass


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("WORLD_SIZE", "abc", "WORLD_SIZE is 'abc'; expected a whole number"),
        ("MASTER_PORT", "q", "MASTER_PORT is 'q'"),
        ("MASTER_PORT", "", "WORLD_SIZE is 2 without MASTER_PORT"),
        ("RANK", "2", "RANK is 2; expected one below WORLD_SIZE, 2"),
    ],
)
def test_an_environment_that_holds_no_numbers_is_told(
    name: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(known, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=told):
        find_processes("cpu")
    monkeypatch.setenv("WORLD_SIZE", "")
    assert find_processes("cpu") == ALONE


def in_two(work: Callable[[int], object], folder: Path) -> list[tuple[int, str]]:
    """Run `work` with its rank in two processes, joined as torchrun joins them; give what each exits with and prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    meeting |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    logs = [folder / f"log{rank}" for rank in range(2)]
    children = [start_child(partial(work, rank), logs[rank], RANK=rank, LOCAL_RANK=rank, **meeting) for rank in range(2)]
    return [(child.wait(), log.read_text()) for child, log in zip(children, logs, strict=True)]


def test_what_the_first_process_holds_is_shared_and_means_are_of_all(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        with joined_processes("cpu") as processes:
            value = torch.tensor(float(rank))
            print(processes, processes.share([rank, "x"]), processes.mean(value), float(value))

    ends = in_two(work, tmp_path)

    assert ends == [(0, f"Processes(rank={rank}, count=2, device='cpu') [0, 'x'] 0.5 {float(rank)}\n") for rank in range(2)]


@pytest.fixture
def start_file(tmp_path: Path) -> Path:
    torch.manual_seed(9)
    torch.save(Tiny().state_dict(), tmp_path / "start.pth")
    return tmp_path / "start.pth"


def rows_of(out: Path) -> list[dict[str, Any]]:
    with out.with_suffix(".history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value if name == "stage" else float(value) for name, value in row.items()} for row in rows]


def test_two_processes_train_as_one(patch_folder: Path, tmp_path: Path, start_file: Path) -> None:
    """Without batch statistics and augmentation, which are each process's own, only the order of sums differs: 1e-6 of the
    loss; AdamW divides by the gradient's size, so weights (which move by 1e-2) may differ by 1e-5."""
    for name in ("alone", "rank0", "rank1"):
        (tmp_path / name).mkdir()
    options = HERE | {"init": start_file, "recipe": RECIPE, "keep_checkpoint": True, "progress": True}
    alone, together = tmp_path / "alone" / "m.safetensors", tmp_path / "rank0" / "m.safetensors"
    train_tiny(patch_folder, alone, **options)

    def work(rank: int) -> None:
        result = train_tiny(patch_folder, tmp_path / f"rank{rank}" / "m.safetensors", **options)
        (tmp_path / f"result{rank}").write_text(json.dumps([result.rank, result.best_epoch, result.validation.to_dict()]))

    (code, first), (other_code, second) = in_two(work, tmp_path)

    assert (code, other_code) == (0, 0), first + second
    assert "finished after 3 epochs" in first
    assert second == "", "only the first process prints"
    assert not list((tmp_path / "rank1").iterdir()), "only the first process writes"
    results = [json.loads((tmp_path / f"result{rank}").read_text()) for rank in range(2)]
    assert [result[0] for result in results] == [0, 1]
    assert results[0][1:] == results[1][1:]

    for found, expected in zip(rows_of(together), rows_of(alone), strict=True):
        assert found["stage"] == expected["stage"]
        for name in ("train_loss", "valid_loss", "valid_auc", "valid_accuracy", "lr"):
            assert found[name] == pytest.approx(expected[name], abs=2e-6), name
    states = [torch.load(checkpoint_path(out), weights_only=True)["learner"] for out in (together, alone)]
    assert states[0]["steps"] == states[1]["steps"] == 6
    start = torch.load(start_file, weights_only=True)
    for part in ("network", "average"):
        for name, tensor in states[1][part].items():
            assert torch.allclose(states[0][part][name].double(), tensor.double(), atol=1e-5, rtol=0), name
    moved = {name: float((states[1]["network"][name] - start[name]).abs().max()) for name in start if "weight" in name}
    assert moved.pop("bn1.weight") > 1e-3
    assert min(moved.values()) > 5e-3


def test_two_processes_augment_differently_but_hold_the_same_weights(patch_folder: Path, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        drawn: list[float] = []

        class Noting(Learner):
            def step(self, images: Any, labels: Any, generator: torch.Generator, mosaic_side: int) -> torch.Tensor:
                drawn.append(int(generator.initial_seed()))
                loss = super().step(images, labels, generator, mosaic_side)
                drawn.append(sum(float(parameter.detach().double().sum()) for parameter in self.network.parameters()))
                return loss

        parts, recipe = replace(TINY, make_learner=learners(Noting)), Recipe(epochs=2, batch_size=8, freeze="none")
        train_tiny(patch_folder, tmp_path / f"{rank}.safetensors", recipe=recipe, parts=parts, **HERE)
        (tmp_path / f"drawn{rank}").write_text(json.dumps(drawn))

    in_two(work, tmp_path)

    one, other = (json.loads((tmp_path / f"drawn{rank}").read_text()) for rank in range(2))
    assert len(one) == len(other) == 8
    assert one[1::2] == other[1::2]
    assert all(seed != theirs for seed, theirs in zip(one[::2], other[::2], strict=True))


def test_a_process_that_was_started_otherwise_is_refused(patch_folder: Path, tmp_path: Path) -> None:
    """Of other rates they trained a mixture; of other batches they waited for each other for hours."""
    words = f"train {patch_folder} --out {tmp_path / 'm.safetensors'} --init none --device cpu --workers 0 --batch-size"

    (first, _), (code, printed) = in_two(lambda rank: run_command(f"{words} {8 + 8 * rank}", TINY), tmp_path)

    told = "process 1 was started otherwise: batch_size was 8, now 16; start all with the same options and files"
    assert (code, printed.splitlines()[-1]) == (2, f"Error: {told}")
    assert first == 1
    assert not (tmp_path / "m.safetensors").exists()


def test_a_batch_that_cannot_be_shared_out_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    for label in ("0", "1"):
        (tmp_path / "unreadable" / label).mkdir(parents=True)
        for number in range(9):
            (tmp_path / "unreadable" / label / f"{number}.png").write_text("no picture")
    words = f"train {tmp_path / 'unreadable'} --out {tmp_path / 'm.safetensors'} --init none --batch-size 9 --device cpu"

    ends = in_two(lambda _rank: run_command(words, TINY), tmp_path)

    assert [code for code, _ in ends] == [2, 2]
    for _, printed in ends:
        assert printed.endswith("\nError: a batch of 9 does not divide by 2 processes; change --batch-size\n")


def test_a_process_whose_fellow_ends_says_so_in_one_line(patch_folder: Path, tmp_path: Path) -> None:
    """The first process cannot write: its message is the clear one, the other's leads there."""

    def work(_rank: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # less than a model has
        run_command(words, TINY)

    # bf16 is compiled where it is fast, which writes files too
    settings = "--init none --batch-size 8 --device cpu --workers 0 --precision fp32"
    words = f"train {patch_folder} --out {tmp_path / 'm.safetensors'} {settings}"

    ends = in_two(work, tmp_path)

    assert [code for code, _ in ends] == [1, 1], ends
    assert [printed.splitlines()[-1] for _, printed in ends] == [
        f"Error: {tmp_path / 'm.safetensors'}: cannot be written (File too large); make room and run it again",
        "Error: process 1: another process ended; its message tells why",
    ]
    assert not any("Traceback" in printed for _, printed in ends)


def test_torchrun_trains_in_two_processes(patch_folder: Path, tmp_path: Path) -> None:
    """Its command line, its agent and all that it sets in the environment; its processes are forked, which spares imports."""
    out, log, program = tmp_path / "run" / "m.safetensors", tmp_path / "log", tmp_path / "program.py"
    out.parent.mkdir()
    program.write_text(
        "import runpy, pytest, tiny\n"
        "with pytest.MonkeyPatch.context() as monkeypatch:\n"
        "    tiny.use_parts(monkeypatch, tiny.TINY)\n"
        "    runpy.run_module('wsi_meta', run_name='__main__')\n"
    )
    start = ["--standalone", "--nproc-per-node", "2", "--start-method", "fork", "--run-path", str(program)]
    words = "--init none --epochs 1 --batch-size 8 --mosaics 0 --device cpu --precision fp32 --workers 0 --json"
    arguments = [*start, "train", str(patch_folder), "--out", str(out), *words.split()]

    def torchrun() -> None:
        from torch.distributed.run import main

        main(arguments)

    code, shown = start_child(torchrun, log).wait(), log.read_text()

    assert code == 0, shown
    (line,) = (line for line in shown.splitlines() if line.startswith("{"))
    printed = result_of(line)
    assert printed["model"] == str(out)
    assert shown.count("epoch 1 (all): training loss") == 1
    assert read_card(out).training["processes"] == 2
    (row,) = rows_of(out)
    assert row["valid_auc"] == printed["auc"]
    assert np.isfinite(row["train_loss"])
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "m.augmented.png",
        "m.curves.png",
        "m.history.csv",
        "m.safetensors",
    ]
