"""Heatmaps shown in the browser."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from wsi_meta.errors import OptionsError, truth
from wsi_meta.files.address import Address, slide_path
from wsi_meta.heatmaps.inspection import stores_at
from wsi_meta.outputs.paths import as_path
from wsi_meta.viewer.saved_page import check_saved_page, save_page
from wsi_meta.viewer.shelf import Shelf, folders_of_stores, refuse_another
from wsi_meta.worklist.slide_places import refuse_one_slide

__all__ = ["view"]


def view(
    *stores: str | Path,
    slide: str | Path | Address | None = None,
    host: str | None = None,
    port: int | None = None,
    browser: bool = True,
    static: str | Path | None = None,
    opened: Callable[[str], None] | None = None,
) -> None:
    """Show heatmaps over their slides in the browser, until Ctrl-C. Nothing is loaded from the network.

    The page shows the slide at every zoom, the map above it, and the lesions at any threshold. Lesions can be marked as false,
    and missed ones drawn: they are kept in ``NAME.corrections.geojson`` beside the store. While a scan runs, its map grows.

    Parameters
    ----------
    stores : heatmap stores, or folders of them
    slide : the slide of the store, its address, or a folder that holds the slides of several. None looks beside each store,
        and where ``summary.csv`` says. A map without its slide is shown alone
    host : address to listen at, ``0.0.0.0`` for all of this machine. None: only this machine can ask. Where one is given, the
        link holds a token, without which nothing is shown
    port : to listen at; None takes one that is free
    browser : open the page in the browser
    static : folder to write instead, new or empty: ``index.html`` and what it needs, for someone who has no wsi-meta. It shows
        the slide up to 8,192 px, and lesions at some thresholds; no server is started
    opened : called with the link as soon as it can be opened, or with the page that was written

    Raises
    ------
    HeatmapError
        when a path holds no heatmap, or `slide` is not the one that was scanned.
    OptionsError
        when `slide` is one file for several stores, `static` is for several, or the server cannot listen at `host` and `port`.
    OutputExistsError, OutputPathError
        when `static` cannot be written.
    """
    static, browser = None if static is None else as_path("static", static), truth("browser", browser)
    found = stores_at(*stores)
    given = None if slide is None else slide_path(slide)
    refuse_one_slide(given, len(found))
    if static is not None:
        _check_static(static, len(found), host, port)
    shelf = Shelf(found, given, folders_of_stores(stores))
    try:
        if len(found) == 1:
            shown = shelf.show(next(iter(shelf.stores)))  # opened now, and refused now
            if given is not None:
                refuse_another(shown)
            if static is not None:
                page = save_page(shown, static)
                return None if opened is None else opened(str(page))
        return _serve(shelf, host, port, browser, opened)
    finally:
        shelf.close()


def _check_static(folder: Path, stores: int, host: str | None, port: int | None) -> None:
    """Refuse before the work what cannot be written without a server."""
    if stores > 1:
        raise OptionsError(f"static {folder}: a page of one heatmap; found {stores}; expected one")
    if (host, port) != (None, None):
        raise OptionsError(f"static {folder}: has no server; expected neither host nor port")
    check_saved_page(folder)


def _serve(shelf: Shelf, host: str | None, port: int | None, browser: bool, opened: Callable[[str], None] | None) -> None:
    from wsi_meta.viewer.server import serve  # tornado takes a tenth of a second

    def tell(link: str) -> None:
        if opened is not None:
            opened(link)
        if browser and _has_screen():
            threading.Thread(target=_open, args=(link,), daemon=True).start()

    serve(shelf, host=host, port=port, opened=tell)


def _open(link: str) -> None:
    import webbrowser

    webbrowser.open(link)


def _has_screen() -> bool:
    """Tell whether there is a screen: without one a browser of the terminal would open, and take the terminal."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
