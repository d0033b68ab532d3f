"""What the pages say of heatmaps, as plain JSON values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsi_meta.errors import WsiMetaError
from wsi_meta.heatmaps.lesions import default_threshold
from wsi_meta.heatmaps.regions import at_least, largest_lesion
from wsi_meta.heatmaps.scoring import kept_lesions, none_found
from wsi_meta.heatmaps.store import Heatmap, Status
from wsi_meta.pictures.window import UNSEEN_WORDS
from wsi_meta.viewer.colours import layer_colours, veil_colours
from wsi_meta.viewer.shown_map import HIGHEST, NO_VALUE, TOP_STEP, layers_of
from wsi_meta.words import format_score, format_threshold, one_line, printable
from wsi_meta.worklist.page import reason_of, row_name

if TYPE_CHECKING:
    from wsi_meta.heatmaps.record import ScanRecord, ScanResult
    from wsi_meta.viewer.shelf import ShelvedStore
    from wsi_meta.viewer.shown_map import MapState
    from wsi_meta.viewer.slide_tiles import SlideTiles
    from wsi_meta.worklist.table import Row

__all__ = ["left_out_facts", "list_facts", "map_facts", "slide_facts", "slide_scanned"]

Lines = list[tuple[str, str]]
"""Names and values."""


def slide_scanned(heatmap: Heatmap) -> str:
    """Return what names the slide that a map is of, whether it is at hand or not."""
    return heatmap.record.identity.slide[:16]


def map_facts(state: MapState) -> dict[str, Any]:
    """Return what the page needs to draw a map, and what it says of it.

    Returns
    -------
    dict of ``slide_scanned``, ``none`` (what stands for a list without a lesion), ``grid`` (cells, and level-0 pixels and
    micrometres of a cell), ``layers`` in the order of the packed map, each with its colours, ``veil``, ``status`` (names by
    number), ``threshold``, ``points`` (words and value of the model's thresholds), ``steps``, and ``facts``: groups of names
    and values.
    """
    heatmap, grid = state.heatmap, state.heatmap.grid
    rows, cols = grid.shape
    return {
        "name": printable(heatmap.record.slide.name),
        "store": printable(heatmap.path.name),
        "version": state.version,
        "slide_scanned": slide_scanned(heatmap),
        "finished": heatmap.result is not None,
        "none": none_found(heatmap.record),
        "grid": {
            "rows": rows,
            "cols": cols,
            "cell_l0": grid.cell_l0,
            "cell_um": grid.cell_um,
            "width": grid.width,
            "height": grid.height,
            "mpp": grid.slide_mpp,
        },
        "layers": [
            {"name": layer, "highest": HIGHEST[layer], **layer_colours(heatmap.record, layer)} for layer in layers_of(heatmap)
        ],
        "veil": veil_colours(heatmap.record),
        "status": {str(int(status)): status.name.lower() for status in Status},
        "threshold": default_threshold(heatmap),
        "thresholds": heatmap.record.model.thresholds,
        "points": [(_point(name), value) for name, value in heatmap.record.model.thresholds.items()],
        "steps": {"top": TOP_STEP, "none": NO_VALUE},
        "facts": [{"title": title, "lines": lines} for title, lines in _groups(heatmap) if lines],
    }


def slide_facts(tiles: SlideTiles | None, told: str) -> dict[str, Any]:
    """Return where the slide's tiles are, which file it is, whether all could be read; without `tiles` why there is none."""
    if tiles is None:
        return {"mark": None, "told": told, "levels": [], "unread": False, "unread_words": ""}
    levels = [
        {"downsample": level.downsample, "width": level.width, "height": level.height}
        | {"tile_width": level.tile_width, "tile_height": level.tile_height}
        for level in tiles.levels
    ]
    return {"mark": tiles.mark, "told": told, "levels": levels, "unread": tiles.unread, "unread_words": UNSEEN_WORDS}


def list_facts(store: ShelvedStore) -> dict[str, Any]:
    """Return a line of the list of heatmaps; what is wrong with a store becomes its ``problem``."""
    facts: dict[str, Any] = {"key": store.key, "name": store.name, "problem": None, "score": None}
    try:
        heatmap = Heatmap.open(store.path)
        record = heatmap.record
    except (WsiMetaError, OSError) as error:
        return facts | {"problem": one_line(error).removeprefix(f"{store.path}: "), "state": "damaged", "lesions": ""}
    result = record.result
    state = record.why_incomplete if result is None else "complete" if result.complete else "incomplete"
    found = (kept_lesions(heatmap) or {}).get("found", [])
    return facts | {
        "score": None if result is None else result.score,
        "told": "" if result is None or result.score is None else _told(result.score, result),
        "state": state,
        "lesions": _lesions_in_words(record, found),
        "verdict": record.verdict.summary if record.verdict else "",
        "mm": f"{record.slide.width * record.slide.mpp / 1000:.1f} x {record.slide.height * record.slide.mpp / 1000:.1f}",
    }


def _lesions_in_words(record: ScanRecord, found: list[dict[str, Any]]) -> str:
    """Return how many lesions there are and how large; empty where none is known of a scan that has not ended."""
    if largest := largest_lesion(found):
        return f"{len(found)}, largest: {at_least(largest['size_class'], cut=largest['cut'])}"
    return none_found(record) if record.result else ""


def left_out_facts(row: Row) -> dict[str, Any]:
    """Return a line of the list of heatmaps for a slide that has none: its name, and why as its ``problem``."""
    return {"name": row_name(row), "problem": reason_of(row), "score": None}


def _groups(heatmap: Heatmap) -> list[tuple[str, Lines]]:
    record = heatmap.record
    return [
        ("Result", _result(record) or _progress(heatmap)),
        ("Slide", _slide(record)),
        ("Model", _model(record)),
        ("Scan", _scan(record)),
    ]


def _progress(heatmap: Heatmap) -> Lines:
    left, blocks = len(heatmap.open_blocks(heatmap.status)), len(heatmap.grid.blocks())
    return [("Complete", f"no, {heatmap.record.why_incomplete}"), ("Left", f"{left} of {blocks} blocks")]


def _result(record: ScanRecord) -> Lines:
    result = record.result
    if result is None:
        return []
    lines = [("Slide score", _told(result.score, result))]
    if result.fitted_score is not None:
        lines.append(("Fitted score", _told(result.fitted_score["score"], result)))
    lines.append(("Complete", "yes" if result.complete else f"no, {record.why_incomplete}"))
    if record.verdict is not None:
        lines.append(("Quality", record.verdict.explained))
    return lines


def _told(score: float | None, result: ScanResult) -> str:
    return "none, nothing scanned" if score is None else format_score(score, complete=result.complete)


def _slide(record: ScanRecord) -> Lines:
    slide = record.slide
    width, height = slide.width * slide.mpp / 1000, slide.height * slide.mpp / 1000
    stated = f" (the file says {slide.stated_mpp:g})" if slide.stated_mpp else ""
    return [
        ("File", printable(slide.file)),
        ("Size", f"{slide.width:,} x {slide.height:,} px, {width:.1f} x {height:.1f} mm"),
        ("Pixel", f"{slide.mpp:g} µm{stated}"),
        ("Tissue", f"{record.tissue.fraction:.1%} ({printable(record.tissue.source)})"),
    ]


def _model(record: ScanRecord) -> Lines:
    card = record.model
    points = ", ".join(f"{_point(name)} {format_threshold(value, 3)}" for name, value in card.thresholds.items())
    auc = card.metrics.get("auc")
    lines = [
        ("Network", f"{card.architecture}, {card.preprocessing.mpp:g} µm"),
        ("File", record.identity.model[:12]),
        ("Calibration", f"temperature {card.calibration.temperature:.3g}, bias {card.calibration.bias:+.3g}"),
        ("Operating points", points),
    ]
    return [*lines, ("Validation AUC", f"{auc:.3f}")] if auc is not None else lines


def _point(name: str) -> str:
    """Return the name of one of a model's thresholds in words: ``sensitivity_95`` is ``95 % sensitivity:``."""
    kind, _, share = name.partition("_")
    return f"{share} % {kind}:" if share.isdecimal() else f"{printable(name.replace('_', ' '))}:"


def _scan(record: ScanRecord) -> Lines:
    identity, effort = record.identity, record.effort
    views = f", {identity.views} views" if identity.views > 1 else ""
    lines = [
        ("Mode", f"{identity.mode}, cell {record.grid.cell_um:.1f} µm{views}"),
        ("Device", f"{printable(record.device)}, {identity.precision}"),
    ]
    return [*lines, ("Effort", effort.summary)] if effort is not None else lines
