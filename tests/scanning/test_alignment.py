"""Every mark on a slide that is huge one way lies in the cell that the store's own metadata says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from fakes import scan_darkness
from slide_files import write_sparse_slide

from wsi_meta.models.model import Model

LONG, SHORT = 100_000, 8_000
"""Width and height, or the other way round: errors that add up from block to block show along the longer one."""
MARK = 24
"""Side of a mark, level-0 pixels."""


def _marks(mpp: float, height: int, width: int) -> list[tuple[int, int, int]]:
    """Near the corners and in the middle, each in the middle of a cell by plain arithmetic."""
    cell = 32 * 0.972 / mpp
    low, right = int(height / cell) - 1, int(width / cell) - 1
    places = [(0, 0), (0, right), (low, 0), (low, right), (low // 2, right // 2), (low // 3, right - 1), (low - 1, right // 3)]
    return [(round((col + 0.5) * cell) - MARK // 2, round((row + 0.5) * cell) - MARK // 2, MARK) for row, col in places]


@pytest.mark.parametrize(
    ("mpp", "block_px", "height", "width"),
    [(0.243, 960, SHORT, LONG), (0.25, 960, SHORT, LONG), (0.25, 960, LONG, SHORT), (0.499, 1920, LONG, SHORT)],
)
def test_marks_lie_where_the_metadata_says(
    mpp: float, block_px: int, height: int, width: int, tmp_path: Path, thin_model: Model
) -> None:
    marks = _marks(mpp, height, width)
    slide = write_sparse_slide(tmp_path / "huge.tif", (height, width), mpp, marks)
    tissue = np.zeros((height // 100, width // 100), bool)
    for x, y, _ in marks:
        row, col = y // 100, x // 100
        tissue[max(0, row - 1) : row + 2, max(0, col - 1) : col + 2] = True
    np.save(tmp_path / "tissue.npy", tissue)
    scan_darkness(slide, tmp_path / "heat.zarr", model=thin_model, tissue_mask=tmp_path / "tissue.npy", block_px=block_px)

    group = zarr.open_group(tmp_path / "heat.zarr", mode="r")
    ome: dict[str, list[dict[str, list[dict[str, list[dict[str, list[float]]]]]]]] = group.attrs["ome"]  # type: ignore[assignment]
    scale, translation = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    darkness = np.asarray(group["0"])
    expected = set()
    for x, y, side in marks:
        centre_um = np.array([(y + side / 2) * mpp, (x + side / 2) * mpp])
        row, col = np.rint((centre_um - translation["translation"]) / scale["scale"]).astype(int)
        expected.add((int(row), int(col)))
    dark = {(int(row), int(col)) for row, col in np.argwhere(darkness > 0.503)}
    assert dark == expected
    assert len(expected) == len(marks)
    area = (MARK * mpp / (32 * 0.972)) ** 2
    for place in expected:
        assert 2 * darkness[place] - 1 == pytest.approx(np.tanh(area / 2), rel=0.1), "the mark lies wholly in its cell"
