"""The heatmap store: one OME-Zarr 0.5 group that napari and ome-zarr open as it is.

    0           float32 (rows, cols)  calibrated probability of tumor; NaN = not scanned, never 0
    1, 2, ...   float32               each half the one before; the maximum of four cells, ignoring NaN
    status      uint8 (rows, cols)    what became of each cell, see :class:`Status`
    uncertainty float32 (rows, cols)  only where asked for: spread of the probability over the eight views; NaN as in 0
    attributes  "ome": multiscales with scale and translation in micrometres from the slide's corner
                "wsi_meta": identity of the scan, slide, grid, model card, versions, result, lesions

A block's status is written after its values: that is its commit mark, and what an interrupted scan resumes from.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_meta.errors import HeatmapError, OutputExistsError
from wsi_meta.outputs import check_folder
from wsi_meta.tiling.grid import Block, PatchGrid

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

__all__ = ["Heatmap", "Status"]

FORMAT_VERSION = 1
"""Version of the attributes' layout; a store with a newer one is refused."""
SMALLEST_LEVEL = 64
"""The last level of the pyramid has at most this many cells a side."""
LEVEL_CHUNK = 512
"""Cells along a chunk's side in the levels after the first (few files)."""


class Status(IntEnum):
    """What became of a cell."""

    PENDING = 0
    BACKGROUND = 1
    SCANNED = 2
    UNREADABLE = 3


@dataclass(frozen=True)
class Heatmap:
    """An opened heatmap store; :meth:`open` one, or let :func:`wsi_meta.scan` make it.

    All arrays have a row and column per cell; cell (0, 0) is the slide's upper left corner.
    """

    path: Path
    group: zarr.Group

    @classmethod
    def open(cls, path: str | Path) -> Heatmap:
        """Open an existing store.

        Raises
        ------
        HeatmapError
            when there is none, or it is not ours, or of a newer version.
        """
        import zarr
        from zarr.errors import BaseZarrError

        path = Path(path)
        if not path.is_dir():
            found = "not a folder" if path.exists() else "no such store"
            raise HeatmapError(f"{path}: {found}; expected a heatmap from 'wsi-meta scan'")
        try:
            group = zarr.open_group(path, mode="r+", zarr_format=3)
        except (BaseZarrError, OSError, ValueError, KeyError) as error:
            raise HeatmapError(
                f"{path}: not a heatmap store ({type(error).__name__}); expected one from 'wsi-meta scan'"
            ) from error
        facts: Any = group.attrs.get("wsi_meta")
        if not isinstance(facts, dict) or "identity" not in facts:
            raise HeatmapError(f"{path}: a zarr group, but not from wsi-meta; expected a heatmap from 'wsi-meta scan'")
        if facts["format_version"] > FORMAT_VERSION:
            raise HeatmapError(
                f"{path}: heatmap format {facts['format_version']} is newer than {FORMAT_VERSION}; update wsi-meta"
            )
        return cls(path, group)

    @classmethod
    def create(
        cls,
        path: Path,
        grid: PatchGrid,
        tissue: NDArray[np.bool_],
        facts: dict[str, Any],
        *,
        uncertainty: bool = False,
        overwrite: bool,
    ) -> Heatmap:
        """Make an empty store, whole or not at all: cells with tissue are pending, the others background.

        Parameters
        ----------
        tissue : bool, the grid's shape
        facts : attributes to keep under ``wsi_meta``; with ``identity``
        uncertainty : make room for the spread over the eight views
        overwrite : replace an older heatmap at `path`; anything else that stands there is never replaced

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
            _write_empty(partial, path.stem, grid, tissue, facts, uncertainty=uncertainty)
            if path.exists():
                shutil.rmtree(path)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls.open(path)

    @property
    def facts(self) -> dict[str, Any]:
        """Everything kept under ``wsi_meta``."""
        facts: Any = self.group.attrs["wsi_meta"]
        return dict(facts)

    @property
    def grid(self) -> PatchGrid:
        """Where the cells lie."""
        return PatchGrid(**self.facts["grid"])

    @property
    def probability(self) -> NDArray[np.float32]:
        """Calibrated probability of tumor, float32 (rows, cols); NaN where not scanned."""
        return self._read("0", (slice(None), slice(None)))

    @property
    def status(self) -> NDArray[np.uint8]:
        """:class:`Status` of each cell, uint8 (rows, cols)."""
        return self._read("status", (slice(None), slice(None)))

    @property
    def uncertainty(self) -> NDArray[np.float32] | None:
        """Standard deviation over the eight views, float32 (rows, cols), NaN where not scanned; None where not kept."""
        return self._read("uncertainty", (slice(None), slice(None))) if self.has_uncertainty else None

    @property
    def has_uncertainty(self) -> bool:
        """Whether the store keeps the spread over the eight views."""
        return "uncertainty" in self.group

    @property
    def result(self) -> dict[str, Any] | None:
        """Score and counts once the scan came to its end, else None."""
        result: dict[str, Any] | None = self.facts["result"]
        return result

    @property
    def finished(self) -> bool:
        """Whether every cell is scanned or background."""
        return self.result is not None and self.result["complete"]

    def read_status(self, block: Block) -> NDArray[np.uint8]:
        """Return the status of a block's cells."""
        return self._read("status", block.cells)

    def write_block(
        self,
        block: Block,
        probability: NDArray[np.float32],
        status: NDArray[np.uint8],
        uncertainty: NDArray[np.float32] | None = None,
    ) -> None:
        """Write a block's values, NaN where there are none, then its status, which commits it."""
        self._array("0")[block.cells] = probability
        if uncertainty is not None:
            self._array("uncertainty")[block.cells] = uncertainty
        self._array("status")[block.cells] = status

    def open_blocks(self) -> list[Block]:
        """Return the blocks that hold pending or unreadable cells: what a scan has still to do."""
        status = self.status
        return [
            block for block in self.grid.blocks() if np.isin(status[block.cells], (Status.PENDING, Status.UNREADABLE)).any()
        ]

    def finalise(self, result: dict[str, Any], lesions: dict[str, Any] | None = None) -> None:
        """Write the coarser levels and the result; the store is then complete.

        Parameters
        ----------
        result : score and counts, plain JSON values; with ``complete``
        lesions : what :func:`wsi_meta.heatmaps.lesions.lesion_facts` gives
        """
        for leftover in self.path.rglob("*.partial"):  # of a scan that was killed while it wrote
            leftover.unlink()
        level, count = self.probability, 1
        while max(level.shape) > SMALLEST_LEVEL:
            level, count = _halve(level), count + 1
            array = self.group.create_array(
                str(count - 1),
                shape=level.shape,
                chunks=tuple(min(LEVEL_CHUNK, side) for side in level.shape),
                dtype="float32",
                fill_value=np.nan,
                dimension_names=("y", "x"),
                overwrite=True,
            )
            array[...] = level
        self.group.update_attributes(  # at once: each key of attrs.update() writes all of them, and lesions may be megabytes
            {
                "ome": _multiscales(self.path.stem, self.grid.cell_um, count),
                "wsi_meta": self.facts | {"result": result, "lesions": lesions},
            }
        )

    def amend(self, **parts: Any) -> None:
        """Add parts to the result of a scan that came to its end."""
        self.group.attrs.update({"wsi_meta": self.facts | {"result": (self.result or {}) | parts}})

    def remove(self) -> None:
        """Delete the store."""
        shutil.rmtree(self.path)

    def _array(self, name: str) -> Any:
        return self.group[name]

    def _read(self, name: str, part: tuple[slice, slice]) -> NDArray[Any]:
        return np.asarray(self._array(name)[part])


def _write_empty(
    path: Path, name: str, grid: PatchGrid, tissue: NDArray[np.bool_], facts: dict[str, Any], *, uncertainty: bool
) -> None:
    import zarr

    group = zarr.create_group(path, zarr_format=3)
    chunks, axes = (grid.block_cells, grid.block_cells), ("y", "x")
    for values in ("0", "uncertainty") if uncertainty else ("0",):
        group.create_array(values, shape=grid.shape, chunks=chunks, dtype="float32", fill_value=np.nan, dimension_names=axes)
    status = group.create_array("status", shape=grid.shape, chunks=chunks, dtype="uint8", fill_value=0, dimension_names=axes)
    status[...] = np.where(tissue, Status.PENDING, Status.BACKGROUND).astype(np.uint8)
    group.attrs.put(
        {
            "ome": _multiscales(name, grid.cell_um, 1),
            "wsi_meta": {"format_version": FORMAT_VERSION, "grid": grid.to_dict(), **facts, "result": None},
        }
    )


def _refuse_foreign(path: Path) -> None:
    try:
        Heatmap.open(path)
    except HeatmapError as error:
        raise OutputExistsError(
            f"{path}: exists and is not a heatmap store; it is never replaced; choose another --out"
        ) from error


def _multiscales(name: str, cell_um: float, levels: int) -> dict[str, Any]:
    """Return the OME-Zarr 0.5 metadata: the centre of element (0, 0) lies half an element from the slide's corner."""
    return {
        "version": "0.5",
        "multiscales": [
            {
                "name": name,
                "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"],
                "datasets": [
                    {
                        "path": str(level),
                        "coordinateTransformations": [
                            {"type": "scale", "scale": [cell_um * 2**level] * 2},
                            {"type": "translation", "translation": [cell_um * 2**level / 2] * 2},
                        ],
                    }
                    for level in range(levels)
                ],
                "type": "maximum",
                "metadata": {"description": "probability of tumor; NaN = not scanned; coarser levels take the maximum"},
            }
        ],
    }


def _halve(level: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take the maximum of two by two elements, ignoring NaN; NaN where all four are."""
    rows, cols = level.shape
    padded = np.pad(level, ((0, rows % 2), (0, cols % 2)), constant_values=np.nan)
    highest: NDArray[np.float32] = np.fmax.reduce(padded.reshape(padded.shape[0] // 2, 2, -1, 2), axis=(1, 3))
    return highest
