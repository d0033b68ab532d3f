"""The heatmap store: one OME-Zarr 0.5 group that napari and ome-zarr open as it is.

    0           float32 (rows, cols)  calibrated probability of tumor; NaN = not scanned, never 0
    1, 2, ...   float32               each half the one before; the maximum of four cells, ignoring NaN
    status      uint8 (rows, cols)    what became of each cell, see :class:`Status`
    uncertainty float32 (rows, cols)  only where asked for: spread of the probability over the eight views; NaN as in 0
    attributes  "ome": multiscales with scale and translation in micrometres from the slide's corner
                "wsi_meta": the scan's record, see :class:`wsi_meta.heatmaps.record.ScanRecord`

A block's status is written after its values. It marks the block as done: an interrupted scan continues with the others.
"""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import HeatmapError, OutputExistsError, first_line
from wsi_meta.heatmaps.pyramid import coarser_levels, multiscales
from wsi_meta.heatmaps.record import FORMAT_VERSION, ScanRecord, ScanResult
from wsi_meta.outputs import check_folder
from wsi_meta.tiling.grid import Block, PatchGrid

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

__all__ = ["Heatmap", "Status"]

LEVEL_CHUNK = 512
"""Cells along a chunk's side in the levels after the first (few files)."""


class Status(IntEnum):
    """What became of a cell."""

    PENDING = 0
    BACKGROUND = 1
    SCANNED = 2
    UNREADABLE = 3


@dataclass(frozen=True, eq=False)
class Heatmap:
    """An opened heatmap store; :meth:`open` one, or let :func:`wsi_meta.scan` make it.

    All arrays have a row and column per cell; cell (0, 0) is the slide's upper left corner. Several threads may read and
    write different blocks at the same time. A copy sent to another process opens the store there again.
    """

    path: Path
    record: ScanRecord
    """What the store says of its scan, as it was when the store was opened."""
    group: zarr.Group = field(repr=False)
    """The zarr group itself."""
    _arrays: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _opening: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> Heatmap:
        """Open an existing store.

        Raises
        ------
        HeatmapError
            when there is none, or it is not from wsi-meta, of a newer version, or its record is damaged.
        """
        path = Path(path)
        group = _open_group(path)
        parts: Any = group.attrs["wsi_meta"]
        try:
            record = ScanRecord.from_dict(parts)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            told = f"{type(error).__name__}: {first_line(error)}"
            raise HeatmapError(
                f"{path}: the record of its scan is damaged ({told}); scan again with --overwrite, or to another --out"
            ) from error
        return cls(path, record, group)

    @classmethod
    def create(cls, path: Path, record: ScanRecord, tissue: NDArray[np.bool_], *, overwrite: bool) -> Heatmap:
        """Make an empty store, whole or not at all: cells with tissue are pending, the others background.

        Parameters
        ----------
        record : of a scan that has no result yet; its identity says the grid and whether uncertainty is kept
        tissue : bool, the grid's shape
        overwrite : replace an older heatmap at `path`; anything else at `path` is never replaced

        Raises
        ------
        OutputExistsError, OutputPathError
        """
        check_folder(path)
        if path.exists():
            _refuse_foreign(path)
            if not overwrite:
                raise OutputExistsError(f"{path}: exists; choose another --out, or pass --overwrite to replace it")
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _write_empty(partial, path.stem, record, tissue)
            if path.exists():
                shutil.rmtree(path)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls.open(path)

    @property
    def grid(self) -> PatchGrid:
        """Where the cells lie."""
        return self.record.grid

    @property
    def result(self) -> ScanResult | None:
        """Score and counts once the scan has reached its end, else None."""
        return self.record.result

    @property
    def finished(self) -> bool:
        """Whether every cell is scanned or background."""
        return self.result is not None and self.result.complete

    @property
    def has_uncertainty(self) -> bool:
        """Whether the store keeps the spread over the eight views."""
        return self.record.identity.uncertainty

    @property
    def probability(self) -> NDArray[np.float32]:
        """Calibrated probability of tumor, float32 (rows, cols); NaN where not scanned.

        Each access reads the whole array from the store: keep it in a variable.
        """
        return self._read("0")

    @property
    def status(self) -> NDArray[np.uint8]:
        """:class:`Status` of each cell, uint8 (rows, cols).

        Each access reads the whole array from the store: keep it in a variable.
        """
        return self._read("status")

    @property
    def uncertainty(self) -> NDArray[np.float32] | None:
        """Standard deviation over the eight views, float32 (rows, cols), NaN where not scanned; None where not kept.

        Each access reads the whole array from the store: keep it in a variable.
        """
        return self._read("uncertainty") if self.has_uncertainty else None

    def read_status(self, block: Block) -> NDArray[np.uint8]:
        """Return the status of a block's cells."""
        return self._read("status", block.cells)

    def open_blocks(self, status: NDArray[np.uint8]) -> list[Block]:
        """Return the blocks that hold pending or unreadable cells in the store's `status`: what a scan still has to do."""
        is_open = np.isin(status, (Status.PENDING, Status.UNREADABLE))
        return [block for block in self.grid.blocks() if is_open[block.cells].any()]

    def write_block(
        self,
        block: Block,
        probability: NDArray[np.float32],
        status: NDArray[np.uint8],
        uncertainty: NDArray[np.float32] | None = None,
    ) -> None:
        """Write a block's values, NaN where there are none, then its status, which marks the block as done."""
        self._array("0")[block.cells] = probability
        if uncertainty is not None:
            self._array("uncertainty")[block.cells] = uncertainty
        self._array("status")[block.cells] = status

    def finalise(self, result: ScanResult, lesions: dict[str, Any] | None) -> Heatmap:
        """Write the coarser levels, the result and the lesions of a scan that has reached its end.

        Parameters
        ----------
        lesions : as :func:`wsi_meta.heatmaps.lesions.lesion_facts` returns them

        Returns
        -------
        The same store with the finished record; this object keeps the old one.
        """
        for leftover in self.path.rglob("*.partial"):  # of a scan that was killed while it wrote
            leftover.unlink()
        levels = coarser_levels(self.probability)
        for number, level in enumerate(levels, 1):
            array = self.group.create_array(
                str(number),
                shape=level.shape,
                chunks=tuple(min(LEVEL_CHUNK, side) for side in level.shape),
                dtype="float32",
                fill_value=np.nan,
                dimension_names=("y", "x"),
                overwrite=True,
            )
            array[...] = level
        ome = multiscales(self.path.stem, self.grid.cell_um, 1 + len(levels))
        return self._with_record(self.record.finished_with(result, lesions), ome=ome)

    def with_fitted_score(self, fitted_score: dict[str, Any]) -> Heatmap:
        """Write a fitted score into the result of a scan that has reached its end.

        Parameters
        ----------
        fitted_score : as :func:`wsi_meta.heatmaps.score_model.fitted_score` returns it

        Returns
        -------
        The same store with the new record; this object keeps the old one.

        Raises
        ------
        HeatmapError
            when the scan has not reached its end.
        """
        if self.result is None:
            raise HeatmapError(f"{self.path}: not scanned to the end, so there is no score; scan it again to continue")
        return self._with_record(self.record.with_fitted_score(fitted_score))

    def remove(self) -> None:
        """Delete the store."""
        shutil.rmtree(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the path alone: arrays and locks belong to one process."""
        return Heatmap.open, (self.path.absolute(),)

    def _with_record(self, record: ScanRecord, **attributes: Any) -> Heatmap:
        # at once: zarr writes all attributes for each change, and lesions may be megabytes
        self.group.update_attributes(attributes | {"wsi_meta": record.to_dict()})
        return replace(self, record=record)

    def _array(self, name: str) -> Any:
        """Return an array of the store; it is opened once, at its first use."""
        with self._opening:
            if name not in self._arrays:
                self._arrays[name] = self.group[name]
            return self._arrays[name]

    def _read(self, name: str, part: Any = ...) -> NDArray[Any]:
        return np.asarray(self._array(name)[part])


def _open_group(path: Path) -> zarr.Group:
    """Open a group that holds the record of a scan, damaged or not; HeatmapError where there is none."""
    import zarr
    from zarr.errors import BaseZarrError

    if not path.is_dir():
        found = "not a folder" if path.exists() else "no such store"
        raise HeatmapError(f"{path}: {found}; expected a heatmap from 'wsi-meta scan'")
    try:
        group = zarr.open_group(path, mode="r+", zarr_format=3)
    except (BaseZarrError, OSError, ValueError, KeyError) as error:
        raise HeatmapError(
            f"{path}: not a heatmap store ({type(error).__name__}); expected one from 'wsi-meta scan'"
        ) from error
    parts: Any = group.attrs.get("wsi_meta")
    if not isinstance(parts, dict) or "identity" not in parts:
        raise HeatmapError(f"{path}: a zarr group, but not from wsi-meta; expected a heatmap from 'wsi-meta scan'")
    if isinstance(version := parts.get("format_version"), int) and version > FORMAT_VERSION:
        raise HeatmapError(f"{path}: heatmap format {version} is newer than {FORMAT_VERSION}; update wsi-meta")
    return group


def _write_empty(path: Path, name: str, record: ScanRecord, tissue: NDArray[np.bool_]) -> None:
    import zarr

    group, grid = zarr.create_group(path, zarr_format=3), record.grid
    chunks, axes = (grid.block_cells, grid.block_cells), ("y", "x")
    for values in ("0", "uncertainty") if record.identity.uncertainty else ("0",):
        group.create_array(values, shape=grid.shape, chunks=chunks, dtype="float32", fill_value=np.nan, dimension_names=axes)
    status = group.create_array("status", shape=grid.shape, chunks=chunks, dtype="uint8", fill_value=0, dimension_names=axes)
    status[...] = np.where(tissue, Status.PENDING, Status.BACKGROUND).astype(np.uint8)
    group.attrs.put({"ome": multiscales(name, grid.cell_um, 1), "wsi_meta": record.to_dict()})


def _refuse_foreign(path: Path) -> None:
    try:
        _open_group(path)
    except HeatmapError as error:
        raise OutputExistsError(
            f"{path}: exists and is not a heatmap store; it is never replaced; choose another --out"
        ) from error
