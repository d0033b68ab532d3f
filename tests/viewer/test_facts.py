"""What pages say of a heatmap: of every scan that came to its end, and the same as the other commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from stores import write_store

from wsi_meta.viewer.facts import map_facts
from wsi_meta.viewer.shown_map import ShownMap


def test_a_slide_without_tissue_has_neither_score(tmp_path: Path) -> None:
    heatmap = write_store(tmp_path / "blank.zarr", np.full((4, 5), np.nan, np.float32))
    heatmap.with_fitted_score({"score": None, "sha256": "2" * 64})
    (result,) = (group["lines"] for group in map_facts(ShownMap(heatmap.path).state())["facts"] if group["title"] == "Result")
    assert dict(result)["Slide score"] == dict(result)["Fitted score"] == "none, nothing scanned"
