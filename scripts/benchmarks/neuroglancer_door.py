"""Where neuroglancer draws cells of a store, measured on its picture in a headless Chromium; a part of ``doors.py``.

Needs ``pip install neuroglancer playwright`` and a Chromium on the path. The store is served to the page by this process.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from browsers import find_chromium
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import label, regionprops

CELL_PX = 50
"""Pixels of the screen that a cell takes."""
AROUND_PX = 150
"""From the middle of the picture; the page's own writing is further away."""
OPTIONS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
WAIT_S = 60.0


class _Open(SimpleHTTPRequestHandler):
    """Serves files to pages of any origin, and says nothing."""

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, format: str, *values: Any) -> None:  # noqa: A002  (the library's name)
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder; yields its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Open, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def drawn_cells(store: Path, marks: dict[tuple[int, int], float]) -> NDArray[np.float64]:
    """Return where neuroglancer draws the middle of each cell, in cells from the slide's corner, (n, 2), rows and columns.

    The page is centred on where the cell should be, and its square is searched by its grey around the middle of the picture:
    the region whose area is nearest to a cell's, because coarser levels, which reach over the map's edge, are shown there.
    """
    neuroglancer = import_module("neuroglancer")
    neuroglancer.set_server_bind_address("127.0.0.1")
    viewer = neuroglancer.Viewer()
    with served(store.parent) as address, _page(viewer) as page:
        with viewer.txn() as state:
            shader = "void main(){ emitGrayscale(getDataValue(0)); }"
            state.layers["map"] = neuroglancer.ImageLayer(source=f"zarr://{address}/{store.name}/", shader=shader)
            state.layout, state.show_slices, state.show_axis_lines, state.show_scale_bar = "xy", False, False, False
        return np.array([_look(viewer, page, cell, value) for cell, value in marks.items()])


@contextmanager
def _page(viewer: Any) -> Iterator[Any]:
    with import_module("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=OPTIONS)
        page = browser.new_page(viewport={"width": 900, "height": 700})
        page.goto(viewer.get_viewer_url())
        yield page
        browser.close()


def _look(viewer: Any, page: Any, cell: tuple[int, int], value: float) -> tuple[float, float]:
    """Return row and column of the middle of the square that is drawn for a cell."""
    began = time.monotonic()
    while time.monotonic() - began < WAIT_S:
        page.wait_for_timeout(500)
        names = list(viewer.state.to_json().get("dimensions", {}))
        if names:
            with viewer.txn() as state:
                state.position = [cell["yx".index(name)] + 0.5 for name in names]
                state.cross_section_scale = 1 / CELL_PX
                state.display_dimensions = ["x", "y"]  # else the first one, y, runs to the right
            page.wait_for_timeout(1500)
            panel = page.locator(".neuroglancer-rendered-data-panel").bounding_box()
            middle = panel["y"] + panel["height"] / 2, panel["x"] + panel["width"] / 2
            top, left = (int(at) - AROUND_PX for at in middle)
            picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"), float)
            around = picture[top:, left:][: 2 * AROUND_PX, : 2 * AROUND_PX]
            found = regionprops(label(np.abs(around - 255 * value) < 3, connectivity=1))
            if found:
                square = min(found, key=lambda region: abs(region.area - CELL_PX**2)).bbox
                drawn = (np.array(square[:2]) + square[2:]) / 2 + (top, left)
                row, col = np.array(cell) + 0.5 + (drawn - middle) / CELL_PX
                return float(row), float(col)
    raise TimeoutError(f"neuroglancer shows no cell of probability {value} near {cell}")
