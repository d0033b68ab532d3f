"""Files in which people draw regions: XML of ASAP, ImageScope and HALO, QuPath GeoJSON, JSON of public Camelyon outlines.

What a file holds, before it is decided what it means. All but QuPath's count level-0 pixels from OpenSlide's corner. QuPath
shows only the bounds of a slide (``openslide.bounds-x`` and so on) and counts from their corner. XML is read by the standard
library's ElementTree: expat fetches no external entities, and since version 2.4.1 stops entities that expand without end.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from wsi_meta.annotations.class_names import class_of
from wsi_meta.annotations.imagescope import read_layers
from wsi_meta.errors import DataError
from wsi_meta.words import counted, first_line, from_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FRAME", "OUTLINE_ENDINGS", "TUMOR", "DrawnFile", "DrawnRegion", "closed", "collection", "feature", "read_drawn"]

logger = logging.getLogger(__name__)

OUTLINE_ENDINGS = (".xml", ".annotations", ".json", ".geojson")
ENCLOSING = ("polygon", "spline", "rectangle")
"""ASAP's types of annotations that enclose something."""
NOT_ENCLOSING = ("pointset", "dot", "measurement", "none", "polyline", "line", "arrow", "ruler", "point")
"""ASAP's other types, and those of programs that write its form."""
AUTOMATIC = re.compile(r"Annotation \d+")
"""How ASAP names what nobody gave a name or a group."""
FRAME = "wsi_meta"
"""Member of our GeoJSON's FeatureCollection that says where its coordinates count from."""
TUMOR = {"name": "Tumor", "color": [200, 0, 0]}
"""What QuPath is told of the class of tumor."""

FARTHEST = 1 << 21
"""Level-0 pixels that a vertex may lie from the corner: a glass slide of 76 mm has 1.5 million at 0.05 um."""

Origin = tuple[int, int]


@dataclass(frozen=True, eq=False)
class DrawnRegion:
    """A region that someone drew."""

    groups: tuple[str, ...]
    """Its class or group, then the group that this one is part of, and so on; empty where it has none."""
    rings: tuple[NDArray[np.float64], ...]
    """The outer one, then the holes: (n, 2), x and y in pixels of level 0 from the file's own corner."""
    name: str
    """Its own name; "" where it has none."""
    tumor: bool | None = None
    """Whether it is tumor or excluded, where the format itself says it; else None."""
    kind: str = ""
    """What it is in QuPath (annotation, detection, cell, tile, tmacore, root); "" or another word elsewhere."""
    hints: tuple[str, ...] = ()
    """Its name and other words, which say what it is only where they are known names of classes."""


@dataclass(frozen=True, eq=False)
class DrawnFile:
    """What a file holds."""

    path: Path
    regions: tuple[DrawnRegion, ...]
    """All that enclose something."""
    origin: Origin | None
    """Level-0 pixel, x and y, that its coordinates count from; None for GeoJSON that does not say."""
    slide: str | None = None
    """Fingerprint of the slide that it says it is of; None where it does not, as after another program."""
    idle: int = 0
    """How many annotations were left out because they enclose nothing."""


def read_drawn(path: Path) -> DrawnFile:
    """Read a file; its ending gives the format (``.xml``, HALO's ``.annotations``, ``.geojson``, ``.json``).

    Points, lines, objects without a geometry, and outlines and holes of less than three vertices are left out with a warning:
    they enclose nothing.

    Raises
    ------
    DataError
        when it is missing, damaged or in none of the formats, or is GeoJSON in which nothing encloses anything.
    """
    read = dict(zip(OUTLINE_ENDINGS, (_read_xml, _read_xml, _read_json, _read_json), strict=True)).get(path.suffix.lower())
    if read is None:
        expected = ".xml (ASAP, ImageScope), .annotations (HALO), .geojson (QuPath) or .json"
        raise DataError(f"{path}: ending '{path.suffix}'; expected outlines as {expected}")
    try:
        regions, origin, slide, others = read(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected outlines (.xml, .annotations, .geojson, .json)") from error
    except (OSError, ArithmeticError, AttributeError, LookupError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        deep = isinstance(error, RecursionError)
        told = (
            "nested too deeply, expected features with geometries" if deep else f"{type(error).__name__}: {first_line(error)}"
        )
        raise DataError(f"{path}: its outlines cannot be read ({told}); correct it or export it again") from error
    if others:
        told = ", ".join(sorted(others))
        logger.warning("%s: left out, for they enclose nothing: %s (%s)", path, counted(others.total(), "annotation"), told)
    whole = [region for region in regions if len(region.rings[0]) >= 3]
    if len(whole) < len(regions):
        short = counted(len(regions) - len(whole), "outline")
        logger.warning("%s: left out, for they enclose nothing: %s of one or two vertices", path, short)
    sound = tuple(replace(region, rings=tuple(ring for ring in region.rings if len(ring) >= 3)) for region in whole)
    if less := sum(len(region.rings) for region in whole) - sum(len(region.rings) for region in sound):
        logger.warning("%s: left out, for they enclose nothing: %s of less than three vertices", path, counted(less, "hole"))
    return DrawnFile(path, sound, origin, slide, others.total() + len(regions) - len(whole))


def collection(features: Sequence[dict[str, Any]], origin: Origin | None, **facts: Any) -> dict[str, Any]:
    """Return what a GeoJSON file of ours holds.

    Parameters
    ----------
    features : each from :func:`feature`
    origin : corner of what QuPath shows, level-0 pixels, from which they count; None where it is not known: they are level 0
    facts : what it says beside its frame, under :data:`FRAME`
    """
    qupath = {} if origin is None else {"origin_x": origin[0], "origin_y": origin[1]}
    frame = {"frame": "level-0" if origin is None else "qupath"} | qupath
    return {"type": "FeatureCollection", FRAME: frame | facts, "features": features}


def feature(kind: str, rings: list[Any], properties: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    """Return an object of a GeoJSON file.

    Parameters
    ----------
    kind : Polygon or MultiPolygon
    rings : its coordinates; each ring is :func:`closed`
    properties : as QuPath names them
    name : identifies it in QuPath; None for none
    """
    identity = {} if name is None else {"id": name}
    return {"type": "Feature", **identity, "geometry": {"type": kind, "coordinates": rings}, "properties": properties}


def closed(corners: list[list[float]]) -> list[list[float]]:
    """Return a ring as GeoJSON has it: the first corner again at the end."""
    return [*corners, corners[0]]


Content = tuple[list[DrawnRegion], Origin | None, str | None, "Counter[str]"]
"""Regions, the corner that they count from, the slide that they are of, and how many annotations of other types there are."""


def _read_xml(path: Path) -> Content:
    root = ElementTree.parse(path).getroot()
    readers = {"ASAP_Annotations": _read_asap, "Annotations": _read_imagescope}
    if root.tag not in readers:
        raise ValueError(f"root element '{root.tag}', expected ASAP_Annotations or Annotations")
    return readers[root.tag](root)


def _read_imagescope(root: ElementTree.Element) -> Content:
    """Its layer says what a region is, or what is written at the region where that is a known name of a class."""
    regions, others = [], Counter[str]()
    for shape in read_layers(root):
        if not shape.encloses:
            others[shape.kind] += 1
            continue
        rings = tuple(map(_ring, [shape.ring, *shape.holes]))
        groups, hints = (tuple(filter(None, [word])) for word in (shape.layer, shape.text))
        regions.append(DrawnRegion(groups, rings, shape.text or shape.layer, hints=hints))
    return regions, (0, 0), None, others


def _read_asap(root: ElementTree.Element) -> Content:
    """ASAP numbers the coordinates; an annotation without a group is what its name says, unless all names are ASAP's own."""
    within = {group.get("Name", ""): group.get("PartOfGroup", "None") for group in root.iterfind("./AnnotationGroups/Group")}
    regions, others = [], Counter[str]()
    for annotation in root.iterfind("./Annotations/Annotation"):
        name, group = annotation.get("Name", ""), annotation.get("PartOfGroup", "None")
        points = annotation.findall("./Coordinates/Coordinate")
        kind = annotation.get("Type", "Polygon")
        if kind.lower() in NOT_ENCLOSING or (not kind and len(points) < 3):
            others[kind or "no type"] += 1
            continue
        if kind.lower() not in ENCLOSING:
            raise ValueError(f"annotation '{name}' of the unknown type '{kind}', expected Polygon, Spline or Rectangle")
        points.sort(key=lambda point: float(point.get("Order", 0)))
        ring = _ring([(float(point.attrib["X"]), float(point.attrib["Y"])) for point in points])
        regions.append(DrawnRegion(_chain(group, within) if group not in ("None", "") else (name,), (ring,), name))
    if all(AUTOMATIC.fullmatch(word) for region in regions for word in region.groups):
        regions = [replace(region, groups=(), hints=region.groups) for region in regions]
    return regions, (0, 0), None, others


def _chain(group: str, within: dict[str, str]) -> tuple[str, ...]:
    """Return a group, the group that it is part of, and so on."""
    chain = [group]
    while (parent := within.get(chain[-1], "None")) not in ("None", "") and parent not in chain:
        chain.append(parent)
    return tuple(chain)


def _read_json(path: Path) -> Content:
    content = from_json(path.read_bytes())  # of bytes json tells the encoding: UTF-8, 16 or 32
    others = Counter[str]()
    if isinstance(content, dict) and {"positive", "negative"} & set(content):
        lists = [(group == "positive", part) for group in ("positive", "negative") for part in content.get(group, [])]
        regions = [DrawnRegion((), (_ring(part["vertices"]),), str(part.get("name", "")), tumor) for tumor, part in lists]
        return regions, (0, 0), None, others
    regions = []
    for feature in _features(content):
        polygons = list(_polygons(feature["geometry"], others))
        if polygons:
            regions += _regions_of(feature, polygons)
    if others and not regions:
        raise ValueError(f"{min(others)}, expected Polygon or MultiPolygon that encloses something")
    facts = content.get(FRAME) if isinstance(content, dict) else None
    return regions, _own_origin(facts), _own_slide(facts), others


def _features(content: Any) -> Iterator[dict[str, Any]]:
    """Return the features of a FeatureCollection, a list, a single feature or a mere geometry."""
    if isinstance(content, list):
        for part in content:
            if isinstance(part, list):
                raise TypeError("list where a feature should be")
            yield from _features(part)
    elif not isinstance(content, dict):
        raise TypeError(f"{type(content).__name__} where a feature should be")
    elif "features" in content:
        yield from _features(content["features"])
    elif "geometry" in content:
        yield content
    elif "coordinates" in content or "geometries" in content:
        yield {"geometry": content}
    else:
        raise ValueError(f"neither features nor a geometry in an object with {', '.join(map(str, content)) or 'nothing'}")


def _polygons(geometry: Any, others: Counter[str]) -> Iterator[tuple[NDArray[np.float64], ...]]:
    """Return the rings of each polygon of a geometry; count the parts that are none."""
    kind = "feature without geometry" if geometry is None else str(geometry["type"])
    if kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _polygons(part, others)
    elif kind in ("Polygon", "MultiPolygon"):
        for rings in (geometry["coordinates"] or [()]) if kind == "MultiPolygon" else [geometry["coordinates"]]:
            if rings:
                yield tuple(map(_ring, rings))
            else:
                others[f"empty {kind}"] += 1
    else:
        others[kind] += 1


def _regions_of(feature: dict[str, Any], polygons: list[tuple[NDArray[np.float64], ...]]) -> list[DrawnRegion]:
    """Return regions with the class, name and kind of a feature; QuPath wrote kinds as ids once: ``PathCellObject``."""
    properties = feature.get("properties") or {}
    (group, hints), name = class_of(properties), str(properties.get("name") or "")
    kind = str(properties.get("objectType") or properties.get("object_type") or feature.get("id") or "")
    kind = re.sub(r"^path|object$|_", "", kind.lower())
    return [DrawnRegion((group,) if group else (), rings, name or group, kind=kind, hints=hints) for rings in polygons]


def _own_slide(facts: Any) -> str | None:
    """Return the fingerprint of the slide that GeoJSON of ours says it is of; None for others."""
    return str(facts["slide"]) if isinstance(facts, dict) and "slide" in facts else None


def _own_origin(facts: Any) -> Origin | None:
    """Return the corner that GeoJSON of ours says its coordinates count from; None for others."""
    if facts is None:
        return None
    if facts["frame"] == "level-0":
        return 0, 0
    if facts["frame"] != "qupath":
        raise ValueError(f"frame {facts['frame']!r}, expected qupath or level-0")
    origin = int(facts["origin_x"]), int(facts["origin_y"])
    if max(map(abs, origin)) > FARTHEST:
        raise ValueError(f"origin {origin}, beyond any slide")
    return origin


def _ring(points: Any) -> NDArray[np.float64]:
    ring = np.array([[float(x), float(y)] for x, y, *_ in points], np.float64).reshape(-1, 2)
    if (lengths := set(map(len, points))) not in (set(), {2}, {3}):  # GeoJSON allows a height; commas for points make more
        raise ValueError(f"positions of {' or '.join(map(str, sorted(lengths)))} numbers, expected x and y with decimal points")
    if not np.isfinite(ring).all():
        raise ValueError("a vertex that is no number")
    if (far := abs(ring).max(initial=0)) > FARTHEST:
        raise ValueError(f"a vertex at {far:g}, beyond any slide")
    return ring
