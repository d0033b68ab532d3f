from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsi_meta.tiling.grid import STRIDES, PatchGrid

grids = st.builds(
    PatchGrid,
    width=st.integers(1, 120_000),
    height=st.integers(1, 120_000),
    slide_mpp=st.sampled_from([0.243, 0.25, 0.2428, 0.499, 0.972]),
    mpp=st.just(0.972),
    patch_px=st.just(96),
    stride_px=st.sampled_from(STRIDES),
    block_px=st.integers(480, 4000),
)


@given(grids)
def test_blocks_cover_every_cell_once(grid: PatchGrid) -> None:
    seen = np.zeros(grid.shape, np.uint8)
    for block in grid.blocks():
        assert block.rows <= grid.block_cells
        assert block.cols <= grid.block_cells
        seen[block.cells] += 1
    assert (seen == 1).all()


@given(grids)
def test_shape_covers_the_slide_and_no_more(grid: PatchGrid) -> None:
    for cells, side in zip(grid.shape, (grid.height, grid.width), strict=True):
        assert cells * grid.cell_l0 >= side - grid.cell_l0 / 999
        assert (cells - 1) * grid.cell_l0 < side


@given(grids)
def test_a_patch_has_the_centre_of_its_cell(grid: PatchGrid) -> None:
    for block in grid.blocks()[-1:]:
        x, y, width, height = grid.window(block)
        assert x + grid.patch_px / 2 == (block.col + 0.5) * grid.stride_px
        assert y + grid.patch_px / 2 == (block.row + 0.5) * grid.stride_px
        assert (width - grid.patch_px) / grid.stride_px == block.cols - 1
        assert (height - grid.patch_px) / grid.stride_px == block.rows - 1


def test_figures_of_the_design() -> None:
    camelyon = PatchGrid(97_792, 221_184, 0.243, 0.972, 96, 32)
    assert camelyon.shape == (1728, 764)
    assert camelyon.cell_l0 == 128
    assert PatchGrid(100_000, 100_000, 0.25, 0.972, 96, 32).cell_l0 == 124.416
    assert camelyon.cell_um == 31.104


def test_stored_mpp_is_rounded() -> None:
    """A TIFF gives 0.24300000001 for 0.243: that must not add a row of cells with nothing in it."""
    assert PatchGrid(8192, 8192, 0.24300000001, 0.972, 96, 32).shape == (64, 64)
