"""A file of another tool becomes a model file that says what was measured; what is none is refused in one line."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from exchanged import TiaLike, build_thin, randomised, with_head
from fakes import darkness_state
from json_output import result_of
from PIL import Image
from safetensors.torch import load_file, save_file

from wsi_meta.cli import main
from wsi_meta.datasets.layouts import open_patches
from wsi_meta.datasets.patches import content_of, contents_of
from wsi_meta.errors import ModelFileError, OptionsError
from wsi_meta.evaluation.cautions import cautions_of
from wsi_meta.evaluation.results import Evaluation
from wsi_meta.exchange.exporting import write_exported
from wsi_meta.exchange.foreign import ImportOptions
from wsi_meta.exchange.importing import ImportParts, run_import
from wsi_meta.exchange.torchscript import load_script
from wsi_meta.inference.options import InferenceOptions, fit_to_model
from wsi_meta.inference.predictor import Predictor
from wsi_meta.models.card import ModelCard, read_card
from wsi_meta.models.features import read_features
from wsi_meta.models.known_patches import KnownPatches, read_known_patches
from wsi_meta.models.model import Model, build_network, load_model, network_of, write_model
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.models.weights import read_weights

HERE: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 0, "batch_size": 16}
SAID: dict[str, Any] = {"pixels": "imagenet", "mpp": 0.972}
UNIT = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
THIN = ImportParts(build_network=build_thin)


def import_thin(file: Path, data: Path, out: Path, *, parts: ImportParts = THIN, **settings: Any) -> ModelCard:
    return run_import(file, data, out, ImportOptions(**(HERE | settings)), parts)


def two_logits(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state whose head has another logit before the tumor's; what is added to both changes nothing."""
    extra = torch.full_like(state["fc.weight"], 0.25)
    head = {"fc.weight": torch.cat([extra, state["fc.weight"] + extra]), "fc.bias": torch.cat([state["fc.bias"] + 2] * 2)}
    return state | head


def darkness_logits(images: torch.Tensor, dense: bool) -> torch.Tensor:
    """How dark each patch is, or in dense mode each cell."""
    cells = torch.nn.functional.avg_pool2d(images.float().mean(-1)[:, None], 96, 32)[:, 0]
    logits = (150 - cells) / 10
    return logits if dense else logits[:, 0, 0]


@pytest.fixture(scope="module")
def many_patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """104 patches, dark ones tumor."""
    folder, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(3)
    for label, brightness in ((0, 190), (1, 90)):
        (folder / str(label)).mkdir()
        for number in range(52):
            pixels = np.clip(brightness + rng.normal(0, 10) + rng.normal(0, 5, (96, 96, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png", compress_level=1)
    return folder


@pytest.fixture(scope="module")
def saved_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a thin network as torch saves them; never change them."""
    path = tmp_path_factory.mktemp("saved") / "net.pth"
    torch.save(darkness_state(Preprocessing(), build_thin), path)
    return path


@pytest.fixture
def thin_file(saved_weights: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copy(saved_weights, tmp_path))


def test_the_command_makes_a_model_file_of_tiatoolboxs_resnet50(few_patches: Path, tmp_path: Path) -> None:
    """A real ResNet50 from a file to a loaded model, its logits those of TIAToolbox's own code on pixels of 0..1."""
    state = darkness_state(UNIT)
    tia = TiaLike(network_of(state)).eval()
    with torch.no_grad():
        head = two_logits(state)
        tia.classifier.weight.copy_(head["fc.weight"])
        tia.classifier.bias.copy_(head["fc.bias"])
    torch.save(tia.state_dict(), tmp_path / "resnet50-pcam.pth")
    out = tmp_path / "tia.safetensors"

    words = ["import-model", str(tmp_path / "resnet50-pcam.pth"), "--data", str(few_patches), "--out", str(out), "--json"]
    words += ["--device", "cpu", "--precision", "fp32", "--workers", "0", "--batch-size", "4"]
    result = CliRunner().invoke(main, words)

    assert result.exit_code == 0, result.output
    printed, model = result_of(result.stdout), load_model(out)
    card, pixels = model.card, np.stack(open_patches(few_patches)["valid"].read_many(range(4)))
    assert (printed["dense"], printed["int8"], card.dense, card.allows_int8) == (False, False, False, False)
    assert card.preprocessing == replace(UNIT, mpp=1.0)
    assert card.metrics["auc"] == 1.0
    assert card.metrics["n"] == 4
    assert card.training["calibrated_on"]["n"] == 4
    imported = {name: card.training["imported"][name] for name in ("file", "kind", "naming", "logits", "tumor_class")}
    assert imported == {
        "file": "resnet50-pcam.pth",
        "kind": "weights",
        "naming": "tiatoolbox",
        "logits": 2,
        "tumor_class": 1,
    }
    with torch.inference_mode():
        theirs = tia.logits(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
        ours = model.network(card.preprocessing.to_input(torch.from_numpy(pixels)))[:, 0]
    torch.testing.assert_close(ours, theirs[:, 1] - theirs[:, 0], rtol=0, atol=1e-5)
    again = CliRunner().invoke(main, words)
    assert (again.exit_code, "exists" in again.stderr) == (1, True)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_are_measured_as_they_are_stored(ending: str, few_patches: Path, tmp_path: Path) -> None:
    state, file, out = darkness_state(Preprocessing(), build_thin), tmp_path / f"net.{ending}", tmp_path / "m.safetensors"
    (save_file if ending == "safetensors" else torch.save)(two_logits(state), file)

    card = import_thin(file, few_patches, out, **SAID)

    assert read_card(out) == replace(card, versions=read_card(out).versions)
    stored = network_of(load_file(out), build_thin)
    logits = Predictor(Model(stored, ModelCard(), "", out), device="cpu", precision="fp32").predict_patches(
        torch.from_numpy(np.stack(open_patches(few_patches)["valid"].read_many(range(4))))
    )
    shown = card.calibration.to_probability(logits)
    assert (shown >= card.thresholds["default"]).tolist() == (open_patches(few_patches)["valid"].labels == 1).tolist()


def test_the_other_class_is_noticed(many_patches: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(two_logits(darkness_state(Preprocessing(), build_thin)), tmp_path / "net.pth")

    with pytest.raises(ModelFileError, match=r"worse than chance \(AUC 0.00 on 104 patches\); is the other class the tumor's"):
        import_thin(tmp_path / "net.pth", many_patches, tmp_path / "m.safetensors", **SAID, tumor_class="0")
    assert "chance" not in caplog.text, "the error says what it is"
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


@pytest.mark.parametrize("scripted", [True, False])
def test_one_logit_of_the_other_class_is_noticed(scripted: bool, many_patches: Path, tmp_path: Path) -> None:
    """Only what can be done is advised: there is no other class to name, and a script's pixels are its configuration's."""
    state = darkness_state(UNIT, build_thin)
    state |= {name: -state[name] for name in ("fc.weight", "fc.bias")}
    torch.save(state, tmp_path / "net.pth")
    if scripted:
        save_script(tmp_path / "net.pth", network_of(state, build_thin), ["tumor"])
    pixels = "its config.json" if scripted else "--pixels, --mpp"
    told = rf"is its one logit that of normal tissue \(turn .*\), or are its pixels other ones \({pixels}\)"

    with pytest.raises(ModelFileError, match=rf"worse than chance \(AUC 0.00 on 104 patches\); {told}"):
        import_thin(tmp_path / "net.pth", many_patches, tmp_path / "m.safetensors", **({} if scripted else SAID))


@pytest.mark.parametrize("agree", [True, False])
def test_dense_mode_and_int8_are_allowed_where_they_agree(
    agree: bool, many_patches: Path, thin_file: Path, tmp_path: Path
) -> None:
    """A network that looks at the row above a cell finds zeros over a patch's upper edge, and strangers in a mosaic."""
    out = tmp_path / "m.safetensors"

    def contrary(_model: Model, precision: str, dense: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda images: darkness_logits(images, dense) * (-1 if precision == "int8" else 1)

    parts = THIN if agree else replace(THIN, networks=contrary)
    if not agree:
        state = torch.load(thin_file)
        state["layer4.0.conv1.weight"][0, 0] = 1
        state["layer4.0.conv2.weight"][0, 0, 0, 1] = 8  # of what lies above
        state["layer4.0.conv3.weight"][0, 0] = 1
        torch.save(state, thin_file)

    card = import_thin(thin_file, many_patches, out, parts=parts, **SAID)

    assert card.dense is agree
    assert card.allows_int8 is agree
    assert {"dense_auc", "dense_same_decision", "dense_mean_difference"} < set(card.metrics)
    assert ("int8_dense_auc" in card.metrics) is agree
    assert (card.metrics["int8_same_decision"] >= 0.97) is agree
    asked = InferenceOptions(device="cpu", precision="int8")
    if agree:
        assert fit_to_model(asked, card) == asked
    else:
        with pytest.raises(OptionsError, match="precision int8: it was not seen to agree"):
            fit_to_model(asked, card)


@pytest.mark.parametrize(("left", "prefers"), [(1.0, True), (0.001, False)])
def test_int8_is_taken_unasked_only_by_the_bars_of_every_model(
    left: float, prefers: bool, many_patches: Path, thin_file: Path, tmp_path: Path
) -> None:
    """It is allowed where decisions agree, and taken unasked where the probabilities do, too: not if all are about a half."""

    def networks(model: Model, precision: str, dense: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        temperature, bias = model.card.calibration.temperature, model.card.calibration.bias
        scale = 100 * (left if precision == "int8" else 1.0)
        return lambda images: temperature * (scale * darkness_logits(images, dense) - bias)

    card = import_thin(thin_file, many_patches, tmp_path / "m.safetensors", parts=replace(THIN, networks=networks), **SAID)

    assert card.allows_int8
    assert card.prefers_int8 is prefers


def test_a_prior_does_not_loosen_what_other_ways_are_judged_by(many_patches: Path, thin_file: Path, tmp_path: Path) -> None:
    """Of a rare tumor hardly any probability reaches a half, and so all ways would agree."""

    def networks(_model: Model, precision: str, dense: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda images: darkness_logits(images, dense) + (precision == "int8")

    plain, rare = (
        import_thin(
            thin_file,
            many_patches,
            tmp_path / f"{prior}.safetensors",
            parts=replace(THIN, networks=networks),
            prior=prior,
            **SAID,
        )
        for prior in (None, 1e-4)
    )

    assert rare.calibration.bias < plain.calibration.bias - 5
    assert rare.metrics == plain.metrics
    assert plain.metrics["int8_mean_difference"] > 0
    assert (rare.dense, rare.allows_int8, rare.prefers_int8) == (plain.dense, plain.allows_int8, plain.prefers_int8)


def test_patches_that_a_network_is_measured_on_are_known_by_their_pixels(
    few_patches: Path, thin_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As are those that its weights were made with, where they are those of a model file."""
    patches = open_patches(few_patches)["valid"]
    contents = contents_of(content_of(patch) for patch in patches.read_many(range(4)))
    known = KnownPatches.of({"train": contents[:3], "calibrated_on": contents})
    write_model(tmp_path / "ours.safetensors", torch.load(thin_file), ModelCard(), None, known)
    for file, expected in ((thin_file, {}), (tmp_path / "ours.safetensors", {"train": 3})):
        caplog.clear()
        import_thin(file, few_patches, out := tmp_path / f"{file.name}.out.safetensors", **SAID)
        found = read_known_patches(out)
        assert found is not None
        assert found.count(contents) == expected | {"calibrated_on": 4}
        assert ("The model was trained on 3 of these 4 patches" in caplog.text) == bool(expected)
        assert "calibrated on" not in caplog.text
        assert caplog.text.count("It is not known which patches the model was trained on") == 1
        assert read_card(out).training["init_known"] is False
    counted = replace(Evaluation.of(np.arange(4, dtype=np.float32), patches.labels, ModelCard()), known_patches={"train": 3})
    told = cautions_of(read_card(out), patches, replace(counted, contents=contents))
    assert [sentence[:28] for sentence in told] == ["The model was trained on 3 o", "The model was calibrated on "]


def test_few_patches_allow_neither(few_patches: Path, thin_file: Path, tmp_path: Path) -> None:
    card = import_thin(thin_file, few_patches, tmp_path / "m.safetensors", **SAID)

    assert not card.dense
    assert not card.allows_int8
    assert "dense_auc" not in card.metrics
    assert read_features(tmp_path / "m.safetensors") is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "expected --mpp and --pixels"),
        ({"mpp": 1.0}, "expected --pixels"),
        ({"pixels": "0..1"}, "expected --mpp"),
        ({"pixels": "0..1", "mpp": 1e-9}, "mpp"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean and std go together"),
        ({"pixels": "0..1", "mean": (0.5,) * 3, "std": (0.5,) * 3}, "instead of pixels"),
        ({"mean": (127.0,) * 3, "std": (50.0,) * 3, "mpp": 1.0}, "mean"),
        ({"naming": "keras"}, "naming 'keras'"),
        (SAID | {"tumor_class": "1"}, "has one logit"),
        (SAID | {"tumor_class": "mets"}, "tumor class mets"),
        (SAID | {"config": Path("config.json")}, "is no TorchScript"),
    ],
    ids=str,
)
def test_what_weights_do_not_say_must_be_said_once(
    settings: dict[str, Any], told: str, few_patches: Path, thin_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionsError, match=told):
        import_thin(thin_file, few_patches, tmp_path / "m.safetensors", **settings)
    assert not (tmp_path / "m.safetensors").exists()


# --- TorchScript


@pytest.fixture(scope="module")
def exported(dark_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript and its config.json, as export-model writes them; never change them."""
    return write_exported(dark_model, tmp_path_factory.mktemp("exported") / "zoo", "torchscript").files[0]


@pytest.mark.parametrize("read", [read_card, load_model, read_weights])
def test_a_script_where_weights_are_expected_is_told_what_takes_it(exported: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(ModelFileError, match=r"a TorchScript, which is a program; expected .*: 'wsi-meta import-model' makes"):
        read(exported)


@pytest.fixture
def script(exported: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(exported.parent, tmp_path / "zoo")) / exported.name


def change_config(script: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = script.with_name("config.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_was_exported_comes_back_the_same(script: Path, dark_model: Model, few_patches: Path, tmp_path: Path) -> None:
    out = tmp_path / "back.safetensors"

    card = import_thin(script, few_patches, out)

    back, calibration = network_of(load_file(out), build_thin), dark_model.card.calibration
    inputs = card.preprocessing.to_input(torch.randint(0, 256, (3, 96, 96, 3), dtype=torch.uint8))
    with torch.inference_mode():
        expected = dark_model.network(inputs) / calibration.temperature + calibration.bias
        torch.testing.assert_close(back(inputs), expected, rtol=0, atol=1e-5)
    assert card.preprocessing == dark_model.card.preprocessing
    assert card.training["imported"]["kind"] == "TorchScript"
    assert card.training["imported"]["tumor_class"] == "tumor"


def save_script(path: Path, network: torch.nn.Module, names: list[str], **fields: Any) -> None:
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # later versions of torch deprecate it
        torch.jit.trace(network, torch.zeros(2, 3, 96, 96), check_trace=False).save(str(path))
    content = {"num_classes": len(names), "class_names": names, "patch_size_pixels": 96, "spacing_um_px": 1.0, "transform": []}
    path.with_name("config.json").write_text(json.dumps(content | fields))


def test_a_script_of_tiatoolbox_with_its_softmax(few_patches: Path, tmp_path: Path) -> None:
    state = darkness_state(UNIT, build_thin)
    tia = TiaLike(network_of(state, build_thin)).eval()
    head = two_logits(state)
    with torch.no_grad():  # the tumor's logit first
        tia.classifier.weight.copy_(head["fc.weight"].flip(0))
        tia.classifier.bias.copy_(head["fc.bias"].flip(0))
    save_script(tmp_path / "net.pt", tia, ["mets", "nomets"], transform=[{"name": "Resize", "arguments": {"size": 96}}])

    card = import_thin(tmp_path / "net.pt", few_patches, tmp_path / "m.safetensors")

    assert card.preprocessing == replace(UNIT, mpp=1.0)
    assert card.training["imported"]["tumor_class"] == "mets"
    assert card.metrics["auc"] == 1.0


def test_a_script_that_computes_something_else_is_refused(few_patches: Path, tmp_path: Path) -> None:
    class Sharper(torch.nn.Module):
        """The same weights, and a step that is in none of them."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network_of(darkness_state(UNIT, build_thin), build_thin)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(images) * 1.001
            return logits

    save_script(tmp_path / "net.pt", Sharper().eval(), ["tumor"])

    with pytest.raises(ModelFileError, match=r"its own logits differ .* it computes something else"):
        import_thin(tmp_path / "net.pt", few_patches, tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content.pop("spacing_um_px"), "'spacing_um_px' is missing"),
        (lambda content: content.update(num_classes=3, class_names=["a", "b", "c"]), "num_classes 3"),
        (lambda content: content.update(class_names=["tumor"]), "num_classes 2"),
        (lambda content: content.update(class_names=["tumor"], num_classes=1), "class_names tumor; expected 2, as many as"),
        (lambda content: content.update(patch_size_pixels="96"), "patch_size_pixels '96'"),
        (
            lambda content: content.update(transform=[{"name": "Flip"}]),
            "transform 'Flip' is none of Resize, ToTensor, Normalize",
        ),
        (lambda content: content["transform"][2]["arguments"].update(mean=[1]), "expected 3, got 1"),
        (lambda content: content.update(spacing_um_px=1e-9), "mpp"),
        (lambda content: content.update(transform=[{"name": "Resize", "arguments": {"size": 224}}]), "patches of 224 px"),
    ],
    ids=["missing", "three classes", "names", "one name", "a text", "a transform", "one mean", "spacing", "size"],
)
def test_a_wrong_configuration_is_refused(
    change: Callable[[dict[str, Any]], object], told: str, script: Path, few_patches: Path, tmp_path: Path
) -> None:
    change_config(script, change)
    with pytest.raises(ModelFileError, match=told) as caught:
        import_thin(script, few_patches, tmp_path / "m.safetensors")
    assert "\n" not in str(caught.value)


def test_classes_whose_names_say_nothing_must_be_told(script: Path, few_patches: Path, tmp_path: Path) -> None:
    change_config(script, lambda content: content.update(class_names=["zero", "one"]))

    with pytest.raises(OptionsError, match="classes zero, one; expected --tumor-class"):
        import_thin(script, few_patches, tmp_path / "m.safetensors")
    assert import_thin(script, few_patches, tmp_path / "m.safetensors", tumor_class="one").metrics["auc"] == 1.0
    with pytest.raises(OptionsError, match=r"config\.json says what it is shown"):
        import_thin(script, few_patches, tmp_path / "n.safetensors", tumor_class="one", mpp=1.0)


@pytest.mark.parametrize("name", ["normal", "notumor"])
def test_one_class_whose_name_is_not_tumor_must_be_told(name: str, few_patches: Path, tmp_path: Path) -> None:
    """It was taken for the tumor's."""
    save_script(tmp_path / "net.pt", network_of(darkness_state(UNIT, build_thin), build_thin), [name])

    with pytest.raises(OptionsError, match=f"classes {name}; expected --tumor-class .*; if it is not, turn the signs of"):
        import_thin(tmp_path / "net.pt", few_patches, tmp_path / "m.safetensors")
    card = import_thin(tmp_path / "net.pt", few_patches, tmp_path / "m.safetensors", tumor_class=name)
    assert card.metrics["auc"] == 1.0


def test_a_script_with_a_hole_is_refused(tmp_path: Path) -> None:
    network, path = torch.nn.Conv2d(3, 1, 96), tmp_path / "net.pt"
    save_script(path, network, ["tumor"])
    start = (content := path.read_bytes()).index(network.weight.detach().numpy().tobytes())
    path.write_bytes(content[:start] + bytes(1000) + content[start + 1000 :])

    with pytest.raises(ModelFileError, match=r"cannot be loaded \(net/.* is damaged\)"):
        load_script(path)


BEYOND = ["torch.save(x, 'file')", "ops.aten.from_file('file')", "ops.mine.run(x)", "def __setstate__(self)"]


@pytest.mark.parametrize("line", BEYOND)
def test_a_script_that_reaches_beyond_numbers_is_never_loaded(
    line: str, script: Path, few_patches: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(script, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/code/more.py", f"  {line}\n")

    with pytest.raises(ModelFileError, match="its program calls"):
        import_thin(script, few_patches, tmp_path / "m.safetensors")


# --- files that are none


def shaped(**changes: tuple[int, ...]) -> bytes:
    """A state of a ResNet50's names and shapes, or some other ones, that takes no room."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in build_network().state_dict().items()}
    file = io.BytesIO()
    torch.save({name: torch.zeros(()).expand(shape) for name, shape in (shapes | changes).items()}, file)
    return file.getvalue()


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path("sprung").mkdir, ()


BAD: dict[str, tuple[str, Callable[[], bytes | None]]] = {
    "none there": ("no such file", lambda: None),
    "empty": ("cannot be read", lambda: b""),
    "no weights": ("cannot be read", lambda: b"weights of a network"),
    "code": ("code is never run", lambda: pickle.dumps(Trap())),
    "truncated": ("cannot be read", lambda: shaped()[:3000]),
    "another network": ("lacks 265 of the 265 tensors", lambda: pickle_of({"0.weight": torch.zeros(2, 2)})),
    "resnet34": ("is (64, 64, 3, 3)", lambda: shaped(**{"layer1.0.conv1.weight": (64, 64, 3, 3)})),
    "three classes": ("has 3 classes", lambda: shaped(**{"fc.weight": (3, 2048), "fc.bias": (3,)})),
}


def pickle_of(state: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@pytest.mark.parametrize("case", BAD)
def test_the_command_refuses_in_one_line_and_leaves_nothing(
    case: str, few_patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, make = BAD[case]
    monkeypatch.chdir(tmp_path)
    if (content := make()) is not None:
        Path("net.pth").write_bytes(content)
    before = sorted(tmp_path.iterdir())

    words = ["import-model", "net.pth", "--data", str(few_patches), "--out", "m.safetensors", "--pixels", "0..1", "--mpp", "1"]
    result = CliRunner().invoke(main, [*words, "--device", "cpu", "--workers", "0"])

    assert result.exit_code == 1, result.output
    assert told in result.stderr
    assert "net.pth" in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error: ")]) == 1
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_the_file_itself_is_never_replaced(thin_file: Path, few_patches: Path) -> None:
    same = thin_file.rename(thin_file.with_suffix(".safetensors"))  # its content tells what it is
    with pytest.raises(OSError, match="never replaced"):
        import_thin(same, few_patches, same, overwrite=True, **SAID)


def test_random_weights_are_imported_as_they_are(tmp_path: Path, few_patches: Path) -> None:
    """Kernels that float16 cannot hold stay in float32."""
    network = randomised(with_head(build_thin(), 2))
    torch.save(network.state_dict(), tmp_path / "net.pth")

    tumor_class = 0
    import_thin(tmp_path / "net.pth", few_patches, tmp_path / "m.safetensors", **SAID, tumor_class=tumor_class)

    back = network_of(load_file(tmp_path / "m.safetensors"), build_thin)
    inputs = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        theirs = network(inputs)
        torch.testing.assert_close(back(inputs)[:, 0], theirs[:, tumor_class] - theirs[:, 1 - tumor_class], rtol=0, atol=1e-5)
