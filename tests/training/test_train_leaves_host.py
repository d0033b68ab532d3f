"""Training and evaluating leave the process around them as it was."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import HERE, TINY, learners, train_tiny
from torch import nn

from wsi_meta.evaluation.evaluate import evaluate
from wsi_meta.models.card import Calibration
from wsi_meta.models.model import Model, build_network
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.training.initial_weights import build_seeded
from wsi_meta.training.learner import Learner
from wsi_meta.training.recipe import Recipe


def host() -> dict[str, Any]:
    """All that the process around may have set for itself."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    kind, keys, place, gaussian, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch's generator": torch.get_rng_state().tolist(),
        "numpy's generator": (kind, np.asarray(keys).tolist(), place, gaussian, cached),
        "python's generator": random.getstate(),
        "environment": dict(os.environ),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "matmul": (matmul.allow_tf32, torch.get_float32_matmul_precision()),
        "mkldnn": torch.backends.mkldnn.enabled,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "default type": torch.get_default_dtype(),
    }


@pytest.fixture
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what another test's process may have been given."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.delenv(name, raising=False)


FIRST = """
import os
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny import HERE, train_tiny
from wsi_meta.training.recipe import Recipe
before = dict(os.environ)
train_tiny(Path(sys.argv[2]), Path(sys.argv[3]), recipe=Recipe(epochs=1, batch_size=8), **HERE)
sys.exit(f"{dict(os.environ).items() - before.items()} are new" if dict(os.environ) != before else 0)
"""


def test_the_first_training_of_a_process_leaves_no_variables(patch_folder: Path, tmp_path: Path) -> None:
    """In an interpreter of its own: torch loads its compiler once, for an optimiser too."""
    words = [sys.executable, "-c", FIRST, str(Path(__file__).parents[1]), str(patch_folder), str(tmp_path / "m.safetensors")]
    bare = {name: value for name, value in os.environ.items() if "TORCHINDUCTOR" not in name}
    ended = subprocess.run(words, env=bare, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.usefixtures("_unset")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: fork beside torch's threads
def test_training_leaves_its_host_alone(patch_folder: Path, tmp_path: Path, workers: int) -> None:
    before = host()

    train_tiny(patch_folder, tmp_path / "m.safetensors", recipe=Recipe(epochs=2, batch_size=8), **HERE | {"workers": workers})

    assert host() == before


@pytest.mark.usefixtures("_unset")
def test_a_training_that_fails_leaves_its_host_alone(patch_folder: Path, tmp_path: Path) -> None:
    class Interrupted(Learner):
        def step(self, *values: Any) -> torch.Tensor:
            super().step(*values)
            raise KeyboardInterrupt

    before, parts = host(), replace(TINY, make_learner=learners(Interrupted))

    with pytest.raises(KeyboardInterrupt):
        train_tiny(patch_folder, tmp_path / "m.safetensors", recipe=Recipe(batch_size=8), parts=parts, **HERE)

    assert host() == before


@pytest.mark.usefixtures("_unset")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_evaluating_leaves_its_host_alone(thin_model: Model, patch_folder: Path, workers: int) -> None:
    before = host()

    evaluate(thin_model, patch_folder, batch_size=8, **HERE | {"workers": workers})

    assert host() == before


@contextmanager
def _default_type(wanted: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(wanted)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: _default_type(torch.float64),
    "meta": lambda: torch.device("meta"),
}


@pytest.fixture(scope="module")
def trained(patch_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "m.safetensors"
    train_tiny(patch_folder, out, recipe=Recipe(epochs=1, batch_size=8), **HERE)
    return out


@pytest.fixture(scope="module")
def expected(thin_model: Model, patch_folder: Path) -> NDArray[np.float32]:
    """The thin model's logits."""
    return evaluate(thin_model, patch_folder, batch_size=8, **HERE).logits


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_host_change_nothing(
    mode: str, trained: Path, expected: NDArray[np.float32], thin_model: Model, patch_folder: Path, tmp_path: Path
) -> None:
    with MODES[mode]():
        before = host(), torch.get_default_device(), torch.is_autocast_enabled("cpu")
        train_tiny(patch_folder, tmp_path / "m.safetensors", recipe=Recipe(epochs=1, batch_size=8), **HERE)
        found = evaluate(thin_model, patch_folder, batch_size=8, **HERE).logits
        assert (host(), torch.get_default_device(), torch.is_autocast_enabled("cpu")) == before

    assert (tmp_path / "m.safetensors").read_bytes() == trained.read_bytes()
    assert np.array_equal(found, expected)


class Loud(nn.Module):
    """Logits of which the sigmoid is too small a number for a float32."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 1e4 * images.mean((1, 2, 3))


def test_numbers_that_round_to_0_are_no_error_where_the_host_has_numpy_raise(patch_folder: Path) -> None:
    model = Model.from_module(Loud(), Preprocessing())
    expected = evaluate(model, patch_folder, **HERE)

    with np.errstate(all="raise"):
        found = evaluate(model, patch_folder, **HERE)
        assert not Calibration().to_probability(np.full(1, -200, np.float32)).any()

    assert found.to_dict() == expected.to_dict()
    assert found.probabilities.min() == 0


def test_initial_weights_are_those_of_a_global_seed_without_touching_it() -> None:
    before = torch.get_rng_state()
    network = build_seeded(build_network, 7)
    assert torch.equal(torch.get_rng_state(), before)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = build_network().state_dict()

    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    other = build_seeded(build_network, 8).state_dict()
    assert not torch.equal(other["conv1.weight"], expected["conv1.weight"])
    assert not torch.equal(other["fc.weight"], expected["fc.weight"])
