from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from wsi_meta.datasets.patches import contents_of
from wsi_meta.errors import ModelFileError
from wsi_meta.models.card import ModelCard, read_card
from wsi_meta.models.features import FeatureStatistics
from wsi_meta.models.known_patches import (
    MOST,
    PATCHES_KEY,
    KnownPatches,
    known_to_weights,
    knows_all,
    read_known_patches,
    weights_know_all,
)
from wsi_meta.models.model import DEFAULT_MODEL, write_model

STATE = {"fc.weight": torch.ones(1, 2)}


def contents(*numbers: int) -> NDArray[np.uint8]:
    return contents_of(hashlib.sha1(b"%d" % number).digest() for number in numbers)


def known(**parts: NDArray[np.uint8] | None) -> KnownPatches:
    found = KnownPatches.of(parts)
    assert found is not None
    return found


def test_patches_are_known_in_any_order_and_in_part() -> None:
    marks = known(train=contents(*range(100)), valid=contents(200, 201))
    assert marks.count(contents(7, 3, 200, 999, 7)) == {"train": 3, "valid": 1}
    assert marks.count(contents(300)) == {"train": 0, "valid": 0}


def test_a_file_holds_them_beside_its_card(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_model(path, STATE, ModelCard(), None, known(train=contents(*range(30_000)), valid=None))
    found = read_known_patches(path)
    assert found is not None
    assert found.count(contents(29_999, 30_000)) == {"train": 1}
    assert read_card(path) == ModelCard()
    assert path.stat().st_size < 330_000
    with safe_open(path, framework="numpy") as file:
        assert list(file.keys()) == ["fc.weight"]


def test_a_file_of_the_same_is_the_same_file(tmp_path: Path) -> None:
    """Its hash is the model's."""
    features = FeatureStatistics.of(np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32))
    written = set()
    for number in range(9):
        path = tmp_path / f"{number}.safetensors"
        write_model(path, STATE, ModelCard(), features, known(train=contents(1)))
        written.add(path.read_bytes())
    assert len(written) == 1
    assert torch.equal(load_file(path)["fc.weight"], STATE["fc.weight"])


def test_an_older_file_says_nothing(tmp_path: Path) -> None:
    write_model(tmp_path / "m.safetensors", STATE, ModelCard())
    assert read_known_patches(tmp_path / "m.safetensors") is None


def test_what_was_not_read_or_is_too_much_is_not_kept() -> None:
    many = np.zeros((MOST + 1, 20), np.uint8)
    many[:, :4] = np.arange(MOST + 1, dtype="<u4").view(np.uint8).reshape(-1, 4)
    assert KnownPatches.of({"train": None}) is None
    before = known(train=contents(1), valid=contents(2), other=contents(3))
    found = KnownPatches.of({"train": None, "valid": many}, before)
    assert found is not None
    assert found.count(contents(1, 2, 3)) == {"other": 1}, "of a part that is known in part alone nothing is said"


def test_what_weights_knew_before_they_know_afterwards() -> None:
    before = known(train=contents(1, 2), valid=contents(3), calibrated_on=contents(4)).of_weights()
    found = KnownPatches.of({"train": contents(2, 5), "valid": contents(6)}, before)
    assert found is not None
    assert {part: len(marks) for part, marks in found.marks.items()} == {"train": 3, "valid": 2}
    assert found.count(contents(1, 2, 3, 4, 5, 6)) == {"train": 3, "valid": 2}


def test_only_a_model_file_says_what_its_weights_know(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth")
    save_file(STATE, tmp_path / "a.safetensors")
    marks = known(train=contents(1), calibrated_on=contents(1))
    write_model(tmp_path / "m.safetensors", STATE, ModelCard(), None, marks)
    assert known_to_weights(tmp_path / "a.pth") is None
    assert known_to_weights(tmp_path / "a.safetensors") is None
    found = known_to_weights(tmp_path / "m.safetensors")
    assert found is not None
    assert found.count(contents(1)) == {"train": 1}


def test_who_says_all_patches(tmp_path: Path) -> None:
    """One rule for a file, its children and what is made of it."""
    trained, marks = ModelCard(), known(train=contents(1), valid=contents(2), calibrated_on=contents(3))
    assert knows_all(trained.training, marks)
    assert knows_all(trained.training, marks.of_weights())
    assert not knows_all({"init_known": False}, marks)
    for lacking in (None, known(valid=contents(2)), known(calibrated_on=contents(3))):
        assert not knows_all(trained.training, lacking)
    torch.save(STATE, tmp_path / "a.pth")
    save_file(STATE, tmp_path / "a.safetensors")
    write_model(tmp_path / "old.safetensors", STATE, trained)
    write_model(tmp_path / "m.safetensors", STATE, trained, None, marks)
    named = ("a.pth", "a.safetensors", "old.safetensors", "m.safetensors")
    assert [weights_know_all(tmp_path / name) for name in named] == [False, False, False, True]
    assert weights_know_all(DEFAULT_MODEL)


@pytest.mark.parametrize(
    "stored", ["", "[]", "[" * 10_000, '{"train": 1}', '{"train": "%"}', '{"train": "AAAA"}', '{"train": "ü"}']
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, stored: str) -> None:
    path = tmp_path / "m.safetensors"
    save_file(STATE, path, metadata={PATCHES_KEY: stored})
    with pytest.raises(ModelFileError, match=r"m\.safetensors: its list of patches is wrong \(.*download it again") as caught:
        read_known_patches(path)
    assert "\n" not in str(caught.value)


def test_its_bytes_are_as_the_documentation_says() -> None:
    (marks,) = json.loads(known(train=contents(5)).to_json()).values()
    assert bytes.fromhex(hashlib.sha1(b"5").hexdigest())[:8] == b64decode(marks)
