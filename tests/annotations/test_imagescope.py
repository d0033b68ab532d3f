"""The XML of Aperio ImageScope and of HALO, as these programs write it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from shapely.geometry import Point, Polygon, box

from wsi_meta.annotations.outline_files import read_drawn
from wsi_meta.annotations.outlines import read_annotations
from wsi_meta.errors import DataError

SQUARE = [(10, 10), (60, 10), (60, 60), (10, 60)]
HOLE = [(20, 20), (30, 20), (30, 30), (20, 30)]


def imagescope(*layers: tuple[str, str, str]) -> str:
    """Return a file of layers, each with a name, a description and regions."""
    parts = [
        f'<Annotation Id="{number}" Name="{name}" ReadOnly="0" LineColor="65280" Visible="1" Type="4" MacroName="">'
        f'<Attributes><Attribute Name="Description" Id="0" Value="{described}"/></Attributes>'
        f"<Regions><RegionAttributeHeaders/>{regions}</Regions><Plots/></Annotation>"
        for number, (name, described, regions) in enumerate(layers, 1)
    ]
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Annotations MicronsPerPixel="0.2520">{"".join(parts)}</Annotations>'


def region(points: list[tuple[int, int]], kind: int = 0, *, text: str = "", hole: int = 0) -> str:
    vertices = "".join(f'<Vertex X="{x}.5" Y="{y}" Z="0"/>' for x, y in points)
    return (
        f'<Region Id="1" Type="{kind}" Zoom="0.1" Text="{text}" NegativeROA="{hole}"><Vertices>{vertices}</Vertices></Region>'
    )


def halo(regions: str, name: str = "Tumor") -> str:
    layer = f'<Annotation LineColor="255" Name="{name}" Visible="True"><Regions>{regions}</Regions></Annotation>'
    return f"<Annotations>{layer}</Annotations>"


def halo_region(kind: str, points: list[tuple[int, int]], hole: int = 0) -> str:
    vertices = "".join(f'<V X="{x}" Y="{y}" />' for x, y in points)
    return f'<Region Type="{kind}" HasEndcaps="0" NegativeROA="{hole}"><Vertices>{vertices}</Vertices><Comments /></Region>'


def test_layers_say_what_regions_are_and_regions_where_layers_do_not(tmp_path: Path) -> None:
    (tmp_path / "s.xml").write_text(
        imagescope(
            ("Tumor", "", region(SQUARE)),
            ("", "metastasis", region(HOLE)),
            ("Layer 3", "", region(SQUARE, text="Tumor") + region(HOLE, text="exclusion")),
        )
    )
    found = read_annotations(tmp_path / "s.xml")
    assert ([outline.name for outline in found.tumor], [outline.name for outline in found.excluded]) == (
        ["Tumor", "metastasis", "Tumor"],
        ["exclusion"],
    )
    np.testing.assert_array_equal(found.tumor[0].vertices, np.add(SQUARE, (0.5, 0)))


def test_a_negative_region_is_cut_out_of_its_own_layer_only(tmp_path: Path) -> None:
    regions = region(SQUARE) + region(HOLE, hole=1)
    (tmp_path / "s.xml").write_text(imagescope(("Tumor", "", regions), ("Tumor", "", region([(15, 15), (25, 15), (25, 25)]))))
    one, other = read_annotations(tmp_path / "s.xml").tumor
    assert (one.area, len(one.holes), other.holes) == (2400, 1, ())


@pytest.mark.parametrize("ending", ["annotations", "xml"])
def test_rectangles_and_ellipses_of_halo_are_given_by_two_corners(tmp_path: Path, ending: str) -> None:
    corners = [(60, 10), (10, 40)]
    drawn = "".join(halo_region(kind, corners) for kind in ("Rectangle", "Ellipse", "Polygon")) + halo_region("Ruler", corners)
    path = tmp_path / f"s.{ending}"
    path.write_text(halo(drawn))
    file = read_drawn(path)
    rectangle, ellipse = (Polygon(region.rings[0]) for region in file.regions)
    circle = Point(0, 0).buffer(1, quad_segs=2000)
    assert rectangle.equals(box(10, 10, 60, 40))
    assert ellipse.area == pytest.approx(circle.area * 25 * 15, rel=2e-4)
    assert ellipse.bounds == pytest.approx((10, 10, 60, 40))
    assert file.idle == 2, "a ruler, and a polygon of two corners"


def test_shapes_of_imagescope_are_numbered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    turned = [(30, 0), (60, 30), (30, 60), (0, 30)]
    drawn = "".join(region(turned, kind) for kind in range(6))
    (tmp_path / "s.xml").write_text(imagescope(("Tumor", "", drawn)))
    with caplog.at_level(logging.WARNING):
        polygon, rectangle, ellipse = read_annotations(tmp_path / "s.xml").tumor
    assert polygon.area == rectangle.area == 1800, "a rectangle of four corners may be turned"
    assert ellipse.area == pytest.approx(np.pi * 900, rel=2e-4)
    assert "they enclose nothing: 3 annotations (arrow, pin, ruler)" in caplog.text


def test_what_is_cut_out_of_nothing_is_told_and_no_outline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "s.annotations").write_text(halo(halo_region("Polygon", SQUARE, hole=1)))
    file = read_drawn(tmp_path / "s.annotations")
    assert (file.regions, file.idle) == ((), 1)
    assert "they enclose nothing: 1 annotation (cut-out of nothing)" in caplog.text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (halo(halo_region("Magic", SQUARE)), "a region of the unknown type 'Magic', expected Polygon, Rectangle or Ellipse"),
        (imagescope(("Tumor", "", region(SQUARE, 9))), "a region of the unknown type '9'"),
        (imagescope(("Tumor", "", region(SQUARE, hole=2))), "NegativeROA '2', expected 0 or 1"),
        (halo(halo_region("Polygon", SQUARE).replace(' Y="60"', "")), "KeyError"),
        (halo(halo_region("Polygon", SQUARE), "Layer 1"), "group 'Layer 1' is neither tumor nor excluded"),
    ],
)
def test_others_are_refused_in_one_line(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "s.xml").write_text(content)
    with pytest.raises(DataError, match=r"s\.xml") as caught:
        read_annotations(tmp_path / "s.xml")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
