"""What is exported gives the same logits in other programs, and says what they must know."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from wsi_meta.cli import main
from wsi_meta.errors import ModelFileError, OptionsError, OutputExistsError, OutputPathError
from wsi_meta.exchange.exporting import calibrated_network, check_export, write_exported
from wsi_meta.exchange.onnx_file import pixels_network
from wsi_meta.models.model import Model, write_model
from wsi_meta.models.resnet import ResNet, Stage

SCHEMA: dict[str, type | tuple[type, ...]] = {
    "spec_version": str,
    "architecture": str,
    "num_classes": int,
    "patch_size_pixels": int,
    "spacing_um_px": (int, float),
    "class_names": list,
    "transform": list,
}
"""What model-config.schema.json of WSInfer's zoo requires."""


def noise(n: int) -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (n, 96, 96, 3), np.uint8)


def probabilities(model: Model, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The calibrated ones, as a scan gives them."""
    with torch.inference_mode():
        logits = model.network(model.card.preprocessing.to_input(torch.from_numpy(pixels)))[:, 0].numpy()
    return model.card.calibration.to_probability(logits)


def test_a_fresh_process_without_this_package_gets_our_probabilities(dark_model: Model, tmp_path: Path) -> None:
    """As WSInfer does: what config.json says to do to an RGB patch, the script, and a softmax."""
    exported = write_exported(dark_model, tmp_path / "zoo", "torchscript")
    pixels = noise(3)
    np.save(tmp_path / "pixels.npy", pixels)
    code = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
config = json.load(open("zoo/config.json"))
(arguments,) = [step["arguments"] for step in config["transform"] if step["name"] == "Normalize"]
images = torch.from_numpy(np.load("pixels.npy")).permute(0, 3, 1, 2) / 255
mean, std = (torch.tensor(arguments[name])[:, None, None] for name in ("mean", "std"))
logits = torch.jit.load("zoo/torchscript_model.pt")((images - mean) / std)
np.save("found.npy", logits.softmax(1)[:, config["class_names"].index("tumor")].numpy())
assert "wsi_meta" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)

    assert [file.name for file in exported.files] == ["torchscript_model.pt", "config.json"]
    assert exported.largest_difference <= exported.tolerance == pytest.approx(1e-4, rel=10)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), probabilities(dark_model, pixels), atol=1e-5)


def test_the_configuration_is_what_the_zoos_schema_asks_for(dark_model: Model, tmp_path: Path) -> None:
    write_exported(dark_model, tmp_path / "zoo", "torchscript")
    config, shown = json.loads((tmp_path / "zoo" / "config.json").read_text()), dark_model.card.preprocessing

    assert config.keys() == SCHEMA.keys()
    assert all(isinstance(config[name], kind) for name, kind in SCHEMA.items())
    assert (config["spec_version"], config["num_classes"]) == ("1.0", len(config["class_names"]))
    assert (config["patch_size_pixels"], config["spacing_um_px"]) == (96, 0.972)
    assert [step["name"] for step in config["transform"]] == ["Resize", "ToTensor", "Normalize"]
    assert config["transform"][2]["arguments"] == {"mean": list(shown.mean), "std": list(shown.std)}


def test_an_export_is_replaced_only_when_that_is_asked_for_and_nothing_else_is(dark_model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    check_export("default", folder)
    write_exported(dark_model, folder, "torchscript")

    with pytest.raises(OutputExistsError, match=r"holds torchscript_model\.pt"):
        check_export("default", folder)
    check_export("default", folder, overwrite=True)
    (tmp_path / ".zoo.0123456789ab.partial").mkdir()  # a killed export left it
    write_exported(dark_model, folder, "torchscript")

    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "notes.txt", "torchscript_model.pt"]
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["zoo"]


def test_the_model_itself_is_never_replaced(dark_model: Model, tmp_path: Path) -> None:
    path = tmp_path / "torchscript_model.pt"
    write_model(path, dark_model.network.state_dict(), dark_model.card)
    with pytest.raises(OutputPathError, match="the model to export, never replaced"):
        check_export(path, tmp_path, overwrite=True)


def test_an_export_that_gives_other_logits_is_refused_and_leaves_nothing(dark_model: Model, tmp_path: Path) -> None:
    class Drifting(ResNet):
        """Another number of patches than it was traced with gives it other logits."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = super().forward(images) * len(images)
            return logits

    network = Drifting((Stage(1, 1, 128), Stage(1, 2, 256), Stage(1, 4, 512), Stage(1, 8, 1024)), classes=1).eval()
    with pytest.warns(match="Using len to get tensor shape"), pytest.raises(ModelFileError):
        write_exported(Model(network, dark_model.card, "", Path("d.safetensors")), tmp_path / "zoo", "torchscript")
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("export-model none.safetensors --out zoo", "none.safetensors: no such model file"),
        ("export-model default --out file", "file: a file; expected the name of a folder"),
        ("export-model default --out there/is/none", "there is no folder"),
        ("export-model default --out full", "full: holds config.json; choose another --out, or pass --overwrite"),
    ],
)
def test_the_command_refuses_in_one_line(words: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("full").mkdir()
    Path("full/config.json").touch()

    result = CliRunner().invoke(main, words.split())

    assert result.exit_code == 1, result.output
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_kinds_of_refusal(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="format 'keras'; expected one of torchscript, onnx"):
        check_export("default", tmp_path / "zoo", format="keras")
    with pytest.raises(OutputPathError):
        check_export("default", tmp_path / "none" / "zoo")


# --- ONNX


def test_what_becomes_onnx_takes_pixels_and_gives_logits_and_probability(dark_model: Model) -> None:
    pixels = noise(4)
    with torch.inference_mode():
        logits, probability = pixels_network(calibrated_network(dark_model), dark_model)(torch.from_numpy(pixels))

    assert logits.shape == (4, 2)
    np.testing.assert_allclose(logits.softmax(1)[:, 1], probability, atol=1e-7)
    np.testing.assert_allclose(probability, probabilities(dark_model, pixels), atol=1e-5)


@pytest.mark.onnx
def test_onnxruntime_gives_our_probabilities_for_any_number_of_patches(
    dark_model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import onnxruntime

    exported = write_exported(dark_model, tmp_path / "onnx", "onnx")

    assert "torchvision" not in caplog.text
    (file,) = exported.files
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [(entry.name, entry.type, entry.shape[1:]) for entry in session.get_inputs()] == [
        ("pixels", "tensor(uint8)", [96, 96, 3])
    ]
    assert [entry.name for entry in session.get_outputs()] == ["logits", "probability"]
    for n in (1, 3):
        _, found = session.run(None, {"pixels": noise(n)})
        np.testing.assert_allclose(found, probabilities(dark_model, noise(n)), atol=1e-5)
    metadata: dict[str, Any] = session.get_modelmeta().custom_metadata_map
    assert (float(metadata["mpp"]), int(metadata["patch_px"])) == (0.972, 96)
    assert json.loads(metadata["calibration"]) == {"temperature": 0.25, "bias": -1.5}
    assert json.loads(metadata["preprocessing"]) == dark_model.card.preprocessing.to_dict()
    assert json.loads(metadata["wsi_meta"]) == dark_model.card.to_dict()


def test_an_export_takes_no_random_numbers_of_its_process(dark_model: Model, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    write_exported(dark_model, tmp_path / "zoo", "torchscript")
    assert torch.equal(torch.get_rng_state(), before)
