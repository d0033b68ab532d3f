from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import scan_darkness
from numpy.typing import NDArray
from PIL import Image
from slide_files import texture, write_slide

from wsi_meta.errors import HeatmapError, OutputExistsError, OutputPathError, SlideReadError
from wsi_meta.heatmaps.overlay import _LAYERS, LAYERS, VEIL, _colour_cells, _title, draw_overlay
from wsi_meta.heatmaps.record import ScanResult
from wsi_meta.heatmaps.store import Heatmap, Status


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = np.full((640, 960, 3), 244, np.uint8)
    image[100:500, 100:500] = texture(400, 400)
    return write_slide(tmp_path_factory.mktemp("slides") / "node.tif", image)


@pytest.fixture(scope="module")
def heatmap(slide_file: Path, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Heatmap:
    out = tmp_path_factory.mktemp("heat") / "node.zarr"
    return scan_darkness(slide_file, out, model=model_file, tta=True, uncertainty=True)


def _pixels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def test_picture_over_the_slide_and_alone(heatmap: Heatmap, slide_file: Path, tmp_path: Path) -> None:
    over = _pixels(draw_overlay(heatmap, tmp_path / "over.png", slide=slide_file, max_side=900))
    alone = _pixels(draw_overlay(heatmap.path, tmp_path / "alone.png", max_side=900))
    assert over.shape == alone.shape
    assert 900 <= over.shape[1] < 1300
    assert (over != alone).any(-1).mean() > 0.1, "the slide shows through"


def test_max_side(heatmap: Heatmap, tmp_path: Path) -> None:
    small = _pixels(draw_overlay(heatmap, tmp_path / "s.png", max_side=600))
    large = _pixels(draw_overlay(heatmap, tmp_path / "l.png", max_side=1800))
    assert large.shape[1] - small.shape[1] == pytest.approx(1200, abs=60)


def test_not_scanned_differs_from_scored_zero(heatmap: Heatmap) -> None:
    """A cell without a value has a colour of its own; a cell of probability 0 leaves the slide as it is."""
    status, probability = heatmap.status, heatmap.probability
    colours = _colour_cells(probability, status, _LAYERS["probability"], 0.7, 0.0)
    np.testing.assert_allclose(
        colours[status == Status.BACKGROUND], np.tile(VEIL[Status.BACKGROUND][0], ((status == 1).sum(), 1))
    )
    scanned = status == Status.SCANNED
    np.testing.assert_allclose(colours[scanned, 3], 0.7 * probability[scanned], rtol=1e-6)
    assert len({colour for colour, _ in VEIL.values()}) == len(VEIL) == 3


def test_threshold_hides_what_is_below(heatmap: Heatmap) -> None:
    probability, status = heatmap.probability, heatmap.status
    middle = float(np.nanmedian(probability))
    colours = _colour_cells(probability, status, _LAYERS["probability"], 0.7, middle)
    scanned = status == Status.SCANNED
    np.testing.assert_array_equal(colours[scanned, 3] > 0, probability[scanned] >= middle)
    assert (colours[~scanned, 3] > 0.5).all(), "not scanned stays marked"


def test_the_uncertainty_is_another_picture(heatmap: Heatmap, slide_file: Path, tmp_path: Path) -> None:
    probable, uncertain = (
        _pixels(draw_overlay(heatmap, tmp_path / f"{layer}.png", slide=slide_file, layer=layer, max_side=600))
        for layer in LAYERS
    )
    height, width = (min(pair) for pair in zip(probable.shape[:2], uncertain.shape[:2], strict=True))
    assert (probable[:height, :width] != uncertain[:height, :width]).any(-1).mean() > 0.05
    assert len({(layer.colour_map, layer.label) for layer in _LAYERS.values()}) == len(LAYERS) == 2
    assert "spread over eight views" in _LAYERS["uncertainty"].label


def test_opacity_of_uncertainty(heatmap: Heatmap) -> None:
    """No spread leaves the slide as it is; from a quarter on it is as opaque as can be."""
    values = np.array([[0, 0.125, 0.25, 0.4, 0.5, np.nan]], np.float32)
    status = np.array([[2, 2, 2, 2, 2, 1]], np.uint8)
    colours = _colour_cells(values, status, _LAYERS["uncertainty"], 0.8, 0.0)
    np.testing.assert_allclose(colours[0, :5, 3], [0, 0.4, 0.8, 0.8, 0.8], rtol=1e-6)
    assert len({tuple(colour) for colour in colours[0, :5, :3]}) == 5
    np.testing.assert_allclose(colours[0, 5], VEIL[Status.BACKGROUND][0])


def test_title_says_what_is_unknown(heatmap: Heatmap) -> None:
    assert _title(heatmap.record).startswith("node: score 0.")
    results = {
        "node: scan not finished": None,
        "node: no score, nothing scanned": ScanResult(None, complete=True, cells={"unreadable": 0}),
        "node: score 0.250 (incomplete: 7 cells unreadable)": ScanResult(0.25, complete=False, cells={"unreadable": 7}),
    }
    for title, result in results.items():
        assert _title(replace(heatmap.record, result=result)) == title


def test_refusals(heatmap: Heatmap, tmp_path: Path) -> None:
    other = write_slide(tmp_path / "other.tif", texture(300, 300, seed=9))
    with pytest.raises(HeatmapError, match=r"made from node\.tif, not from .*other\.tif"):
        draw_overlay(heatmap, tmp_path / "o.png", slide=other)
    with pytest.raises(SlideReadError, match="no such file"):
        draw_overlay(heatmap, tmp_path / "o.png", slide=tmp_path / "gone.tif")
    with pytest.raises(HeatmapError, match="no such store"):
        draw_overlay(tmp_path / "gone.zarr", tmp_path / "o.png")
    with pytest.raises(OutputPathError, match="there is no folder"):
        draw_overlay(heatmap, tmp_path / "gone" / "o.png")
    with pytest.raises(ValueError, match="layer 'status'; expected one of"):
        draw_overlay(heatmap, tmp_path / "o.png", layer="status")
    assert not (tmp_path / "o.png").exists()
    (tmp_path / "o.png").write_text("precious")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        draw_overlay(heatmap, tmp_path / "o.png")
    assert (tmp_path / "o.png").read_text() == "precious"
