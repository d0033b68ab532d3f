from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from wsi_meta.tiling.block_plan import PASS_COST, covering_boxes, covering_strips


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
