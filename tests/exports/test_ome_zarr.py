from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from stores import write_store

from wsi_meta.errors import OutputExistsError, OutputPathError
from wsi_meta.exports import napari_reader
from wsi_meta.exports.export import export
from wsi_meta.exports.napari_reader import find_reader, read_layers
from wsi_meta.heatmaps.lesions import find_lesions
from wsi_meta.heatmaps.pyramid import coarser_levels
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.pictures.colours import COLOUR_MAP

CELL_UM = 31.104


@pytest.fixture(scope="module")
def heatmap(tmp_path_factory: pytest.TempPathFactory) -> Heatmap:
    values = np.full((90, 110), 0.1, np.float32)
    values[:10] = np.nan
    values[20:40, 30:60] = 0.9
    values[60, 70] = 0.7
    return write_store(tmp_path_factory.mktemp("exports") / "s.zarr", values)


def _read(group: zarr.Group, path: str) -> NDArray[Any]:
    array = group[path]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[...])


def test_an_image_of_format_2_holds_the_same_values(heatmap: Heatmap, tmp_path: Path) -> None:
    out = export(heatmap, tmp_path / "map.ome.zarr")
    assert not list(out.rglob("zarr.json"))
    group = zarr.open_group(out, mode="r", zarr_format=2)
    told: Any = group.attrs["multiscales"]
    (image,) = told
    assert (image["version"], [axis["name"] for axis in image["axes"]]) == ("0.4", ["c", "y", "x"])
    wanted = [heatmap.probability, *coarser_levels(heatmap.probability)]
    levels = [_read(group, level["path"]) for level in image["datasets"]]
    assert all(np.array_equal(level[0], values, equal_nan=True) for level, values in zip(levels, wanted, strict=True))
    for number, level in enumerate(image["datasets"]):
        scale, translation = level["coordinateTransformations"]
        assert scale["scale"] == [1.0, CELL_UM * 2**number, CELL_UM * 2**number]
        assert translation["translation"] == [0.0, CELL_UM * 2**number / 2, CELL_UM * 2**number / 2]
    assert np.array_equal(_read(group, "labels/status/0"), heatmap.status)
    assert [(_read(group, "labels/lesions/0") == lesion.number).sum() for lesion in find_lesions(heatmap)] == [600, 1]
    channels: Any = group.attrs["omero"]
    assert [channel["label"] for channel in channels["channels"]] == ["tumor probability"]


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    """Other languages refuse JSON with half a pair of surrogates."""
    store = write_store(tmp_path / "caf\udce9.zarr", np.full((5, 5), 0.9, np.float32))
    out = export(store, tmp_path / "map.ome.zarr")
    assert (out / ".zattrs").read_text().count("caf\\\\xe9") == 3
    assert not any("\\ud" in file.read_text() for file in out.rglob(".zattrs"))
    ome = json.loads((store.path / "zarr.json").read_text())["attributes"]["ome"]
    assert (ome["multiscales"][0]["name"], ome["omero"]["name"]) == ("caf\\xe9", "caf\\xe9")


def test_thresholds_say_which_lesions_are_labels(heatmap: Heatmap, tmp_path: Path) -> None:
    group = zarr.open_group(export(heatmap, tmp_path / "map.ome.zarr", threshold=0.8), mode="r")
    assert np.unique(_read(group, "labels/lesions/0")).tolist() == [0, 1]
    out = export(heatmap, tmp_path / "map.ome.zarr", min_area=0.1, overwrite=True)
    assert (_read(zarr.open_group(out, mode="r"), "labels/lesions/0") > 0).sum() == 600


def test_only_an_image_of_ours_is_replaced(heatmap: Heatmap, tmp_path: Path) -> None:
    out = tmp_path / "map.ome.zarr"
    out.mkdir()
    export(heatmap, out)  # an empty folder is nobody's
    with pytest.raises(OutputExistsError, match="pass --overwrite"):
        export(heatmap, out)
    export(heatmap, out, overwrite=True)
    (out / "0" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"holds '0/notes.txt', which 'wsi-meta export' did not write"):
        export(heatmap, out, overwrite=True)
    other = write_store(tmp_path / "other.ome.zarr", heatmap.probability)
    for path in (other.path, tmp_path / "file.ome.zarr"):
        path.touch()
        with pytest.raises(OutputExistsError, match="did not write"):
            export(heatmap, path, overwrite=True)
    with pytest.raises(OutputPathError, match="lies inside the heatmap store"):
        export(heatmap, other.path / "map.ome.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.ome.zarr", "map.ome.zarr", "other.ome.zarr"]


@pytest.mark.parametrize("made", [None, "folder", "image"])
def test_an_image_that_a_killed_export_moved_aside_comes_back_or_goes(
    made: str | None, heatmap: Heatmap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export(heatmap, tmp_path / "map.ome.zarr")
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    out.rename(tmp_path / ".map.ome.zarr.0123456789ab.old")
    if made == "folder":
        out.mkdir()
    elif made == "image":
        export(heatmap, tmp_path / "new.ome.zarr").rename(out)
    with pytest.raises(OutputExistsError, match="pass --overwrite"):
        export(heatmap, out)
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["map.ome.zarr"]
    (tmp_path / ".map.ome.zarr.0123456789ab.old").mkdir()  # somebody else's
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if target == out and path.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(heatmap, out, overwrite=True)
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".map.ome.zarr.0123456789ab.old", "map.ome.zarr"]


def test_napari_is_given_layers_where_they_lie(heatmap: Heatmap) -> None:
    image, lesions, status = read_layers([str(heatmap.path)])
    assert [kind for _, _, kind in (image, lesions, status)] == ["image", "labels", "labels"]
    assert image[1]["name"] == "s: tumor probability"
    assert (image[1]["colormap"], image[1]["contrast_limits"]) == (COLOUR_MAP, [0.0, 1.0])
    for levels, settings, _ in (image, lesions, status):
        assert (settings["scale"], settings["translate"]) == ((CELL_UM, CELL_UM), (CELL_UM / 2, CELL_UM / 2))
        assert [level.shape for level in levels] == [(90, 110), (45, 55)]
    assert np.array_equal(image[0][0], heatmap.probability, equal_nan=True)
    assert np.array_equal(status[0][0], heatmap.status)
    assert (lesions[1]["visible"], status[1]["visible"]) == (True, False)
    assert lesions[1]["properties"]["max_probability"] == [lesion.max_probability for lesion in find_lesions(heatmap)]
    assert set(lesions[1]["colormap"]) == {1, 2, None}


def test_napari_finds_the_reader_for_stores_only(heatmap: Heatmap, tmp_path: Path) -> None:
    assert find_reader(str(heatmap.path)) is read_layers
    (tmp_path / "zarr.json").write_text(json.dumps({"attributes": {}}))
    assert find_reader(str(tmp_path)) is None
    assert find_reader([str(heatmap.path)] * 2) is None
    manifest = Path(napari_reader.__file__).with_name("napari.yaml").read_text()
    assert f"python_name: {find_reader.__module__}:{find_reader.__name__}" in manifest
