from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ALONE, Tiny, draw_batch, tiny_learner
from torch import nn

from wsi_meta.models.dihedral import turn
from wsi_meta.models.model import build_network
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.training.augment import augment
from wsi_meta.training.initial_weights import STAGES, Start, stage_of
from wsi_meta.training.learner import PICTURES_REPAY, Learner, choose_precision, make_learner
from wsi_meta.training.recipe import Augmentation, Recipe

AS_IT_IS = Augmentation().without("turn", "shift", "stain", "stain-offset", "brightness", "contrast", "blur", "jpeg")
PLAIN = Recipe(augmentation=AS_IT_IS, mosaics=0, ema_epochs=0, label_smoothing=0, clip_norm=0, weight_decay=0)


def plain(**changes: object) -> Recipe:
    return Recipe(**vars(PLAIN) | changes)


def step(learner: Learner, seed: int = 0, *, n: int = 16, mosaic_side: int = 1) -> float:
    return learner.step(*draw_batch(n, seed), torch.Generator().manual_seed(seed), mosaic_side).item()


def kernels(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in learner.network.named_parameters()}


# --- the two stages


@pytest.mark.parametrize(
    ("freeze", "head_epochs", "epoch", "learning"),
    [
        ("layer1", 1, 1, {"head"}),
        ("none", 1, 1, {"head"}),
        ("layer1", 2, 2, {"head"}),
        ("layer1", 1, 2, {"layer2", "layer3", "layer4", "head"}),
        ("stem", 1, 2, {"layer1", "layer2", "layer3", "layer4", "head"}),
        ("none", 0, 1, {"stem", "layer1", "layer2", "layer3", "layer4", "head"}),
        ("layer3", 0, 1, {"layer4", "head"}),
    ],
)
def test_what_learns_in_which_epoch(resnet: nn.Module, freeze: str, head_epochs: int, epoch: int, learning: set[str]) -> None:
    loaded = frozenset(name for name in resnet.state_dict() if stage_of(name) != "head")
    learner = tiny_learner(Recipe(freeze=freeze, head_epochs=head_epochs))
    learner.start = Start(resnet, loaded, "file", "")

    learner.enter(epoch)

    found = {stage_of(name) for name, parameter in resnet.named_parameters() if parameter.requires_grad}
    still = {stage_of(name) for name, parameter in resnet.named_parameters() if not parameter.requires_grad}
    assert found == learning
    assert found.isdisjoint(still)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return build_network()


@pytest.mark.parametrize(
    ("loaded", "first", "second"),
    [
        (("conv1", "bn1", "layer1", "layer4"), {"fc"}, {"layer4", "fc"}),
        (("conv1", "bn1"), {"layer1", "layer4", "fc"}, {"layer1", "layer4", "fc"}),
        (("conv1", "bn1", "layer1", "layer4", "fc"), {"fc"}, {"layer4", "fc"}),
        ((), {"conv1", "bn1", "layer1", "layer4", "fc"}, {"conv1", "bn1", "layer1", "layer4", "fc"}),
    ],
    ids=["all but layer3 and the head", "stem", "everything", "nothing"],
)
def test_only_what_learns_changes(loaded: tuple[str, ...], first: set[str], second: set[str]) -> None:
    recipe = plain(head_epochs=1, freeze="layer1", weight_decay=0.1)
    learner = tiny_learner(recipe, loaded=loaded)
    for epoch, expected in ((1, first), (2, second)):
        before = kernels(learner)
        learner.enter(epoch)
        for seed in range(3):
            step(learner, seed)

        after = kernels(learner)
        assert {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])} == expected
        assert learner.stage(epoch) == ("head" if loaded and epoch == 1 else "all")
    assert not torch.equal(learner.network.get_buffer("bn1.running_mean"), torch.zeros(4))


def test_frozen_statistics_stay_as_loaded() -> None:
    learner = tiny_learner(plain(batchnorm="frozen"), loaded=("conv1", "bn1"))
    before = {name: buffer.clone() for name, buffer in learner.network.named_buffers()}

    for epoch in (1, 2):
        learner.enter(epoch)
        step(learner)

    assert all(torch.equal(buffer, before[name]) for name, buffer in learner.network.named_buffers())
    assert int(before["bn1.num_batches_tracked"]) == 0


# --- steps


def test_earlier_layers_take_smaller_steps(resnet: nn.Module) -> None:
    loaded = frozenset(name for name in resnet.state_dict() if stage_of(name) != "head")
    recipe = Recipe(lr=1e-2, lr_loaded=1e-3, lr_decay=0.5, warm_up=0.2)

    learner = make_learner(Start(resnet, loaded, "file", ""), recipe, 100, ALONE, "fp32")

    names = {id(parameter): name for name, parameter in resnet.named_parameters()}
    peaks = {
        stage_of(names[id(parameter)]): group["max_lr"]
        for group in learner.optimiser.param_groups
        for parameter in group["params"]
    }
    expected = {"head": 1e-2, "layer4": 1e-3, "layer3": 5e-4, "layer2": 2.5e-4, "layer1": 1.25e-4, "stem": 6.25e-5}
    assert peaks == pytest.approx(expected)
    assert sum(len(group["params"]) for group in learner.optimiser.param_groups) == len(names)
    assert {group["weight_decay"] for group in learner.optimiser.param_groups} == {recipe.weight_decay}


def test_the_schedule_is_one_cycle() -> None:
    learner = tiny_learner(Recipe(epochs=5, lr=1e-3, warm_up=0.2, head_epochs=0), steps_per_epoch=20)
    taken = []
    for _ in range(100):
        taken.append(learner.optimiser.param_groups[0]["lr"])
        learner.optimiser.step()
        learner.schedule.step()

    peak = int(np.argmax(taken))
    assert peak == 19
    assert taken[peak] == pytest.approx(1e-3)
    assert taken[0] < 0.05 * taken[peak]
    assert taken[-1] < 1e-3 * taken[peak]
    assert all(np.diff(taken[: peak + 1]) > 0)
    assert all(np.diff(taken[peak:]) < 0)


@given(epochs=st.integers(1, 12), steps=st.integers(1, 12), warm_up=st.sampled_from([0, 0.1, 0.2, 0.25, 0.5, 0.9]))
@settings(max_examples=60)
def test_any_number_of_steps_has_a_schedule(epochs: int, steps: int, warm_up: float) -> None:
    learner = tiny_learner(Recipe(epochs=epochs, warm_up=warm_up), steps_per_epoch=steps)
    for _ in range(epochs * steps):
        learner.optimiser.step()
        learner.schedule.step()
        assert all(0 <= lr <= 1.0001e-3 for lr in learner.schedule.get_last_lr())


def test_a_training_of_one_step_learns_something() -> None:
    """The schedule ends at a 250,000th of the highest rate; as the only step, that one would train nothing."""
    assert max(tiny_learner(Recipe(epochs=1), steps_per_epoch=1).schedule.get_last_lr()) > 3e-4


def test_a_long_gradient_is_shortened_to_the_norm() -> None:
    norms = {}
    for clip in (0.0, 0.01, 1000.0):
        learner = tiny_learner(plain(clip_norm=clip))
        step(learner)
        found = [parameter.grad for parameter in learner.network.parameters()]
        norms[clip] = math.sqrt(sum(float((gradient**2).sum()) for gradient in found if gradient is not None))

    assert norms[0.0] == norms[1000.0] > 0.05
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_cross_entropy_to_smoothed_labels(smoothing: float) -> None:
    learner = tiny_learner(plain(label_smoothing=smoothing, batchnorm="frozen"))
    learner.enter(1)
    images, labels = draw_batch(16)
    with torch.no_grad():
        logits = learner.network(Preprocessing().to_input(images))[:, 0]
    target = np.where(labels.numpy() == 1, 1 - smoothing / 2, smoothing / 2)
    shown = 1 / (1 + np.exp(-logits.double().numpy()))
    expected = -(target * np.log(shown) + (1 - target) * np.log(1 - shown)).mean()

    assert step(learner) == pytest.approx(expected, abs=1e-6)
    assert 0 < labels.float().mean() < 1


def test_a_step_on_mosaics_is_the_same_step_where_patches_do_not_meet() -> None:
    """With features that see only their own 32 px, mosaics change nothing; labels stay with their patches."""
    singly, together = (tiny_learner(plain(batchnorm="frozen")) for _ in range(2))

    losses = [(step(singly, seed), step(together, seed, mosaic_side=side)) for seed, side in enumerate((4, 2, 4))]

    assert all(one == pytest.approx(other, abs=1e-6) for one, other in losses)
    for name, kernel in kernels(singly).items():
        assert torch.allclose(kernel, kernels(together)[name], atol=1e-5), name


@pytest.mark.parametrize("mosaic_side", [1, 2])
def test_two_pictures_of_a_patch_are_asked_to_agree(mosaic_side: int) -> None:
    """The loss is that of both, plus the weight times the halved sum of the divergences of their probabilities."""
    recipe = plain(batchnorm="frozen", consistency=2.0, augmentation=replace(AS_IT_IS, levels=60.0))
    learner = tiny_learner(recipe)
    learner.network.get_parameter("fc.weight").data *= 30
    learner.enter(1)
    images, labels = draw_batch(16)
    shown = augment(torch.cat([images, images]), recipe.augmentation, torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = learner.network(Preprocessing().to_input(shown))[:, 0].double().numpy()
    one, other = 1 / (1 + np.exp(-logits.reshape(2, 16)))
    truth = labels.numpy()
    entropy = -np.mean([truth * np.log(p) + (1 - truth) * np.log(1 - p) for p in (one, other)])
    there, back = ((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean() for p, q in ((one, other), (other, one)))
    assert there + back > 0.01

    assert step(learner, mosaic_side=mosaic_side) == pytest.approx(entropy + 2.0 * (there + back) / 2, abs=1e-5)


def test_a_step_with_mosaics_asks_both_modes_to_agree() -> None:
    """One picture of each patch is shown by itself, the other one in a mosaic; without consistency all are in mosaics."""
    shapes: list[tuple[int, ...]] = []
    for consistency in (0.5, 0.0):
        learner = tiny_learner(plain(consistency=consistency))
        learner.network.get_submodule("conv1").register_forward_hook(
            lambda _module, inputs, _output: shapes.append(tuple(inputs[0].shape))
        )
        step(learner, mosaic_side=2)
    assert shapes == [(16, 3, 96, 96), (4, 3, 192, 192), (4, 3, 192, 192)]


def test_agreement_that_is_not_asked_for_costs_nothing() -> None:
    shown = []
    for consistency in (0.0, 0.5):
        learner = tiny_learner(plain(consistency=consistency))
        learner.network.get_submodule("conv1").register_forward_hook(
            lambda _module, inputs, _output: shown.append(len(inputs[0]))
        )
        step(learner)
    assert shown == [16, 32]


def test_pictures_agree_better_where_they_are_asked_to() -> None:
    spread = []
    for consistency in (0.0, 5.0):
        changes = replace(AS_IT_IS, gain=0.3, levels=40.0)
        learner = tiny_learner(plain(lr=0.02, epochs=1, consistency=consistency, augmentation=changes), steps_per_epoch=20)
        for seed in range(20):
            step(learner, seed % 4)
        learner.network.eval()
        images, generator = draw_batch(16, 9)[0], torch.Generator().manual_seed(1)
        with torch.no_grad():
            views = [learner.network(Preprocessing().to_input(augment(images, changes, generator))) for _ in range(8)]
        spread.append(float(torch.stack(views).sigmoid().std(0).mean()))
    assert spread[1] < 0.7 * spread[0]


# --- a teacher


@pytest.mark.parametrize("mosaic_side", [1, 2])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_average_teaches_what_it_sees_in_four_views(steps: int, mosaic_side: int) -> None:
    """After `steps` of 8 the teacher's share of the targets is that part of what it will be at the end."""
    recipe = plain(epochs=2, batchnorm="frozen", teacher=0.6, ema_epochs=1.0, augmentation=replace(AS_IT_IS, levels=60.0))
    learner = tiny_learner(recipe, steps_per_epoch=4)
    learner.enter(1)
    learner.steps = steps
    assert learner.average is not None
    learner.average.get_parameter("fc.weight").data *= 30
    images, labels = draw_batch(16)
    views = range(4, 8) if steps % 2 else range(4)
    shown = augment(images, recipe.augmentation, torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = learner.network(Preprocessing().to_input(shown))[:, 0].double()
        seen = [learner.average(Preprocessing().to_input(turn(images, view)))[:, 0].double() for view in views]
    taught, share = torch.stack(seen).mean(0).sigmoid(), 0.6 * steps / 8
    target = (1 - share) * labels + share * taught
    expected = -(target * logits.sigmoid().log() + (1 - target) * (-logits).sigmoid().log()).mean()
    assert (taught - labels).abs().min() > 0.01, "labels alone would give another loss"

    assert step(learner, mosaic_side=mosaic_side) == pytest.approx(float(expected), abs=1e-5)


def test_there_is_no_teacher_in_the_first_step_nor_unasked() -> None:
    for teacher in (0.0, 0.5):
        learner = tiny_learner(plain(teacher=teacher, ema_epochs=1.0))
        seen: list[int] = []
        assert learner.average is not None
        learner.average.get_submodule("conv1").register_forward_hook(lambda *_, seen=seen: seen.append(1))
        step(learner)
        assert not seen
        step(learner)
        assert len(seen) == (teacher > 0)


def test_training_lowers_the_loss() -> None:
    learner = tiny_learner(plain(lr=0.02, epochs=1), steps_per_epoch=60)

    losses = [step(learner) for _ in range(60)]

    assert losses[-1] < 0.6 * losses[0]


def test_patches_are_augmented_as_the_recipe_says() -> None:
    first = step(tiny_learner(PLAIN))
    augmented = plain(augmentation=Augmentation())

    assert step(tiny_learner(PLAIN)) == first
    assert step(tiny_learner(augmented)) == step(tiny_learner(augmented)) != first


# --- the moving average


def test_the_average_is_what_it_is_by_hand() -> None:
    recipe = plain(ema_epochs=0.5, lr=0.02)
    learner = tiny_learner(recipe, steps_per_epoch=40)
    expected = {name: tensor.double() for name, tensor in learner.network.state_dict().items()}
    start = copy.deepcopy(expected)
    for number in range(1, 31):
        step(learner, number)
        keep = min(math.exp(-1 / 20), (1 + number) / (10 + number))
        for name, now in learner.network.state_dict().items():
            expected[name] = keep * expected[name] + (1 - keep) * now.double()

    found = learner.weights()
    assert int(found["bn1.num_batches_tracked"]) == 30
    for name in found.keys() - {"bn1.num_batches_tracked"}:
        assert torch.allclose(found[name].double(), expected[name], atol=1e-6), name
        assert not torch.allclose(found[name], learner.network.state_dict()[name], atol=1e-5), name
        assert not torch.allclose(found[name].double(), start[name], atol=1e-4), name


def test_without_an_average_the_weights_themselves_are_stored() -> None:
    learner = tiny_learner(plain(ema_epochs=0))
    step(learner)

    assert all(torch.equal(tensor, learner.network.state_dict()[name]) for name, tensor in learner.weights().items())
    assert learner.average is None


def test_the_average_does_not_change_how_the_network_learns() -> None:
    with_average, without = tiny_learner(plain(ema_epochs=1)), tiny_learner(PLAIN)
    for seed in range(3):
        assert step(with_average, seed) == step(without, seed)


# --- going on


@pytest.mark.parametrize("ema_epochs", [0.0, 0.5])
def test_a_restored_learner_goes_on_as_if_never_stopped(tmp_path: Path, ema_epochs: float) -> None:
    recipe = plain(ema_epochs=ema_epochs, weight_decay=0.01, epochs=2)
    loaded = ("conv1", "bn1", "layer1", "layer4")
    unbroken, broken = tiny_learner(recipe, loaded=loaded), tiny_learner(recipe, loaded=loaded)
    for learner in (unbroken, broken):
        for seed in range(4):
            step(learner, seed)
    torch.save(broken.state(), tmp_path / "state")
    restored = tiny_learner(recipe, loaded=loaded)
    restored.restore(torch.load(tmp_path / "state", weights_only=True))

    for learner in (unbroken, restored):
        learner.enter(2)
        for seed in range(4, 8):
            step(learner, seed)

    assert restored.steps == unbroken.steps == 8
    assert restored.schedule.get_last_lr() == unbroken.schedule.get_last_lr()
    for name, tensor in unbroken.network.state_dict().items():
        assert torch.equal(restored.network.state_dict()[name], tensor), name
        assert torch.equal(restored.weights()[name], unbroken.weights()[name]), name


# --- precision


def test_bf16_on_a_cpu_is_for_what_is_compiled_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = partial(choose_precision, resolve=lambda asked, _device: "bf16" if asked == "auto" else asked)
    monkeypatch.setattr("shutil.which", lambda _name: "/usr/bin/c++")
    assert choose("auto", "cpu", PICTURES_REPAY) == "bf16"
    assert choose("auto", "cpu", PICTURES_REPAY - 1) == "fp32", "too short to repay compiling"
    assert choose("bf16", "cpu", 1) == "bf16"
    monkeypatch.setattr("shutil.which", lambda _name: None)
    assert choose("auto", "cpu", PICTURES_REPAY) == "fp32"
    assert choose("bf16", "cpu", PICTURES_REPAY) == "bf16"
    assert choose("auto", "cuda", 1) == "bf16"


def test_a_training_in_bf16_is_compiled_however_long(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(torch, "compile", lambda _logits: "compiled")
    compiled = {}
    for epochs, consistency in ((625, 0), (624, 0), (313, 1)):
        recipe = Recipe(epochs=epochs, batch_size=8, consistency=consistency)
        learner = make_learner(Start(Tiny(), frozenset(), "none", ""), recipe, 4, ALONE, "bf16")
        learner.enter(1)
        learner.steps = 4 * epochs - 1  # what is left makes no difference
        learner.forward = None
        learner.enter(epochs)
        compiled[recipe.pictures(35)] = learner.forward == "compiled"
    assert set(compiled.values()) == {True}, "as it was begun: auto takes bf16 only for a training that repays it"
    assert "--precision fp32 does without" in caplog.text


def test_the_stages_have_an_order_from_the_input_on() -> None:
    assert [stage_of(name) for name in ("conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "fc.bias")] == [
        "stem",
        "stem",
        "layer1",
        "head",
    ]
    assert {stage_of(name) for name, _ in build_network().named_parameters()} == set(STAGES) - {"none"}
    assert {stage_of(name) for name, _ in Tiny().named_parameters()} < set(STAGES)
