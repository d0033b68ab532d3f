"""Every form of export is written and read back by the self-test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from stores import write_store

from wsi_meta.checkup.round_trips import DICOM, READERS, read_back
from wsi_meta.exports.export import FORMATS


def test_every_form_that_holds_a_map_is_read_back() -> None:
    assert set(FORMATS) - set(READERS) == {"qupath-project"}, "a script holds no map"


def test_each_file_holds_what_the_store_holds(tmp_path: Path) -> None:
    probability = np.random.default_rng(0).random((7, 9)).astype(np.float32)
    probability[0, 0] = np.nan
    heatmap = write_store(tmp_path / "s.zarr", probability, cut=1)
    found = read_back(heatmap, tmp_path, threshold=0.5)
    assert set(READERS) - set(DICOM) <= set(found)
    for form, (read, written) in found.items():
        known = np.isfinite(read)
        assert known.sum() >= (1 if form == "camelyon" else 62), form  # one cell was not scanned; a peak of each lesion
        assert np.array_equal(read[known], written[known]), form
