"""Classes of outlines that users name, and the frame that their outlines count from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_meta.annotations.class_names import ClassNames
from wsi_meta.annotations.outline_files import collection, read_drawn
from wsi_meta.annotations.outlines import read_annotations, refuse_absent
from wsi_meta.errors import DataError, OptionsError

SQUARE = [[10, 10], [30, 10], [30, 30], [10, 30], [10, 10]]
POLYGON = {"type": "Polygon", "coordinates": [SQUARE]}
TUMOR = {"classification": {"name": "Tumor"}}


def _feature(geometry: Any, properties: Any = None) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _classified(*names: str) -> list[dict[str, Any]]:
    return [_feature(POLYGON, {"classification": {"name": name}}) for name in names]


def _write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("groups", "tumor", "excluded", "kind"),
    [
        (["Tumor"], (), (), True),
        (["TUMOUR: Positive: Large"], (), (), True),
        (["_2"], (), (), False),
        (["Krebs"], (), (), None),
        (["Krebs :Positive"], ("krebs",), (), True),
        (["Tumor"], ("Krebs",), (), None),
        (["Tumor"], (), ("tumor",), False),
        (["Tumor: Negative"], (), ("tumor:negative",), False),
        (["Tumor: Positive"], (), ("tumor:negative",), True),
        (["normal"], ("Normal",), (), True),
        (["small", "Metastases"], (), (), True),
        (["small", "Metastases"], (), ("small",), False),
        (["large", "Metastases"], ("Metastases",), ("small",), True),
        ([], (), (), None),
    ],
)
def test_kinds(groups: list[str], tumor: tuple[str, ...], excluded: tuple[str, ...], kind: bool | None) -> None:
    assert ClassNames.parse(tumor, excluded).kind(groups) is kind


def test_names_that_contradict_each_other_or_are_empty() -> None:
    assert ClassNames.parse("Krebs", ()).tumor == ("Krebs",), "one name, not its letters"
    with pytest.raises(OptionsError, match="class 'krebs' is to be tumor and to be excluded"):
        ClassNames.parse(["Krebs"], ["krebs "])
    with pytest.raises(OptionsError, match="an empty name"):
        ClassNames.parse([" "], ())


def test_classes_that_were_not_told_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _write(tmp_path / "a.geojson", [*_classified("Krebs: G2", "Stroma", "Nerve"), _feature(POLYGON)])
    with caplog.at_level(logging.WARNING):
        found = read_annotations(path, tumor=["krebs"], excluded=["nerve"])
    assert (len(found.tumor), len(found.excluded)) == (1, 1)
    assert "other classes are left out: 'Stroma'" in caplog.text
    assert "1 outline without a class" in caplog.text
    with pytest.raises(DataError, match=r"group 'Krebs: G2' is neither .*--tumor"):
        read_annotations(path)
    with pytest.raises(DataError, match="no outline has the class 'Krebbs'; found: 'Krebs: G2', 'Nerve', 'Stroma'"):
        read_annotations(path, tumor="Krebbs")


def test_a_name_must_be_in_one_of_the_files(tmp_path: Path) -> None:
    drawn = [read_drawn(_write(tmp_path / f"{name}.geojson", _classified(name))) for name in ("Krebs: G2", "Stroma")]
    refuse_absent(ClassNames(("krebs",), ("Stroma",)), drawn, "here")
    with pytest.raises(DataError, match="here: no outline has the class 'Fat'; found: 'Krebs: G2', 'Stroma'"):
        refuse_absent(ClassNames(("krebs",), ("Fat",)), drawn, "here")


def test_what_qupath_ignores_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = read_annotations(_write(tmp_path / "a.geojson", _classified("Region*", "Tumor")))
    assert len(found.tumor) == 1
    assert "'Region*'" in caplog.text


OTHER = {"type": "MultiPolygon", "coordinates": [[SQUARE], [[[50, 50], [60, 50], [60, 60]]]]}


@pytest.mark.parametrize(
    ("content", "outlines", "told"),
    [
        ({"type": "FeatureCollection", "features": [_feature(POLYGON, TUMOR)]}, 1, ""),
        ([{"type": "FeatureCollection", "features": [_feature(POLYGON, TUMOR)]}], 1, ""),
        (POLYGON, 1, "so all counts as tumor: 1 outline"),
        ({"type": "GeometryCollection", "geometries": [OTHER, {"type": "Point", "coordinates": [1, 2]}]}, 2, "(Point)"),
        ([_feature(POLYGON, TUMOR), _feature(None, TUMOR)], 1, "(feature without geometry)"),
        ([_feature({"type": "LineString", "coordinates": SQUARE}, TUMOR), _feature(OTHER, TUMOR)], 2, "(LineString)"),
        ([_feature(POLYGON, {"classification": {"name": "Tumor", "colorRGB": -3670016}, "isLocked": True})], 1, ""),
        ([_feature(POLYGON, {"objectType": "annotation", "classification": {"names": ["Tumor", "Positive"]}})], 1, ""),
        ([_feature(POLYGON, {"classification": "Tumor"})], 1, ""),
        ([_feature(POLYGON, {"classification": ["Tumor"]})], 1, ""),
        (
            [_feature(POLYGON, {"classification": None}), _feature(POLYGON, {"classification": {"name": None}})],
            2,
            "nothing has a class",
        ),
        ([_feature({"type": "Polygon", "coordinates": []}, TUMOR), _feature(POLYGON, TUMOR)], 1, "(empty Polygon)"),
        ([_feature({"type": "MultiPolygon", "coordinates": []}), _feature(POLYGON, TUMOR)], 1, "(empty MultiPolygon)"),
        ([], 0, ""),
    ],
)
def test_forms_of_geojson(tmp_path: Path, content: Any, outlines: int, told: str, caplog: pytest.LogCaptureFixture) -> None:
    found = read_annotations(_write(tmp_path / "a.geojson", content))
    assert len(found.tumor) == outlines
    assert told in caplog.text
    assert bool(caplog.records) == bool(told)


@pytest.mark.parametrize(
    "content",
    [
        [_feature(None)],
        [_feature({"type": "LineString", "coordinates": SQUARE})],
        {"type": "Topology"},
        {"features": None},
        {"wsi_meta": {"frame": "other"}, "features": []},
        {"wsi_meta": {"frame": "qupath"}, "features": []},
        {"wsi_meta": [1], "features": []},
        {"wsi_meta": {"frame": "qupath", "origin_x": float("inf"), "origin_y": 0}, "features": []},
        {"wsi_meta": {"frame": "qupath", "origin_x": 10**9, "origin_y": 0}, "features": []},
        [_feature({"type": "Polygon", "coordinates": [[[0, 0], [10**400, 0], [0, 1]]]})],
        [_feature({"type": "Polygon", "coordinates": [[[0, 0], [1e300, 0], [0, 1]]]})],
    ],
)
def test_other_json_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(DataError, match=r"a\.geojson: its outlines cannot be read"):
        read_annotations(_write(tmp_path / "a.geojson", content))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_of_geojson(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.geojson").write_text(json.dumps(_classified("Tumor")), encoding=encoding)
    assert len(read_annotations(tmp_path / "a.geojson").tumor) == 1


def test_qupath_counts_from_the_corner_of_the_bounds_others_do_not(tmp_path: Path) -> None:
    xml = '<Annotation Type="Polygon" PartOfGroup="Tumor"><Coordinates>{}</Coordinates></Annotation>'
    points = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(SQUARE))
    (tmp_path / "a.xml").write_text(f"<ASAP_Annotations><Annotations>{xml.format(points)}</Annotations></ASAP_Annotations>")
    features = _classified("Tumor")
    _write(tmp_path / "a.geojson", {"type": "FeatureCollection", "features": features})
    _write(tmp_path / "positive.json", {"positive": [{"vertices": SQUARE}]})
    _write(tmp_path / "qupath.geojson", collection(features, (7, 9)))
    _write(tmp_path / "level0.geojson", collection(features, None))
    for name, corner in [
        ("a.xml", 0),
        ("positive.json", 0),
        ("a.geojson", (100, 200)),
        ("qupath.geojson", (7, 9)),
        ("level0.geojson", 0),
    ]:
        (outline,) = read_annotations(tmp_path / name, origin=(100, 200)).tumor
        np.testing.assert_array_equal(outline.vertices, np.array(SQUARE) + corner, err_msg=name)
    np.testing.assert_array_equal(read_annotations(tmp_path / "a.geojson").tumor[0].vertices, SQUARE)
