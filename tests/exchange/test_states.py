"""Weights under other tools' names give the logits that the tools' own code gives."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exchanged import TiaLike, TimmLike, build_thin, randomised, with_head
from torch import nn

from wsi_meta.errors import ModelFileError
from wsi_meta.exchange.states import compact, find_state
from wsi_meta.models.model import build_network, network_of
from wsi_meta.models.weights import check_weights, read_weights
from wsi_meta.training.initial_weights import initialise

IMAGES = torch.rand((3, 3, 96, 96), generator=torch.Generator().manual_seed(1)) * torch.tensor([0.2, 1, 4])[:, None, None, None]
MAKERS: dict[str, Callable[[int], nn.Module]] = {
    "torchvision": lambda logits: with_head(build_thin(), logits),
    "timm": lambda logits: TimmLike(build_thin(), logits),
    "tiatoolbox": lambda logits: TiaLike(build_thin(), logits),
}


def own_logits(network: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = getattr(network, "logits", network)(IMAGES)
    return found


def our_logits(state: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = network_of(state, build_thin)(IMAGES)[:, 0]
    return found


def find(state: dict[str, torch.Tensor], **settings: Any) -> Any:
    return find_state(state, source="net.pth", build=build_thin, **settings)


def refusal(state: dict[str, torch.Tensor], **settings: Any) -> str:
    with pytest.raises(ModelFileError) as caught:
        find(state, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("logits", "prefix"), [(1, ""), (2, "net.model.")])
@pytest.mark.parametrize("naming", MAKERS)
def test_each_naming_gives_the_logits_of_its_own_code(naming: str, logits: int, prefix: str) -> None:
    network = randomised(MAKERS[naming](logits))
    theirs = own_logits(network)
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    kind = "tiatoolbox" if naming == "tiatoolbox" else "torchvision"
    wanted = [theirs[:, 0]] if logits == 1 else [theirs[:, 0] - theirs[:, 1], theirs[:, 1] - theirs[:, 0]]

    for tumor_class, expected in enumerate(wanted):
        found = find(state, naming=["auto", naming][tumor_class], tumor_class=tumor_class)
        assert (found.naming, found.logits) == (kind, logits)
        torch.testing.assert_close(our_logits(found.state), expected, rtol=0, atol=1e-5)
    assert theirs.std() > 0.01


def test_a_softmax_of_two_is_the_sigmoid_of_their_difference() -> None:
    network = randomised(MAKERS["tiatoolbox"](2))
    with torch.inference_mode():
        theirs = network(IMAGES)[:, 1]
    torch.testing.assert_close(our_logits(find(network.state_dict()).state).sigmoid(), theirs, rtol=0, atol=1e-6)


def test_the_real_network_in_each_naming() -> None:
    """By names alone: a ResNet50 has 320 entries, of which each must end in its own place."""
    with torch.device("meta"):
        shapes = build_network().state_dict()
        tia = TiaLike(build_network()).state_dict()
    state = {name: torch.full((), float(place)).expand(tensor.shape) for place, (name, tensor) in enumerate(shapes.items())}

    found = find_state(state, source="net.pth")
    renamed = dict(zip(tia, [tensor for name, tensor in state.items() if name[:3] != "fc."], strict=False))
    head = {"classifier.weight": torch.zeros(2, 2048), "classifier.bias": torch.zeros(2)}
    again = find_state(renamed | head, source="net.pth")

    assert list(found.state) == list(shapes) == list(again.state)
    for name in shapes:
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked"):
            assert float(found.state[name].flatten()[0]) == float(again.state[name].flatten()[0]) == list(shapes).index(name)


def test_files_without_counts_of_batches_are_whole() -> None:
    network = randomised(build_thin())
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.testing.assert_close(our_logits(find(state).state), own_logits(network)[:, 0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda state: state.pop("layer3.0.bn2.running_var"),
            "lacks 1 of the 85 tensors of a ResNet50's trunk, such as",
        ),
        (lambda state: state.clear(), "lacks 85 of the 85"),
        (
            lambda state: state.update({"layer1.0.conv2.weight": torch.zeros(5, 4, 3, 3)}),
            r"'layer1.0.conv2.weight' is (5, 4, 3, 3)",
        ),
        (lambda state: state.update({"layer1.0.se.fc1.weight": torch.zeros(4)}), "'layer1.0.se.fc1.weight' belongs neither"),
        (lambda state: state.update({"fc.weight": torch.zeros(3, 1024), "fc.bias": torch.zeros(3)}), "has 3 classes"),
        (lambda state: [state.pop("fc.weight"), state.pop("fc.bias")], "has no head, which takes 1024 features"),
        (lambda state: state.update({"fc2.weight": torch.zeros(2, 1024)}), "belongs neither to a ResNet50 nor to its head"),
        (lambda state: state.update({"fc.bias": torch.zeros(2)}), "expected one or two"),
    ],
    ids=["a tensor missing", "empty", "a shape", "squeeze", "three classes", "no head", "two heads", "bias"],
)
def test_another_network_is_refused_in_one_line(change: Callable[[dict[str, Any]], object], told: str) -> None:
    state = dict(build_thin().state_dict())
    change(state)
    assert told in refusal(state)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("layer1.0.conv2.weight", lambda tensor: (tensor * 100).to(torch.int8), "is of int8; expected one of float16,"),
        ("fc.weight", lambda tensor: tensor.to(torch.complex64), "is of complex64"),
        ("fc.weight", lambda tensor: tensor.to_sparse(), "is of float32, sparse_coo"),
        ("fc.weight", lambda tensor: torch.quantize_per_tensor(tensor, 0.01, 0, torch.qint8), "is of qint8"),
        ("conv1.weight", lambda tensor: tensor.to(torch.float8_e4m3fn), "is of float8_e4m3fn"),
        ("conv1.weight", lambda tensor: tensor.to("meta"), "is of float32, without values"),
        ("conv1.weight", lambda tensor: tensor.double() + 1e39, "(float64) holds values that are no finite float32"),
        ("fc.bias", lambda tensor: tensor * math.nan, "(float32) holds values that are no finite float32"),
        ("layer1.0.bn1.running_var", lambda tensor: tensor - 5, "(float32) holds a variance of -4"),
    ],
)
def test_weights_that_no_network_computes_with_are_refused_by_name(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], told: str, tmp_path: Path
) -> None:
    """By what takes weights in and by what starts a training."""
    network = build_thin()
    state = {f"net.{key}": change(tensor) if key == name else tensor for key, tensor in network.state_dict().items()}
    assert f"net.pth: 'net.{name}' {told}" in refusal(state)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelFileError, match=re.escape(f"{tmp_path / 'net.pth'}: '{name}' {told}")):
        initialise(network, tmp_path / "net.pth")


def test_large_values_and_half_precision_are_weights() -> None:
    state = {"a": torch.full((9,), 6e4).half(), "b": torch.full((9,), 3e38), "c": torch.ones(2).bfloat16(), "d": torch.ones(0)}
    check_weights(state | {"bn.num_batches_tracked": torch.tensor(3), "bn.running_var": torch.zeros(0)}, "net.pth")


@pytest.mark.parametrize("second", ["a.second.", "momentum."])
def test_of_two_networks_none_is_taken(second: str, tmp_path: Path) -> None:
    """The first by the alphabet was taken, whichever was meant; where both are the same it does not matter."""
    own = randomised(build_thin()).state_dict()
    prefixes = ("encoder.", second)
    state = {prefix + name: tensor * (prefix == "encoder.") for prefix in prefixes for name, tensor in own.items()}
    first, last = sorted(prefixes)
    told = f"net.pth: holds several networks with other weights, under '{first}*' and '{last}*'; expected one"
    assert told in refusal(state)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelFileError, match=re.escape(told)):
        initialise(build_thin(), tmp_path / "net.pth")
    torch.save({prefix + name: tensor.clone() for prefix in prefixes for name, tensor in own.items()}, tmp_path / "net.pth")
    assert f"({first}*)" in initialise(build_thin(), tmp_path / "net.pth").summary


def test_a_naming_that_was_said_is_the_only_one_looked_for() -> None:
    assert "feat_extract.0.weight" in refusal(dict(build_thin().state_dict()), naming="tiatoolbox")


def test_weights_are_stored_in_half_precision_where_that_changes_nothing() -> None:
    exact = {"kernel": torch.tensor([[0.5, -3.0]]), "bias": torch.tensor([1 / 3])}
    assert {name: tensor.dtype for name, tensor in compact(exact).items()} == {"kernel": torch.float16, "bias": torch.float32}
    rounded = {"kernel": torch.tensor([[1 / 3]])}
    assert compact(rounded)["kernel"].dtype == torch.float32


# --- files


@pytest.mark.parametrize("within", ["state_dict", "model_state_dict", "model", None])
def test_a_checkpoint_holds_its_weights_among_other_things(within: str | None, tmp_path: Path) -> None:
    weights = {"conv1.weight": torch.ones(2)}
    torch.save(weights if within is None else {"epoch": 3, within: weights}, tmp_path / "net.pth")
    assert read_weights(tmp_path / "net.pth").keys() == {"conv1.weight"}


def test_a_second_network_in_a_checkpoint_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As timm's moving average, which timm itself prefers."""
    weights, average = {"conv1.weight": torch.ones(2)}, {"module.conv1.weight": torch.zeros(2)}
    torch.save({"state_dict": weights, "optimizer": {"state": {}}}, tmp_path / "net.pth")
    read_weights(tmp_path / "net.pth")
    assert not caplog.messages
    torch.save({"state_dict": weights, "state_dict_ema": average}, tmp_path / "net.pth")
    assert read_weights(tmp_path / "net.pth")["conv1.weight"].sum() == 2
    assert "under 'state_dict' are taken, not those under 'state_dict_ema'; are those meant, save them" in caplog.text


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path / "sprung").mkdir, ()

    for save in (lambda path: torch.save({"w": Trap()}, path), lambda path: path.write_bytes(pickle.dumps(Trap()))):
        save(tmp_path / "net.pth")
        with pytest.raises(ModelFileError, match=r"net\.pth: its weights cannot be read: .*code is never run") as caught:
            read_weights(tmp_path / "net.pth")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
