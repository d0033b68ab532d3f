"""The heatmaps that are shown, each with its slide where that is at hand."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_meta.errors import HeatmapError, WsiMetaError
from wsi_meta.files.address import SlidePath, name_in
from wsi_meta.heatmaps.lesions import default_threshold
from wsi_meta.heatmaps.ownership import is_heatmap_path, stores_in
from wsi_meta.heatmaps.record import ScanRecord
from wsi_meta.heatmaps.scanned_slide import open_as_scanned
from wsi_meta.outputs.paths import real_path
from wsi_meta.viewer.shown_map import ShownMap
from wsi_meta.viewer.slide_tiles import KeptTiles, SlideTiles
from wsi_meta.words import one_line, printable
from wsi_meta.worklist.slide_places import given_slide, slide_places
from wsi_meta.worklist.table import Row, open_table
from wsi_meta.worklist.worklist import read_page, read_thumbnail

__all__ = ["Shelf", "ShelvedStore", "ShownStore", "folders_of_stores"]

OPEN_STORES = 8
"""Stores that are open at the same time; a folder may hold hundreds."""


@dataclass(frozen=True)
class ShelvedStore:
    """A store that may be opened."""

    key: str
    """How links name it: made of its path, so that a link is good after the server has started again."""
    path: Path
    alike: bool = False
    """Whether others of its name are shown, too, as maps of one slide by two models: its path then tells it from them."""

    @property
    def name(self) -> str:
        """What it is called, one line."""
        return printable(str(self.path) if self.alike else self.path.stem)


@dataclass(frozen=True, eq=False)
class ShownStore:
    """An open store and its slide."""

    key: str
    map: ShownMap
    tiles: SlideTiles | None
    """None where the slide is not at hand, or cannot be shown."""
    slide_told: str
    """Which file the slide is, or why there is none; one line."""

    def has_slide_of(self, record: ScanRecord) -> bool:
        """Tell whether the tiles are those of the slide that a record is of; not where its file was replaced or is gone."""
        with suppress(WsiMetaError, OSError):
            return self.tiles is not None and self.tiles.slide.has_fingerprint(record.identity.slide)
        return False


class Shelf:
    """Stores by key; threads may share it. It owns what it opens, until it is closed.

    Parameters
    ----------
    stores : paths of heatmap stores
    slide : the slide of a single store, or a folder of slides; None looks for them
    folders : whose stores come and go, and whose tables tell of slides without a heatmap
    """

    def __init__(self, stores: Sequence[Path], slide: SlidePath | None = None, folders: Sequence[Path] = ()) -> None:
        inside = {real_path(folder) for folder in folders}
        self._alone = [path for path in stores if real_path(path.absolute().parent) not in inside]
        self._slide, self._folders = slide, folders
        self._known: dict[str, ShelvedStore] = {}
        self._kept = KeptTiles()
        self._open: OrderedDict[str, ShownStore] = OrderedDict()
        self._opening = threading.Lock()

    @property
    def stores(self) -> dict[str, ShelvedStore]:
        """The stores that there are now, by key: those of the folders, and others that were given by themselves."""
        found = [*(store for folder in self._folders for store in stores_in(folder)), *self._alone]
        paths = {_key(path): path for path in found}
        stems = Counter(path.stem for path in paths.values())
        now = {key: ShelvedStore(key, path, stems[path.stem] > 1) for key, path in paths.items()}
        self._known.update(now)
        return now

    def find(self, key: str) -> ShelvedStore:
        """Return a store by its key, also one that was there and is gone; KeyError where there never was one."""
        return self._known.get(key) or self.stores[key]

    @property
    def folder(self) -> Path | None:
        """The one folder that all stores lie in; None where there are several."""
        folders = {path.absolute() for path in (*self._folders, *(store.parent for store in self._alone))}
        return folders.pop() if len(folders) == 1 else None

    def show(self, key: str, record: ScanRecord | None = None) -> ShownStore:
        """Return an open store.

        Parameters
        ----------
        record : of the map as it is now. Where its slide is not the one that is open, because the store was replaced or the
            slide was not at hand, the slide is looked for anew

        Raises
        ------
        KeyError
            when there is none of that key.
        HeatmapError
        """
        store = self.find(key)
        with self._opening:
            before = self._open.get(key)
            if before is None or (record is not None and not before.has_slide_of(record)):
                shown = ShownMap(store.path) if before is None else before.map
                slide = self._open_slide(store.path, record or shown.state().heatmap.record)
                self._open[key] = ShownStore(key, shown, *slide)
            self._open.move_to_end(key)
            gone = [self._open.popitem(last=False)[1] for _ in range(len(self._open) - OPEN_STORES)]
            gone += [before] if before is not None and before is not self._open[key] else []
            found = self._open[key]
        _close(gone)
        return found

    def prepare(self) -> None:
        """Find the lesions of a single store before a page asks for them: the first search imports what it needs."""
        if len(stores := self.stores) == 1:
            with suppress(WsiMetaError, OSError):
                state = self.show(next(iter(stores))).map.state()
                state.lesions(round(default_threshold(state.heatmap), 3))

    def left_out(self) -> list[Row]:
        """Return the rows of slides that the folders' tables have and that have no heatmap there, with the reason as error."""
        found = []
        for folder in self._folders:
            with suppress(WsiMetaError, OSError):  # a table of something else
                for row in open_table(folder).rows:
                    store = row["heatmap"] and folder / name_in(row["heatmap"])
                    if not store:
                        found.append(row)
                    elif not store.exists():
                        found.append(row | {"error": f"{store}: the heatmap is gone"})
        return found

    def surroundings(self, key: str) -> dict[str, Any]:
        """Return what a store's page says of its place: ``several``, whether there is a list; ``store``, where one is alike."""
        several, store = self.has_list, self.find(key)
        return {"several": several} | ({"store": store.name} if store.alike else {})

    @property
    def has_list(self) -> bool:
        """Whether there is more to choose from than one map, or more to tell."""
        return len(self.stores) != 1 or bool(self.left_out())

    def report(self) -> bytes | None:
        """Return the worklist page of the stores' folder; None where there is none of ours."""
        return None if self.folder is None else read_page(self.folder)

    def thumbnail(self, name: str) -> bytes | None:
        """Return a picture of the worklist by its name; None of others."""
        return None if self.folder is None else read_thumbnail(self.folder, name)

    def close(self) -> None:
        """Close all slides."""
        with self._opening:
            gone = [*self._open.values()]
            self._open.clear()
        _close(gone)

    def _open_slide(self, store: Path, record: ScanRecord) -> tuple[SlideTiles | None, str]:
        told = ""
        for path in _candidates(store, record, self._slide):
            try:
                slide = open_as_scanned(record, path)
                if slide.has_fingerprint(record.identity.slide):
                    return SlideTiles(slide, self._kept), printable(str(path))
            except (WsiMetaError, OSError) as error:
                told = told or one_line(error)
                continue
            slide.close()
            told = told or _how_it_differs(path, (slide.width, slide.height), record)
        name = printable(record.slide.file)
        return None, told or f"{name}: not at hand; put the slide beside the heatmap, or pass it with --slide"


def folders_of_stores(paths: Sequence[str | Path]) -> list[Path]:
    """Return those of some paths that are folders of stores."""
    return [Path(path) for path in paths if not is_heatmap_path(Path(path))]


def _candidates(store: Path, record: ScanRecord, given: SlidePath | None) -> Iterator[SlidePath]:
    """Yield the files that may be a store's slide: the given one alone, else those where it may lie."""
    if given is None:
        yield from slide_places(store, record)
    else:
        yield given_slide(record, given)


def _how_it_differs(path: SlidePath, found: tuple[int, int], record: ScanRecord) -> str:
    expected = record.slide.width, record.slide.height
    sizes = "" if found == expected else f" ({found[0]:,} x {found[1]:,} px; expected {expected[0]:,} x {expected[1]:,})"
    return f"{printable(str(path))}: another slide than the one that was scanned{sizes}, so it is not shown; pass --slide"


def _key(path: Path) -> str:
    return hashlib.sha256(str(real_path(path)).encode(errors="surrogateescape")).hexdigest()[:12]


def _close(gone: Sequence[ShownStore]) -> None:
    for store in gone:
        if store.tiles is not None:
            store.tiles.close()


def refuse_another(shown: ShownStore) -> None:
    """Refuse a slide that was given and is not the one of the store; HeatmapError if so."""
    if shown.tiles is None:
        raise HeatmapError(shown.slide_told)
