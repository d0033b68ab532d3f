"""Corrections: saved beside the store, read again, by QuPath and by our own readers; never over another file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Client, ask
from slide_files import MODEL_MPP, texture, write_slide
from stores import write_store

from wsi_meta.annotations.outlines import read_annotations
from wsi_meta.datasets.candidates import find_candidates
from wsi_meta.datasets.manifest import SourceSlide
from wsi_meta.errors import OutputExistsError
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.models.preprocessing import Preprocessing
from wsi_meta.readers.reader import Bounds
from wsi_meta.slides.slide import open_slide
from wsi_meta.viewer.corrections import Correction, Corrections, corrections_path, read_corrections, write_corrections

SQUARE = [100.0, 100.0, 300.0, 100.0, 300.0, 260.5, 100.0, 260.5]
HOLE = [150.0, 150.0, 200.0, 150.0, 200.0, 200.0]


@pytest.fixture
def heatmap(tmp_path: Path) -> Heatmap:
    """12 x 10 cells of 128 px; QuPath shows the slide from 40, 30 on."""
    return write_store(tmp_path / "heat.zarr", np.full((12, 10), 0.7, np.float32), bounds=Bounds(40, 30, 1200, 1400))


def given(heatmap: Heatmap, *corrections: dict[str, Any], revision: str = "") -> Corrections:
    return Corrections.from_dict({"corrections": list(corrections), "revision": revision}, heatmap.grid)


MISSED = {"kind": "missed", "polygons": [[SQUARE, HOLE]]}
FALSE = {"kind": "false", "polygons": [[[600.0, 600, 700, 600, 700, 700]], [[800.0, 800, 900, 800, 900, 900]]]}


def test_what_is_written_is_read_again(heatmap: Heatmap) -> None:
    saved = write_corrections(heatmap, given(heatmap, MISSED, FALSE))
    assert [one.kind for one in saved.found] == ["missed", "false"]
    assert read_corrections(heatmap) == saved
    emptied = write_corrections(heatmap, given(heatmap, revision=saved.revision))
    assert read_corrections(heatmap) == emptied
    assert emptied.found == ()


def test_readers_of_outlines_take_missed_ones_for_tumor_and_exclude_false_ones(heatmap: Heatmap) -> None:
    write_corrections(heatmap, given(heatmap, MISSED, FALSE))
    read = read_annotations(corrections_path(heatmap))
    (tumor,), excluded = read.tumor, read.excluded
    assert tumor.vertices[0].tolist() == [100, 100]
    assert len(tumor.holes) == 1
    assert [outline.vertices[0].tolist() for outline in excluded] == [[600, 600], [800, 800]]


def test_the_file_is_in_qupaths_frame_and_says_so(heatmap: Heatmap) -> None:
    write_corrections(heatmap, given(heatmap, MISSED))
    content = json.loads(corrections_path(heatmap).read_text())
    assert content["wsi_meta"] == {"frame": "qupath", "origin_x": 40, "origin_y": 30, "corrections": 1, "slide": "none"}
    (feature,) = content["features"]
    assert feature["geometry"]["coordinates"][0][0][0] == feature["geometry"]["coordinates"][0][0][-1] == [60, 70]
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["properties"]["classification"]["name"] == "Tumor"
    assert len(feature["id"]) == 36


@pytest.mark.parametrize("content", ["", "{", "[]", '{"type": "FeatureCollection", "features": []}', '{"wsi_meta": 3}'])
def test_another_file_is_left_alone(heatmap: Heatmap, content: str) -> None:
    corrections_path(heatmap).write_text(content)
    assert "left alone" in str(read_corrections(heatmap).problem)
    with pytest.raises(OutputExistsError, match="move it away"):
        write_corrections(heatmap, given(heatmap, MISSED))
    assert corrections_path(heatmap).read_text() == content


@pytest.mark.parametrize("place", ["note", "class", "feature", "file"])
def test_what_someone_added_by_hand_is_not_lost(heatmap: Heatmap, place: str) -> None:
    """A page knows only what it writes itself: what else stands in the file would be gone after the next click."""
    saved = write_corrections(heatmap, given(heatmap, MISSED, FALSE))
    content = json.loads(corrections_path(heatmap).read_text())
    first = content["features"][0]
    if place == "class":
        first["properties"]["classification"] = {"name": "Normal"}
    else:
        {"note": first["properties"], "feature": first, "file": content}[place]["note"] = "reviewed by both of us"
    corrections_path(heatmap).write_text(json.dumps(content))
    assert "edited elsewhere" in str(read_corrections(heatmap).problem)
    with pytest.raises(OutputExistsError, match="move it away"):
        write_corrections(heatmap, given(heatmap, MISSED, revision=saved.revision))
    assert json.loads(corrections_path(heatmap).read_text()) == content


def test_an_outline_moved_by_hand_is_taken(heatmap: Heatmap) -> None:
    write_corrections(heatmap, given(heatmap, MISSED))
    content = json.loads(corrections_path(heatmap).read_text())
    content["features"][0]["geometry"]["coordinates"][0][0][1] = [261, 70]
    del content["features"][0]["id"]
    corrections_path(heatmap).write_text(json.dumps(content, indent=2))
    (moved,) = read_corrections(heatmap).found
    assert moved.polygons[0][0][2:4] == (301, 100)


def test_corrections_of_another_slide_are_left_alone(heatmap: Heatmap, tmp_path: Path) -> None:
    write_corrections(heatmap, given(heatmap, MISSED))
    other = write_store(tmp_path / "heat.zarr", heatmap.probability, slide="f" * 64)
    assert "of this slide" in str(read_corrections(other).problem)


def test_a_slide_is_known_on_a_disk_and_at_an_address(heatmap: Heatmap, tmp_path: Path) -> None:
    """There only a few parts of it were read, whose fingerprint is the second half of that on a disk."""
    near, far = "a" * 32 + "b" * 32, "b" * 32 + "c" * 32
    for corrected, looked_at in ((near, far), (far, near)):
        before = write_store(tmp_path / f"{corrected}.zarr", heatmap.probability, slide=corrected)
        write_corrections(before, given(before, MISSED))
        again = write_store(before.path, heatmap.probability, slide=looked_at)
        assert read_corrections(again).found == read_corrections(before).found
        assert read_corrections(again).problem is None


def test_names_that_differ_after_a_dot_have_corrections_of_their_own(heatmap: Heatmap, tmp_path: Path) -> None:
    stores = [write_store(tmp_path / name, heatmap.probability) for name in ("heat.s32", "heat.s64", "heat.zarr")]
    assert len({corrections_path(store) for store in stores}) == 3
    assert corrections_path(stores[2]).name == "heat.corrections.geojson"


def test_two_people_do_not_write_over_each_other(heatmap: Heatmap) -> None:
    first = write_corrections(heatmap, given(heatmap, MISSED))
    with pytest.raises(OutputExistsError, match="changed elsewhere meanwhile; read it"):
        write_corrections(heatmap, given(heatmap, FALSE))
    assert read_corrections(heatmap) == first


@pytest.mark.parametrize(
    "corrections",
    [
        None,
        3,
        [3],
        [{"kind": "other", "polygons": [[SQUARE]]}],
        [{"kind": "missed"}],
        [{"kind": "missed", "polygons": []}],
        [{"kind": "missed", "polygons": [[]]}],
        [{"kind": "missed", "polygons": [[[1, 2, 3, 4]]]}],
        [{"kind": "missed", "polygons": [[[1, 2, 3, 4, 5]]]}],
        [{"kind": "missed", "polygons": [[[1, 2, 3, 4, 5, None]]]}],
        [{"kind": "missed", "polygons": [[[1, 2, 3, 4, 5, True]]]}],
        [{"kind": "missed", "polygons": [[[1, 2, 3, 4, 5, float("nan")]]]}],
        [{"kind": "missed", "polygons": [[[1, 2, 3, 4, 5, 1e9]]]}],
        [{"kind": "missed", "polygons": [[[1, 2, 3, 4, 5, -1]]]}],
        [{"kind": "missed", "polygons": [[[1, 2, 3, 4, 5, "6"]]]}],
        [{"kind": "missed", "polygons": [[SQUARE]]}] * 2001,
    ],
)
def test_what_is_no_correction_is_refused(heatmap: Heatmap, corrections: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        Corrections.from_dict({"corrections": corrections, "revision": ""}, heatmap.grid)


def test_a_page_saves_and_loads_them(heatmap: Heatmap) -> None:
    async def check(client: Client) -> None:
        before = await client.json("corrections")
        assert before == {"corrections": [], "revision": "", "problem": None}
        saved = await client.put({"corrections": [MISSED], "revision": "", "slide": "none"})
        assert saved.code == 200
        assert await client.json("corrections") == json.loads(saved.body)
        assert (await client.put({"corrections": [], "revision": "old", "slide": "none"})).code == 409
        for body in (b"", b"{", b"[" * 100_000, b'{"corrections": 1}', b"\xff"):
            assert (await client.put(body)).code == 400
        assert (await client.put({"corrections": [], "revision": ""}, "text/plain")).code == 415
        assert (await client.json("corrections"))["corrections"] == [MISSED]

    ask(heatmap.path, check)
    assert read_corrections(heatmap).found == (Correction("missed", ((tuple(SQUARE), tuple(HOLE)),)),)


def test_a_page_saves_nothing_for_another_slide(heatmap: Heatmap) -> None:
    """The store was replaced, and neither map had corrections, whose revision would differ."""

    async def check(client: Client) -> None:
        facts = await client.json("facts")
        write_store(heatmap.path, heatmap.probability, slide="f" * 64)
        drawn = {"corrections": [MISSED], "revision": "", "slide": facts["slide_scanned"]}
        refused = await client.put(drawn)
        assert (refused.code, "load the page again" in refused.reason) == (409, True)
        assert not corrections_path(heatmap).exists()
        assert (await client.put(drawn | {"slide": "f" * 16})).code == 200

    ask(heatmap.path, check)


@pytest.mark.parametrize("partly", [False, True])
def test_sample_mines_false_lesions_and_takes_missed_ones_for_tumor(tmp_path: Path, partly: bool) -> None:
    side = 15 * 32
    slide = write_slide(tmp_path / "slide.tif", texture(side, side), MODEL_MPP)
    probability = np.full((15, 15), 0.1, np.float32)
    with open_slide(slide) as opened:
        heatmap = write_store(tmp_path / "slide.zarr", probability, mpp=MODEL_MPP, slide=opened.fingerprint())

        def cells_by_kind() -> dict[str, set[tuple[int, ...]]]:
            source = SourceSlide(slide, None, "patient", "train", partly)
            found = find_candidates(source, opened, Preprocessing(), seed=[0], scans=tmp_path)
            return {kind: {tuple(cell) for cell in candidates.cells.tolist()} for kind, candidates in found.items()}

        before = cells_by_kind()
        false = {"kind": "false", "polygons": [[[64, 64, 128, 64, 128, 128, 64, 128]]]}  # cells 2 and 3 both ways
        missed = {"kind": "missed", "polygons": [[[320, 320, 352, 320, 352, 352, 320, 352]]]}  # cell 10, 10
        write_corrections(heatmap, given(heatmap, false, missed))
        after = cells_by_kind()
    marked = {(row, col) for row in (2, 3) for col in (2, 3)}
    assert (before["tumor"], before["hard"]) == (set(), set())
    assert (after["tumor"], after["hard"]) == ({(10, 10)}, marked)
    assert after["normal"] == before["normal"] - marked - {(10, 10)}
