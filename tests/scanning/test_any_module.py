"""Any module scans, patch by patch, as it computes by itself; what cannot be one is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slide_files import texture, write_slide
from torch import nn

from wsi_meta.cohorts.retry import retry_command
from wsi_meta.errors import DataError, OptionsError, OutputExistsError
from wsi_meta.evaluation.evaluate import evaluate
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.card import Calibration
from wsi_meta.models.model import Model
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.scanning.gpus import GpuProcesses
from wsi_meta.scanning.scan import scan

SHOWN = Preprocessing(patch_px=64, mpp=0.5, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
HERE: dict[str, Any] = {"device": "cpu", "tissue_mask": "none"}


class Mixer(nn.Module):
    """No ResNet: a linear map of an image's own pixels in memory order, and so many logits out."""

    def __init__(self, logits: int = 1, gain: float = 1.5, act: Callable[[torch.Tensor], torch.Tensor] = torch.tanh) -> None:
        super().__init__()
        self.gain, self.act = gain, act
        self.mix, self.drop = nn.Linear(3 * 8 * 8, logits), nn.Dropout(0.9)
        nn.init.normal_(self.mix.weight, std=0.1, generator=torch.Generator().manual_seed(7))
        nn.init.zeros_(self.mix.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        side = images.shape[-1] // 8
        means = nn.functional.avg_pool2d(images, side)
        found: torch.Tensor = self.drop(self.act(self.mix(means.view(len(images), -1)) * self.gain))
        return found

    def extra_repr(self) -> str:
        return f"act={self.act}"


class Counting(Mixer):
    """Keeps how many patches it was shown."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = len(images)
        return super().forward(images)


class Scaling(Mixer):
    """Scales what it is given in its place, as some networks normalise."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.mul_(0.5).add_(0.1))


class Fixed(nn.Module):
    """Returns what it was given for each patch."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found

    def forward(self, _images: torch.Tensor) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def logit_by_itself(module: nn.Module, pixels: np.ndarray[Any, Any]) -> float:
    """What a module in evaluation mode gives for one patch of 64 px, without this package."""
    with torch.inference_mode():
        inputs = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float().contiguous() / 255
        logits = module.eval()(inputs)[0]
    return float(logits[1] - logits[0] if len(logits) == 2 else logits[0])


@pytest.mark.parametrize("logits", [1, 2])
def test_a_scan_is_what_the_module_says_of_each_patch(logits: int, tmp_path: Path) -> None:
    image = texture(200, 300)
    slide, module = write_slide(tmp_path / "node.tif", image, mpp=0.5), Mixer(logits).train()
    model = Model.from_module(module, SHOWN, calibration=Calibration(0.5, -0.25))

    heatmap = scan(slide, tmp_path / "node.zarr", model=model, stride_px=32, **HERE)

    assert (heatmap.record.identity.mode, heatmap.record.identity.precision, heatmap.record.identity.compiled) == (
        "patch",
        "fp32",
        False,
    )
    assert module.training
    probability = heatmap.probability
    for row in range(1, 5):
        for col in range(1, 8):
            y, x = 32 * row - 16, 32 * col - 16
            z = logit_by_itself(module, image[y : y + 64, x : x + 64])
            assert probability[row, col] == pytest.approx(1 / (1 + np.exp(-(z / 0.5 - 0.25))), abs=1e-5)
    assert np.ptp(probability[1:5, 1:8]) > 0.02


def test_the_store_says_which_module_it_was_and_belongs_to_it_alone(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "node.tif", texture(96, 96), mpp=0.5)
    scan(slide, tmp_path / "node.zarr", model=Model.from_module(Mixer(), SHOWN), **HERE)
    before = Heatmap.open(tmp_path / "node.zarr")

    again = scan(slide, tmp_path / "node.zarr", model=Model.from_module(Mixer(), SHOWN), **HERE)

    assert again.record == before.record
    assert before.record.model.architecture == f"{Mixer.__module__}.Mixer"
    with pytest.raises(OutputExistsError, match="model is"):
        scan(slide, tmp_path / "node.zarr", model=Model.from_module(Mixer(gain=2.0), SHOWN), **HERE)


def test_a_module_that_keeps_something_of_a_pass_stays_the_same_model(tmp_path: Path) -> None:
    slide, model = write_slide(tmp_path / "node.tif", texture(96, 96), mpp=0.5), Model.from_module(Counting(), SHOWN)
    first, again = (scan(slide, tmp_path / "node.zarr", model=model, **HERE) for _ in range(2))
    assert again.record == first.record
    with torch.no_grad():
        model.network.get_parameter("module.mix.weight").add_(1)
    with pytest.raises(OutputExistsError, match="model is"):
        scan(slide, tmp_path / "node.zarr", model=model, **HERE)


def test_the_hash_is_of_weights_buffers_parts_attributes_and_card() -> None:
    def changed(change: Callable[[Mixer], object]) -> Mixer:
        module = Mixer()
        change(module)
        return module

    class Other(Mixer):
        pass

    kinds = [
        (Mixer(), SHOWN, 1),
        (changed(lambda module: module.mix.bias.data.add_(1e-6)), SHOWN, 1),
        (changed(lambda module: module.register_buffer("extra", torch.zeros(2), persistent=False)), SHOWN, 1),
        (changed(lambda module: module.drop.register_forward_hook(print)), SHOWN, 1),
        (changed(lambda module: setattr(module, "drop", nn.Dropout(0.1))), SHOWN, 1),
        (Mixer(gain=2.5), SHOWN, 1),
        (Other(), SHOWN, 1),
        (Mixer(), Preprocessing(patch_px=64), 1),
        (Mixer(2), SHOWN, 1),
        (Mixer(2), SHOWN, 0),
    ]

    hashes = [Model.from_module(module, shown, tumor_class=tumor).hash for module, shown, tumor in kinds]

    assert hashes[3] == hashes[0]  # a hook is not seen, as from_module says
    assert len(set(hashes)) == len(hashes) - 1
    one, other = (Mixer(act=lambda values: values) for _ in range(2))
    assert repr(one) != repr(other)  # by the functions' places in memory, which differ between processes
    assert Model.from_module(one, SHOWN).hash == Model.from_module(other, SHOWN).hash


class Saving(Mixer):
    """Saves more than tensors."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self.version = [version]

    def get_extra_state(self) -> object:
        return {"version": self.version, "act": self.act, "mean": np.zeros(2000), "of": (torch.zeros(2), None)}

    def set_extra_state(self, state: object) -> None:
        pass


class Quantized(Mixer):
    """Has weights of 8 bits with a scale for all, or one for each."""

    def __init__(self, scale: float, *, each: bool = False) -> None:
        super().__init__()
        scales, zeros = torch.tensor([scale, scale], dtype=torch.float32), torch.zeros(2, dtype=torch.int64)
        stored = torch.quantize_per_channel(scales, scales, zeros, 0, torch.qint8)
        self.register_buffer("weights", stored if each else torch.quantize_per_tensor(scales, scale, 0, torch.qint8))


MAKERS: dict[str, Callable[[float], nn.Module]] = {
    "extra state": lambda number: Saving(int(number)),
    "quantized": Quantized,
    "quantized by channel": lambda number: Quantized(number, each=True),
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", MAKERS)
def test_the_hash_is_also_of_what_is_saved_besides_plain_tensors(kind: str) -> None:
    one, again, other = (Model.from_module(MAKERS[kind](number), SHOWN) for number in (1, 1, 3))
    assert one.hash == again.hash != other.hash
    assert one.as_it_is() is one
    assert one.made_of == again.made_of != other.made_of
    if isinstance(saving := one.network.get_submodule("module"), Saving):
        saving.version.append(2)
        assert one.as_it_is().hash != one.hash


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (torch.zeros(3, 3), r"shape \(3, 3\) for 3 patches"),
        (torch.zeros(3, 1, 1), r"shape \(3, 1, 1\)"),
        (torch.zeros(1), r"shape \(1,\)"),
        ({"logits": torch.zeros(3)}, "returns dict"),
        (torch.full((3, 1), torch.nan), "not all finite"),
        (torch.zeros(3, 1, dtype=torch.int64), "int64"),
        (torch.tensor([[0.25, 0.75]] * 3), "probabilities, which sum up to 1"),
        (RuntimeError("no such\nshape"), "RuntimeError: no such shape"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_gives_no_logits_is_refused_in_one_line(found: Any, told: str) -> None:
    with pytest.raises(OptionsError, match=told) as caught:
        Model.from_module(Fixed(found), SHOWN)
    assert "\n" not in str(caught.value)
    assert f"{Fixed.__module__}.Fixed: " in str(caught.value)


class Narrow(Mixer):
    """Takes no input beyond that of a patch; its logits on patches lie between 0 and 1."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.abs().max() <= 1
        return super().forward(images).sigmoid()


class Threes(Mixer):
    """Takes batches of three, as one that was exported with them."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert len(images) == 3, "three"
        return super().forward(images)


def test_a_module_of_one_batch_size_is_refused() -> None:
    with pytest.raises(OptionsError, match=r"Threes: cannot take patches \(5, 3, .*\) \(AssertionError: three.*; expected one"):
        Model.from_module(Threes(), SHOWN)


@pytest.mark.parametrize("logits", [1, 2])
def test_a_sigmoid_at_the_end_is_refused(logits: int) -> None:
    """Its probabilities would be taken for logits: no cell would fall below 0.5."""
    module = nn.Sequential(Mixer(logits), nn.Sigmoid())
    with pytest.raises(
        OptionsError, match=r"Sequential: returns probabilities, which lie between 0 and 1 .*: leave its sigmoid out"
    ):
        Model.from_module(module, SHOWN)


class _Dropping(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(images, 0.5).mean((1, 2, 3))


class _Centred(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = images.mean((1, 2, 3))
        return found - found.mean()


@pytest.mark.parametrize(
    "module",
    [nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), Mixer()), _Dropping(), _Centred()],
    ids=["batchnorm", "dropout", "centred"],
)
def test_what_depends_on_other_patches_or_on_chance_is_refused(module: nn.Module) -> None:
    """Its map would be another one with each batch size, or each time."""
    with pytest.raises(OptionsError, match=r"another logit beside other patches or each time.*depends on the patch alone"):
        Model.from_module(module, SHOWN)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(Mixer(act=nn.Identity()), nn.LeakyReLU(1e-4)),
        nn.Sequential(Mixer(act=nn.Identity()), nn.ReLU()),
        Fixed(torch.full((3, 1), 0.5)),
        Narrow(),
    ],
    ids=["hardly negative", "never negative", "always the same", "patches alone"],
)
def test_small_logits_are_no_probabilities(module: nn.Module) -> None:
    assert Model.from_module(module, SHOWN).card.foreign


def test_numbers_of_numpy_are_taken_as_plain_ones() -> None:
    mean = (0.5, 0.25, 0.125)
    fitted: Any = (np.float64(1.2), np.float32(0.1), np.float32(0.3))
    given: Any = {"patch_px": np.int64(96), "mpp": np.float64(0.5), "mean": np.array(mean), "std": list(mean)}
    plain = Model.from_module(
        Mixer(), Preprocessing(mpp=0.5, mean=mean, std=mean), calibration=Calibration(1.2, 0.1), thresholds={"default": 0.3}
    )

    model = Model.from_module(
        Mixer(),
        Preprocessing(**given),
        calibration=Calibration(*fitted[:2]),
        thresholds={"default": fitted[2]},
    )

    assert model.card == plain.card
    assert model.hash == plain.hash


@pytest.mark.parametrize(
    "settings",
    [
        {"tumor_class": 2},
        {"calibration": Calibration(0.0, 0.0)},
        {"calibration": 1.5},
        {"thresholds": {"default": 2.0}},
        {"thresholds": 0.4},
        {"thresholds": [0.4]},
        {"preprocessing": 0.5},
        {"preprocessing": Preprocessing(patch_px=63)},
        {"preprocessing": Preprocessing(mpp=1e-9)},
    ],
    ids=str,
)
def test_values_that_no_model_can_have_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(OptionsError):
        Model.from_module(Mixer(), **({"preprocessing": SHOWN} | settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "dense"},
        {"precision": "bf16"},
        {"precision": "int8"},
        {"compiled": "yes"},
        {"scheduler": "tcp://127.0.0.1:8786"},
        {"scheduler": Path("scheduler.json")},
        {"scheduler": GpuProcesses("0,1")},
    ],
    ids=str,
)
def test_what_is_for_a_resnet_alone_is_refused_before_the_slide_is_opened(settings: dict[str, Any], tmp_path: Path) -> None:
    """Other processes could not make sure that their module is the same: its class may be another one there."""
    with pytest.raises(OptionsError):
        scan(tmp_path / "none.tif", tmp_path / "out.zarr", model=Model.from_module(Mixer(), SHOWN), **settings)


def test_a_predictor_takes_it_in_fp32_alone() -> None:
    model = Model.from_module(Mixer(), SHOWN)

    assert Predictor(model, device="cpu").precision == "fp32"
    for settings in ({"precision": "bf16"}, {"dense": True}, {"compiled": True}):
        with pytest.raises(OptionsError):
            Predictor(model, device="cpu", **settings)


def test_it_is_evaluated_on_patches_of_its_size(few_patches: Path, tmp_path: Path) -> None:
    model = Model.from_module(Mixer(), Preprocessing())
    settings: dict[str, Any] = {"device": "cpu", "workers": 0}

    assert len(evaluate(model, few_patches, **settings).logits) == 4
    with pytest.raises(DataError, match="patches of 96 px; expected 64 px"):
        evaluate(Model.from_module(Mixer(), SHOWN), few_patches, **settings)
    with pytest.raises(OptionsError, match="the report"):
        evaluate(model, few_patches, out=tmp_path / "report", **settings)


def test_no_command_scans_again_with_it() -> None:
    assert retry_command(Path("a.tif"), Path("a.zarr"), {"model": Model.from_module(Mixer(), SHOWN)}) is None


def test_a_module_may_change_what_it_is_given() -> None:
    assert Model.from_module(Scaling(), SHOWN).card.foreign
