"""Scans that meet others' files, other scans, or a damaged store of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DarknessPredictor, scan_darkness
from slide_files import texture, write_slide

from wsi_meta.errors import HeatmapError, OutputExistsError
from wsi_meta.heatmaps.score_model import score_heatmap
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.models.model import Model
from wsi_meta.scanning.scan import scan

WAIT_S = 60


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tissue of 6 x 4 cells beside glass."""
    image = np.full((192, 224, 3), 244, np.uint8)
    image[:, :128] = texture(192, 128)
    return write_slide(tmp_path_factory.mktemp("slides") / "node.tif", image)


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_two_scans_into_one_store_one_goes_on(tmp_path: Path, slide_file: Path, thin_model: Model, overwrite: bool) -> None:
    begun, let_go = threading.Event(), threading.Event()

    class Waiting(DarknessPredictor):
        def predict_block(self, *arguments: Any) -> Any:
            begun.set()
            assert let_go.wait(WAIT_S)
            return super().predict_block(*arguments)

    first = threading.Thread(target=scan, args=(slide_file, tmp_path / "h.zarr"), kwargs={"predictor": Waiting(thin_model)})
    first.start()
    assert begun.wait(WAIT_S)
    with pytest.raises(OutputExistsError, match="is being written by this process, in another thread"):
        scan(slide_file, tmp_path / "h.zarr", predictor=DarknessPredictor(thin_model), overwrite=overwrite)
    let_go.set()
    first.join()
    assert Heatmap.open(tmp_path / "h.zarr").finished
    assert [entry.name for entry in tmp_path.iterdir()] == ["h.zarr"]
    assert scan(slide_file, tmp_path / "h.zarr", predictor=DarknessPredictor(thin_model)).finished


def test_what_is_not_ours_in_a_store_is_never_removed(tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    before = scan_darkness(slide_file, tmp_path / "h.zarr", model=thin_model).probability
    (tmp_path / "h.zarr" / "outlines_by_hand").mkdir()
    (tmp_path / "h.zarr" / "outlines_by_hand" / "node.geojson").write_text("{}")
    with pytest.raises(OutputExistsError, match="holds 'outlines_by_hand', which wsi-meta did not write"):
        scan_darkness(slide_file, tmp_path / "h.zarr", model=thin_model, overwrite=True)
    assert (tmp_path / "h.zarr" / "outlines_by_hand" / "node.geojson").read_text() == "{}"
    np.testing.assert_array_equal(scan_darkness(slide_file, tmp_path / "h.zarr", model=thin_model).probability, before)


def test_a_users_folder_of_a_temporary_name_stays(tmp_path: Path, slide_file: Path, thin_model: Model) -> None:
    (tmp_path / ".h.zarr.partial").mkdir()
    (tmp_path / ".h.zarr.partial" / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        assert scan_darkness(slide_file, tmp_path / "h.zarr", model=thin_model, overwrite=overwrite).finished
    assert (tmp_path / ".h.zarr.partial" / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


DAMAGE: list[Callable[[Path], object]] = [
    lambda store: (store / "0" / "c" / "1" / "0").unlink(),
    lambda store: (store / "0" / "c" / "1" / "0").write_bytes(b"\x28\xb5"),
    lambda store: (store / "status" / "c" / "1" / "0").write_bytes(b""),
    lambda store: (store / "status" / "c" / "1" / "0").unlink(),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_finished_store_is_mended_where_it_is_damaged(
    tmp_path: Path, slide_file: Path, thin_model: Model, damage: Callable[[Path], object]
) -> None:
    store = tmp_path / "h.zarr"
    seen: list[int] = []

    class Counting(DarknessPredictor):
        def predict_block(self, pieces: Any, wanted: Any, stride_px: int, report: Any = None) -> Any:
            seen.append(int(wanted.sum()))
            return super().predict_block(pieces, wanted, stride_px, report)

    whole = scan_darkness(slide_file, store, model=thin_model, block_px=96)
    damage(store)
    with pytest.raises(HeatmapError, match="run its scan again"):
        score_heatmap(store)
    again = scan_darkness(slide_file, store, model=thin_model, block_px=96, kind=Counting)
    assert seen == [9], "one block of 3 x 3 cells"
    assert again.result == whole.result
    np.testing.assert_array_equal(again.probability, whole.probability)
    np.testing.assert_array_equal(again.status, whole.status)
    assert score_heatmap(store).complete


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_unfinished_store_goes_on_over_torn_files(
    tmp_path: Path, slide_file: Path, thin_model: Model, damage: Callable[[Path], object]
) -> None:
    settings: dict[str, Any] = {"model": thin_model, "block_px": 96, "scheduler": "synchronous"}
    whole = scan_darkness(slide_file, tmp_path / "whole.zarr", **settings)
    seen: list[int] = []

    class Interrupted(DarknessPredictor):
        def predict_block(self, *arguments: Any) -> Any:
            if len(seen) == 3:
                raise KeyboardInterrupt
            seen.append(1)
            return super().predict_block(*arguments)

    with pytest.raises(KeyboardInterrupt):
        scan_darkness(slide_file, tmp_path / "h.zarr", kind=Interrupted, **settings)
    assert (Heatmap.open(tmp_path / "h.zarr").status == Status.SCANNED).any()
    damage(tmp_path / "h.zarr")
    resumed = scan_darkness(slide_file, tmp_path / "h.zarr", **settings)
    assert resumed.finished
    np.testing.assert_array_equal(resumed.probability, whole.probability)
    np.testing.assert_array_equal(resumed.status, whole.status)
