"""What a heatmap's state is called, wherever it is told."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from stores import write_store

from wsi_meta.heatmaps.inspection import check_heatmaps
from wsi_meta.heatmaps.lesions import find_lesions
from wsi_meta.heatmaps.scoring import score_pieces
from wsi_meta.pictures.legend import title_of
from wsi_meta.viewer.facts import list_facts, map_facts
from wsi_meta.viewer.shelf import ShelvedStore
from wsi_meta.viewer.shown_map import ShownMap
from wsi_meta.worklist.summary import summarise


@pytest.mark.parametrize(
    ("unread", "reopened", "told"),
    [
        (1, False, "1 cell could not be read"),
        (1500, False, "1,500 cells could not be read"),
        (0, True, "not scanned to the end"),
    ],
)
def test_it_is_called_the_same_everywhere(
    unread: int, reopened: bool, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.full((40, 50), 0.9, np.float32)
    values.flat[:unread] = np.nan
    heatmap = write_store(tmp_path / "h.zarr", values, unreadable=np.isnan(values))
    heatmap = heatmap.reopen() if reopened else heatmap
    with caplog.at_level(logging.WARNING):
        find_lesions(heatmap)
    (checked,) = check_heatmaps(heatmap.path)
    for said in (
        heatmap.record.why_incomplete,
        caplog.text,
        checked.line,
        title_of(heatmap.record),
        summarise("s.tif", heatmap)["error"],
        dict(map_facts(ShownMap(heatmap.path).state())["facts"][0]["lines"])["Complete"],
        list_facts(ShelvedStore("key", heatmap.path))["state"] if reopened else told,
    ):
        assert told in str(said)
    assert ("incomplete" if unread else told) in repr(heatmap)
    assert score_pieces(heatmap)[0].line.count("1 cells") == 0
