"""Outlines of tumor drawn by people: ASAP XML, QuPath GeoJSON, the JSON of public Camelyon outlines.

Coordinates are level-0 pixels, x first; pixel (x, y) covers [x, x + 1) x [y, y + 1). XML is read by the standard library's
ElementTree: expat fetches no external entities, and since version 2.4.1 stops entities that expand without end.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from wsi_meta.errors import DataError, first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EXCLUDED_GROUPS", "OUTLINE_ENDINGS", "TUMOR_GROUPS", "Annotations", "Outline", "fill_outlines", "read_annotations"]

logger = logging.getLogger(__name__)

OUTLINE_ENDINGS = (".xml", ".json", ".geojson")
TUMOR_GROUPS = ("tumor", "tumour", "_0", "_1", "metastases", "metastasis")
"""Names, in lower case, under which tumor is outlined: Camelyon16's (Tumor, _0, _1) and CAMELYON17's (metastases)."""
ENCLOSING = ("polygon", "spline", "rectangle")
"""ASAP's types of annotations that enclose something; PointSet, Dot and Measurement do not."""
EXCLUDED_GROUPS = ("exclusion", "_2", "normal")
"""Names, in lower case, of what is removed from the tumor."""


@dataclass(frozen=True, eq=False)
class Outline:
    """A closed ring and the holes in it."""

    vertices: NDArray[np.float64]
    """Shape (n, 2), x and y in level-0 pixels; the last is joined to the first."""
    holes: tuple[NDArray[np.float64], ...] = ()
    name: str = ""

    @property
    def area(self) -> float:
        """Area within the ring less that of its holes, level-0 pixels squared (shoelace formula)."""
        return _area(self.vertices) - sum(map(_area, self.holes))


@dataclass(frozen=True, eq=False)
class Annotations:
    """What was outlined on a slide."""

    tumor: tuple[Outline, ...] = ()
    excluded: tuple[Outline, ...] = ()
    """Removed from the tumor wherever they overlap it."""

    def mask(self, shape: tuple[int, int], downsample: float, *, corner: tuple[int, int] = (0, 0)) -> NDArray[np.bool_]:
        """Draw the tumor at a level, or in a window of it.

        A pixel is tumor when its centre is. A centre on an outline belongs to the side of greater x, then of greater y: where
        two outlines share an edge, exactly one of them gets it.

        Parameters
        ----------
        shape : (height, width) of the window, pixels of the level
        downsample : level-0 pixels along a side of the level's pixel
        corner : x and y of the window's upper left corner, pixels of the level; may be negative

        Returns
        -------
        bool array of `shape`
        """
        drawn = [fill_outlines(outlines, shape, downsample, corner=corner) for outlines in (self.tumor, self.excluded)]
        return drawn[0] & ~drawn[1]


def fill_outlines(
    outlines: Iterable[Outline], shape: tuple[int, int], downsample: float, *, corner: tuple[int, int] = (0, 0)
) -> NDArray[np.bool_]:
    """Fill outlines into a new mask; parameters and result as :meth:`Annotations.mask`.

    A ring is filled by the even-odd rule, also where it crosses itself: along a row of pixel centres the inside changes
    where the ring is crossed. The work grows with the number of such crossings and the area of the ring's bounding box.
    """
    mask = np.zeros(shape, bool)
    for outline in outlines:
        rings = [ring / downsample - corner for ring in (outline.vertices, *outline.holes)]
        left, top = np.clip(np.floor(rings[0].min(0)), 0, shape[::-1]).astype(int)
        right, bottom = np.clip(np.ceil(rings[0].max(0)), 0, shape[::-1]).astype(int)
        if right > left and bottom > top:
            filled = [_fill_ring(ring - (left, top), (bottom - top, right - left)) for ring in rings]
            mask[top:bottom, left:right] |= filled[0] & ~np.any(filled[1:], axis=0)
    return mask


def read_annotations(
    path: str | Path, *, tumor: Iterable[str] = TUMOR_GROUPS, excluded: Iterable[str] = EXCLUDED_GROUPS
) -> Annotations:
    """Read a slide's outlines; the file's ending gives the format (``.xml``, ``.geojson``, ``.json``).

    Parameters
    ----------
    path : ASAP XML (an annotation's group, else its name, says what it is; a group may be part of another), QuPath GeoJSON (the
        classification says it), or JSON with lists ``positive`` and ``negative`` of ``vertices``
    tumor, excluded : names of groups and classifications, in any case; ``Tumor: Positive`` counts as ``Tumor``

    Returns
    -------
    Annotations; without outlines where the file has none. Left out with a warning: outlines of one or two vertices and point
    sets, which enclose nothing, and features without a classification beside tumor that has one. Where no feature of a file is
    classified, all of them are tumor.

    Raises
    ------
    DataError
        when the file is missing, damaged, in none of the formats, or holds a group of another name, or features without a
        classification beside others of which none is tumor.
    """
    path = Path(path)
    kinds = {"negative": False, "positive": True}
    kinds |= {name.lower(): kind for kind, names in ((False, excluded), (True, tumor)) for name in names}
    read = {".xml": _read_asap, ".geojson": _read_json, ".json": _read_json}.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path}: ending '{path.suffix}'; expected outlines as .xml (ASAP), .geojson (QuPath) or .json")
    try:
        found = _kinds_of(path, list(read(path)), kinds)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, ElementTree.ParseError) as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{path}: its outlines cannot be read ({told}); correct it or export it again") from error
    whole = [(kind, outline) for kind, outline in found if len(outline.vertices) >= 3]
    if len(whole) < len(found):
        logger.warning("%s: %d outlines of one or two vertices enclose nothing, left out", path, len(found) - len(whole))
    return Annotations(*(tuple(outline for kind, outline in whole if kind == wanted) for wanted in (True, False)))


def _read_asap(path: Path) -> Iterator[tuple[list[str], Outline]]:
    """Return groups, from the innermost, and outline of each annotation; ASAP numbers the coordinates."""
    root = ElementTree.parse(path).getroot()
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"root element '{root.tag}', expected ASAP_Annotations")
    within = {group.get("Name", ""): group.get("PartOfGroup", "None") for group in root.iterfind("./AnnotationGroups/Group")}
    open_types: list[str] = []
    for annotation in root.iterfind("./Annotations/Annotation"):
        name, group = annotation.get("Name", ""), annotation.get("PartOfGroup", "None")
        if (kind := annotation.get("Type", "Polygon")).lower() not in ENCLOSING:
            open_types.append(kind)
            continue
        points = sorted(annotation.iterfind("./Coordinates/Coordinate"), key=lambda point: float(point.get("Order", 0)))
        ring = _ring([(float(point.attrib["X"]), float(point.attrib["Y"])) for point in points])
        yield [name] if group == "None" else _chain(group, within), Outline(ring, name=name)
    if open_types:
        told = ", ".join(sorted(set(open_types)))
        logger.warning("%s: %d annotations (%s) enclose nothing, left out", path, len(open_types), told)


def _chain(group: str, within: dict[str, str]) -> list[str]:
    """Return a group, the group that it is part of, and so on."""
    chain = [group]
    while (parent := within.get(chain[-1], "None")) != "None" and parent not in chain:
        chain.append(parent)
    return chain


def _read_json(path: Path) -> Iterator[tuple[list[str], Outline]]:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict) and {"positive", "negative"} & set(content):
        for group in ("positive", "negative"):
            for region in content.get(group, []):
                yield [group], Outline(_ring(region["vertices"]), name=str(region.get("name", "")))
        return
    features = content.get("features", [content]) if isinstance(content, dict) else content
    for feature in features:
        yield from _read_feature(feature)


def _read_feature(feature: dict[str, Any]) -> Iterator[tuple[list[str], Outline]]:
    """Return class (none where it has none) and outlines of a GeoJSON feature.

    QuPath writes a derived class with colons or as a list of names.
    """
    geometry, properties = feature["geometry"], feature.get("properties") or {}
    classification = properties.get("classification") or {"name": ""}
    group = str(classification["name"] if "name" in classification else classification["names"][0])
    if geometry["type"] not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"a {geometry['type']}, expected Polygon or MultiPolygon")
    groups = [] if group.lower() in ("", "unclassified") else [group]
    for exterior, *holes in geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]:
        yield groups, Outline(_ring(exterior), tuple(map(_ring, holes)), str(properties.get("name") or group or "tumor"))


def _ring(points: Any) -> NDArray[np.float64]:
    ring = np.array([[float(x), float(y)] for x, y, *_ in points], np.float64).reshape(-1, 2)
    if not np.isfinite(ring).all():
        raise ValueError("a vertex that is no number")
    return ring


def _kinds_of(path: Path, found: list[tuple[list[str], Outline]], kinds: dict[str, bool]) -> list[tuple[bool, Outline]]:
    """Return of each outline whether it is tumor (True) or excluded (False), without those that say neither."""
    classified = [(_kind_of(groups, kinds), outline) for groups, outline in found if groups]
    others = [(True, outline) for groups, outline in found if not groups]
    if not classified or not others:
        return classified or others
    if not any(kind for kind, _ in classified):
        raise ValueError(
            f"{len(others)} outlines without a class beside others of which none is tumor, expected a class for each"
        )
    logger.warning("%s: %d outlines without a class beside classified ones are not taken for tumor", path, len(others))
    return classified


def _kind_of(groups: list[str], kinds: dict[str, bool]) -> bool:
    """Tell by the names of a group, and of those it is part of, whether it is tumor (True) or excluded (False)."""
    names = [group.lower().split(":")[0].strip() for group in groups]
    for name in names:
        if name in kinds:
            return kinds[name]
    raise ValueError(f"group '{groups[0]}' is neither tumor nor excluded, expected one of {', '.join(kinds)}")


def _fill_ring(ring: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill a ring (x, y in pixels of the mask) by the even-odd rule on pixel centres; bool array of `shape`."""
    height, width = shape
    start, end = ring, np.roll(ring, -1, 0)
    # an edge crosses the rows whose centre, row + 0.5, lies in [its lower end, its upper end)
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first, after = (np.clip(np.ceil(y - 0.5), 0, height).astype(np.int64) for y in (low, high))
    count = after - first
    edge = np.repeat(np.arange(len(ring)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    share = (row + 0.5 - start[edge, 1]) / (end[edge, 1] - start[edge, 1])
    x = start[edge, 0] + share * (end[edge, 0] - start[edge, 0])
    col = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    crossed = np.zeros(height * (width + 1), np.uint8)
    np.add.at(crossed, row * (width + 1) + col, np.uint8(1))  # may wrap round at 256, which keeps it odd or even
    inside = np.bitwise_xor.accumulate(crossed.reshape(height, width + 1) & 1, axis=1)
    return np.asarray(inside[:, :width], bool)


def _area(ring: NDArray[np.float64]) -> float:
    x, y = (ring - ring[:1]).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
