"""Batches from decoded patches are the loader's, in every process and every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ALONE
from torch.utils.data import DataLoader

from wsi_meta.datasets.batches import batches_of
from wsi_meta.datasets.layouts import open_patches
from wsi_meta.errors import DataError, DeviceError
from wsi_meta.training.distributed import Processes
from wsi_meta.training.loader import EpochBatches, HeldBatches, make_loader
from wsi_meta.training.recipe import Recipe

BYTES = 16 * 96 * 96 * 3
"""What the training patches of `patch_folder` take when decoded."""


@pytest.mark.parametrize("processes", [ALONE, Processes(1, 2, "cpu")], ids=["alone", "second of two"])
def test_held_patches_make_the_same_batches(patch_folder: Path, processes: Processes) -> None:
    patches, recipe = open_patches(patch_folder)["train"], Recipe(batch_size=6, seed=4)
    orders = [EpochBatches(len(patches), recipe, processes) for _ in range(2)]
    decoded = make_loader(patches, orders[0], 0, processes, memory=BYTES - 1)
    held = make_loader(patches, orders[1], 0, processes, memory=BYTES)
    assert isinstance(decoded, DataLoader)
    assert isinstance(held, HeldBatches)
    assert len(decoded) == len(held) == 2

    seen = []
    for epoch in (1, 2):
        for order in orders:
            order.epoch = epoch
        batches = list(zip(batches_of(decoded), batches_of(held), strict=True))
        assert len(batches) == 2
        for (images, labels), (held_images, held_labels) in batches:
            assert torch.equal(images, held_images)
            assert torch.equal(labels, held_labels)
            assert images.dtype == held_images.dtype == torch.uint8
        seen.append(torch.cat([images for _, (images, _) in batches]))
    assert not torch.equal(*seen), "each epoch has an order of its own"


def test_on_a_cpu_patches_are_decoded_batch_by_batch(patch_folder: Path) -> None:
    patches = open_patches(patch_folder)["train"]

    assert isinstance(make_loader(patches, EpochBatches(16, Recipe(batch_size=4), ALONE), 0, ALONE), DataLoader)


def test_a_patch_that_cannot_be_held_is_named(patch_folder: Path) -> None:
    patches = open_patches(patch_folder)["train"]
    missing = patches.files[3].with_name("gone.png")
    patches = patches.select(torch.arange(16).numpy())
    object.__setattr__(patches, "files", (*patches.files[:3], missing, *patches.files[4:]))

    with pytest.raises(DataError, match=f"{missing}: no such file"):
        make_loader(patches, EpochBatches(16, Recipe(batch_size=4), ALONE), 0, ALONE, memory=BYTES)


@pytest.mark.parametrize(
    ("line", "is_short"),
    [
        ("unable to allocate shared memory(shm) for file </torch_9_1_0>: No space left on device (28)", True),
        ("unable to write to file </torch_9_1_0>: No space left on device (28)", True),
        ("shapes do not fit", False),
    ],
)
def test_a_full_dev_shm_is_told_in_a_line(line: str, is_short: bool) -> None:
    """A container has 64 MB of it where nothing is said."""
    traceback = (
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  in shared memory"
    )

    def batches() -> Iterator[Any]:
        yield 1
        raise RuntimeError(f"{traceback}\nRuntimeError: {line}\n")

    expected = (DeviceError, r"short \(RuntimeError: unable .*\); expected .*--workers"), (RuntimeError, "shapes do not fit")
    kind, told = expected[0 if is_short else 1]
    with pytest.raises(kind, match=told):
        list(batches_of(batches()))
