"""Dense mode: the same cells in the same places as patch mode, by one pass over a whole block."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fakes import thin_network
from slide_files import texture, write_slide
from torch import nn

from wsi_meta.cli import main
from wsi_meta.demo.synthetic import draw_lymph_node
from wsi_meta.errors import OptionsError, OutputExistsError
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.inference.predictor import DENSE_HALO_PX, Predictor
from wsi_meta.models.card import ModelCard
from wsi_meta.models.dihedral import VIEWS, turn, turn_back
from wsi_meta.models.model import Model, load_model, save_model
from wsi_meta.models.resnet import cell_logits
from wsi_meta.models.weights import half_precision
from wsi_meta.scanning.scan import scan

DENSE = ModelCard(dense=True)
HERE: dict[str, Any] = {"device": "cpu", "precision": "fp32", "batch_size": 8}


class Separate(nn.Module):
    """A trunk of stride 32 whose features see nothing beyond their own 32 px, so both modes must agree exactly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.trunk = nn.Conv2d(3, 5, 32, stride=32)
        self.trunk.weight.data *= 10
        self.bend = nn.Tanh()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(5, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.avgpool(self.bend(self.trunk(inputs))).flatten(1))
        return logits


def predictors(network: nn.Module, **settings: Any) -> tuple[Predictor, Predictor]:
    model = Model(network.eval(), DENSE, "", Path())
    return Predictor(model, **HERE, **settings), Predictor(model, **HERE, dense=True, **settings)


@pytest.mark.parametrize("view", range(VIEWS))
def test_turning_back_undoes_turning(view: int) -> None:
    images = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    turned = turn(images, view)

    assert turned.shape == ((2, 4, 3, 5) if view % 2 else (2, 3, 4, 5))
    assert torch.equal(turn_back(turned, view), images)


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (4, 3)])
def test_both_modes_agree_where_features_do_not_overlap(shape: tuple[int, int], tta: bool) -> None:
    patch, dense = predictors(Separate(), tta=tta)
    rows, cols = shape
    image = texture(rows * 32 + 64 + 2 * DENSE_HALO_PX, cols * 32 + 64 + 2 * DENSE_HALO_PX)
    wanted = np.ones(shape, bool)
    wanted[-1, -1] = shape == (1, 1)
    inner = image[DENSE_HALO_PX:-DENSE_HALO_PX, DENSE_HALO_PX:-DENSE_HALO_PX]

    by_patch, by_block = patch.predict_image(inner, wanted, 32), dense.predict_image(image, wanted, 32)

    assert by_block.shape == (*shape, VIEWS if tta else 1)
    assert np.array_equal(np.isnan(by_block[..., 0]), ~wanted)
    np.testing.assert_allclose(by_block, by_patch, atol=1e-4)
    assert np.nanstd(by_patch) > 0.01 or shape == (1, 1)


def test_a_single_patch_gives_the_patch_classifiers_logit() -> None:
    torch.manual_seed(0)
    network, inputs = thin_network(16), torch.randn(3, 3, 96, 96)
    with torch.inference_mode():
        np.testing.assert_allclose(cell_logits(network, inputs).flatten(), network(inputs).flatten(), atol=1e-4)


@pytest.fixture(scope="module")
def dense_model(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Path:
    """The random model with a card that allows dense mode."""
    model = load_model(model_file)
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    save_model(path, half_precision(model.network.state_dict()), replace(model.card, dense=True))
    return path


@pytest.fixture(scope="module")
def dense_thin(thin_model: Model) -> Model:
    """The thin model with such a card."""
    return replace(thin_model, card=DENSE)


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "node.tif", texture(96, 128))


def _scan(slide: Path, out: Path, model: Path | Model, **settings: Any) -> Heatmap:
    return scan(slide, out, model=model, tissue_mask="none", **(HERE | settings))


def test_no_seam_shows_between_blocks_of_the_default_model(tmp_path: Path) -> None:
    """How far a feature sees depends on the weights: this is about trained ones."""
    image = draw_lymph_node(384, 320, seed=3)[0][64:256, :192]  # tumor and none; blocks meet in its middle
    slide = write_slide(tmp_path / "node.tif", image)
    model = load_model(None)
    model = replace(model, card=replace(model.card, dense=True))
    whole = _scan(slide, tmp_path / "whole.zarr", model).probability
    blocks = _scan(slide, tmp_path / "blocks.zarr", model, block_px=96).probability

    assert whole.shape == (6, 6)
    assert np.isfinite(whole).all()
    assert np.ptp(whole) > 0.5
    difference = np.abs(whole - blocks)
    assert difference.max() < 0.01
    assert difference.mean() < 0.001


def test_workers_do_not_matter(dense_thin: Model, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.tif", texture(64, 128))
    one = _scan(slide, tmp_path / "one.zarr", dense_thin, block_px=64, workers=1, tta=2, uncertainty=True)
    three = _scan(slide, tmp_path / "three.zarr", dense_thin, block_px=64, workers=3, tta=2, uncertainty=True)

    np.testing.assert_array_equal(one.probability, three.probability)
    assert one.uncertainty is not None
    assert three.uncertainty is not None
    np.testing.assert_array_equal(one.uncertainty, three.uncertainty)


def test_auto_is_dense_where_card_and_stride_allow_it(
    slide_file: Path, dense_thin: Model, thin_model: Model, tmp_path: Path
) -> None:
    def mode(model: Model, **settings: Any) -> str:
        heatmap = _scan(slide_file, tmp_path / "h.zarr", model, overwrite=True, **settings)
        return str(heatmap.record.identity.mode)

    assert mode(dense_thin) == "dense"
    assert mode(dense_thin, stride_px=96) == "patch"
    assert mode(thin_model, stride_px=96) == "patch"


def test_the_mode_is_part_of_a_scans_identity(slide_file: Path, dense_thin: Model, tmp_path: Path) -> None:
    _scan(slide_file, tmp_path / "h.zarr", dense_thin, mode="dense")

    with pytest.raises(OutputExistsError, match="mode is dense, now patch"):
        _scan(slide_file, tmp_path / "h.zarr", dense_thin, mode="patch")


@pytest.mark.parametrize(("settings", "told"), [({"stride_px": 96}, "expected stride 32"), ({}, "dense: false")])
def test_dense_where_it_cannot_be_is_wrong_usage(
    settings: dict[str, Any], told: str, slide_file: Path, dense_model: Path, model_file: Path, tmp_path: Path
) -> None:
    model, out = (dense_model if settings else model_file), tmp_path / "h.zarr"
    with pytest.raises(OptionsError, match=told):
        _scan(slide_file, out, model, mode="dense", **settings)

    words = ["scan", str(slide_file), "--out", str(out), "--model", str(model), "--mode", "dense"]
    words += [word for name, value in settings.items() for word in (f"--{name.removesuffix('_px')}", str(value))]
    result = CliRunner().invoke(main, words)

    assert result.exit_code == 2
    assert told in result.output
    assert not out.exists()
