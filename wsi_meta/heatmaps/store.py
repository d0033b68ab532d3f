"""The heatmap store: one OME-Zarr 0.5 group that napari and ome-zarr open as it is.

    0           float32 (rows, cols)  calibrated probability of tumor; NaN = not scanned, never 0
    status      uint8 (rows, cols)    what became of each cell, see :class:`Status`
    uncertainty float32 (rows, cols)  only where asked for: spread of the probability over the views; NaN as in 0
    focus       float32 (rows, cols)  how sharp a cell is; NaN as in 0, and where it has too little contrast to tell
    darkness    float32 (rows, cols)  how dark it is; both see :mod:`wsi_meta.quality.cell_measures`; not in older stores
    checksums   uint32 (block rows, block columns)  of each scanned block, written with it; 0 = not known
    attributes  "ome": multiscales with scale and translation in micrometres from the slide's corner; omero
                "wsi_meta": the scan's record, see :class:`wsi_meta.heatmaps.record.ScanRecord`
                "wsi_meta_seal": its checksum and the blocks', see :func:`wsi_meta.heatmaps.record.seal_of`

Derived from these, and written when the scan reaches its end:

    y, x        float64               centres of rows and columns, micrometres from the slide's corner
    1, 2, ...   groups                ``probability``, each half the one before, the maximum of four cells, ignoring NaN; y, x
    labels      OME-Zarr labels       ``lesions`` (uint32, their numbers) and ``status``, with colours and properties

A block's status is written after its values and its checksum. It marks the block as done; an interrupted scan does the others.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import HeatmapError
from wsi_meta.heatmaps.layout import checksum, multiscales, with_one_nan
from wsi_meta.heatmaps.ownership import (
    open_group,
    put_in_place,
    refuse_to_replace,
    remove_partials,
    remove_store,
    temporary_store,
    written_into,
)
from wsi_meta.heatmaps.pyramid import before_scan, rewrite_attributes, write_derived, write_empty
from wsi_meta.heatmaps.record import UNKNOWN, ScanRecord, ScanResult, Status, open_seal, seal_of
from wsi_meta.outputs.checks import check_folder
from wsi_meta.outputs.paths import as_path, real_path
from wsi_meta.outputs.writing import flush
from wsi_meta.outputs.zarr_folder import number_of
from wsi_meta.tiling.grid import Block, PatchGrid
from wsi_meta.words import first_line, format_score, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import zarr
    from numpy.typing import NDArray

    from wsi_meta.quality.verdict import Verdict

__all__ = ["Heatmap", "Status"]


@dataclass(frozen=True, eq=False, repr=False)
class Heatmap:
    """An opened heatmap store; :meth:`open` one, or let :func:`wsi_meta.scan` make it.

    All arrays have a row and column per cell; cell (0, 0) is the slide's upper left corner. Reading one that lost values of
    scanned cells raises HeatmapError. Several threads may work on different blocks. A copy sent to another process opens anew.
    """

    path: Path
    record: ScanRecord
    """What the store says of its scan, as it was when the store was opened."""
    group: zarr.Group
    """The zarr group itself."""
    root: Path
    """Where the store lies, whatever folder the process is in; `path` is how it was named."""
    blocks: list[int] | None = None
    """Checksum of each block, in the grid's order; None until the scan reaches its end."""
    intact: bool = True
    """Whether the record is as it was written."""
    seen: NDArray[np.uint8] | None = None
    """The status that :meth:`as_of_now` read; None where each access reads what is there by then."""
    folder: tuple[int, int] | None = None
    """Device and number of the store's folder, by which another scan's store in its place is noticed."""
    _arrays: dict[str, Any] = field(default_factory=dict, init=False)
    _opening: threading.Lock = field(default_factory=threading.Lock, init=False)

    @classmethod
    def open(cls, path: str | Path) -> Heatmap:
        """Open an existing store.

        Raises
        ------
        HeatmapError
            when there is none, or it is not from wsi-meta, of a newer version, or its record is damaged.
        """
        path = as_path("heatmap", path, expected="a Heatmap or the path of one")
        folder, group = number_of(path), open_group(path)
        parts: Any = group.attrs["wsi_meta"]
        try:
            record = ScanRecord.from_dict(parts)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            told = f"the record of its scan is damaged ({type(error).__name__}: {first_line(error)})"
            raise HeatmapError(f"{path}: {told}; scan again with --overwrite, or to another --out") from error
        return cls(path, record, group, path.absolute(), *open_seal(group.attrs.get("wsi_meta_seal"), parts), folder=folder)

    @classmethod
    def create(cls, path: Path, record: ScanRecord, tissue: NDArray[np.bool_], *, overwrite: bool) -> Heatmap:
        """Make an empty store, whole or not at all: cells with tissue are pending, the others background.

        Parameters
        ----------
        record : of a scan that has no result yet; its identity says the grid and whether uncertainty is kept
        tissue : bool, the grid's shape
        overwrite : replace an older heatmap at `path`, which waits aside: see :func:`.claimed`; anything else at `path`, or a
            heatmap that also holds what is not ours, is never replaced

        Raises
        ------
        OutputExistsError, OutputPathError
        """
        check_folder(path)
        refuse_to_replace(path, overwrite=overwrite)
        new = temporary_store(real_path(path))
        try:
            with written_into(path):
                write_empty(new, path.stem, record, tissue)
                put_in_place(new, real_path(path))
        finally:
            remove_store(new)
        return cls.open(path)

    def as_of_now(self) -> Heatmap:
        """Return the store as it is now, however far its scan goes on: the status is read here, and what comes later is NaN."""
        return self if self.finished or self.seen is not None else replace(self, seen=self.status)

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
        return self.record.complete

    @property
    def has_uncertainty(self) -> bool:
        """Whether the store keeps the spread over the views."""
        return self.record.identity.uncertainty

    @property
    def keeps_checksums(self) -> bool:
        """Whether each block's checksum is kept with it; a store that was begun by 0.1.0 has none."""
        return (self.root / "checksums").exists()  # whatever it holds

    @property
    def probability(self) -> NDArray[np.float32]:
        """Calibrated probability of tumor, float32 (rows, cols), NaN where not scanned; each access reads the whole array."""
        return self._whole("0")

    @property
    def status(self) -> NDArray[np.uint8]:
        """:class:`Status` of each cell, uint8 (rows, cols); each access reads the whole array."""
        return self._whole("status")

    @property
    def measures(self) -> dict[str, NDArray[np.float32]]:
        """What cells are like, by :mod:`wsi_meta.quality.cell_measures`: float32 (rows, cols) by name; none in older stores."""
        return {name: self._read(name) for name in self.record.measures}

    @property
    def uncertainty(self) -> NDArray[np.float32] | None:
        """Standard deviation over the views, float32 (rows, cols), NaN where not scanned; None where not kept."""
        return self._whole("uncertainty") if self.has_uncertainty else None

    def place(self, block: Block) -> tuple[int, int]:
        """Return a block's row and column among the blocks."""
        return block.row // self.grid.block_cells, block.col // self.grid.block_cells

    def read_block(self, block: Block, name: str = "status") -> NDArray[Any]:
        """Return the status of a block's cells, or what another array of :attr:`ScanRecord.arrays` holds of them."""
        return self._read(name, block.cells)

    def open_blocks(self, status: NDArray[np.uint8]) -> list[Block]:
        """Return the blocks that hold pending or unreadable cells in the store's `status`: what a scan still has to do."""
        return [block for block in self.grid.blocks() if np.isin(status[block.cells], UNKNOWN).any()]

    def write_block(self, block: Block, values: Mapping[str, NDArray[Any]]) -> None:
        """Write what each of :attr:`ScanRecord.arrays` holds of a block, and its checksum; its status last marks it as done.

        One that is written again, since some of it was unreadable, is not done meanwhile.
        """
        values = {name: with_one_nan(values[name]) for name in self.record.arrays}
        if Status.UNREADABLE in self.read_block(block):
            self._put("status", block.cells, before_scan(values["status"] != Status.BACKGROUND))
        for name in self.record.arrays:
            if name != "status":
                self._put(name, block.cells, values[name])
                with written_into(self.path):  # the disk itself: not lost with the power while the status is kept
                    flush(self._chunk(name, block))
        if self.keeps_checksums:
            self._put("checksums", self.place(block), checksum(*values.values()))
        self._put("status", block.cells, values["status"])

    def clear_block(self, block: Block, tissue: NDArray[np.bool_]) -> None:
        """Forget a block's values, be its files damaged or not: cells with tissue are pending, the others background."""
        with written_into(self.path):
            for name in (*self.record.arrays, "checksums"):
                self._chunk(name, block).unlink(missing_ok=True)
        self._put("status", block.cells, before_scan(tissue))

    def finalise(self, result: ScanResult, lesions: dict[str, Any] | None, verdict: Verdict | None = None) -> Heatmap:
        """Write result, lesions (see :func:`.lesion_facts`) and verdict of a scan at its end, and what derives from cells."""
        arrays = [self._read(name) for name in self.record.arrays]
        with written_into(self.path):
            remove_partials(self.root)
            levels = write_derived(self.root, self.grid, arrays[0], arrays[1], lesions)
        ended = replace(self, blocks=[checksum(*(values[block.cells] for values in arrays)) for block in self.grid.blocks()])
        ome = multiscales(self.path.stem, self.grid.cell_um, levels)
        return ended.write_record(self.record.ended_with(result, lesions, verdict), ome=ome)

    def write_fitted_score(self, fitted_score: dict[str, Any]) -> Heatmap:
        """Write what :func:`wsi_meta.heatmaps.score_model.fitted_score` returns; HeatmapError where the scan has not ended."""
        if self.result is None:
            raise HeatmapError(f"{self.path}: not scanned to the end, so there is no score; scan it again to continue")
        return self.write_record(replace(self.record, result=replace(self.result, fitted_score=fitted_score)))

    def reopen(self) -> Heatmap:
        """Write that the scan has not reached its end: no result, lesions or verdict stay. Returns the store as it is then."""
        return self if self.result is None else self.write_record(replace(self.record, result=None, lesions=None, verdict=None))

    def write_record(self, record: ScanRecord, **attributes: Any) -> Heatmap:
        """Write another record, and attributes beside it. Returns the same store with it; this object keeps the old one."""
        parts, blocks = record.to_dict(), self.blocks if record.result is not None else None
        rewrite_attributes(self.root, attributes | {"wsi_meta": parts, "wsi_meta_seal": seal_of(parts, blocks)})
        return replace(self, record=record, blocks=blocks, intact=True)

    def refuse_replaced(self) -> None:
        """Make sure, once values were read, that the store that was opened still lies there; HeatmapError if not."""
        if (now := number_of(self.root)) is None:
            raise HeatmapError(f"{self.path}: no such store any more; open it again where it lies now")
        there = self.record if now == self.folder else Heatmap.open(self.root).record  # some drives number a folder anew
        if there.identity != self.record.identity or (self.result is not None and there.result is None):
            raise HeatmapError(f"{self.path}: another scan replaced it while it was read; run this again")

    def __repr__(self) -> str:
        """Return path, slide, size, score and verdict in a line."""
        record, (rows, cols) = self.record, self.grid.shape
        score = record.result.score if record.result is not None else None
        told = record.why_incomplete if score is None else f"score {format_score(score, complete=record.complete)}"
        parts = [record.slide.name, f"{cols} x {rows} cells", str(told), *(record.verdict.words if record.verdict else ())]
        return f"Heatmap({str(self.path)!r}, {printable(', '.join(parts))})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the path alone: arrays and locks belong to one process."""
        return Heatmap.open, (self.root,)

    def _put(self, name: str, part: Any, values: Any) -> None:
        with written_into(self.path):
            self._array(name)[part] = values

    def _chunk(self, name: str, block: Block) -> Path:
        """Return the file of a block's part of an array; there is none where all values are the array's fill value."""
        return self.root.joinpath(name, "c", *map(str, self.place(block)))

    def _array(self, name: str) -> Any:
        """Return an array, which is opened at its first use."""
        with self._opening:
            if name not in self._arrays:
                self._arrays[name] = self.group[name]
            return self._arrays[name]

    def _whole(self, name: str) -> NDArray[Any]:
        """Return an array in which nothing is missing that was scanned; a block that is just being written is no damage."""
        status = self._read("status")  # before the values, which are written before it
        values = status if name == "status" else self._read(name)
        lost = values.shape != status.shape or (np.isnan(values) & (status == Status.SCANNED)).any()
        if (lost or (self.finished and Status.PENDING in status)) and np.array_equal(status, self._read("status")):
            raise HeatmapError(f"{self.path}: damaged: scanned cells are missing; copy it again, or run its scan again")
        return values

    def _read(self, name: str, part: Any = ...) -> NDArray[Any]:
        if self.seen is not None and name == "status":
            return np.array(self.seen[part])
        try:
            values = np.asarray(self._array(name)[part])
        except OSError:
            raise
        except Exception as error:  # each codec has its own
            self.refuse_replaced()
            told = f"is damaged ({first_line(error)}); copy it again, or run its scan again"
            raise HeatmapError(f"{self.path}: its array '{name}' {told}") from error
        self.refuse_replaced()
        return values if self.seen is None else np.where(self.seen[part] == Status.SCANNED, values, np.float32(np.nan))
