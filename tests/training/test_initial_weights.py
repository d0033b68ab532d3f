from __future__ import annotations

import http.client
import io
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.response import addinfourl

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny import HERE, Tiny, train_tiny
from torch import nn
from torch.serialization import set_crc32_options

from wsi_meta.datasets.layouts import open_patches
from wsi_meta.datasets.patches import Patches, content_of, contents_of
from wsi_meta.errors import ModelFileError, TrainingError
from wsi_meta.evaluation.cautions import cautions_of
from wsi_meta.evaluation.results import Evaluation
from wsi_meta.models.card import RANGES, ModelCard, read_card
from wsi_meta.models.known_patches import read_known_patches
from wsi_meta.models.model import build_network, write_model
from wsi_meta.training.initial_weights import Start, idle_settings, initialise, stage_of
from wsi_meta.training.recipe import RECIPES, Recipe

SHORT = Recipe(epochs=1, batch_size=4)
TENSORS = len(Tiny().state_dict())


@pytest.fixture(scope="module")
def partial_init(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stem and layer1 of a ResNet50, a head for 1,000 classes, and a tensor that nobody knows."""
    state = {name: tensor for name, tensor in load_file(model_file).items() if stage_of(name) in ("stem", "layer1")}
    path = tmp_path_factory.mktemp("init") / "stem.safetensors"
    save_file(state | {"fc.weight": torch.zeros(1000, 2048), "stain.weight": torch.zeros(3)}, path)
    return path


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(5)
    return build_network()


def test_a_partial_file_fills_what_fits_and_says_what_not(
    network: nn.Module, partial_init: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    stored = load_file(partial_init)

    start = initialise(network, partial_init)

    assert "stem.safetensors: has no weights of layer2, layer3, which start from random ones" in caplog.text
    after = network.state_dict()
    assert start.loaded == set(stored) - {"fc.weight", "stain.weight"}
    for name, tensor in after.items():
        expected = stored[name].to(tensor.dtype) if name in start.loaded else before[name]
        assert torch.equal(tensor, expected), name
    assert f"loaded {len(start.loaded)} tensors from stem.safetensors" in start.summary
    assert "random: layer2, layer3, layer4, head" in start.summary
    assert "not used: 2" in start.summary
    assert start.source == "stem.safetensors"


def test_a_checkpoint_of_torch_is_read_in_its_usual_wrappings(tmp_path: Path) -> None:
    wanted = Tiny().state_dict()
    for name, content in {
        "bare.pth": wanted,
        "wrapped.pt": {"epoch": 3, "state_dict": wanted},
        "parallel.pth": {f"module.{key}": tensor for key, tensor in wanted.items()},
        "lightning.ckpt": {"state_dict": {f"model.{key}": tensor for key, tensor in wanted.items()}},
        "other.safetensors": {"net": {f"module.{key}": tensor for key, tensor in wanted.items()}, "acc": 1.0},
        "compiled": {f"_orig_mod.{key}": tensor for key, tensor in wanted.items()},
        "several.pth": {"student": {}, "state_dict": None, "weights": wanted},
    }.items():
        torch.save(content, tmp_path / name)
        network = Tiny()

        start = initialise(network, tmp_path / name)

        assert all(torch.equal(tensor, wanted[key]) for key, tensor in network.state_dict().items()), name
        assert start.summary.startswith(f"loaded {TENSORS} tensors from {name}")
        assert start.summary.endswith("; nothing left random")
    save_file(wanted, tmp_path / "ours.pth")
    assert initialise(Tiny(), tmp_path / "ours.pth").loaded == set(wanted)


def test_a_checkpoint_without_tensors_or_of_several_networks_is_refused_by_its_keys(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "net": {"path": "elsewhere"}}, tmp_path / "a.pth")
    assert "holds no tensors; its keys: epoch, net;" in refusal(tmp_path / "a.pth")
    torch.save({"student": Tiny().state_dict(), "teacher": Tiny().state_dict()}, tmp_path / "a.pth")
    assert "holds several networks (student, teacher)" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("conv1.bias"), "stem fits in part: 'conv1.bias' is absent, expected (4,)"),
        (
            lambda state: state.update({"layer1.0.weight": torch.zeros(6, 4, 3, 3)}),
            "'layer1.0.weight' is (6, 4, 3, 3),",
        ),
        (lambda state: state.update({"layer1.0.se.weight": torch.zeros(6)}), "'layer1.0.se.weight' is (6,), expected absent"),
    ],
    ids=["absent", "shape", "more"],
)
def test_a_stage_of_another_network_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str) -> None:
    state = Tiny().state_dict()
    change(state)
    torch.save(state, tmp_path / "a.pth")
    assert told in refusal(tmp_path / "a.pth")


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [line for line in caplog.messages if line.startswith("--init ")]
    caplog.clear()
    return found


def test_a_model_knows_the_patches_of_its_initial_weights(
    patch_folder: Path, few_patches: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Validation and test patches under other names, of which the weights have learned some: figures on them flatter."""
    train_tiny(few_patches, tmp_path / "a.safetensors", recipe=SHORT, **HERE)
    assert texts(caplog) == []
    data = tmp_path / "data"
    for place, source in {"train": "valid/{}/*[13].png", "valid": "train/{}/*[0123].png", "test": "valid/{}/*[02].png"}.items():
        for label in "01":
            (data / place / label).mkdir(parents=True)
            for number, path in enumerate(sorted(patch_folder.glob(source.format(label)))):
                shutil.copy(path, data / place / label / f"{number}.png")

    train_tiny(data, tmp_path / "b.safetensors", init=tmp_path / "a.safetensors", recipe=SHORT, **HERE)

    remembered, chosen = texts(caplog)
    assert remembered == (
        "--init a.safetensors, patches of the validation split: The model was trained on 4 of these 8 patches. "
        "The figures show how well it remembers them, not how well it works on other patches."
    )
    assert "patches of the test split: The model's best epoch was chosen on 4 of these 4 patches" in chosen
    assert chosen.endswith("Patches that it never saw give unbiased figures."), "a test split is where it is said"
    known = read_known_patches(tmp_path / "b.safetensors")
    assert known is not None
    own, before = open_patches(data), open_patches(few_patches)
    assert [known.count(contents(own[split])) for split in ("train", "valid", "test")] == [
        {"train": 4, "valid": 0},
        {"train": 4, "valid": 8},
        {"train": 0, "valid": 4},
    ]
    assert known.count(contents(before["train"]))["train"] == len(before["train"])
    assert "init_known" not in read_card(tmp_path / "b.safetensors").training


def test_a_model_file_that_does_not_say_its_patches_is_told(
    few_patches: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And what is trained from it does not know them either, nor what is trained from that."""
    write_model(tmp_path / "a.safetensors", Tiny().state_dict(), ModelCard())
    general = Tiny().state_dict()
    general |= {"fc.weight": torch.ones(1000, general["fc.weight"].shape[1]), "fc.bias": torch.ones(1000)}
    save_file(general, tmp_path / "general.safetensors")
    train_tiny(few_patches, tmp_path / "g.safetensors", init=tmp_path / "general.safetensors", recipe=SHORT, **HERE)
    assert texts(caplog) == []
    assert "init_known" not in read_card(tmp_path / "g.safetensors").training
    torch.save(Tiny().state_dict(), tmp_path / "theirs.safetensors")
    for init, out in (("theirs", "z"), ("a", "b"), ("b", "c")):
        train_tiny(few_patches, tmp_path / f"{out}.safetensors", init=tmp_path / f"{init}.safetensors", recipe=SHORT, **HERE)
        assert f"--init {init}.safetensors: It is not known which patches it was trained on: " in texts(caplog)[-1]
        card = read_card(tmp_path / f"{out}.safetensors")
        assert card.training["init_known"] is False
    patches = open_patches(few_patches)["valid"]
    evaluation = replace(Evaluation.of(np.arange(4, dtype=np.float32), patches.labels, card), all_patches_known=False)
    told = "It is not known which patches b.safetensors, which the model began with, was trained on: where"
    assert cautions_of(card, patches, evaluation)[-1].startswith(told)


def test_int8_needs_to_be_seen_where_a_model_began_with_weights_that_were_made_for_it(
    few_patches: Path, tmp_path: Path
) -> None:
    """Too few patches tell no ranges, and those of its start are not its own; nor does what is trained from it say more."""
    general = Tiny().state_dict()
    general |= {"fc.weight": torch.ones(1000, general["fc.weight"].shape[1]), "fc.bias": torch.ones(1000)}
    save_file(general, tmp_path / "general.safetensors")
    torch.save(Tiny().state_dict(), tmp_path / "bare.safetensors")
    facts: dict[str, dict[str, Any]] = {"fitted": {RANGES: {"bn1": 1.0}}, "imported": {"imported": {"int8": False}}, "ours": {}}
    for name, training in facts.items():
        write_model(tmp_path / f"{name}.safetensors", Tiny().state_dict(), ModelCard(training=training))
    known = {"general": True, "bare": False, "fitted": False, "imported": False, "ours": True, "from_fitted": False}
    for name, expected in known.items():
        out, init = tmp_path / f"from_{name}.safetensors", tmp_path / f"{name}.safetensors"
        train_tiny(few_patches, out, init=init, recipe=SHORT, **HERE)
        assert read_card(out).allows_int8 is expected, name


def contents(patches: Patches) -> NDArray[np.uint8]:
    return contents_of(content_of(patch) for patch in patches.read_many(range(len(patches))))


def test_init_none_loads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Tiny()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    start = initialise(network, "none")

    assert start.loaded == frozenset()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def refusal(init: Path) -> str:
    """The one line that says why a file is no start; the network stays as it was."""
    network = Tiny()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ModelFileError) as caught:
        initialise(network, init)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert str(init) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_init_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "gone.pth")
    assert "no such file" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_an_init_file_with_nothing_that_fits_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vit.{suffix}"
    state = {"patch_embed.weight": torch.zeros(3), "fc.weight": torch.zeros(1000, 5)}
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)

    assert "none of its 2 tensors fits" in refusal(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.safetensors", b""),
        ("text.safetensors", b"no weights at all"),
        ("zeros.safetensors", b"\0" * 100),
        ("text.pth", b"no weights at all"),
        ("zeros.pth", b"\0" * 100),
    ],
)
def test_an_init_file_that_is_damaged_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    assert "cannot be read" in refusal(path)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(Tiny().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])

    assert "cannot be read" in refusal(path)


@pytest.mark.filterwarnings("error")
def test_parameters_are_weights_as_tensors_are(tmp_path: Path) -> None:
    """Torch warns where a parameter becomes a plain number."""
    torch.save(Tiny().state_dict(keep_vars=True), tmp_path / "a.pth")

    assert "loaded" in initialise(Tiny(), tmp_path / "a.pth").summary


def test_a_checkpoint_with_a_hole_is_refused(tmp_path: Path) -> None:
    """Torch stores a checksum of each tensor, and does not compare it."""
    path = tmp_path / "a.pth"
    torch.save({"fc.weight": torch.full((1, 64), 3.0)}, path)
    content = path.read_bytes()
    start = content.index(torch.full((64,), 3.0).numpy().tobytes())
    path.write_bytes(content[:start] + bytes(32) + content[start + 32 :])

    assert "its weights cannot be read (a/data/0 is damaged)" in refusal(path)


def test_a_checkpoint_that_torch_wrote_without_checksums_is_read(tmp_path: Path) -> None:
    set_crc32_options(False)
    try:
        torch.save(Tiny().state_dict(), tmp_path / "a.pth")
    finally:
        set_crc32_options(True)

    assert "loaded" in initialise(Tiny(), tmp_path / "a.pth").summary


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_malicious_checkpoint_is_refused_without_running_it(tmp_path: Path, form: str) -> None:
    path, trace = tmp_path / "a.pth", tmp_path / "trace"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(trace),)

    if form == "plain":
        path.write_bytes(pickle.dumps({"conv1.weight": Trap()}, protocol=2))
    else:
        torch.save({"conv1.weight": Trap()}, path, _use_new_zipfile_serialization=form == "zip")

    refusal(path)

    assert not trace.exists()


def test_imagenet_without_a_network_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def offline(request: Any, *args: Any, **options: Any) -> Any:
        asked.append(getattr(request, "full_url", request))
        raise URLError("[Errno -2] Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)

    with pytest.raises(ModelFileError, match="--init imagenet: the download failed") as caught:
        initialise(Tiny(), "imagenet")

    assert asked == ["https://download.pytorch.org/models/resnet50-11ad3fa6.pth"]
    assert "Name or service not known" in str(caught.value)
    assert "--init FILE" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.pth"))


def test_imagenet_takes_torchvisions_weights_but_its_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stem = {name: torch.ones_like(tensor) for name, tensor in Tiny().state_dict().items() if stage_of(name) == "stem"}
    stored = stem | {"fc.weight": torch.zeros(1000, 5), "fc.bias": torch.zeros(1000)}
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    downloaded = tmp_path / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"  # where torchvision too keeps them
    downloaded.parent.mkdir(parents=True)
    torch.save(stored, downloaded)
    network = Tiny()

    start = initialise(network, "imagenet")

    assert torch.equal(network.conv1.weight, torch.ones(4, 3, 32, 32))
    assert start.loaded == set(stem)
    assert start.source == "imagenet"
    assert "not used: 2" in start.summary


def test_a_model_without_a_card_is_a_start_all_the_same(model_file: Path, network: nn.Module) -> None:
    start = initialise(network, model_file)

    assert start.summary.endswith("nothing left random")
    assert ModelCard() == read_card(model_file)


@pytest.mark.parametrize(
    ("loaded", "settings", "told"),
    [
        ("all", {"lr": 0.5}, "lr 0.5 has no effect: no layer starts from random weights"),
        ("", {"freeze": "layer3"}, "freeze layer3 has no effect: no weights were loaded"),
        ("", {"freeze": "layer1", "lr_loaded": 0.5}, "lr_loaded 0.5 has no effect: no weights were loaded"),
        ("stem", {"head_epochs": 5}, "the trunk stays as it was loaded: head_epochs 5 of 4 epochs"),
    ],
    ids=str,
)
def test_a_setting_without_effect_is_told(loaded: str, settings: dict[str, Any], told: str) -> None:
    assert idle_settings(tiny_start(loaded), Recipe(**settings)) == [told]


def tiny_start(loaded: str) -> Start:
    network = Tiny()
    names = frozenset(name for name in network.state_dict() if loaded == "all" or stage_of(name) == loaded)
    return Start(network, names, "file", "")


def test_what_learns_nothing_is_no_training() -> None:
    assert [idle_settings(tiny_start(loaded), RECIPES["strong"]) for loaded in ("", "stem", "all")] == [[], [], []]
    for loaded, recipe in (("all", Recipe(lr_loaded=0)), ("", Recipe(lr=0))):
        with pytest.raises(TrainingError, match=r"nothing learns: lr \S+ of new layers, lr_loaded \S+ of loaded ones"):
            idle_settings(tiny_start(loaded), recipe)


def test_an_empty_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch()
    refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [{"state_dict": torch.zeros(3)}, {"state_dict": None}, {1: torch.zeros(3)}], ids=str)
def test_a_checkpoint_that_is_no_state_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    refusal(tmp_path / "a.pth")


class Broken(io.BytesIO):
    """A download that ends too early."""

    def read(self, _count: int | None = -1) -> bytes:
        raise http.client.IncompleteRead(b"")


@pytest.mark.parametrize(
    ("content", "told"), [(io.BytesIO(b"other weights"), "invalid hash value"), (Broken(), "IncompleteRead")]
)
def test_a_broken_download_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: io.BytesIO, told: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", lambda *_args, **_options: addinfourl(content, Message(), "", 200))
    with pytest.raises(ModelFileError, match=f"the download failed .*{told}"):
        initialise(Tiny(), "imagenet")
    assert not list(tmp_path.rglob("*.pth"))
