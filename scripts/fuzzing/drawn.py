"""Damaged outlines, masks, detections and tables: refused, told, or read as a plain reader of the same file reads them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import numpy as np
import tifffile
from matplotlib.path import Path as Outlined
from numpy.typing import NDArray
from PIL import Image
from slide_files import write_slide

from fuzzing.commands import Ended, judged, line_with, run_command
from fuzzing.counts import Counts, Finding, Outcome
from fuzzing.damage import damage_blindly
from fuzzing.json_damage import damage_json
from fuzzing.pool import run_trials
from fuzzing.sound import draw_tissue
from fuzzing.standin import HashPredictor, scan_command
from wsi_meta.annotations.outlines import read_annotations
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.tiling.tissue import TissueMask

__all__ = ["TRIALS", "run", "trial"]

TRIALS = 300
SHAPE = (128, 160)
"""Pixels that are drawn on, rows and columns."""
SQUARES = (((20.0, 30.0), (90.0, 30.0), (90.0, 100.0), (20.0, 100.0)), ((100.0, 10.0), (150.0, 20.0), (120.0, 60.0)))
"""Corners of what is outlined."""
SAME_SHARE = 0.98
"""Share of pixels that two ways to fill an outline agree on."""
TEXTS = ("\0", ";", "\t", ",", '"', "nan", "-1", "1e400", "inf", "9" * 30, "\n", "\r", "é", "x", "", " ", "<", "&", "]")
ENCODINGS = ("utf-16", "utf-8-sig", "latin-1", "utf-32")

Rng = np.random.Generator
Mask = NDArray[np.bool_]


def run(trials: int, seed: int, folder: Path, *, until: float = math.inf) -> Counts:
    """Make trials; see :class:`fuzzing.counts.Part`."""
    return run_trials("drawn", trial, trials, seed, folder, until=until)


def trial(seed: int, number: int, folder: Path) -> Finding:
    """Damage what somebody drew or listed, and read it."""
    rng = np.random.default_rng([seed, number])
    kinds: list[Callable[[Path, Rng], tuple[str, Ended, str]]] = [_asap, _geojson, _tissue_mask, _detections, _stages]
    did, ended, wrong = kinds[number % len(kinds)](folder, rng)
    outcome, how = judged(ended)
    if wrong and not outcome.failed:
        return Finding(number, Outcome.WRONG, f"{did}: {wrong}")
    return Finding(number, outcome, f"{did}: {how}")


def _damage_text(text: str, rng: Rng) -> tuple[bytes, str]:
    """Change some characters of a text, its encoding, or its bytes."""
    way = rng.random()
    if way < 0.15:
        encoding = ENCODINGS[int(rng.integers(len(ENCODINGS)))]
        return text.encode(encoding), f"in {encoding}"
    if way < 0.5:
        stored = bytearray(text.encode())
        did_blindly = damage_blindly(stored, rng)
        return bytes(stored), did_blindly
    did = []
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        at, odd = int(rng.integers(len(text))), TEXTS[int(rng.integers(len(TEXTS)))]
        text = text[:at] + odd + text[at + int(rng.integers(3)) :]
        did.append(f"{odd!r} at {at}")
    return text.encode("utf-8", "surrogatepass"), ", ".join(did)


def _drawn_by(path: Path) -> tuple[Ended, Mask | None]:
    """Draw the outlines of a file; None where it is refused."""
    drawn: list[Mask] = []

    @click.command("draw")
    @click.argument("path", type=click.Path(path_type=Path))
    def draw(path: Path) -> None:
        drawn.append(read_annotations(path).mask(SHAPE, 1.0))

    ended = run_command("draw", path, line=line_with(draw))
    return ended, drawn[0] if drawn else None


def _compared(ended: Ended, drawn: Mask | None, plain: Callable[[], Mask]) -> str:
    """Return in what a drawing differs from the sound one and from a plain reader's; a warning tells of a difference."""
    if drawn is None or ended.stderr or (drawn == _fill(SQUARES)).mean() > SAME_SHARE:
        return ""
    try:
        there = plain()
    except Exception as error:
        return f"drawn, although a plain reader fails ({type(error).__name__})"
    return "" if (drawn == there).mean() > SAME_SHARE else "drawn otherwise than by a plain reader"


def _fill(rings: Any) -> Mask:
    """Fill rings with matplotlib: a pixel is inside where its centre is."""
    rows, cols = np.indices(SHAPE)
    centres = np.stack([cols.ravel() + 0.5, rows.ravel() + 0.5], -1)
    inside = [Outlined([(float(x), float(y)) for x, y in ring]).contains_points(centres) for ring in rings]
    return np.any(inside, axis=0).reshape(SHAPE) if inside else np.zeros(SHAPE, bool)


def _asap(folder: Path, rng: Rng) -> tuple[str, Ended, str]:
    def points(ring: Any) -> str:
        return "".join(f'<Coordinate Order="{number}" X="{x}" Y="{y}" />' for number, (x, y) in enumerate(ring))

    rings = "".join(
        f'<Annotation Name="a{number}" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58"><Coordinates>{points(ring)}'
        "</Coordinates></Annotation>\n"
        for number, ring in enumerate(SQUARES)
    )
    groups = '<AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#00ff00" /></AnnotationGroups>'
    stored, did = _damage_text(
        f'<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>\n{rings}</Annotations>{groups}</ASAP_Annotations>', rng
    )
    (path := folder / "a.xml").write_bytes(stored)
    ended, drawn = _drawn_by(path)

    def plain() -> Mask:
        found = ElementTree.parse(path).getroot().iter("Annotation")
        return _fill([[(p.attrib["X"], p.attrib["Y"]) for p in _ordered(ring)] for ring in found if len(_ordered(ring)) > 1])

    return f"ASAP, {did}", ended, _compared(ended, drawn, plain)


def _ordered(ring: ElementTree.Element) -> list[ElementTree.Element]:
    return sorted(ring.iter("Coordinate"), key=lambda point: float(point.get("Order", 0)))


def _geojson(folder: Path, rng: Rng) -> tuple[str, Ended, str]:
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[list(point) for point in (*ring, ring[0])]]},
            "properties": {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}},
        }
        for ring in SQUARES
    ]
    content: Any = {"type": "FeatureCollection", "features": features}
    if rng.random() < 0.6:
        did = damage_json(content, rng)
        stored = json.dumps(content).encode()
    else:
        stored, did = _damage_text(json.dumps(content), rng)
    (path := folder / "a.geojson").write_bytes(stored)
    ended, drawn = _drawn_by(path)

    def plain() -> Mask:
        found = json.loads(path.read_bytes().decode("utf-8-sig"))
        polygons = [feature["geometry"]["coordinates"] for feature in found["features"]]
        return np.any([_fill([exterior]) & ~_fill(holes) for exterior, *holes in polygons] or [_fill([])], axis=0)

    return f"GeoJSON, {did}", ended, _compared(ended, drawn, plain)


def _tissue_mask(folder: Path, rng: Rng) -> tuple[str, Ended, str]:
    """Scan by a damaged mask: the cells that are scanned are those of the mask that a plain reader shows."""
    slide = write_slide(folder / "slide.tif", draw_tissue(np.random.default_rng(0), SHAPE))
    mask = np.zeros((64, 80), np.uint8)
    mask[8:40, 16:48] = 255
    path = folder / ("mask.tif" if rng.random() < 0.5 else "mask.png")
    if path.suffix == ".png":
        Image.fromarray(mask).save(path)
    else:
        compression = [None, "adobe_deflate", "lzw"][int(rng.integers(3))]
        tifffile.imwrite(path, mask, compression=compression, tile=(32, 32) if rng.random() < 0.5 else None)
    content = bytearray(path.read_bytes())
    did = f"{path.suffix} mask, {damage_blindly(content, rng)}"
    path.write_bytes(content)
    ended = run_command("scan", slide, out := folder / "heat.zarr", "--tissue-mask", path, line=scan_command(HashPredictor()))
    if ended.code:
        return did, ended, ""
    heatmap = Heatmap.open(out)
    return did, ended, _compared_cells(heatmap, heatmap.status != Status.BACKGROUND, path, mask > 0)


def _compared_cells(heatmap: Heatmap, scanned: Mask, path: Path, sound: Mask) -> str:
    def cells(mask: Mask) -> Mask:
        downsample = SHAPE[0] / mask.shape[0], SHAPE[1] / mask.shape[1]
        return TissueMask(mask, downsample, "plain").cells(heatmap.grid)

    if np.array_equal(scanned, cells(sound)):
        return ""
    try:
        read: Any = np.asarray(Image.open(path)) if path.suffix == ".png" else tifffile.imread(path)
    except Exception as error:
        return f"scanned by a mask that a plain reader does not read ({type(error).__name__})"
    return "" if np.array_equal(scanned, cells(read != 0)) else "scanned by another mask than a plain reader's"


def _detections(folder: Path, rng: Rng) -> tuple[str, Ended, str]:
    """Judge damaged detections: what is judged can be read by a plain reader, or a line tells."""
    for name in ("detections", "truth"):
        (folder / name).mkdir()
    outline = {"positive": [{"vertices": [list(point) for point in SQUARES[0]]}], "negative": []}
    (folder / "truth" / "a.json").write_text(json.dumps(outline))
    rows = [(0.9, 50, 60), (0.4, 140, 20), (0.7, 5, 120)]
    stored, did = _damage_text("".join(f"{score},{x},{y}\n" for score, x, y in rows), rng)
    (path := folder / "detections" / "a.csv").write_bytes(stored)
    ended = run_command("froc", folder / "detections", folder / "truth", "--json", "--exclude", "none")
    if ended.code or ended.stderr:
        return f"detections, {did}", ended, ""
    try:
        text = path.read_bytes().decode("utf-16" if stored[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        separator = next((mark for mark in ";\t" if mark in text), ",")
        plain = [tuple(map(float, row)) for row in csv.reader(text.splitlines(), delimiter=separator) if any(row)]
    except ValueError as error:
        return f"detections, {did}", ended, f"judged, although a plain reader fails ({error})"
    best = max((row[0] for row in plain), default=0.0)
    return f"detections, {did}", ended, "" if all(len(row) == 3 for row in plain) and math.isfinite(best) else "odd rows"


def _stages(folder: Path, rng: Rng) -> tuple[str, Ended, str]:
    """Stage patients by a damaged table: every patient has the stage of its five labels, or a line tells."""
    labels = ("negative", "micro", "macro", "itc", "negative")
    rows = [f"patient_{patient:03}_node_{node}.tif,{labels[node]}" for patient in range(2) for node in range(5)]
    stored, did = _damage_text("\n".join(["patient,stage", *rows, ""]), rng)
    (path := folder / "nodes.csv").write_bytes(stored)
    ended = run_command("stage", path, "--json")
    if ended.code or ended.stderr:
        return f"stages, {did}", ended, ""
    found = set(ended.result["stages"].values())
    names = [label for row in path.read_text("utf-8", "replace").splitlines() for label in labels if row.endswith(f",{label}")]
    same = found == {"pN2"} or sorted(names) != sorted(labels * 2)
    return f"stages, {did}", ended, "" if same else f"stages {sorted(found)} of the same labels"
