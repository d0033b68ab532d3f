from __future__ import annotations

import json
import logging
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as MatplotlibPath
from numpy.typing import NDArray
from shapely.geometry import Polygon

from wsi_meta.annotations.outlines import Annotations, Outline, fill_outlines, read_annotations
from wsi_meta.errors import DataError, OptionsError

# no edge runs through a pixel's centre, where another implementation may put the pixel on the other side
quarters = arrays(np.float64, st.tuples(st.integers(3, 12), st.just(2)), elements=st.integers(-24, 88).map(lambda n: n / 4))
rings = quarters.map(lambda ring: ring + np.array([1 / 7, 2**0.5 / 10]))


def _square(left: float, top: float, side: float) -> NDArray[np.float64]:
    return np.array([[left, top], [left + side, top], [left + side, top + side], [left, top + side]], np.float64)


def _asap(path: Path, annotations: list[tuple[str, str, NDArray[np.float64]]]) -> Path:
    rows = []
    for name, group, ring in annotations:
        # written out of order: what counts is the attribute
        points = [f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(ring)][::-1]
        rows.append(f'<Annotation Name="{name}" Type="Polygon" PartOfGroup="{group}"><Coordinates>{"".join(points)}')
        rows.append("</Coordinates></Annotation>")
    path.write_text(f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{"".join(rows)}</Annotations></ASAP_Annotations>')
    return path


@given(rings)
def test_a_ring_is_filled_as_matplotlib_tells_inside_from_outside(ring: NDArray[np.float64]) -> None:
    """Also rings that cross themselves, and parts left of, above, right of and below the mask."""
    rows, cols = np.mgrid[:16, :20]
    centres = np.stack([cols.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
    # _path.point_in_path counts crossings (even-odd) as long as the ring is closed by hand
    inside = MatplotlibPath(np.vstack([ring, ring[:1]])).contains_points(centres).reshape(16, 20)
    np.testing.assert_array_equal(fill_outlines([Outline(ring)], (16, 20), 1), inside)


@given(rings, st.integers(-5, 5), st.integers(-5, 5), st.sampled_from([0.5, 1.0, 2.0, 3.3]))
def test_a_window_is_cut_from_the_whole(ring: NDArray[np.float64], x: int, y: int, downsample: float) -> None:
    drawn = Annotations((Outline(ring),))
    whole = drawn.mask((80, 80), downsample, corner=(-20, -20))
    window = drawn.mask((9, 11), downsample, corner=(x, y))
    np.testing.assert_array_equal(window, whole[y + 20 : y + 29, x + 20 : x + 31])


def test_edges_on_the_centres_of_pixels_belong_to_one_side_only() -> None:
    """Four squares that meet on centres: every pixel is in exactly one."""
    squares = [Outline(_square(left, top, 4)) for left in (0.5, 4.5) for top in (0.5, 4.5)]
    count = sum(fill_outlines([square], (10, 10), 1).astype(int) for square in squares)
    expected = np.zeros((10, 10), int)
    expected[:8, :8] = 1
    np.testing.assert_array_equal(count, expected)
    assert fill_outlines([Outline(_square(2, 3, 4))], (10, 10), 1).sum() == 16
    assert fill_outlines([Outline(_square(2, 3, 0.4))], (10, 10), 1).sum() == 0, "no centre within"


def test_holes_and_exclusions() -> None:
    ring, hole, cut = _square(0, 0, 80), _square(16, 16, 24), _square(64, 64, 80)
    outline = Outline(ring, (hole,))
    assert outline.area == Polygon(ring, [hole]).area == 80**2 - 24**2
    mask = Annotations((outline,), (Outline(cut),)).mask((20, 20), 8)
    expected = np.zeros((20, 20), bool)
    expected[:10, :10] = True
    expected[2:5, 2:5] = expected[8:, 8:] = False
    np.testing.assert_array_equal(mask, expected)
    island = Annotations((outline, Outline(_square(24, 24, 8)))).mask((20, 20), 8)
    assert island[3, 3], "tumor outlined within a hole is tumor"
    assert not island[2, 2]
    assert not Annotations().mask((3, 4), 8).any()


def test_outside_the_slide() -> None:
    outline = Outline(_square(-50, -50, 1000))
    assert fill_outlines([outline], (7, 9), 4).all()
    assert not fill_outlines([Outline(_square(100, 100, 50)), Outline(_square(-90, -90, 50))], (7, 9), 4).any()


def test_asap_xml(tmp_path: Path) -> None:
    squares = [_square(10 * number, 10, 8) for number in range(7)]
    groups = ["Tumor", "Exclusion", "_0", "_1", "_2", "Metastases", "None"]
    names = [*(f"Annotation {number}" for number in range(6)), "_0"]
    found = read_annotations(_asap(tmp_path / "t.xml", list(zip(names, groups, squares, strict=True))))
    assert [outline.name for outline in found.tumor] == [names[number] for number in (0, 2, 3, 5, 6)]
    assert [outline.name for outline in found.excluded] == [names[1], names[4]]
    np.testing.assert_array_equal(found.tumor[1].vertices, squares[2])


def test_asaps_own_names_are_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who outlines tumor in ASAP and nothing else often makes no group: all are called Annotation 0, Annotation 1, ..."""
    drawn = [(f"Annotation {number}", "None", _square(10 * number, 10, 8)) for number in range(12)]
    found = read_annotations(_asap(tmp_path / "t.xml", drawn))
    assert (len(found.tumor), len(found.excluded)) == (12, 0)
    assert "t.xml: nothing has a class, so all counts as tumor: 12 outlines" in caplog.text
    assert len(read_annotations(tmp_path / "t.xml", tumor=["annotation 3", "Annotation 11"]).tumor) == 2
    _asap(tmp_path / "t.xml", [*drawn, ("Annotation 12", "Tumor", _square(0, 40, 8))])
    with pytest.raises(DataError, match="group 'Annotation 0' is neither tumor nor excluded"):
        read_annotations(tmp_path / "t.xml")


def _feature(kind: str, coordinates: Any, properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def test_qupath_geojson(tmp_path: Path) -> None:
    outer, hole = ([*ring.tolist(), ring[0].tolist()] for ring in (_square(0, 0, 40), _square(8, 8, 8)))
    other = _square(100, 0, 16).tolist()
    features = [
        _feature("Polygon", [outer, hole], {"classification": {"name": "Tumor: Positive", "color": [200, 0, 0]}, "name": "A"}),
        _feature("MultiPolygon", [[other], [hole]], {"classification": {"names": ["Tumor", "Negative"]}}),
        _feature("Polygon", [hole], {"classification": {"name": "Exclusion"}}),
        _feature("Polygon", [other], {"objectType": "annotation"}),
    ]
    for content in (features, {"type": "FeatureCollection", "features": features}):
        (tmp_path / "t.geojson").write_text(json.dumps(content), encoding="utf-8-sig")
        found = read_annotations(tmp_path / "t.geojson")
        assert [round(outline.area) for outline in found.tumor] == [40**2 - 64, 256, 64], "not the one without a class"
        assert [round(outline.area) for outline in found.excluded] == [64]
        assert found.tumor[0].name == "A"
    (tmp_path / "one.geojson").write_text(json.dumps(features[0]))
    assert len(read_annotations(tmp_path / "one.geojson").tumor) == 1
    stroma = _feature("Polygon", [outer], {"classification": {"name": "Stroma"}})
    (tmp_path / "s.geojson").write_text(json.dumps([stroma]))
    assert len(read_annotations(tmp_path / "s.geojson", excluded=["stroma"]).excluded) == 1


def test_a_region_without_a_class_beside_tumor_is_no_tumor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    region = _feature("Polygon", [_square(0, 0, 1400).tolist()], {"objectType": "annotation", "name": "ROI"})
    tumor = _feature("Polygon", [_square(100, 100, 200).tolist()], {"classification": {"name": "Tumour"}})
    excluded = _feature("Polygon", [_square(100, 100, 100).tolist()], {"classification": {"name": "Exclusion"}})
    path = tmp_path / "t.geojson"
    path.write_text(json.dumps([region, tumor, region]))
    with caplog.at_level(logging.WARNING):
        found = read_annotations(path)
    assert found.mask((1500, 2000), 1).sum() == 200**2
    assert "t.geojson: not taken for tumor: 2 outlines without a class" in caplog.text
    other = _feature("Polygon", region["geometry"]["coordinates"], {"name": "A"})
    path.write_text(json.dumps([region, other]))
    assert len(read_annotations(path).tumor) == 2
    assert f"{path}: nothing has a class, so all counts as tumor: 2 outlines; they are named 'A', 'ROI'" in caplog.text
    path.write_text(json.dumps([region, excluded]))
    with pytest.raises(DataError, match="1 outline without a class beside others of which none is tumor"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("named", "tumor", "told"),
    [
        (
            ["Tumor", "Tumor 2", "Tumor 3"],
            3,
            "tumor: 3 outlines; they are named 'Tumor', 'Tumor 2', 'Tumor 3'",
        ),
        (["Metastasis", "small one"], 2, "so all counts as tumor: 2 outlines"),
        (["Normal", "Lesion"], 1, "so all counts as tumor: 1 outline"),
        (["Normal", "Tumor"], 1, ""),
    ],
)
def test_a_name_tells_nothing_of_what_is_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, named: list[str], tumor: int, told: str
) -> None:
    path, rings = tmp_path / "t.geojson", [_square(100 * number, 0, 40).tolist() for number in range(3)]
    features = [_feature("Polygon", [ring], {"name": name}) for ring, name in zip(rings, named, strict=False)]
    path.write_text(json.dumps(features))
    found = read_annotations(path)
    assert (len(found.tumor), len(found.excluded)) == (tumor, len(named) - tumor)
    assert told in caplog.text
    assert bool(caplog.records) == bool(told)
    normal = _feature("Polygon", rings[2:], {"classification": {"name": "Normal"}})
    path.write_text(json.dumps([*features, normal]))
    if told:
        with pytest.raises(DataError, match="without a class beside others of which none is tumor"):
            read_annotations(path)
    path.write_text(json.dumps(features))
    assert len(read_annotations(path, tumor=named[1]).tumor) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objectType", "tma_core"),
        ("objectType", "root"),
        ("object_type", "cell"),
        ("objectType", "tile"),
        ("id", "PathDetectionObject"),
    ],
)
def test_what_nobody_outlined_is_no_tumor(tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, value: str) -> None:
    path, square = tmp_path / "t.geojson", [_square(0, 0, 40).tolist()]
    drawn = _feature("Polygon", [_square(0, 0, 8).tolist()], {"objectType": "annotation"})
    idle = _feature("Polygon", square, {} if key == "id" else {key: value}) | ({key: value} if key == "id" else {})
    path.write_text(json.dumps([idle, drawn]))
    assert read_annotations(path).mask((40, 40), 1).sum() == 64
    assert "QuPath objects that are no annotations are left out: 1 " in caplog.text
    path.write_text(json.dumps([idle]))
    with pytest.raises(DataError, match="only QuPath objects that are no annotations"):
        read_annotations(path)
    classified = _feature("Polygon", square, {key: value, "classification": {"name": "Tumor"}})
    path.write_text(json.dumps([classified | {"id": value}, drawn | {"properties": {"class": "tumor"}}]))
    assert len(read_annotations(path).tumor) == (1 if value in ("tma_core", "root") else 2)


@pytest.mark.parametrize("key", ["class", "label", "category", "type", "className", "name", "classification"])
def test_classes_of_other_programs(tmp_path: Path, key: str) -> None:
    path, rings = tmp_path / "t.geojson", [[_square(0, 0, side).tolist()] for side in (8, 4)]
    names = ["Tumor", "normal"] if key != "classification" else [["Tumor", "Positive"], {"names": ["normal"]}]
    features = [_feature("Polygon", ring, {key: name}) for ring, name in zip(rings, names, strict=True)]
    path.write_text(json.dumps(features))
    assert read_annotations(path).mask((8, 8), 1).sum() == 64 - 16
    path.write_text(json.dumps(features).replace("normal", "Krebs"))
    assert [outline.area for outline in read_annotations(path, tumor="krebs").tumor] == [16]
    if key not in ("name", "type"):
        with pytest.raises(DataError, match="group 'Krebs' is neither tumor nor excluded"):
            read_annotations(path)


@pytest.mark.parametrize(
    ("properties", "told"),
    [
        ([{"type": "freehand"}, {"category": "Path"}, {"class": "Segmentation"}], "so all counts as tumor: 3 outlines"),
        ([{"label": {"value": "tumor"}, "type": "polyline"}, {"type": "tumour"}], ""),
        ([{"label": 1}, {"label": "2.0"}, {"class": 0}], "so all counts as tumor: 3 outlines; they are named '0', '1', '2.0'"),
        ([{"name": "Tumor", "category": "lesion"}, {"label": "A", "class": 3, "category": "Tumor"}], ""),
        ([{"name": "Tumor", "classification": "Lesion"}], "group 'Lesion' is neither"),
        ([{"name": "Tumor", "classification": {"name": "Region"}}], "group 'Region' is neither"),
        ([{"type": "tumor"}, {"type": "normal"}, {"type": "Krebs"}], "1 outline without a class beside classes"),
    ],
)
def test_what_was_drawn_and_numbers_are_no_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, properties: list[dict[str, Any]], told: str
) -> None:
    path = tmp_path / "t.geojson"
    path.write_text(json.dumps([_feature("Polygon", [_square(0, 0, 8).tolist()], of) for of in properties]))
    if "neither" in told:
        with pytest.raises(DataError, match=told):
            read_annotations(path)
        return
    found = read_annotations(path)
    assert len(found.tumor) == len(properties) - 2 * ("beside" in told)
    assert told in caplog.text
    assert bool(caplog.records) == bool(told)
    if "count" in told and "label" in properties[0]:
        assert len(read_annotations(path, tumor="1").tumor) == 1


def test_asap_points_enclose_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _asap(tmp_path / "t.xml", [(kind, "Tumor", _square(0, 0, 40)) for kind in "abcdefghij"])
    content = path.read_text()
    for kind in ("PointSet", "Dot", "Measurement", "Spline", "Rectangle", "Polyline", "Line", "Arrow", "ruler", "Point"):
        content = content.replace('Type="Polygon"', f'Type="{kind}"', 1)
    path.write_text(content.replace("<Annotations>", '<Annotations><Annotation Name="k" Type="" />'))
    with caplog.at_level(logging.WARNING):
        found = read_annotations(path)
    assert [outline.name for outline in found.tumor] == ["d", "e"]
    told = "Arrow, Dot, Line, Measurement, Point, PointSet, Polyline, no type, ruler"
    assert f"t.xml: left out, for they enclose nothing: 9 annotations ({told})" in caplog.text
    for kind in ("", "Freehand"):
        path.write_text(content.replace('"Rectangle"', f'"{kind}"'))
        with pytest.raises(DataError, match=f"annotation 'e' of the unknown type '{kind}'"):
            read_annotations(path)


def test_subgroups_are_what_their_group_is(tmp_path: Path) -> None:
    groups = ["Tumor: large", "Inner", "Innermost", "Tumour", "Holes"]
    path = _asap(tmp_path / "t.xml", [(group, group, _square(0, 0, 40)) for group in groups])
    within = {"Innermost": "Inner", "Inner": "Tumor", "Holes": "Exclusion", "Tumor": "None"}
    told = "".join(f'<Group Name="{name}" PartOfGroup="{parent}" />' for name, parent in within.items())
    path.write_text(path.read_text().replace("</ASAP_", f"<AnnotationGroups>{told}</AnnotationGroups></ASAP_"))
    found = read_annotations(path)
    assert [outline.name for outline in found.tumor] == groups[:4]
    assert [outline.name for outline in found.excluded] == ["Holes"]
    path.write_text(path.read_text().replace('PartOfGroup="Tumor"', 'PartOfGroup="Innermost"'))
    with pytest.raises(DataError, match="group 'Inner' is neither"):
        read_annotations(path)


def test_camelyon_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    regions = [{"name": "_2", "vertices": _square(0, 0, 8).tolist()}, {"name": "line", "vertices": [[0, 0], [1, 1]]}]
    (tmp_path / "t.json").write_text(json.dumps({"positive": regions, "negative": regions[:1]}))
    with caplog.at_level(logging.WARNING):
        found = read_annotations(tmp_path / "t.json")
    assert [outline.name for outline in found.tumor] == ["_2"]
    assert len(found.excluded) == 1
    assert "1 outline of one or two vertices" in caplog.text
    (tmp_path / "n.json").write_text('{"positive": [], "negative": []}')
    assert read_annotations(tmp_path / "n.json").tumor == ()


def test_holes_that_enclose_nothing_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.geojson"
    outer, hole = _square(0, 0, 8).tolist(), _square(2, 2, 2).tolist()
    path.write_text(json.dumps([_feature("Polygon", [outer, [], hole, [[3, 3]], [[3, 3], [4, 4]]], {})]))
    with caplog.at_level(logging.WARNING):
        (outline,) = read_annotations(path).tumor
    assert [ring.tolist() for ring in outline.holes] == [hole]
    assert outline.area == 60
    assert read_annotations(path).mask((8, 8), 1.0).sum() == 60
    assert "empty Polygon" not in caplog.text
    assert f"{path}: left out, for they enclose nothing: 3 holes of less than three vertices" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", "", "ending '.txt'"),
        ("gone.xml", None, "no such file; expected outlines"),
        ("a.xml", "<ASAP_Annotations>", "ParseError"),
        ("b.xml", "<svg/>", "root element 'svg'"),
        ("a.json", "{", "JSONDecodeError"),
        ("b.json", '{"positive": [{"name": "x"}]}', "vertices"),
        ("c.json", '{"positive": [{"vertices": [[1, 2], [3, NaN], [4, 5]]}]}', "no number"),
        ("d.json", "3", "TypeError"),
        ("e.json", '{"positive": [{"vertices": [[1], [2], [3]]}]}', "ValueError"),
        ("f.geojson", json.dumps([_feature("Point", [1, 2], {})]), "Point, expected Polygon"),
        ("g.geojson", json.dumps([_feature("Polygon", [], {})]), "empty Polygon, expected Polygon"),
        ("j.geojson", '{"type": "FeatureCollection", "features": [[]]}', "list where a feature should be"),
        (
            "h.geojson",
            json.dumps([_feature("Polygon", [[[1, 5, 2, 5], [3, 0, 2, 5], [4, 5, 5, 0]]], {})]),
            "of 4 numbers, expected",
        ),
        (
            "i.geojson",
            json.dumps([_feature("Polygon", [[[1, 2], [3, 0, 2], [4, 5]]], {})]),
            "of 2 or 3 numbers, expected x and",
        ),
        ("k.geojson", json.dumps([_feature("Polygon", [[[[1, 2]] * 4]], {})]), "a real number, not 'list'"),
        ("i.geojson", '"a word"', "str where a feature should be"),
        ("j.geojson", "[" * 100000, "nested too deeply"),
        ("c.xml", "<Annotations><Slide/></Annotations>", "element 'Slide', expected Annotation, a layer of ImageScope or HALO"),
        (
            "d.xml",
            "<ASAP_Annotations><Annotations><Annotation Name='e' Type='Ellipse'/></Annotations></ASAP_Annotations>",
            "annotation 'e' of the unknown type 'Ellipse', expected Polygon",
        ),
        (
            "h.geojson",
            json.dumps([_feature("Polygon", [[[0, 0], [1, 0], [1, 1]]], {"classification": {"name": "Fat"}})]),
            "'Fat'",
        ),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name) as caught:
        read_annotations(tmp_path / name)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_xml_bomb_is_refused(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    (tmp_path / "bomb.xml").write_text(f'<!DOCTYPE a [<!ENTITY e0 "ha">{entities}]><a>&e9;</a>')
    with pytest.raises(DataError, match=r"bomb\.xml.*amplification"):
        read_annotations(tmp_path / "bomb.xml")


@pytest.mark.shared_data
def test_real_outlines(shared_data: Path) -> None:
    """Areas as shapely has them, and as many pixels at level 5 as the areas say."""
    files = sorted((shared_data / "annotations" / "camelyon16_json").glob("*.json"))
    assert files
    for file in files:
        found = read_annotations(file)
        ours = [outline.area for outline in found.tumor]
        theirs = [Polygon(outline.vertices).area for outline in found.tumor]
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)
        right, lower = np.concatenate([outline.vertices for outline in found.tumor]).max(0)
        mask = found.mask((int(lower / 32) + 1, int(right / 32) + 1), 32)
        assert mask.sum() * 32**2 == pytest.approx(sum(ours), rel=0.02)


@pytest.mark.parametrize("origin", [None, (1,), (1, 2, 3), "ab", (math.nan, 0), 5])
def test_an_origin_that_is_no_place_is_refused(tmp_path: Path, origin: Any) -> None:
    """None is what the bounds of an older heatmap give."""
    path = tmp_path / "drawn.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [_square(0, 0, 9).tolist()]}))
    assert read_annotations(path, origin=(1, 2)).tumor[0].vertices[0].tolist() == [1, 2]
    with pytest.raises(OptionsError, match=r"origin .*; expected x and y in pixels"):
        read_annotations(path, origin=origin)


def test_a_downsample_of_any_kind_is_taken_by_its_decimals() -> None:
    """A float16's binary digits moved what lies far from the corner; a Decimal ended in a traceback."""
    drawn = Annotations((Outline(_square(40_000, 0, 40)),))
    asked: tuple[Any, ...] = (np.float16(20.1), Decimal("20.1"))
    for downsample in asked:
        assert np.array_equal(drawn.mask((2, 2200), downsample), drawn.mask((2, 2200), 20.1))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"downsample": 0}, "downsample 0; expected level-0 pixels along a side, above 0"),
        ({"downsample": -1}, "downsample -1"),
        ({"downsample": math.nan}, "downsample nan"),
        ({"downsample": "x"}, "downsample 'x'"),
        ({"shape": (-1, 10)}, "shape -1; expected height and width"),
        ({"shape": (10.5, 10)}, "shape 10.5"),
        ({"shape": (10, 10, 3)}, r"shape \(10, 10, 3\)"),
        ({"corner": (0.5, 0)}, "corner 0.5; expected x and y"),
    ],
)
def test_what_is_no_mask_is_refused(asked: dict[str, Any], told: str) -> None:
    """An empty mask would say that there is no tumor."""
    given: dict[str, Any] = {"shape": (10, 10), "downsample": 1} | asked
    with pytest.raises(OptionsError, match=told):
        Annotations((Outline(_square(0, 0, 9)),)).mask(**given)
