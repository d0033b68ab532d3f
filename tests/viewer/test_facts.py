"""What pages say of a heatmap: of every scan that came to its end, and the same as the other commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from slide_files import texture, write_slide
from stores import write_store

from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.slides.slide import open_slide
from wsi_meta.viewer.facts import list_facts, map_facts
from wsi_meta.viewer.shelf import Shelf
from wsi_meta.viewer.shown_map import ShownMap
from wsi_meta.worklist.summary import summarise


def test_the_largest_lesion_is_that_of_the_longest_diameter(tmp_path: Path) -> None:
    """As summary and score have it: a disc of 1.9 mm has the larger area, a strip of 2.5 mm the worse class."""
    values = np.full((80, 100), 0.05, np.float32)
    rows, cols = np.ogrid[:80, :100]
    values[(rows - 35) ** 2 + (cols - 35) ** 2 <= 30**2] = 0.9
    values[70:78, 10:90] = 0.9
    heatmap = write_store(tmp_path / "a.zarr", values)
    (shelved,) = Shelf([heatmap.path]).stores.values()
    assert list_facts(shelved)["lesions"] == "2, largest: macrometastasis"
    assert summarise("a.tif", heatmap)["largest_lesion"] == "macrometastasis"
    assert heatmap.record.lesions is not None
    assert [lesion["size_class"] for lesion in heatmap.record.lesions["found"]] == ["micrometastasis", "macrometastasis"]


def test_a_slide_without_tissue_has_neither_score(tmp_path: Path) -> None:
    heatmap = write_store(tmp_path / "blank.zarr", np.full((4, 5), np.nan, np.float32))
    heatmap.write_fitted_score({"score": None, "sha256": "2" * 64})
    (result,) = (group["lines"] for group in map_facts(ShownMap(heatmap.path).state())["facts"] if group["title"] == "Result")
    assert dict(result)["Slide score"] == dict(result)["Fitted score"] == "none, nothing scanned"
    (shelved,) = Shelf([heatmap.path]).stores.values()
    assert list_facts(shelved)["lesions"] == "nothing was scanned"


def test_what_was_not_wholly_read_is_no_slide_without_lesions(tmp_path: Path) -> None:
    heatmap = write_store(tmp_path / "part.zarr", np.full((4, 5), 0.25, np.float32), complete=False)
    (shelved,) = Shelf([heatmap.path]).stores.values()
    assert list_facts(shelved)["lesions"] == "no lesion in what was read"
    (result,) = (group["lines"] for group in map_facts(ShownMap(heatmap.path).state())["facts"] if group["title"] == "Result")
    assert dict(result)["Slide score"] == "0.250, incomplete"
    values = np.where(np.eye(5), np.float32(0.9), np.float32(np.nan))
    (shelved,) = Shelf([write_store(tmp_path / "cut.zarr", values, unreadable=~np.eye(5, dtype=bool)).path]).stores.values()
    assert list_facts(shelved)["lesions"] == "1, largest: at least isolated tumor cells"


def test_a_slide_without_quickhash_that_was_replaced_is_looked_for_anew(tmp_path: Path) -> None:
    """Its fingerprint by earlier rules cannot be asked of the file any more."""

    def put(seed: int) -> None:
        image = np.tile(texture(320, 320, seed), (5, 5, 1))  # OpenSlide gives a quickhash to what has up to 5 MB
        write_slide(tmp_path / "new.tif", image, mpp=0.972).replace(tmp_path / "a.tif")
        with open_slide(tmp_path / "a.tif") as slide:
            assert "openslide.quickhash-1" not in slide.properties
            write_store(tmp_path / "a.zarr", np.full((4, 5), 0.25, np.float32), slide=slide.fingerprint())

    put(0)
    shelf = Shelf([tmp_path / "a.zarr"])
    (key,) = shelf.stores
    assert shelf.show(key).tiles is not None
    put(1)
    assert shelf.show(key, Heatmap.open(tmp_path / "a.zarr").record).tiles is not None
