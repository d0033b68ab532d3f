"""A page in a folder that needs no server: the slide up to a bounded zoom, the map whole, lesions at some thresholds."""

from __future__ import annotations

import base64
import json
import logging
from importlib.resources import files
from pathlib import Path
from typing import Any

from wsi_meta.errors import OutputExistsError
from wsi_meta.outputs.checks import check_folder
from wsi_meta.outputs.writing import written_folder
from wsi_meta.pictures.window import UNSEEN_WORDS
from wsi_meta.viewer.assets import NAMES, fill_page
from wsi_meta.viewer.facts import map_facts, slide_facts
from wsi_meta.viewer.shelf import ShownStore
from wsi_meta.viewer.shown_map import MapState
from wsi_meta.viewer.slide_tiles import SlideTiles
from wsi_meta.words import printable

__all__ = ["check_saved_page", "save_page"]

logger = logging.getLogger("wsi_meta")

LONGEST_PX = 8192
"""Longer side of the finest level that is written: some 2,000 tiles of 256 px, 30 MB."""
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Lesions are kept at these, and at the model's own operating points."""


def check_saved_page(folder: Path) -> None:
    """Make sure that a page may be written; OutputExistsError or OutputPathError if not."""
    check_folder(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputExistsError(f"{folder}: exists; expected a folder that is new or empty; choose another --static")


def save_page(shown: ShownStore, folder: Path) -> Path:
    """Write a page that needs no server, whole or not at all.

    Parameters
    ----------
    folder : to make, or empty

    Returns
    -------
    The page, to open in a browser.

    Raises
    ------
    OutputExistsError, OutputPathError
    """
    check_saved_page(folder)
    if shown.tiles is None:
        logger.warning("%s; the page shows the map alone", shown.slide_told)
    with written_folder(folder) as made:
        _fill(made, shown)
    return folder / "index.html"


def _fill(made: Path, shown: ShownStore) -> None:
    state, levels = shown.map.state(), 0
    (made / "assets").mkdir(parents=True)
    if shown.tiles is not None:
        levels = _write_tiles(made / "tiles", shown.tiles)
        if shown.tiles.unread:
            logger.warning(
                "%s: %s in places, which are striped in the page; copy the slide again", shown.slide_told, UNSEEN_WORDS
            )
    source = files("wsi_meta.viewer") / "static"
    for name in NAMES:
        (made / "assets" / name).write_bytes((source / name).read_bytes())
    data = json.dumps(_data(shown, state, levels)).replace("<", "\\u003c")
    (made / "assets" / "data.js").write_text(f"window.WSI_META_FILES = {data};\n", encoding="utf-8")
    script = '<script src="assets/data.js"></script>\n'
    page = fill_page((source / "map.html").read_text(encoding="utf-8"), "assets/", script)
    (made / "index.html").write_text(page, encoding="utf-8")


def _data(shown: ShownStore, state: MapState, levels: int) -> dict[str, Any]:
    facts = map_facts(state)
    name = printable(state.heatmap.record.slide.file)
    slide = slide_facts(
        shown.tiles, Path(shown.slide_told).name if shown.tiles else f"{name}: the slide is not part of this page"
    )
    slide["levels"] = slide["levels"][:levels]
    points = sorted({*state.heatmap.record.model.thresholds.values(), *THRESHOLDS})
    return {
        "facts": facts | {"slide": slide, "several": False, "finished": True},
        "map": base64.b64encode(state.packed).decode(),
        "lesions": {str(point): state.lesions(point) for point in points},
    }


def _write_tiles(folder: Path, tiles: SlideTiles) -> int:
    """Write the tiles of the coarser levels; return how many levels these are."""
    chosen = [level for level in tiles.levels if max(level.width, level.height) <= LONGEST_PX]
    for number, level in enumerate(chosen):
        (folder / str(number)).mkdir(parents=True)
        for row in range(level.rows):
            for col in range(level.columns):
                (folder / str(number) / f"{col}_{row}.jpg").write_bytes(tiles.jpeg(number, col, row)[0])
    return len(chosen)
