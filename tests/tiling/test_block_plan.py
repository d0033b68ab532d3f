from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from wsi_meta.tiling.block_plan import MEASURED_SIZES, PASS_COST, PieceSizes, covering_boxes, covering_strips


@given(arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24))), st.integers(2, 8))
def test_boxes_hold_all_wanted_cells_once_and_cost_no_more_than_one(wanted: NDArray[np.bool_], margin: int) -> None:
    boxes = covering_boxes(wanted, margin)
    times = np.zeros(wanted.shape, int)
    for box in boxes:
        times[box] += 1

    assert times.max(initial=0) <= 1
    assert times[wanted].all()
    if wanted.any():
        extents = [np.ptp(np.flatnonzero(wanted.any(axis))) + 1 + margin for axis in (1, 0)]
        cost = sum((rows.stop - rows.start + margin) * (cols.stop - cols.start + margin) + PASS_COST for rows, cols in boxes)
        assert cost <= extents[0] * extents[1] + PASS_COST
    else:
        assert boxes == []


def test_boxes_leave_out_what_nobody_wants() -> None:
    wanted = np.zeros((60, 60), bool)
    wanted[3:20, 2:21] = wanted[40:58, 41:60] = True

    assert covering_boxes(wanted, 8) == [(slice(3, 20), slice(2, 21)), (slice(40, 58), slice(41, 60))]


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.integers(1, 4))
def test_strips_hold_all_wanted_cells_once_in_order_and_have_no_empty_edge(wanted: NDArray[np.bool_], rows: int) -> None:
    times, last = np.zeros(wanted.shape, int), 0
    for strip in covering_strips(wanted, rows):
        kept = wanted[strip]
        times[strip] += 1
        assert len(kept) <= rows
        assert strip[0].start >= last
        assert all(edge.any() for edge in (kept[0], kept[-1], kept[:, 0], kept[:, -1]))
        last = strip[0].stop

    assert times.max(initial=0) <= 1
    assert times[wanted].all()


@given(st.integers(0, 1 << 22), st.integers(0, 1 << 18), st.integers(1, 4), st.integers(1, 8192))
def test_pieces_are_whole_bands_of_whole_cells(piece_px: int, band_px: int, least_cells: int, width_px: int) -> None:
    sizes = PieceSizes(piece_px, band_px, 32 * least_cells)
    band, piece = sizes.band_rows(width_px), sizes.piece_rows(width_px)

    assert band % 32 == 0
    assert band >= 32 * least_cells
    assert band * width_px <= max(band_px, 32 * least_cells * width_px)
    assert piece % band == 0
    assert piece * width_px <= max(piece_px, band * width_px)


def test_the_sizes_that_were_measured() -> None:
    assert PieceSizes(1 << 20, 1 << 17, 32) == MEASURED_SIZES
    assert [MEASURED_SIZES.band_rows(width) for width in (352, 1024, 2048, 4096, 8192)] == [352, 128, 64, 32, 32]
    assert MEASURED_SIZES.piece_rows(4096) == 256
