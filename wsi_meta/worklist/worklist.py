"""The worklist page of a folder of heatmaps, ``report/index.html``: it needs no network; small pictures lie beside it.

The page is derived from the folder's table and the pictures, so that any process may write it. It is written whole, at any
moment the last one or the one before. ``report`` is ours where it is empty or its page says so; another one is left alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType

from wsi_meta.errors import OutputExistsError, WsiMetaError
from wsi_meta.files.address import SlidePath, name_in
from wsi_meta.files.locks import locked
from wsi_meta.heatmaps.store import Heatmap
from wsi_meta.outputs.writing import written_whole
from wsi_meta.words import first_line, one_line, printable
from wsi_meta.worklist.page import GENERATOR, render_page
from wsi_meta.worklist.table import Row, open_table
from wsi_meta.worklist.thumbnails import make_thumbnail

__all__ = ["PAGE", "Worklist", "read_page", "read_thumbnail", "renew_worklist", "worklist_page"]

logger = logging.getLogger("wsi_meta")

REPORT, PAGE, PICTURES = "report", "index.html", "thumbnails"
EVERY_S = 5.0
"""The page is rewritten at most so often while a run goes on."""
SHARE = 0.05
"""It is also rewritten so rarely that this takes no more than this share of the time."""
WAIT_S = 60.0


class Worklist:
    """The page of a batch. As a context manager it writes the page at the start, and the last one at the end.

    No trouble with the page ends a batch: it is told once, and the batch goes on.

    Parameters
    ----------
    folder : of the batch, with its table
    slides : how many the batch has
    """

    def __init__(self, folder: Path, slides: int) -> None:
        self._folder, self._slides, self._done = folder, slides, 0
        self._report: Path | None = None
        self._due = 0.0

    def __enter__(self) -> Worklist:
        self._report = _own_report(self._folder)
        self._write(lesions=False, wait_s=0.0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._slides = self._done  # it goes on no more
        self._write(lesions=kind is None, wait_s=WAIT_S)

    def add_picture(self, heatmap: Heatmap, slide: str | SlidePath) -> None:
        """Draw a slide's thumbnail; any thread may."""
        if self._report is not None:
            make_thumbnail(heatmap, slide, _picture(self._report, heatmap.path))

    def tell(self) -> None:
        """Count a slide whose row was added; rewrite the page if it is time to."""
        self._done += 1
        if time.monotonic() >= self._due:
            self._write(lesions=False, wait_s=0.0)

    def _write(self, *, lesions: bool, wait_s: float) -> None:
        if self._report is None:
            return
        begun = time.monotonic()
        try:
            running = (self._done, self._slides) if self._done < self._slides else None
            page = partial(render_page, lesions=lesions, running=running)
            _write_page(self._folder, self._report, page, wait_s)
        except OutputExistsError as error:
            if wait_s:  # else another batch is writing the page, with these rows or soon with them
                logger.warning("%s", one_line(error))
        except Exception as error:  # a page is never worth a batch
            known = isinstance(error, WsiMetaError | OSError)
            told = one_line(error) if known else f"{self._report / PAGE}: cannot be written ({first_line(error)})"
            logger.warning("%s", printable(told))
            self._report = None
        now = time.monotonic()
        self._due = now + max(EVERY_S, (now - begun) / SHARE)


def renew_worklist(folder: Path, rows: Sequence[Row]) -> None:
    """Draw the thumbnails of a folder that are missing or old, and write its page.

    Parameters
    ----------
    rows : of the folder's summary
    """
    if (report := _own_report(folder)) is None:
        return
    for row in rows:
        if row["heatmap"] and row["scanned"] is not None:
            store = folder / name_in(row["heatmap"])
            make_thumbnail(store, row["slide"], _picture(report, store))
    _write_page(folder, report, partial(render_page, lesions=True, running=None), WAIT_S)


def worklist_page(folder: Path) -> Path | None:
    """Return the worklist page of a folder of heatmaps; None where none was written, or another one has its name."""
    report = folder / REPORT
    with suppress(OSError):
        if (report / PAGE).is_file() and _is_ours(report):
            return report / PAGE
    return None


def read_page(folder: Path) -> bytes | None:
    """Return the content of a folder's worklist page; None as :func:`worklist_page`."""
    with suppress(OSError):
        if page := worklist_page(folder):
            return page.read_bytes()
    return None


def read_thumbnail(folder: Path, name: str) -> bytes | None:
    """Return a picture of a folder's worklist by its name, which is compared with those that are there; None of others."""
    report = folder / REPORT
    try:
        pictures = (report / PICTURES).glob("*.jpg") if _is_ours(report) else ()
        found = next((picture for picture in pictures if picture.name == name and not picture.is_symlink()), None)
        return None if found is None else found.read_bytes()
    except OSError:
        return None


def _own_report(folder: Path) -> Path | None:
    """Return a folder's report, made if it does not exist; None, with a warning, where something else has its name."""
    report = folder / REPORT
    try:
        report.mkdir(exist_ok=True)
        if not report.is_symlink() and _is_ours(report):
            (report / PICTURES).mkdir(exist_ok=True)
            return report
    except OSError as error:
        logger.warning("%s: no page can be written there (%s)", printable(str(report)), error.strerror)
        return None
    logger.warning("%s: is not a report of scans and is left alone; there is no page of this folder", printable(str(report)))
    return None


def _is_ours(report: Path) -> bool:
    """Tell whether a folder is empty, but for what a killed run left of its first page, or holds a page of ours."""
    page = report / PAGE
    if page.is_file() and not page.is_symlink():
        with page.open("rb") as file:
            return f'content="{GENERATOR}"'.encode() in file.read(1000)
    return all(entry.name.startswith((f"{PAGE}.", f".{PAGE}.")) or entry.name == PICTURES for entry in report.iterdir())


def _write_page(folder: Path, report: Path, render: Callable[[Path, list[Row], dict[str, str]], str], wait_s: float) -> None:
    with locked(report / PAGE, wait_s=wait_s):
        rows = open_table(folder).rows
        pictures = {printable(path.stem): f"{PICTURES}/{path.name}" for path in (report / PICTURES).glob("*.jpg")}
        page = render(folder, rows, pictures)
        with written_whole(report / PAGE) as unfinished:
            unfinished.write_text(page, encoding="utf-8")


def _picture(report: Path, store: Path) -> Path:
    return report / PICTURES / f"{store.stem}.jpg"
