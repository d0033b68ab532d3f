"""What someone corrects on a map: lesions that are none, and missed ones. A GeoJSON file beside the store, which QuPath reads.

``NAME.corrections.geojson`` beside ``NAME.zarr``: missed lesions have the class Tumor, false ones the class Normal, so that
:func:`wsi_meta.read_annotations` takes the first for tumor and excludes the second. The coordinates are in QuPath's frame, and
the file says so.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from wsi_meta.annotations.corrected import corrections_beside
from wsi_meta.annotations.outline_files import FRAME, TUMOR, closed, collection, feature
from wsi_meta.errors import OutputExistsError
from wsi_meta.files.fingerprints import may_be_one
from wsi_meta.files.locks import locked
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.writing import written_whole
from wsi_meta.tiling.grid import PatchGrid
from wsi_meta.words import from_json

__all__ = ["Correction", "Corrections", "corrections_path", "read_corrections", "write_corrections"]

CLASSES = {
    "missed": ("missed lesion", TUMOR),
    "false": ("not a lesion", {"name": "Normal", "color": [0, 120, 160]}),
}
"""Name and QuPath's classification of each kind of correction."""
NAMESPACE = UUID("b0b4a3b1-6c0e-4f5e-9a7d-2f8f0a0f5c11")
MOST_CORRECTIONS, MOST_NUMBERS = 2000, 400_000
"""Corrections, and coordinates in all of them, that are taken at most."""
FILE_BYTES = 64 << 20
"""A longer file is none of ours."""
WAIT_S = 5.0

Ring = tuple[float, ...]
Polygon = tuple[Ring, ...]


@dataclass(frozen=True)
class Correction:
    """One correction."""

    kind: str
    """``missed``, a lesion that the map does not show, or ``false``, a lesion of the map that is none."""
    polygons: tuple[Polygon, ...]
    """Each the outer ring, then its holes: x, y, x, y, ... in level-0 pixels, the last corner joined to the first."""


@dataclass(frozen=True)
class Corrections:
    """All corrections of a map."""

    found: tuple[Correction, ...] = ()
    revision: str = ""
    """Names the content of the file that they come from; empty where there was none."""
    problem: str | None = field(default=None, compare=False)
    """Why there are none, where a file stands there that is not ours."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        found = [{"kind": one.kind, "polygons": one.polygons} for one in self.found]
        return {"corrections": found, "revision": self.revision, "problem": self.problem}

    @classmethod
    def from_dict(cls, parts: Any, grid: PatchGrid) -> Corrections:
        """Return the corrections that a page sent.

        Raises
        ------
        ValueError
            when they are anything but rings on the slide, or too many.
        """
        if not isinstance(parts, dict) or not isinstance(parts.get("revision"), str):
            raise ValueError("expected an object with corrections and a revision")
        given = parts.get("corrections")
        if not isinstance(given, list) or len(given) > MOST_CORRECTIONS:
            raise ValueError(f"expected a list of at most {MOST_CORRECTIONS} corrections")
        found = tuple(_correction(one, grid) for one in given)
        numbers = sum(len(ring) for one in found for polygon in one.polygons for ring in polygon)
        if numbers > MOST_NUMBERS:
            raise ValueError(f"{numbers} coordinates; expected at most {MOST_NUMBERS}")
        return cls(found, parts["revision"])


def corrections_path(heatmap: Heatmap) -> Path:
    """Return the file of a map's corrections."""
    return corrections_beside(heatmap.path)


def read_corrections(heatmap: Heatmap) -> Corrections:
    """Return the corrections beside a map; none where there is no file, and a `problem` where it is not ours."""
    path = corrections_path(heatmap)
    try:
        content = _content(path)
        return Corrections() if content is None else _parse(content, heatmap)
    except (OSError, LookupError, TypeError, ValueError):
        return Corrections(
            problem=f"{path.name}: not corrections of this slide as this page saves them, or edited elsewhere; it is left alone"
        )


def write_corrections(heatmap: Heatmap, given: Corrections) -> Corrections:
    """Write corrections beside a map, whole or not at all.

    Returns
    -------
    The same corrections with their new revision.

    Raises
    ------
    OutputExistsError
        when the file is not ours, or not the one that `given` was made from: someone else corrects too.
    OutputPathError
        when it cannot be written.
    """
    path = corrections_path(heatmap)
    with locked(path, wait_s=WAIT_S):
        before = read_corrections(heatmap)
        if before.problem is not None:
            raise OutputExistsError(f"{before.problem}; move it away to correct here")
        if before.revision != given.revision:
            raise OutputExistsError(f"{path.name}: was changed elsewhere meanwhile; read it and change it again")
        content = _written(heatmap, given).encode()
        with written_whole(path) as partial:
            partial.write_bytes(content)
    return Corrections(given.found, _revision(content))


def _content(path: Path) -> bytes | None:
    try:
        if path.stat().st_size > FILE_BYTES:
            raise ValueError("too long")
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _parse(content: bytes, heatmap: Heatmap) -> Corrections:
    """Return the corrections of a file of ours; ValueError, LookupError or TypeError where it is another one."""
    parts = from_json(content)
    facts = parts[FRAME]
    if set(parts) != set(collection([], None)):
        raise ValueError("more than is written here, which would be lost")
    if facts["corrections"] != 1 or not may_be_one(facts["slide"], heatmap.record.identity.slide):
        raise ValueError("of another version or slide")
    x, y = (facts["origin_x"], facts["origin_y"]) if facts["frame"] == "qupath" else (0, 0)
    found = []
    for one in parts["features"]:
        if not set(one) <= set(feature("", [], {}, "")) or one["properties"] != _properties(
            one["properties"][FRAME]["correction"]
        ):
            raise ValueError("words of someone else, which would be lost when it is written again")
        rings = [[_flat(ring, x, y) for ring in polygon] for polygon in one["geometry"]["coordinates"]]
        found.append({"kind": one["properties"][FRAME]["correction"], "polygons": rings})
    return Corrections.from_dict({"corrections": found, "revision": _revision(content)}, heatmap.grid)


def _written(heatmap: Heatmap, given: Corrections) -> str:
    origin = heatmap.record.slide.corner
    features = [_feature(one, origin or (0, 0)) for one in given.found]
    return json.dumps(collection(features, origin, corrections=1, slide=heatmap.record.identity.slide)) + "\n"


def _feature(one: Correction, origin: tuple[int, int]) -> dict[str, Any]:
    polygons = [[_counted_from(ring, *origin) for ring in polygon] for polygon in one.polygons]
    identity = str(uuid5(NAMESPACE, json.dumps([one.kind, one.polygons])))
    return feature("MultiPolygon", polygons, _properties(one.kind), identity)


def _properties(kind: str) -> dict[str, Any]:
    name, classification = CLASSES[kind]
    return {"objectType": "annotation", "name": name, "classification": classification, FRAME: {"correction": kind}}


def _correction(one: Any, grid: PatchGrid) -> Correction:
    if not isinstance(one, dict) or one.get("kind") not in CLASSES:
        raise ValueError(f"expected a correction of the kinds {', '.join(CLASSES)}")
    polygons = one.get("polygons")
    if not isinstance(polygons, list) or not polygons or not all(isinstance(rings, list) and rings for rings in polygons):
        raise ValueError("expected polygons, each a list of rings")
    return Correction(one["kind"], tuple(tuple(_ring(ring, grid) for ring in polygon) for polygon in polygons))


def _ring(ring: Any, grid: PatchGrid) -> Ring:
    if not isinstance(ring, list) or len(ring) < 6 or len(ring) % 2 or len(ring) > MOST_NUMBERS:
        raise ValueError("expected rings of three corners or more: x, y, x, y, ...")
    if not all(type(value) in (int, float) and isfinite(value) for value in ring):
        raise ValueError("expected corners that are numbers")
    numbers = [round(float(value), 2) for value in ring]
    limits = (grid.width, grid.height)
    if not all(0 <= value <= limits[place % 2] for place, value in enumerate(numbers)):
        raise ValueError("expected corners on the slide")
    return tuple(numbers)


def _counted_from(ring: Ring, x: int, y: int) -> list[list[float]]:
    return closed([[round(left - x, 2), round(top - y, 2)] for left, top in zip(ring[::2], ring[1::2], strict=True)])


def _flat(ring: Any, x: int, y: int) -> list[float]:
    return [value for left, top in ring[:-1] for value in (left + x, top + y)]


def _revision(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
