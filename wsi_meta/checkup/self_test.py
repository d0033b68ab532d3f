"""A drawn slide through both modes and every export, and by how many cells each of them is off."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.checkup.findings import Part

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from wsi_meta.heatmaps.store import Heatmap
    from wsi_meta.inference.predictor import Predictor
    from wsi_meta.models.model import Model

    Map = NDArray[np.floating[Any]]

__all__ = ["offset", "self_test"]

CELL_PX = 32
CELLS = 7
"""Along a side of the slide: as many patches as two cores compute in some seconds, and enough of them to tell a shift."""
BATCH = 10
"""Patches of a pass. Passes are filled up, so larger ones would compute in vain; 25 patches are three of these."""
REACH = 2
"""Cells by which a map is moved each way to find where it fits."""
LEAST_SHARED = 0.4
"""Share of the cells that must lie over each other for a fit to count."""
FLOATS = (0.001, 0.0005)
"""Difference of probability in fp32, at most and on average, between the map of patch mode and patches cut by hand, which see
the same pixels."""
ROUNDED = (0.08, 0.012)
"""The same in bf16 and int8: the bar of one cell in a thousand, and twice that of the mean; 0.017 and 0.0036 are usual."""
DENSE_MEAN = 0.2
"""The average in dense mode, which sees more of the slide and its JPEG; 0.09 is usual."""
AGAIN = "scan nothing with this installation; install wsi-meta and its libraries again, or report this"


@dataclass(frozen=True)
class Scanned:
    """One scan of the drawn slide."""

    mode: str
    heatmap: Heatmap
    slide: Path
    off: int
    """Cells by which the map is off, along rows or columns, whichever is more."""
    difference: float
    """Of probability, between the map and patches cut by hand that the plain network saw: the largest one."""
    mean_difference: float


def self_test(
    folder: Path,
    model: Model | None = None,
    make_predictor: Callable[..., Predictor] | None = None,
    by_hand: Callable[[Model, torch.Tensor], Map] | None = None,
) -> Part:
    """Scan a drawn slide in both modes, write every export, and compare each with patches that are cut by hand.

    Patch mode reads a lossless file with OpenSlide, dense mode one of JPEG tiles with the direct reader.

    Parameters
    ----------
    folder : for the files; they stay
    model : None is the embedded one
    make_predictor : called with the model, `dense` and `batch_size`; None makes the usual ones
    by_hand : gives the logits of the patches to compare with; None asks the plain network, in float32 on the CPU
    """
    from wsi_meta.inference.predictor import Predictor
    from wsi_meta.models.model import load_model

    began = time.perf_counter()
    model = model or load_model()
    makers = make_predictor or Predictor
    image, slides = _draw(folder, model.card.preprocessing.mpp)
    by_patch = makers(model, dense=False, batch_size=BATCH)
    expected = _expected(image, model, by_hand or _plain_logits)
    scans = [_scan(folder, "patch", slides[0], by_patch, expected)]
    if model.card.dense:
        scans.append(_scan(folder, "dense", slides[1], makers(model, dense=True, batch_size=BATCH), expected))
    exports = {scan.mode: _export(scan, folder) for scan in scans}
    facts = {scan.mode: _facts(scan) | exports[scan.mode] for scan in scans}
    lines = [line for scan in scans for line in _lines(scan.mode, facts[scan.mode])]
    width, height = _overlay(scans[-1], folder)
    took = time.perf_counter() - began
    told = f"{took:.1f} s: a drawn slide of {CELLS} x {CELLS} cells on {by_patch.device} in {by_patch.precision}"
    more = {"overlay_px": [width, height], "seconds": took}
    return Part(
        "self_test", facts | more, (told, *lines, f"overlay {width} x {height} px"), tuple(_problems(facts, by_patch.precision))
    )


def offset(found: Map, expected: Map) -> tuple[int, int]:
    """Return how many rows and columns a map lies below and right of where it should: the place where it fits best.

    Parameters
    ----------
    found, expected : of one shape; NaN where nothing is known

    Returns
    -------
    (rows, cols), each from -2 to 2; of places that fit equally well, the one nearest to (0, 0).
    """
    places = sorted(np.ndindex(2 * REACH + 1, 2 * REACH + 1), key=lambda place: sum(abs(step - REACH) for step in place))
    framed = np.pad(np.asarray(found, np.float64), REACH, constant_values=np.nan)
    least = LEAST_SHARED * np.isfinite(expected).sum()

    def misfit(place: tuple[int, ...]) -> float:
        moved = framed[place[0] : place[0] + expected.shape[0], place[1] : place[1] + expected.shape[1]]
        apart = np.abs(moved - expected)[np.isfinite(moved) & np.isfinite(expected)]
        return float(apart.mean()) if len(apart) >= max(1, least) else np.inf

    rows, cols = min(places, key=misfit)
    return rows - REACH, cols - REACH


def _draw(folder: Path, mpp: float) -> tuple[NDArray[np.uint8], list[Path]]:
    """Draw a slide four times as fine as the model sees; return it as the model sees it, and its two files."""
    from wsi_meta.demo.pyramid_writer import halved, write_pyramid
    from wsi_meta.demo.synthetic import draw_lymph_node

    side = CELLS * CELL_PX * 4
    drawn, _ = draw_lymph_node(side, side)
    kinds = {"lossless": True, "jpeg": False}
    slides = [
        write_pyramid(folder / f"{name}.tif", drawn, mpp=mpp / 4, tile_px=256, lossless=lossless, levels=3)
        for name, lossless in kinds.items()
    ]
    return halved(halved(drawn)), slides


def _plain_logits(model: Model, patches: torch.Tensor) -> Map:
    """Return the logits of uint8 patches by the network as it is: nothing that makes scans fast has a part in them."""
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = model.network(model.card.preprocessing.to_input(patches))
    return logits[:, 0].numpy()


def _expected(image: NDArray[np.uint8], model: Model, by_hand: Callable[[Model, torch.Tensor], Map]) -> Map:
    """Return the probability of the cells whose patches lie on the slide, cut from the picture; NaN for the others."""
    import torch

    inner = range(1, CELLS - 1)
    corners = [((row - 1) * CELL_PX, (col - 1) * CELL_PX) for row in inner for col in inner]
    patches: torch.Tensor = torch.from_numpy(np.stack([image[y : y + 3 * CELL_PX, x : x + 3 * CELL_PX] for y, x in corners]))
    probability = model.card.calibration.to_probability(by_hand(model, patches))
    return np.pad(probability.reshape(len(inner), len(inner)), 1, constant_values=np.nan)


def _scan(folder: Path, mode: str, slide: Path, predictor: Predictor, expected: Map) -> Scanned:
    from wsi_meta.scanning.scanner import Scanner

    with Scanner(predictor=predictor, mode=mode) as scanner:
        heatmap = scanner.scan(slide, folder / f"{mode}.zarr")
    probability = heatmap.probability
    apart = np.abs(probability - expected)
    off = _cells(offset(probability, expected))
    return Scanned(mode, heatmap, slide, off, float(np.nanmax(apart)), float(np.nanmean(apart)))


def _export(scan: Scanned, folder: Path) -> dict[str, Any]:
    """Write lesions both ways, and every form of export; return by how many cells what is read back is off."""
    from wsi_meta.checkup.round_trips import lesion_cells, placed, read_back, read_outlines
    from wsi_meta.heatmaps.lesions import find_lesions

    heatmap, probability = scan.heatmap, scan.heatmap.probability
    # so that there are lesions, whatever the model thinks of the drawing
    threshold = max(1e-6, float(np.nanmedian(probability)))
    outlines, table = (folder / f"{scan.mode}.{ending}" for ending in ("geojson", "csv"))
    for out in (outlines, table):
        lesions = find_lesions(heatmap, threshold=threshold, peak=threshold, out=out)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    places = [(float(row["peak_x"]), float(row["peak_y"])) for row in rows]
    peaks = placed(heatmap, places, [float(row["max_probability"]) for row in rows])
    exports = folder / f"{scan.mode}-exports"
    exports.mkdir()
    return {
        "lesions": len(lesions),
        "geojson_off_cells": _cells(offset(read_outlines(heatmap, outlines), lesion_cells(heatmap, threshold))),
        "csv_off_cells": _cells(offset(probability, peaks)),
        "exports_off_cells": {
            form: _cells(offset(found, written)) for form, (found, written) in read_back(heatmap, exports, threshold).items()
        },
    }


def _overlay(scan: Scanned, folder: Path) -> list[int]:
    """Draw an overlay with lesions; return the picture's width and height, once it has been read back."""
    from PIL import Image

    from wsi_meta.pictures.overlay import draw_overlay

    with Image.open(
        draw_overlay(scan.heatmap, folder / "overlay.png", slide=scan.slide, lesions=True, max_side=400)
    ) as picture:
        picture.load()
        return list(picture.size)


def _facts(scan: Scanned) -> dict[str, Any]:
    from wsi_meta.heatmaps.inspection import check_heatmaps

    heatmap = scan.heatmap
    return {
        "reader": heatmap.record.identity.reader,
        "cells": int(np.isfinite(heatmap.probability).sum()),
        "off_cells": scan.off,
        "difference": scan.difference,
        "mean_difference": scan.mean_difference,
        "score": heatmap.result.score if heatmap.result else None,
        "store": check_heatmaps(heatmap.path)[0].state,
    }


def _lines(mode: str, facts: dict[str, Any]) -> list[str]:
    score = "none" if facts["score"] is None else f"{facts['score']:.3f}"
    apart = f"{facts['difference']:.4f} at most" if mode == "patch" else f"{facts['mean_difference']:.2f} on average"
    scanned = f"{mode} mode, {facts['reader']} reader, {facts['cells']} cells: score {score}, store {facts['store']};"
    outlines, table, exports = facts["geojson_off_cells"], facts["csv_off_cells"], facts["exports_off_cells"]
    return [
        f"{scanned} map off by {facts['off_cells']} cells; probability by {apart}",
        f"  lesions: GeoJSON off by {outlines} cells, CSV by {table}, {facts['lesions']} found",
        f"  exports: {', '.join(exports)}: off by {max(exports.values())} cells",
    ]


def _problems(facts: dict[str, dict[str, Any]], precision: str) -> list[str]:
    wrong = []
    for mode, found in facts.items():
        places = {"the map": "off_cells", "lesions in GeoJSON": "geojson_off_cells", "lesions in CSV": "csv_off_cells"}
        wrong += [f"{mode} mode: {what} off by {found[key]} cells" for what, key in places.items() if found[key]]
        wrong += [f"{mode} mode: export {form} off by {off} cells" for form, off in found["exports_off_cells"].items() if off]
        if found["store"] != "sound":
            wrong.append(f"{mode} mode: the store is {found['store']}")
        if found["score"] is None:
            wrong.append(f"{mode} mode: no score")
    limits = FLOATS if precision == "fp32" else ROUNDED
    bars = [
        ("patch", "difference", limits[0]),
        ("patch", "mean_difference", limits[1]),
        ("dense", "mean_difference", DENSE_MEAN),
    ]
    for mode, name, bar in bars:
        if mode in facts and not (apart := facts[mode][name]) <= bar:
            told = "on average" if name.startswith("mean") else "at most"
            wrong.append(f"{mode} mode: probabilities {apart:.4f} {told} from those of plain float32; {bar} expected")
    return [f"self-test: {told}; {AGAIN}" for told in wrong]


def _cells(place: tuple[int, int]) -> int:
    return max(map(abs, place))
