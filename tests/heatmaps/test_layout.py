"""What other programs find in a store: names, colours, places and labels; and stores as older versions left them."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from stores import write_store

from wsi_meta.exports.export import export
from wsi_meta.heatmaps.inspection import check_heatmaps
from wsi_meta.heatmaps.layout import foreign_part, multiscale
from wsi_meta.heatmaps.lesions import find_lesions, lesion_facts
from wsi_meta.heatmaps.pyramid import halve
from wsi_meta.heatmaps.regions import SIZE_COLOURS
from wsi_meta.heatmaps.soundness import stale_labels
from wsi_meta.heatmaps.store import Heatmap, Status

CELL_UM = 31.104


@pytest.fixture(scope="module")
def heatmap(tmp_path_factory: pytest.TempPathFactory) -> Heatmap:
    """Three lesions of three sizes, the last one in a cell that lies on the slide by less than a pixel."""
    values = np.full((91, 110), 0.1, np.float32)
    values[:10] = np.nan
    values[20:40, 30:100] = 0.9
    values[60:64, 3:9] = 0.8
    values[-1, -1] = 0.95
    return write_store(tmp_path_factory.mktemp("layout") / "s.zarr", values, mpp=0.25, cut=124)


@pytest.fixture
def copied(heatmap: Heatmap, tmp_path: Path) -> Heatmap:
    """The same, to be changed."""
    return Heatmap.open(shutil.copytree(heatmap.path, tmp_path / "s.zarr"))


def _array(heatmap: Heatmap, path: str) -> NDArray[Any]:
    array = heatmap.group[path]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[...])


def _ome(heatmap: Heatmap, group: str = "") -> Any:
    found: Any = heatmap.group[group] if group else heatmap.group
    return found.attrs["ome"]


def test_the_map_has_a_name_a_colour_and_a_window(heatmap: Heatmap) -> None:
    omero = _ome(heatmap)["omero"]
    (channel,) = omero["channels"]
    assert (omero["name"], channel["label"], channel["active"]) == ("s", "tumor probability", True)
    assert len(bytes.fromhex(channel["color"])) == 3
    assert channel["window"] == {"min": 0.0, "max": 1.0, "start": 0.0, "end": 1.0}


def test_labels_are_the_lesions_by_their_numbers(heatmap: Heatmap) -> None:
    labels, lesions = _array(heatmap, "labels/lesions/0"), find_lesions(heatmap)
    assert labels.dtype == np.uint32
    assert np.bincount(labels.ravel())[1:].tolist() == [lesion.cells for lesion in lesions] == [1400, 24, 1]
    assert heatmap.probability[labels == 1].min() >= 0.9
    assert labels[-1, -1] == 3
    assert _ome(heatmap, "labels")["labels"] == ["lesions", "status"]
    told = _ome(heatmap, "labels/lesions")["image-label"]
    colours = {entry["label-value"]: tuple(entry["rgba"]) for entry in told["colors"]}
    assert colours == {lesion.number: (*SIZE_COLOURS[lesion.size_class], 255) for lesion in lesions}
    facts = [lesion.to_dict() for lesion in lesions]
    assert told["properties"] == [{"label-value": fact.pop("lesion")} | fact for fact in facts]
    assert (heatmap.path / "labels" / "lesions" / told["source"]["image"]).resolve() == heatmap.path


def test_labels_of_the_status_say_what_their_values_mean(heatmap: Heatmap) -> None:
    assert np.array_equal(_array(heatmap, "labels/status/0"), heatmap.status)
    told = _ome(heatmap, "labels/status")["image-label"]
    names = {entry["label-value"]: entry["name"] for entry in told["properties"]}
    assert names == {1: "background", 2: "scanned", 3: "unreadable"}
    assert {entry["label-value"] for entry in told["colors"]} == set(names)
    flags: Any = heatmap.group["status"].attrs
    assert dict(zip(flags["flag_values"], flags["flag_meanings"].split(), strict=True)) == {
        int(status): status.name.lower() for status in Status
    }


def test_labels_have_the_levels_of_the_map_where_these_lie(heatmap: Heatmap) -> None:
    (shown,) = _ome(heatmap)["multiscales"]
    for name in ("lesions", "status"):
        (described,) = _ome(heatmap, f"labels/{name}")["multiscales"]
        places = [[level["coordinateTransformations"] for level in image["datasets"]] for image in (shown, described)]
        assert places[0] == places[1]
        levels = [_array(heatmap, f"labels/{name}/{level['path']}") for level in described["datasets"]]
        assert [level.shape for level in levels] == [_array(heatmap, level["path"]).shape for level in shown["datasets"]]
        assert all(np.array_equal(halve(finer), coarser) for finer, coarser in pairwise(levels)), "no lesion vanishes"


def test_arrays_of_a_group_agree_on_the_length_of_a_dimension(heatmap: Heatmap) -> None:
    """Else xarray opens none of them. Labels are left out: their levels stand side by side, as checkers of OME-Zarr want it."""
    for group in (heatmap.group, *(each for name, each in heatmap.group.groups() if name != "labels")):
        lengths: dict[str, set[int]] = {}
        for name, array in group.arrays():
            axes: Any = array.metadata.dimension_names  # type: ignore[union-attr]
            assert axes is not None, f"{group.path}/{name}"
            for axis, length in zip(axes, array.shape, strict=True):
                lengths.setdefault(axis, set()).add(length)
        assert {"y", "x"} <= set(lengths)
        assert all(len(found) == 1 for found in lengths.values()), lengths


def test_places_are_the_centres_of_cells(heatmap: Heatmap) -> None:
    for level, folder in enumerate(("", "1/")):
        (rows, cols), side = _array(heatmap, f"{folder}probability" if level else "0").shape, CELL_UM * 2**level
        assert _array(heatmap, f"{folder}y") == pytest.approx((np.arange(rows) + 0.5) * side)
        assert _array(heatmap, f"{folder}x") == pytest.approx((np.arange(cols) + 0.5) * side)


def test_xarray_opens_each_level_in_one_call(heatmap: Heatmap) -> None:
    xarray = pytest.importorskip("xarray")
    cells = xarray.open_zarr(heatmap.path, consolidated=False)
    marked = cells["0"].sel(y=29.6 * CELL_UM, x=31.4 * CELL_UM, method="nearest")
    assert float(marked) == pytest.approx(0.9)
    assert cells["status"].dtype == np.uint8, "0 is a status, nothing is masked"
    assert xarray.open_zarr(heatmap.path, group="1", consolidated=False)["probability"].shape == (46, 55)


def test_what_others_put_among_the_labels_stays_and_stays_listed(copied: Heatmap) -> None:
    copied.group.create_array("labels/mine/0", shape=(2, 2), dtype="uint8")
    labels = copied.group["labels"]
    labels.attrs["ome"] = labels.attrs["ome"] | {"labels": ["lesions", "mine", "status"]}  # type: ignore[operator]
    assert copied.result is not None
    copied.finalise(copied.result, copied.record.lesions)
    assert sorted(_ome(copied, "labels")["labels"]) == ["lesions", "mine", "status"]
    assert _array(copied, "labels/mine/0").shape == (2, 2)
    assert (foreign_part(copied.path) or "").startswith("labels/mine")


@pytest.mark.parametrize("odd", [[{"x": 1}, "lesions", "status"], {"x": 1}, 3, None])
def test_an_odd_list_of_labels_is_told_and_made_anew(copied: Heatmap, odd: Any) -> None:
    file = copied.path / "labels" / "zarr.json"
    text = json.loads(file.read_text())
    text["attributes"]["ome"] = {"version": "0.5", "labels": odd}
    file.write_text(json.dumps(text))
    damaged = Heatmap.open(copied.path)
    whole = isinstance(odd, list)  # what others list beside ours is theirs
    assert (stale_labels(damaged, damaged.probability) == []) is whole
    assert damaged.result is not None
    damaged.finalise(damaged.result, damaged.record.lesions)
    assert _ome(damaged, "labels")["labels"] == ["lesions", "status"]


@pytest.mark.parametrize("odd", [[1], "x", 3])
def test_odd_words_about_a_store_are_told(copied: Heatmap, odd: Any) -> None:
    for group in ("labels", "labels/status"):
        file = copied.path / group / "zarr.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"attributes": {"ome": odd}}))
    damaged = Heatmap.open(copied.path)
    assert stale_labels(damaged, damaged.probability) == ["status", "their list"]


def test_every_file_of_a_store_is_ours(copied: Heatmap) -> None:
    assert foreign_part(copied.path) is None
    for name in ("y/c/notes.txt", "1/c.txt", "labels/lesions/notes.txt", "1/x/0"):
        (copied.path / name).write_text("mine")
        assert foreign_part(copied.path) is not None, name
        (copied.path / name).unlink()


# stores that 0.1.0 finished


def _as_older(heatmap: Heatmap) -> Heatmap:
    """Leave a store as 0.1.0 did: levels beside each other, nothing but multiscales, no words about arrays."""
    store = heatmap.path
    for name in ("1", "2", "3"):
        if (store / name).exists():
            shutil.move(store / name / "probability", store / "level")
            shutil.rmtree(store / name)
            (store / "level").rename(store / name)
    for name in ("labels", "y", "x"):
        shutil.rmtree(store / name)
    text = json.loads((store / "zarr.json").read_text())
    levels = len(text["attributes"]["ome"]["multiscales"][0]["datasets"])
    text["attributes"]["ome"] = {"version": "0.5", "multiscales": [multiscale("s", CELL_UM, [str(n) for n in range(levels)])]}
    (store / "zarr.json").write_text(json.dumps(text))
    for array in store.glob("*/zarr.json"):
        array.write_text(json.dumps(json.loads(array.read_text()) | {"attributes": {}}))
    return Heatmap.open(store)


def test_older_stores_are_sound_and_read_as_before(copied: Heatmap, tmp_path: Path) -> None:
    before, lesions = copied.probability, [lesion.to_dict() for lesion in find_lesions(copied)]
    older = _as_older(copied)
    (checked,) = check_heatmaps(older.path)
    assert (checked.state, checked.found) == ("sound", "")
    assert foreign_part(older.path) is None
    assert np.array_equal(older.probability, before, equal_nan=True)
    assert [lesion.to_dict() for lesion in find_lesions(older)] == lesions
    export(older, tmp_path / "map.ome.zarr")
    (older.path / "1" / "c" / "0" / "0").unlink()
    (checked,) = check_heatmaps(older.path)
    assert checked.found.startswith("coarser levels (1) do not agree")


def test_an_older_store_that_is_finished_again_is_as_new(copied: Heatmap) -> None:
    result, record = copied.result, copied.record
    assert result is not None
    before = {path.relative_to(copied.path) for path in copied.path.rglob("*")}
    again = _as_older(copied).reopen().finalise(result, lesion_facts(record, copied.probability, copied.status), record.verdict)
    assert {path.relative_to(copied.path) for path in again.path.rglob("*")} == before
    (checked,) = check_heatmaps(again.path)
    assert (checked.state, checked.found) == ("sound", "")
