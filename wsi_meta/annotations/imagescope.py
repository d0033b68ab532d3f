"""The XML of Aperio ImageScope and of HALO: layers of regions, each a polygon, a rectangle or an ellipse.

Both count level-0 pixels from the slide's upper left corner. A region with ``NegativeROA="1"`` is cut out of the others of its
layer. The form is Aperio's own, and not published; what is read here is what files of both in public repositories hold:

- ImageScope: ``<Annotation Name="Tumor">`` or an attribute ``Description``; ``<Region Type="0">`` with ``<Vertex X= Y= Z=>``
- HALO: ``<Annotation Name="Tumor">``; ``<Region Type="Polygon">`` with ``<V X= Y=>``; rectangles and ellipses by two corners
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from xml.etree.ElementTree import Element

__all__ = ["DrawnShape", "read_layers"]

KINDS = {"0": "polygon", "1": "rectangle", "2": "ellipse", "3": "arrow", "4": "ruler", "5": "pin"}
"""ImageScope's numbers; HALO writes words."""
ENCLOSING = ("polygon", "rectangle", "ellipse")
OTHERS = ("arrow", "ruler", "pin", "line", "polyline", "point", "text")
NO_HOLE = "cut-out of nothing"
ARC = 256
"""Corners of the polygon that stands for an ellipse: it is nowhere further from it than 1/13000 of its diameter."""

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class DrawnShape:
    """A region of a layer."""

    layer: str
    """Name or description of its layer; "" where that has none."""
    text: str
    """What is written at the region itself."""
    kind: str
    """Of :data:`ENCLOSING`, or what it is else."""
    ring: Points
    """x and y, level-0 pixels."""
    holes: list[Points] = field(default_factory=list)
    """Regions that are cut out of its layer and reach into its bounding box."""

    @property
    def encloses(self) -> bool:
        """Whether there is something within it."""
        return self.kind in ENCLOSING


def read_layers(root: Element) -> Iterator[DrawnShape]:
    """Return the regions of all layers, those that are cut out as holes of others.

    Parameters
    ----------
    root : the element ``Annotations``

    Raises
    ------
    ValueError
        when it holds no layers, or a region of an unknown type.
    """
    layers = root.findall("./Annotation")
    if not layers and len(root):
        raise ValueError(f"element '{root[0].tag}', expected Annotation, a layer of ImageScope or HALO")
    for layer in layers:
        described = layer.find("./Attributes/Attribute[@Name='Description']")
        name = layer.get("Name", "").strip() or ("" if described is None else described.get("Value", "").strip())
        shapes = [(_is_cut_out(region), _shape_of(region, name)) for region in layer.iterfind("./Regions/Region")]
        whole = [shape for cut_out, shape in shapes if not cut_out]
        for hole in (shape for cut_out, shape in shapes if cut_out and shape.encloses):
            around = [shape for shape in whole if shape.encloses and _meet(shape.ring, hole.ring)]
            for shape in around:
                shape.holes.append(hole.ring)
            if not around:
                yield replace(hole, kind=NO_HOLE)
        yield from whole


def _is_cut_out(region: Element) -> bool:
    told = region.get("NegativeROA", "0").strip().lower()
    if told not in ("0", "1", "false", "true", ""):
        raise ValueError(f"NegativeROA '{told}', expected 0 or 1")
    return told in ("1", "true")


def _shape_of(region: Element, layer: str) -> DrawnShape:
    told = region.get("Type", "0").strip()
    kind = KINDS.get(told, told.lower())
    corners = [point for point in region.iterfind("./Vertices/*") if point.tag in ("Vertex", "V")]
    points = [(float(point.attrib["X"]), float(point.attrib["Y"])) for point in corners]
    if kind not in ENCLOSING + OTHERS:
        raise ValueError(f"a region of the unknown type '{told}', expected Polygon, Rectangle or Ellipse (0, 1 or 2)")
    if points and (kind == "ellipse" or (kind == "rectangle" and len(points) == 2)):
        points = _within(points, kind)
    return DrawnShape(layer, region.get("Text", "").strip(), kind, points)


def _within(points: Points, kind: str) -> Points:
    """Return the rectangle, or the ellipse, in the bounding box of some points."""
    left, top, right, bottom = _box(points)
    if kind == "rectangle":
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
    angles = [2 * math.pi * step / ARC for step in range(ARC)]
    half_width, half_height = (right - left) / 2, (bottom - top) / 2
    return [(left + half_width * (1 + math.cos(a)), top + half_height * (1 + math.sin(a))) for a in angles]


def _meet(ring: Points, other: Points) -> bool:
    if not (ring and other):
        return False
    left, top, right, bottom = _box(ring)
    other_left, other_top, other_right, other_bottom = _box(other)
    return left < other_right and other_left < right and top < other_bottom and other_top < bottom


def _box(points: Points) -> tuple[float, float, float, float]:
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
