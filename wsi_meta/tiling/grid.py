"""Cells, blocks and their positions. Pure arithmetic, no pixels.

A **cell** is one element of the heatmap: a square of `stride_px` at the model's mpp. Cell (row, col) is
``[col*s, (col+1)*s) x [row*s, (row+1)*s)`` from the slide's level-0 corner; its patch has the same centre. A **block** is
a rectangle of cells, the unit of reading, predicting, writing and resuming.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from math import ceil
from typing import Any

from wsi_meta.slides.resampling import exact_ratio

__all__ = ["BLOCK_PX", "STRIDES", "Block", "PatchGrid"]

STRIDES = tuple(range(8, 97, 8))
"""Allowed sides of a cell, pixels at the model's mpp."""

BLOCK_PX = 3840
"""Side of a full block without its halo, pixels at the model's mpp (rounded down to whole cells). A larger
block computes less twice at its edges in dense mode (a sixth), and loses more when a scan is interrupted (some seconds)."""

SLIVER = Fraction(1, 1000)
"""A last cell that holds less of the slide than this is left out: files store a rounded mpp (0.24300000001 for 0.243)."""


@dataclass(frozen=True)
class Block:
    """A rectangle of cells: first row and column, and how many of each."""

    row: int
    col: int
    rows: int
    cols: int

    @property
    def cells(self) -> tuple[slice, slice]:
        """Index of the block's cells in the heatmap."""
        return slice(self.row, self.row + self.rows), slice(self.col, self.col + self.cols)


@dataclass(frozen=True)
class PatchGrid:
    """The cells that cover one slide at one model's resolution."""

    width: int
    """Slide, level-0 pixels."""
    height: int
    """Slide, level-0 pixels."""
    slide_mpp: float
    """Micrometres per level-0 pixel."""
    mpp: float
    """Micrometres per pixel of the model."""
    patch_px: int
    stride_px: int
    block_px: int = BLOCK_PX

    @property
    def shape(self) -> tuple[int, int]:
        """Cells (rows, cols): enough to cover the slide; the last ones may reach over its edge."""
        cell = exact_ratio(self.mpp, self.slide_mpp) * self.stride_px
        return ceil(self.height / cell - SLIVER), ceil(self.width / cell - SLIVER)

    @property
    def block_cells(self) -> int:
        """Cells along one side of a full block."""
        return max(1, self.block_px // self.stride_px)

    @property
    def cell_um(self) -> float:
        """Side of a cell, micrometres."""
        return float(exact_ratio(self.mpp, 1) * self.stride_px)

    @property
    def cell_l0(self) -> float:
        """Side of a cell, level-0 pixels."""
        return float(exact_ratio(self.mpp, self.slide_mpp) * self.stride_px)

    @property
    def shape_in_blocks(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        rows, cols = self.shape
        return -(-rows // self.block_cells), -(-cols // self.block_cells)

    def blocks(self) -> list[Block]:
        """Return all blocks, row by row; those at the right and lower edge are smaller."""
        rows, cols = self.shape
        side = self.block_cells
        return [
            Block(row, col, min(side, rows - row), min(side, cols - col))
            for row in range(0, rows, side)
            for col in range(0, cols, side)
        ]

    def window(self, block: Block, halo_px: int = 0) -> tuple[int, int, int, int]:
        """Return the pixels that a block's patches cover, and `halo_px` more on each side.

        Returns
        -------
        x, y, width, height at the model's mpp; x, y may be negative.
        """
        margin = (self.patch_px - self.stride_px) // 2 + halo_px
        x, y = block.col * self.stride_px - margin, block.row * self.stride_px - margin
        return x, y, block.cols * self.stride_px + 2 * margin, block.rows * self.stride_px + 2 * margin

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)
