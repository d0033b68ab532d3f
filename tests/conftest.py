"""Fixtures that several test files share.

Torch is imported within them: the process that shares out the tests among others reads this file too, before these start.
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import children  # noqa: F401  (its settings are for all tests)
import numpy as np
import pytest
from browsers import Browser, find_chromium, running_browser
from hypothesis import settings
from PIL import Image
from slide_files import texture

from wsi_meta.inference import allocator
from wsi_meta.models.card import Calibration, ModelCard
from wsi_meta.models.model import Model, build_network, network_of, save_model
from wsi_meta.models.weights import half_precision

# a busy machine is no failure: time limits are pytest-timeout's
settings.register_profile("wsi-meta", deadline=None)
settings.load_profile("wsi-meta")


@pytest.fixture(scope="session", autouse=True)
def _machine() -> Iterator[None]:
    """Freed memory is kept for the next batch, as a command keeps it: a third of the time.

    Two threads that share busy cores wait for each other: measured ten times slower than one.
    """
    import torch

    gc.set_threshold(50_000, 20, 50)  # a collection walks through all that tests have imported; rarer ones save a twentieth
    gc.freeze()  # what is imported stays: no collection looks at it again
    torch.set_num_threads(1)
    with allocator.tuned_memory(in_bands=False), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # no test loses power, and each wait for the disk is 3 ms
        if library := allocator._glibc():
            patch.setattr(library, "malloc_trim", lambda _: 1)  # nor does a command give back what the next one needs
            patch.setattr(allocator, "_glibc", lambda: library)
        yield


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with random weights (seed 0) in half precision and a default card; never change it.

    Its head is scaled so that tissue gets probabilities on both sides of 0.5 instead of 1.0 everywhere.
    """
    import torch

    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    torch.manual_seed(0)
    state = build_network().state_dict()
    state["fc.weight"] *= -0.1
    state["fc.bias"].fill_(2.8)
    save_model(path, half_precision(state), ModelCard())
    return path


@pytest.fixture(scope="session")
def thin_model() -> Model:
    """A loaded model with a thin ResNet, random weights (seed 0): all kinds of arithmetic that a ResNet50 has, a tenth as much.

    Its head is scaled so that tissue gets probabilities on both sides of 0.5.
    """
    import torch
    from fakes import thin_network

    torch.manual_seed(0)
    network = thin_network(16)
    with torch.inference_mode():
        pixels = torch.from_numpy(np.stack([texture(96, 96, seed) for seed in range(8)]))
        logits = network(ModelCard().preprocessing.to_input(pixels))
    with torch.no_grad():
        network.fc.weight /= logits.std()
        network.fc.bias.copy_((network.fc.bias - logits.mean()) / logits.std())
    return Model(network, ModelCard(), hashlib.sha256(b"thin").hexdigest(), Path("thin.safetensors"))


@pytest.fixture(scope="session")
def dark_model() -> Model:
    """A thin ResNet whose logit is about the share of dark pixels, calibrated."""
    from exchanged import build_thin
    from fakes import darkness_state

    card = ModelCard(calibration=Calibration(temperature=0.25, bias=-1.5))
    network = network_of(darkness_state(card.preprocessing, build_thin), build_thin)
    return Model(network, card, "0" * 64, Path("dark.safetensors"))


@pytest.fixture(scope="session")
def patch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 16 training and 8 validation patches, told apart by colour; never change it."""
    folder = tmp_path_factory.mktemp("patches")
    rng = np.random.default_rng(0)
    for split, n in (("train", 8), ("valid", 4)):
        for label, colour in enumerate(((230, 200, 215), (110, 60, 140))):
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for number in range(n):
                pixels = np.clip(np.array(colour) + rng.normal(0, 20, (96, 96, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{split}{number}.png", compress_level=1)
    return folder


@pytest.fixture(scope="session")
def few_patches(patch_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every second one of those patches, 8 and 4, where all are seen often or by a ResNet50; never change it."""
    folder = tmp_path_factory.mktemp("few")
    for path in patch_folder.glob("*/*/*[02468].png"):
        place = folder / path.relative_to(patch_folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser, for tests marked so: a second and more to start, a tenth for each page of its own."""
    with running_browser() as running:
        yield running


SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real patches and slides beside the checkout, for tests marked so."""
    return SHARED_DATA


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out (and count as deselected) the tests whose data or hardware are not here."""
    import torch

    here = {
        "site": find_spec("mkdocs") is not None,
        "onnx": all(find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime")),
        "shared_data": SHARED_DATA.is_dir(),
        "gpu": torch.cuda.is_available(),
        "browser": find_chromium() is not None,
    }
    missing = {name for name, present in here.items() if not present}
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in missing)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
