"""OME-Zarr images (NGFF 0.4 on zarr 2, 0.5 on zarr 3), read chunk by chunk.

A chunk that is not there is unreadable. zarr allows a writer to leave out chunks that hold nothing but the fill value, but a
chunk that was lost looks the same, and what was not read is never normal tissue, nor glass.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import SlideReadError
from wsi_meta.files.address import Address, SlidePath
from wsi_meta.files.file_systems import refuse_without_cloud
from wsi_meta.files.image_series import expect_one, pictures_of_zarr
from wsi_meta.files.zarr_chunks import NotNowError, may_come_later, probed, told_of
from wsi_meta.outputs.zarr_folder import kind_of_zarr
from wsi_meta.readers.levels import Scales, find_scales, mean_ratios, um_per
from wsi_meta.readers.reader import WHITE, Bounds, OpenedReader, StatedMpp
from wsi_meta.readers.tile_reader import Tile, TileReader
from wsi_meta.tiffs.sparse_tiles import TileGrid
from wsi_meta.tiffs.tags import MAX_TILE_PX

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ZarrReader"]

MOST_HASHED_CHUNKS = 16
"""Chunks of the coarsest level, spread over it, that are in the fingerprint, at most."""
AT_ONCE = 8
"""Chunks that are fetched at the same time from an address."""
PROBES = (1, 2)
"""Fill values that are read with in place of the array's own: where both show, nothing is stored."""


@dataclass(frozen=True)
class _Level:
    """One array of the pyramid."""

    probed: tuple[Any, Any]
    """The array, opened with each of the fill values that are tried."""
    axes: str
    """A letter for each of its dimensions."""
    size: tuple[int, int]
    chunk: tuple[int, int]
    """Width and height."""
    scale: tuple[float, float]
    """Of x and y, in the axes' units."""
    far: bool
    """Whether it is at an address."""

    def read(self, row: int, col: int) -> NDArray[np.uint8]:
        """Return the pixels (height, width, 3) of a chunk; ValueError or OSError when it is damaged or not there."""
        pixels, again = self._read(row, col, self.probed[0]), None
        for colour in range(3):
            if (pixels[..., colour] == PROBES[0]).all():
                again = self._read(row, col, self.probed[1]) if again is None else again
                if (again[..., colour] == PROBES[1]).all():
                    raise ValueError(f"chunk at row {row}, column {col} is not there: it was lost, or left out as blank")
        height, width = pixels.shape[:2]
        if (width, height) == self.chunk:
            return pixels
        whole = np.full((self.chunk[1], self.chunk[0], 3), 255, np.uint8)
        whole[:height, :width] = pixels
        return whole

    def _read(self, row: int, col: int, array: Any) -> NDArray[np.uint8]:
        places = {"y": slice(row * self.chunk[1], (row + 1) * self.chunk[1]), "c": slice(None)}
        places["x"] = slice(col * self.chunk[0], (col + 1) * self.chunk[0])
        try:
            stored = np.asarray(array[tuple(places.get(axis, 0) for axis in self.axes)])
        except NotNowError as error:
            raise NotNowError(f"chunk at row {row}, column {col}: {error}") from None
        except Exception as error:  # each codec has errors of its own
            raise ValueError(f"chunk at row {row}, column {col}: {told_of(error, far=self.far)}") from None
        left = [axis for axis in self.axes if axis in "yxc"]
        return np.ascontiguousarray(stored.transpose([left.index(axis) for axis in "yxc"]))


class ZarrReader(TileReader, OpenedReader):
    """An OME-Zarr image: RGB of 8 bits with an axis of colours. A chunk is a tile.

    Parameters
    ----------
    path : folder or address of the image

    Raises
    ------
    SlideReadError
        when it is no such image, or holds another one that is as large.
    """

    name = "zarr"

    def __init__(self, path: SlidePath) -> None:
        self.file = None
        self._far = isinstance(path, Address)
        self._pool: ThreadPoolExecutor | None = None
        self._asking = threading.Lock()
        try:
            mpp, stored, told = _open(path)
        except SlideReadError:
            raise
        except Exception as error:  # zarr raises whatever odd metadata lead to
            told = told_of(error, far=self._far)
            if may_come_later(error, far=self._far):
                raise _not_now(path, told) from None
            raise SlideReadError(
                f"{path}: no OME-Zarr image that can be read ({told}); expected NGFF 0.4 or 0.5; copy it again"
            ) from None
        self._stored = stored
        self.level_dimensions = tuple(level.size for level in stored)
        self.tiles = [level.chunk for level in stored]
        self.level_downsamples = mean_ratios(self.level_dimensions)
        self.scales: Scales = find_scales(self.level_dimensions, self.level_downsamples, self.tiles)
        width, height = stored[0].size
        self.bounds = Bounds(0, 0, width, height)
        grids = {number: _grid_of(level) for number, level in enumerate(stored)}
        super().__init__(path, grids, self.scales.downsamples, WHITE)
        self.properties = {"openslide.vendor": "ome-zarr", "openslide.quickhash-1": self._hash(told)}
        self._state_mpp(mpp)
        self.reason = f"an OME-Zarr image of {len(stored)} levels"

    def close(self) -> None:
        """Drop the tiles, and end the threads that fetch chunks. A later read starts them again."""
        with self._asking:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)  # chunks that other threads have asked for still come
        super().close()

    def _begin(self, tiles: Sequence[Tile]) -> Mapping[Tile, Future[NDArray[np.uint8]]]:
        """Ask for several chunks at the same time where they are far away."""
        if not self._far or len(tiles) == 1:
            return {}
        new = [tile for tile in tiles if not self._cache.holds(tile)]
        with self._asking:  # the threads may not end in between
            self._pool = pool = self._pool or ThreadPoolExecutor(AT_ONCE, "chunks")
            return {tile: pool.submit(self._stored[tile[0]].read, *tile[1:]) for tile in new}

    def _decode(self, tile: Tile, source: Any) -> NDArray[np.uint8]:
        if tile in source:
            return np.asarray(source[tile].result())
        return self._stored[tile[0]].read(*tile[1:])

    def _hash(self, told: str) -> str:
        """Return a hash of what the image says of itself and of chunks of its coarsest level."""
        digest, level = hashlib.sha256(told.encode()), self._stored[-1]
        rows, cols = (-(-side // step) for side, step in zip(level.size[::-1], level.chunk[::-1], strict=True))
        for number in np.linspace(0, rows * cols - 1, min(rows * cols, MOST_HASHED_CHUNKS)).round():
            try:
                digest.update(level.read(*divmod(int(number), cols)).tobytes())
            except NotNowError as error:  # with it left out, the slide would be taken for another one
                raise _not_now(self._shown, str(error)) from None
            except (ValueError, OSError):
                digest.update(b"unreadable")
        return digest.hexdigest()


def _not_now(path: object, told: str) -> SlideReadError:
    """Make the error for what may come when it is asked for again."""
    return SlideReadError(f"{path}: could not be read now ({told}); try again; if that goes on, copy it again")


def _open(path: SlidePath) -> tuple[StatedMpp, list[_Level], str]:
    """Return the size of a pixel, the levels, and all that is said of them as text."""
    import zarr

    root: Any = zarr.open_group(_store_of(path), mode="r")
    group = root
    attributes: dict[str, Any] = dict(group.attrs)
    if kind_of_zarr(attributes) == "heatmap":
        raise SlideReadError(f"{path}: a heatmap of wsi-meta; expected a slide: the one that it was made from")
    if "bioformats2raw.layout" in attributes.get("ome", attributes) and "multiscales" not in attributes.get("ome", attributes):
        group = group["0"]
        attributes = dict(group.attrs)
    multiscales = attributes.get("ome", attributes)["multiscales"]
    multiscale = multiscales[0]
    axes = [axis if isinstance(axis, str) else axis["name"] for axis in multiscale["axes"]]
    levels = [_level_of(path, group[dataset["path"]], axes, dataset, multiscale) for dataset in multiscale["datasets"]]
    expect_one(path, pictures_of_zarr(root, group, multiscales))
    arrays = [group[dataset["path"]].metadata.to_dict() for dataset in multiscale["datasets"]]
    return _mpp_of(multiscale, axes, levels[0]), levels, json.dumps([multiscale, arrays], sort_keys=True, default=str)


def _store_of(path: SlidePath) -> Any:
    if isinstance(path, Path):
        return path
    if "?" in path.url:
        raise SlideReadError(f"{path}: an OME-Zarr at an address with a query; expected one without: it has many files")
    refuse_without_cloud(path)
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(path.url, read_only=True)


def _level_of(path: SlidePath, array: Any, axes: list[str], dataset: Any, multiscale: Any) -> _Level:
    """Return an array as a level; SlideReadError where it is no RGB picture."""
    if array.dtype != np.uint8 or len(axes) != array.ndim or not {"y", "x", "c"} <= set(axes):
        told = f"{array.dtype} with axes {', '.join(axes)}"
        raise SlideReadError(f"{path}: array {dataset['path']} is {told}; expected uint8 with y, x and c, of colours")
    sides, steps = dict(zip(axes, array.shape, strict=True)), dict(zip(axes, array.chunks, strict=True))
    if sides["c"] != 3 or any(side != 1 for axis, side in sides.items() if axis not in "yxc"):
        told = " x ".join(f"{side} {axis}" for axis, side in sides.items())
        raise SlideReadError(f"{path}: array {dataset['path']} is {told}; expected three colours, and one picture")
    if steps["x"] * steps["y"] > MAX_TILE_PX or not min(sides.values()):
        raise SlideReadError(f"{path}: chunks of {steps['x']} x {steps['y']} px; expected at most {MAX_TILE_PX:,} pixels")
    far, scale = isinstance(path, Address), _transformed("scale", axes, dataset, multiscale)
    return _Level(
        (probed(array, PROBES[0], far=far), probed(array, PROBES[1], far=far)),
        "".join(axis if axis in "yxc" else "-" for axis in axes),
        (sides["x"], sides["y"]),
        (steps["x"], steps["y"]),
        (scale["x"], scale["y"]),
        far,
    )


def _transformed(kind: str, axes: list[str], *described: Any) -> dict[str, float]:
    """Return the product of the scales that are stated, by axis."""
    product = dict.fromkeys(axes, 1.0)
    for part in described:
        for step in part.get("coordinateTransformations", []):
            for axis, value in zip(axes, step.get(kind, []), strict=False):
                product[axis] *= float(value)
    return product


def _mpp_of(multiscale: Any, axes: list[str], level: _Level) -> StatedMpp:
    """Return the size of a pixel; None where the axes have no unit."""
    sizes = []
    for axis, scale in zip("xy", level.scale, strict=True):
        described = multiscale["axes"][axes.index(axis)]
        unit = str(described.get("unit") or "").strip() if isinstance(described, dict) else ""
        um = um_per(unit)
        if um is None:
            return f"its axis {axis} has the unit {unit!r}, which is none of length" if unit else None
        sizes.append(scale * um)
    return sizes[0], sizes[1]


def _grid_of(level: _Level) -> TileGrid:
    columns, rows = (-(-side // step) for side, step in zip(level.size, level.chunk, strict=True))
    return TileGrid(*level.chunk, columns, np.ones((1, columns * rows), np.int64))
