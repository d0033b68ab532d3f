from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsi_meta.pictures.marks import badge, class_colour, place_labels

EXTENT = np.array([0.2, 0.17])
NOTHING = np.empty((0, 4))


def overlapping(centres: NDArray[np.float64], extents: NDArray[np.float64]) -> int:
    """The number of pairs of labels that cover each other."""
    near = (np.abs(centres[:, None] - centres[None]) < (extents[:, None] + extents[None]) / 2 - 1e-9).all(-1)
    return int(np.triu(near, 1).sum())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=60),
    st.sampled_from([(13.0, 9.0), (2.5, 13.0), (13.0, 1.2), (5.0, 5.0)]),
)
def test_labels_lie_inside_the_frame_and_apart(places: list[tuple[float, float]], frame: tuple[float, float]) -> None:
    anchors = np.repeat((np.array(places) * frame)[:, None], 4, axis=1)
    extents = np.tile(EXTENT, (len(places), 1))
    centres, ends = place_labels(anchors, extents, frame, NOTHING)
    assert (centres - extents / 2 >= 0).all()
    assert (centres + extents / 2 <= frame).all()
    assert overlapping(centres, extents) == 0
    np.testing.assert_array_equal(ends, anchors[:, 0])


def test_a_label_stands_near_and_not_on_what_is_small() -> None:
    anchors = np.full((1, 4, 2), 1.0)
    small = np.array([[0.95, 0.95, 1.05, 1.05]])
    ((x, y),), _ = place_labels(anchors, EXTENT[None], (2.0, 2.0), small)
    assert np.hypot(x - 1, y - 1) < 0.4
    assert abs(x - 1) >= 0.05 + EXTENT[0] / 2 or abs(y - 1) >= 0.05 + EXTENT[1] / 2


@pytest.mark.parametrize("frame", [(0.05, 3.0), (0.3, 0.3)])
def test_without_room_labels_cover_each_other_and_stay_in_the_middle(frame: tuple[float, float]) -> None:
    anchors = np.full((5, 4, 2), 0.02)
    centres, _ = place_labels(anchors, np.tile(EXTENT, (5, 1)), frame, NOTHING)
    assert ((centres >= 0) & (centres <= frame)).all()


def test_badges_can_be_read() -> None:
    for size_class in ("macrometastasis", "micrometastasis", "isolated tumor cells"):
        dark = np.dot(class_colour(size_class), (0.299, 0.587, 0.114)) < 0.5
        assert badge(size_class)["color"] == ("white" if dark else "black")
