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
TUMOR_GROUPS = ("tumor", "_0", "_1", "metastases", "metastasis")
"""Names, in lower case, under which tumor is outlined: Camelyon16's (Tumor, _0, _1) and CAMELYON17's (metastases)."""
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
    path : ASAP XML (an annotation's group, else its name, says what it is), QuPath GeoJSON (the classification says it;
        without one it is tumor), or JSON with lists ``positive`` and ``negative`` of ``vertices``
    tumor, excluded : names of groups and classifications, in any case; ``Tumor: Positive`` counts as ``Tumor``

    Returns
    -------
    Annotations; without outlines where the file has none. Outlines of one or two vertices enclose nothing: they are left
    out with a warning.

    Raises
    ------
    DataError
        when the file is missing, damaged, in none of the formats, or holds a group of another name.
    """
    path = Path(path)
    kinds = {"negative": False, "positive": True}
    kinds |= {name.lower(): kind for kind, names in ((False, excluded), (True, tumor)) for name in names}
    read = {".xml": _read_asap, ".geojson": _read_json, ".json": _read_json}.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path}: ending '{path.suffix}'; expected outlines as .xml (ASAP), .geojson (QuPath) or .json")
    try:
        found = [(_kind_of(group, kinds), outline) for group, outline in read(path)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, ElementTree.ParseError) as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{path}: its outlines cannot be read ({told}); correct it or export it again") from error
    whole = [(kind, outline) for kind, outline in found if len(outline.vertices) >= 3]
    if len(whole) < len(found):
        logger.warning("%s: %d outlines of one or two vertices enclose nothing, left out", path, len(found) - len(whole))
    return Annotations(*(tuple(outline for kind, outline in whole if kind == wanted) for wanted in (True, False)))


def _read_asap(path: Path) -> Iterator[tuple[str, Outline]]:
    """Return group and outline of each annotation; ASAP numbers the coordinates."""
    root = ElementTree.parse(path).getroot()
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"root element '{root.tag}', expected ASAP_Annotations")
    for annotation in root.iterfind("./Annotations/Annotation"):
        name, group = annotation.get("Name", ""), annotation.get("PartOfGroup", "None")
        points = sorted(annotation.iterfind("./Coordinates/Coordinate"), key=lambda point: float(point.get("Order", 0)))
        ring = _ring([(float(point.attrib["X"]), float(point.attrib["Y"])) for point in points])
        yield name if group == "None" else group, Outline(ring, name=name)


def _read_json(path: Path) -> Iterator[tuple[str, Outline]]:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict) and {"positive", "negative"} & set(content):
        for group in ("positive", "negative"):
            for region in content.get(group, []):
                yield group, Outline(_ring(region["vertices"]), name=str(region.get("name", "")))
        return
    features = content.get("features", [content]) if isinstance(content, dict) else content
    for feature in features:
        yield from _read_feature(feature)


def _read_feature(feature: dict[str, Any]) -> Iterator[tuple[str, Outline]]:
    """Return class and outlines of a GeoJSON feature; QuPath writes a derived class with colons or as a list of names."""
    geometry, properties = feature["geometry"], feature.get("properties") or {}
    classification = properties.get("classification") or {"name": "tumor"}
    group = str(classification["name"] if "name" in classification else classification["names"][0])
    if geometry["type"] not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"a {geometry['type']}, expected Polygon or MultiPolygon")
    for exterior, *holes in geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]:
        yield group, Outline(_ring(exterior), tuple(map(_ring, holes)), str(properties.get("name") or group))


def _ring(points: Any) -> NDArray[np.float64]:
    ring = np.array([[float(x), float(y)] for x, y, *_ in points], np.float64).reshape(-1, 2)
    if not np.isfinite(ring).all():
        raise ValueError("a vertex that is no number")
    return ring


def _kind_of(group: str, kinds: dict[str, bool]) -> bool:
    """Tell by a group's name whether it outlines tumor (True) or what is excluded (False)."""
    name = group.lower().split(":")[0].strip()
    if name not in kinds:
        raise ValueError(f"group '{group}' is neither tumor nor excluded, expected one of {', '.join(kinds)}")
    return kinds[name]


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
