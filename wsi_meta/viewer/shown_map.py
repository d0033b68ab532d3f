"""One heatmap as the page shows it: values as small integers, lesions at any threshold, read again when the store has grown."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.heatmaps.lesions import drawn_lesion, lesions_at
from wsi_meta.heatmaps.scoring import kept_lesions
from wsi_meta.heatmaps.soundness import open_sound
from wsi_meta.heatmaps.store import Heatmap

if TYPE_CHECKING:
    from numpy.typing import NDArray


__all__ = ["HIGHEST", "NO_VALUE", "TOP_STEP", "MapState", "ShownMap", "layers_of", "pack", "version_of"]

TOP_STEP, NO_VALUE = 65534, 65535
"""A value is sent as the integer next to its share of :data:`HIGHEST` times TOP_STEP; NO_VALUE is NaN."""
HIGHEST = {"probability": 1.0, "uncertainty": 1.0, "focus": 2.0, "darkness": 255.0}
"""Highest value of each layer that can be sent."""
FINEST_THRESHOLD = 1000
"""Thresholds are rounded to thousandths, but for the model's own: there are not endlessly many to find lesions at."""
KEPT_THRESHOLDS = 24
"""Thresholds whose lesions are kept; one more and the one that was asked for longest ago goes."""
OUTLINED = 3000
"""Lesions that are outlined at most, the largest; a low threshold finds tens of thousands of single cells."""
DECIMALS = 2
"""Of a corner, level-0 pixels."""


@dataclass(frozen=True, eq=False)
class MapState:
    """A heatmap as it stood at one time. Threads may share it."""

    version: str
    heatmap: Heatmap
    probability: NDArray[np.float32] = field(repr=False)
    packed: bytes = field(repr=False)
    """As :func:`pack` returns it."""
    _lesions: OrderedDict[float, dict[str, Any]] = field(default_factory=OrderedDict, repr=False)
    _finding: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def nearest_threshold(self, asked: float) -> float:
        """Return the threshold to find lesions at: one of the model's own as it is, any other rounded, and over 0."""
        if asked in self.heatmap.record.model.thresholds.values():
            return asked
        return max(1, round(asked * FINEST_THRESHOLD)) / FINEST_THRESHOLD

    def lesions(self, threshold: float) -> dict[str, Any]:
        """Return the lesions at a threshold as plain JSON values.

        Returns
        -------
        dict of ``threshold``, ``peak``, ``count`` and ``lesions``: the largest :data:`OUTLINED` of them, each as
        :meth:`wsi_meta.Lesion.to_dict` gives it, with ``polygons``: for each its rings, the outer one first, as flat
        lists x, y, x, y, ... of level-0 pixels.
        """
        with self._finding:  # one search at a time: the others would only wait for the interpreter
            if threshold not in self._lesions:
                self._lesions[threshold] = self._find(threshold)
            self._lesions.move_to_end(threshold)
            while len(self._lesions) > KEPT_THRESHOLDS:
                self._lesions.popitem(last=False)
            return self._lesions[threshold]

    def _find(self, threshold: float) -> dict[str, Any]:
        kept = kept_lesions(self.heatmap)
        if kept is not None and kept["threshold"] == threshold and not kept["min_area_mm2"]:
            # not searched for again: that would first import what it needs, half a second
            count, peak, drawn = len(kept["found"]), kept["peak"], kept["found"][:OUTLINED]
        else:
            found, peak = lesions_at(self.heatmap.record, self.probability, self.heatmap.status, threshold)
            count, drawn = len(found), [drawn_lesion(lesion) for lesion in found[:OUTLINED]]
        return {"threshold": threshold, "peak": peak, "count": count, "lesions": [_shown(lesion) for lesion in drawn]}


class ShownMap:
    """A store that may grow while it is looked at; threads may share it.

    Parameters
    ----------
    path : heatmap store

    Raises
    ------
    HeatmapError
        when there is none, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reading = threading.Lock()
        self._state = _read(path)

    def state(self) -> MapState:
        """Return the store as it is now; it is read again only where a file of it is another one than before.

        Raises
        ------
        HeatmapError
        """
        with self._reading:
            if self._state.version != version_of(self.path):
                self._state = _read(self.path)
            return self._state

    def state_of(self, version: str) -> MapState | None:
        """Return the store as :meth:`state` read it last, where that is a version: all that a page shows is of one time.

        None where it was read again meanwhile. Nothing is read here, so this also answers of a store that is damaged by now.
        """
        kept = self._state
        return kept if kept.version == version else None


def version_of(path: Path) -> str:
    """Return a short text that changes with a store: with its record, and with each file of its cells' arrays."""
    digest = hashlib.sha256()
    for file in (path / "zarr.json", *sorted(_files(path))):
        try:
            found = file.stat()
        except (FileNotFoundError, NotADirectoryError):  # gone between the listing and now, or no store
            continue
        name = file.relative_to(path).as_posix()
        digest.update(f"{name} {found.st_ino} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def pack(heatmap: Heatmap) -> tuple[bytes, NDArray[np.float32]]:
    """Return a heatmap's arrays, packed with gzip, and its probability.

    They lie row by row, one array after the other: those of :func:`layers_of` as little-endian uint16 (see :data:`TOP_STEP`),
    then the status as uint8.
    """
    spread = {"uncertainty": values} if (values := heatmap.uncertainty) is not None else {}
    known = {"probability": heatmap.probability} | spread | heatmap.measures
    parts = [_steps(known[name], HIGHEST[name]).tobytes() for name in layers_of(heatmap)] + [heatmap.status.tobytes()]
    return gzip.compress(b"".join(parts), 3, mtime=0), known["probability"]


def layers_of(heatmap: Heatmap) -> tuple[str, ...]:
    """Return the names of a heatmap's maps: probability, uncertainty where it is kept, what cells are like where known."""
    spread = ("uncertainty",) if heatmap.has_uncertainty else ()
    return ("probability", *spread, *(name for name in heatmap.record.measures if name in HIGHEST))


def _read(path: Path) -> MapState:
    version = version_of(path)  # before the arrays: what changes meanwhile shows in the next version
    heatmap = Heatmap.open(path)
    heatmap = heatmap.as_of_now() if heatmap.result is None else open_sound(heatmap)
    packed, probability = pack(heatmap)
    return MapState(version, heatmap, probability, packed)


def _steps(values: NDArray[np.float32], highest: float) -> NDArray[np.uint16]:
    steps = np.round(np.clip(np.nan_to_num(values) / highest, 0, 1) * TOP_STEP)
    return np.where(np.isfinite(values), steps, NO_VALUE).astype("<u2")


def _files(store: Path) -> Iterator[Path]:
    """Yield the files of the chunks of a store's arrays of cells, as ``0/c/ROW/COL``; coarser levels lie in groups."""
    rows = (row for array in _folders(store) for row in _folders(f"{array}/c"))
    for row in rows:
        yield from (Path(entry.path) for entry in _entries(row) if not entry.name.endswith(".partial"))


def _folders(folder: str | Path) -> list[str]:
    return [entry.path for entry in _entries(folder) if entry.is_dir()]


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):  # no block yet, the store is being replaced, or is none
        return []


def _shown(lesion: dict[str, Any]) -> dict[str, Any]:
    """Return a lesion with ``polygons`` in the place of its ``outlines``, whose rings are closed and as pairs."""
    facts = {name: value for name, value in lesion.items() if name != "outlines"}
    flat = [[np.round(ring[:-1], DECIMALS).ravel().tolist() for ring in polygon] for polygon in lesion["outlines"]]
    return facts | {"polygons": flat}
