from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from slide_files import texture, write_slide

from wsi_meta.errors import ModelFileError, OutputPathError, WsiMetaError
from wsi_meta.metadata import info
from wsi_meta.models.card import FORMAT_VERSION, RANGES, Calibration, ModelCard, read_card
from wsi_meta.models.model import build_network, load_model, save_model, stored_weights, write_model
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.weights import half_precision, read_weights

FULL_CARD = ModelCard(
    classes=("metastasis",),
    preprocessing=Preprocessing(label_px=16, mpp=0.5, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
    dense=True,
    calibration=Calibration(temperature=1.7, bias=-0.25),
    thresholds={"default": 0.5, "sensitive": 0.125},
    training={"recipe": {"epochs": 3, "freeze": "stem"}, "train": {"n": 7, "sha256": "ab"}, "note": None},
    metrics={"auc": 0.9375, "n": 8},
    versions={"python": "3.11.0", "torch": "2.6"},
)
TINY_STATE = {"fc.bias": torch.zeros(1)}


def write_tiny(path: Path, change: Callable[[dict[str, Any]], object] = lambda _fields: None) -> Path:
    """A model file of one tensor, whose card was changed on the way."""
    fields = ModelCard().to_dict()
    change(fields)
    path.write_bytes(save(TINY_STATE, metadata={"wsi_meta": json.dumps(fields)}))
    return path


def refusal(path: Path) -> str:
    """The one line that says why a file is not loaded."""
    with pytest.raises(ModelFileError) as caught:
        load_model(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


# --- the file and what it holds


def test_every_field_of_a_card_survives_the_file(tmp_path: Path) -> None:
    changed = {f.name for f in dataclasses.fields(ModelCard) if getattr(FULL_CARD, f.name) != getattr(ModelCard(), f.name)}
    assert changed == {f.name for f in dataclasses.fields(ModelCard)} - {"architecture", "format_version"}
    path = tmp_path / "m.safetensors"

    write_model(path, TINY_STATE, FULL_CARD)

    assert read_card(path) == FULL_CARD


def test_half_precision_weights_load_as_they_were_rounded(model_file: Path) -> None:
    torch.manual_seed(0)
    state = build_network().state_dict()
    state["fc.weight"] *= -0.1  # as the fixture does
    state["fc.bias"].fill_(2.8)
    rounded = half_precision(state)

    loaded = load_model(model_file).network.state_dict()

    assert loaded.keys() == rounded.keys()
    for name, tensor in loaded.items():
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32), name
        assert torch.equal(tensor, rounded[name].to(tensor.dtype)), name


def test_half_precision_rounds_kernels_only_and_copies() -> None:
    state = {"kernel": torch.full((2, 2), 1 / 3), "bias": torch.full((2,), 1 / 3), "count": torch.tensor(5)}

    rounded = half_precision(state)
    rounded["bias"][0] = 9

    assert {name: tensor.dtype for name, tensor in rounded.items()} == {
        "kernel": torch.float16,
        "bias": torch.float32,
        "count": torch.int64,
    }
    assert state["bias"][0] == torch.tensor(1 / 3)
    assert state["kernel"].dtype == torch.float32


def test_a_half_precision_model_is_under_50_mb(model_file: Path) -> None:
    assert model_file.stat().st_size < 50_000_000


def test_a_loaded_model_is_ready_to_predict(model_file: Path) -> None:
    model = load_model(str(model_file))

    assert not any(module.training for module in model.network.modules())
    assert model.card == ModelCard()
    assert model.path == model_file
    assert model.hash == hashlib.sha256(model_file.read_bytes()).hexdigest()
    with torch.inference_mode():
        images = model.card.preprocessing.to_input(torch.zeros((2, 96, 96, 3), dtype=torch.uint8))
        assert model.network(images).shape == (2, 1)


def test_network_has_torchvisions_names(model_file: Path) -> None:
    state = load_file(model_file)

    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert state["fc.weight"].shape == (1, 2048)
    assert state["fc.bias"].shape == (1,)


def test_reading_a_card_does_not_import_torch(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.safetensors")
    code = "import sys; from wsi_meta.models.card import read_card as read; "
    code += "print(read(sys.argv[1]).architecture, 'torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["resnet50", "False"]


# --- calibration


def test_neutral_calibration_is_the_sigmoid() -> None:
    logits = np.array([[-3.0, 0.0], [2.5, np.nan]], np.float32)

    np.testing.assert_allclose(Calibration().to_probability(logits)[:, 0], 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-6)
    assert Calibration().to_probability(logits).shape == (2, 2)


@given(logit=st.floats(-20, 20), temperature=st.floats(0.1, 10), bias=st.floats(-5, 5))
def test_calibration_follows_its_formula(logit: float, temperature: float, bias: float) -> None:
    expected = torch.sigmoid(torch.tensor(logit / temperature + bias, dtype=torch.float64))

    shown = Calibration(temperature, bias).to_probability(np.array([logit], np.float32))

    assert shown.dtype == np.float32
    assert abs(float(shown[0]) - float(expected)) < 1e-5


def test_a_probability_does_not_depend_on_its_neighbours() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 1001).astype(np.float32)
    whole = Calibration().to_probability(logits)
    for start, stop in [(0, 1), (1, 8), (8, 25), (25, 1001)]:
        np.testing.assert_array_equal(Calibration().to_probability(logits[start:stop]), whole[start:stop])


def test_calibration_keeps_nan() -> None:
    shown = Calibration(2.0, 1.0).to_probability(np.array([np.nan, 0.0], np.float32))

    assert np.isnan(shown).tolist() == [True, False]


# --- saving


def test_saving_replaces_a_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("old")

    write_model(path, TINY_STATE, FULL_CARD)

    assert read_card(path) == FULL_CARD
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_failed_save_leaves_the_old_file_and_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("old")

    def disk_full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_model(path, TINY_STATE, FULL_CARD)

    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_save_is_whole_before_it_takes_the_old_files_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("old")
    ready = []

    def interrupted(self: Path, target: Path) -> None:
        ready.append((read_card(self), target, path.read_text()))
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_model(path, TINY_STATE, FULL_CARD)

    assert ready == [(FULL_CARD, path, "old")]
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("card", "change", "told"),
    [
        (ModelCard(training={"seen": {1, 2}}), {}, "expected a number"),
        (ModelCard(thresholds={"default": 2.0}), {}, "threshold 'default' is 2.0"),
        (ModelCard(thresholds={}), {}, "must name a default"),
        (ModelCard(classes=("normal", "tumor")), {}, "a model has one logit"),
        (ModelCard(preprocessing=Preprocessing(mean=(123.0, 116.0, 103.0))), {}, "mean"),
        (ModelCard(dense=True, preprocessing=Preprocessing(patch_px=224)), {}, "dense"),
        (ModelCard(architecture="vit"), {}, "architecture 'vit' is not known"),
        (ModelCard(training={RANGES: {"bn1": 1.0}}), {}, "is in only one of int8_ranges"),
        (ModelCard(), {"fc.weight": torch.zeros(2, 2048), "fc.bias": torch.zeros(2)}, "do not fit a ResNet50 with one logit"),
        (ModelCard(), {"fc.weight": torch.full((1, 2048), math.nan)}, "no finite float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_loaded_is_not_saved(
    model_file: Path, tmp_path: Path, card: ModelCard, change: dict[str, torch.Tensor], told: str
) -> None:
    path = tmp_path / "m.safetensors"
    write_tiny(path)
    before = path.read_bytes()

    with pytest.raises(WsiMetaError, match=told):
        save_model(path, load_file(model_file) | change, card)

    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_no_other_kind_of_file_is_saved_over(model_file: Path, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "slide.safetensors", texture(96, 96))
    before = slide.read_bytes()
    with pytest.raises(OutputPathError, match="a slide, never replaced"):
        save_model(slide, load_file(model_file), ModelCard())
    with pytest.raises(OutputPathError, match="no name of a model file"):
        save_model(tmp_path / "m.txt", load_file(model_file), ModelCard())

    assert slide.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["slide.safetensors"]


def test_numbers_of_numpy_are_saved_as_plain_ones(model_file: Path, tmp_path: Path) -> None:
    path, mean = tmp_path / "m.safetensors", np.array([0.5, 0.25, 0.125])
    given: Any = {"patch_px": np.int64(96), "mpp": np.float64(0.5), "mean": mean, "std": mean}
    numbers: Any = (np.bool_(True), np.float32(1.2), np.float64(0.1), np.float32(0.3), np.float32(0.9), np.int64(5))
    card = ModelCard(
        preprocessing=Preprocessing(**given),
        dense=numbers[0],
        calibration=Calibration(*numbers[1:3]),
        thresholds={"default": numbers[3]},
        metrics={"auc": numbers[4], "n": numbers[5]},
    )

    save_model(path, load_file(model_file), card)

    plain = (0.5, 0.25, 0.125)
    assert load_model(path).card == ModelCard(
        preprocessing=Preprocessing(mpp=0.5, mean=plain, std=plain),
        dense=True,
        calibration=Calibration(1.2, 0.1),
        thresholds={"default": 0.3},
        metrics={"auc": 0.9, "n": 5},
    )


def test_saving_stores_views_of_one_tensor_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tensor = torch.arange(6.0).reshape(2, 3)

    write_model(path, {"transposed": tensor.t(), "row": tensor[1]}, ModelCard())

    assert torch.equal(load_file(path)["transposed"], tensor.t())
    assert load_file(path)["row"].tolist() == [3, 4, 5]


# --- files that are no model


def test_card_and_weights_are_of_one_file(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training writes its model after each epoch that was the best, under the same name."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(model_file.read_bytes())
    loaded = load_model(path)
    assert stored_weights(loaded).keys() == load_file(path).keys()

    def replaced(*_values: Any) -> None:
        save_model(path, load_file(model_file), FULL_CARD)

    with monkeypatch.context() as changed:
        changed.setattr("wsi_meta.models.model.read_features", replaced)
        assert "was replaced while it was opened; start again" in refusal(path)
    with pytest.raises(ModelFileError, match="was replaced while it was opened; start again"):
        stored_weights(loaded)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "no such model file" in refusal(tmp_path / "none.safetensors")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "a directory" in refusal(tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.touch()

    assert "not a safetensors file" in refusal(path)


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
def test_a_checkpoint_of_torch_is_refused_as_a_pickle(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save(TINY_STATE, path)

    assert "a pickle" in refusal(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_plain_pickle_is_refused_without_running_it(tmp_path: Path, protocol: int) -> None:
    path, trace = tmp_path / "m.safetensors", tmp_path / "trace"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(trace),)

    path.write_bytes(pickle.dumps(Trap(), protocol))

    assert "a pickle" in refusal(path)
    assert not trace.exists()


def test_a_file_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    content = write_tiny(tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for size in range(len(content)):
        path.write_bytes(content[:size])
        refusal(path)


def test_a_real_model_without_its_last_byte_is_refused(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(model_file.read_bytes()[:-1])

    assert "truncated" in refusal(path)


def test_weights_other_than_those_written_are_refused_wherever_they_are_read(tmp_path: Path) -> None:
    """A hole of zeros, as lost power leaves it, has the right length: it was scanned with, and trained from."""
    path = tmp_path / "m.safetensors"
    write_model(path, {"fc.weight": torch.ones(1, 4)}, ModelCard())
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))

    for read in (load_model, read_weights, info):
        with pytest.raises(ModelFileError, match=r"m\.safetensors: its weights are not those that its metadata tells; copy or"):
            read(path)


def test_weights_that_were_changed_are_read_where_the_metadata_no_longer_tells_others(tmp_path: Path) -> None:
    """As the message says: somebody's own fine-tuning, saved with the card."""
    path = tmp_path / "m.safetensors"
    write_model(path, {"fc.weight": torch.ones(1, 4)}, ModelCard())
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for told in (metadata, {name: value for name, value in metadata.items() if name != "wsi_meta_weights"}):
        save_file({"fc.weight": torch.zeros(1, 4)}, path, metadata=told)
        if "wsi_meta_weights" in told:
            with pytest.raises(ModelFileError, match="changed on purpose, save them without 'wsi_meta_weights'"):
                read_weights(path)
    assert read_weights(path)["fc.weight"].sum() == 0


def test_a_file_that_does_not_say_what_its_weights_were_is_read(tmp_path: Path) -> None:
    assert read_weights(write_tiny(tmp_path / "m.safetensors")) == TINY_STATE
    assert info(tmp_path / "m.safetensors")["kind"] == "model"


def test_a_file_with_bytes_to_spare_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes() + b"\0")

    refusal(path)
    with pytest.raises(ModelFileError):
        read_card(path)


@given(content=st.binary(max_size=64), length=st.none() | st.integers(0, 2**64 - 1) | st.integers(0, 64))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, length: int | None) -> None:
    path = tmp_path_factory.getbasetemp() / "random-bytes.safetensors"
    path.write_bytes(content if length is None else struct.pack("<Q", length) + content)

    refusal(path)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}], ids=str)
def test_weights_without_a_card_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(save(TINY_STATE, metadata=metadata))

    assert "without a wsi-meta card" in refusal(path)


@pytest.mark.parametrize("card", ["", "{", "[]", "null", "{}", '{"format_version": "new"}'])
def test_a_card_that_is_none_is_refused(tmp_path: Path, card: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(save(TINY_STATE, metadata={"wsi_meta": card}))

    assert "its card cannot be read" in refusal(path)


def test_a_card_of_a_newer_format_is_refused_whatever_it_holds(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.safetensors", lambda fields: fields.update(format_version=FORMAT_VERSION + 1, new="field"))

    text = refusal(path)

    assert f"card format {FORMAT_VERSION + 1} is newer than {FORMAT_VERSION}" in text
    assert "update wsi-meta" in text


@pytest.mark.parametrize("name", ["classes", "preprocessing", "calibration", "format_version"])
def test_a_card_without_a_field_is_refused(tmp_path: Path, name: str) -> None:
    path = write_tiny(tmp_path / "m.safetensors", lambda fields: fields.pop(name))

    assert name in refusal(path)


@pytest.mark.parametrize(
    "change",
    [
        {"stain": "H&E"},
        {"classes": None},
        {"preprocessing": []},
        {"preprocessing": {"mpp": 0.972}},
        {"preprocessing": Preprocessing().to_dict() | {"resampling": "lanczos"}},
        {"calibration": {"slope": 1.0}},
        {"calibration": None},
    ],
    ids=str,
)
def test_a_card_with_a_field_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    assert "card is incomplete" in refusal(write_tiny(tmp_path / "m.safetensors", lambda fields: fields.update(change)))


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.safetensors", lambda fields: fields.update(architecture="vit_b_16"))

    assert "vit_b_16" in refusal(path)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_model(path, TINY_STATE, ModelCard())

    assert "weights do not fit" in refusal(path)


def test_weights_of_another_shape_are_refused(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_model(path, load_file(model_file) | {"fc.weight": torch.zeros(1000, 2048)}, ModelCard())

    assert "weights do not fit" in refusal(path)


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("layer3.0.conv1.weight", torch.tensor([1, math.nan]).half(), "no finite float32"),
        ("fc.bias", torch.tensor([-math.inf]), "no finite float32"),
        ("bn1.running_var", torch.tensor([1.0, -1.0]), "a variance of -1"),
        ("layer3.0.conv1.weight", torch.ones(2, dtype=torch.int8), "is of int8; expected one of float16"),
    ],
    ids=["nan", "infinity", "variance", "int8"],
)
def test_weights_that_no_network_computes_with_are_refused_by_name(
    name: str, values: torch.Tensor, told: str, tmp_path: Path
) -> None:
    """Computed in int8, not a number became a number."""
    path = tmp_path / "m.safetensors"
    write_model(path, TINY_STATE | {name: values}, ModelCard())

    assert f"'{name}'" in (text := refusal(path))
    assert told in text


def test_a_card_with_ranges_of_another_network_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.safetensors", lambda fields: fields.update(training={"int8_ranges": {"x": 1.0}}))

    assert "'x' is in only one of int8_ranges" in refusal(path)


def test_a_refusal_is_also_a_value_error(tmp_path: Path) -> None:
    assert issubclass(ModelFileError, ValueError)
    with pytest.raises(WsiMetaError):
        read_card(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            r"a pointer of Git LFS; expected .*git lfs pull",
        ),
        (b"\n<!DOCTYPE html>\n<html>\n", "a web page; expected weights"),
        (b"<", "a web page; expected weights"),
    ],
)
@pytest.mark.parametrize("name", ["m.safetensors", "m.pth"])
def test_what_lies_there_instead_of_weights_is_named(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for read in (load_model, read_weights):
        with pytest.raises(ModelFileError, match=f"{name}: {told}"):
            read(path)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_that_are_cut_short_are_told_with_what_to_do(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"w.{ending}"
    (torch.save if ending == "pth" else save_file)(TINY_STATE, path)
    path.write_bytes(path.read_bytes()[:-40])

    with pytest.raises(ModelFileError, match=r"cannot be read \(.*\); expected a state_dict: .*; copy or download it again$"):
        read_weights(path)


def test_no_length_of_card_turns_a_model_into_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for n in range(256):
        card = ModelCard(training={"note": "x" * n})
        write_model(path, TINY_STATE, card)
        assert read_card(path) == card, n
        if (content := path.read_bytes()).startswith((b"\x80", b"PK")):
            path.write_bytes(content[: len(content) // 2])
            assert "not a safetensors file, or a truncated one" in refusal(path), "nor a part of one"
            with pytest.raises(ModelFileError, match="its weights cannot be read"):
                read_weights(path)


@pytest.mark.parametrize("name", ["architecture", "dense", "thresholds", "training", "metrics", "versions"])
def test_a_card_without_any_field_is_refused(tmp_path: Path, name: str) -> None:
    refusal(write_tiny(tmp_path / "m.safetensors", lambda fields: fields.pop(name)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("calibration", {}),
        ("calibration", {"temperature": 0, "bias": 0}),
        ("calibration", {"temperature": "a", "bias": 0}),
        ("dense", "no"),
        ("preprocessing", Preprocessing(patch_px=64).to_dict()),  # of a card that allows dense mode
        ("classes", "tumor"),
        ("classes", ["normal"]),
        ("classes", ["normal", "tumor"]),
        ("format_version", 0),
        ("format_version", -3),
        ("format_version", 1.7),
        ("thresholds", 3),
        ("thresholds", {}),
        ("thresholds", {"sensitive": 0.125}),
        ("training", None),
        ("metrics", {"auc": "high"}),
        ("versions", {"torch": 2}),
    ],
    ids=str,
)
def test_a_card_of_senseless_values_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    refusal(write_tiny(tmp_path / "m.safetensors", lambda fields: fields.update({"dense": True, name: value})))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("metrics", None, "null; expected an object"),
        ("thresholds", [0.5], "[0.5]; expected an object"),
        ("versions", None, "null; expected an object"),
        ("calibration", "none", '"none"; expected an object'),
        ("classes", "tumor", '"tumor"; expected a list of one name, the tumor\'s'),
        ("format_version", "1", '"1"; expected a whole number'),
        ("architecture", None, "null; expected a text"),
    ],
)
def test_a_field_of_another_kind_is_refused_by_its_name(tmp_path: Path, name: str, value: Any, told: str) -> None:
    assert f"({name} is {told}" in refusal(write_tiny(tmp_path / "m.safetensors", lambda fields: fields.update({name: value})))


NO_THRESHOLDS = [0, 2, -0.5, 1.0000001, math.nan, math.inf, True, "0.5", None, 10**400]


@pytest.mark.parametrize("value", NO_THRESHOLDS, ids=lambda value: str(value)[:10])
@pytest.mark.parametrize("name", ["default", "sensitivity_95"])
def test_a_threshold_that_no_probability_can_have_is_refused_when_the_model_is_opened(
    tmp_path: Path, name: str, value: Any
) -> None:
    path = write_tiny(tmp_path / "m.safetensors", lambda fields: fields["thresholds"].update({name: value}))

    text = refusal(path)

    assert f"threshold '{name}' is {str(value)[:40]}; expected more than 0, at most 1" in text


@pytest.mark.parametrize("value", [1, 1.0, 2.0**-149, 0.5])
def test_a_threshold_at_its_limits_is_allowed(tmp_path: Path, value: float) -> None:
    path = write_tiny(tmp_path / "m.safetensors", lambda fields: fields.update(thresholds={"default": value}))

    assert read_card(path).thresholds == {"default": value}


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("calibration", {"temperature": -1}, "temperature is -1"),
        ("calibration", {"temperature": 1e-300}, "temperature is 1e-300"),
        ("calibration", {"temperature": True}, "temperature is True"),
        ("calibration", {"temperature": math.nan}, "temperature is nan"),
        ("calibration", {"bias": math.inf}, "bias is inf"),
        ("calibration", {"bias": 10**400}, "bias is 1000"),
        ("metrics", {"auc": math.nan}, "metric 'auc' is nan"),
        ("metrics", {"dense_auc": 1.3}, "metric 'dense_auc' is 1.3; expected a number from 0 to 1"),
        ("metrics", {"n": -5}, "metric 'n' is -5"),
        ("metrics", {"n": 5e200}, "metric 'n' is 5e+200"),
        ("preprocessing", {"mpp": 0.005}, "mpp (0.005,); expected numbers from 0.05 to 50"),
        ("preprocessing", {"mpp": 972}, "mpp (972,)"),
        ("preprocessing", {"mpp": 10**400}, "preprocessing not supported"),
        ("preprocessing", {"mean": [123.7, 116.3, 103.5]}, "mean (123.7, 116.3, 103.5); expected numbers from 0 to 1"),
        ("preprocessing", {"mean": [0.5, math.nan, 0.5]}, "mean (0.5, nan, 0.5)"),
        ("preprocessing", {"std": [58.4, 57.1, 57.4]}, "std (58.4, 57.1, 57.4)"),
        ("preprocessing", {"std": [0.2, 1e-50, 0.2]}, "std (0.2, 1e-50, 0.2)"),
        ("preprocessing", {"std": [0.2, -0.2, 0.2]}, "std (0.2, -0.2, 0.2)"),
        ("preprocessing", {"patch_px": 10**9}, "preprocessing not supported"),
        ("preprocessing", {"patch_px": 32, "label_px": 96}, "label_px is 96; expected at most patch_px, 32"),
        ("preprocessing", {"patch_px": 97}, "patch_px is 97; expected an even number"),
        ("preprocessing", {"label_px": 31}, "label_px is 31; expected an even number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_number_beyond_what_a_card_can_mean_is_refused_by_name(
    tmp_path: Path, part: str, change: dict[str, Any], told: str
) -> None:
    path = write_tiny(tmp_path / "m.safetensors", lambda fields: fields[part].update(change))

    assert told in refusal(path)
    assert "its card is incomplete or wrong" in refusal(path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"__metadata__":null,"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"__metadata__":[1],"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":["0","4"]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,null]}}',
        (
            b'{"__metadata__":{"wsi_meta":"{\\"format_version\\": Infinity}"},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        ),
        b"[" * 9000,
    ],
)
def test_an_odd_header_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refusal(path)


def test_loading_draws_no_random_numbers(model_file: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    network = load_model(model_file).network

    assert torch.equal(torch.get_rng_state(), before)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"cpu"}
